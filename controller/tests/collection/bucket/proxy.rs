//! A server that stands in front of the real one and fails: it takes each request whole, and then
//! sends it on, or does not, or loses or spoils the answer.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// 500 instead of doing it.
    Internal,
    /// 503 instead of doing it.
    Unavailable,
    /// 503 SlowDown instead of doing it.
    SlowDown,
    /// No answer until the client gives up.
    Stall,
    /// Done, and no answer until the client gives up.
    DoneAndStall,
    /// Done, and after half of the answer nothing comes until the client gives up.
    StallInAnswer,
    /// Done, and only half of the answer comes.
    Cut,
    /// Done, and the connection ends without an answer.
    LostReply,
    /// Done, and the answer is 500.
    DoneAndInternal,
    /// 400 instead of doing it: what came has not the checksum that was announced. Of requests that bring something.
    BadDigest,
    /// Done, and the answer's headers and documents name other checksums.
    WrongChecksum,
    /// A bit of the request's body is changed on the way.
    SpoiledRequest,
    /// A bit of the answer's body is changed on the way. Without TLS nothing tells a spoiled listing
    /// from a true one: a collection that meets one is not sealed, as if somebody had changed it.
    SpoiledAnswer,
}

impl Fault {
    /// All that TLS lets through.
    pub(super) const OF_A_SERVER: [Self; 11] = [
        Self::Internal,
        Self::Unavailable,
        Self::SlowDown,
        Self::Stall,
        Self::DoneAndStall,
        Self::StallInAnswer,
        Self::Cut,
        Self::LostReply,
        Self::DoneAndInternal,
        Self::BadDigest,
        Self::WrongChecksum,
    ];
    pub(super) const ALL: [Self; 13] = [
        Self::Internal,
        Self::Unavailable,
        Self::SlowDown,
        Self::Stall,
        Self::DoneAndStall,
        Self::StallInAnswer,
        Self::Cut,
        Self::LostReply,
        Self::DoneAndInternal,
        Self::BadDigest,
        Self::WrongChecksum,
        Self::SpoiledRequest,
        Self::SpoiledAnswer,
    ];
}

/// Decides what goes wrong with the request of this head, if anything.
type Choice = Box<dyn Fn(&str) -> Option<Fault> + Send + Sync>;

