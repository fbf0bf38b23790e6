//! Strict looks at JSON that somebody else wrote: borrowed, one level deep, and never read two ways.

mod write;

use std::{borrow::Cow, collections::HashSet, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

pub use self::write::ObjectWriter;

/// How deep a body may be nested (interface.md §3, Limits of the connection).
const DEEPEST: usize = 128;
/// Up to so many keys are quickest compared with each other; a body may have millions.
const FEW_KEYS: usize = 32;

/// Why a body can't be read; names the place, and never quotes a text of the client's.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Unreadable(String);

/// A member of an object: its key, and its value, as it stands unless said otherwise.
pub type Member<'a, V = &'a RawValue> = (Cow<'a, str>, V);

/// An object read one level deep.
pub struct Object<'a, V = &'a RawValue> {
    pub text: &'a str,
    /// In the order they stand in; no key twice.
    pub members: Vec<Member<'a, V>>,
}

/// What the value of a member is read as. One that is looked into at once is not gone through twice.
pub trait ReadValue<'a>: Sized {
    /// Reads the value of the member `key`, whatever it is.
    ///
    /// # Errors
    /// Those of `map`, for what is not JSON.
    fn read<A: MapAccess<'a>>(key: &str, map: &mut A) -> Result<Self, A::Error>;
}

impl<'a> ReadValue<'a> for &'a RawValue {
    fn read<A: MapAccess<'a>>(_: &str, map: &mut A) -> Result<Self, A::Error> {
        map.next_value()
    }
}

/// Reads the members of a whole body.
///
/// # Errors
/// [`Unreadable`] for what is not UTF-8, not JSON, not an object, nested too deep, or has a key twice: of a repeated
/// key two parsers would read two values, and a limit could be passed by it.
pub fn read_object(body: &[u8]) -> Result<Object<'_>, Unreadable> {
    read_object_as(body)
}

/// As [`read_object`], with values read as `V`.
///
/// # Errors
/// As [`read_object`].
pub fn read_object_as<'a, V: ReadValue<'a>>(body: &'a [u8]) -> Result<Object<'a, V>, Unreadable> {
    let text = std::str::from_utf8(body).map_err(|error| {
        Unreadable(format!(
            "the body is not UTF-8: byte {} is wrong",
            error.valid_up_to()
        ))
    })?;
    check_depth(body)?;
    let read = serde_json::from_str::<Fields<V>>(text);
    let Fields(members) = read.map_err(|error| Unreadable(unreadable(&error)))?;
    Ok(Object { text, members })
}

/// Reads the elements of a body that is a list.
///
/// # Errors
/// [`Unreadable`] for what is not UTF-8, not JSON, not a list, or nested too deep.
pub fn read_list(body: &[u8]) -> Result<Vec<&RawValue>, Unreadable> {
    check_depth(body)?;
    serde_json::from_slice(body).map_err(|error| {
        Unreadable(match error.classify() {
            serde_json::error::Category::Data => "the body is not a JSON list".to_owned(),
            _ => unreadable(&error),
        })
    })
}

/// The members of an object within a body.
///
/// # Errors
/// Those of `serde_json`, for what is not an object or has a key twice.
pub fn members(text: &str) -> Result<Vec<Member<'_>>, serde_json::Error> {
    serde_json::from_str::<Fields>(text).map(|fields| fields.0)
}

/// Whether `text` is JSON in which no object, however deep, has a key twice.
#[must_use]
pub fn has_unique_keys(text: &[u8]) -> bool {
    serde_json::from_slice::<UniqueKeys>(text).is_ok()
}

/// Whether `key` is `name`, which is in small letters of ASCII, to a parser that does not heed case, as Go's does not.
#[must_use]
pub fn is_but_for_case(key: &str, name: &str) -> bool {
    if key.len() <= name.len() {
        return key.eq_ignore_ascii_case(name);
    }
    // Two letters outside ASCII have a small letter in it (Unicode, CaseFolding.txt), and are longer than that.
    let folded = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        _ => letter.to_ascii_lowercase(),
    };
    !key.is_ascii() && key.chars().map(folded).eq(name.chars())
}

