//! How the words of the domain look in JSON: the domain itself does not know of descriptions.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, Type},
};

use crate::domain::{
    administrator::Role,
    feature::FeatureKey,
    ids::{AdminTokenId, ConversationId, EventId, GrantId, KeyId, ReservationId, TenantId},
    limit::{Limit, LimitType, Scope},
    names::{DisplayName, PlanCode, Slug},
    plan::AllowedModels,
    quantity::Quantity,
    subscription::SubscriptionStatus,
    time::Timestamp,
    window::WindowKind,
};

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn pattern(pattern: &str, example: &str) -> ObjectBuilder {
    text()
        .pattern(Some(pattern))
        .examples([serde_json::json!(example)])
}

fn one_of(words: &[&str]) -> ObjectBuilder {
    text().enum_values(Some(words.iter().copied()))
}

macro_rules! schemas {
    ($($type:ty, $name:literal => $schema:expr;)+) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                RefOr::T(Schema::from($schema.build()))
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }
        }
    )+};
}

schemas! {
    TenantId, "TenantId" => pattern("^ten_[0-9a-f]{32}$", "ten_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b");
    KeyId, "KeyId" => pattern("^key_[0-9a-f]{32}$", "key_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b");
    GrantId, "GrantId" => pattern("^gra_[0-9a-f]{32}$", "gra_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b");
    ReservationId, "ReservationId" => pattern("^res_[0-9a-f]{32}$", "res_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b");
    EventId, "EventId" => pattern("^evt_[0-9a-f]{32}$", "evt_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b");
    ConversationId, "ConversationId" => pattern("^conv_[0-9a-f]{32}$", "conv_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b");
    AdminTokenId, "AdminTokenId" => pattern("^adm_[0-9a-f]{32}$", "adm_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b");
    Slug, "Slug" => pattern("^[a-z0-9][a-z0-9_-]{0,62}$", "acme");
    PlanCode, "PlanCode" => pattern("^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", "starter");
    FeatureKey, "FeatureKey" => pattern("^[a-z0-9][a-z0-9_.-]{0,63}$", "messages");
    DisplayName, "DisplayName" => text().min_length(Some(1)).max_length(Some(200))
        .description(Some("Without control characters"));
    Timestamp, "Timestamp" => text().format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .examples([serde_json::json!("2026-11-01T00:00:00Z")]);
    Quantity, "Quantity" => ObjectBuilder::new().schema_type(Type::Integer)
        .minimum(Some(0)).maximum(Some(9_007_199_254_740_991_i64));
    Role, "Role" => one_of(&["viewer", "operator", "owner"]);
    Scope, "Scope" => one_of(&["tenant", "key", "user"]);
    WindowKind, "Window" => one_of(&["minute", "hour", "day", "week", "month", "period", "lifetime"]);
    LimitType, "LimitType" => one_of(&["hard_limit", "soft_limit"]);
    SubscriptionStatus, "SubscriptionStatus" => one_of(&SubscriptionStatus::ALL.map(SubscriptionStatus::as_str));
}

impl PartialSchema for AllowedModels {
    fn schema() -> RefOr<Schema> {
        let pattern = text().min_length(Some(1)).max_length(Some(128));
        let list = utoipa::openapi::schema::ArrayBuilder::new()
            .items(pattern)
            .description(Some(
                "Patterns of model names with * and ?; empty: every model",
            ));
        RefOr::T(Schema::Array(list.build()))
    }
}

impl ToSchema for AllowedModels {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("AllowedModels")
    }
}

impl PartialSchema for Limit {
    fn schema() -> RefOr<Schema> {
        let or_null = |schema: RefOr<Schema>| {
            utoipa::openapi::schema::OneOfBuilder::new()
                .item(ObjectBuilder::new().schema_type(Type::Null))
                .item(schema)
        };
        let limit = ObjectBuilder::new()
            .property("scope", Scope::schema())
            .property("window", WindowKind::schema())
            .property("soft_limit", or_null(Quantity::schema()))
            .property("hard_limit", or_null(Quantity::schema()))
            .description(Some("A missing or null value is no limit; scope is tenant and window period unless said"))
            .examples([serde_json::json!({"scope": "tenant", "window": "period", "soft_limit": 150, "hard_limit": 200})])
            .additional_properties(Some(
                utoipa::openapi::schema::AdditionalProperties::<Schema>::FreeForm(false),
            ));
        RefOr::T(Schema::Object(limit.build()))
    }
}

impl ToSchema for Limit {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Limit")
    }
}
