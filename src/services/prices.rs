//! The price list in force: the embedded entries, and over them those of the operator's price file.

use std::{
    fmt,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    domain::{
        price::{LongPrompt, PriceEntry, PriceList, PriceSource, Rates},
        quantity::Quantity,
        time::Timestamp,
    },
    draft::Draft,
    json,
};

/// Where the operator's entries are, within the data dir, unless a setting says else.
pub const PRICE_FILE: &str = "prices.json";

/// The longest name of a model (interface.md §3).
const LONGEST_MODEL: usize = 128;

static EMBEDDED: LazyLock<Vec<PriceEntry>> = LazyLock::new(|| {
    read(include_str!("../../assets/presets/prices.json")).expect("a test reads the embedded list")
});

/// The prices that requests are held and charged by.
pub struct Prices {
    list: ArcSwap<PriceList>,
    file: PathBuf,
    /// Held while the file is changed.
    importing: Mutex<()>,
}

/// Why a price file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// All that is wrong with it, each by its JSON path.
    #[error("{}", lines(.0))]
    Faults(Vec<Fault>),
    #[error("{path} can't be {doing}: {error}")]
    File {
        path: String,
        doing: &'static str,
        error: std::io::Error,
    },
}

/// Something in a price file that can't be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Such as `[3].input`; empty for the whole.
    pub path: String,
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "the price file {}", self.problem),
            path => write!(f, "{path} {}", self.problem),
        }
    }
}

fn lines(faults: &[Fault]) -> String {
    let faults: Vec<String> = faults.iter().map(Fault::to_string).collect();
    faults.join("; ")
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Imported {
    pub path: String,
    pub added: usize,
    /// Of the same model and day as one that was there, and different.
    pub replaced: usize,
    pub unchanged: usize,
}

impl Prices {
    /// Reads the list; `setting` is the path of a price file that must be there, else that of the data dir counts if
    /// it is there.
    ///
    /// # Errors
    /// [`PriceError`] if the file can't be read or taken.
    pub fn open(setting: Option<&Path>, data_dir: &Path) -> Result<Arc<Self>, PriceError> {
        let file = setting.map_or_else(|| data_dir.join(PRICE_FILE), Path::to_owned);
        let entries = match std::fs::read_to_string(&file) {
            Ok(text) => read(&text).map_err(PriceError::Faults)?,
            Err(error) if setting.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                vec![]
            }
            Err(error) => return Err(unusable(&file, "read", error)),
        };
        Ok(Arc::new(Self {
            list: ArcSwap::from_pointee(PriceList::new(EMBEDDED.clone(), entries)),
            file,
            importing: Mutex::new(()),
        }))
    }

    /// The list as it is now.
    #[must_use]
    pub fn list(&self) -> Arc<PriceList> {
        self.list.load_full()
    }

    /// The entry for `model` at `at`.
    #[must_use]
    pub fn find(&self, model: &str, at: Timestamp) -> Option<Arc<PriceEntry>> {
        self.list.load().find(model, at).cloned()
    }

    /// Puts the entries of `text` into the price file, in place of those of the same model and day, and in force.
    ///
    /// # Errors
    /// [`PriceError`]; nothing is changed.
    pub fn import(&self, text: &str) -> Result<Imported, PriceError> {
        let new = read(text).map_err(PriceError::Faults)?;
        let _one_at_a_time = self
            .importing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut entries: Vec<PriceEntry> = self
            .list()
            .entries()
            .into_iter()
            .filter(|(_, source)| *source == PriceSource::File)
            .map(|(entry, _)| entry.clone())
            .collect();
        let mut imported = Imported {
            path: self.file.display().to_string(),
            added: 0,
            replaced: 0,
            unchanged: 0,
        };
        for entry in new {
            let same = |there: &&mut PriceEntry| {
                there.model == entry.model && there.effective_from == entry.effective_from
            };
            match entries.iter_mut().find(same) {
                Some(there) if *there == entry => imported.unchanged += 1,
                Some(there) => {
                    *there = entry;
                    imported.replaced += 1;
                }
                None => {
                    entries.push(entry);
                    imported.added += 1;
                }
            }
        }
        let list = PriceList::new(EMBEDDED.clone(), entries);
        self.write(&list)
            .map_err(|error| unusable(&self.file, "written", error))?;
        self.list.store(Arc::new(list));
        Ok(imported)
    }

    /// Writes the file's entries, whole or not at all.
    fn write(&self, list: &PriceList) -> std::io::Result<()> {
        let own: Vec<PriceObject> = list
            .entries()
            .into_iter()
            .filter(|(_, source)| *source == PriceSource::File)
            .map(|(entry, _)| PriceObject::of(entry, None))
            .collect();
        let mut file = Draft::of(&self.file, 0o600)?;
        serde_json::to_writer_pretty(&mut file, &own)?;
        file.write_all(b"\n")?;
        file.take_its_place()
    }
}

