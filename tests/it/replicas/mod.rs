//! Several servers as one: on one Redis and one store, with every promise still true.

mod away;
mod changes;
mod clocks;
mod exact;
mod faults;
mod guarded;
mod killed;
mod promises;
mod shared;
mod told;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tollgate::store::{SharedStore, postgres::PostgresStore, sqlite::SqliteStore};

use crate::support::{
    Database, FakeOpenAi, PATIENCE, RedisCluster, RedisServer, Serve, Tenant, Tollgate, Wire,
    eventually, usage,
};

/// How long what a dead replica held stays held at most.
const LEASE: Duration = Duration::from_secs(30);

/// Between two requests of one who asks all the time for the only tenant there is.
const PAUSE: Duration = Duration::from_millis(8);

/// What replicas share their totals in.
trait Shared {
    /// As the setting takes them.
    fn urls(&self) -> String;
}

impl Shared for RedisServer {
    fn urls(&self) -> String {
        self.url()
    }
}

impl Shared for RedisCluster {
    fn urls(&self) -> String {
        self.urls()
    }
}

/// A server at the other end of a wire that can be bad.
struct Wired {
    wire: Wire,
    _server: RedisServer,
}

impl Wired {
    fn start() -> Self {
        let server = RedisServer::start();
        let wire = Wire::to(server.address());
        Self {
            wire,
            _server: server,
        }
    }
}

impl Shared for Wired {
    fn urls(&self) -> String {
        format!("redis://{}", self.wire.address)
    }
}

/// The system of record that all have.
enum Store {
    Postgres(Arc<Database>),
    /// One file, of which all on this machine may read and write.
    Sqlite(TempDir),
}

impl Store {
    fn postgres() -> Self {
        Self::Postgres(Arc::new(Database::migrated()))
    }

    fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().expect("a temporary directory"))
    }

    fn file(directory: &TempDir) -> PathBuf {
        directory.path().join("tollgate.db")
    }

    fn of(&self, serve: Serve) -> Serve {
        match self {
            Self::Postgres(database) => serve.on_postgres(database),
            Self::Sqlite(directory) => {
                let file = Self::file(directory);
                serve.set("DATABASE_URL", &format!("sqlite:{}", file.display()))
            }
        }
    }

    async fn open(&self) -> SharedStore {
        match self {
            Self::Postgres(database) => {
                let url = database.url().parse().expect("an address");
                Arc::new(PostgresStore::open(&url).await.expect("it opens"))
            }
            Self::Sqlite(directory) => {
                Arc::new(SqliteStore::open(&Self::file(directory)).expect("it opens"))
            }
        }
    }
}

/// Replicas behind which one model answers.
struct Replicas<R = RedisServer> {
    redis: R,
    upstream: FakeOpenAi,
    gates: Vec<Tollgate>,
    store: Store,
}

impl Replicas {
    async fn start(count: usize, fail_mode: &str) -> Self {
        Self::on(RedisServer::start(), count, fail_mode).await
    }
}

impl<R: Shared> Replicas<R> {
    /// On Postgres, and on this Redis.
    async fn on(redis: R, count: usize, fail_mode: &str) -> Self {
        let prepare = |_, serve: Serve| serve.set("USAGE_GUARDRAIL_FAIL_MODE", fail_mode);
        Self::start_with(redis, Store::postgres(), count, prepare).await
    }

    /// Each with its settings made ready by `prepare`, which is told its number.
    async fn start_with(
        redis: R,
        store: Store,
        count: usize,
        prepare: impl Fn(usize, Serve) -> Serve,
    ) -> Self {
        let upstream = FakeOpenAi::start().await;
        upstream.always(crate::support::Reply::Text {
            text: "hello".to_owned(),
            usage: usage(7, 3),
        });
        let settings = |number| {
            let serve = Tollgate::serve()
                .upstream(&upstream)
                .set("USAGE_GUARDRAIL_CACHE_BACKEND", "redis")
                .set("USAGE_GUARDRAIL_REDIS_URL", &redis.urls());
            prepare(number, store.of(serve))
        };
        let gates = join_all((0..count).map(|number| settings(number).start())).await;
        for gate in &gates {
            gate.is_ready().await;
        }
        Self {
            redis,
            upstream,
            gates,
            store,
        }
    }

    /// The tenant at each replica.
    fn everywhere(&self, tenant: &Tenant) -> Vec<Tenant> {
        self.gates.iter().map(|gate| tenant.at(gate)).collect()
    }

