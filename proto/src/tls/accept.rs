//! The server's door: TCP connections in, verified peers out.
//!
//! The port is open to every pod that can reach the node, the suspect included. A stranger costs at
//! most one handshake slot for [`HANDSHAKE_TIMEOUT`], and one address cannot take all slots; where tokens are taken,
//! too, the same holds for connections without a certificate. Every refused peer is logged once, with its address and
//! the reason.

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::cut::Cuttable;
use super::expiry::grace_after;
use super::reload::Credentials;
use super::verify::reason;
use super::{ALPN, HANDSHAKE_TIMEOUT};
use crate::identity::PeerId;

/// Handshakes at the same time. Each costs a few KiB and a millisecond of work.
const MAX_HANDSHAKES: usize = 256;

/// Handshakes at the same time from one address.
const MAX_HANDSHAKES_PER_ADDRESS: usize = 16;

/// Connections at the same time of whoever shows no certificate. Each costs some 50 KiB.
const MAX_OPEN: usize = 1024;

/// The same from one address: a platform's client needs one or a few.
const MAX_OPEN_PER_ADDRESS: usize = 64;

/// How long a refused peer may take to read why, before the connection is cut.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);

/// Pause after the system refused to accept (out of file descriptors, most likely).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection. In the extensions of every request on it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Verified identity.
    pub id: PeerId,
    /// SHA-256 of the certificate's DER, for the custody log.
    pub certificate_sha256: [u8; 32],
    /// When that certificate stops to be valid, to the second; none: whoever let the peer in looks at that.
    pub expires: Option<SystemTime>,
    /// Remote address.
    pub remote: SocketAddr,
}

impl Peer {
    /// The peer that sent `request`; `None` if it did not come through [`incoming`].
    pub fn of<T>(request: &tonic::Request<T>) -> Option<&Self> {
        request.extensions().get()
    }
}

/// Who is at the other end of a connection to a service that also takes tokens. In the extensions of every
/// request on it.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whoever showed a certificate, which was verified. Without one, what proves the caller is in each request.
    pub peer: Option<Peer>,
    /// When that certificate stops to be valid, to the second. The connection may last longer.
    pub expires: Option<SystemTime>,
    /// Remote address.
    pub remote: SocketAddr,
}

/// A connection whose handshake is done, by `W`.
#[derive(Debug)]
pub struct Accepted<W> {
    io: Cuttable<TlsStream<TcpStream>>,
    who: W,
    /// Given back when the connection ends.
    _place: Option<Place>,
}

/// Places for connections without a certificate.
#[derive(Clone, Debug, Default)]
struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them.
#[derive(Debug)]
struct Place {
    of: Places,
    address: IpAddr,
}

