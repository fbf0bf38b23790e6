//! Counts what a stream produces, without tokenizing it unless it must.

use crate::{domain::quantity::Quantity, provider::tokens};

/// Texts longer than this are counted and let go, so that an open stream stays small.
const LONGEST_KEPT_BYTES: usize = 32 * 1024;

/// What one answer (choice) has produced.
#[derive(Default)]
struct Answer {
    /// Frames that carried text: each is at least one token.
    frames: i64,
    /// Text not counted yet.
    text: String,
    counted: Quantity,
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
            answer.counted = answer
                .counted
                .plus(tokens::count(&self.model, &answer.text));
            answer.text.clear();
        }
    }

    #[must_use]
    pub fn has_produced(&self) -> bool {
        !self.answers.is_empty()
    }

    #[must_use]
    pub fn answers_begun(&self) -> usize {
        self.answers.len()
    }

    /// All output so far, by the tokenizer.
    #[must_use]
    pub fn tokens(&self) -> Quantity {
        self.answers
            .iter()
            .map(|answer| answer.tokens(&self.model))
            .sum()
    }

    /// Whether an answer has passed `maximum`, so that its upstream plainly does not honour it.
    ///
    /// A model whose own tokenizer is not known here may need up to a quarter fewer tokens for a text than the
    /// stand-in counts, and a stream that keeps its maximum must not be cut.
    pub fn passes(&mut self, maximum: Quantity) -> bool {
        let exact = tokens::is_exact(&self.model);
        let model = &self.model;
        self.answers
            .iter_mut()
            .any(|answer| answer.passes(model, maximum.get(), exact))
    }
}

impl Answer {
    fn tokens(&self, model: &str) -> Quantity {
        self.counted.plus(tokens::count(model, &self.text))
    }

    fn passes(&mut self, model: &str, maximum: i64, exact: bool) -> bool {
        if self.frames > maximum {
            return true;
        }
        let headroom = maximum.saturating_sub(self.tokens_at_check);
        if i64::try_from(self.unchecked_bytes).unwrap_or(i64::MAX) <= headroom {
            return false;
        }
        let tokens = self.tokens(model).get();
        let tokens = if exact {
            tokens
        } else {
            tokens.saturating_mul(3) / 4
        };
        self.tokens_at_check = tokens;
        self.unchecked_bytes = 0;
        tokens > maximum
    }
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
    fn each_answer_has_the_maximum_to_itself() {
        let mut meter = OutputMeter::new("gpt-5.1");
        for answer in 0..4 {
            meter.add(answer, " word word word");
        }
        assert!(!meter.passes(Quantity::new(3)));
        assert_eq!(meter.tokens(), Quantity::new(12));
    }

    #[test]
    fn long_output_is_counted_and_let_go() {
        let mut meter = OutputMeter::new("gpt-5.1");
        for _ in 0..20_000 {
            meter.add(0, " word");
        }
        assert!(meter.answers[0].text.len() <= LONGEST_KEPT_BYTES);
        assert_eq!(meter.tokens(), Quantity::new(20_000));
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
}