    /// Waits until readiness says this of a part on every replica.
    async fn ledger_is(&self, status: &str) {
        // Of all at once: what is down for a moment only may be up again before it would be its turn.
        let looks = self.gates.iter().map(|gate| {
            eventually("readiness names the ledger", move || async move {
                let ready = gate.get("/readyz").await.json();
                (ready["parts"]["ledger"]["status"] == status).then_some(())
            })
        });
        join_all(looks).await;
    }

    /// A metric, summed over the replicas.
    async fn metric(&self, name: &str) -> i64 {
        join_all(self.gates.iter().map(|gate| gate.metric(name, "")))
            .await
            .iter()
            .sum()
    }

    /// Stops all, and checks what must hold: nothing reserved, rollups equal events, every replica's usage is there.
    async fn finish(self, messages: i64, tenant: &Tenant) {
        for gate in &self.gates {
            eventually("nothing is reserved", || async {
                (gate.metric("usage_reservations", "").await == 0).then_some(())
            })
            .await;
        }
        let finishing = Instant::now();
        for tenant in self.everywhere(tenant) {
            eventually("all usage is in the store", || async {
                (tenant.total("messages").await == messages).then_some(())
            })
            .await;
            // A replica that had no answer from Redis while it wrote to the store makes up for it afterwards.
            eventually("live totals are what the store says", || async {
                (tenant.used("messages").await == messages).then_some(())
            })
            .await;
            // What a dead replica held is back within its lease.
            while tenant.reserved("messages").await > 0 {
                assert!(finishing.elapsed() < LEASE + Duration::from_secs(2));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        for mut gate in self.gates {
            assert_eq!(gate.terminate().await, 0, "{}", gate.log());
            assert!(!gate.log().contains("panicked"), "{}", gate.log());
        }
        let differences = self.store.open().await.check_rollups().await;
        assert_eq!(differences.expect("the store reads"), Vec::<String>::new());
    }
}

/// What somebody saw who asked all the time.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    answered: i64,
    /// Requests that no decision could be made on.
    undecided: i64,
    /// The longest wait for an answer of any kind.
    longest: Duration,
}

/// Requests one after the other until told to stop.
async fn keep_asking(tenant: Tenant, pause: Duration, until: CancellationToken) -> Seen {
    let mut seen = Seen::default();
    while !until.is_cancelled() {
        let begun = Instant::now();
        let answer = tenant.complete(json!({})).await;
        seen.longest = seen.longest.max(begun.elapsed());
        match (answer.status, answer.code_if_any().as_str()) {
            (200, _) => seen.answered += 1,
            (503, "usage_store_unavailable") => seen.undecided += 1,
            (429, _) => {}
            (other, _) => panic!("{other}: {}", answer.text),
        }
        // Often enough to be in the middle of something whenever something happens.
        tokio::time::sleep(pause).await;
    }
    seen
}

/// Runs `act` while every replica is asked for every tenant all the time, by two.
async fn under_load<R: Shared>(
    replicas: &mut Replicas<R>,
    tenants: &[Tenant],
    act: impl AsyncFnOnce(&mut Replicas<R>),
) -> Seen {
    let stop = CancellationToken::new();
    let pause = PAUSE * u32::try_from(tenants.len()).expect("some");
    let everywhere = tenants
        .iter()
        .flat_map(|tenant| replicas.everywhere(tenant));
    let asking: Vec<_> = everywhere
        .flat_map(|tenant| [tenant.clone(), tenant])
        .map(|tenant| tokio::spawn(keep_asking(tenant, pause, stop.clone())))
        .collect();
    act(replicas).await;
    stop.cancel();
    let mut all = Seen::default();
    for asked in join_all(asking).await {
        let asked = asked.expect("no asker panics");
        all.answered += asked.answered;
        all.undecided += asked.undecided;
        all.longest = all.longest.max(asked.longest);
    }
    all
}

/// Uses what is left at each of them, until the limit itself refuses: what others hold, and what a busy machine could
/// not decide in time, is waited for. How many were answered.
async fn use_up(tenants: &[Tenant]) -> i64 {
    let mut answered = 0;
    for tenant in tenants {
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            let answer = tenant.complete(json!({})).await;
            match (answer.status, answer.code_if_any().as_str()) {
                (200, _) => {
                    answered += 1;
                    deadline = Instant::now() + PATIENCE;
                }
                (429, "usage_limit_exceeded") => break,
                (429, "usage_limit_reserved") | (503, "usage_store_unavailable") => {
                    assert!(Instant::now() < deadline, "still {}", answer.text);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                (other, _) => panic!("{other}: {}", answer.text),
            }
        }
    }
    answered
}
