use std::collections::HashMap;

use secrecy::ExposeSecret;

use super::{
    settings::{Kind, SETTINGS},
    sources::SettingFlags,
    *,
};

fn given(pairs: &[(&str, &str)]) -> Sources {
    Sources {
        flags: SettingFlags::default(),
        environment: pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()))
            .collect(),
        dot_env: HashMap::new(),
        log_format: LogFormat::Json,
    }
}

fn config(pairs: &[(&str, &str)]) -> Config {
    Config::load(&given(pairs)).unwrap().config
}

fn refusal(pairs: &[(&str, &str)]) -> String {
    Config::load(&given(pairs)).unwrap_err().to_string()
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = config(&[]);
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.database, Database::Sqlite("var/tollgate.db".into()));
    assert_eq!(config.guardrails, Guardrails::Off);
    assert_eq!(config.fail_mode, FailMode::Open);
    assert_eq!(config.cache_ttl, Duration::from_secs(30));
    assert_eq!(config.alert_thresholds, [80, 100]);
    assert_eq!(config.retention, Duration::from_secs(400 * 86_400));
    assert_eq!(config.max_body_bytes, 32 * 1024 * 1024);
    assert_eq!(config.openai_base_url, "https://api.openai.com/v1");
    assert!(config.admin_token.is_none() && config.calibration.is_empty());
}

#[test]
fn a_flag_wins_over_the_environment_over_dot_env_over_the_default() {
    let mut sources = given(&[]);
    let expect = |sources: &Sources, port: u16, origin| {
        let loaded = Config::load(sources).unwrap();
        assert_eq!(loaded.config.listen.port(), port);
        assert_eq!(loaded.origin("TOLLGATE_LISTEN"), origin);
    };
    expect(&sources, 8080, Origin::Default);
    sources
        .dot_env
        .insert("TOLLGATE_LISTEN".to_owned(), "127.0.0.1:1".to_owned());
    expect(&sources, 1, Origin::DotEnv);
    sources
        .environment
        .insert("TOLLGATE_LISTEN".to_owned(), "127.0.0.1:2".into());
    expect(&sources, 2, Origin::Environment);
    let sources = sources.with_flag("TOLLGATE_LISTEN", "127.0.0.1:3".to_owned());
    expect(&sources, 3, Origin::Flag);
}

#[test]
fn an_empty_value_stands_for_the_default() {
    let mut sources = given(&[("OPENAI_API_KEY", ""), ("USAGE_GUARDRAIL_MODE", "  ")]);
    sources
        .dot_env
        .insert("OPENAI_API_KEY".to_owned(), "sk-from-dot-env".to_owned());
    let loaded = Config::load(&sources).unwrap();
    assert!(loaded.config.openai_api_key.is_none());
    assert_eq!(loaded.config.mode, Mode::Enforce);
}

#[test]
fn a_log_level_that_there_is_not_is_refused_and_targets_with_levels_are_not() {
    for text in ["warning", "inof", "1.5", "info,tolgate", "bogus value"] {
        let refusal = refusal(&[("RUST_LOG", text)]);
        assert!(refusal.contains("is no level"), "{refusal}");
    }
    for text in [
        "warn",
        "INFO",
        "off",
        "tollgate=debug,info",
        "tollgate::http[span]=trace",
        "info,",
    ] {
        assert_eq!(config(&[("RUST_LOG", text)]).log_filter, text);
    }
}

#[test]
fn every_row_is_read_into_the_configuration() {
    // A value that nothing accepts must be refused, whatever the row: else nobody reads it.
    for setting in SETTINGS {
        let junk = match setting.name {
            // Any text is a path.
            "TOLLGATE_DATA_DIR" | "TOLLGATE_PRICES" => continue,
            "TOLLGATE_DEFAULT_MODEL" => "a\u{7}b",
            "RUST_LOG" => "a=b=c",
            _ => "ju nk\u{e9}",
        };
        let refusal = refusal(&[(setting.name, junk)]);
        assert!(refusal.starts_with(setting.name), "{refusal}");
        assert!(
            refusal.ends_with(&format!("; write {}", setting.accepts)),
            "{refusal}"
        );
        assert!(
            !refusal.contains('\n') && !refusal.contains('\u{7}'),
            "{refusal}"
        );
        let names_the_value = refusal.contains("ju nk");
        assert!(
            setting.kind != Kind::Secret || !names_the_value,
            "{refusal}"
        );
    }
    let paths = config(&[
        ("TOLLGATE_DATA_DIR", "/srv/t"),
        ("TOLLGATE_PRICES", "p.json"),
    ]);
    assert_eq!(paths.data_dir, PathBuf::from("/srv/t"));
    assert_eq!(paths.prices, Some("p.json".into()));
}

