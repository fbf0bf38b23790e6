use serde_json::Value;

use super::{Output, UsageOperations, array, cell};
use crate::domain::{tenant::TenantRef, time::Timestamp};

/// Shows what is used, what is left, and when it resets
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate usage show --tenant acme --watch")]
pub(in crate::cli) struct Show {
    /// Tenant id or slug [default: all tenants]
    #[arg(long)]
    tenant: Option<TenantRef>,
    /// Look again every two seconds, until interrupted
    #[arg(long)]
    watch: bool,
}

const COLUMNS: [&str; 11] = [
    "tenant",
    "feature",
    "scope",
    "window",
    "used",
    "reserved",
    "soft",
    "hard",
    "remaining",
    "percent",
    "resets",
];

impl Show {
    pub(super) fn is_watching(&self) -> bool {
        self.watch
    }

    pub(super) async fn run(
        self,
        usage: &dyn UsageOperations,
        now: Timestamp,
    ) -> anyhow::Result<Output> {
        let body = usage.usage(self.tenant.as_ref(), now).await?;
        let rows = match self.tenant {
            Some(_) => rows(&body),
            None => array(&body, "items").iter().flat_map(rows).collect(),
        };
        Ok(Output::of_json(body).table(&COLUMNS, rows))
    }
}

fn rows(tenant: &Value) -> Vec<Vec<String>> {
    let rows = array(tenant, "features").iter().map(|feature| {
        vec![
            cell(tenant, "tenant_slug"),
            cell(feature, "feature_key"),
            cell(feature, "scope"),
            cell(feature, "window"),
            cell(feature, "used"),
            cell(feature, "reserved"),
            cell(feature, "soft_limit"),
            cell(feature, "hard_limit"),
            cell(feature, "remaining"),
            bar(feature["percent"].as_f64()).unwrap_or_else(|| cell(feature, "percent")),
            cell(feature, "resets_at"),
        ]
    });
    rows.collect()
}

/// `██████░░░░ 62.00 %`: a block begins with each tenth that is passed.
fn bar(percent: Option<f64>) -> Option<String> {
    let percent = percent?;
    let blocks = (0..10).map(|tenth| {
        if percent > f64::from(tenth * 10) {
            '█'
        } else {
            '░'
        }
    });
    Some(format!("{} {percent:.2} %", blocks.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_empty_at_nothing_and_full_at_all() {
        for (percent, expected) in [
            (0.0, "░░░░░░░░░░ 0.00 %"),
            (0.5, "█░░░░░░░░░ 0.50 %"),
            (62.0, "███████░░░ 62.00 %"),
            (100.0, "██████████ 100.00 %"),
            (250.0, "██████████ 250.00 %"),
        ] {
            assert_eq!(bar(Some(percent)).as_deref(), Some(expected));
        }
        assert_eq!(bar(None), None);
    }

    #[test]
    fn an_unlimited_feature_has_dashes() {
        let body = serde_json::json!({"tenant_slug": "acme", "features": [
            {"feature_key": "messages", "scope": "tenant", "window": "period", "used": 3, "reserved": 0,
             "soft_limit": null, "hard_limit": null, "remaining": null, "percent": null,
             "resets_at": "2026-12-01T00:00:00Z"}]});
        assert_eq!(
            rows(&body)[0],
            [
                "acme",
                "messages",
                "tenant",
                "period",
                "3",
                "0",
                "–",
                "–",
                "–",
                "–",
                "2026-12-01T00:00:00Z"
            ]
        );
    }
}
