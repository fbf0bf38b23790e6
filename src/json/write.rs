//! Objects written member by member, for those of which there is one a request.
//!
//! A serializer looks at each byte of each text, names included; here names are this program's own and need no look,
//! and texts are looked at many bytes at once.

use std::fmt::{self, Display, Write as _};

/// An object (RFC 8259 §4) that is being written; [`end`](Self::end) closes it.
pub struct ObjectWriter<'a> {
    to: &'a mut String,
    /// What stands before the next member.
    separator: char,
}

impl<'a> ObjectWriter<'a> {
    #[must_use]
    pub fn new(to: &'a mut String) -> Self {
        Self { to, separator: '{' }
    }

    pub fn end(self) {
        self.to
            .push_str(if self.separator == '{' { "{}" } else { "}" });
    }

    /// Writes a member's name; gives where its value must be written. Names get no escapes: they are not from outside.
    pub fn value(&mut self, name: &str) -> &mut String {
        self.to.push(self.separator);
        self.separator = ',';
        self.to.push('"');
        self.to.push_str(name);
        self.to.push_str("\":");
        self.to
    }

    /// The members of an object that is written already, one at least.
    pub fn members_of(&mut self, object: &str) {
        self.to.push(self.separator);
        self.separator = ',';
        self.to.push_str(&object[1..object.len() - 1]);
    }

    /// A member whose value is JSON already.
    pub fn json(&mut self, name: &str, value: &str) {
        self.value(name).push_str(value);
    }

    /// A text.
    pub fn text(&mut self, name: &str, value: &str) {
        push_text(self.value(name), value);
    }

    /// A text, as it displays itself; one that fails at that is cut short.
    pub fn shown(&mut self, name: &str, value: impl Display) {
        let to = self.value(name);
        to.push('"');
        let _ = write!(Escaped(to), "{value}");
        to.push('"');
    }

    /// A number.
    pub fn number(&mut self, name: &str, value: impl itoa::Integer) {
        self.json(name, itoa::Buffer::new().format(value));
    }

    /// A list of texts.
    pub fn texts<'t>(&mut self, name: &str, values: impl IntoIterator<Item = &'t str>) {
        let to = self.value(name);
        let mut separator = '[';
        for value in values {
            to.push(separator);
            separator = ',';
            push_text(to, value);
        }
        to.push_str(if separator == '[' { "[]" } else { "]" });
    }
}

fn push_text(to: &mut String, text: &str) {
    to.push('"');
    push_escaped(to, text);
    to.push('"');
}

/// Appends what stands for `text` within the quotes of a JSON string (RFC 8259 §7).
fn push_escaped(to: &mut String, text: &str) {
    let needs_escape = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    let mut rest = text;
    // Hardly any text has one: all bytes are looked at, many at once, instead of up to the first one by one.
    if text
        .bytes()
        .fold(false, |found, byte| found | needs_escape(byte))
    {
        while let Some(at) = rest.bytes().position(needs_escape) {
            to.push_str(&rest[..at]);
            to.push('\\');
            match rest.as_bytes()[at] {
                byte @ (b'"' | b'\\') => to.push(char::from(byte)),
                byte => {
                    const HEX: &[u8; 16] = b"0123456789abcdef";
                    to.push_str("u00");
                    to.push(char::from(HEX[usize::from(byte >> 4)]));
                    to.push(char::from(HEX[usize::from(byte & 15)]));
                }
            }
            rest = &rest[at + 1..];
        }
    }
    to.push_str(rest);
}

/// Escapes what is written through it.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        push_escaped(self.0, text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn written(write: impl FnOnce(&mut ObjectWriter<'_>)) -> Value {
        let mut to = String::new();
        let mut object = ObjectWriter::new(&mut to);
        write(&mut object);
        object.end();
        serde_json::from_str(&to).unwrap_or_else(|error| panic!("{to}: {error}"))
    }

    #[test]
    fn an_object_has_what_was_written() {
        assert_eq!(written(|_| {}), json!({}));
        let all = written(|object| {
            object.text("a", "text");
            object.shown("b", 1.5);
            object.number("c", i64::MIN);
            object.json("d", "null");
            object.texts("e", []);
            object.texts("f", ["x", "\"y\""]);
            object.members_of(r#"{"g":7,"h":8}"#);
        });
        let expected = json!({
            "a": "text", "b": "1.5", "c": i64::MIN, "d": null, "e": [], "f": ["x", "\"y\""], "g": 7, "h": 8,
        });
        assert_eq!(all, expected);
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_it_was_written(text in any::<String>()) {
            let both = written(|object| {
                object.text("text", &text);
                object.shown("shown", &text);
            });
            prop_assert_eq!(both, json!({ "text": text, "shown": text }));
        }
    }
}