impl Places {
    fn take(&self, address: IpAddr) -> Result<Place, String> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= MAX_OPEN {
            return Err(format!("{MAX_OPEN} connections have no certificate"));
        }
        let here = taken.entry(address).or_default();
        if *here >= MAX_OPEN_PER_ADDRESS {
            return Err(format!(
                "{MAX_OPEN_PER_ADDRESS} connections from this address have no certificate"
            ));
        }
        *here += 1;
        Ok(Place {
            of: self.clone(),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = taken.get_mut(&self.address) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// A connection whose peer is verified.
pub type PeerStream = Accepted<Peer>;

/// A connection of somebody who may have shown a certificate.
pub type CallerStream = Accepted<Caller>;

/// A connection of somebody who has shown no certificate: what proves them is in each request.
pub type OpenStream = Accepted<SocketAddr>;

/// Connections `S` whose handshake is done, for tonic's `serve_with_incoming`. Dropping it closes the
/// door and abandons handshakes; connections that were handed out live on.
#[derive(Debug)]
pub struct Incoming<S = PeerStream> {
    accepted: mpsc::Receiver<S>,
    // Aborts the accept loop when dropped.
    _task: JoinSet<()>,
}

/// Makes a connection of a finished handshake, or says why it is refused.
type Admit<S> = Arc<dyn Fn(TlsStream<TcpStream>, SocketAddr) -> Result<S, String> + Send + Sync>;

/// Starts accepting verified peers on `listener`.
#[must_use]
pub fn incoming(listener: TcpListener, credentials: Credentials<ServerConfig>) -> Incoming {
    start(listener, credentials, Arc::new(verified))
}

/// Starts accepting on `listener` whom `credentials` let in: with those of
/// [`caller_credentials`](super::caller_credentials) also who shows no certificate. Only for services that then
/// ask each request for its own proof.
#[must_use]
pub fn incoming_callers(
    listener: TcpListener,
    credentials: Credentials<ServerConfig>,
) -> Incoming<CallerStream> {
    let places = Places::default();
    let admit = move |io, remote| known_or_not(io, remote, &places);
    start(listener, credentials, Arc::new(admit))
}

/// Starts accepting anybody on `listener`: only for services whose requests carry their own proof.
/// `credentials` are those of [`open_server_credentials`](super::open_server_credentials).
#[must_use]
pub fn incoming_open(
    listener: TcpListener,
    credentials: Credentials<ServerConfig>,
) -> Incoming<OpenStream> {
    start(listener, credentials, Arc::new(open))
}

fn start<S: Send + 'static>(
    listener: TcpListener,
    credentials: Credentials<ServerConfig>,
    admit: Admit<S>,
) -> Incoming<S> {
    // One: a connection that the server has not taken yet keeps its handshake slot.
    let (hand_over, accepted) = mpsc::channel(1);
    let mut task = JoinSet::new();
    task.spawn(accept_loop(listener, credentials, hand_over, admit));
    Incoming {
        accepted,
        _task: task,
    }
}

async fn accept_loop<S: Send + 'static>(
    listener: TcpListener,
    credentials: Credentials<ServerConfig>,
    hand_over: mpsc::Sender<S>,
    admit: Admit<S>,
) {
    let mut handshakes = JoinSet::new();
    let mut addresses: HashMap<Id, IpAddr> = HashMap::new();
    loop {
        tokio::select! {
            Some(ended) = handshakes.join_next_with_id() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => error.id(),
                };
                addresses.remove(&id);
            }
            accepted = listener.accept(), if handshakes.len() < MAX_HANDSHAKES => match accepted {
                Ok((tcp, remote)) => {
                    let address = remote.ip();
                    let busy = addresses.values().filter(|other| **other == address).count();
                    if busy >= MAX_HANDSHAKES_PER_ADDRESS {
                        refuse(remote, "too many unfinished handshakes from this address");
                        continue;
                    }
                    let config = credentials.current();
                    let (hand_over, admit) = (hand_over.clone(), Arc::clone(&admit));
                    let task = handshakes.spawn(async move {
                        if let Some(stream) = handshake(tcp, remote, config, admit).await {
                            // Fails only if the server is shutting down.
                            let _ = hand_over.send(stream).await;
                        }
                    });
                    addresses.insert(task.id(), address);
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            },
            () = hand_over.closed() => return,
        }
    }
}

async fn handshake<S>(
    tcp: TcpStream,
    remote: SocketAddr,
    config: Arc<ServerConfig>,
    admit: Admit<S>,
) -> Option<S> {
    let accept = TlsAcceptor::from(config).accept(tcp).into_fallible();
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await {
        Err(_) => {
            refuse(
                remote,
                &format!("no complete handshake within {HANDSHAKE_TIMEOUT:?}"),
            );
            None
        }
        Ok(Err((error, tcp))) => {
            let tls = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>());
            refuse(remote, &tls.map_or_else(|| error.to_string(), reason));
            linger(tcp).await;
            None
        }
        Ok(Ok(io)) => match admit(io, remote) {
            Ok(stream) => Some(stream),
            Err(why) => {
                refuse(remote, &why);
                None
            }
        },
    }
}

