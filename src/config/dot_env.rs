//! The variables of a `.env` file, as they stand: nothing in a value is replaced by another variable's.

/// The variables in the order of their lines, each with its value.
pub(crate) fn variables(
    text: &str,
) -> impl Iterator<Item = Result<(String, String), dotenvy::Error>> {
    let text = without_substitution(text);
    let read: Vec<_> = dotenvy::from_read_iter(text.as_bytes()).collect();
    read.into_iter()
}

/// How a value is quoted where one is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quote {
    None,
    Single,
    Double,
}

/// The text with a backslash before each `$` that would begin a variable's name; in single quotes none does.
///
/// A token or password with a `$` in it would lose what follows, and nobody be told.
fn without_substitution(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    let (mut quote, mut is_escaped, mut is_comment) = (Quote::None, false, false);
    // A comment begins a line, or stands behind a blank that no backslash makes a letter.
    let mut before = '\n';
    for letter in text.chars() {
        if quote == Quote::None && !is_escaped && letter == '#' && before.is_whitespace() {
            is_comment = true;
        }
        is_comment &= letter != '\n';
        if is_comment {
            literal.push(letter);
            continue;
        }
        let was_escaped = is_escaped;
        match (letter, quote) {
            _ if is_escaped => is_escaped = false,
            ('\'', Quote::None) => quote = Quote::Single,
            ('\'', Quote::Single) | ('"', Quote::Double) => quote = Quote::None,
            ('"', Quote::None) => quote = Quote::Double,
            ('\\', Quote::None | Quote::Double) => is_escaped = true,
            ('$', Quote::None | Quote::Double) => literal.push('\\'),
            _ => {}
        }
        literal.push(letter);
        before = if was_escaped { '\\' } else { letter };
    }
    literal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        variables(text).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn a_dollar_is_a_letter_like_others() {
        let text = concat!(
            "# it's $A\n",
            "A=abc$def12345678\n",
            "export B = \"p$A ${A}\" # it's $A\r\n",
            "C='$A\\$' # \"$A\n",
            "D=\"\\$A \\\\$A \\\"$A\n$A\"\n",
            "E=\\$A#$A\n",
            "F=$\n",
            "G=\\'$A\n",
            "H= # it's $A\n",
            "I=${A\n",
            "J=\\ #$A\n",
            "PATH=$PATH\n",
        );
        let values: Vec<_> = read(text).into_iter().map(|(_, value)| value).collect();
        assert_eq!(
            values,
            [
                "abc$def12345678",
                "p$A ${A}",
                "$A\\$",
                "$A \\$A \"$A\n$A",
                "$A#$A",
                "$",
                "'$A",
                "",
                "${A",
                " #$A",
                "$PATH",
            ]
        );
    }

    proptest! {
        /// What has no `$` in it is read as it was.
        #[test]
        fn all_else_is_left_to_the_parser(text in "([AB=#'\" \\\\\r\n]|export ){0,40}") {
            prop_assert_eq!(without_substitution(&text), text);
        }

        #[test]
        fn a_value_is_what_it_would_be_with_a_letter_for_each_dollar(
            text in "A=[ab#'\" \\\\$]{0,12}\nB='x' # c\n",
        ) {
            let letters = |text: &str| -> Option<Vec<(String, String)>> {
                variables(text).collect::<Result<_, _>>().ok()
            };
            // No letter but `$` may stand behind a backslash.
            if !text.contains("\\$")
                && let Some(with_letters) = letters(&text.replace('$', "S"))
            {
                let with_dollars = letters(&text).expect("as readable");
                for ((_, dollars), (_, letters)) in with_dollars.iter().zip(&with_letters) {
                    prop_assert_eq!(&dollars.replace('$', "S"), letters);
                }
            }
        }
    }
}
