//! Configuration: rows ([`settings`]), where values come from ([`sources`]), and here the typed, valid whole.

pub(crate) mod dot_env;
mod masked;
mod parse;
pub mod reference;
pub mod settings;
pub mod sources;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::SecretString;
use serde::Serialize;

use crate::{
    domain::{calibration::Calibration, limit::SoftLimitMode, quantity::Quantity},
    store::postgres::PostgresUrl,
};
use settings::{Default, Kind, SETTINGS, Setting, setting};
use sources::{DotEnvError, Origin, Sources};

/// Where usage and catalogue are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    Sqlite(PathBuf),
    Postgres(PostgresUrl),
}

/// As people know it; what is secret in an address is left out.
impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "the database {}", path.display()),
            Self::Postgres(_) => f.write_str("the database of DATABASE_URL"),
        }
    }
}

/// Whether usage is metered and limited at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guardrails {
    On,
    Off,
}

/// Whether decisions have consequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Enforce,
    Observe,
}

/// What a request gets when no decision can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailMode {
    Open,
    Closed,
}

/// Where live totals are kept across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheBackend {
    Redb,
    Memory,
    /// Shared by replicas.
    Redis,
}

impl CacheBackend {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Redb => "redb",
            Self::Memory => "memory",
            Self::Redis => "redis",
        }
    }
}

/// Whether a stream that passes its maximum is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamCutoff {
    On,
    Off,
}

/// What is done with prompts that name content which is not in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenInput {
    Reserve,
    Refuse,
}

/// What a client that hung up pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChargeOnAbort {
    Produced,
    Input,
    Nothing,
}

/// What is done with a model that has no price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpricedModel {
    Count,
    Refuse,
}

pub use crate::{journal::Durability, provider::StreamUsage, telemetry::logs::Format as LogFormat};

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderKind {
    OpenAi,
    Simulated,
}

/// Whether usage goes to Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripeUsage {
    On,
    Off,
}

/// All settings, typed and valid each by itself; `settings.rs` says what they mean.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
    pub database: Database,
    pub guardrails: Guardrails,
    pub mode: Mode,
    pub soft_limit_mode: SoftLimitMode,
    pub fail_mode: FailMode,
    pub cache_backend: CacheBackend,
    /// Zero: always read through.
    pub cache_ttl: Duration,
    pub redis_urls: Vec<SecretString>,
    pub output_reservation: Quantity,
    pub min_output: Quantity,
    pub stream_cutoff: StreamCutoff,
    pub open_input: OpenInput,
    pub charge_on_abort: ChargeOnAbort,
    pub calibration: Calibration,
    pub unpriced_model: UnpricedModel,
    pub prices: Option<PathBuf>,
    pub durability: Durability,
    pub retention: Duration,
    /// Percentages, rising.
    pub alert_thresholds: Vec<u16>,
    pub webhook_urls: Vec<String>,
    pub webhook_secrets: Vec<SecretString>,
    pub provider: ProviderKind,
    pub openai_api_key: Option<SecretString>,
    /// Without a slash at its end.
    pub openai_base_url: String,
    pub default_model: String,
    pub stream_usage: StreamUsage,
    pub upstream_timeout: Duration,
    pub disconnect_grace: Duration,
    pub max_detached: usize,
    /// Zero: none are kept.
    pub conversation_days: u32,
    pub max_body_bytes: usize,
    pub max_in_flight: usize,
    pub admin_token: Option<SecretString>,
    pub metrics_token: Option<SecretString>,
    pub stripe_usage: StripeUsage,
    pub stripe_secret_key: Option<SecretString>,
    pub stripe_webhook_secrets: Vec<SecretString>,
    /// Without a slash at its end.
    pub stripe_api_base: String,
    pub stripe_push_interval: Duration,
    /// `file:DIR` or a collector's address.
    pub analytics_sink: Option<String>,
    pub log_format: LogFormat,
    pub log_filter: String,
    /// All of this as people are shown it, in the order of the rows; empty until [`Config::load`] is through.
    pub listing: Vec<Listed>,
}

/// One line of `tollgate config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    pub name: &'static str,
    /// Secrets cut to their end; `None` if not set.
    pub value: Option<String>,
    #[serde(serialize_with = "as_text")]
    pub source: Origin,
    pub description: &'static str,
}

fn as_text<S: serde::Serializer>(source: &Origin, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(source)
}

/// A configuration, and what is to be said about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Unknown variables that look like ours.
    pub warnings: Vec<String>,
}

