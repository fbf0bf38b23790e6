use std::{
    io::{Read as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use futures_util::{
    future::{join_all, poll_immediate},
    stream,
};
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::provider::{
    Patience, Provider as _, ProviderStatus, StreamUsage,
    openai::{OpenAi, Settings},
    test_server::{Act, Signal, TestServer, answer, chunk, in_background, last_chunk, stream_head},
    tls::Roots,
};

/// Long enough for any machine.
const PATIENCE: Patience = Patience::Whole(Duration::from_secs(60));

fn provider(base_url: &str) -> OpenAi {
    OpenAi::new(Settings {
        base_url: base_url.to_owned(),
        api_key: Some("sk-upstream".into()),
        stream_usage: StreamUsage::Request,
        timeout: Duration::from_secs(60),
        roots: Roots::Environment,
    })
    .unwrap()
}

fn chat(body: &'static str, patience: Patience) -> Forward {
    Forward {
        endpoint: Endpoint::ChatCompletions,
        headers: HeaderMap::new(),
        body: Bytes::from_static(body.as_bytes()),
        patience,
    }
}

async fn read(response: Response<UpstreamBody>) -> Result<String, ProviderError> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

async fn ask(provider: &OpenAi) -> String {
    let response = provider.forward(chat("{}", PATIENCE)).await.unwrap();
    read(response).await.unwrap()
}

#[tokio::test]
async fn a_request_and_its_answer_pass_as_they_are() {
    let server = TestServer::start(|_| vec![answer("418 Teapot", "{\"any\": [1]}")]).await;
    let mut request = chat("{\"model\": \"m\",  \"odd\":1}", PATIENCE);
    for (name, value) in [
        ("openai-beta", "x"),
        ("cookie", "session=1"),
        ("authorization", "Bearer tg_tenant"),
        ("accept-encoding", "br, gzip"),
        ("host", "elsewhere"),
        ("content-length", "3"),
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("expect", "100-continue"),
    ] {
        request
            .headers
            .insert(name, HeaderValue::from_static(value));
    }
    let response = provider(&server.base_url()).forward(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(response.headers()["x-upstream"], "yes");
    assert_eq!(read(response).await.unwrap(), "{\"any\": [1]}");

    let seen = &server.seen()[0];
    assert_eq!(seen.body, "{\"model\": \"m\",  \"odd\":1}");
    let mut lines: Vec<_> = seen.head.trim_end().lines().collect();
    assert_eq!(lines.remove(0), "post /v1/chat/completions http/1.1");
    lines.sort_unstable();
    let host = format!("host: {}", server.address);
    assert_eq!(
        lines,
        [
            "accept-encoding: identity",
            "authorization: bearer sk-upstream",
            "content-length: 24",
            "content-type: application/json",
            &host,
            "openai-beta: x",
        ]
    );
}

#[tokio::test]
async fn each_endpoint_has_its_method_and_path() {
    let server = TestServer::start(|_| vec![answer("200 OK", "{}")]).await;
    let provider = provider(&format!(
        "http://localhost:{}/openai/v1",
        server.address.port()
    ));
    for endpoint in Endpoint::ALL {
        let mut request = chat("", PATIENCE);
        request.endpoint = endpoint;
        read(provider.forward(request).await.unwrap())
            .await
            .unwrap();
    }
    let lines: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| seen.head.lines().next().unwrap().to_owned())
        .collect();
    assert_eq!(
        lines,
        [
            "post /openai/v1/chat/completions http/1.1",
            "post /openai/v1/responses http/1.1",
            "post /openai/v1/embeddings http/1.1",
            "get /openai/v1/models http/1.1",
        ]
    );
}

#[tokio::test]
async fn a_redirect_is_passed_back_and_not_followed() {
    let server = TestServer::start(|_| {
        vec![Act::Send(
            "HTTP/1.1 307 Go\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
                .to_owned(),
        )]
    })
    .await;
    let response = provider(&server.base_url())
        .forward(chat("{}", PATIENCE))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let server = TestServer::start(|seen| match seen.turn {
        // The end of a chunked body is seen only by reading on.
        0 => vec![stream_head(), chunk("{}"), last_chunk()],
        1 => vec![answer("200 OK", "")],
        _ => vec![answer("200 OK", "{}")],
    })
    .await;
    let provider = provider(&server.base_url());
    for _ in 0..5 {
        read(provider.forward(chat("{}", PATIENCE)).await.unwrap())
            .await
            .unwrap();
    }
    assert_eq!(server.connections(), [0; 5]);
}

#[tokio::test]
async fn a_body_whose_length_is_known_hands_its_connection_back_with_its_last_byte() {
    let server = TestServer::start(|_| vec![answer("200 OK", "{}")]).await;
    let provider = provider(&server.base_url());
    for _ in 0..3 {
        let mut body = provider
            .forward(chat("{}", PATIENCE))
            .await
            .unwrap()
            .into_body();
        body.frame().await.unwrap().unwrap();
        assert!(http_body::Body::is_end_stream(&body));
        // Not asked for the end, as servers do not once they have sent the length they announced.
        std::mem::forget(body);
    }
    assert_eq!(server.connections(), [0; 3]);
}

#[tokio::test]
async fn parallel_requests_have_connections_of_their_own_which_then_serve_on() {
    let all_there = Signal::new();
    let gate = all_there.clone();
    let server = TestServer::start(move |seen| match seen.turn {
        0 => vec![Act::Await(gate.clone()), answer("200 OK", "{}")],
        _ => vec![answer("200 OK", "{}")],
    })
    .await;
    let provider = provider(&server.base_url());
    let wave = async || {
        let requests = (0..8).map(|_| async {
            read(provider.forward(chat("{}", PATIENCE)).await.unwrap())
                .await
                .unwrap();
        });
        join_all(requests).await;
    };
    let release = async {
        for _ in 0..8 {
            all_there.give();
        }
    };
    tokio::join!(wave(), release);
    wave().await;
    let seen = server.seen();
    assert_eq!(seen.len(), 16);
    assert!(seen.iter().all(|seen| seen.connection < 8));
}

#[tokio::test]
async fn a_request_that_was_read_is_never_sent_again() {
    // How it looks when the close crosses the request, and when the upstream was at work on it.
    let server = TestServer::start(|seen| match (seen.connection, seen.turn) {
        (0, 1) => vec![Act::Close],
        _ => vec![answer("200 OK", "{}")],
    })
    .await;
    let provider = provider(&server.base_url());
    assert_eq!(ask(&provider).await, "{}");
    let error = provider.forward(chat("{}", PATIENCE)).await.unwrap_err();
    assert!(matches!(error, ProviderError::Unreachable(_)), "{error}");
    assert_eq!(server.connections(), [0, 0]);
    assert_eq!(ask(&provider).await, "{}");
    assert_eq!(server.connections(), [0, 0, 1]);
    assert_eq!(provider.status(), ProviderStatus::Ready);
}

/// A server on a thread of its own, which closes a connection while the test's runtime stands still.
struct OtherThread {
    address: std::net::SocketAddr,
    close: mpsc::Sender<()>,
    closed: mpsc::Receiver<()>,
}

impl OtherThread {
    /// Answers one request on each of two connections.
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (close, told_to_close) = mpsc::channel();
        let (tell_closed, closed) = mpsc::channel();
        std::thread::spawn(move || {
            let first = answer_one(&listener);
            told_to_close.recv().unwrap();
            drop(first);
            tell_closed.send(()).unwrap();
            let _second = answer_one(&listener);
            let _ = told_to_close.recv();
        });
        Self {
            address,
            close,
            closed,
        }
    }

    fn provider(&self) -> OpenAi {
        provider(&format!("http://{}/v1", self.address))
    }

    fn close(&self) {
        self.close.send(()).unwrap();
        self.closed.recv().unwrap();
    }
}

fn answer_one(listener: &std::net::TcpListener) -> std::net::TcpStream {
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n{}") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(answer).unwrap();
    stream
}

#[tokio::test]
async fn a_connection_closed_while_nobody_looked_is_replaced_before_it_is_used() {
    let server = OtherThread::start();
    let provider = server.provider();
    assert_eq!(ask(&provider).await, "{}");
    server.close();
    assert_eq!(ask(&provider).await, "{}");
}

#[test]
fn a_request_of_which_nothing_was_written_goes_out_on_a_fresh_connection() {
    let server = OtherThread::start();
    let provider = server.provider();
    // One that asks after each task what came, so that the close below is seen before the request is written.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        assert_eq!(ask(&provider).await, "{}");
        let mut request = provider.forward(chat("{}", PATIENCE));
        assert!(poll_immediate(&mut request).await.is_none());
        tokio::task::yield_now().await;
        // A task before that of the connection, which has the request once it is asked for again.
        in_background(async {});
        assert!(poll_immediate(&mut request).await.is_none());
        server.close();
        let response = request.await.unwrap();
        assert_eq!(read(response).await.unwrap(), "{}");
    });
}

