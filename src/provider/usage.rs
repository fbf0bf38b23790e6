//! Reads the token counts that an upstream reports, whatever server it is.
//!
//! The last usage seen wins, an explicit zero is zero, and anything but a whole number from 0 to 2^53 − 1 counts as
//! not reported. Without both input and output (embeddings: input) nothing was reported: `None`. Only the usage is
//! read; everything else in the answer is skipped without being kept.

use std::{fmt, marker::PhantomData, sync::LazyLock};

use memchr::memmem;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{
    Endpoint,
    lenient::{Name, Number, no_list, nothing},
};
use crate::{
    domain::{quantity::Quantity, usage::TokenUsage},
    json,
};

/// The usage of a whole answer.
#[must_use]
pub fn usage_of_answer(endpoint: Endpoint, body: &[u8]) -> Option<TokenUsage> {
    let reported = match last_reported(body) {
        Some(reported) => reported,
        None => read_if_reported(body)?.usage?,
    };
    reported.of(endpoint)
}

/// The usage in the `data` of one server-sent event; most events have none.
#[must_use]
pub fn usage_of_frame(endpoint: Endpoint, data: &[u8]) -> Option<TokenUsage> {
    let frame = read_if_reported(data)?;
    let reported = match endpoint {
        // The answer is wrapped: `{"type": "response.completed", "response": {…, "usage": {…}}}`.
        Endpoint::Responses => frame.response.and_then(|response| response.usage),
        Endpoint::ChatCompletions | Endpoint::Embeddings | Endpoint::Models => frame.usage,
    };
    reported?.of(endpoint)
}

/// Within a JSON text it can only be a whole string: quotes inside a string are escaped, so that an answer that speaks
/// of `\"usage\"` does not match.
const USAGE: &[u8] = b"\"usage\"";

/// Made once: it prepares what it looks for.
static LAST_USAGE: LazyLock<memmem::FinderRev> = LazyLock::new(|| memmem::FinderRev::new(USAGE));

/// How far from an answer's end its usage is looked for backwards, byte by byte; forwards many are looked at at once.
const END_BYTES: usize = 4096;

/// What an answer reports at its end, where nearly all do: what comes before, which may be long, is not gone through.
/// `None` where the last usage is not a member of the answer itself.
fn last_reported(answer: &[u8]) -> Option<Reported> {
    let is_object = answer.trim_ascii_start().first() == Some(&b'{');
    let end = &answer[answer.len().saturating_sub(END_BYTES)..];
    let at = is_object.then(|| LAST_USAGE.rfind(end))??;
    let value = end[at + USAGE.len()..]
        .trim_ascii_start()
        .strip_prefix(b":")?;
    let mut values = serde_json::Deserializer::from_slice(value).into_iter();
    let Object(reported) = values.next()?.ok()?;
    json::ends_the_text(&value[values.byte_offset()..]).then_some(reported)?
}

/// Parses `json` unless a look at its bytes shows that there is no usage in it.
fn read_if_reported(json: &[u8]) -> Option<Answer> {
    let reported =
        memmem::find_iter(json, USAGE).any(|at| !is_null_member(&json[at + USAGE.len()..]));
    // OpenAI's chunks all have `"usage":null` but the last.
    if !reported {
        return None;
    }
    let Object(answer) = serde_json::from_slice(json).ok()?;
    answer
}

/// Whether a member's name is followed by `: null`.
fn is_null_member(after_name: &[u8]) -> bool {
    after_name
        .trim_ascii_start()
        .strip_prefix(b":")
        .is_some_and(|value| value.trim_ascii_start().starts_with(b"null"))
}

/// What is read of an answer or a frame.
#[derive(Default)]
struct Answer {
    usage: Option<Reported>,
    response: Option<Wrapped>,
}

impl Members for Answer {
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "usage" => keep(&mut self.usage, map),
            "response" => keep(&mut self.response, map),
            _ => skip(map),
        }
    }
}

/// The `response` in a frame of `/v1/responses`.
#[derive(Default)]
struct Wrapped {
    usage: Option<Reported>,
}

impl Members for Wrapped {
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "usage" => keep(&mut self.usage, map),
            _ => skip(map),
        }
    }
}

/// A `usage` object, in the words of chat completions and embeddings or of responses.
#[derive(Default)]
struct Reported {
    input: Named,
    output: Named,
    /// What some servers report beside the details: cached (`DeepSeek`), read and created (`LiteLLM`).
    cached: Count,
    cache_write: Count,
    input_details: Option<Details>,
    output_details: Option<Details>,
}