/// Why a configuration can't be used; each is one line for people.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}", malformed(setting, *origin, value.as_deref(), detail.as_deref()))]
    Malformed {
        setting: &'static Setting,
        origin: Origin,
        /// As it may be shown; `None` for a secret.
        value: Option<String>,
        detail: Option<String>,
    },
    #[error("{} in the environment is not UTF-8; write {}", .0.name, .0.accepts)]
    NotUtf8(&'static Setting),
    #[error(transparent)]
    DotEnv(#[from] DotEnvError),
}

fn malformed(
    setting: &Setting,
    origin: Origin,
    value: Option<&str>,
    detail: Option<&str>,
) -> String {
    let name = setting.name;
    let place = match (origin, setting.flag()) {
        (Origin::Flag, Some(flag)) => format!(" (--{flag})"),
        (Origin::DotEnv, _) => " in .env".to_owned(),
        _ => String::new(),
    };
    let found = value.map_or("can't be used".to_owned(), |value| {
        format!("is '{}'", value.escape_debug())
    });
    let detail = detail.map_or(String::new(), |detail| format!(": {detail}"));
    format!("{name}{place} {found}{detail}; write {}", setting.accepts)
}

impl ConfigError {
    /// Whether it was a flag, so that the command was typed wrong.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Malformed {
                origin: Origin::Flag,
                ..
            }
        )
    }
}

/// What a database's address means; `None` if it is none.
#[must_use]
pub fn database_of(address: &str) -> Option<Database> {
    parse::database(address).ok()
}

/// Whether the setting takes `value`, and this version has the part that it needs.
///
/// # Errors
/// What to write instead, without the value.
///
/// # Panics
/// If there is no such setting; names are written in this crate only.
pub fn check_value(name: &'static str, value: &str) -> Result<(), String> {
    let sources = Sources::none().with_flag(name, value.to_owned());
    let accepts = || format!("write {}", setting(name).accepts);
    Config::load(&sources).map(drop).map_err(|_| accepts())
}

impl Loaded {
    /// Where the value of `name` came from.
    #[must_use]
    pub fn origin(&self, name: &str) -> Origin {
        let listed = self
            .config
            .listing
            .iter()
            .find(|listed| listed.name == name);
        listed.map_or(Origin::Default, |listed| listed.source)
    }
}

impl Sources {
    /// What `serve --dev` makes of what was given, with the names of the settings that it ignores:
    /// embedded stores, guardrails on, the simulated provider unless an upstream is named.
    #[must_use]
    pub fn for_dev(mut self) -> (Self, Vec<&'static str>) {
        const IGNORED: [&str; 7] = [
            "DATABASE_URL",
            "USAGE_GUARDRAIL_REDIS_URL",
            "REDIS_URL",
            "ENABLE_STRIPE_USAGE",
            "STRIPE_SECRET_KEY",
            "STRIPE_WEBHOOK_SECRET",
            "STRIPE_API_BASE",
        ];
        let mut ignored: Vec<_> = IGNORED
            .into_iter()
            .filter(|name| self.remove(name))
            .collect();
        if self.text("USAGE_GUARDRAIL_CACHE_BACKEND").as_deref() == Some("redis") {
            self.remove("USAGE_GUARDRAIL_CACHE_BACKEND");
            ignored.push("USAGE_GUARDRAIL_CACHE_BACKEND");
        }
        if !self.has_flag("ENABLE_USAGE_GUARDRAILS") {
            self = self.with_flag("ENABLE_USAGE_GUARDRAILS", "true".to_owned());
        }
        let upstream = ["TOLLGATE_PROVIDER", "OPENAI_API_KEY", "OPENAI_BASE_URL"];
        if upstream.iter().all(|name| self.text(name).is_none()) {
            self = self.with_flag("TOLLGATE_PROVIDER", "simulated".to_owned());
        }
        (self, ignored)
    }

    fn text(&self, name: &str) -> Option<String> {
        let (value, _) = self.find(name).ok()??;
        Some(value).filter(|value| !value.is_empty())
    }
}

