//! Every setting of tollgate, one row each (interface.md §1).
//!
//! Variables, flags, `.env`, `tollgate config` and the reference page are all read from these rows.

use super::{masked::masked, parse};

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The variable; the flag's name follows from it.
    pub name: &'static str,
    /// What holds unless it is given, in the same grammar as a given value.
    pub default: Default,
    pub kind: Kind,
    /// What may be written, for messages: "X is 'Y'; write …".
    pub accepts: &'static str,
    /// One sentence for people.
    pub description: &'static str,
}

/// What a setting is if nobody gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    Value(&'static str),
    /// Not set; the words say what happens then.
    None(&'static str),
}

/// How a value is given and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Value,
    /// A whole number.
    Number,
    /// One of a few words, in any case.
    Choice,
    /// `--flag`, `--flag=false`.
    Switch,
    /// May hold a password, which is masked where it is shown.
    Url,
    /// Has no flag, since an argument is public, and is shown as `…abcd`.
    Secret,
}

impl Setting {
    /// The flag's name without its dashes; `None` for a secret.
    #[must_use]
    pub fn flag(&self) -> Option<String> {
        let name = self.name.strip_prefix("TOLLGATE_").unwrap_or(self.name);
        (self.kind != Kind::Secret).then(|| name.to_ascii_lowercase().replace('_', "-"))
    }

    /// A value that is taken, in the one form of several that its effect is known by: `yes` and `1` are `true`.
    #[must_use]
    pub fn canonical(&self, value: String) -> String {
        match self.kind {
            Kind::Value | Kind::Url | Kind::Secret => value,
            Kind::Switch => parse::switch(&value).map_or(value, |is_on| is_on.to_string()),
            Kind::Choice => value.to_ascii_lowercase(),
            Kind::Number => match value.trim_start_matches('0') {
                "" => "0".to_owned(),
                digits => digits.to_owned(),
            },
        }
    }

    /// The value as it may be shown: secrets cut to their end, passwords in URLs masked.
    #[must_use]
    pub fn shown(&self, value: &str) -> String {
        match self.kind {
            Kind::Value | Kind::Number | Kind::Choice | Kind::Switch => value.to_owned(),
            Kind::Url => masked(value),
            Kind::Secret => {
                let letters: Vec<char> = value.chars().collect();
                // Four letters of a short secret would be half of it.
                let end = if letters.len() >= 8 {
                    letters.len() - 4
                } else {
                    letters.len()
                };
                format!("…{}", letters[end..].iter().collect::<String>())
            }
        }
    }
}

/// The row of `name`.
///
/// # Panics
/// If there is no such row; names are written in this crate only.
#[must_use]
pub fn setting(name: &str) -> &'static Setting {
    SETTINGS
        .iter()
        .find(|setting| setting.name == name)
        .expect("settings are asked for by the names of their rows")
}

macro_rules! settings {
    ($($name:literal $kind:ident $default:expr, $accepts:literal, $description:literal;)*) => {
        &[$(Setting {
            name: $name,
            kind: Kind::$kind,
            default: $default,
            accepts: $accepts,
            description: $description,
        }),*]
    };
}

const fn is(value: &'static str) -> Default {
    Default::Value(value)
}

const fn unset(meaning: &'static str) -> Default {
    Default::None(meaning)
}

const SWITCH: Default = Default::Value("false");