impl Members for Reported {
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "prompt_tokens" => self.input.of_completions = map.next_value()?,
            "input_tokens" => self.input.of_responses = map.next_value()?,
            "completion_tokens" => self.output.of_completions = map.next_value()?,
            "output_tokens" => self.output.of_responses = map.next_value()?,
            "prompt_cache_hit_tokens" | "cache_read_input_tokens" => {
                self.cached = map.next_value()?;
            }
            "cache_creation_input_tokens" => self.cache_write = map.next_value()?,
            "prompt_tokens_details" | "input_tokens_details" => keep(&mut self.input_details, map)?,
            "completion_tokens_details" | "output_tokens_details" => {
                keep(&mut self.output_details, map)?;
            }
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl Reported {
    fn of(self, endpoint: Endpoint) -> Option<TokenUsage> {
        let input = self.input.count()?;
        let output = match endpoint {
            Endpoint::Embeddings => self.output.count().unwrap_or_default(),
            Endpoint::ChatCompletions | Endpoint::Responses | Endpoint::Models => {
                self.output.count()?
            }
        };
        let in_detail = self.input_details.unwrap_or_default();
        let out_detail = self.output_details.unwrap_or_default();
        // A part is never more than the whole, or a price could be taken of a negative rest.
        let cached = (in_detail.cached.0.or(self.cached.0).unwrap_or_default()).min(input);
        let written = in_detail.cache_write.0.or(self.cache_write.0);
        Some(TokenUsage {
            input_tokens: input,
            output_tokens: output,
            cached_input_tokens: cached,
            cache_write_input_tokens: written.unwrap_or_default().min(input.minus(cached)),
            reasoning_output_tokens: out_detail.reasoning.0.unwrap_or_default().min(output),
        })
    }
}

/// A count by each of its two names. Servers that write both mean one number, and some leave the name that is not the
/// endpoint's at zero or null.
#[derive(Default)]
struct Named {
    of_completions: Count,
    of_responses: Count,
}

impl Named {
    fn count(&self) -> Option<Quantity> {
        self.of_completions.0.max(self.of_responses.0)
    }
}

#[derive(Default)]
struct Details {
    cached: Count,
    cache_write: Count,
    reasoning: Count,
}

impl Members for Details {
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "cached_tokens" => self.cached = map.next_value()?,
            "cache_write_tokens" | "cache_creation_tokens" => {
                self.cache_write = map.next_value()?;
            }
            "reasoning_tokens" => self.reasoning = map.next_value()?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// An object that is read member by member; serde's derived structs refuse one that repeats a name.
trait Members: Default {
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Takes the next value if it is an object; `null` or anything else leaves what was seen before.
fn keep<'de, T: Members, A: MapAccess<'de>>(
    slot: &mut Option<T>,
    map: &mut A,
) -> Result<(), A::Error> {
    if let Object(Some(value)) = map.next_value()? {
        *slot = Some(value);
    }
    Ok(())
}

fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

/// `None` for any JSON value but an object.
struct Object<T>(Option<T>);

impl<'de, T: Members> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Members> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut object = T::default();
        while let Some(Name(name)) = map.next_key()? {
            object.member(&name, &mut map)?;
        }
        Ok(Object(Some(object)))
    }

