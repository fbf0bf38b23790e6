use super::{Output, PlanObject, Plans, limit_in_words, models};

/// Lists all plans
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate plan list --output table")]
pub(in crate::cli) struct List {}

impl List {
    pub(super) async fn run(self, plans: &Plans) -> anyhow::Result<Output> {
        let plans = plans.list().await?;
        let rows = plans.iter().map(|plan| {
            let features = plan.features.iter().map(|feature| {
                let limits: Vec<_> = feature.limits.iter().map(limit_in_words).collect();
                let limits = if limits.is_empty() {
                    "unlimited".to_owned()
                } else {
                    limits.join(", ")
                };
                format!("{} {limits}", feature.key)
            });
            let features = features.collect::<Vec<_>>().join("; ");
            vec![
                plan.code.to_string(),
                plan.name.to_string(),
                models(plan),
                features,
            ]
        });
        let rows: Vec<_> = rows.collect();
        let items: Vec<_> = plans.into_iter().map(PlanObject::from).collect();
        let json = serde_json::json!({ "items": items });
        Ok(Output::of_json(json).table(&["plan", "name", "models", "soft/hard limits"], rows))
    }
}