#[test]
fn a_malformed_value_is_one_line_with_variable_value_and_what_is_accepted() {
    assert_eq!(
        refusal(&[("USAGE_GUARDRAIL_MODE", "maybe")]),
        "USAGE_GUARDRAIL_MODE is 'maybe'; write enforce or observe"
    );
    let flag = given(&[]).with_flag("TOLLGATE_LISTEN", "8080".to_owned());
    assert_eq!(
        Config::load(&flag).unwrap_err().to_string(),
        "TOLLGATE_LISTEN (--listen) is '8080'; write an address and port, such as 127.0.0.1:8080 or [::]:8080"
    );
    assert!(
        refusal(&[("USAGE_TOKEN_CALIBRATION", "a=1,b=x")])
            .contains(": rule 'b=x' has no decimal number")
    );
    let token = refusal(&[("TOLLGATE_ADMIN_TOKEN", "hunter2")]);
    assert_eq!(
        token,
        "TOLLGATE_ADMIN_TOKEN can't be used: it has 7 characters; write at least 32 visible ASCII characters"
    );
    assert!(!refusal(&[("DATABASE_URL", "mysql://u:secret@h/d")]).contains("secret"));
}

#[test]
fn numbers_are_taken_within_their_bounds_only() {
    for (name, taken, refused) in [
        (
            "USAGE_GUARDRAIL_CACHE_TTL_SECONDS",
            vec!["0", "86400"],
            vec!["-1", "86401", "1.5", "+1", "1e3", "0x10"],
        ),
        (
            "TOLLGATE_MAX_BODY_BYTES",
            vec!["1", "1073741824"],
            vec!["0", "1073741825", "32MiB"],
        ),
        (
            "USAGE_RETENTION_DAYS",
            vec!["1", "36500"],
            vec!["0", "36501", "99999999999999999999"],
        ),
        (
            "USAGE_ALERT_THRESHOLDS",
            vec!["80", "50, 90,100", "1000"],
            vec!["0", "80,", "1001", "80%"],
        ),
    ] {
        for value in taken {
            config(&[(name, value)]);
        }
        for value in refused {
            assert!(
                refusal(&[(name, value)]).starts_with(name),
                "{name}={value}"
            );
        }
    }
    assert_eq!(
        config(&[("USAGE_ALERT_THRESHOLDS", "90,50,90")]).alert_thresholds,
        [50, 90]
    );
}

#[test]
fn switches_take_the_six_words() {
    for (word, expected) in [
        ("true", Guardrails::On),
        ("1", Guardrails::On),
        ("YES", Guardrails::On),
        ("false", Guardrails::Off),
        ("0", Guardrails::Off),
        ("no", Guardrails::Off),
    ] {
        assert_eq!(
            config(&[("ENABLE_USAGE_GUARDRAILS", word)]).guardrails,
            expected,
            "{word}"
        );
    }
    assert!(refusal(&[("ENABLE_USAGE_GUARDRAILS", "on")]).ends_with("; write true or false"));
}

#[test]
fn addresses_lose_their_last_slash_and_may_hold_no_user_or_query() {
    let url = |url| config(&[("OPENAI_BASE_URL", url)]).openai_base_url;
    assert_eq!(url("http://127.0.0.1:9/v1/"), "http://127.0.0.1:9/v1");
    for refused in [
        "127.0.0.1:9",
        "ftp://h/v1",
        "http://u:p@h/v1",
        "http://h/v1?k=1",
        "http://h/v1#x",
    ] {
        assert!(
            refusal(&[("OPENAI_BASE_URL", refused)]).starts_with("OPENAI_BASE_URL is"),
            "{refused}"
        );
    }
}

#[test]
fn sqlite_is_named_by_path() {
    for (url, path) in [
        ("sqlite:a/b.db", "a/b.db"),
        ("sqlite:/srv/b.db", "/srv/b.db"),
        ("sqlite:///srv/b.db", "/srv/b.db"),
    ] {
        assert_eq!(
            config(&[("DATABASE_URL", url)]).database,
            Database::Sqlite(path.into()),
            "{url}"
        );
    }
    for refused in ["sqlite:", "sqlite::memory:", "tollgate.db"] {
        assert!(
            refusal(&[("DATABASE_URL", refused)]).starts_with("DATABASE_URL is"),
            "{refused}"
        );
    }
}