fn verified(io: TlsStream<TcpStream>, remote: SocketAddr) -> Result<PeerStream, String> {
    usable(&io)?;
    let who = peer(&io, remote)?.ok_or("the peer presented no certificate")?;
    tracing::debug!(%remote, peer = %who.id, "accepted a peer");
    // Of a verified peer there always is a certificate, and so its end.
    let end = who.expires.unwrap_or(UNIX_EPOCH);
    Ok(Accepted {
        io: Cuttable::new(io, grace_after(end)),
        who,
        _place: None,
    })
}

fn known_or_not(
    io: TlsStream<TcpStream>,
    remote: SocketAddr,
    places: &Places,
) -> Result<CallerStream, String> {
    usable(&io)?;
    let peer = peer(&io, remote)?;
    let expires = peer.as_ref().and_then(|peer| peer.expires);
    let place = match peer {
        Some(_) => None,
        None => Some(places.take(remote.ip())?),
    };
    Ok(Accepted {
        // Each call and each stream of theirs is looked at by itself.
        io: Cuttable::new(io, pending()),
        who: Caller {
            peer,
            expires,
            remote,
        },
        _place: place,
    })
}

fn open(io: TlsStream<TcpStream>, remote: SocketAddr) -> Result<OpenStream, String> {
    usable(&io)?;
    Ok(Accepted {
        io: Cuttable::new(io, pending()),
        who: remote,
        _place: None,
    })
}

/// Lets a refused peer read the alert: closing with unread input would reset the connection and
/// throw the alert away.
async fn linger(mut tcp: TcpStream) {
    let drain = async {
        tcp.shutdown().await?;
        let mut scratch = [0; 4096];
        while tcp.read(&mut scratch).await? > 0 {}
        io::Result::Ok(())
    };
    // The peer was refused already; how it goes away is its own business.
    let _ = tokio::time::timeout(REFUSAL_LINGER, drain).await;
}

/// Whose certificate it was; none if there was none, which the verifier let pass then.
fn peer(io: &TlsStream<TcpStream>, remote: SocketAddr) -> Result<Option<Peer>, String> {
    let (_, session) = io.get_ref();
    let chain = session.peer_certificates();
    let Some(certificate) = chain.and_then(|chain| chain.first()) else {
        return Ok(None);
    };
    let id = PeerId::from_certificate(certificate).map_err(|error| error.to_string())?;
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    // One that ended before 1970 was not let in.
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
    Ok(Some(Peer {
        id,
        certificate_sha256: Sha256::digest(certificate).into(),
        expires: Some(UNIX_EPOCH + Duration::from_secs(seconds)),
        remote,
    }))
}

fn usable(io: &TlsStream<TcpStream>) -> Result<(), String> {
    let (tcp, session) = io.get_ref();
    if session.alpn_protocol() != Some(ALPN) {
        return Err("expected the application protocol h2, the peer offered none".to_owned());
    }
    tcp.set_nodelay(true)
        .map_err(|error| format!("could not set TCP_NODELAY: {error}"))
}

fn refuse(remote: SocketAddr, reason: &str) {
    tracing::warn!(%remote, reason, "refused a peer");
}

impl<S> futures::Stream for Incoming<S> {
    type Item = Result<S, io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.accepted.poll_recv(cx).map(|stream| stream.map(Ok))
    }
}

impl<W: Clone + Send + Sync + 'static> Connected for Accepted<W> {
    type ConnectInfo = W;

    fn connect_info(&self) -> W {
        self.who.clone()
    }
}

impl<W: Unpin> AsyncRead for Accepted<W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<W: Unpin> AsyncWrite for Accepted<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_the_places_of_others_and_gives_its_own_back() {
        let places = Places::default();
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let mut taken: Vec<Place> = (0..MAX_OPEN_PER_ADDRESS)
            .map(|_| places.take(one).unwrap())
            .collect();
        assert!(places.take(one).is_err());
        drop(places.take(other).unwrap());
        taken.pop();
        assert!(places.take(one).is_ok());
        drop(taken);
        assert!(places.0.lock().unwrap().is_empty());
    }
}
