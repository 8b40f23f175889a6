//! What a part takes for the front, and what it does not.

use super::*;

fn peer(id: PeerId) -> Peer {
    Peer {
        id,
        expires: None,
        certificate_sha256: [7; 32],
        remote: "10.0.0.9:40000".parse().unwrap(),
    }
}

#[test]
fn the_peer_that_the_front_named_is_the_peer_that_the_part_sees() {
    let mut headers = HeaderMap::new();
    // What a client of the front may have tried.
    headers.append(
        PEER,
        HeaderValue::from_static("spiffe://impound.dev/agent/other"),
    );
    name_peer(&mut headers, &peer(PeerId::Controller)).unwrap();
    let found = named_peer(&headers).unwrap();
    assert_eq!(found.id, PeerId::Controller);
    assert_eq!(found.certificate_sha256, [7; 32]);
    assert_eq!(found.remote.to_string(), "10.0.0.9:40000");
}

#[test]
fn nobody_but_a_controller_that_is_named_once_gets_through() {
    assert!(named_peer(&HeaderMap::new()).is_err());
    for name in [PEER, CERTIFICATE, REMOTE] {
        let mut headers = HeaderMap::new();
        name_peer(&mut headers, &peer(PeerId::Controller)).unwrap();
        let twice = headers.get(&name).unwrap().clone();
        headers.append(&name, twice);
        let error = named_peer(&headers).unwrap_err();
        assert!(error.contains("once"), "{error}");
        headers.remove(&name);
        let error = named_peer(&headers).unwrap_err();
        assert!(error.contains("found none"), "{error}");
        headers.insert(&name, HeaderValue::from_static("?"));
        assert!(named_peer(&headers).is_err());
    }
    let mut headers = HeaderMap::new();
    name_peer(&mut headers, &peer(PeerId::agent("k8s-worker2").unwrap())).unwrap();
    assert!(named_peer(&headers).is_err());
}

#[tokio::test]
async fn another_user_is_shut_out_before_a_byte_is_read() {
    use futures::StreamExt;
    use tokio::io::AsyncReadExt;
    let dir = tempfile::tempdir().unwrap();
    let socket = SocketPath(dir.path().join("collector.sock"));
    let own = rustix::process::getuid().as_raw();
    for (allowed, user) in [(true, own), (false, own + 1)] {
        // The second round also replaces the socket of the first.
        let listener = listen(&socket).unwrap();
        let mode = std::fs::metadata(socket.as_path())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o660);
        let mut connections = Box::pin(incoming(listener, user));
        let mut client = UnixStream::connect(socket.as_path()).await.unwrap();
        if allowed {
            connections.next().await.unwrap().unwrap();
        } else {
            let mut byte = [0];
            tokio::select! {
                _ = connections.next() => panic!("a stranger was let in"),
                read = client.read(&mut byte) => assert_eq!(read.unwrap(), 0),
            }
        }
    }
    let file = SocketPath(dir.path().join("a-file"));
    std::fs::write(file.as_path(), "kept").unwrap();
    assert!(listen(&file).is_err());
    assert_eq!(std::fs::read(file.as_path()).unwrap(), b"kept");
}

#[test]
fn a_socket_is_an_absolute_path() {
    let path: SocketPath = "unix:/run/impound/collector.sock".parse().unwrap();
    assert_eq!(path.to_string(), "unix:/run/impound/collector.sock");
    for wrong in ["", "/run/x", "unix:", "unix:x", "tcp:/x"] {
        assert!(wrong.parse::<SocketPath>().is_err(), "{wrong}");
    }
}
