//! Posts to addresses that the operator names: one client, the signature, and what an answer means.
//!
//! What is posted are CloudEvents, signed the Standard Webhooks way (<https://www.standardwebhooks.com>).

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, StatusCode, header};
use ring::hmac;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use crate::{
    domain::time::Timestamp,
    provider::{
        SetupError,
        resolve::Resolver,
        tls::{self, Roots},
    },
};

/// For a whole answer: shorter than any lease of the outbox.
const ANSWER_TIME: Duration = Duration::from_secs(15);
/// Nobody is waited for longer, whatever `Retry-After` says.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A client of reqwest: our resolver and roots, no redirect, no proxy, no retry.
///
/// # Errors
/// [`SetupError`] if it can't be built from `tls`.
pub fn client(
    resolver: Resolver,
    tls: rustls::ClientConfig,
) -> Result<reqwest::Client, SetupError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(resolver)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .connect_timeout(Duration::from_secs(10))
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_nodelay(true)
        .build()
        .map_err(|error| SetupError(format!("the HTTP client cannot be set up: {error}")))
}

/// An event as CloudEvents 1.0 writes it in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct CloudEvent<'a, T> {
    specversion: &'static str,
    /// With `source`, what makes it the only one of its kind.
    pub id: &'a str,
    source: &'static str,
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The tenant's id.
    pub subject: Option<&'a str>,
    pub time: Timestamp,
    datacontenttype: &'static str,
    pub data: T,
}

impl<'a, T> CloudEvent<'a, T> {
    #[must_use]
    pub fn new(
        id: &'a str,
        kind: &'a str,
        subject: Option<&'a str>,
        time: Timestamp,
        data: T,
    ) -> Self {
        Self {
            specversion: "1.0",
            id,
            source: "/tollgate",
            kind,
            subject,
            time,
            datacontenttype: "application/json",
            data,
        }
    }
}

/// Something to post.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    /// The same for every attempt, so that the receiver knows it again.
    pub id: &'a str,
    pub content_type: &'static str,
    pub content_encoding: Option<&'static str>,
    /// As it goes over the wire, which is what is signed.
    pub body: Vec<u8>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Posted {
    /// Any 2xx.
    Taken,
    NotTaken {
        /// As the receiver asks.
        retry_after: Option<Duration>,
        error: String,
    },
    /// The receiver wants no more (410).
    Gone { error: String },
}

/// Posts, and signs if there are secrets.
pub struct Poster {
    http: reqwest::Client,
    keys: Vec<hmac::Key>,
}

impl Poster {
    /// # Errors
    /// [`SetupError`] names a file of certificates that can't be used.
    pub fn new(secrets: &[SecretString]) -> Result<Self, SetupError> {
        let tls = tls::client_config(&Roots::Environment, &[b"h2", b"http/1.1"])?;
        let keys = secrets.iter().filter_map(signing_key);
        Ok(Self {
            http: client(Resolver::default(), tls)?,
            keys: keys
                .map(|key| hmac::Key::new(hmac::HMAC_SHA256, &key))
                .collect(),
        })
    }

    /// Posts once.
    pub async fn post(&self, address: &str, message: Message<'_>, now: Timestamp) -> Posted {
        let mut request = self
            .http
            .post(address)
            .timeout(ANSWER_TIME)
            .header(
                header::USER_AGENT,
                concat!("tollgate/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::CONTENT_TYPE, message.content_type)
            .header("webhook-id", message.id)
            .header("webhook-timestamp", now.seconds());
        if let Some(encoding) = message.content_encoding {
            request = request.header(header::CONTENT_ENCODING, encoding);
        }
        if let Some(signature) = self.signature(message.id, now, &message.body) {
            request = request.header("webhook-signature", signature);
        }
        match request.body(message.body).send().await {
            Ok(answer) => posted(answer.status(), answer.headers(), now),
            // The address may hold a secret.
            Err(error) => Posted::NotTaken {
                retry_after: None,
                error: causes(&error.without_url(), ANSWER_TIME),
            },
        }
    }

    /// One signature a secret, so that a receiver can change its own at leisure; `None` without secrets.
    fn signature(&self, id: &str, now: Timestamp, body: &[u8]) -> Option<String> {
        let mut signed = format!("{id}.{}.", now.seconds()).into_bytes();
        signed.extend_from_slice(body);
        let signatures = self.keys.iter().map(|key| {
            let tag = hmac::sign(key, &signed);
            format!("v1,{}", STANDARD.encode(tag))
        });
        let signatures: Vec<String> = signatures.collect();
        (!signatures.is_empty()).then(|| signatures.join(" "))
    }
}

/// The bytes that a secret signs with: what follows `whsec_` from base64, else its own; `None` if that is no base64.
#[must_use]
pub fn signing_key(secret: &SecretString) -> Option<Vec<u8>> {
    let secret = secret.expose_secret();
    match secret.strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).ok().filter(|key| !key.is_empty()),
        None => Some(secret.as_bytes().to_owned()),
    }
}

