//! A lease with an API that answers late.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::json;
use tokio::sync::Mutex;

use super::*;

/// An API that holds one Lease, and answers writes late: `after` is in milliseconds.
fn api(after: &Arc<AtomicU64>) -> Client {
    let lease = Arc::new(Mutex::new(None::<Vec<u8>>));
    let after = after.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (lease, after) = (lease.clone(), after.clone());
        async move {
            let read = request.method() == Method::GET;
            let body = request.into_body().collect().await.unwrap().to_bytes();
            if !read {
                // It stands there at once, and others see it.
                *lease.lock().await = Some(body.to_vec());
                sleep(Duration::from_millis(after.load(Ordering::Relaxed))).await;
            }
            let answer = lease.lock().await.clone();
            let none =
                json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 });
            let status = if answer.is_some() { 200 } else { 404 };
            let answer = answer.unwrap_or_else(|| none.to_string().into_bytes());
            let response = Response::builder().status(status).body(Body::from(answer));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    Client::new(service, "impound")
}

fn leadership(client: Client) -> Leadership {
    Leadership::new(client, "impound", LEASE, "one".into())
}

#[tokio::test(start_paused = true)]
async fn a_lease_counts_from_before_the_write_that_took_it() {
    let after = Arc::new(AtomicU64::new(3_000));
    let mut lease = leadership(api(&after));
    let begun = Instant::now();
    assert_eq!(lease.take().await.unwrap(), None);
    // Nothing more is answered in time.
    after.store(60_000, Ordering::Relaxed);
    let lost = lease.keep().await;
    assert!(lost.contains("in time"), "{lost}");
    let (took, tick) = (begun.elapsed(), Duration::from_millis(100));
    assert!(took < RENEW_WITHIN + tick, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_taking_was_answered_too_late_is_renewed_before_anything_is_done_with_it() {
    let after = Arc::new(AtomicU64::new(9_000));
    let mut lease = leadership(api(&after));
    let quick = {
        let after = after.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(1)).await;
            after.store(0, Ordering::Relaxed);
        })
    };
    assert_eq!(lease.take().await.unwrap(), None);
    quick.await.unwrap();
    assert!(lease.renewed.elapsed() < RENEW_WITHIN);
    let kept = timeout(Duration::from_secs(60), lease.keep()).await;
    assert!(kept.is_err(), "{kept:?}");
}
