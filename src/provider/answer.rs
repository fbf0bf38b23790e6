//! Borrowed looks into what a model answers: the texts it produced, and where usage members stand.

use std::{borrow::Cow, ops::Range};

use serde::Deserialize;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::{
    Endpoint,
    completion::Completion,
    lenient::{Number, Text},
};
use crate::json;

/// What one frame of a stream tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FrameLook<'a> {
    /// Produced texts, each with the answer (choice) it belongs to.
    pub texts: Vec<(usize, Cow<'a, str>)>,
    /// The answers (choices) that it is about, and whether each has come to its end.
    pub answers: SmallVec<[(usize, bool); 1]>,
    /// The chunk that carries usage and nothing else.
    pub is_usage_chunk: bool,
    /// Where a `usage: null` member stands in the data, its comma included.
    pub null_usage: Option<Range<usize>>,
    /// The last event of a response (`response.completed` and its like): nothing follows.
    pub is_last: bool,
    /// The completion's id, for frames that tollgate itself adds,
    pub id: Option<Cow<'a, str>>,
    /// and when it was made, in seconds since 1970.
    pub created: Option<u64>,
    /// The `sequence_number` of a response's event.
    pub number: Option<u64>,
    /// The upstream says that it failed.
    pub is_error: bool,
}

/// Looks at the data of one event; one that can't be read tells nothing and is passed on as it is.
#[must_use]
pub fn look_at_frame(endpoint: Endpoint, data: &str) -> FrameLook<'_> {
    match endpoint {
        Endpoint::ChatCompletions => look_at_chunk(data).unwrap_or_default(),
        Endpoint::Responses => look_at_event(data).unwrap_or_default(),
        Endpoint::Embeddings | Endpoint::Models => FrameLook::default(),
    }
}

fn look_at_chunk(data: &str) -> Option<FrameLook<'_>> {
    let chunk = Completion::parse(data).ok()?;
    let mut look = FrameLook {
        is_error: chunk.is_error(),
        id: chunk.id.said(),
        created: chunk.created.0,
        ..FrameLook::default()
    };
    let choices = chunk.choices.unwrap_or_default();
    look.is_usage_chunk = choices.is_empty() && chunk.usage.is_some();
    for choice in choices {
        let index = choice.index();
        look.answers.push((index, choice.is_finished()));
        look.texts.extend(choice.texts().map(|text| (index, text)));
    }
    // `Option<&RawValue>` reads a null member as none, so it is found by its text.
    if chunk.usage.is_none() {
        look.null_usage = null_usage_member(data);
    }
    Some(look)
}

/// Where the top-level member `"usage": null` stands, with the comma before it (or, as the first one, after it).
fn null_usage_member(data: &str) -> Option<Range<usize>> {
    memchr::memmem::find(data.as_bytes(), br#""usage""#)?; // nothing to take apart in most frames of most servers
    let members = json::members(data).ok()?;
    let at = members
        .iter()
        .position(|(key, value)| key == "usage" && value.get() == "null")?;
    let value = members[at].1;
    let offset = |part: &str| part.as_ptr().addr() - data.as_ptr().addr();
    let value_end = offset(value.get()) + value.get().len();
    if at == 0 {
        let start = data.find('{')? + 1;
        let end = data[value_end..].find([',', '}'])? + value_end;
        let comma = usize::from(data[end..].starts_with(','));
        return Some(start..end + comma);
    }
    let before = members[at - 1].1;
    Some(offset(before.get()) + before.get().len()..value_end)
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    delta: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    #[serde(borrow)]
    sequence_number: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Begun<'a> {
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(default)]
    created_at: Number,
}

fn look_at_event(data: &str) -> Option<FrameLook<'_>> {
    let event: Event = serde_json::from_str(data).ok()?;
    let mut look = FrameLook::default();
    if event.kind.ends_with(".delta")
        && let Some(Ok(text)) = event
            .delta
            .map(|delta| serde_json::from_str::<Cow<str>>(delta.get()))
        && !text.is_empty()
    {
        // All items of a response share its one maximum.
        look.texts.push((0, Cow::Owned(text.into_owned())));
    }
    if event.kind == "response.created"
        && let Some(Ok(begun)) = event
            .response
            .map(|response| serde_json::from_str::<Begun>(response.get()))
    {
        look.id = begun.id.said();
        look.created = begun.created_at.0;
    }
    look.number = event
        .sequence_number
        .and_then(|number| number.get().parse().ok());
    look.is_last = matches!(&*event.kind, "response.completed" | "response.incomplete");
    look.is_error = matches!(&*event.kind, "response.failed" | "error");
    Some(look)
}

