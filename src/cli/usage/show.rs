use serde_json::Value;

use super::{Output, UsageOperations, array, cell};
use crate::{
    cli::output::{Marks, Tone, or_dash},
    domain::{tenant::TenantRef, time::Timestamp},
    services::usage_view::UsageStatus,
};

/// Shows what is used, what is left, how each limit stands, and when it resets
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

const COLUMNS: [&str; 12] = [
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
    "status",
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
        let tenants = match self.tenant {
            Some(_) => std::slice::from_ref(&body),
            None => array(&body, "items"),
        };
        let (tones, rows) = tenants.iter().flat_map(rows).unzip();
        let marks = Marks {
            bars: vec!["percent".to_owned()],
            coloured: vec!["percent".to_owned(), "status".to_owned()],
            tones,
        };
        Ok(Output::of_json(body).marked_table(&COLUMNS, rows, marks))
    }
}

fn rows(tenant: &Value) -> Vec<(Tone, Vec<String>)> {
    let rows = array(tenant, "features").iter().map(|feature| {
        let row = vec![
            cell(tenant, "tenant_slug"),
            cell(feature, "feature_key"),
            cell(feature, "scope"),
            cell(feature, "window"),
            cell(feature, "used"),
            cell(feature, "reserved"),
            cell(feature, "soft_limit"),
            cell(feature, "hard_limit"),
            cell(feature, "remaining"),
            percent(&feature["percent"]),
            words(&cell(feature, "status")),
            cell(feature, "resets_at"),
        ];
        (tone(&feature["status"]), row)
    });
    rows.collect()
}

/// With both its decimals, which a JSON number may have lost.
fn percent(value: &Value) -> String {
    or_dash(value.as_f64().map(|percent| format!("{percent:.2}")))
}

/// `soft limit exceeded`.
fn words(status: &str) -> String {
    status.replace('_', " ")
}

fn tone(status: &Value) -> Tone {
    let is = |other: UsageStatus| status == other.as_str();
    if is(UsageStatus::HardLimitExceeded) {
        Tone::Bad
    } else if is(UsageStatus::Ok) {
        Tone::Good
    } else {
        Tone::Caution
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(status: &str) -> Value {
        serde_json::json!({"tenant_slug": "acme", "features": [
            {"feature_key": "messages", "scope": "tenant", "window": "period", "used": 3, "reserved": 0,
             "soft_limit": null, "hard_limit": null, "remaining": null, "percent": null, "status": status,
             "resets_at": "2026-12-01T00:00:00Z"}]})
    }

    #[test]
    fn an_unlimited_feature_has_dashes() {
        assert_eq!(
            rows(&body("ok"))[0].1,
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
                "ok",
                "2026-12-01T00:00:00Z"
            ]
        );
    }

    #[test]
    fn a_row_is_toned_by_its_status() {
        for (status, expected) in [
            ("ok", Tone::Good),
            ("approaching", Tone::Caution),
            ("soft_limit_exceeded", Tone::Caution),
            ("hard_limit_exceeded", Tone::Bad),
        ] {
            assert_eq!(rows(&body(status))[0].0, expected, "{status}");
        }
    }
}