fn unusable(path: &Path, doing: &'static str, error: std::io::Error) -> PriceError {
    PriceError::File {
        path: path.display().to_string(),
        doing,
        error,
    }
}

/// An entry as files and programs have it (interface.md §11); rates are micro-dollars per million tokens.
#[derive(Clone, Debug, Serialize)]
pub struct PriceObject {
    pub model: String,
    pub effective_from: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_prompt: Option<LongPromptObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_id: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none", rename = "list")]
    pub source: Option<PriceSource>,
}

/// The rates of a run with more input than `above_input_tokens`.
#[derive(Clone, Debug, Serialize)]
pub struct LongPromptObject {
    pub above_input_tokens: Quantity,
    pub input: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<Quantity>,
    pub output: Quantity,
}

impl From<LongPrompt> for LongPromptObject {
    fn from(long: LongPrompt) -> Self {
        Self {
            above_input_tokens: long.above_input_tokens,
            input: long.input,
            cached_input: long.cached_input,
            cache_write: long.cache_write,
            output: long.output,
        }
    }
}

impl PriceObject {
    /// With the id and the list it is from if `source` is given; without, as it stands in a file.
    #[must_use]
    pub fn of(entry: &PriceEntry, source: Option<PriceSource>) -> Self {
        let rates = entry.rates;
        Self {
            model: entry.model.clone(),
            effective_from: entry.effective_from,
            input: rates.map(|rates| rates.input),
            cached_input: rates.and_then(|rates| rates.cached_input),
            cache_write: rates.and_then(|rates| rates.cache_write),
            output: rates.map(|rates| rates.output),
            long_prompt: rates.and_then(|rates| rates.long_prompt).map(Into::into),
            context_tokens: entry.context_tokens,
            max_output_tokens: entry.max_output_tokens,
            price_id: source.map(|_| Arc::clone(&entry.id)),
            source,
        }
    }
}

/// Reads a price file: a list of entries.
///
/// # Errors
/// All that is wrong with it.
pub fn read(text: &str) -> Result<Vec<PriceEntry>, Vec<Fault>> {
    let mut reader = Reader::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match serde_json::from_str::<Vec<&RawValue>>(text) {
        Ok(list) => {
            for (index, value) in list.into_iter().enumerate() {
                reader.entry(&format!("[{index}]"), value);
            }
        }
        Err(error) => reader.fault("", format!("is not a JSON list of prices: {error}")),
    }
    if reader.faults.is_empty() {
        Ok(reader.entries)
    } else {
        Err(reader.faults)
    }
}

const RATE: &str = "a whole number of micro-dollars per million tokens, from 0 to 2^53 - 1";
const TOKENS: &str = "a whole number of tokens from 1 to 2^53 - 1";

#[derive(Default)]
struct Reader {
    entries: Vec<PriceEntry>,
    faults: Vec<Fault>,
}

impl Reader {
    fn fault(&mut self, path: &str, problem: impl Into<String>) {
        self.faults.push(Fault {
            path: path.to_owned(),
            problem: problem.into(),
        });
    }