#[test]
fn postgres_is_named_by_a_url_that_is_shown_without_its_password() {
    let url = "postgres://u:s3cret@h:5433/d?sslmode=verify-full";
    let loaded = Config::load(&given(&[("DATABASE_URL", url)])).unwrap();
    let Database::Postgres(parsed) = &loaded.config.database else {
        panic!("{:?}", loaded.config.database);
    };
    assert_eq!(parsed.to_string(), "database d at h:5433");
    assert!(!format!("{:?}", loaded.config).contains("s3cret"));
    let listed = loaded.config.listing.iter();
    let listed = listed.clone().find(|it| it.name == "DATABASE_URL").unwrap();
    let shown = "postgres://u:…@h:5433/d?sslmode=verify-full";
    assert_eq!(listed.value.as_deref(), Some(shown));
    for refused in [
        "postgres://u:s3cret@h/d?sslmode=perhaps",
        "postgres://:s3cret@h/d",
        "postgresql://u:s3cret@h/d?bogus=1",
    ] {
        let refusal = refusal(&[("DATABASE_URL", refused)]);
        assert!(refusal.starts_with("DATABASE_URL is"), "{refusal}");
        assert!(!refusal.contains("s3cret"), "{refusal}");
    }
}

#[test]
fn malformed_values_are_refused_and_well_formed_ones_are_not() {
    assert!(refusal(&[("USAGE_ANALYTICS_SINK", "kafka:x")]).contains("; write file:DIR"));
    assert!(refusal(&[("USAGE_WEBHOOK_URL", "h/x")]).starts_with("USAGE_WEBHOOK_URL is 'h/x'"));
    let refused = refusal(&[("USAGE_WEBHOOK_SECRET", "plain,whsec_not base64")]);
    assert!(!refused.contains("plain"), "{refused}");
    assert!(refusal(&[("USAGE_WEBHOOK_SECRET", "whsec_*")]).contains("not base64"));
    let harmless = [
        ("STRIPE_SECRET_KEY", "sk_test_1"),
        ("ENABLE_STRIPE_USAGE", "true"),
        ("STRIPE_PUSH_INTERVAL_SECONDS", "5"),
        ("REDIS_URL", "redis://h"),
        ("TOLLGATE_PRICES", "p.json"),
        ("USAGE_WEBHOOK_URL", "https://h/x,http://i/"),
        ("USAGE_WEBHOOK_SECRET", "whsec_c2VjcmV0,another"),
        ("USAGE_ANALYTICS_SINK", "file:out"),
    ];
    Config::load(&given(&harmless)).unwrap();
}

#[test]
fn the_listing_shows_effective_values_their_sources_and_no_secret() {
    let pairs = [
        ("TOLLGATE_DATA_DIR", "/srv/t"),
        ("TOLLGATE_ADMIN_TOKEN", "0123456789abcdef0123456789abcdef"),
        ("REDIS_URL", "redis://:pass@h"),
    ];
    let loaded = Config::load(&given(&pairs)).unwrap();
    assert_eq!(loaded.config.listing.len(), SETTINGS.len());
    let shown = |name: &str| {
        let listed = loaded
            .config
            .listing
            .iter()
            .find(|listed| listed.name == name)
            .unwrap();
        (
            listed.value.clone().unwrap_or_default(),
            listed.source.to_string(),
        )
    };
    let is = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    assert_eq!(shown("TOLLGATE_ADMIN_TOKEN"), is("…cdef", "environment"));
    assert_eq!(
        shown("DATABASE_URL"),
        is("sqlite:/srv/t/tollgate.db", "default")
    );
    assert_eq!(
        shown("USAGE_GUARDRAIL_REDIS_URL"),
        is("redis://:…@h", "default")
    );
    assert_eq!(shown("LOG_FORMAT"), is("json", "default"));
    assert_eq!(shown("OPENAI_API_KEY"), is("", "default"));
    let json = serde_json::to_value(&loaded.config.listing[0]).unwrap();
    assert_eq!(json["source"], "default");
    assert!(!format!("{:?}", loaded.config).contains("0123456789abcdef"));
}

