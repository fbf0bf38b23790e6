//! What of `messages` or `input` decides a bound: how many messages and images, and whether all of it is there.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::named::{Misread, Named, Names, kind_of};

/// Content of a shape unknown here may name anything, so its prompt is open (another parser may read it).
pub(super) const UNREADABLE: Option<&str> = Some("content of an unknown shape");

/// What of `messages` or `input` decides the bound.
#[derive(Default)]
pub(super) struct ContentLook {
    pub(super) messages: i64,
    pub(super) images: i64,
    pub(super) image_bytes: usize,
    pub(super) open: Option<&'static str>,
    pub(super) misread: Option<Misread>,
    /// Whether there are numbers where messages or texts are usual.
    pub(super) has_tokens: bool,
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
                    look.read_entry(item.get());
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
                    look.read_item(item);
                }
                Ok(KnownContent(look))
            }
        }
        deserializer.deserialize_seq(MessagesVisitor)
    }
}

/// A message, or an item of a response's input.
type Item<'a> = Named<'a, ItemNames, 6>;

struct ItemNames;

impl Names<6> for ItemNames {
    const NAMES: [&'static str; 6] = ["type", "role", "content", "output", "audio", "id"];
}

/// A part of a message's content.
type Part<'a> = Named<'a, PartNames, 13>;

struct PartNames;

impl Names<13> for PartNames {
    const NAMES: [&'static str; 13] = [
        "type",
        "image_url",
        "uuid",
        "input_audio",
        "audio_url",
        "audio_embeds",
        "file_id",
        "file_url",
        "file_data",
        "file",
        "video_url",
        "video",
        "image_embeds",
    ];
    const PLAIN: &'static [&'static str] =
        &["text", "refusal", "detail", "annotations", "cache_control"];
}

const REFERENCE: Option<&str> = Some("an item by reference or of a hosted tool");
const AUDIO: Option<&str> = Some("audio");
const FILE: Option<&str> = Some("a file");

impl ContentLook {
    fn read_item(&mut self, item: Item) {
        self.note_misread(item.misread);
        let [kind, role, content, output, audio, id] = item.values;
        let is_message = role.is_some() && content.is_some();
        let open = match kind_of(kind).as_deref() {
            // OpenAI knows a reference by its id: its type may be left out.
            None if id.is_some() && !is_message => REFERENCE,
            None if [role, content, output].iter().all(Option::is_none) => UNREADABLE,
            None
            | Some(
                "message"
                | "function_call"
                | "function_call_output"
                | "custom_tool_call"
                | "custom_tool_call_output"
                | "reasoning",
            ) => None,
            Some(_) => REFERENCE,
        };
        self.note_open(open);
        if audio.is_some() {
            self.note_open(AUDIO);
        }
        for content in [content, output].into_iter().flatten() {
            self.read_content(content.get());
        }
    }

    fn read_entry(&mut self, entry: &str) {
        if entry.bytes().all(|byte| byte.is_ascii_digit()) {
            self.has_tokens = true;
            return;
        }
        self.messages += 1;
        if entry.starts_with('"') {
            return; // a text: its bytes count
        }
        if is_list_of_numbers(entry) {
            self.has_tokens = true;
            return;
        }
        match serde_json::from_str::<Item>(entry) {
            Ok(item) => self.read_item(item),
            Err(_) => self.note_open(UNREADABLE),
        }
    }

    fn read_content(&mut self, content: &str) {
        match content.as_bytes().first() {
            Some(b'"') => {} // a text: its bytes count
            Some(b'[') => match serde_json::from_str::<Vec<Part>>(content) {
                Ok(parts) => parts.into_iter().for_each(|part| self.read_part(part)),
                Err(_) => self.note_open(UNREADABLE),
            },
            _ => match serde_json::from_str::<Part>(content) {
                Ok(part) => self.read_part(part),
                Err(_) => self.note_open(UNREADABLE),
            },
        }
    }

    /// A part is what its members make it, whatever its type says.
    fn read_part(&mut self, part: Part) {
        self.note_misread(part.misread);
        // vLLM goes by them where there is no type, and where there is a uuid, which by itself names what was sent before.
        let [
            kind,
            image_url,
            uuid,
            input_audio,
            audio_url,
            audio_embeds,
            files @ ..,
        ] = part.values;
        let kind = kind_of(kind);
        let open = match kind.as_deref() {
            _ if files.iter().any(Option::is_some) => FILE,
            _ if input_audio.or(audio_url).or(audio_embeds).is_some() => AUDIO,
            _ if uuid.is_some() && image_url.is_none() => FILE,
            None if part.has_others => UNREADABLE,
            None
            | Some(
                "text" | "input_text" | "output_text" | "refusal" | "summary_text"
                | "reasoning_text" | "image_url" | "input_image",
            ) => None,
            Some("input_audio") => AUDIO,
            Some(_) => FILE,
        };
        self.note_open(open);
        let is_called_image = matches!(kind.as_deref(), Some("image_url" | "input_image"));
        if image_url.is_some() || (is_called_image && open.is_none()) {
            self.images += 1;
            self.image_bytes += image_url.map_or(0, |url| url.get().len());
        }
    }

    fn note_misread(&mut self, misread: Option<Misread>) {
        if self.misread.is_none() {
            self.misread = misread;
        }
    }

    fn note_open(&mut self, open: Option<&'static str>) {
        self.open = self.open.or(open);
    }
}

fn is_list_of_numbers(json: &str) -> bool {
    let is_in_one = |byte: u8| byte.is_ascii_digit() || b"[], \t\r\n".contains(&byte);
    json.starts_with('[') && json.bytes().all(is_in_one)
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
