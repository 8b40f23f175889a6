//! A door in front of a real API server: what comes through goes on to it, and its answers come back as they are.
//! Faults and log are those of the in-memory server, before and after this.

use bytes::Bytes;
use http::{HeaderName, header};
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::sync::mpsc;

use crate::api::{Reply, ReplyBody};
use crate::core::Core;
use crate::request::Request;

/// What of an answer's head is passed on besides its content type.
const HEADERS: [&str; 2] = ["retry-after", "warning"];

/// The real server's answer.
///
/// # Errors
/// If it does not answer: the connection is to end as it did there.
pub(crate) async fn pass(
    core: &Core,
    real: &kube::Client,
    request: &Request,
    path_and_query: &str,
) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
    let mut onward = http::Request::builder()
        .method(request.method.clone())
        .uri(path_and_query);
    let pass_on = [
        (header::ACCEPT, &request.accept),
        (header::CONTENT_TYPE, &request.content_type),
        (header::USER_AGENT, &request.user_agent),
    ];
    for (name, value) in pass_on.into_iter().filter(|(_, value)| !value.is_empty()) {
        onward = onward.header(name, value);
    }
    let onward = onward.body(Body::from(request.body.to_vec()))?;
    let answer = real.send(onward).await?;
    let (head, mut body) = answer.into_parts();
    let text = |name: &HeaderName| head.headers.get(name)?.to_str().ok().map(str::to_owned);
    let mut headers = Vec::new();
    for name in HEADERS {
        headers.extend(text(&HeaderName::from_static(name)).map(|value| (name, value)));
    }
    let content_type = text(&header::CONTENT_TYPE).unwrap_or_default();
    let stream = request.query.flag("watch") && head.status.is_success();
    let body = if stream {
        let (sender, receiver) = mpsc::channel(64);
        let mut cuts = core.cuts.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                _ = cuts.changed() => {}
                () = stream_on(&mut body, &sender) => {}
            }
        });
        ReplyBody::Stream(receiver)
    } else {
        ReplyBody::Whole(body.collect().await?.to_bytes())
    };
    Ok(Reply {
        code: head.status.as_u16(),
        content_type: content_type.into(),
        headers,
        body,
    })
}

/// Until either end has gone.
async fn stream_on(body: &mut Body, sender: &mpsc::Sender<Bytes>) {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = sender.closed() => return,
        };
        let data = match frame {
            Some(Ok(frame)) => frame.into_data(),
            Some(Err(error)) => {
                tracing::debug!(%error, "a watch of the real server broke off");
                return;
            }
            None => return,
        };
        if let Ok(data) = data
            && sender.send(data).await.is_err()
        {
            return;
        }
    }
}
