//! HTTP/2 settings of both ends, in one place.
//!
//! Evidence flows from server to client, so only the client's receive windows are widened; a
//! server receives small requests and keeps the protocol's 64 KiB, which also bounds what a peer
//! can make it buffer.

use std::time::Duration;

use tonic::transport::{Endpoint, Server};

/// Bytes a server may send on one stream before the client has consumed any. Covers 10 Gbit/s at a
/// round trip of 3 ms.
const STREAM_WINDOW: u32 = 4 << 20;

/// The same for all streams of a connection together. More than the four bulk streams that an agent
/// serves at a time can hold: otherwise streams whose bytes nobody takes (a slow store) would starve
/// every other call on the connection.
const CONNECTION_WINDOW: u32 = 6 * STREAM_WINDOW;

/// Largest frame the client accepts. 16 KiB, the protocol's default, costs a header and a TLS
/// record boundary every 16 KiB.
const FRAME: u32 = 256 << 10;

/// Bytes of request headers a server accepts; ours have a handful of short ones.
const HEADER_LIST: u32 = 16 << 10;

/// Simultaneous calls on one connection. The controller needs a few per collection.
const CONCURRENT_STREAMS: u32 = 64;

/// An idle connection is asked for a sign of life this often, so that a peer whose machine vanished
/// is noticed and a running export is stopped or retried.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// How long the sign of life may take. A node under memory pressure can stall for seconds.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest time for TCP connect and handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// A server asks its clients to connect anew after this long, so that a connection outlives the
/// certificates it was opened with by little: certificates and roots are looked at in handshakes only.
/// Calls that run then, exports above all, may end on the old connection however long they take;
/// tonic has no grace period that would not cut them off.
const CONNECTION_AGE: Duration = Duration::from_secs(60 * 60);

/// Applies the client's settings.
#[must_use]
pub fn endpoint(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_timeout(CONNECT_TIMEOUT)
}

/// Applies the server's settings.
#[must_use]
pub fn server(server: Server) -> Server {
    server_of_age(server, CONNECTION_AGE)
}

pub(super) fn server_of_age(server: Server, age: Duration) -> Server {
    server
        .max_connection_age(age)
        .max_concurrent_streams(CONCURRENT_STREAMS)
        .http2_max_header_list_size(HEADER_LIST)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
}