/// The texts of a whole answer, each with the answer (choice) it belongs to; for counting where usage is missing.
#[must_use]
pub fn texts_of_answer(endpoint: Endpoint, body: &[u8]) -> Vec<(usize, String)> {
    let Ok(text) = std::str::from_utf8(body) else {
        return Vec::new();
    };
    match endpoint {
        Endpoint::ChatCompletions => look_at_chunk(text)
            .map(|look| {
                look.texts
                    .into_iter()
                    .map(|(choice, text)| (choice, text.into_owned()))
                    .collect()
            })
            .unwrap_or_default(),
        Endpoint::Responses => texts_of_response(text).unwrap_or_default(),
        Endpoint::Embeddings | Endpoint::Models => Vec::new(),
    }
}

/// Whether a whole answer says that there is none, although its status was good.
#[must_use]
pub fn is_failure(endpoint: Endpoint, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        error: Option<&'a RawValue>,
        #[serde(borrow, default)]
        status: Text<'a>,
    }
    let says = |word: &[u8]| memchr::memmem::find(body, word).is_some();
    if !says(br#""error""#) && !says(br#""failed""#) {
        return false; // most that produced nothing are embeddings, and long
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
        return false;
    };
    let has_failed = answer.status.0.as_deref() == Some("failed");
    answer.error.is_some() || (endpoint == Endpoint::Responses && has_failed)
}

