//! Members of JSON that servers write in more ways than one: read where they are as expected, and nothing where they
//! are not, so that an odd one does not hide the others.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use smallvec::SmallVec;

/// The visits of values that are of no use; each ends in `$nothing`.
macro_rules! nothing {
    ($nothing:expr; $($visit:ident($value:ty)),*) => {
        $(fn $visit<E>(self, _: $value) -> Result<Self::Value, E> { Ok($nothing) })*
        fn visit_unit<E>(self) -> Result<Self::Value, E> { Ok($nothing) }
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any JSON value")
        }
    };
}
macro_rules! no_list {
    ($nothing:expr) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok($nothing)
        }
    };
}
macro_rules! no_object {
    ($nothing:expr) => {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok($nothing)
        }
    };
}
pub(super) use {no_list, nothing};

/// A member's name.
#[derive(Deserialize)]
pub(super) struct Name<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// A string, if it is one.
#[derive(Debug, Default)]
pub(super) struct Text<'a>(pub(super) Option<Cow<'a, str>>);

impl<'a> Text<'a> {
    /// An empty one says nothing.
    pub(super) fn said(self) -> Option<Cow<'a, str>> {
        self.0.filter(|text| !text.is_empty())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfText;

        impl<'de> Visitor<'de> for OfText {
            type Value = Text<'de>;

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Some(text.into())))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Some(text.to_owned().into())))
            }

            nothing!(Text(None); visit_bool(bool), visit_u64(u64), visit_i64(i64), visit_f64(f64));
            no_list!(Text(None));
            no_object!(Text(None));
        }

        deserializer.deserialize_any(OfText)
    }
}

/// A whole number from 0 to 2^64 − 1, if it is one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Number(pub(super) Option<u64>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfNumber;

        impl<'de> Visitor<'de> for OfNumber {
            type Value = Number;

            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number(Some(number)))
            }

            // Negative numbers come as `i64`, fractions, exponents and what is beyond 64 bits as `f64`.
            nothing!(Number(None); visit_bool(bool), visit_i64(i64), visit_f64(f64), visit_str(&str));
            no_list!(Number(None));
            no_object!(Number(None));
        }

        deserializer.deserialize_any(OfNumber)
    }
}

/// All that a member says, in its order: a string, or objects and lists of them in which parts of a message, of
/// reasoning or of a call of a tool hold it.
#[derive(Debug, Default)]
pub(super) struct Texts<'a> {
    pub(super) said: SmallVec<[Cow<'a, str>; 1]>,
    /// Reasoning among the parts of a message.
    pub(super) thought: Vec<Cow<'a, str>>,
}

impl<'a> Texts<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.said.is_empty() && self.thought.is_empty()
    }

    pub(super) fn all(self) -> impl Iterator<Item = Cow<'a, str>> {
        self.said.into_iter().chain(self.thought)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Texts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut texts = Self::default();
        let collect = Collect {
            to: &mut texts,
            is_thought: false,
        };
        collect.deserialize(deserializer)?;
        Ok(texts)
    }
}

struct Collect<'t, 'a> {
    to: &'t mut Texts<'a>,
    is_thought: bool,
}

/// The members that hold text which a model produced.
fn holds_text(name: &str) -> bool {
    matches!(
        name,
        "text"
            | "content"
            | "refusal"
            | "thinking"
            | "summary"
            | "transcript"
            | "function"
            | "custom"
            | "name"
            | "arguments"
            | "input"
    )
}

impl<'a> Collect<'_, 'a> {
    fn push(self, text: Cow<'a, str>) {
        if text.is_empty() {
            return;
        }
        if self.is_thought {
            self.to.thought.push(text);
        } else {
            self.to.said.push(text);
        }
    }

    /// For what lies in a member of this name.
    fn within(&mut self, name: &str) -> Collect<'_, 'a> {
        Collect {
            to: self.to,
            is_thought: self.is_thought || matches!(name, "thinking" | "summary"),
        }
    }
}

impl<'de: 'a, 'a> DeserializeSeed<'de> for Collect<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Collect<'_, 'a> {
    type Value = ();

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<(), E> {
        self.push(text.into());
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.push(text.to_owned().into());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self.within(""))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            if holds_text(&name) {
                map.next_value_seed(self.within(&name))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    nothing!((); visit_bool(bool), visit_u64(u64), visit_i64(i64), visit_f64(f64));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(json: &str) -> Vec<String> {
        let texts: Texts = serde_json::from_str(json).unwrap();
        texts.all().map(Cow::into_owned).collect()
    }

    #[test]
    fn reasoning_among_the_parts_of_a_message_is_told_apart() {
        let json = r#"[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]},{"type":"text","text":"a"}]"#;
        let Texts { said, thought } = serde_json::from_str(json).unwrap();
        assert_eq!((&*said[0], &*thought[0]), ("a", "hm"));
        assert_eq!((said.len(), thought.len()), (1, 1));
    }

    #[test]
    fn texts_are_found_in_every_form_and_nothing_else_is() {
        for (json, expected) in [
            (r#""hi\n""#, vec!["hi\n"]),
            (r#""""#, vec![]),
            ("null", vec![]),
            ("7", vec![]),
            ("-7.5", vec![]),
            ("true", vec![]),
            (
                r#"[{"type":"text","text":"a"},"b",{"type":"refusal","refusal":"c"}]"#,
                vec!["a", "b", "c"],
            ),
            (
                r#"[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]},{"type":"image_url","image_url":{"url":"x"}}]"#,
                vec!["hm"],
            ),
            (
                r#"[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":"{}"}},
                    {"type":"custom","custom":{"name":"g","input":"x"}}, null]"#,
                vec!["f", "{}", "g", "x"],
            ),
            (
                r#"{"id":"audio_1","transcript":"said","data":"AAAA"}"#,
                vec!["said"],
            ),
        ] {
            assert_eq!(texts(json), expected, "{json}");
        }
    }

    #[test]
    fn what_is_of_another_kind_is_read_as_nothing() {
        for json in ["null", "[1,2]", r#"{"a":[{}]}"#, "true", "1.5", "-1"] {
            assert_eq!(serde_json::from_str::<Number>(json).unwrap().0, None);
            assert_eq!(serde_json::from_str::<Text>(json).unwrap().0, None);
        }
        assert_eq!(serde_json::from_str::<Number>("7").unwrap().0, Some(7));
        assert_eq!(serde_json::from_str::<Number>(r#""7""#).unwrap().0, None);
        let text: Text = serde_json::from_str(r#""a\"b""#).unwrap();
        assert_eq!(text.said().as_deref(), Some("a\"b"));
        assert_eq!(serde_json::from_str::<Text>(r#""""#).unwrap().said(), None);
    }
}
