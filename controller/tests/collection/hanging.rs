//! Lets one call to the agent of `agent.rs` have its effect and never its answer.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tonic::server::NamedService;
use tower::Service;

use super::State;

#[derive(Clone)]
pub(super) struct Hanging<S> {
    pub(super) inner: S,
    pub(super) state: Arc<Mutex<State>>,
}

impl<S: NamedService> NamedService for Hanging<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Hanging<S>
where
    S: Service<http::Request<B>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let answer = self.inner.call(request);
        let state = self.state.clone();
        let hangs = {
            let mut state = state.lock().unwrap();
            state.begun += 1;
            state.hang_at == Some(state.begun)
        };
        Box::pin(async move {
            let answer = answer.await;
            if hangs {
                drop(answer);
                state.lock().unwrap().hung = true;
                std::future::pending().await
            } else {
                answer
            }
        })
    }
}
