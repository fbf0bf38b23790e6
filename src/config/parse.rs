//! From a setting's text to its value; what each accepts is said in words in `settings.rs`.

use std::{ops::RangeInclusive, path::PathBuf, str::FromStr};

use secrecy::SecretString;

use super::{
    CacheBackend, ChargeOnAbort, Database, Durability, FailMode, Fault, LogFormat, Mode, OpenInput,
    ProviderKind, StreamUsage, UnpricedModel,
};
use crate::{domain::limit::SoftLimitMode, store::postgres::PostgresUrl};

type Parsed<T> = Result<T, Fault>;

const NO_DETAIL: Fault = Fault(None);

fn detail(text: &str) -> Fault {
    Fault(Some(text.to_owned()))
}

pub(super) fn plain<T: FromStr>(text: &str) -> Result<T, T::Err> {
    text.parse()
}

macro_rules! choices {
    ($($name:ident -> $type:ty { $($word:literal => $value:expr),+ $(,)? })*) => {$(
        pub(super) fn $name(text: &str) -> Parsed<$type> {
            match text.to_ascii_lowercase().as_str() {
                $($word => Ok($value),)+
                _ => Err(NO_DETAIL),
            }
        }
    )*};
}

choices! {
    mode -> Mode { "enforce" => Mode::Enforce, "observe" => Mode::Observe }
    soft_limit_mode -> SoftLimitMode { "warn" => SoftLimitMode::Warn, "block" => SoftLimitMode::Block }
    fail_mode -> FailMode { "open" => FailMode::Open, "closed" => FailMode::Closed }
    open_input -> OpenInput { "reserve" => OpenInput::Reserve, "refuse" => OpenInput::Refuse }
    charge_on_abort -> ChargeOnAbort {
        "produced" => ChargeOnAbort::Produced, "input" => ChargeOnAbort::Input, "none" => ChargeOnAbort::Nothing,
    }
    unpriced_model -> UnpricedModel { "count" => UnpricedModel::Count, "refuse" => UnpricedModel::Refuse }
    durability -> Durability { "full" => Durability::Full, "process" => Durability::Process }
    provider -> ProviderKind { "openai" => ProviderKind::OpenAi, "simulated" => ProviderKind::Simulated }
    stream_usage -> StreamUsage { "request" => StreamUsage::Request, "omit" => StreamUsage::Omit }
    log_format -> LogFormat { "json" => LogFormat::Json, "pretty" => LogFormat::Pretty }
    cache_backend -> CacheBackend {
        "redb" => CacheBackend::Redb, "memory" => CacheBackend::Memory, "redis" => CacheBackend::Redis,
    }
}

pub(super) fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Some(true),
        "false" | "0" | "no" => Some(false),
        _ => None,
    }
}

pub(super) fn whole<T: TryFrom<u64>>(text: &str, range: RangeInclusive<u64>) -> Parsed<T> {
    // `parse` would take a leading '+'.
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text
        .parse()
        .ok()
        .filter(|number| is_digits && range.contains(number));
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or(NO_DETAIL)
}

pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    Ok(PathBuf::from(text))
}

pub(super) fn database(text: &str) -> Parsed<Database> {
    if let Some(path) = text.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return match path {
            "" => Err(detail("it names no file")),
            ":memory:" => Err(detail("usage must be kept in a file")),
            path => Ok(Database::Sqlite(PathBuf::from(path))),
        };
    }
    if !PostgresUrl::is_one(text) {
        return Err(NO_DETAIL);
    }
    let url = text.parse().map_err(|why: String| detail(&why))?;
    Ok(Database::Postgres(url))
}

pub(super) fn redis_urls(text: &str) -> Parsed<Vec<SecretString>> {
    let urls = text
        .split(',')
        .map(str::trim)
        .map(|one| match reqwest::Url::parse(one) {
            // A password that begins as a port does: what is taken for the host would be its user.
            Ok(url) if format!("{}{:?}", url.path(), url.fragment()).contains('@') => Err(detail(
                "a '/', '?', '#' or ',' in a password is written %2F, %3F, %23 or %2C",
            )),
            Ok(url) if matches!(url.scheme(), "redis" | "rediss") && url.has_host() => {
                Ok(one.into())
            }
            _ => Err(NO_DETAIL),
        });
    urls.collect()
}