impl Config {
    /// Reads and judges every setting.
    ///
    /// An empty value stands for the default, so that a variable can be taken back where a weaker source gives it.
    ///
    /// # Errors
    /// [`ConfigError::Malformed`] names the first value, in the order of the rows, that can't be read.
    pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
        let mut config = Self::read(&Reader(sources))?;
        config.listing = SETTINGS
            .iter()
            .map(|setting| config.listed(setting, sources))
            .collect::<Result<_, _>>()?;
        Ok(Loaded {
            warnings: sources.warnings(),
            config,
        })
    }

    fn read(given: &Reader) -> Result<Self, ConfigError> {
        let listen = given.value("TOLLGATE_LISTEN", parse::plain)?;
        let data_dir = given.value("TOLLGATE_DATA_DIR", parse::path)?;
        let database = given.optional("DATABASE_URL", parse::database)?;
        let database = database.unwrap_or_else(|| Database::Sqlite(data_dir.join("tollgate.db")));
        let own_redis = given.optional("USAGE_GUARDRAIL_REDIS_URL", parse::redis_urls)?;
        let shared_redis = given.optional("REDIS_URL", parse::redis_urls)?;
        Ok(Self {
            listen,
            data_dir,
            database,
            guardrails: given.switch("ENABLE_USAGE_GUARDRAILS", Guardrails::On, Guardrails::Off)?,
            mode: given.value("USAGE_GUARDRAIL_MODE", parse::mode)?,
            soft_limit_mode: given
                .value("USAGE_GUARDRAIL_SOFT_LIMIT_MODE", parse::soft_limit_mode)?,
            fail_mode: given.value("USAGE_GUARDRAIL_FAIL_MODE", parse::fail_mode)?,
            cache_backend: given.value("USAGE_GUARDRAIL_CACHE_BACKEND", parse::cache_backend)?,
            cache_ttl: given.seconds("USAGE_GUARDRAIL_CACHE_TTL_SECONDS", 0..=86_400)?,
            redis_urls: own_redis.or(shared_redis).unwrap_or_default(),
            output_reservation: given.tokens("USAGE_GUARDRAIL_OUTPUT_RESERVATION")?,
            min_output: given.tokens("USAGE_GUARDRAIL_MIN_OUTPUT")?,
            stream_cutoff: given.switch(
                "USAGE_GUARDRAIL_STREAM_CUTOFF",
                StreamCutoff::On,
                StreamCutoff::Off,
            )?,
            open_input: given.value("USAGE_GUARDRAIL_OPEN_INPUT", parse::open_input)?,
            charge_on_abort: given.value("USAGE_CHARGE_ON_ABORT", parse::charge_on_abort)?,
            calibration: given
                .optional("USAGE_TOKEN_CALIBRATION", parse::plain)?
                .unwrap_or_default(),
            unpriced_model: given.value("USAGE_UNPRICED_MODEL", parse::unpriced_model)?,
            prices: given.optional("TOLLGATE_PRICES", parse::path)?,
            durability: given.value("USAGE_DURABILITY", parse::durability)?,
            // Days are read as seconds, then made as long as they are.
            retention: given.seconds("USAGE_RETENTION_DAYS", 1..=36_500)? * 24 * 3600,
            alert_thresholds: given.value("USAGE_ALERT_THRESHOLDS", parse::thresholds)?,
            webhook_urls: given
                .optional("USAGE_WEBHOOK_URL", parse::web_addresses)?
                .unwrap_or_default(),
            webhook_secrets: given
                .optional("USAGE_WEBHOOK_SECRET", parse::signing_secrets)?
                .unwrap_or_default(),
            provider: given.value("TOLLGATE_PROVIDER", parse::provider)?,
            openai_api_key: given.optional("OPENAI_API_KEY", parse::secret)?,
            openai_base_url: given.value("OPENAI_BASE_URL", parse::base_url)?,
            default_model: given.value("TOLLGATE_DEFAULT_MODEL", parse::model)?,
            stream_usage: given.value("TOLLGATE_STREAM_USAGE", parse::stream_usage)?,
            upstream_timeout: given.seconds("TOLLGATE_UPSTREAM_TIMEOUT_SECONDS", 1..=86_400)?,
            disconnect_grace: given.seconds("TOLLGATE_DISCONNECT_GRACE_SECONDS", 0..=86_400)?,
            max_detached: given.whole("TOLLGATE_MAX_DETACHED", 0..=1_000_000)?,
            conversation_days: given.whole("TOLLGATE_CONVERSATION_DAYS", 0..=36_500)?,
            max_body_bytes: given.whole("TOLLGATE_MAX_BODY_BYTES", 1..=1 << 30)?,
            max_in_flight: given.whole("TOLLGATE_MAX_IN_FLIGHT", 1..=1_000_000)?,
            admin_token: given.optional("TOLLGATE_ADMIN_TOKEN", parse::admin_token)?,
            metrics_token: given.optional("TOLLGATE_METRICS_TOKEN", parse::secret)?,
            stripe_usage: given.switch("ENABLE_STRIPE_USAGE", StripeUsage::On, StripeUsage::Off)?,
            stripe_secret_key: given.optional("STRIPE_SECRET_KEY", parse::secret)?,
            stripe_webhook_secrets: given
                .optional("STRIPE_WEBHOOK_SECRET", parse::secrets)?
                .unwrap_or_default(),
            stripe_api_base: given.value("STRIPE_API_BASE", parse::base_url)?,
            stripe_push_interval: given.seconds("STRIPE_PUSH_INTERVAL_SECONDS", 1..=3_600)?,
            analytics_sink: given.optional("USAGE_ANALYTICS_SINK", parse::sink)?,
            log_format: given
                .optional("LOG_FORMAT", parse::log_format)?
                .unwrap_or(given.0.log_format),
            log_filter: given.value("RUST_LOG", parse::log_filter)?,
            listing: Vec::new(),
        })
    }

    fn listed(&self, setting: &'static Setting, sources: &Sources) -> Result<Listed, ConfigError> {
        let (value, source) = Reader(sources).text(setting)?;
        let value = value.or_else(|| match setting.name {
            "DATABASE_URL" => match &self.database {
                Database::Sqlite(path) => Some(format!("sqlite:{}", path.display())),
                Database::Postgres(_) => None, // it was given
            },
            "USAGE_GUARDRAIL_REDIS_URL" => sources.text("REDIS_URL"),
            "LOG_FORMAT" => Some(match self.log_format {
                LogFormat::Json => "json".to_owned(),
                LogFormat::Pretty => "pretty".to_owned(),
            }),
            _ => None,
        });
        Ok(Listed {
            name: setting.name,
            value: value.map(|value| setting.shown(&setting.canonical(value))),
            source,
            description: setting.description,
        })
    }
}

