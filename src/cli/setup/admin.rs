//! Section `admin`: where the server listens, and who administers it.

use super::{There, question::Question};

pub(super) const KEYS: [&str; 2] = ["TOLLGATE_LISTEN", "TOLLGATE_ADMIN_TOKEN"];

pub(super) fn questions(there: &There) -> Vec<Question> {
    let token = Question::setting("TOLLGATE_ADMIN_TOKEN", String::new()).or_blank();
    let token = token.hint(if there.has("TOLLGATE_ADMIN_TOKEN") {
        "at least 32 visible ASCII characters; blank keeps the one that is there"
    } else {
        "at least 32 visible ASCII characters; blank has one made at the first start and printed once"
    });
    vec![
        Question::setting("TOLLGATE_LISTEN", there.value("TOLLGATE_LISTEN")),
        token,
    ]
}