#[test]
fn the_listing_shows_values_in_the_form_that_their_effect_is_known_by() {
    for (name, typed, shown) in [
        ("ENABLE_USAGE_GUARDRAILS", "1", "true"),
        ("USAGE_GUARDRAIL_STREAM_CUTOFF", "NO", "false"),
        ("USAGE_GUARDRAIL_CACHE_TTL_SECONDS", "00012", "12"),
        ("USAGE_GUARDRAIL_CACHE_TTL_SECONDS", "00", "0"),
        ("USAGE_GUARDRAIL_MODE", "Observe", "observe"),
        ("LOG_FORMAT", "JSON", "json"),
        ("TOLLGATE_DATA_DIR", "007", "007"),
        ("TOLLGATE_DEFAULT_MODEL", "Yes", "Yes"),
    ] {
        let config = config(&[(name, typed)]);
        let mut listing = config.listing.iter();
        let listed = listing.find(|it| it.name == name).unwrap();
        assert_eq!(listed.value.as_deref(), Some(shown), "{name}={typed}");
    }
}

#[test]
fn what_takes_numbers_says_so_in_its_row() {
    for setting in SETTINGS {
        let takes_numbers = setting.accepts.starts_with("a whole number");
        assert_eq!(
            setting.kind == Kind::Number,
            takes_numbers,
            "{}",
            setting.name
        );
    }
}

#[test]
fn dev_turns_guardrails_on_and_ignores_what_it_names() {
    let pairs = [
        ("ENABLE_USAGE_GUARDRAILS", "false"),
        ("DATABASE_URL", "postgres://u@h/d"),
        ("USAGE_GUARDRAIL_CACHE_BACKEND", "redis"),
        ("ENABLE_STRIPE_USAGE", "true"),
    ];
    let (sources, ignored) = given(&pairs).for_dev();
    assert_eq!(
        ignored,
        [
            "DATABASE_URL",
            "ENABLE_STRIPE_USAGE",
            "USAGE_GUARDRAIL_CACHE_BACKEND"
        ]
    );
    let loaded = Config::load(&sources).unwrap();
    assert_eq!(loaded.config.guardrails, Guardrails::On);
    assert_eq!(loaded.config.provider, ProviderKind::Simulated);
    assert_eq!(loaded.origin("TOLLGATE_DATA_DIR"), Origin::Default);
}

#[test]
fn dev_keeps_an_upstream_that_is_named_and_a_switch_given_as_a_flag() {
    let (sources, _) = given(&[("OPENAI_BASE_URL", "http://h/v1")])
        .with_flag("ENABLE_USAGE_GUARDRAILS", "false".to_owned())
        .for_dev();
    let config = Config::load(&sources).unwrap().config;
    assert_eq!(
        (config.provider, config.guardrails),
        (ProviderKind::OpenAi, Guardrails::Off)
    );
}

#[test]
fn several_secrets_are_told_apart() {
    let config = config(&[("STRIPE_WEBHOOK_SECRET", "whsec_a, whsec_b")]);
    let secrets: Vec<_> = config
        .stripe_webhook_secrets
        .iter()
        .map(ExposeSecret::expose_secret)
        .collect();
    assert_eq!(secrets, ["whsec_a", "whsec_b"]);
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut sources = given(&[]);
    let broken = std::ffi::OsString::from_vec(vec![0xff, b'x']);
    sources
        .environment
        .insert("TOLLGATE_LISTEN".to_owned(), broken);
    let refusal = Config::load(&sources).unwrap_err().to_string();
    assert!(
        refusal.starts_with("TOLLGATE_LISTEN in the environment is not UTF-8; write an address"),
        "{refusal}"
    );
}

#[test]
fn debug_output_of_a_configuration_and_of_its_sources_holds_no_secret() {
    let secret = "example-aardvark-0123456789abcdef0123";
    let mut sources = given(&[]);
    for setting in SETTINGS.iter().filter(|it| it.kind == Kind::Secret) {
        let (name, given) = (setting.name.to_owned(), secret.to_owned());
        sources.environment.insert(name.clone(), given.into());
        sources.dot_env.insert(name, secret.to_owned());
    }
    let sources = sources.with_flag("OPENAI_API_KEY", secret.to_owned());
    let loaded = Config::load(&sources).unwrap();
    assert!(loaded.config.openai_api_key.is_some() && loaded.config.admin_token.is_some());
    let upstream = crate::provider::openai::Settings {
        base_url: loaded.config.openai_base_url.clone(),
        api_key: loaded.config.openai_api_key.clone(),
        stream_usage: loaded.config.stream_usage,
        timeout: loaded.config.upstream_timeout,
        roots: crate::provider::tls::Roots::Environment,
    };
    for shown in [
        format!("{sources:?}"),
        format!("{:?}", sources.flags),
        format!("{loaded:?}"),
        format!("{upstream:?}"),
    ] {
        assert!(!shown.contains("aardvark"), "{shown}");
    }
    assert!(format!("{sources:?}").contains("TOLLGATE_ADMIN_TOKEN"));
}