/// The key, in quotes, that is there more than once, if that is what `error` of [`members`] says.
#[must_use]
pub fn repeated_key(error: &serde_json::Error) -> Option<String> {
    let message = error.to_string();
    let found = message.strip_prefix(REPEATED)?;
    let (key, _) = found.rsplit_once(" at line").unwrap_or((found, ""));
    Some(key.to_owned())
}

/// A value as a message shows it: itself if short, else its kind, and never a long text of the client's.
#[must_use]
pub fn shown(value: &RawValue) -> String {
    let text = value.get();
    match text.as_bytes().first() {
        _ if text.len() <= 32 => text.to_owned(),
        Some(b'"') => "a text".to_owned(),
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "a list".to_owned(),
        _ => "a number that is too long".to_owned(),
    }
}

/// The words of `serde_json`, but without the parts that quote the body.
fn unreadable(error: &serde_json::Error) -> String {
    if let Some(key) = repeated_key(error) {
        return format!("the body has the key {key} more than once; write it once");
    }
    match error.classify() {
        serde_json::error::Category::Data => "the body is not a JSON object".to_owned(),
        _ => format!(
            "the body is not JSON: it breaks at line {}, column {}",
            error.line(),
            error.column()
        ),
    }
}

const REPEATED: &str = "repeated key ";

