//! What an OpenTelemetry collector is told of a quarantine, by the controller's process and by an agent.

use impound_controller::resources::Quarantine as QuarantineObject;
use impound_proto::traces::Traces;
use kube::ResourceExt;
use kube::api::Api;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::receiver::{Arrived, Receiver};
use super::*;

/// The attributes that there are. Anything else may be a secret, or evidence: look before it is added here.
const ATTRIBUTES: [&str; 16] = [
    "attempt",
    "bytes",
    "case",
    "collection",
    "namespace",
    "node",
    "path",
    "peer",
    "pod",
    "quarantine",
    "rpc.grpc.status_code",
    "rpc.method",
    "rpc.system",
    "step",
    "busy_ns",
    "idle_ns",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantine_is_one_trace_with_the_spans_of_controller_and_agent_and_only_names_in_them() {
    let (received, otlp) = Receiver::start().await;
    // The agent is in this process.
    let agent = Traces::new("impound-agent", [], otlp.parse().unwrap());
    tracing_subscriber::registry().with(agent.layer()).init();
    agent.start().unwrap();
    let site = Site::start_with(false, &["--otlp-endpoint", &otlp]).await;
    let suspect = site.pod("suspect").await;
    let mut alice = site.world.responder("alice").await;
    let request = CreateQuarantineRequest {
        keep_neighbours: true,
        skip_collection: false,
        ..site.world.request(&name(&suspect))
    };
    let created = alice.create_quarantine(request).await.unwrap().into_inner();
    let quarantine = site.world.settled(&created.quarantine.unwrap().name).await;
    assert_eq!(quarantine.phase, "Complete", "{quarantine:#?}");

    let api: Api<QuarantineObject> =
        Api::namespaced(site.world.client.clone(), &site.world.namespace);
    let object = api.get(&quarantine.name).await.unwrap();
    let trace = object.uid().unwrap().replace('-', "");
    let export = "impound.agent.v1.Agent/Export";
    let spans = eventually("both ends' spans have arrived", || async {
        let mut spans = received.spans();
        spans.retain(|span| span.trace == trace);
        for (service, name) in [
            ("impound-controller", "step Strip"),
            ("impound-controller", "step Finish"),
            ("impound-controller", "collection"),
            ("impound-controller", "artifact"),
            ("impound-controller", "store write"),
            ("impound-controller", "seal"),
            ("impound-controller", export),
            ("impound-agent", export),
        ] {
            if !spans.iter().any(|span| span.is(service, name)) {
                return Err(format!("no {name} of {service} in {spans:#?}"));
            }
        }
        Ok(spans)
    })
    .await;
    let called = spans
        .iter()
        .find(|span| span.is("impound-controller", export));
    let answered = spans.iter().find(|span| span.is("impound-agent", export));
    assert_eq!(answered.unwrap().parent, called.unwrap().id);
    let artifact = spans.iter().find(|span| span.id == called.unwrap().parent);
    assert_eq!(artifact.unwrap().name, "artifact");
    let known = |span: &Arrived| {
        span.attributes
            .iter()
            .all(|(name, _)| ATTRIBUTES.contains(&&**name))
    };
    for span in received.spans() {
        assert!(known(&span) && span.events == 0, "{span:#?}");
    }
    site.stop().await;
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_no_step_and_is_said_in_the_log() {
    let world = World::start_with(&["--otlp-endpoint", "http://127.0.0.1:9"]).await;
    let pod = world.deployment("nginx", 1, None).await.remove(0);
    let settled = world.quarantine(&name(&pod)).await;
    assert_eq!(state(&settled, "Strip"), "Done", "{settled:#?}");
    eventually("the log says that nothing could be exported", || async {
        let log = world.log();
        let said = log.contains("opentelemetry_sdk") && log.contains("export");
        if said { Ok(()) } else { Err(log) }
    })
    .await;
}

impl Arrived {
    fn is(&self, service: &str, name: &str) -> bool {
        self.service == service && self.name == name
    }
}