/// A running proxy; ends with the test.
pub(super) struct Proxy {
    pub(super) endpoint: String,
    pub(super) faults: Arc<AtomicUsize>,
    choice: Arc<Mutex<Choice>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// In front of `upstream`, `http://host:port`. Nothing goes wrong yet.
    pub(super) async fn start(upstream: &str) -> Self {
        let upstream = upstream.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let choice: Arc<Mutex<Choice>> = Arc::new(Mutex::new(Box::new(|_: &str| None)));
        let faults = Arc::new(AtomicUsize::new(0));
        let (choose, count) = (Arc::clone(&choice), Arc::clone(&faults));
        let serving = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (upstream, choose, count) =
                    (upstream.clone(), Arc::clone(&choose), Arc::clone(&count));
                // A client or server that goes away is what this is for.
                tokio::spawn(async move { exchange(client, &upstream, &choose, &count).await });
            }
        });
        Self {
            endpoint,
            faults,
            choice,
            serving,
        }
    }

    pub(super) fn choose(&self, choice: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static) {
        *self.choice.lock().unwrap() = Box::new(choice);
    }

    /// One in `1 / rate` requests fails, each time in one of these ways.
    pub(super) fn fail(&self, rate: f64, seed: u64, faults: &'static [Fault]) {
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        self.choose(move |_| {
            let mut random = random.lock().unwrap();
            (random.f64() < rate).then(|| faults[random.usize(..faults.len())])
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn exchange(
    mut client: TcpStream,
    upstream: &str,
    choice: &Mutex<Choice>,
    count: &AtomicUsize,
) -> std::io::Result<()> {
    let Some((head, mut body)) = message(&mut client).await? else {
        return Ok(());
    };
    let fault = (choice.lock().unwrap())(&head);
    if fault.is_some() {
        count.fetch_add(1, Ordering::Relaxed);
    }
    let says = |status: &str, code: &str| {
        let document = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>a test</Message></Error>"
        );
        let length = document.len();
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\r\n{document}"
        )
    };
    match fault {
        Some(Fault::Internal) => {
            let answer = says("500 Internal Server Error", "InternalError");
            return client.write_all(answer.as_bytes()).await;
        }
        Some(Fault::Unavailable) => {
            let answer = says("503 Service Unavailable", "ServiceUnavailable");
            return client.write_all(answer.as_bytes()).await;
        }
        Some(Fault::SlowDown) => {
            let answer = says("503 Slow Down", "SlowDown");
            return client.write_all(answer.as_bytes()).await;
        }
        Some(Fault::BadDigest) if !body.is_empty() => {
            let answer = says("400 Bad Request", "BadDigest");
            return client.write_all(answer.as_bytes()).await;
        }
        Some(Fault::Stall) => return until_given_up(&mut client).await,
        Some(Fault::SpoiledRequest) => {
            if let Some(byte) = body.last_mut() {
                *byte ^= 4;
            }
        }
        _ => {}
    }
    let mut server = TcpStream::connect(upstream).await?;
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    server.write_all(head.as_bytes()).await?;
    server.write_all(&body).await?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).await?;
    match fault {
        Some(Fault::Cut) => {
            let half = answer.len() / 2;
            client.write_all(&answer[..half]).await
        }
        Some(Fault::LostReply) => Ok(()),
        Some(Fault::DoneAndStall) => until_given_up(&mut client).await,
        Some(Fault::StallInAnswer) => {
            let half = answer.len() / 2;
            client.write_all(&answer[..half]).await?;
            until_given_up(&mut client).await
        }
        Some(Fault::WrongChecksum) => {
            change_checksums(&mut answer);
            client.write_all(&answer).await
        }
        Some(Fault::DoneAndInternal) => {
            let answer = says("500 Internal Server Error", "InternalError");
            client.write_all(answer.as_bytes()).await
        }
        Some(Fault::SpoiledAnswer) => {
            let body = answer.windows(4).position(|at| at == b"\r\n\r\n");
            let body = body.map_or(answer.len(), |at| at + 4);
            let middle = body + (answer.len() - body) / 2;
            if let Some(byte) = answer.get_mut(middle) {
                *byte ^= 4;
            }
            client.write_all(&answer).await
        }
        _ => client.write_all(&answer).await,
    }
}

async fn until_given_up(client: &mut TcpStream) -> std::io::Result<()> {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.map(drop)
}

/// Each checksum that an answer names, in a header or in a document, becomes another one.
fn change_checksums(answer: &mut [u8]) {
    let lower = answer.to_ascii_lowercase();
    for name in [
        "etag: \"",
        "x-amz-checksum-sha256: ",
        "<etag>",
        "<checksumsha256>",
    ] {
        let found = lower.windows(name.len()).enumerate();
        let found = found.filter(|(_, at)| *at == name.as_bytes());
        for (at, _) in found {
            // Behind what may be a quoted quotation mark.
            let value = answer[at + name.len()..].iter_mut();
            let value = value.take_while(|byte| !b"\r<".contains(byte));
            let digits = value.filter(|byte| byte.is_ascii_digit()).take(1);
            digits.for_each(|byte| *byte = b'0' + (*byte - b'0' + 1) % 10);
        }
    }
}

/// A request's head and its body, whose length the head says.
async fn message(client: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|at| at == b"\r\n\r\n") {
            break end + 4;
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8(bytes).unwrap();
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse().unwrap());
    while body.len() < length {
        if client.read_buf(&mut body).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some((head, body)))
}
