//! The members of an object that are looked for by name, borrowed; what else is in it is gone past.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::json::Key;

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
                    looked_for: PhantomData,
                };
                let mut is_there = [false; N];
                while let Some(Key(key)) = map.next_key()? {
                    let value: &RawValue = map.next_value()?;
                    let value = Some(value).filter(|value| value.get() != "null");
                    match L::NAMES.iter().position(|name| *name == key) {
                        Some(at) if is_there[at] => {
                            return Err(serde::de::Error::duplicate_field(L::NAMES[at]));
                        }
                        Some(at) => (is_there[at], found.values[at]) = (true, value),
                        None => {
                            let is_plain = || L::PLAIN.contains(&key.as_ref());
                            found.has_others |= value.is_some() && !is_plain();
                        }
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(NamedVisitor(PhantomData))
    }
}

/// What a member `type` says; what is no text is no type that is known, and nothing is called `""`.
pub(super) fn kind_of(value: Option<&RawValue>) -> Option<Cow<'_, str>> {
    value.map(|value| serde_json::from_str(value.get()).map_or(Cow::Borrowed(""), |Key(kind)| kind))
}
