//! An upstream for tests: real sockets, and every byte and close as the test says.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Which connection it came on, from 0.
    pub(super) connection: usize,
    /// Which request of that connection it is, from 0.
    pub(super) turn: usize,
    /// In lower case.
    pub(super) head: String,
    pub(super) body: String,
}

/// What the server does about a request.
pub(super) enum Act {
    Send(String),
    /// Waits until the test lets it go on.
    Await(Signal),
    /// Waits until the client has closed the connection, and tells.
    TellClosed(Signal),
    Close,
    /// Neither answers nor closes.
    Stall,
}

/// Something that happened; waiting for it takes it.
#[derive(Clone)]
pub(super) struct Signal(Arc<Semaphore>);

impl Signal {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    pub(super) fn give(&self) {
        self.0.add_permits(1);
    }

    pub(super) async fn wait(&self) {
        self.0.acquire().await.unwrap().forget();
    }
}

/// A whole answer with a body of this length.
pub(super) fn answer(status: &str, body: &str) -> Act {
    Act::Send(format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-upstream: yes\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// The head of a stream.
pub(super) fn stream_head() -> Act {
    Act::Send(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_owned(),
    )
}

pub(super) fn chunk(data: &str) -> Act {
    Act::Send(format!("{:x}\r\n{data}\r\n", data.len()))
}

pub(super) fn last_chunk() -> Act {
    Act::Send("0\r\n\r\n".to_owned())
}

pub(super) struct TestServer {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl TestServer {
    /// Acts on each request as `script` says.
    pub(super) async fn start<S>(script: S) -> Self
    where
        S: Fn(&Seen) -> Vec<Act> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, script) = (Arc::clone(&seen), Arc::new(script));
        in_background(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (log, script) = (Arc::clone(&log), Arc::clone(&script));
                in_background(async move {
                    serve(stream, connection, &log, &*script).await;
                });
            }
        });
        Self { address, seen }
    }

    pub(super) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The numbers of the connections that requests came on, in order.
    pub(super) fn connections(&self) -> Vec<usize> {
        self.seen().iter().map(|seen| seen.connection).collect()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a server of a test ends with the test's runtime"
)]
pub(super) fn in_background(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

async fn serve(
    mut stream: TcpStream,
    connection: usize,
    log: &Mutex<Vec<Seen>>,
    script: &(dyn Fn(&Seen) -> Vec<Act> + Send + Sync),
) {
    let mut buffer = Vec::new();
    for turn in 0.. {
        let Some((head, body)) = read_request(&mut stream, &mut buffer).await else {
            return;
        };
        let seen = Seen {
            connection,
            turn,
            head,
            body,
        };
        log.lock().unwrap().push(seen.clone());
        for act in script(&seen) {
            match act {
                Act::Send(text) => {
                    if stream.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
                Act::Await(signal) => signal.wait().await,
                Act::TellClosed(signal) => {
                    let mut byte = [0];
                    while matches!(stream.read(&mut byte).await, Ok(1)) {}
                    signal.give();
                }
                Act::Close => return,
                Act::Stall => std::future::pending().await,
            }
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, String)> {
    let head_end = loop {
        if let Some(at) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        read_more(stream, buffer).await?;
    };
    let head = String::from_utf8(buffer[..head_end].to_vec())
        .unwrap()
        .to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    while buffer.len() < head_end + length {
        read_more(stream, buffer).await?;
    }
    let body = buffer[head_end..head_end + length].to_vec();
    buffer.drain(..head_end + length);
    Some((head, String::from_utf8(body).unwrap()))
}

async fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let read = stream.read_buf(buffer).await.ok()?;
    (read > 0).then_some(())
}
