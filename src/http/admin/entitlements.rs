//! `/entitlements/sync`: the plans of an artifact, into the catalogue.

use axum::{Json, extract::State};

use super::access::Operator;
use crate::{
    app::App,
    http::{
        error::{ApiError, ApiResult},
        extract::WholeBody,
        fields::Fields,
        openapi::errors,
    },
    services::entitlements::{Entitlements, SyncError, SyncOptions, Synced},
};

/// An entitlements artifact (docs/guide/setup.md), and beside its fields how to bring it in.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"enabled": true, "create_plans": true, "plans": [{"plan_code": "starter", "features": [
    {"feature_key": "messages", "soft_limit": 150, "hard_limit": 200}]}]}))]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct SyncBody {
    enabled: bool,
    plans: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Only these plans, in any case; none: all.
    #[schema(required = false)]
    plan_filters: Option<Vec<String>>,
    /// Features that the artifact leaves out go.
    #[schema(required = false)]
    prune_missing: Option<bool>,
    /// Say what would change, and change nothing.
    #[schema(required = false)]
    dry_run: Option<bool>,
    #[schema(required = false)]
    allow_disabled_artifact: Option<bool>,
    /// Plans that are not there are made.
    #[schema(required = false)]
    create_plans: Option<bool>,
}

/// Bring the plans of an entitlements artifact into the catalogue: all of them or, with any fault, none.
#[utoipa::path(
    post, path = "/entitlements/sync", tag = "plans", security(("administrator" = ["operator"])),
    request_body = SyncBody,
    responses((status = 200, description = "In force, unless it was a dry run", body = Synced), errors::Unprocessable),
)]
pub(super) async fn sync(
    State(app): State<App>,
    Operator(admin): Operator,
    WholeBody(body): WholeBody,
) -> ApiResult<Json<Synced>> {
    let mut fields = Fields::of(&body)?;
    let mut option = |name| Ok::<_, ApiError>(fields.optional(name)?.unwrap_or(false));
    let options = SyncOptions {
        prune_missing: option("prune_missing")?,
        dry_run: option("dry_run")?,
        allow_disabled_artifact: option("allow_disabled_artifact")?,
        create_plans: option("create_plans")?,
        plans: fields.optional("plan_filters")?.unwrap_or_default(),
    };
    // A misspelt `dry_run` must not be taken for a field of an artifact to come, and everything applied.
    for name in SyncOptions::BESIDE {
        fields.leave(name);
    }
    fields.finish()?;
    // The rest is the artifact's; it tells of all its faults at once.
    let text = str::from_utf8(&body)
        .map_err(|_| ApiError::Unreadable("the body is not UTF-8".to_owned()))?;
    let synced = Entitlements::new(app.store.clone())
        .sync(text, &options, &admin.actor)
        .await?;
    Ok(Json(synced))
}

impl From<SyncError> for ApiError {
    fn from(error: SyncError) -> Self {
        let message = error.to_string();
        let invalid = |param: &str, message| Self::Invalid {
            param: param.to_owned(),
            message,
        };
        match error {
            SyncError::Admin(error) => error.into(),
            SyncError::Faults(faults) => {
                let first = faults.first().map_or("", |fault| fault.path.as_str());
                invalid(first, message)
            }
            SyncError::Disabled => Self::bad_field(
                "enabled",
                "false",
                "true, or allow_disabled_artifact to bring it in all the same",
            ),
            SyncError::NoPlanMatches { .. } => invalid("plan_filters", message),
        }
    }
}
