//! `tollgate price …`: what models cost.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::json;

use super::output::{NOTHING, Output, or_dash};
use crate::{
    control::{Backend, Input, Typed},
    domain::{price::Rates, quantity::Quantity},
    services::prices::{LongPromptObject, PriceObject, Prices},
    store::audit::NewAudit,
};

#[derive(Debug, Subcommand)]
pub(super) enum PriceCommand {
    List(List),
    Check(Check),
    Import(Import),
}

/// Lists all prices: those that come with tollgate, and your own
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate price list --output table")]
pub(super) struct List {}

/// Says which price a model has now, and what it can take and put out
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A model without a price ends with exit code 1.\n\nExample: tollgate price check gpt-5.1"
)]
pub(super) struct Check {
    /// The model, as requests name it
    model: String,
}

/// Takes the prices of a file into your own price file, in force at once
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The file is a JSON list of objects with model (a name or a pattern such as gpt-5.1*), effective_from, \
                  input, cached_input, cache_write, output (micro-dollars per million tokens), context_tokens and \
                  max_output_tokens. Entries of the same model and effective_from are replaced.\n\n\
                  Example: tollgate price import prices.json"
)]
pub(super) struct Import {
    /// The file
    file: PathBuf,
}

impl PriceCommand {
    pub(super) fn input(&self) -> anyhow::Result<Option<Input>> {
        let Self::Import(Import { file }) = self else {
            return Ok(None);
        };
        let path = file.display().to_string();
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("the price file {path} can't be read"))?;
        Ok(Some(Input { path, text }))
    }

    pub(super) async fn run(self, backend: &Backend, typed: &Typed) -> anyhow::Result<Output> {
        let prices = backend.prices.as_ref();
        let prices = prices.context("there are no prices here")?;
        match self {
            Self::List(_) => Ok(list(prices)),
            Self::Check(command) => check(&command.model, prices, backend),
            Self::Import(_) => import(prices, backend, typed).await,
        }
    }
}

fn list(prices: &Prices) -> Output {
    let list = prices.list();
    let items: Vec<PriceObject> = list
        .entries()
        .into_iter()
        .map(|(entry, source)| PriceObject::of(entry, Some(source)))
        .collect();
    let columns = [
        "model",
        "from",
        "input $/M",
        "cached",
        "cache write",
        "output $/M",
        "dearer above",
        "context",
        "most output",
        "list",
    ];
    Output::list(&items, &columns, |price| {
        vec![
            price.model.clone(),
            price.effective_from.to_string(),
            dollars(price.input),
            dollars(price.cached_input),
            dollars(price.cache_write),
            dollars(price.output),
            or_dash(price.long_prompt.as_ref().map(|it| it.above_input_tokens)),
            or_dash(price.context_tokens),
            or_dash(price.max_output_tokens),
            or_dash(price.source),
        ]
    })
}

fn check(model: &str, prices: &Prices, backend: &Backend) -> anyhow::Result<Output> {
    let list = prices.list();
    let (entry, bounds) = list.look_up(model, backend.clock.now());
    let rates = entry.and_then(|entry| entry.rates);
    if rates.is_none() {
        bail!(
            "no price is known for model '{}': its cost counts as 0, or it is refused, as USAGE_UNPRICED_MODEL says; \
             bring a price in with `tollgate price import`",
            model.escape_debug()
        );
    }
    let rate = |of: fn(&Rates) -> Option<Quantity>| rates.as_ref().and_then(of);
    let (input, output) = (rate(|it| Some(it.input)), rate(|it| Some(it.output)));
    let (cached, write) = (rate(|it| it.cached_input), rate(|it| it.cache_write));
    let long = rates.and_then(|rates| rates.long_prompt);
    let json = json!({
        "model": model,
        "price_id": entry.map(|entry| &entry.id),
        "matched": entry.map(|entry| &entry.model),
        "effective_from": entry.map(|entry| entry.effective_from),
        "input": input,
        "cached_input": cached,
        "cache_write": write,
        "output": output,
        "long_prompt": long.map(LongPromptObject::from),
        "context_tokens": bounds.context_tokens,
        "max_output_tokens": bounds.max_output_tokens,
    });
    let mut facts = vec![
        ("model", model.to_owned()),
        ("price id", or_dash(entry.map(|entry| &entry.id))),
        ("input $/M", dollars(input)),
        ("cached input $/M", dollars(cached)),
        ("cache write $/M", dollars(write)),
        ("output $/M", dollars(output)),
        ("context tokens", bounds.context_tokens.to_string()),
        ("most output tokens", bounds.max_output_tokens.to_string()),
    ];
    if let Some(long) = long {
        facts.extend([
            ("above input tokens", long.above_input_tokens.to_string()),
            ("… input $/M", dollars(Some(long.input))),
            ("… cached input $/M", dollars(long.cached_input)),
            ("… cache write $/M", dollars(long.cache_write)),
            ("… output $/M", dollars(Some(long.output))),
        ]);
    }
    Ok(Output::object(&json, facts))
}

async fn import(prices: &Prices, backend: &Backend, typed: &Typed) -> anyhow::Result<Output> {
    let input = typed.input.as_ref();
    let input = input.context("the price file did not come along with the command")?;
    let imported = match prices.import(&input.text) {
        Ok(imported) => imported,
        Err(error) => bail!("{} is not taken, nothing was changed: {error}", input.path),
    };
    let entry = NewAudit {
        by: backend.actor(),
        action: "price.import",
        target: imported.path.clone(),
        before: None,
        after: Some(json!(imported)),
    };
    backend.store.note(&entry).await?;
    let facts = vec![
        ("price file", imported.path.clone()),
        ("added", imported.added.to_string()),
        ("replaced", imported.replaced.to_string()),
        ("unchanged", imported.unchanged.to_string()),
    ];
    Ok(Output::object(&imported, facts))
}

/// A rate in dollars, exactly.
fn dollars(rate: Option<Quantity>) -> String {
    let Some(rate) = rate else {
        return NOTHING.to_owned();
    };
    let (whole, rest) = (rate.get() / 1_000_000, rate.get() % 1_000_000);
    let rest = format!("{rest:06}");
    let rest = rest.trim_end_matches('0');
    format!("{whole}.{rest:0<2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_exact_and_have_cents() {
        for (micros, shown) in [
            (0, "0.00"),
            (1_250_000, "1.25"),
            (125_000, "0.125"),
            (2_800, "0.0028"),
            (15_000_000, "15.00"),
        ] {
            assert_eq!(dollars(Some(Quantity::new(micros))), shown);
        }
    }
}
