//! The members of an object that are looked for by name, borrowed; what else is in it is gone past.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::BadRequest;
use crate::json::{self, Key};

/// Which members are looked for.
pub(super) trait Names<const N: usize> {
    const NAMES: [&'static str; N];
    /// Those that may be there besides and mean nothing here.
    const PLAIN: &'static [&'static str] = &[];
}

/// What was found of them.
pub(super) struct Named<'a, L, const N: usize> {
    /// In the order of [`Names::NAMES`]; `None` where there is none, or null.
    pub(super) values: [Option<&'a RawValue>; N],
    /// Whether there is anything else that is neither null nor plain.
    pub(super) has_others: bool,
    pub(super) misread: Option<Misread>,
    looked_for: PhantomData<L>,
}

impl<'de, L: Names<N>, const N: usize> Deserialize<'de> for Named<'de, L, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NamedVisitor<L, const N: usize>(PhantomData<L>);
        impl<'de, L: Names<N>, const N: usize> Visitor<'de> for NamedVisitor<L, N> {
            type Value = Named<'de, L, N>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = Named {
                    values: [None; N],
                    has_others: false,
                    misread: None,
                    looked_for: PhantomData,
                };
                let mut is_there = [false; N];
                while let Some(Key(key)) = map.next_key()? {
                    let value: &RawValue = map.next_value()?;
                    let value = Some(value).filter(|value| value.get() != "null");
                    let at = L::NAMES.iter().position(|name| *name == key);
                    let misread = match at {
                        Some(at) if is_there[at] => Some(Misread::Repeated(L::NAMES[at])),
                        Some(_) => None,
                        None => Misread::of(&key, &L::NAMES),
                    };
                    found.misread = found.misread.or(misread);
                    if let Some(at) = at {
                        (is_there[at], found.values[at]) = (true, value);
                    } else {
                        let is_plain = || L::PLAIN.contains(&key.as_ref());
                        found.has_others |= value.is_some() && !is_plain();
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(NamedVisitor(PhantomData))
    }
}

/// A member that parsers do not agree on.
#[derive(Debug)]
pub(super) enum Misread {
    /// Some take its first value, others its last.
    Repeated(&'static str),
    /// Some take it for the member of this name, others for an unknown one.
    Cased { name: &'static str, written: String },
}

impl Misread {
    /// What is wrong with a member's name, if it is one of `names` in other letters.
    pub(super) fn of(key: &str, names: &[&'static str]) -> Option<Self> {
        let name = names
            .iter()
            .find(|name| json::is_but_for_case(key, name) && **name != key)?;
        Some(Self::Cased {
            name,
            written: key.to_owned(),
        })
    }

    /// Why a body with such a member is refused; `place` is empty at the top.
    pub(super) fn refused(self, place: &str) -> BadRequest {
        match self {
            Self::Repeated(param) => BadRequest::Field {
                param,
                found: format!("there more than once{place}"),
                accepted: "it once",
            },
            Self::Cased { name, written } => BadRequest::Field {
                param: name,
                found: format!("written {written:?}{place}"),
                accepted: "its name in small letters",
            },
        }
    }
}

/// What a member `type` says; what is no text is no type that is known, and nothing is called `""`.
pub(super) fn kind_of(value: Option<&RawValue>) -> Option<Cow<'_, str>> {
    value.map(|value| serde_json::from_str(value.get()).map_or(Cow::Borrowed(""), |Key(kind)| kind))
}
