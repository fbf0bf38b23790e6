//! Counts tokens with the tokenizers that OpenAI publishes.
//!
//! Exact for the models those belong to, apart from the few tokens a chat template adds a message. For any other
//! model `o200k_base` stands in: [`is_exact`] tells.

use tiktoken_rs::{
    CoreBPE, cl100k_base_singleton, o200k_base_singleton,
    tokenizer::{Tokenizer, get_tokenizer},
};
use tokio::sync::{OnceCell, Semaphore};

use crate::domain::{price::base_of, quantity::Quantity};

/// Which encodings were read in by [`read_in`].
static READ_IN: [OnceCell<()>; 2] = [OnceCell::const_new(), OnceCell::const_new()];

/// The longest text that is tokenized in one go. See [`count`].
const MAX_PIECE_BYTES: usize = 64 * 1024;

/// How many tokens `text` is for `model`; text that looks like a special token counts as the text it is.
///
/// Long texts are cut before a word into parts of at most 64 KiB, which are counted one by one: the tokenizer's
/// regular expression keeps a stack, and tiktoken-rs 0.12 panics when it overflows, as it does for a run of two
/// million spaces. Tokenizers begin a new piece before a word, so that such a cut changes no count; where there is
/// no word to cut before in 64 KiB (one long run of letters, say), it adds at most two tokens.
#[must_use]
pub fn count(model: &str, text: &str) -> Quantity {
    if text.is_empty() {
        return Quantity::ZERO;
    }
    let tokenizer = encoding_of(model).0.tokenizer();
    let mut rest = text;
    let mut sum = 0;
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(cut_of(rest));
        sum += tokenizer.encode_ordinary(piece).len();
        rest = tail;
    }
    Quantity::from_count(sum)
}

/// Whether the tokenizer of `model` is known.
#[must_use]
pub fn is_exact(model: &str) -> bool {
    encoding_of(model).1 == Known::Yes
}

/// Whether the tokenizer of `model` is there; if not, whoever counts first waits a tenth of a second for it.
#[must_use]
pub fn is_read_in(model: &str) -> bool {
    READ_IN[encoding_of(model).0 as usize].initialized()
}

/// Has the tokenizer of `model` read in where nobody else waits for it, unless it is there.
pub async fn read_in(model: &str) {
    let (encoding, _) = encoding_of(model);
    READ_IN[encoding as usize]
        .get_or_init(|| aside(move || _ = encoding.tokenizer()))
        .await;
}

/// Runs `work`, which counts a whole prompt, where nobody else waits for it: that may take longer than all else that a
/// core does for a request, and the tokenizer may have to be read in first.
#[expect(
    clippy::disallowed_methods,
    reason = "tokenizing blocks; the semaphore bounds how many threads do"
)]
pub async fn aside<T: Send + 'static>(work: impl Fn() -> T + Clone + Send + 'static) -> T {
    static TURNS: Semaphore = Semaphore::const_new(2);
    let _turn = TURNS.acquire().await;
    let aside = work.clone();
    // While the runtime ends no thread begins; then it is done here.
    tokio::task::spawn_blocking(aside)
        .await
        .unwrap_or_else(|_| work())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Yes,
    No,
}

#[derive(Clone, Copy)]
enum Encoding {
    O200k,
    Cl100k,
}

impl Encoding {
    /// Read in once, when first needed.
    fn tokenizer(self) -> &'static CoreBPE {
        match self {
            Self::O200k => o200k_base_singleton(),
            Self::Cl100k => cl100k_base_singleton(),
        }
    }
}

fn encoding_of(model: &str) -> (Encoding, Known) {
    let base = base_of(model);
    // The point releases have no dash after the family's name, so that the library's table misses them.
    if ["gpt-4o", "gpt-4.1", "gpt-4.5", "o1", "o3", "o4-mini"].contains(&base) {
        return (Encoding::O200k, Known::Yes);
    }
    match get_tokenizer(base) {
        // The harmony encoding differs from o200k_base in its special tokens alone.
        Some(Tokenizer::O200kBase | Tokenizer::O200kHarmony) => (Encoding::O200k, Known::Yes),
        Some(Tokenizer::Cl100kBase) => (Encoding::Cl100k, Known::Yes),
        Some(Tokenizer::P50kBase | Tokenizer::R50kBase | Tokenizer::P50kEdit | Tokenizer::Gpt2)
        | None => (Encoding::O200k, Known::No),
    }
}

/// Where the last word of `text` begins, the space before it included: cut there, a text has as many tokens as its two
/// parts. `None` if there is no word that such a cut can be made before.
#[must_use]
pub fn last_word(text: &str) -> Option<usize> {
    let before_a_word = text.as_bytes().windows(3).rposition(|three| {
        three[0].is_ascii_alphanumeric() && three[1] == b' ' && three[2].is_ascii_alphabetic()
    });
    before_a_word.map(|at| at + 1)
}

/// Where to cut `text`: its end if it is short enough.
fn cut_of(text: &str) -> usize {
    if text.len() <= MAX_PIECE_BYTES {
        return text.len();
    }
    let end = text.floor_char_boundary(MAX_PIECE_BYTES);
    last_word(&text[..end]).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(model: &str, text: &str) -> i64 {
        count(model, text).get()
    }

    #[test]
    fn each_family_is_counted_with_its_own_tokenizer() {
        // o200k_base has a token for it, cl100k_base does not.
        let text = "антидисестаблишментарианизм";
        let old = tokens("gpt-4", text);
        for model in [
            "gpt-5.1",
            "gpt-5-mini",
            "gpt-4o",
            "gpt-4o-mini",
            "gpt-4.1",
            "gpt-4.1-nano",
            "o1",
            "o3-mini",
            "o4-mini",
            "ft:gpt-4o-mini-2024-07-18:acme::id",
        ] {
            assert!(is_exact(model), "{model}");
            assert!(tokens(model, text) < old, "{model}");
        }
        for model in [
            "gpt-4",
            "gpt-4-turbo",
            "gpt-3.5-turbo",
            "text-embedding-3-small",
            "ft:gpt-3.5-turbo-0125:acme::id",
        ] {
            assert!(is_exact(model), "{model}");
            assert_eq!(tokens(model, text), old, "{model}");
        }
    }

    #[test]
    fn an_unknown_model_is_counted_with_a_stand_in() {
        for model in ["llama-3.1-8b", "mistral", "", "davinci", "ft:"] {
            assert!(!is_exact(model), "{model}");
            assert_eq!(tokens(model, "hello world"), 2, "{model}");
        }
    }

    #[test]
    fn text_that_looks_like_a_special_token_counts_as_text() {
        assert!(tokens("gpt-4o", "<|endoftext|>") > 1);
    }

    #[test]
    fn a_cut_before_a_word_changes_no_count() {
        let text = "The quick brown fox, aged 12 years, jumps. ".repeat(4000);
        let whole = o200k_base_singleton().encode_ordinary(&text).len();
        assert!(text.len() > 2 * MAX_PIECE_BYTES);
        assert_eq!(count("gpt-4o", &text), Quantity::from_count(whole));
    }

    #[test]
    fn a_long_run_of_one_character_is_counted_and_does_not_panic() {
        for (unit, times) in [("\u{a0}", 1_100_000), ("a", 200_000), ("漢", 50_000)] {
            let text = unit.repeat(times) + "x";
            let counted = tokens("gpt-4o", &text);
            assert!(counted > 1000, "{unit:?}: {counted}");
        }
    }

    #[test]
    fn nothing_is_no_token() {
        assert_eq!(tokens("gpt-4o", ""), 0);
    }
}
