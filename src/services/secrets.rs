//! Secrets of tenants' keys, of administrators and of their sessions: made here, kept only as hashes.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::store::keys::SecretHash;

/// Whose secret it is: none can stand for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    TenantKey,
    AdminToken,
    /// What the cookie of the admin page holds.
    Session,
}

impl SecretKind {
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::TenantKey => "tg_",
            Self::AdminToken => "tga_",
            Self::Session => "tgs_",
        }
    }
}

/// 256 bits in base64url, without padding.
const RANDOM_LETTERS: usize = 43;

/// A new secret: the kind's prefix and 256 random bits as 43 letters of base64url.
#[must_use]
pub fn generate(kind: SecretKind) -> SecretString {
    let random: [u8; 32] = rand::random();
    format!("{}{}", kind.prefix(), URL_SAFE_NO_PAD.encode(random)).into()
}

/// Whether this could be a secret of that kind: one that could not needs no look into the store.
#[must_use]
pub fn has_form(kind: SecretKind, secret: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    secret
        .strip_prefix(kind.prefix())
        .is_some_and(|random| random.len() == RANDOM_LETTERS && random.bytes().all(is_letter))
}

/// A secret in the one answer that tells it: written out as it is, and left out of debug output.
#[derive(Clone, Debug)]
pub struct Told(SecretString);

impl Told {
    #[must_use]
    pub fn new(secret: &SecretString) -> Self {
        Self(secret.clone())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.expose_secret()
    }
}

impl Serialize for Told {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What a store keeps of a secret.
#[must_use]
pub fn hash(secret: &str) -> SecretHash {
    SecretHash(Sha256::digest(secret.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_is_told_is_written_out_and_not_debugged() {
        let secret = SecretString::from("tg_live_EXAMPLE");
        let told = Told::new(&secret);
        assert_eq!(
            serde_json::to_string(&told).unwrap(),
            r#""tg_live_EXAMPLE""#
        );
        assert!(!format!("{told:?}").contains("EXAMPLE"));
    }

    #[test]
    fn a_secret_is_a_prefix_and_43_letters_and_never_the_same() {
        for kind in [
            SecretKind::TenantKey,
            SecretKind::AdminToken,
            SecretKind::Session,
        ] {
            let secret = generate(kind);
            let random = secret.expose_secret().strip_prefix(kind.prefix()).unwrap();
            assert_eq!(random.len(), 43);
            assert!(
                random
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            );
            assert_ne!(secret.expose_secret(), generate(kind).expose_secret());
        }
    }

    #[test]
    fn the_hash_is_sha_256_of_the_whole_secret() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hex: String = hash("abc")
            .0
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, expected);
    }
}
