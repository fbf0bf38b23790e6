//! What models cost: entries with a date from which they count, and the arithmetic of money.
//!
//! Money is micro-dollars, rates are micro-dollars per million tokens, and all of it is whole numbers: a run's cost
//! is rounded up once, at its end.

use std::{fmt, sync::Arc};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use wildmatch::WildMatch;

use super::{quantity::Quantity, time::Timestamp, usage::TokenUsage};

const MILLION: i128 = 1_000_000;

/// What a model counts as able to take and to put out, input and output each, if no entry says (interface.md §3).
const UNKNOWN_TOKENS: Quantity = Quantity::new(128_000);

/// Micro-dollars per million tokens, each at least zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    pub input: Quantity,
    /// Input read from the provider's cache; else `input`.
    pub cached_input: Option<Quantity>,
    /// Input written to the provider's cache; else `input`.
    pub cache_write: Option<Quantity>,
    /// Reasoning included.
    pub output: Quantity,
    /// What a run with a long prompt costs instead.
    pub long_prompt: Option<LongPrompt>,
}

/// The rates of a run with more input than this, cached and written input included: of all its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongPrompt {
    /// At least 1.
    pub above_input_tokens: Quantity,
    pub input: Quantity,
    /// Else this `input`.
    pub cached_input: Option<Quantity>,
    /// Else this `input`.
    pub cache_write: Option<Quantity>,
    pub output: Quantity,
}

/// An entry's id is made from this: one without rates for long prompts reads as it did before there were any.
impl fmt::Debug for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Rates");
        shown
            .field("input", &self.input)
            .field("cached_input", &self.cached_input)
            .field("cache_write", &self.cache_write)
            .field("output", &self.output);
        if let Some(long) = &self.long_prompt {
            shown.field("long_prompt", long);
        }
        shown.finish()
    }
}

impl Rates {
    /// What a run costs in micro-dollars, rounded up.
    ///
    /// Cached and written tokens are parts of the input; what a provider reports beyond it counts as that much and no
    /// more. Splitting a run costs at most 1 micro-dollar more a part, unless its parts have prompts of another length.
    #[must_use]
    pub fn cost(&self, used: &TokenUsage) -> Quantity {
        let input = used.input_tokens.at_least_zero();
        match self.long() {
            Some((above, long)) if input > above => long.cost(used),
            _ => self.usual().cost(used),
        }
    }

    /// The most that a run of up to so many tokens can cost, whatever part of its input is cached.
    #[must_use]
    pub fn at_most(&self, input: Quantity, output: Quantity) -> Quantity {
        match self.long() {
            Some((above, long)) if input > above => {
                let short = self.usual().at_most(above, output);
                short.max(long.at_most(input, output))
            }
            _ => self.usual().at_most(input, output),
        }
    }

    /// The largest output that, with up to `input`, costs no more than `cost`; `None` if the input alone costs more.
    #[must_use]
    pub fn output_within(&self, cost: Quantity, input: Quantity) -> Option<Quantity> {
        match self.long() {
            Some((above, long)) if input > above => {
                let short = self.usual().output_within(cost, above)?;
                Some(short.min(long.output_within(cost, input)?))
            }
            _ => self.usual().output_within(cost, input),
        }
    }

    /// The largest input that costs no more than `cost` beside `output`; `None` if the output alone costs more.
    #[must_use]
    pub fn input_within(&self, cost: Quantity, output: Quantity) -> Option<Quantity> {
        let short = self.usual().input_within(cost, output)?;
        match self.long() {
            Some((above, long)) if short >= above => {
                let more = long.input_within(cost, output);
                Some(more.filter(|input| *input > above).unwrap_or(above))
            }
            _ => Some(short),
        }
    }

    fn usual(&self) -> Tier {
        Tier {
            input: self.input,
            cached_input: self.cached_input.unwrap_or(self.input),
            cache_write: self.cache_write.unwrap_or(self.input),
            output: self.output,
        }
    }

