//! Clock, upstream, store, journal and ledger.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::DATE};

use super::{Doctor, Finding};
use crate::{
    config::{CacheBackend, Database, ProviderKind},
    domain::time::Timestamp,
    journal::JournalStatus,
    ledger::Ledger,
    provider::{Endpoint, Forward, Patience, ProviderError, ProviderStatus},
    services::recorder::Drift,
};

/// For the upstream to answer.
const UPSTREAM_TIME: Duration = Duration::from_secs(10);
/// A clock that is off by less moves no window noticeably.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);
/// More than the drain moves in some seconds.
const MANY_PENDING: u64 = 100_000;
const DRIFT_REMEDY: &str = "stop the server, move cache.redb aside, start it: totals are then read from the store (docs/runbook.md, drift)";
/// Differences that are shown; the first ones tell the story.
const MOST_SHOWN: usize = 2;

impl Doctor<'_> {
    /// Together, since the upstream's answer says what time it is.
    pub(super) async fn clock_and_upstream(&self) -> Vec<Finding> {
        let before = self.clock.now();
        let asked = self.ask_upstream().await;
        let theirs = asked.as_ref().ok().and_then(|(_, date)| *date);
        let mut findings = vec![self.clock(before, theirs).await];
        findings.push(match asked {
            Ok(_) if self.config.provider == ProviderKind::Simulated => {
                Finding::ok("upstream", "simulated: no model is asked")
            }
            Ok((status, _)) => upstream_answered(&self.config.openai_base_url, status),
            Err(finding) => finding,
        });
        findings
    }

    async fn ask_upstream(&self) -> Result<(StatusCode, Option<Timestamp>), Finding> {
        let check = "upstream";
        if let ProviderStatus::NotConfigured(what) = self.provider.status() {
            return Err(Finding::error(check, "no upstream is configured", what));
        }
        let ask = Forward {
            endpoint: Endpoint::Models,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            patience: Patience::Whole(UPSTREAM_TIME),
        };
        match self.provider.forward(ask).await {
            Ok(answer) => {
                let date = answer.headers().get(DATE).and_then(|it| it.to_str().ok());
                Ok((answer.status(), date.and_then(parse_date)))
            }
            Err(ProviderError::NotConfigured(what)) => {
                Err(Finding::error(check, "no upstream is configured", what))
            }
            Err(error) => Err(Finding::error(
                check,
                format!("{}: {error}", self.config.openai_base_url),
                "check OPENAI_BASE_URL, name resolution and the network between here and there",
            )),
        }
    }

    async fn clock(&self, now: Timestamp, theirs: Option<Timestamp>) -> Finding {
        let check = "clock";
        let remedy = "set the clock (NTP); windows are placed by it";
        let last = self.store.last_recorded_at().await.ok().flatten();
        if let Some(last) = last.filter(|last| last.since(now) > CLOCK_TOLERANCE) {
            let behind = last.since(now).as_secs();
            let detail = format!("{now}, {behind} s before the last event, recorded at {last}");
            return Finding::error(check, detail, remedy);
        }
        let Some(theirs) = theirs else {
            return Finding::ok(check, now.to_whole_second().to_string());
        };
        let off = now.since(theirs).max(theirs.since(now));
        if off > CLOCK_TOLERANCE {
            let detail = format!(
                "{}, and the upstream says {theirs}: {} s apart",
                now.to_whole_second(),
                off.as_secs()
            );
            return Finding::warning(check, detail, remedy);
        }
        Finding::ok(
            check,
            format!("{}, as the upstream's", now.to_whole_second()),
        )
    }

    pub(super) async fn store(&self) -> Vec<Finding> {
        let check = "store";
        let broken = match self.config.database {
            Database::Sqlite(_) => "stop the server and restore a backup (`tollgate restore`)",
            Database::Postgres(_) => {
                "mend it in the database server; its own tools restore a backup (pg_restore)"
            }
        };
        let faults = match self.store.check_integrity().await {
            Ok(faults) => faults,
            Err(error) => return vec![Finding::error(check, error.to_string(), broken)],
        };
        if !faults.is_empty() {
            let detail = match self.config.database {
                Database::Sqlite(_) => format!("the database is damaged: {}", faults.join("; ")),
                Database::Postgres(_) => faults.join("; "),
            };
            return vec![Finding::error(check, detail, broken)];
        }
        let mut findings = vec![match self.store.schema_version().await {
            Ok(version) => match &self.config.database {
                Database::Sqlite(_) => {
                    Finding::ok(check, format!("whole, schema version {version}"))
                }
                Database::Postgres(url) if url.is_open_to_others() => Finding::warning(
                    check,
                    format!("{url}: nobody proves that it is the right server"),
                    "add sslmode=verify-full to DATABASE_URL",
                ),
                Database::Postgres(url) => {
                    Finding::ok(check, format!("{url}, schema version {version}"))
                }
            },
            Err(error) => Finding::error(check, error.to_string(), broken),
        }];
        findings.push(match self.store.check_rollups().await {
            Ok(differences) if differences.is_empty() => {
                Finding::ok("rollups", "each is the sum of its events")
            }
            Ok(differences) => Finding::error(
                "rollups",
                format!("differ from their events: {}", some_of(&differences)),
                "somebody changed the database by hand; restore a backup, or correct the usage with `tollgate usage correct`",
            ),
            Err(error) => Finding::error("rollups", error.to_string(), broken),
        });
        findings
    }

    pub(super) async fn journal(&self) -> Vec<Finding> {
        let check = "journal";
        let journal = self.recorder.journal();
        if let JournalStatus::Failing { detail } = journal.status() {
            return vec![Finding::error(
                check,
                format!("can't be written, so chat is refused: {detail}"),
                "make room on the disk of the data dir, or mend it; no restart is needed",
            )];
        }
        let (drained, id) = (journal.drained(), journal.id());
        match self.store.drained(id).await {
            Ok(stored) if stored < drained => {
                let detail = format!(
                    "it has let go of events up to {}, but the store has them up to {} only",
                    drained.0, stored.0
                );
                return vec![Finding::error(
                    check,
                    detail,
                    "the database was replaced by an older one; put the right one back, or restore a backup with `tollgate restore`, which brings both",
                )];
            }
            Ok(_) => {}
            Err(error) => {
                return vec![Finding::error(
                    check,
                    error.to_string(),
                    "mend the store first",
                )];
            }
        }
        let pending = journal.pending();
        vec![if pending > MANY_PENDING {
            Finding::warning(
                check,
                format!("{pending} events wait for the store"),
                "look for drain_failed in the log: the store is slow or can't be written",
            )
        } else {
            Finding::ok(
                check,
                format!("can be written, {pending} events wait for the store"),
            )
        }]
    }

    pub(super) async fn ledger(&self) -> Vec<Finding> {
        let check = "ledger";
        if self.config.cache_backend == CacheBackend::Memory {
            let detail = "not compared: with USAGE_GUARDRAIL_CACHE_BACKEND=memory, totals are read from the store at each start";
            return vec![Finding::skipped(check, detail)];
        }
        let tenants = self.recorder.ledger().tenants();
        let mut drifts = Vec::new();
        for tenant in &tenants {
            let now = self.clock.now();
            match self
                .recorder
                .drift_of(*tenant, now.minus(self.config.retention))
                .await
            {
                Ok(found) => drifts.extend(found),
                Err(error) => {
                    return vec![Finding::error(
                        check,
                        error.to_string(),
                        "mend the store first",
                    )];
                }
            }
        }
        if drifts.is_empty() {
            let detail = format!(
                "live totals equal the store's; tenants in memory: {}",
                tenants.len()
            );
            return vec![Finding::ok(check, detail)];
        }
        let mut lines = Vec::new();
        for drift in &drifts {
            lines.push(self.describe(drift).await);
        }
        vec![Finding::error(
            check,
            format!("live totals differ from the store's: {}", some_of(&lines)),
            match self.recorder.ledger() {
                Ledger::Redis(_) => {
                    "nothing: they were set right by this look; if they differ again, somebody else writes to that Redis or to the database"
                }
                Ledger::Local(_) => DRIFT_REMEDY,
            },
        )]
    }

    pub(super) async fn redis(&self) -> Finding {
        let check = "redis";
        let redis = match self.recorder.ledger() {
            Ledger::Local(_) => {
                return Finding::skipped(check, "not in use: live totals are in this process");
            }
            Ledger::Redis(redis) => redis,
        };
        match redis.examine().await {
            Ok(servers) if servers.policies.iter().all(|it| it == "noeviction") => {
                let (count, versions) = (servers.count, servers.versions.join(", "));
                Finding::ok(
                    check,
                    format!("answers; servers: {count}, version {versions}"),
                )
            }
            Ok(servers) => Finding::warning(
                check,
                format!("its maxmemory-policy is {}", servers.policies.join(", ")),
                "set maxmemory-policy to noeviction: what is evicted is read from the store again, and what requests in flight hold may be lost (docs/guide/redis.md)",
            ),
            Err(why) => Finding::error(
                check,
                why,
                "check USAGE_GUARDRAIL_REDIS_URL, the server's log and the network; meanwhile requests get what USAGE_GUARDRAIL_FAIL_MODE says",
            ),
        }
    }

    async fn describe(&self, drift: &Drift) -> String {
        let policy = self
            .catalogue
            .policy(drift.counter.tenant)
            .await
            .ok()
            .flatten();
        let tenant = policy.map_or_else(
            || drift.counter.tenant.to_string(),
            |policy| policy.tenant.slug.to_string(),
        );
        format!(
            "tenant {tenant} {} since {}: live {}, stored {}",
            drift.counter.feature,
            drift.counter.window.start(),
            drift.live,
            drift.stored
        )
    }
}

fn upstream_answered(base_url: &str, status: StatusCode) -> Finding {
    let check = "upstream";
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Finding::error(
            check,
            format!("{base_url} refuses the key (status {})", status.as_u16()),
            "set OPENAI_API_KEY to a key that it accepts",
        ),
        status if status.is_success() => Finding::ok(check, format!("{base_url} answers")),
        // Not every server has this route.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Finding::ok(
            check,
            format!(
                "{base_url} answers; it lists no models, so whether it takes the key is not known"
            ),
        ),
        status => Finding::warning(
            check,
            format!("{base_url}/models answers with status {}", status.as_u16()),
            "check OPENAI_BASE_URL (it includes /v1) and the upstream's own state",
        ),
    }
}

/// `Date` of RFC 9110.
fn parse_date(text: &str) -> Option<Timestamp> {
    let instant = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()?;
    Some(Timestamp::from_micros(instant.as_microsecond()))
}

fn some_of(lines: &[String]) -> String {
    let shown = lines[..lines.len().min(MOST_SHOWN)].join("; ");
    match lines.len().saturating_sub(MOST_SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}
