//! Calls to Stripe's API: form-encoded, each made once, and what an answer means.

use std::time::Duration;

use form_urlencoded::Serializer;
use http::{HeaderMap, Method, StatusCode, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use crate::{
    domain::time::Timestamp,
    provider::{
        SetupError,
        resolve::Resolver,
        tls::{self, Roots},
    },
    web,
};

/// For a whole answer: three calls in a row are over before a lease of the outbox is.
const ANSWER_TIME: Duration = Duration::from_secs(8);
/// The version of the API whose objects are read; webhooks may come in an older one, which is read too.
const API_VERSION: &str = "2025-03-31.basil";
/// How many objects a list gives at most.
const PAGE: &str = "100";
/// More pages than anybody has of anything that is listed whole.
const MOST_PAGES: usize = 10_000;

/// Parameters of a call, in Stripe's own names.
pub(super) type Fields<'a> = &'a [(&'a str, &'a str)];

/// What Stripe says.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) json: Value,
    /// Stripe's clock.
    pub(super) date: Option<Timestamp>,
}

/// Why there is no answer to build on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It did not reach Stripe.
    #[error("Stripe can't be reached: {0}")]
    NotSent(String),
    /// Stripe refused it, and did nothing.
    #[error("Stripe refuses it ({status}): {message}")]
    Refused {
        status: StatusCode,
        code: String,
        message: String,
        retry_after: Option<Duration>,
    },
    /// It may have been done or not.
    #[error("Stripe gave no answer that can be used: {error}")]
    Unclear {
        error: String,
        retry_after: Option<Duration>,
    },
}

impl CallError {
    /// Whether Stripe does not take the key, or it may not do this.
    pub(super) fn is_about_key(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN,
                ..
            }
        )
    }
}

/// Calls Stripe with the operator's key.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    key: SecretString,
}

impl Client {
    /// # Errors
    /// [`SetupError`] names a file of certificates that can't be used.
    pub(super) fn new(base: &str, key: SecretString) -> Result<Self, SetupError> {
        let tls = tls::client_config(&Roots::Environment, &[b"h2", b"http/1.1"])?;
        Ok(Self {
            http: web::client(Resolver::default(), tls)?,
            base: base.trim_end_matches('/').to_owned(),
            key,
        })
    }

    pub(super) async fn get(&self, path: &str, query: Fields<'_>) -> Result<Answer, CallError> {
        let path = if query.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{}", encoded(query))
        };
        self.call(Method::GET, &path, None).await
    }

    pub(super) async fn post(&self, path: &str, form: Fields<'_>) -> Result<Answer, CallError> {
        self.call(Method::POST, path, Some(encoded(form))).await
    }

    /// Every object of a list.
    pub(super) async fn list(
        &self,
        path: &str,
        query: Fields<'_>,
    ) -> Result<(Vec<Value>, Option<Timestamp>), CallError> {
        let (mut all, mut date): (Vec<Value>, Option<Timestamp>) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let last = all
                .last()
                .and_then(|it| it["id"].as_str())
                .map(str::to_owned);
            let mut asked = query.to_vec();
            asked.push(("limit", PAGE));
            if let Some(last) = &last {
                asked.push(("starting_after", last));
            }
            let answer = self.get(path, &asked).await?;
            // What is listed is at least as new as the first page's time.
            date = date.or(answer.date);
            let is_more = answer.json["has_more"].as_bool() == Some(true);
            let Value::Object(mut page) = answer.json else {
                return Err(unclear("a list was expected"));
            };
            let Some(Value::Array(items)) = page.remove("data") else {
                return Err(unclear("a list was expected"));
            };
            let is_empty = items.is_empty();
            all.extend(items);
            if !is_more || is_empty {
                break;
            }
        }
        Ok((all, date))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        form: Option<String>,
    ) -> Result<Answer, CallError> {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .timeout(ANSWER_TIME)
            .bearer_auth(self.key.expose_secret())
            .header(
                header::USER_AGENT,
                concat!("tollgate/", env!("CARGO_PKG_VERSION")),
            )
            .header("stripe-version", API_VERSION);
        if let Some(form) = form {
            request = request
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form);
        }
        let response = request.send().await.map_err(failed)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response
            .bytes()
            .await
            .map_err(|error| match failed(error) {
                CallError::NotSent(error) => unclear(error),
                error => error,
            })?;
        answer(status, &headers, &body)
    }
}

fn encoded(fields: Fields<'_>) -> String {
    let mut form = Serializer::new(String::new());
    form.extend_pairs(fields);
    form.finish()
}

fn unclear(error: impl Into<String>) -> CallError {
    CallError::Unclear {
        error: error.into(),
        retry_after: None,
    }
}

/// An address may hold a secret, so it is left out.
fn failed(error: reqwest::Error) -> CallError {
    let never_left = error.is_connect() || error.is_builder();
    let text = web::causes(&error.without_url(), ANSWER_TIME);
    if never_left {
        return CallError::NotSent(text);
    }
    unclear(text)
}

fn answer(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Answer, CallError> {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let date = headers.get(header::DATE).and_then(|it| it.to_str().ok());
    if status.is_success() {
        return match json {
            Some(json) => Ok(Answer {
                json,
                date: date.and_then(web::date_of),
            }),
            None => Err(unclear(format!("status {} without JSON", status.as_u16()))),
        };
    }
    let now = date.and_then(web::date_of).unwrap_or(Timestamp::EPOCH);
    let retry_after = web::retry_after(headers, now);
    let error = json.as_ref().map(|json| &json["error"]);
    let text = |name: &str| {
        let value = error.and_then(|error| error[name].as_str());
        value.unwrap_or_default().to_owned()
    };
    if status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT {
        return Err(CallError::Refused {
            status,
            code: text("code"),
            message: text("message"),
            retry_after,
        });
    }
    Err(CallError::Unclear {
        error: format!("status {}", status.as_u16()),
        retry_after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, retry_after: &str, body: &str) -> Result<Answer, CallError> {
        let mut headers = HeaderMap::new();
        if !retry_after.is_empty() {
            headers.insert("retry-after", retry_after.parse().unwrap());
        }
        answer(
            StatusCode::from_u16(status).unwrap(),
            &headers,
            body.as_bytes(),
        )
    }

    #[test]
    fn only_an_error_of_ours_says_that_nothing_was_done() {
        assert!(answered(200, "", "{}").is_ok());
        for (status, body) in [(200, "no"), (500, "{}"), (503, ""), (302, ""), (408, "{}")] {
            let error = answered(status, "", body).unwrap_err();
            assert!(
                matches!(error, CallError::Unclear { .. }),
                "{status}: {error:?}"
            );
        }
        let refused = answered(
            429,
            "7",
            r#"{"error":{"code":"lock_timeout","message":"m"}}"#,
        );
        assert_eq!(
            refused.unwrap_err(),
            CallError::Refused {
                status: StatusCode::TOO_MANY_REQUESTS,
                code: "lock_timeout".to_owned(),
                message: "m".to_owned(),
                retry_after: Some(Duration::from_secs(7)),
            }
        );
    }

    #[test]
    fn fields_are_encoded_as_a_form() {
        assert_eq!(
            encoded(&[("payload[value]", "-5"), ("a", "b &=c")]),
            "payload%5Bvalue%5D=-5&a=b+%26%3Dc"
        );
    }
}
