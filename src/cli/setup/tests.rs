use super::*;

/// Answers one after another; `None` goes back.
struct Script(Vec<(&'static str, Option<&'static str>)>);

impl Asker for Script {
    fn section(&mut self, _: &str) {}

    fn ask(&mut self, question: &Question, earlier: Option<&str>) -> anyhow::Result<Answer> {
        let (key, answer) = self.0.remove(0);
        assert_eq!(question.key, key);
        Ok(match answer {
            None => Answer::Back,
            Some("default") => {
                let text = earlier.or(question.default.as_deref()).unwrap();
                Answer::Value((question.check)(text).unwrap())
            }
            Some(text) => Answer::Value((question.check)(text).map_err(anyhow::Error::msg)?),
        })
    }

    fn failed(&mut self, problem: &str) -> anyhow::Result<Answer> {
        bail!("{problem}")
    }
}

async fn asked(sections: &[Section], script: &[(&'static str, Option<&'static str>)]) -> Answers {
    let mut script = Script(script.to_vec());
    let there = There::default();
    let asked = ask_all(sections, &there, &Given::new(), &mut script).await;
    assert!(script.0.is_empty(), "all is asked");
    asked.unwrap().0
}

#[tokio::test]
async fn going_back_takes_one_answer_away_and_offers_it_again() {
    let answers = asked(
        &[Section::Stripe, Section::Usage],
        &[
            ("ENABLE_STRIPE_USAGE", Some("false")),
            ("ENABLE_USAGE_GUARDRAILS", None),
            ("ENABLE_STRIPE_USAGE", Some("default")),
            ("ENABLE_USAGE_GUARDRAILS", Some("yes")),
            ("USAGE_GUARDRAIL_CACHE_TTL_SECONDS", Some("7")),
            ("USAGE_GUARDRAIL_SOFT_LIMIT_MODE", None),
            ("USAGE_GUARDRAIL_CACHE_TTL_SECONDS", Some("default")),
            ("USAGE_GUARDRAIL_SOFT_LIMIT_MODE", Some("block")),
            ("USAGE_GUARDRAIL_CACHE_BACKEND", Some("memory")),
            ("USAGE_DIMENSIONS", Some("messages")),
            ("USAGE_PLAN_CODES", Some("gold")),
            ("USAGE_GOLD_MESSAGES_SOFT_LIMIT", None),
            ("USAGE_PLAN_CODES", Some("free")),
            ("USAGE_FREE_MESSAGES_SOFT_LIMIT", Some("default")),
            ("USAGE_FREE_MESSAGES_HARD_LIMIT", Some("30")),
        ],
    )
    .await;
    assert!(answers.is("USAGE_GUARDRAIL_CACHE_TTL_SECONDS", "7"));
    assert!(answers.is("USAGE_FREE_MESSAGES_SOFT_LIMIT", "20"));
    assert!(!answers.has("USAGE_GOLD_MESSAGES_SOFT_LIMIT"));
}

#[tokio::test]
async fn going_back_at_the_first_question_asks_it_again() {
    let no = [
        ("ENABLE_STRIPE_USAGE", None),
        ("ENABLE_STRIPE_USAGE", Some("no")),
    ];
    assert!(
        asked(&[Section::Stripe], &no)
            .await
            .is("ENABLE_STRIPE_USAGE", "false")
    );
}

#[tokio::test]
async fn opting_out_ends_the_section() {
    let answers = asked(
        &[Section::Usage],
        &[("ENABLE_USAGE_GUARDRAILS", Some("default"))],
    )
    .await;
    assert!(answers.is("ENABLE_USAGE_GUARDRAILS", "false"));
}
