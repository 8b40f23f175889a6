//! The two ends of a test whether network policies are enforced, which `impound doctor --network` makes of two pods: one
//! listens, the other tries to get there. Neither has a key, a runtime or a way to the API.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::config::{Answer, Reach};
use crate::run::RunError;

/// What the listener says to everybody, so that nobody is taken for it who only accepts.
const GREETING: &[u8] = b"impound";

/// How long one attempt may take. What is dropped says nothing.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Attempts without an answer, one after the other, that are silence and not a packet that was lost.
const SILENT: u32 = 4;

/// Until it is known, or until `stop`.
///
/// # Errors
/// If the address can't be listened at, or the wanted answer did not come in time.
pub(crate) async fn run(wanted: Reach, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let work = async {
        match wanted {
            Reach::Listen { at } => listen(at).await,
            Reach::Try { to, until, seconds } => {
                attempt(to, until, Duration::from_secs(seconds)).await
            }
        }
    };
    tokio::select! {
        done = work => done,
        () = stop => Ok(()),
    }
}

async fn listen(at: SocketAddr) -> Result<(), RunError> {
    let listener = TcpListener::bind(at)
        .await
        .map_err(|source| RunError::Listen {
            address: at,
            source,
        })?;
    tracing::info!(address = %at, "listening for the network test");
    loop {
        // Somebody who goes away while they are greeted has had their answer.
        if let Ok((mut stream, _)) = listener.accept().await {
            let _ = timeout(ATTEMPT, stream.write_all(GREETING)).await;
        }
    }
}

async fn attempt(to: SocketAddr, until: Answer, limit: Duration) -> Result<(), RunError> {
    let began = Instant::now();
    let mut silent = 0;
    loop {
        let answered = timeout(ATTEMPT, greeted(to)).await.unwrap_or(false);
        silent = if answered { 0 } else { silent + 1 };
        tracing::info!(%to, answered, "tried");
        let reached = match until {
            Answer::Comes => answered,
            Answer::Stops => silent >= SILENT,
        };
        if reached {
            return Ok(());
        }
        if began.elapsed() >= limit {
            return Err(RunError::Reach {
                address: to,
                expected: until,
                limit,
            });
        }
        sleep(PAUSE).await;
    }
}

async fn greeted(to: SocketAddr) -> bool {
    let greeting = async {
        let mut stream = TcpStream::connect(to).await?;
        let mut said = [0; GREETING.len()];
        stream.read_exact(&mut said).await?;
        std::io::Result::Ok(said)
    };
    greeting.await.is_ok_and(|said| said == GREETING)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn free() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    }

    async fn tries(to: SocketAddr, until: Answer) -> bool {
        let seconds = 0;
        let wanted = Reach::Try { to, until, seconds };
        run(wanted, std::future::pending()).await.is_ok()
    }

    #[tokio::test]
    async fn an_answer_that_comes_is_told_from_one_that_does_not() {
        let at = free().await;
        let listening = tokio::spawn(run(Reach::Listen { at }, std::future::pending()));
        let wanted = Reach::Try {
            to: at,
            until: Answer::Comes,
            seconds: 60,
        };
        run(wanted, std::future::pending()).await.unwrap();
        assert!(!tries(at, Answer::Stops).await, "it still answers");
        listening.abort();
        let _ = listening.await;
        let wanted = Reach::Try {
            to: at,
            until: Answer::Stops,
            seconds: 60,
        };
        run(wanted, std::future::pending()).await.unwrap();
        assert!(!tries(at, Answer::Comes).await, "nobody is there");
    }

    #[tokio::test]
    async fn somebody_who_only_accepts_is_not_the_listener() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = other.local_addr().unwrap();
        tokio::spawn(async move { while other.accept().await.is_ok() {} });
        assert!(!tries(at, Answer::Comes).await);
    }
}
