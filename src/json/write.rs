//! Objects written member by member, for those of which there is one a request.
//!
//! A serializer looks at each byte of each text, names included; here names are this program's own and need no look,
//! and texts are looked at many bytes at once.

use std::fmt::{self, Display, Write};

/// An object (RFC 8259 §4) on its way into `to`; [`end`](Self::end) closes it.
pub struct ObjectWriter<'a, W: ?Sized> {
    to: &'a mut W,
    /// What stands before the next member.
    separator: &'static str,
}

impl<'a, W: Write + ?Sized> ObjectWriter<'a, W> {
    #[must_use]
    pub fn new(to: &'a mut W) -> Self {
        Self { to, separator: "{" }
    }

    /// # Errors
    /// Those of what is written to, here and below: a `String` has none.
    pub fn end(self) -> fmt::Result {
        self.to.write_str(match self.separator {
            "{" => "{}",
            _ => "}",
        })
    }

    /// Writes a member's name; gives where its value must be written. Names get no escapes: they are not from outside.
    ///
    /// # Errors
    /// As of [`end`](Self::end).
    pub fn value(&mut self, name: &str) -> Result<&mut W, fmt::Error> {
        self.to.write_str(self.separator)?;
        self.separator = ",";
        self.to.write_char('"')?;
        self.to.write_str(name)?;
        self.to.write_str("\":")?;
        Ok(self.to)
    }

    /// The members of an object that is written already, one at least.
    ///
    /// # Errors
    /// As of [`end`](Self::end).
    pub fn members_of(&mut self, object: &str) -> fmt::Result {
        self.to.write_str(self.separator)?;
        self.separator = ",";
        self.to.write_str(&object[1..object.len() - 1])
    }

    /// A member whose value is JSON already.
    ///
    /// # Errors
    /// As of [`end`](Self::end).
    pub fn json(&mut self, name: &str, value: &str) -> fmt::Result {
        self.value(name)?.write_str(value)
    }

    /// A text.
    ///
    /// # Errors
    /// As of [`end`](Self::end).
    pub fn text(&mut self, name: &str, value: &str) -> fmt::Result {
        text(self.value(name)?, value)
    }

    /// A text, as it displays itself.
    ///
    /// # Errors
    /// As of [`end`](Self::end).
    pub fn shown(&mut self, name: &str, value: impl Display) -> fmt::Result {
        let to = self.value(name)?;
        to.write_char('"')?;
        write!(Escaped(&mut *to), "{value}")?;
        to.write_char('"')
    }

    /// A number.
    ///
    /// # Errors
    /// As of [`end`](Self::end).
    pub fn number(&mut self, name: &str, value: impl itoa::Integer) -> fmt::Result {
        self.json(name, itoa::Buffer::new().format(value))
    }

    /// A list of texts.
    ///
    /// # Errors
    /// As of [`end`](Self::end).
    pub fn texts<'t>(
        &mut self,
        name: &str,
        values: impl IntoIterator<Item = &'t str>,
    ) -> fmt::Result {
        let to = self.value(name)?;
        let mut separator = '[';
        for value in values {
            to.write_char(separator)?;
            separator = ',';
            text(to, value)?;
        }
        to.write_str(if separator == '[' { "[]" } else { "]" })
    }
}

fn text<W: Write + ?Sized>(to: &mut W, text: &str) -> fmt::Result {
    to.write_char('"')?;
    Escaped(&mut *to).write_str(text)?;
    to.write_char('"')
}

/// Text within the quotes of a JSON string (RFC 8259 §7).
struct Escaped<'a, W: ?Sized>(&'a mut W);

impl<W: Write + ?Sized> Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let needs_escape = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
        // Hardly any text has one: all bytes are looked at, many at once, instead of up to the first one by one.
        if !text
            .bytes()
            .fold(false, |found, byte| found | needs_escape(byte))
        {
            return self.0.write_str(text);
        }
        let mut rest = text;
        while let Some(at) = rest.bytes().position(needs_escape) {
            self.0.write_str(&rest[..at])?;
            match rest.as_bytes()[at] {
                byte @ (b'"' | b'\\') => write!(self.0, "\\{}", char::from(byte))?,
                byte => write!(self.0, "\\u{byte:04x}")?,
            }
            rest = &rest[at + 1..];
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn written(write: impl FnOnce(&mut ObjectWriter<'_, String>) -> fmt::Result) -> Value {
        let mut to = String::new();
        let mut object = ObjectWriter::new(&mut to);
        write(&mut object).unwrap();
        object.end().unwrap();
        serde_json::from_str(&to).unwrap_or_else(|error| panic!("{to}: {error}"))
    }

    #[test]
    fn an_object_has_what_was_written() {
        assert_eq!(written(|_| Ok(())), json!({}));
        let all = written(|object| {
            object.text("a", "text")?;
            object.shown("b", 1.5)?;
            object.number("c", i64::MIN)?;
            object.json("d", "null")?;
            object.texts("e", [])?;
            object.texts("f", ["x", "\"y\""])?;
            object.members_of(r#"{"g":7,"h":8}"#)
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
                object.text("text", &text)?;
                object.shown("shown", &text)
            });
            prop_assert_eq!(both, json!({ "text": text, "shown": text }));
        }
    }
}