/// An address of the web, without the slash at its end.
pub(super) fn base_url(text: &str) -> Parsed<String> {
    let url = reqwest::Url::parse(text).map_err(|_| NO_DETAIL)?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(NO_DETAIL);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(detail("it holds a user; a key belongs in its own variable"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(detail("it has a query or a fragment"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

pub(super) fn web_addresses(text: &str) -> Parsed<Vec<String>> {
    let addresses = text
        .split(',')
        .map(str::trim)
        .map(|one| match reqwest::Url::parse(one) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
                Ok(one.to_owned())
            }
            _ => Err(NO_DETAIL),
        });
    addresses.collect()
}

pub(super) fn sink(text: &str) -> Parsed<String> {
    match text.strip_prefix("file:") {
        Some("") => Err(detail("it names no directory")),
        Some(_) => Ok(text.to_owned()),
        None => web_addresses(text).and_then(|mut all| {
            all.pop()
                .filter(|_| all.is_empty())
                .ok_or_else(|| detail("only one collector is taken"))
        }),
    }
}

pub(super) fn thresholds(text: &str) -> Parsed<Vec<u16>> {
    let percents = text
        .split(',')
        .map(|percent| whole(percent.trim(), 1..=1000));
    let mut percents: Vec<u16> = percents.collect::<Result<_, _>>()?;
    percents.sort_unstable();
    percents.dedup();
    Ok(percents)
}

pub(super) fn model(text: &str) -> Parsed<String> {
    // 128 bytes: the longest name that a request may give (interface.md §3).
    let is_name = text.len() <= 128 && !text.chars().any(char::is_control);
    is_name.then(|| text.to_owned()).ok_or(NO_DETAIL)
}

pub(super) fn log_filter(text: &str) -> Parsed<String> {
    // A word that is no level would be read as a target that nothing has, and nothing be logged.
    let is_level = |word: &str| {
        word.parse::<tracing_subscriber::filter::LevelFilter>()
            .is_ok()
    };
    let directives = text.split(',').map(str::trim);
    let mut words = directives.filter(|it| !it.is_empty() && !it.contains(['=', '[']));
    if let Some(word) = words.find(|word| !is_level(word)) {
        let levels = "off, error, warn, info, debug and trace";
        return Err(Fault(Some(format!(
            "'{word}' is no level; those are {levels}, and a target has one behind it, as in tollgate=debug"
        ))));
    }
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(Fault(Some(error.to_string()))),
    }
}

/// Something that fits an HTTP header's bearer token.
pub(super) fn secret(text: &str) -> Parsed<SecretString> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.into())
    } else {
        Err(detail(
            "it has spaces or characters that are not visible ASCII",
        ))
    }
}

pub(super) fn secrets(text: &str) -> Parsed<Vec<SecretString>> {
    let secrets = text.split(',').map(str::trim).map(|one| match one {
        "" => Err(detail("one of the secrets is empty")),
        one => secret(one),
    });
    secrets.collect()
}

/// As [`secrets`]; one that begins with `whsec_` holds its bytes in base64, as Standard Webhooks has it.
pub(super) fn signing_secrets(text: &str) -> Parsed<Vec<SecretString>> {
    let secrets = secrets(text)?;
    let is_readable = |secret: &SecretString| crate::web::signing_key(secret).is_some();
    if secrets.iter().all(is_readable) {
        Ok(secrets)
    } else {
        Err(detail("what follows whsec_ is not base64"))
    }
}

pub(super) fn admin_token(text: &str) -> Parsed<SecretString> {
    let length = text.len();
    if length < 32 {
        return Err(Fault(Some(format!("it has {length} characters"))));
    }
    secret(text)
}
