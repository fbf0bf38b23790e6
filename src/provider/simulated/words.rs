//! Text in which every piece is one token, for each tokenizer: the counts reported are exact.

/// Begin a sentence.
const OPENERS: [&str; 8] = ["The", "This", "It", "That", "One", "Each", "Some", "We"];

const WORDS: [&str; 48] = [
    " water", " light", " time", " house", " river", " small", " large", " green", " old", " new",
    " people", " world", " day", " night", " work", " long", " road", " garden", " city", " hand",
    " good", " first", " last", " story", " music", " paper", " table", " window", " letter",
    " number", " goes", " comes", " stands", " holds", " makes", " shows", " with", " under",
    " over", " after", " before", " and", " or", " of", " in", " near", " from", " to",
];

const SENTENCE: usize = 9;

/// A generator of numbers (Steele and others, 2014, "`SplitMix`"); the same seed, the same numbers.
#[derive(Clone, Debug)]
pub(super) struct Numbers(u64);

impl Numbers {
    /// Seeded by a text and a number.
    pub(super) fn of(text: &str, salt: u64) -> Self {
        // FNV-1a, 64 bits: every bit of the text counts, and no more is asked of it.
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(hash ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a usize has at most 64 bits");
        usize::try_from(self.next() % end).expect("it is below a usize")
    }
}

/// `count` tokens of text.
pub(super) fn tokens(numbers: &mut Numbers, count: usize) -> Vec<String> {
    (0..count)
        .map(|index| match index % SENTENCE {
            0 => {
                let opener = OPENERS[numbers.below(OPENERS.len())];
                if index == 0 {
                    opener.to_owned()
                } else {
                    format!(" {opener}")
                }
            }
            last if last == SENTENCE - 1 => ".".to_owned(),
            _ => WORDS[numbers.below(WORDS.len())].to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::tokens::count;

    #[test]
    fn every_piece_is_one_token_and_so_is_it_in_a_text() {
        let openers = OPENERS
            .iter()
            .flat_map(|word| [(*word).to_owned(), format!(" {word}")]);
        for piece in openers.chain(WORDS.iter().map(|word| (*word).to_owned())) {
            for model in ["gpt-4o", "gpt-4"] {
                assert_eq!(count(model, &piece).get(), 1, "{piece:?} for {model}");
            }
        }
        let text = tokens(&mut Numbers::of("a prompt", 1), 500).concat();
        assert_eq!(count("gpt-4o", &text).get(), 500);
        assert_eq!(count("gpt-4", &text).get(), 500);
    }

    #[test]
    fn the_text_depends_on_prompt_and_salt_alone() {
        let text = |prompt, salt| tokens(&mut Numbers::of(prompt, salt), 20);
        assert_eq!(text("a", 0), text("a", 0));
        assert_ne!(text("a", 0), text("b", 0));
        assert_ne!(text("a", 0), text("a", 1));
    }
}
