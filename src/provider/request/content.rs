//! What of `messages` or `input` decides a bound: how many messages and images, and whether all of it is there.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// Content of a shape unknown here may name anything, so its prompt is open (another parser may read it).
pub(super) const UNREADABLE: Option<&str> = Some("content of an unknown shape");

/// What of `messages` or `input` decides the bound.
#[derive(Default)]
pub(super) struct ContentLook {
    pub(super) messages: i64,
    pub(super) images: i64,
    pub(super) image_bytes: usize,
    pub(super) open: Option<&'static str>,
}

impl<'de> Deserialize<'de> for ContentLook {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;
        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = ContentLook;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a text or a list of messages")
            }

            fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
                Ok(ContentLook {
                    messages: 1,
                    ..ContentLook::default()
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut look = ContentLook::default();
                while let Some(item) = items.next_element::<&RawValue>()? {
                    look.messages += 1;
                    match serde_json::from_str::<Item>(item.get()) {
                        Ok(item) => look.read_item(&item),
                        Err(_) => look.open = look.open.or(UNREADABLE),
                    }
                }
                Ok(look)
            }
        }
        deserializer.deserialize_any(ContentVisitor)
    }
}

/// As [`ContentLook`], of a list of messages that are all of a known shape: gone through once, without a look ahead at
/// each message.
pub(super) struct KnownContent(pub(super) ContentLook);

impl<'de> Deserialize<'de> for KnownContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MessagesVisitor;
        impl<'de> Visitor<'de> for MessagesVisitor {
            type Value = KnownContent;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut look = ContentLook::default();
                while let Some(item) = items.next_element::<Item>()? {
                    look.messages += 1;
                    look.read_item(&item);
                }
                Ok(KnownContent(look))
            }
        }
        deserializer.deserialize_seq(MessagesVisitor)
    }
}

/// A message, or an item of a response's input.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    audio: Option<IgnoredAny>,
}

/// A part of a message's content.
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    image_url: Option<&'a RawValue>,
    file_id: Option<IgnoredAny>,
}

impl ContentLook {
    fn read_item(&mut self, item: &Item) {
        match item.kind.as_deref() {
            None
            | Some(
                "message"
                | "function_call"
                | "function_call_output"
                | "custom_tool_call"
                | "custom_tool_call_output"
                | "reasoning",
            ) => {}
            Some(_) => {
                self.open = self
                    .open
                    .or(Some("an item by reference or of a hosted tool"));
            }
        }
        if item.audio.is_some() {
            self.open = self.open.or(Some("audio"));
        }
        for content in [item.content, item.output].into_iter().flatten() {
            if !content.get().starts_with('[') {
                continue; // a text: its bytes count
            }
            match serde_json::from_str::<Vec<Part>>(content.get()) {
                Ok(parts) => parts.iter().for_each(|part| self.read_part(part)),
                Err(_) => self.open = self.open.or(UNREADABLE),
            }
        }
    }

    fn read_part(&mut self, part: &Part) {
        match part.kind.as_deref() {
            None
            | Some(
                "text" | "input_text" | "output_text" | "refusal" | "summary_text"
                | "reasoning_text",
            ) => {}
            Some("image_url" | "input_image") if part.file_id.is_none() => {
                self.images += 1;
                self.image_bytes += part.image_url.map_or(0, |url| url.get().len());
            }
            Some("input_audio") => self.open = self.open.or(Some("audio")),
            Some(_) => self.open = self.open.or(Some("a file")),
        }
    }
}

/// Calls `each` with every text of `value`, images left out.
pub(super) fn for_each_text(value: &serde_json::Value, each: &mut impl FnMut(&str)) {
    match value {
        serde_json::Value::String(text) => each(text),
        serde_json::Value::Array(items) => items.iter().for_each(|item| for_each_text(item, each)),
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                if key != "image_url" {
                    for_each_text(value, each);
                }
            }
        }
        // A prompt of an embeddings request may be token numbers, one token each; nothing else here is text.
        serde_json::Value::Number(_) => each("0"),
        serde_json::Value::Bool(_) | serde_json::Value::Null => {}
    }
}