fn posted(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Posted {
    if status.is_success() {
        return Posted::Taken;
    }
    if status == StatusCode::GONE {
        let error = "answered 410: it wants no more".to_owned();
        return Posted::Gone { error };
    }
    let hint = if status.is_redirection() {
        "; redirects are not followed"
    } else {
        ""
    };
    Posted::NotTaken {
        retry_after: retry_after(headers, now),
        error: format!("answered {}{hint}", status.as_u16()),
    }
}

/// How long the other side wants to be left alone, by its `Retry-After`.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?;
    let wait = wait_of(value.to_str().ok()?, now)?;
    Some(wait.min(LONGEST_RETRY_AFTER))
}

/// `Date` and the like (RFC 9110 §5.6.7).
#[must_use]
pub fn date_of(text: &str) -> Option<Timestamp> {
    let date = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()?;
    Some(Timestamp::from_micros(date.as_microsecond()))
}

/// Of `Retry-After`: seconds, or a date (RFC 9110 §10.2.3).
fn wait_of(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    Some(date_of(text)?.since(now))
}

/// `no answer: error sending request: connection refused`; `limit` is how long an answer was waited for.
#[must_use]
pub fn causes(error: &reqwest::Error, limit: Duration) -> String {
    if error.is_timeout() {
        return format!("no answer within {} s", limit.as_secs());
    }
    let mut text = format!("no answer: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T12:00:00Z".parse().unwrap()
    }

    /// The example of the Standard Webhooks specification.
    #[test]
    fn the_specifications_own_example_is_signed_as_it_says() {
        let poster = Poster::new(&["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into()]).unwrap();
        let at = Timestamp::from_seconds(1_614_265_330);
        let signature = poster.signature(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            at,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(
            signature.as_deref(),
            Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
        );
    }

    #[test]
    fn each_secret_signs_and_without_one_nothing_is_signed() {
        let one = Poster::new(&["plain".into()]).unwrap();
        let two = Poster::new(&["plain".into(), "whsec_cGxhaW4=".into()]).unwrap();
        let (one, two) = [one, two]
            .map(|it| it.signature("id", now(), b"{}").unwrap())
            .into();
        assert_eq!(two, format!("{one} {one}"), "base64 of the same bytes");
        assert_eq!(
            Poster::new(&[]).unwrap().signature("id", now(), b"{}"),
            None
        );
    }

    #[test]
    fn an_answer_says_whether_and_when_to_try_again() {
        let answer = |status: u16, retry_after: &str| {
            let mut headers = HeaderMap::new();
            if !retry_after.is_empty() {
                headers.insert(header::RETRY_AFTER, retry_after.parse().unwrap());
            }
            posted(StatusCode::from_u16(status).unwrap(), &headers, now())
        };
        let again = |seconds: Option<u64>, error: &str| Posted::NotTaken {
            retry_after: seconds.map(Duration::from_secs),
            error: error.to_owned(),
        };
        for (status, retry_after, expected) in [
            (200, "", Posted::Taken),
            (204, "9", Posted::Taken),
            (500, "", again(None, "answered 500")),
            (429, "7", again(Some(7), "answered 429")),
            (429, "soon", again(None, "answered 429")),
            (
                503,
                "Fri, 02 Jan 2026 12:01:00 GMT",
                again(Some(60), "answered 503"),
            ),
            (503, "9999999999", again(Some(24 * 3600), "answered 503")),
            (
                301,
                "",
                again(None, "answered 301; redirects are not followed"),
            ),
        ] {
            assert_eq!(
                answer(status, retry_after),
                expected,
                "{status} {retry_after}"
            );
        }
        assert!(matches!(answer(410, ""), Posted::Gone { .. }));
    }
}