    /// From how much input on it does not cost the usual any more, and what instead.
    fn long(&self) -> Option<(Quantity, Tier)> {
        let long = self.long_prompt?;
        let tier = Tier {
            input: long.input,
            cached_input: long.cached_input.unwrap_or(long.input),
            cache_write: long.cache_write.unwrap_or(long.input),
            output: long.output,
        };
        Some((long.above_input_tokens, tier))
    }
}

/// The rates of one run.
struct Tier {
    input: Quantity,
    cached_input: Quantity,
    cache_write: Quantity,
    output: Quantity,
}

impl Tier {
    fn cost(&self, used: &TokenUsage) -> Quantity {
        let input = used.input_tokens.at_least_zero();
        let cached = used.cached_input_tokens.at_least_zero().min(input);
        let written = used
            .cache_write_input_tokens
            .at_least_zero()
            .min(input.minus(cached));
        let plain = input.minus(cached).minus(written);
        let output = used.output_tokens.at_least_zero();
        rounded_up(
            product(plain, self.input)
                + product(cached, self.cached_input)
                + product(written, self.cache_write)
                + product(output, self.output),
        )
    }

    fn at_most(&self, input: Quantity, output: Quantity) -> Quantity {
        rounded_up(product(input, self.dearest_input()) + product(output, self.output))
    }

    fn output_within(&self, cost: Quantity, input: Quantity) -> Option<Quantity> {
        let left = i128::from(cost.get()) * MILLION - product(input, self.dearest_input());
        within(left, self.output)
    }

    fn input_within(&self, cost: Quantity, output: Quantity) -> Option<Quantity> {
        let left = i128::from(cost.get()) * MILLION - product(output, self.output);
        within(left, self.dearest_input())
    }

    fn dearest_input(&self) -> Quantity {
        self.input.max(self.cached_input).max(self.cache_write)
    }
}

fn product(tokens: Quantity, rate: Quantity) -> i128 {
    i128::from(tokens.get()) * i128::from(rate.get())
}

fn rounded_up(millionths: i128) -> Quantity {
    let micros = (millionths + MILLION - 1).div_euclid(MILLION);
    i64::try_from(micros).map_or(Quantity::MAX, Quantity::new)
}

/// How many tokens at `rate` fit into `left` millionths.
fn within(left: i128, rate: Quantity) -> Option<Quantity> {
    if left < 0 {
        return None;
    }
    let tokens = left.checked_div(i128::from(rate.get()));
    let tokens = tokens.and_then(|tokens| i64::try_from(tokens).ok());
    Some(tokens.map_or(Quantity::MAX, Quantity::new))
}

/// What the models of one pattern cost, and can do, from a day on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceEntry {
    /// Stored with each event; made from all that the entry says, so that an entry that was changed is another one.
    pub id: Arc<str>,
    /// A model's name, or a pattern in which `*` stands for anything.
    pub model: String,
    pub effective_from: Timestamp,
    /// `None`: it says what the model can do, and not what it costs.
    pub rates: Option<Rates>,
    /// Input and output together.
    pub context_tokens: Option<Quantity>,
    /// Of one answer, reasoning included.
    pub max_output_tokens: Option<Quantity>,
}

impl PriceEntry {
    #[must_use]
    pub fn new(
        model: String,
        effective_from: Timestamp,
        rates: Option<Rates>,
        context_tokens: Option<Quantity>,
        max_output_tokens: Option<Quantity>,
    ) -> Self {
        let said = format!("{rates:?} {context_tokens:?} {max_output_tokens:?}");
        let digest = Sha256::digest(said.as_bytes());
        let day = effective_from.to_string();
        let id = format!(
            "{model}@{day}#{:02x}{:02x}{:02x}{:02x}",
            digest[0], digest[1], digest[2], digest[3]
        );
        Self {
            id: id.into(),
            model,
            effective_from,
            rates,
            context_tokens,
            max_output_tokens,
        }
    }
}

/// Where an entry came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PriceSource {
    /// Comes with the program.
    Embedded,
    /// The operator's price file.
    File,
}

