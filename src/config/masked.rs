//! Addresses as they may be shown: without what a driver could take for a password, or a person could have meant as one.
//!
//! Drivers don't agree on where a password ends. Postgres takes `/`, `?` and `#` in it where a URL ends the host, and
//! lists are split at commas that a password may hold. So nothing is taken apart here as one of them would: whatever may
//! belong to a password goes, be it a host or an option that could have stayed.

/// What stands for what is not shown.
const MASK: &str = "…";
/// A parameter with one of these in its name holds a secret.
const SECRET_WORDS: [&str; 5] = ["pass", "secret", "token", "key", "pwd"];

/// `postgres://user:secret@host/db?password=secret` → `postgres://user:…@host/db?password=…`; of a list, the whole list.
pub(super) fn masked(addresses: &str) -> String {
    if is_path(addresses) {
        return addresses.to_owned();
    }
    let begin = begin_of_user(addresses);
    let (scheme, rest) = addresses.split_at(begin);
    let secret = secret_parameter(rest);
    let Some((colon, at)) = password_before_host(rest) else {
        return format!("{scheme}{}", without_parameter(rest));
    };
    match secret {
        // An '@' behind it may be of its value, and what follows the '@' then too.
        Some(secret) if secret <= at => {
            let end = secret.min(colon + 1);
            format!("{scheme}{}{MASK}", &rest[..end])
        }
        _ => format!(
            "{scheme}{}{MASK}{}",
            &rest[..=colon],
            without_parameter(&rest[at..])
        ),
    }
}

/// Paths hold no passwords, and may hold any character.
fn is_path(address: &str) -> bool {
    address.starts_with("sqlite:") || address.starts_with("file:")
}

/// Where the scheme is over; 0 if there is none.
fn begin_of_user(address: &str) -> usize {
    let is_scheme = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match address.split_once("://") {
        Some((scheme, _)) if is_scheme(scheme) => scheme.len() + "://".len(),
        _ => 0,
    }
}

/// The first ':' and the last '@', between which all passwords are.
fn password_before_host(rest: &str) -> Option<(usize, usize)> {
    let at = rest.rfind('@')?;
    let colon = rest[..at].find(':')?;
    Some((colon, at))
}

/// Without the value of a secret parameter and all behind it: a value that holds '&' looks like two parameters.
fn without_parameter(rest: &str) -> String {
    match secret_parameter(rest) {
        Some(value) => format!("{}{MASK}", &rest[..value]),
        None => rest.to_owned(),
    }
}

/// Where the value of the first secret parameter begins.
fn secret_parameter(rest: &str) -> Option<usize> {
    let equals = rest.match_indices('=').map(|(index, _)| index);
    equals
        .filter(|&equal| {
            let before = &rest[..equal];
            let begin = before.rfind(['?', '&', '#', ';', '=']);
            is_secret(&before[begin.map_or(0, |it| it + 1)..])
        })
        .map(|equal| equal + 1)
        .next()
}

fn is_secret(name: &str) -> bool {
    // `%70assword` is `password` to those who read it.
    let decoded = form_urlencoded::parse(name.as_bytes()).next();
    let decoded = decoded.map_or_else(String::new, |(name, _)| name.to_ascii_lowercase());
    SECRET_WORDS.iter().any(|word| decoded.contains(word))
}

