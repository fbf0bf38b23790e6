//! Bodies that several resources share: features and their limits, in both forms (interface.md §4).

use crate::{
    domain::{
        feature::FeatureKey,
        limit::{InvalidLimit, Limit, Scope},
        names::{DisplayName, PlanCode},
        plan::{AllowedModels, PlanFeature},
        quantity::Quantity,
        window::WindowKind,
    },
    http::{
        error::{ApiError, ApiResult},
        fields::{FieldType, Fields},
    },
    services::{AdminError, plans::check_feature},
};

/// A plan to be made.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"plan_code": "team", "name": "Team", "features": [{"feature_key": "messages", "soft_limit": 150, "hard_limit": 200}]}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct PlanBody {
    plan_code: PlanCode,
    name: DisplayName,
    /// Left out: every model.
    allowed_models: Option<AllowedModels>,
    /// The features of a preset (`free`, `starter`, `pro`, `enterprise`), in place of `features`.
    preset: Option<String>,
    features: Option<Vec<FeatureBody>>,
}

/// A change to a plan; what is left out stays.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"name": "Team (2026)"}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct PlanPatch {
    /// As in the path.
    plan_code: Option<PlanCode>,
    name: Option<DisplayName>,
    allowed_models: Option<AllowedModels>,
    /// Replaces all features.
    features: Option<Vec<FeatureBody>>,
    /// As `If-Match`.
    version: Option<i64>,
}

/// A feature, whole: what is left out has its default.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"limits": [{"scope": "tenant", "window": "period", "soft_limit": 150, "hard_limit": 200}, {"scope": "user", "window": "day", "hard_limit": 20}]}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct FeatureBody {
    /// Needed in a list of features; else as in the path.
    feature_key: Option<FeatureKey>,
    /// Left out: made of the key.
    display_name: Option<DisplayName>,
    /// Left out: `requests`, `tokens` or `usd_micros` for tollgate's own features, else `units`.
    #[schema(min_length = 1, max_length = 64)]
    unit: Option<String>,
    /// False: an entitlement that is carried and shown, not enforced.
    is_metered: Option<bool>,
    /// One per scope and window.
    limits: Option<Vec<Limit>>,
    /// The flat form, a list of one limit; beside `limits` it must say what the first of them says.
    soft_limit: Option<Quantity>,
    hard_limit: Option<Quantity>,
    scope: Option<Scope>,
    window: Option<WindowKind>,
    /// Percentages from 1 to 1000 at which notices go out; null: those of the settings.
    alert_thresholds: Option<Vec<u16>>,
    /// Stripe's `event_name` of the meter that it is pushed to.
    #[schema(min_length = 1, max_length = 100)]
    stripe_meter: Option<String>,
}

/// A feature of a body, whole. Its rules are the service's, and a fault names where in the body it is.
pub(super) fn feature_fields(fields: &mut Fields<'_>, key: FeatureKey) -> ApiResult<PlanFeature> {
    let display_name = match fields.optional("display_name")? {
        Some(name) => name,
        None => DisplayName::of_text(&key.default_display_name()).ok_or_else(|| {
            let param = fields.param("display_name");
            ApiError::bad_field(param, "missing", DisplayName::ACCEPTED)
        })?,
    };
    let unit = fields.optional("unit")?;
    let mut limits = limit_fields(fields)?;
    // A limit without values says nothing in a plan.
    limits.retain(|limit| limit.soft.is_some() || limit.hard.is_some());
    let feature = PlanFeature {
        display_name,
        unit: unit.unwrap_or_else(|| key.default_unit().to_owned()),
        is_metered: fields.optional("is_metered")?.unwrap_or(true),
        limits,
        alert_thresholds: fields.optional("alert_thresholds")?,
        stripe_meter: fields.optional("stripe_meter")?,
        key,
    };
    check_feature(&feature).map_err(|error| match error {
        AdminError::Invalid {
            field,
            value,
            accepted,
        } => ApiError::bad_field(fields.param(field), value, accepted),
        other => other.into(),
    })?;
    Ok(feature)
}

/// `limits`, or the flat form of one; of both, the flat one must be the first of the list.
pub(super) fn limit_fields(fields: &mut Fields<'_>) -> ApiResult<Vec<Limit>> {
    let is_flat = ["soft_limit", "hard_limit", "scope", "window"]
        .iter()
        .any(|name| fields.has(name));
    let flat = one_limit(fields)?;
    let Some(objects) = fields.objects("limits")? else {
        return Ok(if is_flat { vec![flat] } else { Vec::new() });
    };
    let read = |mut object: Fields<'_>| {
        let limit = one_limit(&mut object)?;
        object.finish()?;
        Ok(limit)
    };
    let limits: Vec<Limit> = objects.into_iter().map(read).collect::<ApiResult<_>>()?;
    // What was shown with an empty list may come back: defaults, and no values.
    let first = limits.first().copied().unwrap_or(Limit {
        soft: None,
        hard: None,
        ..flat
    });
    if is_flat && flat != first {
        return Err(ApiError::bad_field(
            fields.param("limits"),
            "another first limit than soft_limit, hard_limit, scope and window say",
            "either the list or the flat fields",
        ));
    }
    Ok(limits)
}

fn one_limit(fields: &mut Fields<'_>) -> ApiResult<Limit> {
    let limit = Limit {
        scope: fields.optional("scope")?.unwrap_or_default(),
        window: fields.optional("window")?.unwrap_or(WindowKind::Period),
        soft: fields.optional("soft_limit")?,
        hard: fields.optional("hard_limit")?,
    };
    match limit.check() {
        Err(InvalidLimit::SoftAboveHard { soft, hard }) => Err(ApiError::bad_field(
            fields.param("soft_limit"),
            soft,
            format_args!("at most the hard_limit, {hard}"),
        )),
        _ => Ok(limit), // a number below zero was refused as it was read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(body: &str) -> ApiResult<Vec<Limit>> {
        let mut fields = Fields::of(body.as_bytes()).unwrap();
        let limits = limit_fields(&mut fields)?;
        fields.finish()?;
        Ok(limits)
    }

    #[test]
    fn the_flat_form_is_a_list_of_one() {
        let flat = limits(r#"{"soft_limit":1,"hard_limit":2}"#).unwrap();
        let list = limits(r#"{"limits":[{"soft_limit":1,"hard_limit":2}]}"#).unwrap();
        assert_eq!(flat, list);
        assert_eq!(limits("{}").unwrap(), []);
    }

    #[test]
    fn both_forms_together_must_agree() {
        let shown = r#"{"scope":"user","window":"day","soft_limit":null,"hard_limit":2,
            "limits":[{"scope":"user","window":"day","soft_limit":null,"hard_limit":2},{"hard_limit":9}]}"#;
        assert_eq!(limits(shown).unwrap().len(), 2);
        let empty = r#"{"scope":"tenant","window":"period","soft_limit":null,"hard_limit":null,"limits":[]}"#;
        assert_eq!(limits(empty).unwrap(), []);
        let error = limits(r#"{"hard_limit":3,"limits":[{"hard_limit":2}]}"#).unwrap_err();
        assert!(
            error.message().starts_with("'limits' is another"),
            "{error}"
        );
    }
}