impl fmt::Display for PriceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Embedded => "embedded",
            Self::File => "file",
        })
    }
}

/// The most a request can use of a model, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelBounds {
    /// Input and output together.
    pub context_tokens: Quantity,
    /// Of one answer, reasoning included.
    pub max_output_tokens: Quantity,
}

/// All entries, found by a model's name.
///
/// Of several patterns that match, the most specific one counts: a plain name, else the one with the longest text
/// before its first `*`, else the longest. Of its entries the latest counts that has begun.
#[derive(Clone, Debug, Default)]
pub struct PriceList {
    /// The most specific first.
    models: Vec<PricedModels>,
    /// What each of `models` begins with: every request looks through all of them, and few have more to be compared.
    heads: Vec<Head>,
}

/// The first eight bytes of a name, or of a pattern before its first `*`.
#[derive(Clone, Copy, Debug)]
struct Head {
    bytes: u64,
    /// Those that a name must have in common with it.
    mask: u64,
}

impl Head {
    fn of_pattern(one: &PricedModels) -> Self {
        let length = one.start.min(8);
        // A plain name ends where zeros are in its head, so that all of it is compared.
        let mask = if one.glob.is_none() || length == 8 {
            u64::MAX
        } else {
            (1 << (8 * length)) - 1
        };
        Self {
            bytes: head_of(&one.pattern.as_bytes()[..length]),
            mask,
        }
    }
}

/// The first eight bytes, zeros after the last one.
fn head_of(name: &[u8]) -> u64 {
    let mut head = [0; 8];
    let length = name.len().min(8);
    head[..length].copy_from_slice(&name[..length]);
    u64::from_le_bytes(head)
}

#[derive(Clone, Debug)]
struct PricedModels {
    pattern: String,
    /// The text before the first `*`.
    start: usize,
    /// `None` for a plain name.
    glob: Option<WildMatch>,
    /// By the day from which they count.
    entries: Vec<(Arc<PriceEntry>, PriceSource)>,
}

impl PricedModels {
    fn matches(&self, model: &str) -> bool {
        match &self.glob {
            None => self.pattern == model,
            Some(glob) => {
                model.as_bytes().get(..self.start) == Some(&self.pattern.as_bytes()[..self.start])
                    && glob.matches(model)
            }
        }
    }
}

impl PriceList {
    /// The embedded entries with those of the operator's file put over them: from the first day on that the file
    /// names for a pattern, only the file's entries of it count.
    #[must_use]
    pub fn new(embedded: Vec<PriceEntry>, file: Vec<PriceEntry>) -> Self {
        let replaced = |entry: &PriceEntry| {
            file.iter()
                .any(|own| own.model == entry.model && own.effective_from <= entry.effective_from)
        };
        let embedded = embedded.into_iter().filter(|entry| !replaced(entry));
        let mut all: Vec<(Arc<PriceEntry>, PriceSource)> = embedded
            .map(|entry| (Arc::new(entry), PriceSource::Embedded))
            .collect();
        all.extend(
            file.iter()
                .map(|entry| (Arc::new(entry.clone()), PriceSource::File)),
        );
        let mut models: Vec<PricedModels> = Vec::new();
        for (entry, source) in all {
            match models.iter_mut().find(|one| one.pattern == entry.model) {
                Some(one) => one.entries.push((entry, source)),
                None => models.push(PricedModels {
                    pattern: entry.model.clone(),
                    start: entry.model.find('*').unwrap_or(entry.model.len()),
                    glob: entry
                        .model
                        .contains('*')
                        .then(|| WildMatch::new(&entry.model)),
                    entries: vec![(entry, source)],
                }),
            }
        }
        for one in &mut models {
            one.entries.sort_by_key(|(entry, _)| entry.effective_from);
        }
        models.sort_by_key(|one| {
            let is_pattern = one.glob.is_some();
            (
                is_pattern,
                std::cmp::Reverse((one.start, one.pattern.len())),
            )
        });
        let heads = models.iter().map(Head::of_pattern).collect();
        Self { models, heads }
    }

