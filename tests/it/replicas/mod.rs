//! Several servers as one: on one Redis and one store, with every promise still true.

mod away;
mod exact;
mod shared;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::support::{FakeOpenAi, RedisServer, Serve, Tenant, Tollgate, eventually, usage};

/// How long what a dead replica held stays held at most.
const LEASE: Duration = Duration::from_secs(30);

/// Replicas behind which one model answers.
struct Replicas {
    redis: RedisServer,
    upstream: FakeOpenAi,
    gates: Vec<Tollgate>,
    store: TempDir,
}

impl Replicas {
    async fn start(count: usize, fail_mode: &str) -> Self {
        Self::start_with(count, fail_mode, |serve| serve).await
    }

    /// As [`start`](Self::start), each with its settings made ready by `prepare`.
    async fn start_with(count: usize, fail_mode: &str, prepare: impl Fn(Serve) -> Serve) -> Self {
        let upstream = FakeOpenAi::start().await;
        upstream.always(crate::support::Reply::Text {
            text: "hello".to_owned(),
            usage: usage(7, 3),
        });
        let mut replicas = Self {
            redis: RedisServer::start(),
            upstream,
            gates: Vec::new(),
            store: tempfile::tempdir().expect("a temporary directory"),
        };
        for _ in 0..count {
            let gate = prepare(replicas.settings(fail_mode)).start().await;
            gate.is_ready().await;
            replicas.gates.push(gate);
        }
        replicas
    }

    fn database(&self) -> PathBuf {
        self.store.path().join("tollgate.db")
    }

    fn settings(&self, fail_mode: &str) -> Serve {
        let database = self.database();
        let database = database.to_str().expect("it has a plain name");
        Tollgate::serve()
            .upstream(&self.upstream)
            .set("DATABASE_URL", &format!("sqlite:{database}"))
            .set("USAGE_GUARDRAIL_CACHE_BACKEND", "redis")
            .set("USAGE_GUARDRAIL_REDIS_URL", &self.redis.url())
            .set("USAGE_GUARDRAIL_FAIL_MODE", fail_mode)
    }

    /// The tenant at each replica.
    fn everywhere(&self, tenant: &Tenant) -> Vec<Tenant> {
        self.gates.iter().map(|gate| tenant.at(gate)).collect()
    }

    /// Waits until readiness says this of a part on every replica.
    async fn ledger_is(&self, status: &str) {
        for gate in &self.gates {
            eventually("readiness names the ledger", || async {
                let ready = gate.get("/readyz").await.json();
                (ready["parts"]["ledger"]["status"] == status).then_some(())
            })
            .await;
        }
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
            assert_eq!(tenant.used("messages").await, messages);
            // What a dead replica held is back within its lease.
            while tenant.reserved("messages").await > 0 {
                assert!(finishing.elapsed() < LEASE + Duration::from_secs(2));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let database = self.database();
        for mut gate in self.gates {
            assert_eq!(gate.terminate().await, 0, "{}", gate.log());
        }
        let store = tollgate::store::sqlite::SqliteStore::open(&database).expect("it opens");
        let differences = tollgate::store::usage::UsageStore::check_rollups(&store).await;
        assert_eq!(differences.expect("the store reads"), Vec::<String>::new());
    }
}
