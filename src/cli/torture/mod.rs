//! `tollgate torture`: whether a gateway's limits and counts hold when it gets rough.
//!
//! It can only say what it sees. Every gateway shows which requests it answered and what usage the answers carry; a
//! tollgate also shows what it counted, so that lost and double usage can be told.

mod gateway;
mod phases;
mod seen;

use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use super::output::Output;
use gateway::Gateway;
use phases::Plan;
use seen::{Account, Phase};

/// Tries a gateway's limits and counts: parallel requests, hang-ups, repeats
///
/// Sends small chat completions with a tenant's key to any OpenAI-compatible gateway: streams that are hung up on,
/// requests repeated with one Idempotency-Key, then requests in parallel until the limit refuses. Prints by how much
/// the limit was passed, and which usage was lost or counted twice. Of a tollgate it reads the counts
/// (GET /api/v1/usage); of others it only sees which requests were answered, so name the limit with --limit.
/// It spends what the key has left, so use one of a tenant that nobody else uses. Exit code 1 if it finds a breach.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate torture --target http://127.0.0.1:8080/v1 --key tg_… --requests 200"
)]
pub(super) struct Torture {
    /// The gateway's base URL, with or without /v1
    #[arg(long, value_name = "URL")]
    target: String,
    /// The key to ask with
    #[arg(long, value_name = "K")]
    key: String,
    /// The model to ask for
    #[arg(long, value_name = "NAME", default_value = "gpt-5.1")]
    model: String,
    /// How many requests are sent in parallel phases, at most
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,
    /// How many at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    parallel: u32,
    /// How many requests the gateway may answer, where it can't be asked
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// For what was hung up on to be settled.
const SETTLE_TIME: Duration = Duration::from_secs(60);

impl Torture {
    pub(super) async fn run(self) -> anyhow::Result<Output> {
        let gateway = Gateway::new(&self.target, &self.key, &self.model)
            .with_context(|| format!("--target {} can't be asked", self.target))?;
        let plan = Plan {
            requests: self.requests,
            parallel: self.parallel,
        };
        let before = gateway.counted().await?;
        let mut phases = Vec::new();
        let mut counted = before.clone();
        for kind in phases::ALL {
            let seen = plan.run(kind, &gateway).await?;
            let after = gateway.settled(SETTLE_TIME).await?;
            phases.push(Phase::new(kind, seen, counted.as_ref(), after.as_ref()));
            counted = after;
        }
        let account = Account {
            limit: self.limit,
            before,
            after: counted,
            phases,
        };
        Ok(report(&self.target, &account))
    }
}

fn report(target: &str, account: &Account) -> Output {
    let verdict = account.verdict();
    let body = json!({
        "target": target,
        "is_tollgate": account.before.is_some(),
        "phases": account.phases,
        "overshoot": verdict.overshoot,
        "lost": verdict.lost,
        "double": verdict.double,
        "reserved": verdict.reserved,
        "notes": verdict.notes,
    });
    let columns = [
        "phase", "asked", "answered", "refused", "hung up", "failed", "counted", "lost", "double",
    ];
    let rows = account.phases.iter().map(Phase::row).collect();
    let facts = format!(
        "overshoot {}, lost {}, double {}, left reserved {}",
        shown(verdict.overshoot),
        shown(verdict.lost),
        shown(verdict.double),
        shown(verdict.reserved),
    );
    let mut output = Output::of_json(body).table(&columns, rows).note(facts);
    for note in &verdict.notes {
        output = output.note(note.clone());
    }
    let breaches = verdict.breaches();
    if breaches.is_empty() {
        output
    } else {
        output.failing(format!("{target}: {}", breaches.join(", ")))
    }
}

/// `None`: it can't be seen.
fn shown(quantity: Option<u64>) -> String {
    quantity.map_or_else(
        || "not to be seen".to_owned(),
        |quantity| quantity.to_string(),
    )
}