/// Reads values by their rows, and says what is wrong with them in the rows' words.
struct Reader<'a>(&'a Sources);

impl Reader<'_> {
    /// The given text, else the default's; `None` if neither is there.
    fn text(&self, setting: &'static Setting) -> Result<(Option<String>, Origin), ConfigError> {
        let found = self
            .0
            .find(setting.name)
            .map_err(|_| ConfigError::NotUtf8(setting))?;
        Ok(match (found, setting.default) {
            (Some((value, origin)), _) if !value.is_empty() => (Some(value), origin),
            (_, Default::Value(value)) => (Some(value.to_owned()), Origin::Default),
            (_, Default::None(_)) => (None, Origin::Default),
        })
    }

    fn optional<T, E: Into<Fault>>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ConfigError> {
        let setting = setting(name);
        let (Some(text), origin) = self.text(setting)? else {
            return Ok(None);
        };
        match parse(&text) {
            Ok(value) => Ok(Some(value)),
            Err(fault) => {
                let shown = setting.shown(&text);
                // Where a password ends too early, the rest of it is read as options and the like.
                let detail = fault.into().0;
                let detail = detail.filter(|it| masked::repeats_only(&shown, it));
                Err(ConfigError::Malformed {
                    setting,
                    origin,
                    value: (setting.kind != Kind::Secret).then_some(shown),
                    detail,
                })
            }
        }
    }

    fn value<T, E: Into<Fault>>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, ConfigError> {
        let value = self.optional(name, parse)?;
        Ok(value.expect("a setting that is read as a value has a default value in its row"))
    }

    fn switch<T>(&self, name: &'static str, on: T, off: T) -> Result<T, ConfigError> {
        let is_on = self.value(name, |text| parse::switch(text).ok_or(Fault(None)))?;
        Ok(if is_on { on } else { off })
    }

    fn whole<T: TryFrom<u64>>(
        &self,
        name: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<T, ConfigError> {
        self.value(name, |text| parse::whole(text, range))
    }

    fn seconds(
        &self,
        name: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Duration, ConfigError> {
        self.whole(name, range).map(Duration::from_secs)
    }

    fn tokens(&self, name: &'static str) -> Result<Quantity, ConfigError> {
        self.whole(name, 1..=(1 << 53) - 1)
            .map(|tokens: i64| Quantity::new(tokens))
    }
}

/// What is wrong with a value beyond what its row says of it.
struct Fault(Option<String>);

impl From<crate::domain::calibration::InvalidCalibration> for Fault {
    fn from(error: crate::domain::calibration::InvalidCalibration) -> Self {
        Self(Some(error.to_string()))
    }
}

impl From<std::net::AddrParseError> for Fault {
    fn from(_: std::net::AddrParseError) -> Self {
        Self(None)
    }
}

#[cfg(test)]
mod tests;
