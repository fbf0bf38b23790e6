//! How errors are described: their one form, and the answers that endpoints name as their own.

use std::collections::BTreeMap;

use utoipa::{
    IntoResponses, ToSchema,
    openapi::{Ref, RefOr, Response, ResponseBuilder, content::ContentBuilder},
};

/// An error.
#[derive(ToSchema)]
#[schema(example = json!({"error": {"code": "invalid_request", "message": "'name' is missing; write a text of 1-200 characters without control characters", "param": "name", "request_id": "0190b6f2-c1d4-7a3e-8f5b-6c7d8e9f0a1b"}}))]
#[expect(dead_code, reason = "describes what error/body.rs writes")]
pub struct ErrorBody {
    error: ErrorObject,
}

/// What went wrong. A limit's refusal also says which limit, how much is used and when it resets.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what error/body.rs writes")]
pub struct ErrorObject {
    /// Stays the same for programs to compare.
    #[schema(example = "invalid_request")]
    code: String,
    /// For people: what happened to what, what was found, what to do.
    message: String,
    /// The field at fault; null on `/v1` where there is none.
    #[schema(required = false)]
    param: Option<String>,
    /// OpenAI's kind of error, on `/v1` only.
    #[serde(rename = "type")]
    #[schema(required = false)]
    kind: Option<String>,
    request_id: String,
    /// The object as it is now, with `version_conflict`.
    #[schema(required = false, value_type = Option<Object>)]
    current: Option<()>,
    /// One object like this per limit that was hit, with a refusal by limits.
    #[schema(required = false, value_type = Option<Vec<Object>>)]
    violations: Option<()>,
}

/// An answer in the form of errors.
pub(super) fn answer(description: &str) -> RefOr<Response> {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("ErrorBody")))
        .build();
    RefOr::T(
        ResponseBuilder::new()
            .description(description)
            .content("application/json", content)
            .build(),
    )
}

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident = $($status:literal: $description:literal),+;)+) => {$(
        $(#[$doc])*
        pub struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                BTreeMap::from([$(($status.to_owned(), answer($description))),+])
            }
        }
    )+};
}

answers! {
    /// What the path names is not there.
    NotFound = "404": "`not_found`: what the path names is not there";
    /// Something of that name is there.
    AlreadyExists = "409": "`already_exists`: there is one of that name, or was";
    /// It was settled before.
    ReservationSettled = "409": "`reservation_settled`: it is settled already; only a settle with the same idempotency key may be repeated";
    /// Limits, and what keeps a tenant from being served, where no model is called.
    Reserving = "402": "`usage_policy_configuration_error` or `subscription_inactive`: the tenant has no plan that is in force",
        "403": "`model_not_allowed`: the plan leaves the model out",
        "409": "`idempotency_key_in_use`: a request with this `Idempotency-Key` is still in flight",
        "429": "`usage_limit_exceeded` or `usage_limit_reserved`: a limit is spent, or would be with what is in flight";
    /// A plan has subscriptions.
    PlanInUse = "409": "`plan_in_use`: tenants are subscribed to it";
    /// `If-Match` names another version.
    VersionConflict = "412": "`version_conflict`: it was changed since; `current` is how it is now";
    /// It can't be done as things are.
    Unprocessable = "422": "`invalid_request`: `param` names what is wrong";
    /// Limits, and what keeps a tenant from being served.
    Guarded = "402": "`usage_policy_configuration_error` or `subscription_inactive`: the tenant has no plan that is in force",
        "403": "`model_not_allowed`: the plan leaves the model out",
        "429": "`usage_limit_exceeded` or `usage_limit_reserved`: a limit is spent, or would be with what is in flight",
        "502": "`upstream_error`: the model's server failed",
        "504": "`upstream_timeout`: the model's server did not answer in time";
}