/// All settings, in the order they are shown.
pub static SETTINGS: &[Setting] = settings! {
    "TOLLGATE_LISTEN" Value is("127.0.0.1:8080"), "an address and port, such as 127.0.0.1:8080 or [::]:8080",
        "Address of the server; port 0 picks a free one and prints it";
    "TOLLGATE_DATA_DIR" Value is("var"), "the path of a directory",
        "Holds `tollgate.db`, `cache.redb` and `reports/`; created with mode 0700, locked by the running server";
    "DATABASE_URL" Url unset("SQLite in the data dir"), "sqlite:PATH, postgres://… or postgresql://…",
        "The system of record";
    "ENABLE_USAGE_GUARDRAILS" Switch SWITCH, "true or false",
        "Meter and enforce; off, chat works unmetered and nothing is recorded (`serve --dev` turns it on)";
    "USAGE_GUARDRAIL_MODE" Choice is("enforce"), "enforce or observe",
        "`enforce` limits, or `observe`: decide, log and count, but block, lower and cut off nothing";
    "USAGE_GUARDRAIL_SOFT_LIMIT_MODE" Choice is("warn"), "warn or block",
        "What a soft limit does: `warn`, or `block` like a hard one";
    "USAGE_GUARDRAIL_FAIL_MODE" Choice is("open"), "open or closed",
        "What a request gets when no decision can be made: `open` lets it through, `closed` answers 503";
    "USAGE_GUARDRAIL_CACHE_BACKEND" Choice is("redb"), "redb, memory or redis",
        "Where live totals are kept: `redb` (one node, durable), `memory` (one node, rebuilt at start), `redis` (shared by replicas)";
    "USAGE_GUARDRAIL_CACHE_TTL_SECONDS" Number is("30"), "a whole number of seconds from 0 to 86400",
        "Longest time a cached catalogue entry or shared total is trusted before a background refresh; 0 always reads through";
    "USAGE_GUARDRAIL_REDIS_URL" Url unset("the value of REDIS_URL"), "redis://… or rediss://…, several separated by commas for a cluster",
        "Redis of the `redis` backend";
    "REDIS_URL" Url unset("none"), "redis://… or rediss://…, several separated by commas for a cluster",
        "Redis where USAGE_GUARDRAIL_REDIS_URL is not set";
    "USAGE_GUARDRAIL_OUTPUT_RESERVATION" Number is("4096"), "a whole number of tokens from 1 to 9007199254740991",
        "Least output share reserved for a request that names no maximum where the model's largest output does not fit";
    "USAGE_GUARDRAIL_MIN_OUTPUT" Number is("16"), "a whole number of tokens from 1 to 9007199254740991",
        "Below this many output tokens left, refuse instead of lowering the maximum";
    "USAGE_GUARDRAIL_STREAM_CUTOFF" Switch is("true"), "true or false",
        "Stop a stream that passes the maximum it was given";
    "USAGE_GUARDRAIL_OPEN_INPUT" Choice is("reserve"), "reserve or refuse",
        "Prompts that name content not in the body: `reserve` the model's context window, or `refuse`";
    "USAGE_CHARGE_ON_ABORT" Choice is("produced"), "produced, input or none",
        "What a client that hung up pays: `produced` (input and what was produced, once a token came), `input` (input also if none came), `none`";
    "USAGE_TOKEN_CALIBRATION" Value unset("none"), "MODEL_GLOB[:input|:output]=FACTOR,…, such as llama-*:output=1.08 (a factor from 0 to 1000, up to 6 decimals)",
        "Multiplies a provider's reported token counts before they are recorded";
    "USAGE_UNPRICED_MODEL" Choice is("count"), "count or refuse",
        "A model with no price: `count` it at cost 0 with a warning, or `refuse` it";
    "TOLLGATE_PRICES" Value unset("the embedded list"), "the path of a price file",
        "A price file that adds to or replaces entries of the embedded one";
    "USAGE_DURABILITY" Choice is("full"), "full or process",
        "`full`: usage survives power loss before the answer is released; `process`: survives a crash of the process";
    "USAGE_RETENTION_DAYS" Number is("400"), "a whole number of days from 1 to 36500",
        "Raw usage events older than this are pruned; rollups stay";
    "USAGE_ALERT_THRESHOLDS" Value is("80,100"), "whole percentages from 1 to 1000 separated by commas, such as 80,100",
        "Percent of the hard (else soft) limit at which a notice goes out; a plan feature can have its own";
    "USAGE_WEBHOOK_URL" Url unset("none"), "http:// or https:// addresses separated by commas",
        "Where notices go (docs/guide/notices.md)";
    "USAGE_WEBHOOK_SECRET" Secret unset("none"), "visible ASCII characters, several secrets separated by commas; whsec_ and base64 as Standard Webhooks has it",
        "Signs notices and analytics batches";
    "TOLLGATE_PROVIDER" Choice is("openai"), "openai or simulated",
        "The upstream: `openai`, or `simulated` (no key, no network)";
    "OPENAI_API_KEY" Secret unset("none"), "a key of visible ASCII characters",
        "The upstream's key; with none, another host than OpenAI's is sent no Authorization";
    "OPENAI_BASE_URL" Url is("https://api.openai.com/v1"), "an http:// or https:// address that includes /v1, without query or user",
        "The upstream: any server that speaks OpenAI's API";
    "TOLLGATE_DEFAULT_MODEL" Value is("gpt-5.1"), "a model name of 1 to 128 bytes without control characters",
        "Where a request names no model";
    "TOLLGATE_STREAM_USAGE" Choice is("request"), "request or omit",
        "`request` asks the upstream for usage at a stream's end; `omit` for upstreams that refuse the option";
    "TOLLGATE_UPSTREAM_TIMEOUT_SECONDS" Number is("600"), "a whole number of seconds from 1 to 86400",
        "For a whole answer, and between two chunks of a stream";
    "TOLLGATE_DISCONNECT_GRACE_SECONDS" Number is("30"), "a whole number of seconds from 0 to 86400",
        "How long a stream is read on after its client has gone";
    "TOLLGATE_MAX_DETACHED" Number is("256"), "a whole number from 0 to 1000000",
        "How many such streams without a client are read at once";
    "TOLLGATE_CONVERSATION_DAYS" Number is("30"), "a whole number of days from 0 to 36500",
        "How long the turns of `/api/v1/chat` conversations are kept; 0 keeps none";
    "TOLLGATE_MAX_BODY_BYTES" Number is("33554432"), "a whole number of bytes from 1 to 1073741824",
        "Largest request body; past it 413";
    "TOLLGATE_MAX_IN_FLIGHT" Number is("10000"), "a whole number from 1 to 1000000",
        "Most requests at once; past it 503 `overloaded`";
    "TOLLGATE_ADMIN_TOKEN" Secret unset("made on first start, printed once"), "at least 32 visible ASCII characters",
        "Bootstrap administrator, role `owner`";
    "TOLLGATE_METRICS_TOKEN" Secret unset("`/metrics` is open"), "visible ASCII characters",
        "When set, `/metrics` wants it as bearer (an admin token serves too)";
    "ENABLE_STRIPE_USAGE" Switch SWITCH, "true or false",
        "Push usage to Stripe and take its webhooks";
    "STRIPE_SECRET_KEY" Secret unset("none"), "a key of visible ASCII characters",
        "Stripe's API key";
    "STRIPE_WEBHOOK_SECRET" Secret unset("none"), "visible ASCII characters, several secrets separated by commas",
        "Checks the signatures of Stripe's webhooks";
    "STRIPE_API_BASE" Url is("https://api.stripe.com"), "an http:// or https:// address without query or user",
        "Stripe's API";
    "STRIPE_PUSH_INTERVAL_SECONDS" Number is("60"), "a whole number of seconds from 1 to 3600",
        "Per tenant, feature and interval Stripe is told of usage once; it goes one interval later, and at a period's end at once";
    "USAGE_ANALYTICS_SINK" Url unset("none"), "file:DIR, or an http:// or https:// collector",
        "Where usage is sent as CloudEvents batches (docs/guide/analytics.md)";
    "LOG_FORMAT" Choice unset("`json`; `pretty` on a terminal"), "json or pretty",
        "Form of the log on stderr";
    "RUST_LOG" Value is("info"), "levels as tracing-subscriber reads them, such as info or tollgate=debug,info",
        "How much is logged";
};

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn flags_follow_from_names_and_secrets_have_none() {
        assert_eq!(setting("TOLLGATE_LISTEN").flag().as_deref(), Some("listen"));
        assert_eq!(
            setting("USAGE_GUARDRAIL_CACHE_BACKEND").flag().as_deref(),
            Some("usage-guardrail-cache-backend")
        );
        for secret in [
            "OPENAI_API_KEY",
            "TOLLGATE_ADMIN_TOKEN",
            "STRIPE_SECRET_KEY",
        ] {
            assert_eq!(setting(secret).flag(), None, "{secret}");
        }
    }

    #[test]
    fn no_two_settings_share_a_variable_or_a_flag() {
        let mut names = HashSet::new();
        let mut flags = HashSet::new();
        for setting in SETTINGS {
            assert!(names.insert(setting.name), "{}", setting.name);
            if let Some(flag) = setting.flag() {
                assert!(flags.insert(flag), "{}", setting.name);
            }
        }
    }

    #[test]
    fn secrets_and_passwords_are_never_shown_whole() {
        let key = setting("OPENAI_API_KEY");
        assert_eq!(key.shown("sk-1234567890"), "…7890");
        assert_eq!(key.shown("short"), "…");
        let url = setting("DATABASE_URL");
        assert_eq!(
            url.shown("postgres://app:p@ss@db:5432/tollgate?sslmode=require"),
            "postgres://app:…@db:5432/tollgate?sslmode=require"
        );
        assert_eq!(
            url.shown("sqlite:/srv/tollgate.db"),
            "sqlite:/srv/tollgate.db"
        );
        assert_eq!(
            setting("REDIS_URL").shown("redis://:one@a:6379,redis://b:6379"),
            "redis://:…@a:6379,redis://b:6379"
        );
    }
}
