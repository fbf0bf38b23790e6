//! Identifiers: newtypes that can't be mixed up; parsing says what it expected.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use uuid::Uuid;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{value}' is not a {what} id; it looks like {prefix}0190b6f2c1d47a3e8f5b6c7d8e9f0a1b")]
pub struct InvalidId {
    what: &'static str,
    prefix: &'static str,
    value: String,
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            #[must_use]
            pub const fn new(id: Uuid) -> Self {
                Self(id)
            }

            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.simple())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.strip_prefix($prefix)
                    .filter(|hex| hex.len() == 32)
                    .and_then(|hex| Uuid::try_parse(hex).ok())
                    .map(Self)
                    .ok_or_else(|| InvalidId { what: $what, prefix: $prefix, value: text.to_owned() })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

id_type!(
    /// A tenant.
    TenantId, "tenant", "ten_"
);
id_type!(
    /// A tenant's API key (the name of it, not the secret).
    KeyId, "key", "key_"
);
id_type!(
    /// An extra allowance.
    GrantId, "grant", "gra_"
);
id_type!(
    /// A reservation in flight.
    ReservationId, "reservation", "res_"
);
id_type!(
    /// A usage event; a version 7 UUID, or version 5 of tenant and key where a repeat must find itself.
    EventId, "event", "evt_"
);
id_type!(
    /// A conversation of `/api/v1/chat`.
    ConversationId, "conversation", "conv_"
);
id_type!(
    /// An administrator's token (the name of it, not the secret).
    AdminTokenId, "administrator token", "adm_"
);
id_type!(
    /// A session of the admin page (the name of it, not the secret).
    SessionId, "session", "ses_"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_and_another_kind_is_refused() {
        let id = TenantId::new(Uuid::from_u128(7));
        assert_eq!(id.to_string().parse(), Ok(id));
        let error = id.to_string().parse::<KeyId>().unwrap_err();
        assert!(error.to_string().contains("is not a key id"), "{error}");
    }
}
