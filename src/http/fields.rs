//! The fields of a JSON body, asked for one by one: each by what may be written, and none that nobody asked for.
//!
//! ```ignore
//! let mut fields = Fields::of(&body)?;
//! let name: DisplayName = fields.required("name")?;
//! let until: Change<Timestamp> = fields.change("until")?;
//! fields.finish()?;
//! ```

use serde_json::value::RawValue;

use super::error::{ApiError, ApiResult};
use crate::{
    domain::{
        administrator::Role,
        feature::FeatureKey,
        limit::Scope,
        names::{DisplayName, PlanCode, Slug},
        plan::AllowedModels,
        quantity::Quantity,
        subscription::SubscriptionStatus,
        tenant::TenantRef,
        time::Timestamp,
        usage::Quantities,
        window::WindowKind,
    },
    json::{self, Member},
    services::plans::Change,
};

/// A value of a field, of a query's parameter or of a path's part.
pub trait FieldType: Sized {
    /// What may be written, as it ends "write …".
    const ACCEPTED: &'static str;

    /// Read from plain text.
    fn of_text(text: &str) -> Option<Self>;

    /// Read from JSON, by default from a string.
    fn of_json(value: &RawValue) -> Option<Self> {
        Self::of_text(&serde_json::from_str::<String>(value.get()).ok()?)
    }
}