#[tokio::test]
async fn connections_that_all_close_after_each_answer_cost_no_request() {
    let server = TestServer::start(|_| vec![answer("200 OK", "{}"), Act::Close]).await;
    let provider = provider(&server.base_url());
    for _ in 0..20 {
        let response = provider.forward(chat("{}", PATIENCE)).await.unwrap();
        assert_eq!(read(response).await.unwrap(), "{}");
    }
    assert_eq!(server.seen().len(), 20);
}

#[tokio::test]
async fn a_fresh_connection_that_gives_no_answer_is_not_tried_again() {
    let server = TestServer::start(|_| vec![Act::Close]).await;
    let provider = provider(&server.base_url());
    let error = provider.forward(chat("{}", PATIENCE)).await.unwrap_err();
    assert!(matches!(error, ProviderError::Unreachable(_)), "{error}");
    assert_eq!(server.seen().len(), 1);
    assert!(matches!(provider.status(), ProviderStatus::Failing(_)));
}

#[tokio::test]
async fn nothing_is_sent_again_once_a_byte_of_the_answer_came() {
    let server = TestServer::start(|seen| match seen.turn {
        0 => vec![answer("200 OK", "{}")],
        _ => vec![Act::Send("HTTP/1.1 2".to_owned()), Act::Close],
    })
    .await;
    let provider = provider(&server.base_url());
    read(provider.forward(chat("{}", PATIENCE)).await.unwrap())
        .await
        .unwrap();
    let error = provider.forward(chat("{}", PATIENCE)).await.unwrap_err();
    assert!(matches!(error, ProviderError::Unreachable(_)), "{error}");
    assert_eq!(server.connections(), [0, 0]);
}

