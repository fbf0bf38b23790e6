use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Asked, Failure, LARGEST_REQUEST, Progress, Reply, SOCKET_FILE, SocketAddress, Step, Typed,
    bind,
    client::AskError,
    server::{Runner, serve},
};
use crate::cli::output::Output;

/// Answers with the words it got; fails for `fail`, panics for `panic`.
struct Echo;

impl Runner for Echo {
    fn run<'a>(&'a self, typed: Typed, progress: &'a Progress) -> BoxFuture<'a, Reply> {
        Box::pin(async move {
            let argv = typed.argv;
            match argv[0].as_str() {
                "fail" => Reply::Error(Failure {
                    message: "no such plan".to_owned(),
                    exit_code: 1,
                }),
                "panic" => panic!("a command that breaks"),
                "long" => {
                    for done in 1..=3 {
                        progress(Step { done, total: 3 });
                        tokio::task::yield_now().await;
                    }
                    Reply::Ok(Output::of_json(serde_json::json!(typed.directory)))
                }
                _ => Reply::Ok(Output::object(&argv, vec![("words", argv.join(" "))])),
            }
        })
    }
}

struct Server {
    shutdown: CancellationToken,
    running: JoinSet<()>,
}

fn start(data_dir: &Path) -> Server {
    let shutdown = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(serve(
        bind(data_dir).unwrap(),
        Arc::new(Echo),
        shutdown.clone(),
    ));
    Server { shutdown, running }
}

async fn send(data_dir: &Path, bytes: &[u8]) -> String {
    let address = SocketAddress::of(data_dir).unwrap();
    let mut stream = UnixStream::connect(address.path()).await.unwrap();
    // A refused request may be answered before it is all written.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

fn words(words: &[&str]) -> Typed {
    Typed {
        argv: words.iter().map(|word| (*word).to_owned()).collect(),
        directory: "/here".into(),
        input: None,
    }
}

async fn ask(data_dir: &Path, typed: &Typed) -> Result<Asked, AskError> {
    let unheard: Progress = Arc::new(|_| {});
    super::ask(data_dir, typed, &unheard).await
}

#[tokio::test]
async fn a_long_command_says_how_far_it_has_come() {
    let directory = tempfile::tempdir().unwrap();
    let _server = start(directory.path());
    let heard = Arc::new(std::sync::Mutex::new(vec![]));
    let progress: Progress = Arc::new({
        let heard = Arc::clone(&heard);
        move |step: Step| heard.lock().unwrap().push(step.done)
    });
    let asked = super::ask(directory.path(), &words(&["long"]), &progress).await;
    let Asked::Answered(Ok(output)) = asked.unwrap() else {
        panic!("no answer")
    };
    assert_eq!(output.json(), "/here", "and knows where it was typed");
    let heard = heard.lock().unwrap();
    // Steps that come faster than they are sent are left out.
    assert!(!heard.is_empty() && heard.is_sorted(), "{heard:?}");
}

#[tokio::test]
async fn a_command_is_run_by_the_server_and_its_answer_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let _server = start(directory.path());
    let asked = ask(directory.path(), &words(&["plan", "list\n", "ü"]))
        .await
        .unwrap();
    let Asked::Answered(Ok(output)) = asked else {
        panic!("{asked:?}")
    };
    assert_eq!(output.json(), &serde_json::json!(["plan", "list\n", "ü"]));
    let asked = ask(directory.path(), &words(&["fail"])).await.unwrap();
    let Asked::Answered(Err(failure)) = asked else {
        panic!("{asked:?}")
    };
    assert_eq!(
        (failure.message.as_str(), failure.exit_code),
        ("no such plan", 1)
    );
}

#[tokio::test]
async fn without_a_server_nobody_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let asked = || async { ask(directory.path(), &words(&["x"])).await.unwrap() };
    assert!(matches!(asked().await, Asked::NoServer), "no socket");
    // A killed server leaves its socket behind.
    let socket = directory.path().join(SOCKET_FILE);
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    assert!(matches!(asked().await, Asked::NoServer), "a dead socket");
    let _server = start(directory.path());
    assert!(
        matches!(asked().await, Asked::Answered(Ok(_))),
        "a new server takes its place"
    );
    let nowhere = directory.path().join("missing");
    assert!(matches!(
        ask(&nowhere, &words(&["x"])).await.unwrap(),
        Asked::NoServer
    ));
}

#[tokio::test]
async fn a_deep_data_dir_has_a_socket_too() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(100)).join("e".repeat(100));
    fs::create_dir_all(&deep).unwrap();
    let _server = start(&deep);
    assert!(matches!(
        ask(&deep, &words(&["x"])).await.unwrap(),
        Asked::Answered(Ok(_))
    ));
    let mode = fs::metadata(deep.join(SOCKET_FILE))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_stopped_server_takes_its_socket_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = start(directory.path());
    server.shutdown.cancel();
    server.running.join_next().await.unwrap().unwrap();
    assert!(!directory.path().join(SOCKET_FILE).exists());
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let _server = start(directory.path());
    let oversized = vec![b'x'; usize::try_from(LARGEST_REQUEST).unwrap() + 1];
    let other_version = br#"{"version":"0.0.1","argv":["x"],"directory":"/"}"#;
    for (bytes, message) in [
        (&b"{}\n"[..], "not what a client sends"),
        (&b"{\"version\""[..], "cut off or too long"),
        (&oversized[..], "cut off or too long"),
        (
            &[&other_version[..], b"\n"].concat()[..],
            "use the server's version",
        ),
    ] {
        let answer = send(directory.path(), bytes).await;
        assert!(
            answer.contains(message) && answer.contains("\"exit_code\":1"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_command_that_breaks_harms_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let _server = start(directory.path());
    let error = ask(directory.path(), &words(&["panic"])).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("ended the connection without an answer"),
        "{error}"
    );
    assert!(matches!(
        ask(directory.path(), &words(&["x"])).await.unwrap(),
        Asked::Answered(Ok(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let _server = start(directory.path());
    let address = SocketAddress::of(directory.path()).unwrap();
    let mut stream = UnixStream::connect(address.path()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("did not arrive in time"), "{answer}");
}

#[tokio::test]
async fn many_commands_at_once_are_all_answered() {
    let directory = tempfile::tempdir().unwrap();
    let _server = start(directory.path());
    let mut asking = JoinSet::new();
    for number in 0..64 {
        let path = directory.path().to_owned();
        asking.spawn(async move {
            let argv = words(&[&number.to_string()]);
            match ask(&path, &argv).await.unwrap() {
                Asked::Answered(Ok(output)) => assert_eq!(output.json()[0], argv.argv[0]),
                other => panic!("{other:?}"),
            }
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked.unwrap();
    }
}