macro_rules! parsed_from_text {
    ($($type:ty => $accepted:literal),+ $(,)?) => {$(
        impl FieldType for $type {
            const ACCEPTED: &'static str = $accepted;

            fn of_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )+};
}

pub(crate) use parsed_from_text;

parsed_from_text! {
    String => "a text",
    DisplayName => "a text of 1-200 characters without control characters",
    Slug => "1-63 of a-z, 0-9, '_', '-', beginning with a letter or digit",
    PlanCode => "1-64 letters, digits, '_', '.', '-', beginning with a letter or digit",
    FeatureKey => "a feature key: 1-64 of a-z, 0-9, '_', '.', '-', beginning with a letter or digit, such as messages",
    TenantRef => "a tenant's slug or id",
    Timestamp => "a time in RFC 3339, such as 2026-11-01T00:00:00Z",
    Role => "viewer, operator or owner",
    Scope => "tenant, key or user",
    WindowKind => "minute, hour, day, week, month, period or lifetime",
    SubscriptionStatus => "active, trialing, past_due, canceled, unpaid, incomplete, incomplete_expired or paused",
    crate::domain::ids::AdminTokenId => "an administrator token's id, such as adm_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b",
    crate::domain::ids::EventId => "an event's id, such as evt_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b",
    crate::domain::ids::GrantId => "a grant's id, such as gra_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b",
    crate::domain::ids::KeyId => "a key's id, such as key_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b",
    crate::domain::ids::ReservationId => "a reservation's id, such as res_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b",
}

/// A type that JSON has itself: read by serde, in text written the same way.
macro_rules! read_as_json {
    ($($type:ty => $accepted:literal),+ $(,)?) => {$(
        impl FieldType for $type {
            const ACCEPTED: &'static str = $accepted;

            fn of_text(text: &str) -> Option<Self> {
                serde_json::from_str(text).ok()
            }

            fn of_json(value: &RawValue) -> Option<Self> {
                Self::of_text(value.get())
            }
        }
    )+};
}

read_as_json! {
    bool => "true or false",
    i64 => "a whole number",
    u64 => "a whole number of at least 0",
    Vec<String> => "a list of texts",
    Vec<u16> => "a list of whole percentages from 1 to 1000, such as [80, 100], or null",
    AllowedModels => "a list of model names or patterns, such as [\"gpt-5.1*\"]",
}

impl FieldType for Quantity {
    const ACCEPTED: &'static str = "a whole number from 0 to 9007199254740991";

    fn of_text(text: &str) -> Option<Self> {
        let quantity: Self = serde_json::from_str(text).ok()?;
        (quantity >= Self::ZERO).then_some(quantity)
    }

    fn of_json(value: &RawValue) -> Option<Self> {
        Self::of_text(value.get())
    }
}

/// Of users, models and the like.
const LONGEST_SHORT_TEXT: usize = 128;
/// More than any plan has; each feature of a request is judged against its limits.
const MOST_FEATURES: usize = 100;
const QUANTITIES: &str =
    "an object of at most 100 feature keys and whole numbers, such as {\"messages\":1}";

/// The fields that are left of an object.
pub struct Fields<'a> {
    /// Where the object stands in the body, such as `limits[0].`; empty for the body itself.
    prefix: String,
    left: Vec<Member<'a>>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The fields of a whole body.
    ///
    /// # Errors
    /// [`ApiError::Unreadable`] for what is no JSON object.
    pub fn of(body: &'a [u8]) -> ApiResult<Self> {
        Ok(Self {
            prefix: String::new(),
            left: json::read_object(body)?.members,
            known: Vec::new(),
        })
    }

    /// The fields of a body that may be left out.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn of_optional(body: &'a [u8]) -> ApiResult<Self> {
        if body.is_empty() {
            return Ok(Self {
                prefix: String::new(),
                left: Vec::new(),
                known: Vec::new(),
            });
        }
        Self::of(body)
    }

    /// # Errors
    /// [`ApiError::Invalid`] if it is missing, null, or not what is accepted.
    pub fn required<T: FieldType>(&mut self, name: &'static str) -> ApiResult<T> {
        let param = self.param(name);
        self.optional(name)?
            .ok_or_else(|| ApiError::bad_field(param, "missing", T::ACCEPTED))
    }

    /// `None` if it is missing or null.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] if it is not what is accepted.
    pub fn optional<T: FieldType>(&mut self, name: &'static str) -> ApiResult<Option<T>> {
        match self.change(name)? {
            Change::Set(value) => Ok(Some(value)),
            Change::Keep | Change::Clear => Ok(None),
        }
    }

    /// A field that stays if it is missing, and goes if it is null.
    ///
    /// # Errors
    /// As [`optional`](Self::optional).
    pub fn change<T: FieldType>(&mut self, name: &'static str) -> ApiResult<Change<T>> {
        match self.take(name) {
            None => Ok(Change::Keep),
            Some(value) if value.get() == "null" => Ok(Change::Clear),
            Some(value) => T::of_json(value).map(Change::Set).ok_or_else(|| {
                ApiError::bad_field(self.param(name), json::shown(value), T::ACCEPTED)
            }),
        }
    }

    /// A list of objects; `None` if it is missing or null.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] for anything else.
    pub fn objects(&mut self, name: &'static str) -> ApiResult<Option<Vec<Self>>> {
        let Some(value) = self.take(name).filter(|value| value.get() != "null") else {
            return Ok(None);
        };
        let values: Vec<&'a RawValue> = serde_json::from_str(value.get()).map_err(|_| {
            ApiError::bad_field(self.param(name), json::shown(value), "a list of objects")
        })?;
        let objects = values.into_iter().enumerate().map(|(index, value)| {
            let place = format!("{}{name}[{index}]", self.prefix);
            match json::members(value.get()) {
                Ok(left) => Ok(Self {
                    prefix: format!("{place}."),
                    left,
                    known: Vec::new(),
                }),
                Err(_) => Err(ApiError::bad_field(
                    place,
                    json::shown(value),
                    "an object that has each key once",
                )),
            }
        });
        objects.collect::<ApiResult<Vec<_>>>().map(Some)
    }

    /// The fields of an object that stands at `path` of a body.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] for what is no object, or has a key twice.
    pub fn of_value(path: &str, value: &'a RawValue) -> ApiResult<Self> {
        let accepted = "an object that has each key once";
        let left = json::members(value.get())
            .map_err(|_| ApiError::bad_field(path, json::shown(value), accepted))?;
        Ok(Self {
            prefix: format!("{path}."),
            left,
            known: Vec::new(),
        })
    }

    /// A text that is at most 128 bytes long; `None` if it is missing or null.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn short_text(&mut self, name: &'static str) -> ApiResult<Option<String>> {
        let text: Option<String> = self.optional(name)?;
        match text {
            Some(text) if text.len() > LONGEST_SHORT_TEXT => {
                let found = format!("a text of {} bytes", text.len());
                let accepted = "a text of at most 128 bytes, or null";
                Err(ApiError::bad_field(self.param(name), found, accepted))
            }
            text => Ok(text),
        }
    }

    /// Quantities per feature, none negative; a feature of 0 is as if it were left out.
    ///
    /// # Errors
    /// [`ApiError::Invalid`], also if it is missing.
    pub fn quantities(&mut self, name: &'static str) -> ApiResult<Quantities> {
        let param = self.param(name);
        let Some(value) = self.take(name).filter(|value| value.get() != "null") else {
            return Err(ApiError::bad_field(param, "missing", QUANTITIES));
        };
        let members = json::members(value.get())
            .map_err(|_| ApiError::bad_field(&*param, json::shown(value), QUANTITIES))?;
        if members.len() > MOST_FEATURES {
            let found = format!("an object of {} features", members.len());
            return Err(ApiError::bad_field(param, found, QUANTITIES));
        }
        let mut quantities = Quantities::default();
        for (key, value) in members {
            let shown: String = key.chars().take(64).collect();
            let param = format!("{param}.{shown}");
            let feature = FeatureKey::of_text(&key).ok_or_else(|| {
                ApiError::bad_field(&*param, "no feature key", FeatureKey::ACCEPTED)
            })?;
            let quantity = Quantity::of_json(value).ok_or_else(|| {
                ApiError::bad_field(&*param, json::shown(value), Quantity::ACCEPTED)
            })?;
            quantities.add(feature, quantity);
        }
        Ok(quantities)
    }

    /// Whether the field is there and was not asked for yet.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.left.iter().any(|(key, _)| key == name)
    }

    /// Knows the field as one that somebody else reads.
    pub fn leave(&mut self, name: &'static str) {
        self.take(name);
    }

    /// A field as messages and `param` name it.
    #[must_use]
    pub fn param(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// # Errors
    /// [`ApiError::Invalid`] for the first field that nobody asked for.
    pub fn finish(self) -> ApiResult<()> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                let accepted = match self.known.as_slice() {
                    [] => "no fields".to_owned(),
                    known => known.join(", "),
                };
                Err(ApiError::bad_field(
                    self.param(&name),
                    "not a known field",
                    accepted,
                ))
            }
        }
    }

    fn take(&mut self, name: &'static str) -> Option<&'a RawValue> {
        self.known.push(name);
        let index = self.left.iter().position(|(key, _)| key == name)?;
        Some(self.left.remove(index).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T>(result: ApiResult<T>) -> String {
        match result {
            Ok(_) => "taken".to_owned(),
            Err(error) => format!("{} {}", error.code(), error.message()),
        }
    }

    #[test]
    fn a_bad_field_is_named_with_what_was_found_and_what_is_accepted() {
        for (body, expected) in [
            (
                r#"{"role":"king"}"#,
                "invalid_request 'role' is \"king\"; write viewer, operator or owner",
            ),
            (
                r#"{"role":7}"#,
                "invalid_request 'role' is 7; write viewer, operator or owner",
            ),
            (
                r#"{"role":null}"#,
                "invalid_request 'role' is missing; write viewer, operator or owner",
            ),
            (
                "{}",
                "invalid_request 'role' is missing; write viewer, operator or owner",
            ),
        ] {
            let mut fields = Fields::of(body.as_bytes()).unwrap();
            assert_eq!(message(fields.required::<Role>("role")), expected, "{body}");
        }
    }

    #[test]
    fn a_field_that_is_not_known_is_named_with_those_that_are() {
        let mut fields = Fields::of(br#"{"nmae":"x"}"#).unwrap();
        fields.optional::<DisplayName>("name").unwrap();
        assert_eq!(
            message(fields.finish()),
            "invalid_request 'nmae' is not a known field; write name"
        );
    }

    #[test]
    fn missing_stays_null_clears_and_a_value_sets() {
        let mut fields = Fields::of(br#"{"b":null,"c":"x"}"#).unwrap();
        assert_eq!(fields.change::<String>("a").unwrap(), Change::Keep);
        assert_eq!(fields.change::<String>("b").unwrap(), Change::Clear);
        assert_eq!(
            fields.change::<String>("c").unwrap(),
            Change::Set("x".to_owned())
        );
        fields.finish().unwrap();
    }

    #[test]
    fn a_quantity_is_a_whole_number_that_every_client_reads_exactly() {
        for (text, expected) in [
            ("0", Some(0)),
            ("9007199254740991", Some(9_007_199_254_740_991)),
            ("9007199254740992", None),
            ("9223372036854775808", None),
            ("-1", None),
            ("1.5", None),
            ("\"1\"", None),
        ] {
            let body = format!(r#"{{"n":{text}}}"#);
            let mut fields = Fields::of(body.as_bytes()).unwrap();
            let read = fields.required::<Quantity>("n").ok().map(Quantity::get);
            assert_eq!(read, expected, "{text}");
        }
    }

    #[test]
    fn a_field_within_a_list_is_named_by_its_place() {
        let body = br#"{"limits":[{"scope":"tenant"},{"scope":"planet"}]}"#;
        let mut fields = Fields::of(body).unwrap();
        let mut limits = fields.objects("limits").unwrap().unwrap();
        let error = limits[1].required::<Scope>("scope").unwrap_err();
        assert!(
            error.message().starts_with("'limits[1].scope' is"),
            "{error}"
        );
        let mut fields = Fields::of(br#"{"limits":[1]}"#).unwrap();
        assert!(message(fields.objects("limits")).contains("'limits[0]' is 1"));
    }
}
