//! What a form sends: read field by field, and shown again as it was typed where something is wrong with it.

use axum::extract::{FromRef, FromRequest, Request};

use crate::{
    http::{
        error::{ApiError, ApiResult},
        extract::{BodyLimit, WholeBody},
        fields::FieldType,
    },
    services::AdminError,
};

/// The fields of a form, in the order sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// The field's text without space around it; `""` if it is not there.
    pub(super) fn text(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.trim())
    }

    /// As it was typed.
    pub(super) fn raw(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// `None` if it is empty.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] if it is not what is accepted.
    pub(super) fn optional<T: FieldType>(&self, name: &'static str) -> ApiResult<Option<T>> {
        match self.text(name) {
            "" => Ok(None),
            text => T::of_text(text).map(Some).ok_or_else(|| {
                let start: String = text.chars().take(64).collect();
                ApiError::bad_field(name, format!("'{start}'"), T::ACCEPTED)
            }),
        }
    }

    /// # Errors
    /// As [`optional`](Self::optional), and if it is empty.
    pub(super) fn required<T: FieldType>(&self, name: &'static str) -> ApiResult<T> {
        self.optional(name)?
            .ok_or_else(|| ApiError::bad_field(name, "empty", T::ACCEPTED))
    }

    /// A time; the browser's own field sends `2026-11-01T00:00`, which stands for UTC.
    ///
    /// # Errors
    /// As [`optional`](Self::optional).
    pub(super) fn time(
        &self,
        name: &'static str,
    ) -> ApiResult<Option<crate::domain::time::Timestamp>> {
        let text = self.text(name);
        let whole = match text.len() {
            10 => format!("{text}T00:00:00Z"),
            16 => format!("{text}:00Z"),
            19 => format!("{text}Z"),
            _ => text.to_owned(),
        };
        Self(vec![(name.to_owned(), whole)]).optional(name)
    }
}

impl<S> FromRequest<S> for Form
where
    BodyLimit: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let WholeBody(body) = WholeBody::from_request(request, state).await?;
        Ok(Self(form_urlencoded::parse(&body).into_owned().collect()))
    }
}

/// What is wrong with a form: the field, if it is one's fault, and what to write instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fault {
    /// `""`: the form's as a whole.
    pub(super) field: String,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }

    /// What to say beside the field `name`; `""` if it is not at fault.
    pub(super) fn of(&self, name: &str) -> &str {
        if self.field == name {
            &self.message
        } else {
            ""
        }
    }

    /// What whoever filled in the form can mend.
    ///
    /// # Errors
    /// Any other failure, as it was.
    pub(super) fn mend(error: ApiError) -> ApiResult<Self> {
        match error {
            ApiError::Invalid { param, message } => Ok(Self::new(param, sentence(&message))),
            it @ (ApiError::AlreadyExists { .. } | ApiError::PlanInUse { .. }) => {
                Ok(Self::new("", it.message()))
            }
            ApiError::NotFound(what) => Ok(Self::new("", format!("There is no {what}."))),
            other => Err(other),
        }
    }

    /// As [`mend`](Self::mend), of a service's refusal.
    ///
    /// # Errors
    /// Any other failure.
    pub(super) fn of_service(error: AdminError) -> ApiResult<Self> {
        match error {
            AdminError::Invalid {
                field,
                value,
                accepted,
            } => Ok(Self::new(
                field,
                sentence(&format!("{value}: write {accepted}")),
            )),
            other => Self::mend(other.into()),
        }
    }
}

/// As a whole sentence, for people.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(char::to_uppercase).into_iter().flatten();
    let mut sentence: String = first.chain(letters).collect();
    if !sentence.ends_with('.') {
        sentence.push('.');
    }
    sentence
}