    fn entry(&mut self, path: &str, value: &RawValue) {
        let members = match json::members(value.get()) {
            Ok(members) => members,
            Err(error) => {
                return self.fault(
                    path,
                    format!("is not an object with each key once: {error}"),
                );
            }
        };
        let known = self.faults.len();
        let (mut model, mut from, mut long_prompt) = (None, None, None);
        let [mut input, mut cached, mut write, mut output] = [None; 4];
        let [mut context, mut most] = [None; 2];
        for (name, value) in members {
            let at = format!("{path}.{name}");
            match name.as_ref() {
                "model" => model = self.model(&at, value),
                "effective_from" => from = self.time(&at, value),
                "input" => input = self.number(&at, value, 0, RATE),
                "cached_input" => cached = self.number(&at, value, 0, RATE),
                "cache_write" => write = self.number(&at, value, 0, RATE),
                "output" => output = self.number(&at, value, 0, RATE),
                "long_prompt" => long_prompt = self.long_prompt(&at, value),
                "context_tokens" => context = self.number(&at, value, 1, TOKENS),
                "max_output_tokens" => most = self.number(&at, value, 1, TOKENS),
                "source" | "as_of" => {} // for people
                _ => self.fault(
                    &at,
                    "is not known; an entry has model, effective_from, input, cached_input, cache_write, output, \
                     long_prompt, context_tokens, max_output_tokens, source, as_of",
                ),
            }
        }
        if self.faults.len() > known {
            return;
        }
        let (Some(model), Some(from)) = (model, from) else {
            return self.fault(path, "needs model and effective_from");
        };
        let rates = match (input, output) {
            (Some(input), Some(output)) => Some(Rates {
                input,
                cached_input: cached,
                cache_write: write,
                output,
                long_prompt,
            }),
            (None, None) if cached.is_none() && write.is_none() && long_prompt.is_none() => None,
            _ => return self.fault(path, "has a price in part: it needs input and output"),
        };
        let is_same = |there: &PriceEntry| there.model == model && there.effective_from == from;
        if self.entries.iter().any(is_same) {
            return self.fault(path, format!("is {model} from {from} again; write it once"));
        }
        self.entries
            .push(PriceEntry::new(model, from, rates, context, most));
    }

    fn long_prompt(&mut self, path: &str, value: &RawValue) -> Option<LongPrompt> {
        if value.get() == "null" {
            return None;
        }
        let members = match json::members(value.get()) {
            Ok(members) => members,
            Err(error) => {
                self.fault(
                    path,
                    format!("is not an object with each key once: {error}"),
                );
                return None;
            }
        };
        let known = self.faults.len();
        let [mut above, mut input, mut cached, mut write, mut output] = [None; 5];
        for (name, value) in members {
            let at = format!("{path}.{name}");
            match name.as_ref() {
                "above_input_tokens" => above = self.number(&at, value, 1, TOKENS),
                "input" => input = self.number(&at, value, 0, RATE),
                "cached_input" => cached = self.number(&at, value, 0, RATE),
                "cache_write" => write = self.number(&at, value, 0, RATE),
                "output" => output = self.number(&at, value, 0, RATE),
                _ => self.fault(
                    &at,
                    "is not known; a price for long prompts has above_input_tokens, input, cached_input, cache_write, \
                     output",
                ),
            }
        }
        if self.faults.len() > known {
            return None;
        }
        let (Some(above_input_tokens), Some(input), Some(output)) = (above, input, output) else {
            self.fault(path, "needs above_input_tokens, input and output");
            return None;
        };
        Some(LongPrompt {
            above_input_tokens,
            input,
            cached_input: cached,
            cache_write: write,
            output,
        })
    }

    fn model(&mut self, path: &str, value: &RawValue) -> Option<String> {
        let text: Option<String> = serde_json::from_str(value.get()).ok();
        let is_fine = |text: &String| {
            (1..=LONGEST_MODEL).contains(&text.len()) && !text.chars().any(char::is_control)
        };
        let text = text.filter(is_fine);
        if text.is_none() {
            let shown = json::shown(value);
            self.fault(
                path,
                format!("is {shown}; write a model's name or a pattern such as gpt-5.1*"),
            );
        }
        text
    }

    /// A time, or a day: its start.
    fn time(&mut self, path: &str, value: &RawValue) -> Option<Timestamp> {
        let text: Option<String> = serde_json::from_str(value.get()).ok();
        let time = text.and_then(|text| {
            let day = || format!("{text}T00:00:00Z").parse().ok();
            text.parse().ok().or_else(day)
        });
        if time.is_none() {
            let shown = json::shown(value);
            self.fault(
                path,
                format!("is {shown}; write a time in RFC 3339, such as 2026-11-01T00:00:00Z"),
            );
        }
        time
    }

