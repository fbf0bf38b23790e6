//! The promises of `promises/` once more, on three replicas that share out every tenant's requests.

#![expect(
    clippy::duplicate_mod,
    reason = "the same tests on another server: each file asks the module above it for one"
)]

use tollgate::config::sources::Sources;

use crate::support::{RedisServer, Serve, Tollgate};

#[path = "../promises/cost.rs"]
mod cost;
#[path = "../promises/durable.rs"]
mod durable;
#[path = "../promises/every_run_is_paid_for.rs"]
mod every_run_is_paid_for;
#[path = "../promises/exact.rs"]
mod exact;
#[path = "../promises/late.rs"]
mod late;
#[path = "../promises/repeats.rs"]
mod repeats;
#[path = "../promises/reservations.rs"]
mod reservations;
#[path = "../promises/scopes.rs"]
mod scopes;
#[path = "../promises/time_is_right.rs"]
mod time_is_right;

fn serve() -> Serve {
    Tollgate::serve().on_three_replicas()
}

/// The names of those inside the test's process, and of their data directories.
const SERVERS: [&str; 3] = ["a", "b", "c"];

/// What three servers inside the test's process share.
struct Ground {
    directory: tempfile::TempDir,
    redis: RedisServer,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in SERVERS {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self {
            directory,
            redis: RedisServer::start(),
        }
    }

    /// The settings of each.
    fn sources(&self) -> Vec<Sources> {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let database = format!("sqlite:{}", path("tollgate.db"));
        let sources = SERVERS.map(|name| {
            Sources::none()
                .with_flag("TOLLGATE_DATA_DIR", path(name))
                .with_flag("DATABASE_URL", database.clone())
                .with_flag("USAGE_GUARDRAIL_CACHE_BACKEND", "redis".to_owned())
                .with_flag("USAGE_GUARDRAIL_REDIS_URL", self.redis.url())
                .with_flag("USAGE_GUARDRAIL_FAIL_MODE", "closed".to_owned())
        });
        sources.into()
    }
}
