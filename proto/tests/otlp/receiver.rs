//! An OpenTelemetry collector for tests, of agent and controller: it keeps what it is sent.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A span as it arrived.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "each suite looks at some of it")]
pub(crate) struct Arrived {
    /// service.name of its process.
    pub(crate) service: String,
    pub(crate) name: String,
    /// Hexadecimal, as the others.
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    /// Names and values of its attributes.
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) events: usize,
}

/// What has arrived so far.
#[derive(Clone, Default)]
pub(crate) struct Receiver(Arc<Mutex<Vec<Arrived>>>);

impl Receiver {
    /// Starts one, and says where: `http://127.0.0.1:PORT`.
    pub(crate) async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let receiver = Self::default();
        let server = Server::builder().add_service(TraceServiceServer::new(receiver.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (receiver, address)
    }

    pub(crate) fn spans(&self) -> Vec<Arrived> {
        self.0.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_process in request.into_inner().resource_spans {
            let known = of_process.resource.unwrap_or_default().attributes;
            let service = known.into_iter().find(|known| known.key == "service.name");
            let service = service.map_or_else(String::new, |known| text(known.value));
            let spans = of_process
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| {
                Arrived {
                    service: service.clone(),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    attributes: span
                        .attributes
                        .into_iter()
                        .map(|one| (one.key, text(one.value)))
                        .collect(),
                    events: span.events.len(),
                }
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(value: Option<opentelemetry_proto::tonic::common::v1::AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