    fn number(
        &mut self,
        path: &str,
        value: &RawValue,
        least: i64,
        accepted: &str,
    ) -> Option<Quantity> {
        if value.get() == "null" {
            return None;
        }
        let number: Option<Quantity> = serde_json::from_str(value.get()).ok();
        let number = number.filter(|number| number.get() >= least);
        if number.is_none() {
            let shown = json::shown(value);
            self.fault(path, format!("is {shown}; write {accepted}"));
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-29T00:00:00Z";

    fn price(list: &PriceList, model: &str) -> Option<(i64, i64)> {
        let rates = list.find(model, NOW.parse().unwrap())?.rates?;
        Some((rates.input.get(), rates.output.get()))
    }

    #[test]
    fn the_embedded_list_prices_the_models_of_today_and_bounds_them() {
        let list = PriceList::new(EMBEDDED.clone(), vec![]);
        for (model, input, output) in [
            ("gpt-5.1", 1_250_000, 10_000_000),
            ("gpt-5.1-2025-11-13", 1_250_000, 10_000_000),
            ("gpt-5", 1_250_000, 10_000_000),
            ("gpt-5-mini-2025-08-07", 250_000, 2_000_000),
            ("gpt-5.4-mini", 750_000, 4_500_000),
            ("gpt-4o-mini", 150_000, 600_000),
            ("gpt-4o", 2_500_000, 10_000_000),
            ("ft:gpt-4o-mini-2024-07-18:acme::id", 300_000, 1_200_000),
            ("claude-sonnet-4-5-20250929", 3_000_000, 15_000_000),
            ("gemini-2.5-flash", 300_000, 2_500_000),
            ("gemini-2.5-flash-lite", 100_000, 400_000),
            ("mistral-small-latest", 100_000, 300_000),
            ("deepseek-chat", 140_000, 280_000),
            ("llama-3.3-70b-versatile", 590_000, 790_000),
        ] {
            assert_eq!(price(&list, model), Some((input, output)), "{model}");
        }
        for model in ["gpt-oss-120b", "gpt-5-something-new", "my-own", ""] {
            assert_eq!(price(&list, model), None, "{model}");
        }
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
            ("ft:gpt-4.1-2025-04-14:acme::id", 1_047_576, 32_768),
            ("gpt-4", 8_192, 8_192),
            ("gpt-4-turbo", 128_000, 4_096),
            ("gpt-oss-120b", 131_072, 131_072),
            ("o3-mini", 200_000, 100_000),
            ("o1-mini", 128_000, 65_536),
            ("llama-3.1-8b", 128_000, 128_000),
            ("", 128_000, 128_000),
        ] {
            let bounds = list.bounds(model, NOW.parse().unwrap());
            assert_eq!(bounds.context_tokens.get(), context, "{model}");
            assert_eq!(bounds.max_output_tokens.get(), output, "{model}");
        }
    }

    #[test]
    fn all_that_is_wrong_with_a_file_is_said_at_once_by_its_place() {
        let text = r#"[
            {"model": "a", "effective_from": "2026-01-01", "input": 1, "output": 2, "source": "x", "as_of": "y"},
            {"model": "a", "effective_from": "2026-01-01T00:00:00Z", "input": 1, "output": 2},
            {"model": "b", "effective_from": "soon", "input": -1, "output": 1.5, "price": 3},
            {"model": "", "effective_from": "2026-01-01"},
            {"model": "c", "input": 1, "output": 1},
            {"model": "d", "effective_from": "2026-01-01", "input": 1},
            {"model": "e", "effective_from": "2026-01-01", "max_output_tokens": 0},
            7,
            {"model": "f", "effective_from": "2026-01-01", "input": 1, "output": 1, "long_prompt": {"above_input_tokens": 0, "above": 1}},
            {"model": "g", "effective_from": "2026-01-01", "input": 1, "output": 1, "long_prompt": {"above_input_tokens": 9, "input": 1}},
            {"model": "h", "effective_from": "2026-01-01", "long_prompt": {"above_input_tokens": 9, "input": 1, "output": 1}},
            {"model": "i", "effective_from": "2026-01-01", "input": 1, "output": 1, "long_prompt": 7}
        ]"#;
        let faults = read(text).unwrap_err();
        let paths: Vec<&str> = faults.iter().map(|fault| fault.path.as_str()).collect();
        let expected = [
            "[1]",
            "[2].effective_from",
            "[2].input",
            "[2].output",
            "[2].price",
            "[3].model",
            "[4]",
            "[5]",
            "[6].max_output_tokens",
            "[7]",
            "[8].long_prompt.above_input_tokens",
            "[8].long_prompt.above",
            "[9].long_prompt",
            "[10]",
            "[11].long_prompt",
        ];
        assert_eq!(paths, expected, "{faults:#?}");
        assert!(read("{}").is_err());
    }

