//! A Redis that wants a name and a password, over TLS or not.

use std::fs;

use serde_json::Value;

use super::{Replicas, Shared, Store, use_up};
use crate::support::{Certificates, RedisCluster, RedisServer, Serve, free_port, hard};

const USER: &str = "tollgate";
const PASSWORD: &str = "correct-horse-battery";

/// All that the program needs, as docs/guide/redis.md says.
const RULES: [&str; 11] = [
    "resetkeys",
    "resetchannels",
    "~tg:*",
    "-@all",
    "+@read",
    "+@write",
    "+@scripting",
    "+@connection",
    "+info",
    "+time",
    "+cluster|slots",
];

/// From now on only [`USER`] may do anything that matters.
fn guard(server: &RedisServer) {
    let password = format!(">{PASSWORD}");
    let words = ["ACL", "SETUSER", USER, "on", &password];
    assert_eq!(server.ask(&[&words[..], &RULES[..]].concat()), "+OK");
    let everybody = ["ACL", "SETUSER", "default", "-@all", "+ping", "+cluster"];
    assert_eq!(server.ask(&everybody), "+OK");
}

/// A server with a port for TLS.
struct Guarded {
    _server: RedisServer,
    tls_port: u16,
    directory: tempfile::TempDir,
}

impl Guarded {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let certificates = Certificates::for_localhost();
        fs::write(path("ca.pem"), certificates.authority).unwrap();
        fs::write(path("server.pem"), certificates.server).unwrap();
        fs::write(path("server.key"), certificates.key).unwrap();
        let tls_port = free_port();
        let options = [
            ["--save", ""],
            ["--tls-port", &tls_port.to_string()],
            ["--tls-cert-file", &path("server.pem")],
            ["--tls-key-file", &path("server.key")],
            ["--tls-ca-cert-file", &path("ca.pem")],
            ["--tls-auth-clients", "no"],
        ];
        let server = RedisServer::with_options(options.as_flattened());
        guard(&server);
        Self {
            _server: server,
            tls_port,
            directory,
        }
    }

    fn authority(&self) -> String {
        self.directory.path().join("ca.pem").display().to_string()
    }
}

impl Shared for Guarded {
    fn urls(&self) -> String {
        format!("rediss://{USER}:{PASSWORD}@localhost:{}", self.tls_port)
    }
}

/// A cluster whose servers want the same.
struct GuardedCluster(RedisCluster);

impl Shared for GuardedCluster {
    fn urls(&self) -> String {
        let with_name = format!("redis://{USER}:{PASSWORD}@");
        self.0.urls().replace("redis://", &with_name)
    }
}

async fn limits_hold<R: Shared>(replicas: Replicas<R>) {
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme.limit("messages", hard(20)).create().await;
    let answered = use_up(&replicas.everywhere(&acme)).await;
    assert_eq!(answered, 20);
    let doctor = replicas.gates[0].cli(&["doctor", "--output", "json"]).await;
    let doctor: Value = serde_json::from_str(&doctor.stdout).unwrap();
    let items = doctor["items"].as_array().unwrap();
    let redis = items.iter().find(|it| it["check"] == "redis").unwrap();
    assert_eq!(redis["severity"], "ok", "{redis}");
    for gate in &replicas.gates {
        assert!(!gate.log().contains(PASSWORD), "{}", gate.log());
    }
    replicas.finish(20, &acme).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_with_a_name_and_a_password_replicas_share_their_totals() {
    let redis = Guarded::start();
    let authority = redis.authority();
    let prepare = |_, serve: Serve| {
        serve
            .set("USAGE_GUARDRAIL_FAIL_MODE", "closed")
            .set("SSL_CERT_FILE", &authority)
    };
    let replicas = Replicas::start_with(redis, Store::postgres(), 2, prepare).await;
    limits_hold(replicas).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_wants_a_name_and_a_password_gets_them() {
    let cluster = RedisCluster::start();
    for server in &cluster.masters {
        guard(server);
    }
    limits_hold(Replicas::on(GuardedCluster(cluster), 2, "closed").await).await;
}

/// What is wrong is said where an operator looks, and never with the password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_or_a_certificate_of_strangers_is_named() {
    let redis = Guarded::start();
    let stranger = tempfile::NamedTempFile::new().unwrap();
    fs::write(stranger.path(), Certificates::for_localhost().authority).unwrap();
    let stranger = stranger.path().display().to_string();
    let wrong = redis.urls().replace(PASSWORD, "wrong-horse-battery");
    let nameless = redis.urls().replace("tollgate:correct-horse-battery@", "");
    for (url, authority, says) in [
        (wrong, redis.authority(), "authentication failed"),
        (nameless, redis.authority(), "NoPerm"),
        (redis.urls(), stranger, "invalid peer certificate"),
    ] {
        let serve = crate::support::Tollgate::serve()
            .set("USAGE_GUARDRAIL_CACHE_BACKEND", "redis")
            .set("USAGE_GUARDRAIL_REDIS_URL", &url)
            .set("SSL_CERT_FILE", &authority);
        let gate = serve.start().await;
        let detail = crate::support::eventually(says, || async {
            let ready: Value = gate.get("/readyz").await.json();
            let ledger = &ready["parts"]["ledger"];
            let is_so = ledger["status"] == "down" && ledger.to_string().contains(says);
            is_so.then(|| ledger.to_string())
        });
        let detail = detail.await;
        let everything = format!("{detail}{}", gate.log());
        assert!(!everything.contains("horse-battery"), "{everything}");
    }
}
