//! `tollgate plan …`.

mod create;
mod delete;
mod feature;
mod list;
mod set;
mod show;

use clap::Subcommand;

use super::output::{NOTHING, Output, or_dash};
use crate::{
    control::Backend,
    domain::{administrator::Actor, limit::Limit, plan::Plan},
    services::{objects::PlanObject, plans::Plans},
};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum PlanCommand {
    List(list::List),
    Show(show::Show),
    Create(create::Create),
    Set(set::Set),
    Delete(delete::Delete),
    /// Changes the features of a plan
    #[command(
        subcommand,
        after_help = "Example: tollgate plan feature set starter messages --hard 200"
    )]
    Feature(feature::FeatureCommand),
}

impl PlanCommand {
    pub(super) fn question(&self) -> Option<String> {
        match self {
            Self::Delete(command) => Some(command.question()),
            Self::Feature(command) => command.question(),
            Self::List(_) | Self::Show(_) | Self::Create(_) | Self::Set(_) => None,
        }
    }

    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        let plans = Plans::new(backend.store.clone());
        let by = backend.actor();
        match self {
            Self::List(command) => command.run(&plans).await,
            Self::Show(command) => command.run(&plans).await,
            Self::Create(command) => command.run(&plans, &by).await,
            Self::Set(command) => command.run(&plans, &by).await,
            Self::Delete(command) => command.run(&plans, &by).await,
            Self::Feature(command) => command.run(&plans, &by).await,
        }
    }
}

impl Backend {
    /// Who is at work here, now.
    pub(super) fn actor(&self) -> Actor {
        Actor {
            name: "cli".to_owned(),
            address: None,
            at: self.clock.now(),
        }
    }
}

/// One plan with its features.
fn shown(plan: Plan) -> Output {
    let rows = plan.features.iter().flat_map(|feature| {
        let row = |limit: Option<&Limit>| {
            vec![
                feature.key.to_string(),
                feature.display_name.to_string(),
                feature.unit.clone(),
                or_dash(limit.map(|limit| limit.scope)),
                or_dash(limit.map(|limit| limit.window)),
                or_dash(limit.and_then(|limit| limit.soft)),
                or_dash(limit.and_then(|limit| limit.hard)),
                if feature.is_metered { "yes" } else { "no" }.to_owned(),
            ]
        };
        if feature.limits.is_empty() {
            vec![row(None)]
        } else {
            feature
                .limits
                .iter()
                .map(|limit| row(Some(limit)))
                .collect()
        }
    });
    let rows: Vec<_> = rows.collect();
    let facts = vec![
        ("plan", plan.code.to_string()),
        ("name", plan.name.to_string()),
        ("models", models(&plan)),
        ("version", plan.version.to_string()),
    ];
    let columns = [
        "feature", "name", "unit", "scope", "window", "soft", "hard", "metered",
    ];
    Output::object(&PlanObject::from(plan), facts).table(&columns, rows)
}

fn models(plan: &Plan) -> String {
    if plan.allowed_models.0.is_empty() {
        "any".to_owned()
    } else {
        plan.allowed_models.0.join(", ")
    }
}

/// `150/200 per period` for people.
pub(super) fn limit_in_words(limit: &Limit) -> String {
    let value = |value: Option<_>| value.map_or(NOTHING.to_owned(), |value| format!("{value}"));
    let whose = match limit.scope {
        crate::domain::limit::Scope::Tenant => String::new(),
        scope => format!("{scope} and "),
    };
    format!(
        "{}/{} per {whose}{}",
        value(limit.soft),
        value(limit.hard),
        limit.window
    )
}