    /// The entry for `model` at `at`; `None` if there is none. It may leave open what the model costs.
    #[must_use]
    pub fn find(&self, model: &str, at: Timestamp) -> Option<&Arc<PriceEntry>> {
        let head = head_of(model.as_bytes());
        let alike = self.models.iter().zip(&self.heads);
        let alike = alike.filter(|(_, it)| head & it.mask == it.bytes);
        let of_model = alike.map(|(one, _)| one).filter(|one| one.matches(model));
        of_model
            .filter_map(|one| {
                one.entries
                    .iter()
                    .rfind(|(entry, _)| entry.effective_from <= at)
            })
            .map(|(entry, _)| entry)
            .next()
    }

    /// What `model` can take and put out, as far as entries in force at `at` say. A fine-tuned model
    /// (`ft:BASE:ORGANISATION::ID`) without an entry of its own can do what its base can, whatever that costs.
    #[must_use]
    pub fn bounds(&self, model: &str, at: Timestamp) -> ModelBounds {
        self.look_up(model, at).1
    }

    /// [`find`](Self::find) and [`bounds`](Self::bounds) at once.
    #[must_use]
    pub fn look_up(&self, model: &str, at: Timestamp) -> (Option<&Arc<PriceEntry>>, ModelBounds) {
        let own = self.find(model, at);
        let entry = own.or_else(|| self.find(base_of(model), at));
        let of = |tokens: fn(&PriceEntry) -> Option<Quantity>| {
            entry
                .and_then(|entry| tokens(entry))
                .unwrap_or(UNKNOWN_TOKENS)
        };
        let bounds = ModelBounds {
            context_tokens: of(|entry| entry.context_tokens),
            max_output_tokens: of(|entry| entry.max_output_tokens),
        };
        (own, bounds)
    }

    /// The names and patterns of all entries.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.models.iter().map(|one| one.pattern.as_str())
    }

    /// All entries, by pattern and day.
    #[must_use]
    pub fn entries(&self) -> Vec<(&PriceEntry, PriceSource)> {
        let all = self.models.iter().flat_map(|one| &one.entries);
        let mut all: Vec<_> = all
            .map(|(entry, source)| (entry.as_ref(), *source))
            .collect();
        all.sort_by(|(a, _), (b, _)| {
            (&a.model, a.effective_from).cmp(&(&b.model, b.effective_from))
        });
        all
    }
}