/// The members of an object, in order; a repeated key is an error.
struct Fields<'a, V = &'a RawValue>(Vec<Member<'a, V>>);

impl<'de: 'a, 'a, V: ReadValue<'de>> Deserialize<'de> for Fields<'a, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor<V>(PhantomData<V>);
        impl<'de, V: ReadValue<'de>> Visitor<'de> for FieldsVisitor<V> {
            type Value = Fields<'de, V>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields: Vec<Member<'de, V>> = Vec::with_capacity(8);
                let mut many = HashSet::new();
                while let Some(Key(key)) = map.next_key()? {
                    let is_repeated = if fields.len() < FEW_KEYS {
                        fields.iter().any(|(known, _)| *known == key)
                    } else {
                        if many.is_empty() {
                            many.extend(fields.iter().map(|(known, _)| known.clone()));
                        }
                        !many.insert(key.clone())
                    };
                    if is_repeated {
                        let key: String = key.chars().take(64).collect();
                        return Err(serde::de::Error::custom(format_args!("{REPEATED}{key:?}")));
                    }
                    let value = V::read(&key, &mut map)?;
                    fields.push((key, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor(PhantomData))
    }
}

/// A key, or another text, borrowed where it has no escapes (a bare `Cow` would always copy).
#[derive(Deserialize)]
#[serde(transparent)]
pub struct Key<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// Any value in which no object has a key twice.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UniqueKeysVisitor;
        impl<'de> Visitor<'de> for UniqueKeysVisitor {
            type Value = UniqueKeys;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value without a repeated key")
            }

            fn visit_unit<E>(self) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_bool<E>(self, _: bool) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_i64<E>(self, _: i64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_u64<E>(self, _: u64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_f64<E>(self, _: f64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_str<E>(self, _: &str) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<UniqueKeys, A::Error> {
                while items.next_element::<UniqueKeys>()?.is_some() {}
                Ok(UniqueKeys)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
                let mut known = HashSet::new();
                while let Some(Key(key)) = map.next_key()? {
                    if !known.insert(key) {
                        return Err(serde::de::Error::custom(REPEATED));
                    }
                    map.next_value::<UniqueKeys>()?;
                }
                Ok(UniqueKeys)
            }
        }
        deserializer.deserialize_any(UniqueKeysVisitor)
    }
}

/// Refuses a body that is nested deeper than the contract allows: the raw look itself has no limit.
fn check_depth(body: &[u8]) -> Result<(), Unreadable> {
    let opened = memchr::memchr2_iter(b'{', b'[', body);
    if opened.take(DEEPEST + 1).count() <= DEEPEST {
        return Ok(()); // nearly always: so many in all, those in texts included, that none can lie too deep
    }
    let (mut depth, mut at) = (0_usize, 0);
    while at < body.len() {
        match body[at] {
            b'"' => at = end_of_string(body, at + 1),
            b'{' | b'[' => {
                depth += 1;
                if depth > DEEPEST {
                    return Err(Unreadable(format!(
                        "the body is nested deeper than {DEEPEST} levels at byte {at}"
                    )));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Whether `rest`, which follows a member's value in a JSON text, ends the text's outermost object, of which the member
/// then is one.
#[must_use]
pub fn ends_the_text(rest: &[u8]) -> bool {
    let (mut depth, mut at) = (1_usize, 0);
    while at < rest.len() {
        match rest[at] {
            b'"' => at = end_of_string(rest, at + 1),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return rest[at] == b'}' && rest[at + 1..].trim_ascii().is_empty();
        }
        at += 1;
    }
    false
}

/// The closing quote of a string whose first byte is at `at`.
fn end_of_string(body: &[u8], mut at: usize) -> usize {
    while let Some(step) = memchr::memchr2(b'"', b'\\', body.get(at..).unwrap_or_default()) {
        at += step;
        if body[at] == b'"' {
            return at;
        }
        at += 2;
    }
    body.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_text_closes_one_object_and_all_that_it_opens() {
        for rest in ["}", " } \n", r#","a":[{"b":"}]\"}"}],"c":{}}"#] {
            assert!(ends_the_text(rest.as_bytes()), "{rest}");
        }
        for rest in ["", "]", "}}", "}]", "} x", r#","a":"}"#, r#","a":{}"#, "]}"] {
            assert!(!ends_the_text(rest.as_bytes()), "{rest}");
        }
    }

    #[test]
    fn a_body_that_can_not_be_read_says_where() {
        for (body, says) in [
            (
                r#"{"model":"a","model":"b"}"#,
                "the key \"model\" more than once",
            ),
            (
                r#"{"m\u006fdel":"a","model":"b"}"#,
                "the key \"model\" more than once",
            ),
            ("[]", "not a JSON object"),
            ("7", "not a JSON object"),
            ("{", "not JSON: it breaks at line 1"),
            ("", "not JSON"),
            ("{} x", "not JSON"),
        ] {
            let error = read_object(body.as_bytes()).err().unwrap().to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
        assert!(
            read_object(b"{\"a\":\"\xff\"}")
                .err()
                .unwrap()
                .to_string()
                .contains("not UTF-8: byte 6")
        );
    }

    #[test]
    fn a_name_is_known_whatever_the_case_of_its_letters() {
        for key in [
            "max_tokens",
            "MAX_Tokens",
            "max_to\u{212a}ens",
            "max_token\u{17f}",
            "MAX_TO\u{212a}EN\u{17f}",
        ] {
            assert!(is_but_for_case(key, "max_tokens"), "{key}");
        }
        for key in [
            "max_token",
            "max_tokens_",
            "max-tokens",
            "max_to\u{3ba}ens",
            "",
        ] {
            assert!(!is_but_for_case(key, "max_tokens"), "{key}");
        }
    }

    #[test]
    fn a_repeated_key_is_found_among_many() {
        // Compared with each other these would take an hour.
        let body = |last: usize| {
            let members: Vec<String> = (0..1_000_000).map(|key| format!("\"{key}\":0")).collect();
            format!("{{{},\"{last}\":0}}", members.join(","))
        };
        assert_eq!(
            read_object(body(1_000_000).as_bytes())
                .unwrap()
                .members
                .len(),
            1_000_001
        );
        for again in [5, 40, 999_999] {
            assert!(read_object(body(again).as_bytes()).is_err(), "{again}");
        }
    }

    #[test]
    fn a_repeated_key_is_found_however_deep() {
        for (text, expected) in [
            (
                r#"{"a":[1,-1,1.5,"x",true,null,{"b":{}}],"b":{"b":1}}"#,
                true,
            ),
            (r#"{"a":[{"b":{"c":1,"c":2}}]}"#, false),
            (r#"{"a":{"c":1,"\u0063":2}}"#, false),
            ("{", false),
        ] {
            assert_eq!(has_unique_keys(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn depth_is_limited_and_braces_in_texts_do_not_count() {
        let nested =
            |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(
            read_object(nested(128).as_bytes())
                .err()
                .unwrap()
                .to_string()
                .contains("deeper than 128")
        );
        assert!(read_object(nested(127).as_bytes()).is_ok());
        let quoted = format!(r#"{{"a":"{}\"{}"}}"#, "[".repeat(500), "{".repeat(500));
        assert!(read_object(quoted.as_bytes()).is_ok());
    }
}