    #[test]
    fn an_import_is_in_force_at_once_and_after_a_restart_and_a_faulty_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let prices = Prices::open(None, dir.path()).unwrap();
        assert_eq!(price(&prices.list(), "my-own"), None);
        let text = r#"[{"model": "my-*", "effective_from": "2026-01-01", "input": 7, "output": 8},
                       {"model": "gpt-5.1*", "effective_from": "2026-01-01", "input": 9, "output": 9}]"#;
        let imported = prices.import(text).unwrap();
        assert_eq!(
            (imported.added, imported.replaced, imported.unchanged),
            (2, 0, 0)
        );
        let text = text.replace("\"input\": 9", "\"input\": 10");
        let imported = prices.import(&text).unwrap();
        assert_eq!(
            (imported.added, imported.replaced, imported.unchanged),
            (0, 1, 1)
        );
        assert!(prices.import(r#"[{"model": "my-*"}]"#).is_err());
        let again = Prices::open(None, dir.path()).unwrap();
        for prices in [&prices, &again] {
            assert_eq!(price(&prices.list(), "my-own"), Some((7, 8)));
            assert_eq!(price(&prices.list(), "gpt-5.1"), Some((10, 9)));
            assert_eq!(
                price(&prices.list(), "gpt-4o"),
                Some((2_500_000, 10_000_000))
            );
        }
    }

    #[test]
    fn a_price_for_long_prompts_is_read_and_written_as_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let prices = Prices::open(None, dir.path()).unwrap();
        let text = r#"[{"model": "my-*", "effective_from": "2026-01-01", "input": 1, "output": 8, "long_prompt":
            {"above_input_tokens": 200000, "input": 2, "cached_input": null, "cache_write": 3, "output": 9}}]"#;
        prices.import(text).unwrap();
        let long = LongPrompt {
            above_input_tokens: Quantity::new(200_000),
            input: Quantity::new(2),
            cached_input: None,
            cache_write: Some(Quantity::new(3)),
            output: Quantity::new(9),
        };
        let again = Prices::open(None, dir.path()).unwrap();
        for prices in [prices, again] {
            let entry = prices.find("my-own", NOW.parse().unwrap()).unwrap();
            assert_eq!(entry.rates.unwrap().long_prompt, Some(long));
        }
    }

    #[test]
    fn surcharges_for_long_prompts_are_in_the_embedded_list() {
        let list = PriceList::new(EMBEDDED.clone(), vec![]);
        for (model, above, input, output) in [
            ("gemini-2.5-pro", 200_000, 2_500_000, 15_000_000),
            ("gemini-3-pro-preview", 200_000, 4_000_000, 18_000_000),
            ("gpt-5.4-2026-03-05", 272_000, 5_000_000, 22_500_000),
            ("gpt-5.5", 272_000, 10_000_000, 45_000_000),
            ("claude-sonnet-4-5", 200_000, 6_000_000, 22_500_000),
        ] {
            let rates = list.find(model, NOW.parse().unwrap()).unwrap().rates;
            let long = rates.unwrap().long_prompt.unwrap();
            let found = [long.above_input_tokens, long.input, long.output].map(Quantity::get);
            assert_eq!(found, [above, input, output], "{model}");
        }
        for (entry, _) in list.entries() {
            let Some(rates) = entry.rates else { continue };
            let Some(long) = rates.long_prompt else {
                continue;
            };
            let is_dearer = long.input > rates.input && long.output > rates.output;
            assert!(
                is_dearer && long.cached_input >= rates.cached_input,
                "{}",
                entry.id
            );
            let context = entry.context_tokens.unwrap();
            assert!(long.above_input_tokens < context, "{}", entry.id);
        }
    }

    #[test]
    fn a_price_file_that_a_setting_names_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.json");
        assert!(Prices::open(Some(&path), dir.path()).is_err());
        std::fs::write(&path, "[]").unwrap();
        assert!(Prices::open(Some(&path), dir.path()).is_ok());
    }
}
