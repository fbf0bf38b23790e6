//! `tollgate healthcheck`: what a container without a shell asks of its server.

use crate::support::Tollgate;

fn address(gate: &Tollgate) -> String {
    gate.base.trim_start_matches("http://").to_owned()
}

#[tokio::test]
async fn a_server_that_takes_chats_is_healthy() {
    let gate = Tollgate::serve().start().await;
    let listen = address(&gate);
    for more in [&[][..], &["--live"]] {
        let words = [&["healthcheck", "--listen", &listen], more].concat();
        let run = gate.cli(&words).await;
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{run:?}");
        assert!(run.stdout.contains(r#""status_code": 200"#), "{run:?}");
    }
}

#[tokio::test]
async fn a_server_that_would_not_take_a_chat_is_not_and_says_why_but_it_lives() {
    // No key for OpenAI's own host.
    let serve = Tollgate::serve().set("TOLLGATE_PROVIDER", "openai");
    let gate = serve.try_start().await.unwrap();
    let listen = address(&gate);
    let run = gate.cli(&["healthcheck", "--listen", &listen]).await;
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("503 not_ready; provider: "), "{run:?}");
    let run = gate
        .cli(&["healthcheck", "--listen", &listen, "--live"])
        .await;
    assert_eq!(run.code, 0, "{run:?}");
}

#[tokio::test]
async fn where_no_server_answers_it_fails_and_names_the_address() {
    let gate = Tollgate::serve().start().await;
    let (serve, listen) = (gate.settings(), address(&gate));
    gate.finish().await;
    let run = serve.cli(&["healthcheck", "--listen", &listen]).await;
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:?}");
    assert!(
        run.stderr
            .contains(&format!("http://{listen}/readyz does not answer")),
        "{run:?}"
    );
    let run = serve.cli(&["healthcheck"]).await;
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("port 0"), "{run:?}");
}