fn texts_of_response(text: &str) -> Option<Vec<(usize, String)>> {
    let answer: serde_json::Value = serde_json::from_str(text).ok()?;
    let mut texts = Vec::new();
    for item in answer.get("output")?.as_array()? {
        let own = ["arguments", "name", "input"]
            .into_iter()
            .filter_map(|field| item.get(field)?.as_str());
        let parts = ["content", "summary"]
            .into_iter()
            .filter_map(|field| item.get(field)?.as_array())
            .flatten();
        let of_parts = parts.filter_map(|part| part.get("text").or(part.get("refusal"))?.as_str());
        texts.extend(own.chain(of_parts).map(|text| (0, text.to_owned())));
    }
    Some(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(endpoint: Endpoint, data: &str) -> Vec<(usize, String)> {
        look_at_frame(endpoint, data)
            .texts
            .into_iter()
            .map(|(choice, text)| (choice, text.into_owned()))
            .collect()
    }

    #[test]
    fn an_upstreams_own_error_and_a_responses_name_and_numbers_are_seen() {
        let chat = |data| look_at_frame(Endpoint::ChatCompletions, data);
        assert!(chat(r#"{"error":{"message":"boom"}}"#).is_error);
        assert!(!chat(r#"{"error":null,"choices":[]}"#).is_error);
        let event = |data| look_at_frame(Endpoint::Responses, data);
        let created =
            event(r#"{"type":"response.created","sequence_number":0,"response":{"id":"resp_1"}}"#);
        assert_eq!(
            (created.id.as_deref(), created.number),
            (Some("resp_1"), Some(0))
        );
        let delta = event(r#"{"type":"x.delta","sequence_number":1.5,"delta":"hi"}"#);
        assert_eq!((delta.texts.len(), delta.number), (1, None));
    }

    #[test]
    fn produced_texts_are_found_wherever_servers_put_them() {
        let chat = Endpoint::ChatCompletions;
        for (endpoint, data, expected) in [
            (
                chat,
                r#"{"choices":[{"index":1,"delta":{"content":"a\nb"}}]}"#,
                vec![(1, "a\nb")],
            ),
            (
                chat,
                r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
                vec![],
            ),
            (
                chat,
                r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#,
                vec![(0, "hm")],
            ),
            (
                chat,
                r#"{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}}]}"#,
                vec![(0, "f"), (0, "{}")],
            ),
            (
                Endpoint::Responses,
                r#"{"type":"response.output_text.delta","delta":"hi"}"#,
                vec![(0, "hi")],
            ),
            (
                Endpoint::Responses,
                r#"{"type":"response.output_text.done","text":"hi"}"#,
                vec![],
            ),
        ] {
            let expected: Vec<(usize, String)> = expected
                .into_iter()
                .map(|(c, t)| (c, t.to_owned()))
                .collect();
            assert_eq!(texts(endpoint, data), expected, "{data}");
        }
    }

    #[test]
    fn a_null_usage_member_is_cut_out_with_one_comma() {
        for (data, without) in [
            (r#"{"id":"x","usage":null}"#, r#"{"id":"x"}"#),
            (r#"{"usage":null,"id":"x"}"#, r#"{"id":"x"}"#),
            (r#"{"usage":null}"#, "{}"),
            (
                r#"{"id":"x" , "usage" : null , "choices":[]}"#,
                r#"{"id":"x" , "choices":[]}"#,
            ),
        ] {
            let cut = look_at_frame(Endpoint::ChatCompletions, data)
                .null_usage
                .unwrap();
            assert_eq!(
                format!("{}{}", &data[..cut.start], &data[cut.end..]),
                without
            );
        }
        let quoted = r#"{"id":"x","choices":[{"delta":{"content":"\"usage\":null"}}]}"#;
        assert_eq!(
            look_at_frame(Endpoint::ChatCompletions, quoted).null_usage,
            None
        );
    }

    #[test]
    fn the_usage_chunk_and_the_end_are_told_apart() {
        let usage = look_at_frame(
            Endpoint::ChatCompletions,
            r#"{"choices":[],"usage":{"prompt_tokens":1}}"#,
        );
        assert!(usage.is_usage_chunk && usage.answers.is_empty());
        let end = look_at_frame(
            Endpoint::ChatCompletions,
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
        );
        assert!(end.answers.as_slice() == [(0, true)] && !end.is_usage_chunk);
        assert!(
            look_at_frame(
                Endpoint::Responses,
                r#"{"type":"response.completed","response":{}}"#
            )
            .is_last
        );
    }

    #[test]
    fn an_answer_that_says_it_failed_is_known() {
        let (chat, responses) = (Endpoint::ChatCompletions, Endpoint::Responses);
        for (endpoint, body, expected) in [
            (chat, r#"{"error":{"message":"boom"}}"#, true),
            (chat, r#"{"error":"boom"}"#, true),
            (chat, r#"{"error":null,"choices":[]}"#, false),
            (chat, r#"{"choices":[],"status":"failed"}"#, false),
            (
                chat,
                r#"{"choices":[{"message":{"content":"\"error\""}}]}"#,
                false,
            ),
            (responses, r#"{"status":"failed","error":null}"#, true),
            (responses, r#"{"status":"completed","error":null}"#, false),
            (Endpoint::Embeddings, r#"{"data":[],"usage":{}}"#, false),
            (Endpoint::Embeddings, r#"not "error" at all"#, false),
        ] {
            assert_eq!(is_failure(endpoint, body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn a_member_of_another_kind_hides_no_text() {
        for data in [
            r#"{"choices":[{"index":null,"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"message":null,"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"message":{"content":"a"},"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"message":{"content":"a"},"delta":{}}]}"#,
            r#"{"id":7,"created":"now","choices":[{"delta":{"content":[{"type":"text","text":"a"}],"tool_calls":{}}}]}"#,
            r#"{"choices":[{"delta":{"audio":{"id":"x","transcript":"a"}},"finish_reason":false}]}"#,
            r#"{"choices":[{"delta":{"reasoning":"a","reasoning_content":"a"}}]}"#,
        ] {
            let expected = [(0, "a".to_owned())];
            assert_eq!(texts(Endpoint::ChatCompletions, data), expected, "{data}");
        }
        let odd = r#"{"choices":[{"delta":{"content":"a"},"finish_reason":""}]}"#;
        let look = look_at_frame(Endpoint::ChatCompletions, odd);
        assert_eq!(look.answers.as_slice(), [(0, false)]);
    }

    #[test]
    fn texts_of_whole_answers_are_found() {
        let chat = br#"{"choices":[{"index":0,"message":{"content":"a"}},{"index":1,"message":{"content":"b"}}]}"#;
        assert_eq!(
            texts_of_answer(Endpoint::ChatCompletions, chat),
            [(0, "a".to_owned()), (1, "b".to_owned())]
        );
        let response =
            br#"{"output":[{"type":"message","content":[{"type":"output_text","text":"hi"}]}]}"#;
        assert_eq!(
            texts_of_answer(Endpoint::Responses, response),
            [(0, "hi".to_owned())]
        );
    }
}
