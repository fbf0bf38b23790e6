use super::*;

fn chat(body: &str) -> RequestLook {
    RequestLook::read(
        Endpoint::ChatCompletions,
        Bytes::copy_from_slice(body.as_bytes()),
    )
    .unwrap()
}

fn refused(endpoint: Endpoint, body: &str) -> String {
    RequestLook::read(endpoint, Bytes::copy_from_slice(body.as_bytes()))
        .unwrap_err()
        .to_string()
}

#[test]
fn a_wrong_field_is_named_with_what_was_found_and_what_is_accepted() {
    let chat = Endpoint::ChatCompletions;
    for (endpoint, body, says) in [
        (
            chat,
            r#"{"model":"a","model":"b"}"#,
            "the key \"model\" more than once",
        ),
        (
            chat,
            r#"{"m\u006fdel":"a","model":"b"}"#,
            "the key \"model\" more than once",
        ),
        (chat, "[]", "not a JSON object"),
        (chat, "{", "not JSON"),
        (
            chat,
            r#"{"n":0}"#,
            "'n' is 0; write a whole number from 1 to 128",
        ),
        (chat, r#"{"n":129}"#, "'n' is 129"),
        (chat, r#"{"n":1.5}"#, "'n' is 1.5"),
        (
            chat,
            r#"{"max_tokens":0}"#,
            "'max_tokens' is 0; write a whole number from 1 to 9007199254740991",
        ),
        (
            chat,
            r#"{"max_tokens":9007199254740992}"#,
            "'max_tokens' is 9007199254740992; write a whole number from 1 to 9007199254740991",
        ),
        (chat, r#"{"max_tokens":-1}"#, "'max_tokens' is -1"),
        (chat, r#"{"max_tokens":"5"}"#, "'max_tokens' is \"5\""),
        (
            chat,
            r#"{"max_completion_tokens":9223372036854775808}"#,
            "'max_completion_tokens' is 9223372036854775808",
        ),
        (
            chat,
            r#"{"stream":"yes"}"#,
            "'stream' is \"yes\"; write true or false",
        ),
        (chat, r#"{"model":7}"#, "'model' is 7"),
        (
            Endpoint::Responses,
            r#"{"background":true}"#,
            "'background' is not supported",
        ),
        (
            Endpoint::Responses,
            r#"{"max_output_tokens":0}"#,
            "'max_output_tokens' is 0",
        ),
    ] {
        let message = refused(endpoint, body);
        assert!(message.contains(says), "{body}: {message}");
    }
    let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(129));
    assert!(refused(chat, &long).contains("a text of 129 bytes"));
}

#[test]
fn options_of_a_stream_that_could_be_read_two_ways_are_refused() {
    let twice = "'stream_options' is an object that has the key \"include_usage\" more than once; \
                 write it once";
    for (options, says) in [
        (r#"{"include_usage":true,"include_usage":false}"#, twice),
        (r#"{"include_usage":false,"include_usage":false}"#, twice),
        (
            r#"{"include_usage":true,"include_us\u0061ge":false}"#,
            twice,
        ),
        (
            r#"{"a":1,"include_usage":true,"a":2}"#,
            "'stream_options' is an object that has the key \"a\" more than once",
        ),
        ("[]", "'stream_options' is []; write an object, or null"),
        ("true", "'stream_options' is true"),
        (r#""no""#, "'stream_options' is \"no\""),
    ] {
        let body = format!(r#"{{"stream":true,"stream_options":{options}}}"#);
        let message = refused(Endpoint::ChatCompletions, &body);
        assert!(message.contains(says), "{body}: {message}");
    }
}

#[test]
fn a_name_in_other_letters_is_refused_wherever_it_is_read() {
    let (chat, responses) = (Endpoint::ChatCompletions, Endpoint::Responses);
    for (endpoint, body, says) in [
        (
            chat,
            r#"{"model":"ok","Model":"forbidden"}"#,
            "'model' is written \"Model\"; write its name in small letters",
        ),
        (chat, r#"{"Model":null}"#, "'model' is written \"Model\""),
        (
            chat,
            r#"{"MAX_TOKENS":100000,"max_tokens":5}"#,
            "'max_tokens' is written \"MAX_TOKENS\"",
        ),
        (
            chat,
            r#"{"max_to\u212aens":100000}"#,
            "'max_tokens' is written",
        ),
        (chat, r#"{"\u017ftream":true}"#, "'stream' is written"),
        (chat, r#"{"Stream":true}"#, "'stream' is written \"Stream\""),
        (chat, r#"{"N":50}"#, "'n' is written \"N\""),
        (chat, r#"{"N_predict":50}"#, "'n_predict' is written"),
        (
            chat,
            r#"{"Messages":[]}"#,
            "'messages' is written \"Messages\"",
        ),
        (
            responses,
            r#"{"max_output_Tokens":50}"#,
            "'max_output_tokens' is written",
        ),
        (
            chat,
            r#"{"stream_options":{"Include_Usage":false}}"#,
            "'include_usage' is written \"Include_Usage\" within 'stream_options'; \
             write its name in small letters",
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","Content":[]}]}"#,
            "'content' is written \"Content\" within 'messages'",
        ),
        (
            chat,
            r#"{"messages":[{"content":[{"type":"text","Image_URL":""}]}]}"#,
            "'image_url' is written \"Image_URL\" within 'messages'",
        ),
        (
            responses,
            r#"{"input":[{"ID":"msg_1"}]}"#,
            "'id' is written \"ID\" within 'input'",
        ),
        (
            responses,
            r#"{"tools":[{"type":"function","Type":"web_search"}]}"#,
            "'type' is written \"Type\" within 'tools'",
        ),
    ] {
        let message = refused(endpoint, body);
        assert!(message.contains(says), "{body}: {message}");
    }
    let look = RequestLook::read(
        chat,
        r#"{"Temperature":1,"max_token":1,"messages":[{"Name":"x","content":"hi"}]}"#.into(),
    );
    assert!(look.is_ok(), "what is not read may be called anything");
}

#[test]
fn a_member_that_is_there_twice_is_refused_wherever_it_is_read() {
    for (body, says) in [
        (
            r#"{"messages":[{"role":"user","content":"hi","content":"ho"}]}"#,
            "'content' is there more than once within 'messages'; write it once",
        ),
        (
            r#"{"messages":[{"content":"hi","c\u006fntent":null}]}"#,
            "'content' is there more than once within 'messages'",
        ),
        (
            r#"{"messages":[{"content":[{"type":"text","type":"file"}]}]}"#,
            "'type' is there more than once within 'messages'",
        ),
        (
            r#"{"messages":[{"content":{"type":"text","type":"file"}}]}"#,
            "'type' is there more than once within 'messages'",
        ),
        (
            r#"{"input":[7,{"id":null,"id":"msg_1"}]}"#,
            "'id' is there more than once within 'input'",
        ),
        (
            r#"{"tools":[{"type":"function","type":"web_search"}]}"#,
            "'type' is there more than once within 'tools'",
        ),
    ] {
        let message = refused(Endpoint::Responses, body);
        assert!(message.contains(says), "{body}: {message}");
    }
}

#[test]
fn a_maximum_is_lowered_in_the_field_that_is_there() {
    let lowered = |body: &str| {
        String::from_utf8(
            chat(body)
                .body(
                    Some(Quantity::new(7)),
                    || "max_tokens",
                    UsageChunk::LeaveAsIs,
                )
                .to_vec(),
        )
        .unwrap()
    };
    assert_eq!(
        lowered(r#"{ "max_tokens" : 100, "x":1}"#),
        r#"{ "max_tokens" : 7, "x":1}"#
    );
    assert_eq!(
        lowered(r#"{"max_completion_tokens":100}"#),
        r#"{"max_completion_tokens":7}"#
    );
    assert_eq!(
        lowered(r#"{"max_completion_tokens":100,"max_tokens":3}"#),
        r#"{"max_completion_tokens":7,"max_tokens":3}"#
    );
    assert_eq!(lowered(r#"{"max_tokens":null}"#), r#"{"max_tokens":7}"#);
    // OpenAI takes one of both: a null that would become the other is left alone.
    assert_eq!(
        lowered(r#"{"max_tokens":null,"max_completion_tokens":100}"#),
        r#"{"max_tokens":null,"max_completion_tokens":7}"#
    );
    assert_eq!(
        lowered(r#"{"max_tokens":null,"max_completion_tokens":null}"#),
        r#"{"max_tokens":7,"max_completion_tokens":null}"#
    );
    assert_eq!(
        lowered(r#"{"messages":[]}"#),
        r#"{"max_tokens":7,"messages":[]}"#
    );
    assert_eq!(lowered("{ }"), r#"{"max_tokens":7 }"#);
}

#[test]
fn a_maximum_that_some_upstreams_put_first_is_lowered_too_and_said_where_all_heed_it() {
    let lowered = |endpoint, body: &str, to: Option<i64>| {
        let look = RequestLook::read(endpoint, Bytes::copy_from_slice(body.as_bytes())).unwrap();
        let field = if endpoint == Endpoint::Responses {
            "max_output_tokens"
        } else {
            "max_tokens"
        };
        let to = to.map(Quantity::new);
        let lowered = look.body(to, || field, UsageChunk::LeaveAsIs);
        let named = look.named_maximum().map(Quantity::get);
        (named, String::from_utf8(lowered.to_vec()).unwrap())
    };
    let (chat, responses) = (Endpoint::ChatCompletions, Endpoint::Responses);
    for (endpoint, body, named, lowered_to, expected) in [
        (
            chat,
            r#"{"n_predict":100000,"max_tokens":50}"#,
            100_000,
            Some(7),
            r#"{"n_predict":7,"max_tokens":7}"#,
        ),
        (
            chat,
            r#"{"max_tokens":50,"n_predict":3}"#,
            50,
            Some(7),
            r#"{"max_tokens":7,"n_predict":3}"#,
        ),
        (
            chat,
            r#"{"max_tokens":50,"n_predict":100}"#,
            100,
            None,
            r#"{"max_tokens":50,"n_predict":100}"#,
        ),
        (
            chat,
            r#"{"n_predict":100}"#,
            100,
            Some(7),
            r#"{"max_tokens":7,"n_predict":7}"#,
        ),
        // Where it is ignored, nothing else would hold the answer to what was reserved for it.
        (
            chat,
            r#"{"n_predict":100}"#,
            100,
            None,
            r#"{"max_tokens":100,"n_predict":100}"#,
        ),
        (
            chat,
            r#"{"n_predict":100,"max_completion_tokens":null}"#,
            100,
            None,
            r#"{"n_predict":100,"max_completion_tokens":100}"#,
        ),
        (
            responses,
            r#"{"max_output_tokens":50,"n_predict":100,"max_tokens":90}"#,
            100,
            Some(16),
            r#"{"max_output_tokens":16,"n_predict":16,"max_tokens":16}"#,
        ),
        (
            responses,
            r#"{"max_tokens":90}"#,
            90,
            None,
            r#"{"max_output_tokens":90,"max_tokens":90}"#,
        ),
    ] {
        let found = lowered(endpoint, body, lowered_to);
        assert_eq!(found, (Some(named), expected.to_owned()), "{body}");
    }
    assert_eq!(
        lowered(chat, r#"{"n_predict":null}"#, Some(7)),
        (None, r#"{"max_tokens":7,"n_predict":null}"#.to_owned())
    );
    let message = refused(chat, r#"{"n_predict":-1}"#);
    assert!(message.contains("'n_predict' is -1"), "{message}");
}

#[test]
fn of_two_numbers_of_answers_the_larger_is_the_bound() {
    for endpoint in [Endpoint::ChatCompletions, Endpoint::Responses] {
        for (body, answers) in [
            (r#"{"n":2}"#, 2),
            (r#"{"n":1,"n_cmpl":50}"#, 50),
            (r#"{"n_cmpl":3,"n":4}"#, 4),
            (r#"{"n_cmpl":null}"#, 1),
        ] {
            let body = Bytes::copy_from_slice(body.as_bytes());
            let look = RequestLook::read(endpoint, body.clone()).unwrap();
            assert_eq!(look.answers, answers, "{body:?}");
        }
        let message = refused(endpoint, r#"{"n":1,"n_cmpl":129}"#);
        assert!(message.contains("'n_cmpl' is 129"), "{message}");
    }
}

#[test]
fn a_user_that_is_empty_names_nobody() {
    for (body, user) in [
        (r#"{"user":"ann","safety_identifier":"bob"}"#, Some("ann")),
        (r#"{"user":"","safety_identifier":"bob"}"#, Some("bob")),
        (r#"{"user":null,"safety_identifier":"bob"}"#, Some("bob")),
        (r#"{"user":""}"#, None),
    ] {
        assert_eq!(chat(body).user.as_deref(), user, "{body}");
    }
}

#[test]
fn a_stream_is_asked_for_its_usage_by_a_splice() {
    let asked = |body: &str| {
        let look = chat(body);
        (
            String::from_utf8(look.body(None, || "max_tokens", UsageChunk::Ask).to_vec()).unwrap(),
            look.wants_usage_chunk,
        )
    };
    for (body, expected, wanted) in [
        (
            r#"{"stream":true}"#,
            r#"{"stream_options":{"include_usage":true},"stream":true}"#,
            false,
        ),
        (
            r#"{"stream":true,"stream_options":null}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            false,
        ),
        (
            r#"{"stream":true,"stream_options":{}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            false,
        ),
        (
            r#"{"stream":true,"stream_options":{"a":1}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true,"a":1}}"#,
            false,
        ),
        (
            r#"{"stream":true,"stream_options":{"include_usage":false}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            false,
        ),
        (
            r#"{"stream":true,"stream_options":{"include_us\u0061ge":0}}"#,
            r#"{"stream":true,"stream_options":{"include_us\u0061ge":true}}"#,
            false,
        ),
        (
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            true,
        ),
        (r#"{"stream":false}"#, r#"{"stream":false}"#, false),
    ] {
        assert_eq!(asked(body), (expected.to_owned(), wanted), "{body}");
    }
}

#[test]
fn the_bound_is_the_bytes_and_something_for_templates() {
    let body = r#"{"messages":[{"role":"user","content":"hi"},{"role":"user","content":"ho"}]}"#;
    let expected = i64::try_from(body.len()).unwrap() + 2 * 16 + 64;
    assert_eq!(chat(body).input_bound(), Quantity::new(expected));
    assert!(chat(body).open_input.is_none());
}

#[test]
fn an_image_counts_as_ten_thousand_tokens_and_its_bytes_do_not() {
    let image = "A".repeat(50_000);
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":[{{"type":"text","text":"what?"}},{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{image}"}}}}]}}]}}"#
    );
    let look = chat(&body);
    assert!(look.open_input.is_none());
    let bound = look.input_bound().get();
    assert!((10_000..10_500).contains(&bound), "{bound}");
}

#[test]
fn an_image_is_one_whatever_it_is_called_and_wherever_it_stands() {
    let url = r#""image_url":{"url":"https://x/i.png"}"#;
    for content in [
        format!(r#"[{{"type":"image_url",{url}}}]"#),
        format!("[{{{url}}}]"),
        format!(r#"[{{"type":null,{url}}}]"#),
        format!(r#"[{{"type":"text","text":"hi",{url}}}]"#),
        format!(r#"[{{"type":"text","text":"hi","uuid":"u",{url}}}]"#),
        format!(r#"{{"type":"image_url",{url}}}"#),
        format!("{{{url}}}"),
        r#"[{"type":"input_image","image_url":"https://x/i.png"}]"#.to_owned(),
    ] {
        let look = chat(&format!(
            r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#
        ));
        let bound = look.input_bound().get();
        assert!((10_000..10_500).contains(&bound), "{content}: {bound}");
        let tokens = look.tokenized_input(|_| Quantity::ONE).get();
        assert!((10_000..10_500).contains(&tokens), "{content}: {tokens}");
    }
}

#[test]
fn a_second_field_of_content_hides_nothing_of_the_first() {
    let image = r#"{"type":"image_url","image_url":{"url":"https://x/i.png"}}"#;
    let images = [image; 10].join(",");
    let messages = format!(r#""messages":[{{"role":"user","content":[{images}]}}]"#);
    let input = r#""input":"x""#;
    let alone = chat(&format!("{{{messages}}}")).input_bound().get();
    assert!(alone > 100_000, "{alone}");
    for endpoint in [Endpoint::ChatCompletions, Endpoint::Responses] {
        for body in [
            format!("{{{messages},{input}}}"),
            format!("{{{input},{messages}}}"),
        ] {
            let look = RequestLook::read(endpoint, body.clone().into()).unwrap();
            let bound = look.input_bound().get();
            assert!(bound > alone, "{body}: {bound}");
            assert!(look.tokenized_input(|_| Quantity::ONE).get() > 100_000);
        }
    }
}

#[test]
fn content_that_is_not_in_the_body_opens_the_prompt() {
    let responses = Endpoint::Responses;
    let chat = Endpoint::ChatCompletions;
    let embeddings = Endpoint::Embeddings;
    for (endpoint, body, open) in [
        (
            responses,
            r#"{"previous_response_id":"resp_1","input":"hi"}"#,
            true,
        ),
        (
            responses,
            r#"{"previous_response_id":null,"input":"hi"}"#,
            false,
        ),
        (responses, r#"{"conversation":"conv_1"}"#, true),
        (responses, r#"{"prompt":{"id":"pmpt_1"}}"#, true),
        (
            responses,
            r#"{"input":[{"role":"user","content":"hi"}]}"#,
            false,
        ),
        (
            responses,
            r#"{"input":[{"type":"item_reference","id":"msg_1"}]}"#,
            true,
        ),
        (
            responses,
            r#"{"input":[{"role":"user","content":[{"type":"input_file","file_id":"f"}]}]}"#,
            true,
        ),
        (
            responses,
            r#"{"input":[{"role":"user","content":[{"type":"input_image","file_id":"f"}]}]}"#,
            true,
        ),
        (
            responses,
            r#"{"input":[{"role":"user","content":[{"type":"input_image","image_url":"https://x"}]}]}"#,
            false,
        ),
        (responses, r#"{"tools":[{"type":"web_search"}]}"#, true),
        (
            responses,
            r#"{"tools":[{"type":"function","name":"f"}]}"#,
            false,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{}}]}]}"#,
            true,
        ),
        (
            chat,
            r#"{"messages":[{"role":"assistant","audio":{"id":"a"}}]}"#,
            true,
        ),
        (
            chat,
            r#"{"messages":[{"role":"assistant","audio":null}]}"#,
            false,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"type":"file","file":{}}]}]}"#,
            true,
        ),
        (responses, r#"{"input":[{"id":"msg_1"}]}"#, true),
        (responses, r#"{"input":[{"type":null,"id":"msg_1"}]}"#, true),
        (
            responses,
            r#"{"input":[{"role":"user","id":"msg_1"}]}"#,
            true,
        ),
        (
            responses,
            r#"{"input":[{"content":"hi","id":"msg_1"}]}"#,
            true,
        ),
        (
            responses,
            r#"{"input":[{"role":"user","content":"hi","id":"msg_1"}]}"#,
            false,
        ),
        (responses, r#"{"input":[{"role":"user","id":null}]}"#, false),
        (responses, r#"{"input":[{"type":7,"content":"hi"}]}"#, true),
        (responses, r#"{"input":[{}]}"#, true),
        (
            responses,
            r#"{"input":[{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}]}"#,
            false,
        ),
        (
            responses,
            r#"{"input":[{"type":"function_call_output","call_id":"c","output":[{"type":"input_file","file_id":"f"}]}]}"#,
            true,
        ),
        (
            responses,
            r#"{"input":[{"role":"user","content":{"type":"input_file","file_id":"f"}}]}"#,
            true,
        ),
        (
            responses,
            r#"{"input":[{"role":"user","content":{"type":"input_text","text":"hi"}}]}"#,
            false,
        ),
        (chat, r#"{"messages":[{"role":"user","content":7}]}"#, true),
        (
            chat,
            r#"{"messages":[{"role":"user","content":{"file":{}}}]}"#,
            true,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"text":"hi"}]}]}"#,
            false,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"type":null,"text":"hi","image_url":null,"cache_control":{}}]}]}"#,
            false,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"video_url":{"url":"http://x/v.mp4"}}]}]}"#,
            true,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"input_audio":{"data":"AA=="}}]}]}"#,
            true,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"image_url":{"url":"http://x/i.png"}}]}]}"#,
            false,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"text":"hi","document":"d"}]}]}"#,
            true,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi","document":"d"}]}]}"#,
            false,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi","uuid":"u","video_url":null}]}]}"#,
            true,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi","video_url":{}}]}]}"#,
            true,
        ),
        (
            chat,
            r#"{"messages":[{"role":"user","content":[{"type":"image_url","uuid":"u","image_url":{"url":"http://x"}}]}]}"#,
            false,
        ),
        (
            chat,
            r#"{"messages":[{"role":"assistant","content":null,"tool_calls":[]}]}"#,
            false,
        ),
        (chat, r#"{"web_search_options":{}}"#, true),
        (embeddings, r#"{"input":"a"}"#, false),
        (embeddings, r#"{"input":["a","{b}"]}"#, false),
        (embeddings, r#"{"input":[1,2,30]}"#, false),
        (embeddings, r#"{"input":[[1, 2],[30]]}"#, false),
        (embeddings, r#"{"input":[-1]}"#, true),
        (embeddings, r#"{"input":[{"image":"https://x"}]}"#, true),
        (responses, r#"{"input":[[1,2]]}"#, true),
        (chat, r#"{"messages":[7]}"#, true),
        (chat, r#"{"messages":null}"#, true),
        (chat, r#"{"messages":"hi"}"#, false),
    ] {
        let look = RequestLook::read(endpoint, Bytes::copy_from_slice(body.as_bytes())).unwrap();
        assert_eq!(look.open_input.is_some(), open, "{body}");
    }
}

#[test]
fn a_token_that_is_embedded_by_its_number_is_one() {
    let numbers = vec!["17"; 1_000].join(",");
    for input in [format!("[{numbers}]"), format!("[[{numbers}]]")] {
        let body = format!(r#"{{"input":{input}}}"#);
        let look = RequestLook::read(Endpoint::Embeddings, body.into()).unwrap();
        let tokens = look.tokenized_input(|_| Quantity::ONE).get();
        assert!((1_000..1_050).contains(&tokens), "{tokens}");
    }
}

#[test]
fn the_tokenized_bound_counts_texts_and_is_never_above_the_bytes() {
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#,
        "word ".repeat(1_000)
    );
    let look = chat(&body);
    let words = |text: &str| Quantity::from_count(text.split_whitespace().count());
    let tokens = look.tokenized_input(words).get();
    assert!((1_000..1_050).contains(&tokens), "{tokens}");
    assert_eq!(look.tokenized_input(|_| Quantity::MAX), look.input_bound());
}

#[test]
fn a_text_that_is_there_twice_is_counted_by_its_bytes() {
    let words = |text: &str| Quantity::from_count(text.split_whitespace().count());
    let long = "word ".repeat(1_000);
    for members in [
        format!(
            r#""tools":[{{"type":"function","function":{{"description":"{long}","description":"x"}}}}]"#
        ),
        format!(r#""response_format":{{"type":"{long}","type":"text"}}"#),
    ] {
        let look = chat(&format!(r#"{{"messages":[],{members}}}"#));
        assert_eq!(look.tokenized_input(words), look.input_bound(), "{members}");
    }
}
