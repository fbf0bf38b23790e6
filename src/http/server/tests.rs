//! Time is paused: it moves on when nothing else can happen, so that 30 seconds pass at once and are still measured.

use std::convert::Infallible;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    middleware::from_fn,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::*;
use crate::http::{
    Dialect,
    error::{RenderContext, render},
    extract::read_body,
    request_id::RequestId,
};

const STOP_TIME: Duration = Duration::from_secs(30);

struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    tracker: TaskTracker,
    ended: oneshot::Receiver<()>,
}

async fn serving(router: Router) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let tracker = TaskTracker::new();
    let options = ServerOptions {
        cores: vec![Handle::current()],
        tracker: tracker.clone(),
        stop_time: STOP_TIME,
    };
    let (end, ended) = oneshot::channel();
    let stop = shutdown.clone();
    tracker.spawn(async move {
        serve(listener, router, options, stop).await;
        let _ = end.send(());
    });
    Server {
        address,
        shutdown,
        tracker,
        ended,
    }
}

/// `/hello`, and `/body`, which takes at most 1,024 bytes.
fn routes() -> Router {
    async fn take(request: Request) -> Response {
        let (parts, body) = request.into_parts();
        match read_body(&parts.headers, body, 1_024).await {
            Ok(body) => body.len().to_string().into_response(),
            Err(error) => error.into_response(),
        }
    }
    Router::new()
        .route("/hello", get(|| async { "hello" }))
        .route("/body", post(take))
        .layer(from_fn(
            |request: Request, next: axum::middleware::Next| async move {
                let request_id = RequestId("r".into());
                let context = RenderContext {
                    dialect: Dialect::Native,
                    request_id: &request_id,
                };
                render(next.run(request).await, context)
            },
        ))
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `text`, and waits until the server closes.
    async fn closes_after(&self, text: &str) {
        let mut client = self.connect().await;
        client.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
    }

    /// Sends `text`, and gives all that comes until the server closes.
    async fn exchange(&self, text: &str) -> String {
        let mut client = self.connect().await;
        client.write_all(text.as_bytes()).await.unwrap();
        rest(&mut client).await
    }
}

async fn rest(client: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn read_until(client: &mut TcpStream, end: &str) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        assert_ne!(
            client.read_buf(&mut answer).await.unwrap(),
            0,
            "closed early"
        );
    }
    String::from_utf8(answer).unwrap()
}