#[tokio::test]
async fn chunks_are_passed_on_as_they_come() {
    let got_first = Signal::new();
    let gate = got_first.clone();
    let server = TestServer::start(move |_| {
        vec![
            stream_head(),
            chunk("data: 1\n\n"),
            Act::Await(gate.clone()),
            chunk("data: 2\n\n"),
            last_chunk(),
        ]
    })
    .await;
    let provider = provider(&server.base_url());
    let mut body = provider
        .forward(chat("{}", PATIENCE))
        .await
        .unwrap()
        .into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "data: 1\n\n");
    got_first.give();
    let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(second, "data: 2\n\n");
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_body_that_is_dropped_closes_its_connection() {
    let closed = Signal::new();
    let tell = closed.clone();
    let server = TestServer::start(move |_| {
        vec![
            stream_head(),
            chunk("data: 1\n\n"),
            Act::TellClosed(tell.clone()),
        ]
    })
    .await;
    let provider = provider(&server.base_url());
    let mut body = provider
        .forward(chat("{}", PATIENCE))
        .await
        .unwrap()
        .into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    closed.wait().await;
}

#[tokio::test]
async fn a_request_given_up_before_the_head_closes_its_connection() {
    let (came, closed) = (Signal::new(), Signal::new());
    let (tell_came, tell_closed) = (came.clone(), closed.clone());
    let server = TestServer::start(move |_| {
        tell_came.give();
        vec![Act::TellClosed(tell_closed.clone())]
    })
    .await;
    let provider = provider(&server.base_url());
    tokio::select! {
        _ = provider.forward(chat("{}", PATIENCE)) => panic!("nobody answered"),
        () = came.wait() => {}
    }
    closed.wait().await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_broken_and_then_at_its_end() {
    let server = TestServer::start(|_| vec![stream_head(), chunk("data: 1\n\n"), Act::Close]).await;
    let provider = provider(&server.base_url());
    let mut body = provider
        .forward(chat("{}", PATIENCE))
        .await
        .unwrap()
        .into_body();
    body.frame().await.unwrap().unwrap();
    let error = body.frame().await.unwrap().unwrap_err();
    assert!(matches!(error, ProviderError::Broken(_)), "{error}");
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn silence_is_a_timeout_before_the_head_and_in_the_body() {
    let short = Duration::from_millis(50);
    for patience in [Patience::Whole(short), Patience::BetweenChunks(short)] {
        let server = TestServer::start(|seen| match seen.connection {
            0 => vec![Act::Stall],
            _ => vec![stream_head(), chunk("data: 1\n\n"), Act::Stall],
        })
        .await;
        let provider = provider(&server.base_url());
        let error = provider.forward(chat("{}", patience)).await.unwrap_err();
        assert!(matches!(error, ProviderError::Timeout), "{error}");

        let response = provider.forward(chat("{}", patience)).await.unwrap();
        let error = read(response).await.unwrap_err();
        assert!(matches!(error, ProviderError::Timeout), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn patience_is_for_the_whole_or_between_chunks() {
    let pieces = || {
        stream::unfold(0, |count| async move {
            tokio::time::sleep(Duration::from_secs(6)).await;
            (count < 5).then(|| (Ok(Bytes::from_static(b"x")), count + 1))
        })
    };
    let ten = Duration::from_secs(10);
    let between = UpstreamBody::made(pieces(), Patience::BetweenChunks(ten));
    assert_eq!(read(Response::new(between)).await.unwrap(), "xxxxx");

    let mut whole = UpstreamBody::made(pieces(), Patience::Whole(ten));
    whole.frame().await.unwrap().unwrap();
    let error = whole.frame().await.unwrap().unwrap_err();
    assert!(matches!(error, ProviderError::Timeout), "{error}");
    assert!(whole.frame().await.is_none());
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_unreachable_until_somebody_does() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let provider = provider(&format!("http://{gone}/v1"));
    assert_eq!(provider.status(), ProviderStatus::Ready);
    let error = provider.forward(chat("{}", PATIENCE)).await.unwrap_err();
    assert!(error.to_string().contains(&gone.to_string()), "{error}");
    assert!(matches!(error, ProviderError::Unreachable(_)));
    assert_eq!(
        provider.status(),
        ProviderStatus::Failing(error.to_string())
    );
}

const HTTP2: &[&[u8]] = &[b"h2"];
const HTTP1: &[&[u8]] = &[b"http/1.1"];

/// A server that speaks TLS and, as long as it agrees to it, HTTP/2.
struct TlsServer {
    address: std::net::SocketAddr,
    /// The one to trust.
    certificate: tempfile::NamedTempFile,
    /// How many connections came, whatever became of them.
    connections: Arc<AtomicUsize>,
    identity: rcgen::CertifiedKey<rcgen::KeyPair>,
    phase: watch::Sender<Phase>,
    /// Told by each connection that ends.
    ended: Signal,
}

#[derive(Clone)]
enum Phase {
    Serving(TlsAcceptor),
    /// Connections are taken and left without a word.
    Silent,
}

impl TlsServer {
    async fn start(protocols: &[&[u8]]) -> Self {
        let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(certificate.path(), identity.cert.pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            certificate,
            connections: Arc::default(),
            phase: watch::Sender::new(Phase::Serving(acceptor(&identity, protocols))),
            identity,
            ended: Signal::new(),
        };
        let (connections, phase) = (Arc::clone(&server.connections), server.phase.clone());
        let ended = server.ended.clone();
        in_background(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let (mut phase, ended) = (phase.subscribe(), ended.clone());
                in_background(async move {
                    let serving = phase.wait_for(|phase| matches!(phase, Phase::Serving(_)));
                    let Phase::Serving(acceptor) = serving.await.unwrap().clone() else {
                        return;
                    };
                    tokio::select! {
                        () = serve_tls(stream, acceptor) => {}
                        _ = phase.changed() => {}
                    }
                    ended.give();
                });
            }
        });
        server
    }

    fn provider(&self) -> OpenAi {
        let roots = Roots::File(self.certificate.path().to_owned());
        tls_provider(self.address.port(), roots)
    }

    fn opened(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Ends the one connection that is open, and agrees to nothing but `protocols` on those to come.
    async fn restart(&self, protocols: &[&[u8]]) {
        self.serve(protocols);
        self.ended.wait().await;
    }

    /// Ends the one connection that is open, and lets those to come wait.
    async fn fall_silent(&self) {
        self.phase.send_replace(Phase::Silent);
        self.ended.wait().await;
    }

    fn serve(&self, protocols: &[&[u8]]) {
        let acceptor = acceptor(&self.identity, protocols);
        self.phase.send_replace(Phase::Serving(acceptor));
    }
}

fn acceptor(identity: &rcgen::CertifiedKey<rcgen::KeyPair>, protocols: &[&[u8]]) -> TlsAcceptor {
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(identity.signing_key.serialize_der().into());
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![identity.cert.der().clone()], key)
    .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve_tls(stream: TcpStream, acceptor: TlsAcceptor) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let service =
        hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
            let said = format!(
                "{:?} {} {}",
                request.version(),
                request.uri().path(),
                request
                    .headers()
                    .get("authorization")
                    .unwrap()
                    .to_str()
                    .unwrap()
            );
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(said))))
        });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = builder
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn tls_provider(port: u16, roots: Roots) -> OpenAi {
    OpenAi::new(Settings {
        base_url: format!("https://localhost:{port}/v1"),
        api_key: Some("sk-upstream".into()),
        stream_usage: StreamUsage::Request,
        timeout: Duration::from_secs(60),
        roots,
    })
    .unwrap()
}

