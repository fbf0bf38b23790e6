//! Counts what a stream produces, without tokenizing it unless it must.

use crate::{domain::quantity::Quantity, provider::tokens};

/// Texts longer than this are counted and let go, so that an open stream stays small.
const LONGEST_KEPT_BYTES: usize = 32 * 1024;

/// What one answer (choice) has produced.
#[derive(Default)]
struct Answer {
    /// Frames that carried text: a token each, or several, of servers that do not cut tokens in pieces.
    frames: i64,
    /// Text not counted for good: after a check, the last word, which may go on.
    text: String,
    counted: Quantity,
    /// Of the text that is counted for good.
    characters: i64,
    /// Bytes that may still come before the count could pass the maximum: a token is at least a byte.
    unchecked_bytes: usize,
    tokens_at_check: i64,
}

/// Counts the output of a request's answers.
pub struct OutputMeter {
    model: String,
    answers: Vec<Answer>,
}

impl OutputMeter {
    #[must_use]
    pub fn new(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            answers: Vec::new(),
        }
    }

    /// Takes produced text.
    pub fn add(&mut self, answer: usize, text: &str) {
        // `n` is at most 128: a server that numbers its answers higher is counted in the last.
        let index = answer.min(127);
        if self.answers.len() <= index {
            self.answers.resize_with(index + 1, Answer::default);
        }
        let answer = &mut self.answers[index];
        answer.frames += 1;
        answer.unchecked_bytes += text.len();
        answer.text.push_str(text);
        if answer.text.len() > LONGEST_KEPT_BYTES {
            let all = answer.text.len();
            let end = tokens::last_word(&answer.text).unwrap_or(all);
            answer.count_for_good(&self.model, end);
        }
    }

    #[must_use]
    pub fn has_produced(&self) -> bool {
        !self.answers.is_empty()
    }

    /// All output so far, by the tokenizer. Of an answer that was given `maximum` no more than that, unless it has
    /// passed it by the fewest tokens that it can be.
    #[must_use]
    pub fn tokens(&self, maximum: Option<Quantity>) -> Quantity {
        let of_answer = |answer: &Answer| {
            let counted = answer.tokens(&self.model);
            match maximum {
                Some(maximum) if counted > maximum => {
                    maximum.max(Quantity::new(answer.fewest(&self.model, counted.get())))
                }
                _ => counted,
            }
        };
        self.answers.iter().map(of_answer).sum()
    }

    /// Whether `bytes` more of text may have to be counted to know whether `maximum` is passed.
    #[must_use]
    pub fn may_count(&self, maximum: Quantity, bytes: usize) -> bool {
        let fits = |answer: &Answer| answer.fits(maximum.get(), bytes);
        !Answer::default().fits(maximum.get(), bytes) || !self.answers.iter().all(fits)
    }

    /// Whether an answer has passed `maximum`, so that its upstream plainly does not honour it: a stream that keeps its
    /// maximum must not be cut.
    pub fn passes(&mut self, maximum: Quantity) -> bool {
        let model = &self.model;
        self.answers
            .iter_mut()
            .any(|answer| answer.passes(model, maximum.get()))
    }
}

impl Answer {
    fn tokens(&self, model: &str) -> Quantity {
        self.counted.plus(tokens::count(model, &self.text))
    }

    /// The fewest tokens that `counted` ones can be for a model whose own tokenizer is not known here: a quarter fewer,
    /// or one for two characters. Of emoji and rare scripts, which larger vocabularies have whole, the stand-in makes
    /// three and more a character.
    fn fewest(&self, model: &str, counted: i64) -> i64 {
        if tokens::is_exact(model) {
            return counted;
        }
        let characters = self.characters.saturating_add(characters_of(&self.text));
        (counted.saturating_mul(3) / 4).min(characters / 2)
    }

    /// Counts the first `end` bytes of the text, and lets them go.
    fn count_for_good(&mut self, model: &str, end: usize) {
        self.counted = self.counted.plus(tokens::count(model, &self.text[..end]));
        self.characters += characters_of(&self.text[..end]);
        self.text.drain(..end);
    }

    /// Whether not even a token for each byte, and `bytes` more, would pass the maximum.
    fn fits(&self, maximum: i64, bytes: usize) -> bool {
        let most = i64::try_from(self.unchecked_bytes.saturating_add(bytes)).unwrap_or(i64::MAX);
        most <= maximum.saturating_sub(self.tokens_at_check)
    }

    fn passes(&mut self, model: &str, maximum: i64) -> bool {
        if self.frames <= maximum && self.fits(maximum, 0) {
            return false;
        }
        if let Some(end) = tokens::last_word(&self.text) {
            self.count_for_good(model, end);
        }
        let counted = self.tokens(model).get();
        // Where their text comes to less than half as many tokens, they are pieces of tokens.
        if self.frames > maximum && counted.saturating_mul(2) >= self.frames {
            return true;
        }
        let tokens = self.fewest(model, counted);
        self.tokens_at_check = tokens;
        self.unchecked_bytes = 0;
        tokens > maximum
    }
}

