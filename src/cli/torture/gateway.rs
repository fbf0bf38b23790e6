//! The gateway as its client sees it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::provider::openai;

/// How one request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered {
        usage: Tokens,
        /// The gateway says that it gave an earlier answer again.
        is_replay: bool,
    },
    /// 402, 403 or 429.
    Refused,
    /// Left after the first piece of text came, if one came.
    HungUp { had_text: bool },
    /// No answer, or an error's: whether it counts can't be told.
    Failed(String),
}

/// What an answer says was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    pub(super) input: u64,
    pub(super) output: u64,
}

/// What a tollgate has counted for the key's tenant, per feature.
pub(super) type Counted = BTreeMap<String, Count>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) used: u64,
    pub(super) reserved: u64,
    pub(super) hard: Option<u64>,
    /// Where the window began: counts of another window can't be compared.
    pub(super) window: u64,
}

/// How long a request may take.
const REQUEST_TIME: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Clone)]
pub(super) struct Gateway {
    http: reqwest::Client,
    /// Without `/v1`.
    origin: String,
    key: String,
    model: String,
}

impl Gateway {
    pub(super) fn new(target: &str, key: &str, model: &str) -> anyhow::Result<Self> {
        let address = target.trim_end_matches('/');
        if !address.starts_with("http://") && !address.starts_with("https://") {
            bail!("write an http:// or https:// address");
        }
        Ok(Self {
            http: openai::plain_client()?,
            origin: address.strip_suffix("/v1").unwrap_or(address).to_owned(),
            key: key.to_owned(),
            model: model.to_owned(),
        })
    }

    fn ask(&self, more: &Value) -> reqwest::RequestBuilder {
        let mut body = json!({
            "model": self.model,
            "max_tokens": 16,
            "messages": [{ "role": "user", "content": "Count to five." }],
        });
        if let Some(more) = more.as_object() {
            for (name, value) in more {
                body[name] = value.clone();
            }
        }
        self.http
            .post(format!("{}/v1/chat/completions", self.origin))
            .bearer_auth(&self.key)
            .header("content-type", "application/json")
            .timeout(REQUEST_TIME)
            .body(body.to_string())
    }

    /// One whole answer; requests of one `repeat` carry the same Idempotency-Key.
    pub(super) async fn complete(&self, repeat: Option<&str>) -> Outcome {
        let mut request = self.ask(&json!({}));
        if let Some(key) = repeat {
            request = request.header("idempotency-key", key);
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        let status = answer.status().as_u16();
        let is_replay = answer.headers().contains_key("idempotent-replayed");
        let text = match answer.text().await {
            Ok(text) => text,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        match status {
            200..=299 => Outcome::Answered {
                usage: tokens_of(&serde_json::from_str(&text).unwrap_or_default()),
                is_replay,
            },
            402 | 403 | 429 => Outcome::Refused,
            // The first of these requests is still running: it is the one that counts.
            409 if repeat.is_some() => Outcome::Refused,
            _ => Outcome::Failed(format!("status {status}")),
        }
    }

    /// A stream that is left as soon as text comes.
    pub(super) async fn hang_up(&self) -> Outcome {
        let answer = match self.ask(&json!({ "stream": true })).send().await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        match answer.status().as_u16() {
            200..=299 => {}
            402 | 403 | 429 => return Outcome::Refused,
            status => return Outcome::Failed(format!("status {status}")),
        }
        let mut stream = answer.bytes_stream();
        let mut seen = Vec::new();
        while let Some(Ok(bytes)) = stream.next().await {
            seen.extend_from_slice(&bytes);
            if has_text(&seen) {
                return Outcome::HungUp { had_text: true };
            }
        }
        Outcome::HungUp { had_text: false }
    }

    /// What a tollgate has counted; `None` if the gateway is none.
    pub(super) async fn counted(&self) -> anyhow::Result<Option<Counted>> {
        let request = self
            .http
            .get(format!("{}/api/v1/usage", self.origin))
            .bearer_auth(&self.key)
            .timeout(REQUEST_TIME);
        let answer = request
            .send()
            .await
            .context("the gateway can't be reached")?;
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap_or_default();
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        if status == 401 {
            bail!("the gateway does not accept the key (status 401)");
        }
        Ok(counts_of(&body))
    }

    /// The same, once nothing is reserved any more, or after `patience`.
    pub(super) async fn settled(&self, patience: Duration) -> anyhow::Result<Option<Counted>> {
        let deadline = Instant::now() + patience;
        loop {
            let counted = self.counted().await?;
            let is_settled = counted
                .as_ref()
                .is_none_or(|counted| counted.values().all(|count| count.reserved == 0));
            if is_settled || Instant::now() >= deadline {
                return Ok(counted);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn tokens_of(answer: &Value) -> Tokens {
    Tokens {
        input: number(&answer["usage"]["prompt_tokens"]),
        output: number(&answer["usage"]["completion_tokens"]),
    }
}

/// The tenant's own limits; of several windows of a feature the longest, which none of these requests leaves.
fn counts_of(body: &Value) -> Option<Counted> {
    body["tenant_slug"].as_str()?;
    let mut counted = Counted::new();
    let length = |window: &Value| {
        [
            "minute", "hour", "day", "week", "month", "period", "lifetime",
        ]
        .iter()
        .position(|kind| window == kind)
    };
    let mut features: Vec<&Value> = body["features"].as_array()?.iter().collect();
    features.retain(|feature| feature["scope"] == "tenant");
    features.sort_by_key(|feature| length(&feature["window"]));
    for feature in features {
        let count = Count {
            used: number(&feature["used"]),
            reserved: number(&feature["reserved"]),
            hard: feature["hard_limit"].as_u64(),
            window: fingerprint(feature["window_start"].as_str().unwrap_or_default()),
        };
        counted.insert(feature["feature_key"].as_str()?.to_owned(), count);
    }
    Some(counted)
}

/// Tells windows apart.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    })
}

/// Whether a stream has brought a piece of text.
fn has_text(stream: &[u8]) -> bool {
    let text = String::from_utf8_lossy(stream);
    text.lines().any(|line| {
        let data = line
            .strip_prefix("data:")
            .map(str::trim)
            .unwrap_or_default();
        let chunk: Value = serde_json::from_str(data).unwrap_or_default();
        chunk["choices"][0]["delta"]["content"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    })
}