fn is_about(elapsed: Duration, seconds: u64) -> bool {
    (seconds * 1_000 - 50..seconds * 1_000 + 1_500)
        .contains(&u64::try_from(elapsed.as_millis()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_or_only_begins_a_head_is_closed_after_30_seconds() {
    let server = serving(routes()).await;
    for begin in [
        "",
        "P",
        "GET /hello HTTP/1.1\r\nhost: a\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let began = Instant::now();
        server.closes_after(begin).await;
        assert!(
            is_about(began.elapsed(), 30),
            "{begin:?}: {:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_in_is_given_up_all_the_same() {
    let server = serving(routes()).await;
    let mut client = server.connect().await;
    let began = Instant::now();
    let trickle = async {
        let (mut read, mut write) = client.split();
        let drip = async {
            write
                .write_all(b"GET /hello HTTP/1.1\r\nx: ")
                .await
                .unwrap();
            while write.write_all(b"y").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        };
        let mut answer = Vec::new();
        tokio::select! {
            () = drip => {}
            _ = read.read_to_end(&mut answer) => {}
        }
        answer
    };
    assert_eq!(trickle.await, b"");
    assert!(is_about(began.elapsed(), 30), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_30_seconds_after_its_last_answer() {
    let server = serving(routes()).await;
    let mut client = server.connect().await;
    for _ in 0..3 {
        client
            .write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let answer = read_until(&mut client, "hello").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        tokio::time::advance(Duration::from_secs(20)).await;
    }
    let began = Instant::now();
    assert_eq!(rest(&mut client).await, "");
    assert!(
        is_about(began.elapsed() + Duration::from_secs(20), 30),
        "{:?}",
        began.elapsed()
    );
}

/// A request whose head has exactly this many bytes.
fn head_of(bytes: usize) -> String {
    let begin = "GET /hello HTTP/1.1\r\nconnection: close\r\nx: ";
    let end = "\r\n\r\n";
    format!(
        "{begin}{}{end}",
        "y".repeat(bytes - begin.len() - end.len())
    )
}

#[tokio::test(start_paused = true)]
async fn a_head_may_have_64_kib_and_no_more() {
    let server = serving(routes()).await;
    let answer = server.exchange(&head_of(64 * 1024)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let answer = server.exchange(&head_of(64 * 1024 + 1)).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let endless = server.exchange(&head_of(400_000)).await;
    assert!(endless.starts_with("HTTP/1.1 431 "), "{endless}");
}

#[tokio::test(start_paused = true)]
async fn a_head_may_have_100_fields_and_no_more() {
    let server = serving(routes()).await;
    let with_fields = |count: usize| {
        let fields: String = (1..count).map(|i| format!("x-{i}: y\r\n")).collect();
        format!("GET /hello HTTP/1.1\r\nconnection: close\r\n{fields}\r\n")
    };
    let answer = server.exchange(&with_fields(100)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let answer = server.exchange(&with_fields(101)).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_cannot_be_read_gets_the_bare_status_and_is_closed() {
    let server = serving(routes()).await;
    for head in [
        "nonsense\r\n\r\n",
        "GET /hello HTTP/1.1\r\nno colon\r\n\r\n",
    ] {
        let answer = server.exchange(head).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{head:?}: {answer}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_still_sending_a_body_too_large_gets_its_413() {
    let server = serving(routes()).await;
    for announce in [
        "content-length: 16777216\r\n",
        "transfer-encoding: chunked\r\n",
    ] {
        let mut client = server.connect().await;
        let head = format!("POST /body HTTP/1.1\r\nhost: a\r\n{announce}\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        if announce.starts_with("transfer") {
            client.write_all(b"1000000\r\n").await.unwrap();
        }
        client
            .write_all(&vec![b'x'; 16 * 1024 * 1024])
            .await
            .unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("\"body_too_large\""), "{answer}");
    }
}

/// `/refused`, answered without a look at its body, and how many requests have come to it.
fn refusing() -> (Router, mpsc::UnboundedReceiver<()>) {
    let (tell, came) = mpsc::unbounded_channel();
    let refuse = move || {
        let _ = tell.send(());
        async { http::StatusCode::UNAUTHORIZED }
    };
    (Router::new().route("/refused", post(refuse)), came)
}

const REFUSED: &str = "POST /refused HTTP/1.1\r\nhost: a\r\n";

/// Time goes on as it does: paused, it would leap to the end of the wait for the body.
#[tokio::test]
async fn a_body_that_comes_after_its_answer_was_known_costs_no_connection() {
    let (router, mut came) = refusing();
    let server = serving(router).await;
    let mut client = server.connect().await;
    for (announce, body) in [
        ("content-length: 4\r\n", "body"),
        ("transfer-encoding: chunked\r\n", "4\r\nbody\r\n0\r\n\r\n"),
        ("content-length: 4\r\n", "last"),
    ] {
        let head = format!("{REFUSED}{announce}\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let came = tokio::time::timeout(Duration::from_secs(10), came.recv());
        came.await.expect("the request comes").unwrap();
        client.write_all(body.as_bytes()).await.unwrap();
        let answer = read_until(&mut client, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_too_long_too_late_or_not_asked_for_closes_the_connection_and_the_answer_says_so() {
    let (router, _came) = refusing();
    let server = serving(router).await;
    for (announce, begin, waits) in [
        ("content-length: 300000\r\n", String::new(), Some(0)),
        (
            "content-length: 4\r\nexpect: 100-continue\r\n",
            String::new(),
            Some(0),
        ),
        ("content-length: 4\r\n", "bo".to_owned(), Some(1)),
        (
            "transfer-encoding: chunked\r\n",
            format!("{:x}\r\n{}", 300_000, "x".repeat(300_000)),
            None, // paused, time may leap while these bytes are on their way
        ),
    ] {
        let began = Instant::now();
        let mut client = server.connect().await;
        let request = format!("{REFUSED}{announce}\r\n{begin}");
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut client, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        let waited = began.elapsed().as_secs();
        assert!(waits.is_none_or(|it| it == waited), "{announce}: {waited}");
        assert_eq!(rest(&mut client).await, "");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stands_still_is_408_and_the_connection_is_closed() {
    let server = serving(routes()).await;
    let began = Instant::now();
    let answer = server
        .exchange("POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")
        .await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"request_timeout\""), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(
        is_about(began.elapsed(), 30) || is_about(began.elapsed(), 31),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn content_length_beside_transfer_encoding_is_read_as_chunked() {
    let server = serving(routes()).await;
    let answer = server
        .exchange(
            "POST /body HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 99\r\n\
             transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        )
        .await;
    assert!(answer.ends_with("\r\n\r\n3"), "{answer}");
}

/// An answer fed by the test.
fn fed() -> (Router, mpsc::Sender<&'static str>) {
    let (feed, fed) = mpsc::channel::<&'static str>(1);
    let fed = Arc::new(std::sync::Mutex::new(Some(fed)));
    let handler = move || {
        let mut fed = fed.lock().unwrap().take().expect("one request");
        async move {
            Body::from_stream(stream::poll_fn(move |context| {
                fed.poll_recv(context).map(|it| it.map(Ok::<_, Infallible>))
            }))
        }
    };
    (Router::new().route("/stream", get(handler)), feed)
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_be_silent_for_as_long_as_it_likes() {
    let (router, feed) = fed();
    let server = serving(router).await;
    let mut client = server.connect().await;
    client
        .write_all(b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    for piece in ["one", "two"] {
        tokio::time::sleep(Duration::from_secs(500)).await;
        feed.send(piece).await.unwrap();
        read_until(&mut client, &format!("{piece}\r\n")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_may_end_when_the_server_stops() {
    let (router, feed) = fed();
    let server = serving(router).await;
    let mut client = server.connect().await;
    let mut idle = server.connect().await;
    client
        .write_all(b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    feed.send("one").await.unwrap();
    read_until(&mut client, "one\r\n").await;

    server.shutdown.cancel();
    assert_eq!(rest(&mut idle).await, "", "an idle connection is closed");
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "nothing new is taken"
    );
    feed.send("two").await.unwrap();
    drop(feed);
    assert!(
        rest(&mut client).await.contains("two"),
        "what is in flight ends"
    );
    drop(client);
    server.ended.await.unwrap();
    server.tracker.close();
    server.tracker.wait().await;
}

#[tokio::test(start_paused = true)]
async fn what_never_ends_is_cut_off_after_the_stop_time() {
    let (router, feed) = fed();
    let server = serving(router).await;
    let mut client = server.connect().await;
    client
        .write_all(b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    feed.send("one").await.unwrap();
    read_until(&mut client, "one\r\n").await;
    let began = Instant::now();
    server.shutdown.cancel();
    server.ended.await.unwrap();
    assert!(is_about(began.elapsed(), 30), "{:?}", began.elapsed());
    assert!(feed.is_closed(), "the answer's body was dropped");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_reading_is_given_up() {
    let (feed, fed) = mpsc::channel::<Bytes>(1);
    let fed = Arc::new(std::sync::Mutex::new(Some(fed)));
    let router = Router::new().route(
        "/flood",
        get(move || {
            let mut fed = fed.lock().unwrap().take().expect("one request");
            async move {
                Body::from_stream(
                    stream::poll_fn(move |context| fed.poll_recv(context)).map(Ok::<_, Infallible>),
                )
            }
        }),
    );
    let server = serving(router).await;
    let mut client = server.connect().await;
    client
        .write_all(b"GET /flood HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let began = Instant::now();
    while feed.send(Bytes::from(vec![0; 64 * 1024])).await.is_ok() {}
    assert!(
        began.elapsed() >= Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    assert!(
        began.elapsed() < Duration::from_secs(120),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn http_2_is_spoken_too_and_told_to_go_when_idle() {
    let server = serving(routes()).await;
    let stream = server.connect().await;
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let connection = server.tracker.spawn(connection);
    let request = |fields: usize| {
        let mut request = http::Request::builder().uri(format!("http://{}/hello", server.address));
        for i in 0..fields {
            request = request.header(format!("x-{i}"), "y");
        }
        request.body(Empty::<Bytes>::new()).unwrap()
    };
    let answer = client.send_request(request(1)).await.unwrap();
    assert_eq!(answer.collect().await.unwrap().to_bytes(), "hello");
    let answer = client.send_request(request(101)).await.unwrap();
    assert_eq!(answer.status(), 431);
    drop(answer);
    let began = Instant::now();
    let _ = connection.await.unwrap();
    assert!(
        began.elapsed() <= Duration::from_secs(32),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn only_a_want_of_something_makes_the_accept_loop_rest() {
    assert!(is_of_one_connection(
        &io::ErrorKind::ConnectionAborted.into()
    ));
    assert!(
        !is_of_one_connection(&io::Error::from_raw_os_error(24)),
        "EMFILE"
    );
}