    nothing!(Object(None); visit_bool(bool), visit_u64(u64), visit_i64(i64), visit_f64(f64), visit_str(&str));
    no_list!(Object(None));
}

/// A number of tokens, if it is one.
#[derive(Clone, Copy, Default)]
struct Count(Option<Quantity>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Number(number) = Number::deserialize(deserializer)?;
        let count = number.and_then(|number| i64::try_from(number).ok());
        let count = count.filter(|count| *count <= Quantity::MAX.get());
        Ok(Self(count.map(Quantity::new)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_a_count_with_both_its_names_the_one_that_says_more_is_taken() {
        for body in [
            r#"{"usage":{"prompt_tokens":7,"completion_tokens":2,"input_tokens":0,"output_tokens":0}}"#,
            r#"{"usage":{"input_tokens":null,"output_tokens":null,"prompt_tokens":7,"completion_tokens":2}}"#,
            r#"{"usage":{"input_tokens":7,"prompt_tokens":0,"completion_tokens":0,"output_tokens":2}}"#,
        ] {
            let reported = usage_of_answer(Endpoint::ChatCompletions, body.as_bytes());
            assert_eq!(reported, Some(usage([7, 2, 0, 0, 0])), "{body}");
        }
    }

    /// input, output, cached, cache write, reasoning
    fn usage(counts: [i64; 5]) -> TokenUsage {
        let [input, output, cached, cache_write, reasoning] = counts.map(Quantity::new);
        TokenUsage {
            input_tokens: input,
            output_tokens: output,
            cached_input_tokens: cached,
            cache_write_input_tokens: cache_write,
            reasoning_output_tokens: reasoning,
        }
    }

    macro_rules! fixture {
        ($name:literal) => {
            (
                $name,
                include_str!(concat!("../../tests/it/openai/fixtures/", $name, ".json")),
            )
        };
    }

    /// The contract with the servers in the field: a whole answer each, as it comes.
    #[test]
    fn the_usage_of_every_known_server_is_read() {
        use Endpoint::{ChatCompletions, Embeddings, Responses};
        for ((name, body), endpoint, expected) in [
            (
                fixture!("openai_chat"),
                ChatCompletions,
                Some([1117, 46, 1024, 0, 12]),
            ),
            (
                fixture!("openai_chat_cache_write"),
                ChatCompletions,
                Some([2006, 300, 1920, 64, 0]),
            ),
            (
                fixture!("openai_responses"),
                Responses,
                Some([75, 1186, 0, 0, 1024]),
            ),
            (
                fixture!("openai_responses_incomplete"),
                Responses,
                Some([328, 16, 256, 0, 16]),
            ),
            (
                fixture!("openai_embeddings"),
                Embeddings,
                Some([8, 0, 0, 0, 0]),
            ),
            (
                fixture!("azure_chat"),
                ChatCompletions,
                Some([33, 557, 0, 0, 320]),
            ),
            (
                fixture!("llama_cpp_chat"),
                ChatCompletions,
                Some([25, 9, 0, 0, 0]),
            ),
            (
                fixture!("vllm_chat"),
                ChatCompletions,
                Some([42, 7, 0, 0, 0]),
            ),
            (
                fixture!("ollama_chat"),
                ChatCompletions,
                Some([26, 10, 0, 0, 0]),
            ),
            (
                fixture!("deepseek_chat"),
                ChatCompletions,
                Some([90, 12, 64, 0, 5]),
            ),
            (
                fixture!("litellm_chat"),
                ChatCompletions,
                Some([500, 20, 300, 100, 0]),
            ),
            (
                fixture!("odd_zero"),
                ChatCompletions,
                Some([12, 0, 0, 0, 0]),
            ),
            (fixture!("odd_zero"), Embeddings, Some([12, 0, 0, 0, 0])),
            (
                fixture!("odd_parts_above_the_whole"),
                ChatCompletions,
                Some([10, 5, 10, 0, 5]),
            ),
            (
                fixture!("odd_details"),
                ChatCompletions,
                Some([10, 5, 0, 0, 0]),
            ),
            (
                fixture!("odd_repeated"),
                ChatCompletions,
                Some([20, 6, 0, 0, 0]),
            ),
            (
                fixture!("odd_text_speaks_of_usage"),
                ChatCompletions,
                Some([31, 17, 0, 0, 0]),
            ),
            (fixture!("odd_negative"), ChatCompletions, None),
            (fixture!("odd_string"), ChatCompletions, None),
            (fixture!("odd_float"), ChatCompletions, None),
            (fixture!("odd_too_large"), ChatCompletions, None),
            (fixture!("odd_null"), ChatCompletions, None),
            (fixture!("odd_missing"), ChatCompletions, None),
            (fixture!("odd_only_input"), ChatCompletions, None),
            (
                fixture!("odd_only_input"),
                Embeddings,
                Some([12, 0, 0, 0, 0]),
            ),
            (fixture!("odd_list"), ChatCompletions, None),
            (fixture!("odd_cut"), ChatCompletions, None),
        ] {
            assert_eq!(
                usage_of_answer(endpoint, body.as_bytes()),
                expected.map(usage),
                "{name}"
            );
        }
    }

    #[test]
    fn the_usage_in_every_known_stream_is_read() {
        use Endpoint::{ChatCompletions, Responses};
        for ((name, data), endpoint, expected) in [
            (
                fixture!("openai_chunk_usage"),
                ChatCompletions,
                Some([19, 10, 0, 0, 0]),
            ),
            (fixture!("openai_chunk_text"), ChatCompletions, None),
            (fixture!("azure_chunk_filter"), ChatCompletions, None),
            (
                fixture!("llama_cpp_chunk_usage"),
                ChatCompletions,
                Some([25, 9, 0, 0, 0]),
            ),
            (
                fixture!("vllm_chunk_running_usage"),
                ChatCompletions,
                Some([42, 3, 0, 0, 0]),
            ),
            (fixture!("openai_event_created"), Responses, None),
            (fixture!("openai_event_delta"), Responses, None),
            (
                fixture!("openai_event_completed"),
                Responses,
                Some([37, 11, 16, 0, 4]),
            ),
            (
                fixture!("openai_event_incomplete"),
                Responses,
                Some([37, 16, 0, 0, 0]),
            ),
            (
                fixture!("openai_event_failed"),
                Responses,
                Some([37, 0, 0, 0, 0]),
            ),
        ] {
            assert_eq!(
                usage_of_frame(endpoint, data.as_bytes()),
                expected.map(usage),
                "{name}"
            );
        }
        assert_eq!(usage_of_frame(ChatCompletions, b"[DONE]"), None);
        assert_eq!(usage_of_frame(ChatCompletions, b""), None);
    }

    #[test]
    fn what_is_no_object_has_no_usage() {
        for body in [
            "",
            "null",
            "[]",
            "\"usage\"",
            "[{\"usage\": {}}]",
            "{\"usage\"",
            "\u{0}",
        ] {
            assert_eq!(
                usage_of_answer(Endpoint::ChatCompletions, body.as_bytes()),
                None,
                "{body}"
            );
        }
    }

    #[test]
    fn usage_is_found_however_far_from_the_end_it_stands() {
        let counted = r#""usage":{"prompt_tokens":5,"completion_tokens":7}"#;
        for length in END_BYTES - 200..END_BYTES + 200 {
            let text = "x".repeat(length);
            for body in [
                format!(r#"{{{counted},"text":"{text}"}}"#),
                format!(r#"{{"text":"{text}",{counted}}}"#),
            ] {
                let read = usage_of_answer(Endpoint::ChatCompletions, body.as_bytes());
                assert_eq!(read, Some(usage([5, 7, 0, 0, 0])), "{length}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_in_the_answer_changes_the_usage(text in ".*", key in "[a-z_\\\"]{0,12}") {
            let body = serde_json::json!({
                "choices": [{"message": {"content": text, key: {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}}}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 7},
            });
            let read = usage_of_answer(Endpoint::ChatCompletions, body.to_string().as_bytes());
            prop_assert_eq!(read, Some(usage([5, 7, 0, 0, 0])));
        }

        #[test]
        fn the_end_of_an_answer_says_what_the_whole_says(
            text in ".*",
            members in prop::collection::vec((0_usize..8, 0_i64..3), 0..6),
        ) {
            let mut body = "{".to_owned();
            for (number, (kind, count)) in members.into_iter().enumerate() {
                let usage = format!(r#"{{"prompt_tokens": {count}, "completion_tokens": 1}}"#);
                let text = serde_json::json!(text);
                let comma = if number > 0 { "," } else { "" };
                body += comma;
                body += &match kind {
                    0 | 1 => format!(r#""usage" : {usage}"#),
                    2 => r#""usage":null"#.to_owned(),
                    3 => format!(r#""choices":[{{"usage":{usage}}}]"#),
                    4 => format!(r#""x":{{"usage":{usage}}}"#),
                    5 => r#""y":["usage",{}]"#.to_owned(),
                    6 => format!(r#""object":"usage","text":{text}"#),
                    _ => format!(r#""usage":{{"prompt_tokens":{count},"x":{{"usage":{usage}}},"completion_tokens":2}}"#),
                };
            }
            body += "} ";
            let whole = read_if_reported(body.as_bytes()).and_then(|it| it.usage);
            let whole = whole.and_then(|it| it.of(Endpoint::ChatCompletions));
            prop_assert_eq!(usage_of_answer(Endpoint::ChatCompletions, body.as_bytes()), whole, "{}", body);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = usage_of_answer(Endpoint::Responses, &bytes);
            let _ = usage_of_frame(Endpoint::Responses, &[b"\"usage\":".as_slice(), &bytes].concat());
            let _ = usage_of_answer(Endpoint::Responses, &[b"{\"usage\":{}".as_slice(), &bytes].concat());
        }
    }
}