fn characters_of(text: &str) -> i64 {
    i64::try_from(text.chars().count()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_passes_its_maximum_by_frames_or_by_tokens() {
        let mut meter = OutputMeter::new("gpt-5.1");
        for _ in 0..10 {
            meter.add(0, " word");
        }
        assert!(!meter.passes(Quantity::new(10)));
        meter.add(0, " word");
        assert!(meter.passes(Quantity::new(10)));

        let mut in_one_frame = OutputMeter::new("gpt-5.1");
        in_one_frame.add(0, &" word".repeat(11));
        assert!(in_one_frame.passes(Quantity::new(10)));
    }

    #[test]
    fn frames_that_are_pieces_of_tokens_are_no_tokens() {
        let mut meter = OutputMeter::new("some-llama");
        for letter in "internationalization of it".chars() {
            meter.add(0, letter.encode_utf8(&mut [0; 4]));
            assert!(!meter.passes(Quantity::new(10)));
        }
        for _ in 0..14 {
            meter.add(0, " word");
        }
        assert!(meter.passes(Quantity::new(10)));

        // Where they are tokens they are counted as such, whatever the stand-in's tokenizer says of their text.
        let mut meter = OutputMeter::new("some-llama");
        for _ in 0..1000 {
            meter.add(0, " word");
            assert!(!meter.passes(Quantity::new(1000)));
        }
        meter.add(0, " word");
        assert!(meter.passes(Quantity::new(1000)));
    }

    #[test]
    fn words_that_come_in_pieces_are_counted_as_one_text() {
        let text =
            "The quick brown fox jumps over 12 lazy dogs, doesn't it? Unbelievably so. ".repeat(9);
        let whole = tokens::count("gpt-5.1", &text);
        let mut meter = OutputMeter::new("gpt-5.1");
        for piece in text.as_bytes().chunks(3) {
            meter.add(0, std::str::from_utf8(piece).unwrap());
            // Looks at it each time: pieces are fewer than the maximum, and bytes are more.
            meter.answers[0].frames = 0;
            assert!(!meter.passes(whole));
        }
        assert!(
            meter.answers[0].text.len() < text.len() / 2,
            "counted for good"
        );
        assert_eq!(meter.tokens(None), whole);
        meter.add(0, " and so on");
        assert!(meter.passes(whole));
    }

    #[test]
    fn a_maximum_within_reach_of_the_bytes_may_have_to_be_counted_for() {
        let mut meter = OutputMeter::new("gpt-5.1");
        assert!(!meter.may_count(Quantity::new(10), 10));
        assert!(meter.may_count(Quantity::new(10), 11));
        meter.add(0, "12345");
        assert!(!meter.may_count(Quantity::new(10), 5));
        assert!(meter.may_count(Quantity::new(10), 6));
    }

    #[test]
    fn each_answer_has_the_maximum_to_itself() {
        let mut meter = OutputMeter::new("gpt-5.1");
        for answer in 0..4 {
            meter.add(answer, " word word word");
        }
        assert!(!meter.passes(Quantity::new(3)));
        assert_eq!(meter.tokens(None), Quantity::new(12));
    }

    #[test]
    fn long_output_is_counted_and_let_go() {
        let mut meter = OutputMeter::new("gpt-5.1");
        for _ in 0..20_000 {
            meter.add(0, " word");
        }
        assert!(meter.answers[0].text.len() <= LONGEST_KEPT_BYTES);
        assert_eq!(meter.tokens(None), Quantity::new(20_000));
    }

    #[test]
    fn a_stream_of_an_unknown_model_is_not_cut_for_its_tokenizer() {
        let mut meter = OutputMeter::new("some-llama");
        meter.add(0, &" word".repeat(13));
        assert!(
            !meter.passes(Quantity::new(10)),
            "13 by the stand-in may be 10 by its own"
        );
        meter.add(0, &" word".repeat(2));
        assert!(meter.passes(Quantity::new(10)));
    }

    #[test]
    fn a_stream_of_emoji_is_not_cut_for_a_tokenizer_that_has_them_in_pieces() {
        // Gemma's has each of these whole (llama.cpp's tokenizer, Gemma 3 270M); o200k makes two to four of it.
        let emoji = "🦄🧬🪐🛸🦖🪼🫠🧿".repeat(5);
        for (text, tokens) in [(emoji.as_str(), 40), ("🇩🇪🇫🇷🇯🇵🇧🇷", 8), ("𝕳𝖊𝖑𝖑𝖔", 5)]
        {
            let mut meter = OutputMeter::new("gemma");
            let maximum = Quantity::new(tokens);
            for character in text.chars() {
                meter.add(0, character.encode_utf8(&mut [0; 4]));
                assert!(!meter.passes(maximum), "{text}");
            }
            assert!(meter.tokens(None) > maximum, "{text}");
            assert_eq!(meter.tokens(Some(maximum)), maximum, "{text}");
            meter.add(0, &text.repeat(4));
            assert!(meter.passes(maximum), "{text}");
        }
    }
}
