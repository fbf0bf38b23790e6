//! The grammar of names (interface.md, Conventions) and newtypes for those that travel far.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

fn is_name(text: &str, longest: usize, first: fn(u8) -> bool, rest: fn(u8) -> bool) -> bool {
    text.len() <= longest && text.bytes().next().is_some_and(first) && text.bytes().all(rest)
}

fn lower_or_digit(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

pub(super) fn is_feature_key(text: &str) -> bool {
    is_name(text, 64, lower_or_digit, |byte| {
        lower_or_digit(byte) || b"_.-".contains(&byte)
    })
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{value}' is not a {what}; write {accepted}")]
pub struct InvalidName {
    what: &'static str,
    value: String,
    accepted: &'static str,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $accepted:literal, $accepts:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name itself, without a copy.
            #[must_use]
            pub fn to_shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let accepts: fn(&str) -> bool = $accepts;
                if accepts(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidName { what: $what, value: text.escape_debug().to_string(), accepted: $accepted })
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

name_type!(
    /// A tenant's own name in URLs and commands.
    Slug, "slug", "1-63 of a-z, 0-9, '_', '-', beginning with a letter or digit",
    |text| is_name(text, 63, lower_or_digit, |byte| lower_or_digit(byte) || b"_-".contains(&byte))
);
name_type!(
    /// The code of a plan.
    PlanCode, "plan code", "1-64 letters, digits, '_', '.', '-', beginning with a letter or digit",
    |text| is_name(text, 64, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
);
name_type!(
    /// A name shown to people.
    DisplayName, "name", "1-200 characters without control characters",
    |text| (1..=200).contains(&text.chars().count()) && !text.chars().any(char::is_control)
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar_of_the_contract() {
        for (text, slug, plan) in [
            ("acme", true, true),
            ("a_b-1", true, true),
            ("1a", true, true),
            ("Acme", false, true),
            ("-acme", false, false),
            ("a.b", false, true),
            ("", false, false),
            ("a b", false, false),
        ] {
            assert_eq!(text.parse::<Slug>().is_ok(), slug, "slug {text:?}");
            assert_eq!(text.parse::<PlanCode>().is_ok(), plan, "plan {text:?}");
        }
        assert!("a".repeat(63).parse::<Slug>().is_ok());
        assert!("a".repeat(64).parse::<Slug>().is_err());
        assert!("a\u{7}".parse::<DisplayName>().is_err());
        assert!("ü".repeat(200).parse::<DisplayName>().is_ok());
    }
}