#[tokio::test]
async fn a_connection_serves_the_runtime_that_opened_it_and_no_other() {
    let server = TestServer::start(|_| vec![answer("200 OK", "{}")]).await;
    let provider = Arc::new(provider(&server.base_url()));
    let ask = |provider: Arc<OpenAi>| async move {
        let answered = provider.forward(chat("{}", PATIENCE)).await.unwrap();
        assert_eq!(read(answered).await.unwrap(), "{}");
    };
    ask(Arc::clone(&provider)).await;
    let (other, asked) = (Arc::clone(&provider), Signal::new());
    let done = asked.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            ask(Arc::clone(&other)).await;
            ask(other).await;
        });
        done.give();
    });
    asked.wait().await;
    thread.join().unwrap();
    ask(provider).await;
    assert_eq!(server.connections(), [0, 1, 1, 0]);
}

#[tokio::test]
async fn over_tls_the_version_is_negotiated_and_connections_are_kept() {
    for (protocols, version) in [
        (&[b"h2".as_slice(), b"http/1.1"][..], "HTTP/2.0"),
        (HTTP1, "HTTP/1.1"),
        (&[][..], "HTTP/1.1"),
    ] {
        let server = TlsServer::start(protocols).await;
        let provider = server.provider();
        for _ in 0..3 {
            let expected = format!("{version} /v1/chat/completions Bearer sk-upstream");
            assert_eq!(ask(&provider).await, expected);
        }
        assert_eq!(server.opened(), 1, "{version}");
    }
}