/// Whether a sentence repeats nothing of an address but what `shown` has of it too. What it quotes, it has in backticks.
pub(super) fn repeats_only(shown: &str, sentence: &str) -> bool {
    let quoted = sentence
        .split_once('`')
        .and_then(|(_, rest)| rest.rsplit_once('`'));
    quoted.is_none_or(|(word, _)| shown.contains(word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Config, Database, sources::Sources};

    #[test]
    fn what_a_driver_could_take_for_a_password_is_not_shown() {
        for (address, shown) in [
            (
                "postgres://u:p@ss@h:5432/d?a=b",
                "postgres://u:…@h:5432/d?a=b",
            ),
            ("postgres://u:p/ss@h/d", "postgres://u:…@h/d"),
            ("postgres://u:p?ss@h/d", "postgres://u:…@h/d"),
            ("postgres://u:pa#topsecret@h/d", "postgres://u:…@h/d"),
            ("postgres://u:a,topsecret@h/d", "postgres://u:…@h/d"),
            ("postgres://u:a,b://topsecret@h/d", "postgres://u:…@h/d"),
            (
                "postgres://u@h/d?password=top/secret",
                "postgres://u@h/d?password=…",
            ),
            (
                "postgres://u@h/d?%70assword=x",
                "postgres://u@h/d?%70assword=…",
            ),
            (
                "postgres://h/d?user=u&PassWord=a&b=c",
                "postgres://h/d?user=u&PassWord=…",
            ),
            ("postgres://u:p@h/d?n=1&password=x@y", "postgres://u:…"),
            ("postgres://u@h:5432/d?password=x@y", "postgres://u@h:…"),
            ("postgres://u:p@h/d?n=1&password=@y", "postgres://u:…"),
            (
                "postgres://u@h/d?password=x:y@z",
                "postgres://u@h/d?password=…",
            ),
            (
                "redis://h:1/0?password=topsecret",
                "redis://h:1/0?password=…",
            ),
            ("redis://:pa/topsecret@h:1", "redis://:…@h:1"),
            ("redis://u:to,p@h", "redis://u:…@h"),
            ("redis://:one@a:1,redis://b:2", "redis://:…@a:1,redis://b:2"),
            ("redis://:one@a:1,redis://:two@b:2", "redis://:…@b:2"),
            ("https://u:pa/topsecret@h1/x", "https://u:…@h1/x"),
            ("https://h/x?api_key=a,https://i", "https://h/x?api_key=…"),
            ("https://h/x#access_token=a", "https://h/x#access_token=…"),
            ("http:/u:p@h/?x=a://b", "http:…@h/?x=a://b"),
            ("u:topsecret@h", "u:…@h"),
            // It can't be told from a password.
            ("https://h:8443/@x?y=z", "https://h:…@x?y=z"),
        ] {
            assert_eq!(masked(address), shown);
        }
    }

    #[test]
    fn what_holds_no_password_is_shown_as_it_is() {
        for address in [
            "sqlite:/srv/a:b@c?key=d.db",
            "file:/srv/key=a@b",
            "postgres://u@h:5432/d?sslmode=require",
            "redis://a:1,redis://b:2",
            "https://api.openai.com/v1",
        ] {
            assert_eq!(masked(address), address);
        }
    }

    /// Where a password can be put: the setting, and what is before and behind it.
    const PLACES: [(&str, &str, &str); 12] = [
        ("DATABASE_URL", "postgres://u:", "@h/d"),
        (
            "DATABASE_URL",
            "postgresql://u:",
            "@h:5432/d?sslmode=require",
        ),
        ("DATABASE_URL", "postgres://u:", "@h/d?nope=1"),
        ("DATABASE_URL", "postgres://u@h/d?password=", ""),
        ("DATABASE_URL", "postgres://u:x@h/d?nope=1&password=", ""),
        ("DATABASE_URL", "mysql://u:", "@h/d"),
        ("REDIS_URL", "redis://u:", "@h:1"),
        ("REDIS_URL", "redis://:x@g:1,rediss://:", "@h:1/0"),
        ("REDIS_URL", "redis://h:1/0?password=", ""),
        ("USAGE_WEBHOOK_URL", "https://i/x,https://u:", "@h/x"),
        ("USAGE_ANALYTICS_SINK", "https://h/x?token=", ""),
        ("OPENAI_BASE_URL", "https://u:", "@h/v1"),
    ];

    proptest! {
        #[test]
        fn no_part_of_a_password_is_shown_or_in_an_error(
            (name, before, behind) in prop::sample::select(&PLACES),
            // Letters that no sentence of ours has four of in a row, and what ends a password for one driver or another.
            password in prop_oneof!["\\PC{4,24}", "[JKQXZ789@:/?#&=,%`;.]{4,24}"],
        ) {
            let sources = Sources::none().with_flag(name, format!("{before}{password}{behind}"));
            let said = match Config::load(&sources) {
                Ok(loaded) => {
                    let known_as = match &loaded.config.database {
                        // As failures name it.
                        Database::Postgres(url) => url.to_string(),
                        Database::Sqlite(_) => String::new(),
                    };
                    let mut listing = loaded.config.listing.into_iter();
                    let listed = listing.find(|it| it.name == name).unwrap();
                    format!("{} {known_as}", listed.value.unwrap_or_default())
                }
                Err(error) => error.to_string(),
            };
            let letters: Vec<char> = password.trim().chars().collect();
            for four in letters.windows(4) {
                let four: String = four.iter().collect();
                let is_told = said.contains(&four) || said.contains(&four.escape_debug().to_string());
                prop_assert!(!is_told || before.contains(&four) || behind.contains(&four), "{}", said);
            }
        }
    }
}
