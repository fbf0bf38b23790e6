//! What models can take and put out, where no price list says.

use crate::domain::quantity::Quantity;

/// The most a request can use of a model, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelBounds {
    /// Input and output together.
    pub context_tokens: Quantity,
    /// Of one answer, reasoning included.
    pub max_output_tokens: Quantity,
}

/// A model that nobody knows (interface.md §3).
const UNKNOWN: (i64, i64) = (128_000, 128_000);

/// Model glob, context, largest output: the first that matches counts, so that exceptions stand before their family.
///
/// Figures as published on OpenAI's model pages (<https://platform.openai.com/docs/models>, 2026). Where pages
/// differ about a model the larger figure is taken: a bound that is too low lets a limit be passed. Embedding models
/// are left out: they put nothing out, and their context counts for each of many inputs.
const MODELS: &[(&str, i64, i64)] = &[
    ("gpt-5-pro*", 400_000, 272_000),
    ("gpt-5.5*", 1_050_000, 272_000),
    ("gpt-5.4-mini*", 400_000, 128_000),
    ("gpt-5.4-nano*", 400_000, 128_000),
    ("gpt-5.4*", 1_050_000, 128_000),
    ("gpt-5*-chat*", 128_000, 16_384),
    ("gpt-5*", 400_000, 128_000),
    ("gpt-4.5*", 128_000, 16_384),
    ("gpt-4.1*", 1_047_576, 32_768),
    ("gpt-4o*", 128_000, 16_384),
    ("chatgpt-4o*", 128_000, 16_384),
    ("gpt-4-turbo*", 128_000, 4_096),
    ("gpt-4-1106*", 128_000, 4_096),
    ("gpt-4-0125*", 128_000, 4_096),
    ("gpt-4-32k*", 32_768, 32_768),
    ("gpt-4", 8_192, 8_192),
    ("gpt-4-0613", 8_192, 8_192),
    ("gpt-3.5-turbo*", 16_385, 4_096),
    ("gpt-oss-*", 131_072, 131_072),
    ("o1-mini*", 128_000, 65_536),
    ("o1-preview*", 128_000, 32_768),
    ("o1", 200_000, 100_000),
    ("o1-*", 200_000, 100_000),
    ("o3", 200_000, 100_000),
    ("o3-*", 200_000, 100_000),
    ("o4-mini*", 200_000, 100_000),
    ("codex-mini*", 200_000, 100_000),
];

/// The bounds of `model`; 128,000 each if it is unknown.
#[must_use]
pub fn bounds(model: &str) -> ModelBounds {
    let (context, output) = find(model).unwrap_or(UNKNOWN);
    ModelBounds {
        context_tokens: Quantity::new(context),
        max_output_tokens: Quantity::new(output),
    }
}

/// The patterns of models with bounds of their own.
pub fn patterns() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|(pattern, _, _)| *pattern)
}

/// The base model of a fine-tuned one, which is named `ft:BASE:ORGANISATION::ID`; else the model itself.
pub(super) fn base_of(model: &str) -> &str {
    model
        .strip_prefix("ft:")
        .and_then(|rest| rest.split(':').next())
        .unwrap_or(model)
}

fn find(model: &str) -> Option<(i64, i64)> {
    let base = base_of(model);
    MODELS
        .iter()
        .find(|(glob, ..)| matches(glob, base))
        .map(|(_, context, output)| (*context, *output))
}

fn matches(glob: &str, model: &str) -> bool {
    match glob.split_once('*') {
        None => glob == model,
        Some((start, rest)) => model.strip_prefix(start).is_some_and(|tail| {
            rest.is_empty() || wildmatch::WildMatch::new(&glob[start.len()..]).matches(tail)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_bounds_are_the_published_ones_and_unknown_models_count_as_128_000() {
        for (model, context, output) in [
            ("gpt-5.1", 400_000, 128_000),
            ("gpt-5", 400_000, 128_000),
            ("gpt-5-nano-2025-08-07", 400_000, 128_000),
            ("gpt-5-pro", 400_000, 272_000),
            ("gpt-5-chat-latest", 128_000, 16_384),
            ("gpt-5.1-chat-latest", 128_000, 16_384),
            ("gpt-5.4", 1_050_000, 128_000),
            ("gpt-5.4-mini", 400_000, 128_000),
            ("gpt-4.1-mini", 1_047_576, 32_768),
            ("gpt-4o-mini", 128_000, 16_384),
            ("ft:gpt-4o-mini-2024-07-18:acme::id", 128_000, 16_384),
            ("gpt-4", 8_192, 8_192),
            ("gpt-4-turbo", 128_000, 4_096),
            ("o3-mini", 200_000, 100_000),
            ("o1-mini", 128_000, 65_536),
            ("llama-3.1-8b", 128_000, 128_000),
            ("", 128_000, 128_000),
        ] {
            let bounds = bounds(model);
            assert_eq!(bounds.context_tokens.get(), context, "{model}");
            assert_eq!(bounds.max_output_tokens.get(), output, "{model}");
        }
    }

    #[test]
    fn no_row_of_the_table_is_hidden_by_one_before_it() {
        for (index, (glob, ..)) in MODELS.iter().enumerate() {
            let sample = glob.replace('*', "");
            let first = MODELS
                .iter()
                .position(|(other, ..)| matches(other, &sample));
            assert_eq!(first, Some(index), "{glob}");
        }
    }
}
