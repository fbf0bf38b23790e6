use super::{Output, UsageOperations, array, cell};
use crate::services::AdminError;

/// Explains what became of a request: its limits, what was used before and after, why it was warned or refused
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate usage explain 0190b6f2-c1d4-7a3e-8f5b-6c7d8e9f0a1b")]
pub(in crate::cli) struct Explain {
    /// The X-Request-Id of its answer
    request_id: String,
}

const COLUMNS: [&str; 10] = [
    "feature", "scope", "window", "soft", "hard", "before", "settled", "after", "verdict", "why",
];

impl Explain {
    pub(super) async fn run(self, usage: &dyn UsageOperations) -> anyhow::Result<Output> {
        let body = match usage.explain(&self.request_id).await {
            Err(AdminError::NotFound { .. }) => anyhow::bail!(
                "not kept: nothing is known of request '{}'; settled requests are kept as long as usage events, \
                 refusals as a node's last 10,000",
                self.request_id.escape_debug()
            ),
            body => body?,
        };
        let facts = [
            "request_id",
            "outcome",
            "decision",
            "tenant_slug",
            "plan_code",
            "key_id",
            "user",
            "model",
            "admitted_at",
            "recorded_at",
            "hold",
            "settled",
            "price_id",
        ];
        let facts = facts
            .iter()
            .map(|name| vec![(*name).to_owned(), cell(&body, name)])
            .collect();
        let rows = array(&body, "limits").iter().map(|limit| {
            [
                "feature_key",
                "scope",
                "window",
                "soft_limit",
                "hard_limit",
                "used_before",
                "settled",
                "used_after",
                "verdict",
                "message",
            ]
            .iter()
            .map(|name| cell(limit, name))
            .collect()
        });
        let rows = rows.collect();
        Ok(Output::of_json(body)
            .table(&["what", "is"], facts)
            .table(&COLUMNS, rows))
    }
}
