//! Whether a webhook is Stripe's: the scheme `v1` of its header `Stripe-Signature`.

use std::time::Duration;

use ring::hmac;
use secrecy::{ExposeSecret as _, SecretString};

use crate::domain::time::Timestamp;

/// How far the time of a signature may be from now, so that one that was overheard can't be used later.
const TOLERANCE: Duration = Duration::from_secs(300);

/// Why a webhook is not taken for Stripe's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the header Stripe-Signature is missing or can't be read")]
    Unreadable,
    #[error("the signature's time is more than 300 seconds from now")]
    Old,
    #[error("no signature fits; is STRIPE_WEBHOOK_SECRET that of this endpoint?")]
    Wrong,
}

/// Checks `header`, `t=…,v1=…` with as many `v1` as Stripe has secrets, against as many secrets as are configured.
pub(super) fn verify(
    header: &str,
    body: &[u8],
    secrets: &[SecretString],
    now: Timestamp,
) -> Result<(), SignatureError> {
    let (mut time, mut signatures) = (None, Vec::new());
    for part in header.split(',') {
        match part.trim().split_once('=') {
            Some(("t", text)) => time = Some(text),
            Some(("v1", text)) => signatures.extend(bytes_of(text)),
            Some(_) | None => {}
        }
    }
    let time = time.ok_or(SignatureError::Unreadable)?;
    let seconds: i64 = time.parse().map_err(|_| SignatureError::Unreadable)?;
    if signatures.is_empty() {
        return Err(SignatureError::Unreadable);
    }
    let mut signed = format!("{time}.").into_bytes();
    signed.extend_from_slice(body);
    let is_signed = secrets.iter().any(|secret| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
        // `verify` takes as long for any tag.
        signatures
            .iter()
            .any(|tag| hmac::verify(&key, &signed, tag).is_ok())
    });
    if !is_signed {
        return Err(SignatureError::Wrong);
    }
    let at = Timestamp::from_seconds(seconds);
    if TOLERANCE < now.since(at).max(at.since(now)) {
        return Err(SignatureError::Old);
    }
    Ok(())
}

/// Of hexadecimal digits; `None` if it is none.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_355_200;

    fn signed(secret: &str, at: i64, body: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let tag = hmac::sign(&key, format!("{at}.{body}").as_bytes());
        let hex: String = tag.as_ref().iter().map(|it| format!("{it:02x}")).collect();
        format!("t={at},v1={hex}")
    }

    fn check(header: &str, body: &str) -> Result<(), SignatureError> {
        let secrets: [SecretString; 2] = ["whsec_new".into(), "whsec_old".into()];
        verify(
            header,
            body.as_bytes(),
            &secrets,
            Timestamp::from_seconds(NOW),
        )
    }

    #[test]
    fn any_configured_secret_serves_within_five_minutes() {
        for secret in ["whsec_new", "whsec_old"] {
            for at in [NOW - 300, NOW, NOW + 300] {
                assert_eq!(check(&signed(secret, at, "{}"), "{}"), Ok(()));
            }
            for at in [NOW - 301, NOW + 301] {
                let old = check(&signed(secret, at, "{}"), "{}");
                assert_eq!(old, Err(SignatureError::Old));
            }
        }
    }

    #[test]
    fn another_secret_body_time_or_scheme_is_refused() {
        let good = signed("whsec_new", NOW, "{}");
        assert_eq!(check(&good, "{} "), Err(SignatureError::Wrong));
        assert_eq!(
            check(&signed("whsec_x", NOW, "{}"), "{}"),
            Err(SignatureError::Wrong)
        );
        let moved = good.replace(&NOW.to_string(), &(NOW + 1).to_string());
        assert_eq!(check(&moved, "{}"), Err(SignatureError::Wrong));
        for header in [
            "",
            "t=1",
            "v1=ab",
            &good.replace("v1=", "v0="),
            "t=x,v1=ab",
            "t=1,v1=zz",
            "t=1,v1=a",
        ] {
            assert_eq!(
                check(header, "{}"),
                Err(SignatureError::Unreadable),
                "{header}"
            );
        }
    }

    #[test]
    fn one_good_signature_among_others_is_enough() {
        let header = format!(
            "{},v1={},v0=00",
            signed("whsec_old", NOW, "{}"),
            "ab".repeat(32)
        );
        assert_eq!(check(&header, "{}"), Ok(()));
    }
}
