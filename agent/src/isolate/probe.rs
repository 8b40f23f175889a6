//! Connection attempts as proof: whether TCP gets through, in both directions.
//!
//! Nothing is sent over a connection; it is closed as soon as it is there. The sockets are made inside
//! a namespace and belong to it; waiting for them happens outside.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::TcpSocket;

use super::namespace::{NamespaceError, NetworkNamespace};

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) target: SocketAddr,
    pub(crate) outcome: Outcome,
    /// The kernel's error number, 0 for none.
    pub(crate) errno: i32,
    /// For people; empty if connected.
    pub(crate) error: String,
    pub(crate) elapsed: Duration,
}

/// Whether traffic flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It does.
    Connected,
    /// Somebody answered.
    Refused,
    /// Nobody answered.
    TimedOut,
    /// There is no way, or it is forbidden.
    Unreachable,
    /// Not tried.
    Failed,
}

/// Tries all targets at the same time out of `namespace`, each for at most `limit`.
pub(super) async fn connect(
    namespace: &NetworkNamespace,
    targets: &[SocketAddr],
    limit: Duration,
) -> Result<Vec<Attempt>, NamespaceError> {
    let families = targets.to_vec();
    let sockets = namespace
        .run(move || families.iter().map(socket).collect::<Vec<_>>())
        .await?;
    let attempts = targets
        .iter()
        .zip(sockets)
        .map(|(target, socket)| attempt(*target, socket, limit));
    Ok(futures::future::join_all(attempts).await)
}

/// A socket of the calling thread's namespace.
fn socket(target: &SocketAddr) -> io::Result<TcpStream> {
    let family = match target.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::STREAM, flags, None)?.into())
}

async fn attempt(target: SocketAddr, socket: io::Result<TcpStream>, limit: Duration) -> Attempt {
    let started = Instant::now();
    let ended = |outcome, errno, error| Attempt {
        target,
        outcome,
        errno,
        error,
        elapsed: started.elapsed(),
    };
    let socket = match socket {
        Ok(socket) => TcpSocket::from_std_stream(socket),
        Err(error) => {
            return ended(
                Outcome::Failed,
                error.raw_os_error().unwrap_or(0),
                error.to_string(),
            );
        }
    };
    match tokio::time::timeout(limit, socket.connect(target)).await {
        Ok(Ok(_)) => ended(Outcome::Connected, 0, String::new()),
        Ok(Err(error)) => {
            let errno = error.raw_os_error().unwrap_or(0);
            ended(outcome(errno), errno, error.to_string())
        }
        Err(_) => ended(
            Outcome::TimedOut,
            0,
            format!("no answer within {} ms", limit.as_millis()),
        ),
    }
}

fn outcome(errno: i32) -> Outcome {
    let unreachable = [
        Errno::NETUNREACH,
        Errno::HOSTUNREACH,
        Errno::NETDOWN,
        Errno::HOSTDOWN,
        // A rule of the namespace that rejects, or a route that prohibits.
        Errno::PERM,
        Errno::ACCESS,
    ];
    match Errno::from_raw_os_error(errno) {
        Errno::CONNREFUSED | Errno::CONNRESET => Outcome::Refused,
        Errno::TIMEDOUT => Outcome::TimedOut,
        errno if unreachable.contains(&errno) => Outcome::Unreachable,
        _ => Outcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    async fn here(target: SocketAddr) -> Attempt {
        attempt(target, socket(&target), LIMIT).await
    }

    #[tokio::test]
    async fn an_attempt_tells_open_closed_and_silent_apart() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        assert_eq!(here(open).await.outcome, Outcome::Connected);
        drop(listener);
        let closed = here(open).await;
        assert_eq!((closed.outcome, closed.errno), (Outcome::Refused, 111));
        assert!(closed.error.contains("refused"), "{}", closed.error);
        let family = attempt(open, Err(Errno::AFNOSUPPORT.into()), LIMIT).await;
        assert_eq!((family.outcome, family.errno), (Outcome::Failed, 97));
        for (errno, expected) in [
            (Errno::HOSTUNREACH, Outcome::Unreachable),
            (Errno::PERM, Outcome::Unreachable),
            (Errno::TIMEDOUT, Outcome::TimedOut),
            (Errno::ADDRNOTAVAIL, Outcome::Failed),
        ] {
            assert_eq!(outcome(errno.raw_os_error()), expected);
        }
    }
}
