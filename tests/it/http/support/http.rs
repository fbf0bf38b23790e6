//! A client that shows all that came: one connection a request, so that no pool hides what the server does.

use std::{net::SocketAddr, sync::Arc, sync::Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::task::TaskTracker;

use super::soon;

/// Where a server listens; shared, since a restarted one listens elsewhere.
#[derive(Clone, Debug)]
pub(in crate::http) struct Address(Arc<Mutex<SocketAddr>>);

impl Address {
    pub(in crate::http) fn new(address: SocketAddr) -> Self {
        Self(Arc::new(Mutex::new(address)))
    }

    pub(in crate::http) fn get(&self) -> SocketAddr {
        *self.0.lock().unwrap()
    }

    pub(in crate::http) fn set(&self, address: SocketAddr) {
        *self.0.lock().unwrap() = address;
    }

    /// Sends a request and reads the whole answer.
    pub(in crate::http) async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        let response = soon("an answer", exchange(self.get(), request))
            .await
            .unwrap();
        soon("the end of an answer", Reply::read(response)).await
    }

    /// Sends a request, and gives the answer frame by frame.
    pub(in crate::http) async fn open(&self, request: Request<Full<Bytes>>) -> EventStream {
        let response = soon("an answer", exchange(self.get(), request))
            .await
            .unwrap();
        EventStream::new(response)
    }

    pub(in crate::http) async fn get_path(&self, path: &str) -> Reply {
        let request = Request::get(path).body(Full::default()).unwrap();
        self.send(request).await
    }

    /// A connection of its own, for what no client library sends.
    pub(in crate::http) async fn raw(&self) -> RawConnection {
        RawConnection(
            soon("a connection", TcpStream::connect(self.get()))
                .await
                .unwrap(),
        )
    }
}

/// Sends one request over a new connection. Dropping the answer hangs up.
pub(in crate::http) async fn exchange(
    address: SocketAddr,
    mut request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Box<dyn std::error::Error>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    TaskTracker::new().spawn(connection);
    let host = address.to_string().parse()?;
    request.headers_mut().entry("host").or_insert(host);
    Ok(sender.send_request(request).await?)
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(in crate::http) struct Reply {
    pub(in crate::http) status: u16,
    pub(in crate::http) headers: HeaderMap,
    pub(in crate::http) text: String,
    /// Null where the body is no JSON.
    pub(in crate::http) body: Value,
}

impl Reply {
    async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        }
    }

    /// A header's value; `""` if it is not there, its values joined by `, ` if there are several.
    pub(in crate::http) fn header(&self, name: &str) -> String {
        joined(&self.headers, name)
    }

    /// The code of an error.
    pub(in crate::http) fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or("")
    }

    #[track_caller]
    pub(in crate::http) fn expect_ok(self) -> Self {
        assert!((200..300).contains(&self.status), "{self:#?}");
        self
    }

    #[track_caller]
    pub(in crate::http) fn expect(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.code()), (status, code), "{self:#?}");
        self
    }
}

fn joined(headers: &HeaderMap, name: &str) -> String {
    let values: Vec<&str> = headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect();
    values.join(", ")
}

/// An answer as it comes; dropped, it hangs up.
#[derive(Debug)]
pub(in crate::http) struct EventStream {
    pub(in crate::http) status: u16,
    pub(in crate::http) headers: HeaderMap,
    body: Incoming,
    events: Events,
}

impl EventStream {
    fn new(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
            events: Events::default(),
        }
    }

    pub(in crate::http) fn header(&self, name: &str) -> String {
        joined(&self.headers, name)
    }

    /// The data of the next event; `None` at the end. Comments are skipped.
    ///
    /// # Panics
    /// If the answer breaks off.
    pub(in crate::http) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.events.next() {
                return Some(data);
            }
            let frame = soon("a frame", self.body.frame()).await?;
            let frame = frame.expect("the stream broke off");
            if let Ok(data) = frame.into_data() {
                self.events.add(&data);
            }
        }
    }

    /// The data of the next event, as JSON.
    pub(in crate::http) async fn next_json(&mut self) -> Value {
        let data = self.next().await.expect("the stream has ended");
        serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error}: {data}"))
    }

    /// The data of all events left.
    pub(in crate::http) async fn rest(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(data) = self.next().await {
            rest.push(data);
        }
        rest
    }

    /// The whole body, for a request that was answered without a stream.
    pub(in crate::http) async fn into_reply(self) -> Reply {
        let mut response = Response::new(self.body);
        *response.status_mut() = http::StatusCode::from_u16(self.status).unwrap();
        *response.headers_mut() = self.headers;
        soon("the end of an answer", Reply::read(response)).await
    }
}

/// Splits a stream of server-sent events.
#[derive(Debug, Default)]
struct Events(String);

impl Events {
    fn add(&mut self, bytes: &[u8]) {
        self.0.push_str(std::str::from_utf8(bytes).unwrap());
    }

    fn next(&mut self) -> Option<String> {
        loop {
            let end = self.0.find("\n\n")?;
            let event: String = self.0.drain(..end + 2).collect();
            let data: Vec<&str> = event
                .lines()
                .filter_map(|line| line.strip_prefix("data:"))
                .map(|data| data.strip_prefix(' ').unwrap_or(data))
                .collect();
            if !data.is_empty() {
                return Some(data.join("\n"));
            }
        }
    }
}

/// A connection that sends what it is told.
pub(in crate::http) struct RawConnection(TcpStream);

impl RawConnection {
    pub(in crate::http) async fn write(&mut self, text: &str) {
        soon("room to write", self.0.write_all(text.as_bytes()))
            .await
            .unwrap();
    }

    /// As far as the server takes it: it may have answered before all of it came.
    pub(in crate::http) async fn write_bytes(&mut self, bytes: &[u8]) {
        let _ = soon("room to write", self.0.write_all(bytes)).await;
    }

    /// All that comes until the server closes, for at most `patience`.
    pub(in crate::http) async fn read_to_end_within(
        &mut self,
        patience: std::time::Duration,
    ) -> String {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(patience, self.0.read_to_end(&mut bytes))
            .await
            .expect("the server did not close the connection");
        // Closed with bytes of ours unread, it is reset behind the answer.
        assert!(read.is_ok() || !bytes.is_empty(), "{read:?}");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(in crate::http) async fn read_to_end(&mut self) -> String {
        self.read_to_end_within(super::PATIENCE).await
    }

    /// Reads until `end` has come.
    pub(in crate::http) async fn read_until(&mut self, end: &str) -> String {
        let mut bytes = Vec::new();
        while !String::from_utf8_lossy(&bytes).contains(end) {
            let read = soon(end, self.0.read_buf(&mut bytes)).await.unwrap();
            assert_ne!(
                read,
                0,
                "closed before {end:?}: {}",
                String::from_utf8_lossy(&bytes)
            );
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[test]
fn events_are_split_wherever_the_bytes_are_cut() {
    let text = ": comment\n\ndata: one\n\ndata: two\ndata: lines\n\ndata:[DONE]\n\n";
    for size in [1, 2, 7, text.len()] {
        let mut events = Events::default();
        let mut found = Vec::new();
        for chunk in text.as_bytes().chunks(size) {
            events.add(chunk);
            while let Some(data) = events.next() {
                found.push(data);
            }
        }
        assert_eq!(found, ["one", "two\nlines", "[DONE]"], "{size}");
    }
}
