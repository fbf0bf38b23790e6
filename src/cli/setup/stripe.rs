//! Section `stripe`: whether usage is billed.

use super::{
    There,
    question::{Answers, Question},
};

pub(super) const KEYS: [&str; 3] = [
    "ENABLE_STRIPE_USAGE",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
];

pub(super) fn questions(there: &There, answers: &Answers) -> Vec<Question> {
    let mut questions = vec![Question::setting(
        "ENABLE_STRIPE_USAGE",
        there.value("ENABLE_STRIPE_USAGE"),
    )];
    if answers.is("ENABLE_STRIPE_USAGE", "true") {
        for name in ["STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"] {
            let is_there = there.has(name);
            let question = Question::setting(name, is_there.then(String::new));
            questions.push(if is_there {
                question
                    .or_blank()
                    .hint("blank keeps the one that is there")
            } else {
                question
            });
        }
    }
    questions
}