/// The base model of a fine-tuned one, which is named `ft:BASE:ORGANISATION::ID`; else the model itself.
#[must_use]
pub fn base_of(model: &str) -> &str {
    model
        .strip_prefix("ft:")
        .and_then(|rest| rest.split(':').next())
        .unwrap_or(model)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rates(input: i64, cached: Option<i64>, write: Option<i64>, output: i64) -> Rates {
        Rates {
            input: Quantity::new(input),
            cached_input: cached.map(Quantity::new),
            cache_write: write.map(Quantity::new),
            output: Quantity::new(output),
            long_prompt: None,
        }
    }

    fn entry(model: &str, from: &str, input: i64) -> PriceEntry {
        let from = from.parse().unwrap();
        let rates = rates(input, None, None, 0);
        PriceEntry::new(model.to_owned(), from, Some(rates), None, None)
    }

    fn used(input: i64, cached: i64, write: i64, output: i64) -> TokenUsage {
        TokenUsage {
            input_tokens: Quantity::new(input),
            cached_input_tokens: Quantity::new(cached),
            cache_write_input_tokens: Quantity::new(write),
            output_tokens: Quantity::new(output),
            reasoning_output_tokens: Quantity::ZERO,
        }
    }

    #[test]
    fn each_kind_of_token_has_its_rate_and_the_sum_is_rounded_up_once() {
        let gpt = rates(1_250_000, Some(125_000), None, 10_000_000);
        for (tokens, micros) in [
            (used(0, 0, 0, 0), 0),
            (used(1, 0, 0, 0), 2),           // 1.25
            (used(12, 0, 0, 5), 65),         // 15 + 50
            (used(1_000, 800, 0, 0), 350),   // 250 + 100
            (used(1_000, 9_999, 0, 0), 125), // no more can be cached than was sent
            (used(1_000_000, 0, 0, 1_000_000), 11_250_000),
        ] {
            assert_eq!(gpt.cost(&tokens).get(), micros, "{tokens:?}");
        }
        let claude = rates(3_000_000, Some(300_000), Some(3_750_000), 15_000_000);
        let tokens = used(1_000, 500, 300, 10); // 600 + 150 + 1125 + 150
        assert_eq!(claude.cost(&tokens).get(), 2_025);
        assert_eq!(
            Rates::cost(&gpt, &used(i64::MAX, 0, 0, i64::MAX)),
            Quantity::MAX
        );
    }

    #[test]
    fn the_most_specific_pattern_counts_and_of_its_entries_the_latest_that_has_begun() {
        let list = PriceList::new(
            vec![
                entry("*", "2020-01-01T00:00:00Z", 1),
                entry("gpt-5*", "2025-01-01T00:00:00Z", 2),
                entry("gpt-5*-chat*", "2025-01-01T00:00:00Z", 3),
                entry("gpt-5.1*", "2025-06-01T00:00:00Z", 4),
                entry("gpt-5.1*", "2026-01-01T00:00:00Z", 5),
                entry("gpt-5.1", "2026-02-01T00:00:00Z", 6),
            ],
            vec![],
        );
        let at = |model: &str, at: &str| {
            let at = at.parse().unwrap();
            list.find(model, at)
                .map(|entry| entry.rates.unwrap().input.get())
        };
        assert_eq!(at("llama", "2026-06-01T00:00:00Z"), Some(1));
        assert_eq!(at("gpt-5-mini", "2026-06-01T00:00:00Z"), Some(2));
        assert_eq!(at("gpt-5-chat-latest", "2026-06-01T00:00:00Z"), Some(3));
        assert_eq!(at("gpt-5.1-mini", "2026-06-01T00:00:00Z"), Some(5));
        assert_eq!(at("gpt-5.1", "2026-06-01T00:00:00Z"), Some(6));
        assert_eq!(at("gpt-5.1", "2026-01-31T23:59:59Z"), Some(5), "half-open");
        assert_eq!(at("gpt-5.1", "2026-01-01T00:00:00Z"), Some(5));
        assert_eq!(at("gpt-5.1", "2025-12-31T23:59:59Z"), Some(4));
        assert_eq!(
            at("gpt-5.1", "2025-03-01T00:00:00Z"),
            Some(2),
            "the family's"
        );
        assert_eq!(at("gpt-5.1", "2019-01-01T00:00:00Z"), None);
    }

    #[test]
    fn a_file_adds_to_the_embedded_list_and_replaces_a_pattern_from_its_own_first_day_on() {
        let embedded = || {
            vec![
                entry("a", "2025-01-01T00:00:00Z", 1),
                entry("a", "2026-06-01T00:00:00Z", 2),
                entry("b", "2025-01-01T00:00:00Z", 3),
            ]
        };
        let file = vec![
            entry("a", "2026-01-01T00:00:00Z", 10),
            entry("c", "2025-01-01T00:00:00Z", 30),
        ];
        let list = PriceList::new(embedded(), file);
        let at = |model: &str, at: &str| {
            let at = at.parse().unwrap();
            list.find(model, at)
                .map(|entry| entry.rates.unwrap().input.get())
        };
        assert_eq!(at("a", "2025-05-01T00:00:00Z"), Some(1));
        assert_eq!(at("a", "2026-05-01T00:00:00Z"), Some(10));
        assert_eq!(
            at("a", "2026-07-01T00:00:00Z"),
            Some(10),
            "not the embedded one"
        );
        assert_eq!(at("b", "2026-07-01T00:00:00Z"), Some(3));
        assert_eq!(at("c", "2026-07-01T00:00:00Z"), Some(30));
        let sources: Vec<_> = list.entries().iter().map(|(_, source)| *source).collect();
        assert_eq!(
            sources
                .iter()
                .filter(|it| **it == PriceSource::File)
                .count(),
            2
        );
        assert_eq!(sources.len(), 4);
    }

    #[test]
    fn a_prompt_above_the_threshold_makes_the_whole_run_dearer() {
        let gemini = Rates {
            long_prompt: Some(LongPrompt {
                above_input_tokens: Quantity::new(200_000),
                input: Quantity::new(2_500_000),
                cached_input: Some(Quantity::new(250_000)),
                cache_write: None,
                output: Quantity::new(15_000_000),
            }),
            ..rates(1_250_000, Some(125_000), None, 10_000_000)
        };
        for (tokens, micros) in [
            (used(200_000, 0, 0, 1_000), 260_000),
            (used(200_001, 0, 0, 1_000), 515_003), // 500,002.5 + 15,000
            (used(200_001, 200_001, 0, 0), 50_001), // 50,000.25
        ] {
            assert_eq!(gemini.cost(&tokens).get(), micros, "{tokens:?}");
        }
        let [short, long, output] = [200_000, 200_001, 1_000].map(Quantity::new);
        assert_eq!(gemini.at_most(short, output).get(), 260_000);
        assert_eq!(gemini.at_most(long, output).get(), 515_003);
        // Between what the two cost there is nothing to be had.
        let between = Quantity::new(400_000);
        assert_eq!(gemini.input_within(between, output), Some(short));
        assert_eq!(gemini.output_within(between, long), None);
        assert_eq!(
            gemini.output_within(between, short),
            Some(Quantity::new(15_000))
        );
    }

    #[test]
    fn an_entry_keeps_its_id_in_later_versions() {
        let said = rates(1_250_000, Some(125_000), None, 10_000_000);
        let from = "2025-11-13T00:00:00Z".parse().unwrap();
        let bounds = [400_000, 128_000].map(|it| Some(Quantity::new(it)));
        let one = |rates| {
            PriceEntry::new(
                "gpt-5.1*".to_owned(),
                from,
                Some(rates),
                bounds[0],
                bounds[1],
            )
        };
        assert_eq!(&*one(said).id, "gpt-5.1*@2025-11-13T00:00:00Z#d2a3f4f0");
        let dearer = Rates {
            long_prompt: Some(LongPrompt {
                above_input_tokens: Quantity::new(200_000),
                input: said.input,
                cached_input: None,
                cache_write: None,
                output: said.output,
            }),
            ..said
        };
        assert_ne!(one(dearer).id, one(said).id);
    }

    #[test]
    fn an_entry_that_was_changed_has_another_id() {
        let one = entry("gpt-5.1*", "2025-11-13T00:00:00Z", 1);
        assert_eq!(one.id, entry("gpt-5.1*", "2025-11-13T00:00:00Z", 1).id);
        assert_ne!(one.id, entry("gpt-5.1*", "2025-11-13T00:00:00Z", 2).id);
        assert!(
            one.id.starts_with("gpt-5.1*@2025-11-13T00:00:00Z#"),
            "{}",
            one.id
        );
    }

    fn tokens() -> impl Strategy<Value = TokenUsage> {
        let up_to = 0..3_000_000_i64;
        (up_to.clone(), up_to.clone(), up_to.clone(), up_to).prop_map(
            |(plain, cached, write, output)| used(plain + cached + write, cached, write, output),
        )
    }

    fn any_rates() -> impl Strategy<Value = Rates> {
        let rate = || 0..200_000_000_i64;
        (
            rate(),
            prop::option::of(rate()),
            prop::option::of(rate()),
            rate(),
        )
            .prop_map(|(input, cached, write, output)| rates(input, cached, write, output))
    }

    /// With rates for long prompts or without; these may be cheaper, too.
    fn any_tiers() -> impl Strategy<Value = Rates> {
        let long = (1..3_000_000_i64, any_rates()).prop_map(|(above, rates)| LongPrompt {
            above_input_tokens: Quantity::new(above),
            input: rates.input,
            cached_input: rates.cached_input,
            cache_write: rates.cache_write,
            output: rates.output,
        });
        (any_rates(), prop::option::of(long)).prop_map(|(rates, long_prompt)| Rates {
            long_prompt,
            ..rates
        })
    }

    proptest! {
        #[test]
        fn a_name_that_matches_begins_as_its_pattern_does(
            patterns in prop::collection::vec("[ab]{0,10}[*]?[ab]{0,2}", 1..8),
            name in "[ab]{0,12}",
        ) {
            let entries = patterns.iter().map(|pattern| entry(pattern, "2026-01-01T00:00:00Z", 1));
            let list = PriceList::new(entries.collect(), Vec::new());
            let by_all = list.models.iter().find(|one| one.matches(&name));
            let by_all = by_all.map(|one| one.pattern.as_str());
            let at = Timestamp::from_seconds(2_000_000_000);
            let found = list.find(&name, at).map(|entry| entry.model.as_str());
            prop_assert_eq!(found, by_all);
        }
    }

    proptest! {
        #[test]
        fn splitting_a_run_costs_at_most_one_rounding_more(
            rates in any_rates(), one in tokens(), other in tokens(),
        ) {
            let both = TokenUsage {
                input_tokens: one.input_tokens.plus(other.input_tokens),
                output_tokens: one.output_tokens.plus(other.output_tokens),
                cached_input_tokens: one.cached_input_tokens.plus(other.cached_input_tokens),
                cache_write_input_tokens:
                    one.cache_write_input_tokens.plus(other.cache_write_input_tokens),
                reasoning_output_tokens: Quantity::ZERO,
            };
            let split = rates.cost(&one).plus(rates.cost(&other));
            let more = split.minus(rates.cost(&both));
            prop_assert!(more == Quantity::ZERO || more == Quantity::ONE, "{more}");
        }

        #[test]
        fn a_run_costs_what_the_rates_for_its_prompt_say_and_nothing_else(
            rates in any_tiers(), used in tokens(),
        ) {
            let alone = match rates.long_prompt {
                Some(long) if used.input_tokens > long.above_input_tokens => Rates {
                    input: long.input,
                    cached_input: long.cached_input,
                    cache_write: long.cache_write,
                    output: long.output,
                    long_prompt: None,
                },
                _ => Rates { long_prompt: None, ..rates },
            };
            prop_assert_eq!(rates.cost(&used), alone.cost(&used));
        }

        #[test]
        fn no_run_costs_more_than_its_bound(rates in any_tiers(), used in tokens(), spare in 0..1_000_i64) {
            let spare = Quantity::new(spare);
            let bound = rates.at_most(used.input_tokens.plus(spare), used.output_tokens.plus(spare));
            prop_assert!(rates.cost(&used) <= bound);
        }

        #[test]
        fn what_fits_into_a_cost_costs_no_more_and_one_token_more_would_not_fit(
            rates in any_tiers(), cost in 0..20_000_000_i64, given in 0..500_000_i64,
        ) {
            let (cost, given) = (Quantity::new(cost), Quantity::new(given));
            match rates.output_within(cost, given) {
                None => prop_assert!(rates.at_most(given, Quantity::ZERO) > cost),
                Some(Quantity::MAX) => {}
                Some(output) => {
                    prop_assert!(rates.at_most(given, output) <= cost);
                    prop_assert!(rates.at_most(given, output.plus(Quantity::ONE)) > cost);
                }
            }
            match rates.input_within(cost, given) {
                None => prop_assert!(rates.at_most(Quantity::ZERO, given) > cost),
                Some(Quantity::MAX) => {}
                Some(input) => {
                    prop_assert!(rates.at_most(input, given) <= cost);
                    prop_assert!(rates.at_most(input.plus(Quantity::ONE), given) > cost);
                }
            }
        }
    }
}