#[tokio::test]
async fn requests_share_an_http2_connection_up_to_its_streams() {
    let server = TlsServer::start(HTTP2).await;
    let provider = server.provider();
    ask(&provider).await;
    // All heads are there, no body is read: 150 streams are open at once.
    let requests = (0..150).map(|_| provider.forward(chat("{}", PATIENCE)));
    let open: Vec<_> = join_all(requests)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(open.len(), 150);
    assert_eq!(server.opened(), 2);
}

#[tokio::test]
async fn requests_that_wait_for_one_connection_share_its_failure() {
    let server = TlsServer::start(HTTP2).await;
    let provider = server.provider();
    ask(&provider).await;
    server.fall_silent().await;

    // From here on time passes at once where there is nothing to do but wait.
    tokio::time::pause();
    let began = Instant::now();
    let requests = (0..4).map(|_| provider.forward(chat("{}", PATIENCE)));
    for answered in join_all(requests).await {
        let error = answered.unwrap_err();
        assert!(matches!(error, ProviderError::Unreachable(_)), "{error}");
    }
    let waited = began.elapsed();
    assert!(waited < Duration::from_secs(15), "{waited:?}");
    assert_eq!(server.opened(), 2);
}

#[tokio::test]
async fn a_request_given_up_leaves_its_attempt_to_connect_to_those_who_wait_for_it() {
    let server = TlsServer::start(HTTP2).await;
    let provider = server.provider();
    ask(&provider).await;
    server.fall_silent().await;

    let short = Patience::Whole(Duration::from_millis(50));
    let first = async {
        let error = provider.forward(chat("{}", short)).await.unwrap_err();
        assert!(matches!(error, ProviderError::Timeout), "{error}");
        server.serve(HTTP2);
    };
    let (_, answer) = tokio::join!(first, ask(&provider));
    assert!(answer.starts_with("HTTP/2.0"), "{answer}");
    assert_eq!(server.opened(), 2);
}

