//! The small plain-HTTP server of both ends, for a kubelet's probes and for metrics: neither can do mutual
//! TLS. It answers GETs of a few fixed pages, takes no input, and tells no secret.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Clients at the same time. A kubelet sends one, a metrics server another.
const CLIENTS: usize = 8;

/// What a page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// 200, or 503 for a probe that fails.
    pub status: StatusCode,
    /// E.g. `text/plain; charset=utf-8`.
    pub content_type: &'static str,
    /// The body.
    pub text: String,
}

impl Page {
    /// Plain text, and whether all is well.
    #[must_use]
    pub fn plain(well: bool, text: impl Into<String>) -> Self {
        Self {
            status: if well {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            },
            content_type: "text/plain; charset=utf-8",
            text: text.into(),
        }
    }
}

/// Makes the page of a path, `None` for one that there is not.
pub type Pages =
    Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = Option<Page>> + Send>> + Send + Sync>;

/// Answers for as long as the process lives.
pub async fn serve(listener: TcpListener, pages: Pages) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let accepted = listener.accept().await;
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else {
            return;
        };
        match accepted {
            Ok((tcp, _)) => {
                let pages = Arc::clone(&pages);
                tokio::spawn(async move {
                    client(tcp, pages).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a probe");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client(tcp: TcpStream, pages: Pages) {
    let answer = service_fn(|request: Request<Incoming>| {
        let page = (request.method() == Method::GET).then(|| pages(request.uri().path().into()));
        async move {
            let page = match page {
                Some(page) => page.await,
                None => None,
            };
            Ok::<_, Infallible>(answer(page))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(tcp), answer);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a probe broke off");
    }
}

fn answer(page: Option<Page>) -> Response<Full<Bytes>> {
    let page = page.unwrap_or(Page {
        status: StatusCode::NOT_FOUND,
        ..Page::plain(true, "no such page\n")
    });
    let mut response = Response::new(Full::from(page.text));
    *response.status_mut() = page.status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(page.content_type),
    );
    response
}