#[tokio::test]
async fn an_upstream_that_changes_its_version_has_its_connections_kept_all_the_same() {
    let server = TlsServer::start(HTTP2).await;
    let provider = server.provider();
    ask(&provider).await;
    for (protocols, version, opened) in [(HTTP1, "HTTP/1.1", 2), (HTTP2, "HTTP/2.0", 3)] {
        server.restart(protocols).await;
        for _ in 0..12 {
            let answer = ask(&provider).await;
            assert!(answer.starts_with(version), "{answer}");
        }
        assert_eq!(server.opened(), opened, "{version}");
    }
}

#[tokio::test]
async fn requests_that_wait_for_http2_and_get_http1_connect_each_for_itself() {
    let server = TlsServer::start(HTTP2).await;
    let provider = server.provider();
    ask(&provider).await;
    server.restart(HTTP1).await;
    for _ in 0..3 {
        for answer in join_all((0..8).map(|_| ask(&provider))).await {
            assert!(answer.starts_with("HTTP/1.1"), "{answer}");
        }
    }
    let opened = server.opened();
    assert!(opened <= 9, "{opened}");
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    let server = TlsServer::start(HTTP1).await;
    let other = TlsServer::start(&[]).await;
    let roots = Roots::File(other.certificate.path().to_owned());
    let provider = tls_provider(server.address.port(), roots);
    let error = provider.forward(chat("{}", PATIENCE)).await.unwrap_err();
    assert!(matches!(error, ProviderError::Unreachable(_)), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}
