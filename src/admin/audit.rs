//! Who changed what, and taking a change of a plan back.

use askama::Template;
use axum::extract::State;
use serde_json::Value;

use super::{
    assets,
    form::Form,
    format,
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    http::{error::ApiError, query::Query},
    services::{AdminError, plans::Plans, undo},
    store::audit::{AuditEntry, AuditFilter},
};

/// Entries on a page.
const PAGE: usize = 50;

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditPage<'a> {
    view: &'a View,
    filter: AuditFilter,
    rows: Vec<AuditRow>,
    /// The address of the next page; `""`: this is the last.
    next: String,
    fault: String,
}

struct AuditRow {
    entry: AuditEntry,
    /// What changed: the member's path, what it was and what it became; `""` where it was or is not there.
    changes: Vec<(String, String, String)>,
    can_undo: bool,
}

/// `GET /admin/audit`.
pub(super) async fn list(State(app): State<App>, view: View, mut query: Query) -> PageResult {
    let text = |value: Option<String>| value.filter(|text| !text.trim().is_empty());
    let filter = AuditFilter {
        actor: text(query.optional("actor")?),
        action: text(query.optional("action")?),
        target: text(query.optional("target")?),
        since: None,
        until: None,
    };
    let before: Option<i64> = query
        .optional::<u64>("before")?
        .and_then(|id| i64::try_from(id).ok());
    view::show(&page(&app, &view, filter, before, String::new()).await?)
}

/// `POST /admin/audit`: takes the change `entry` back.
pub(super) async fn undo(State(app): State<App>, view: View, form: Form) -> PageResult {
    let by = view.operator()?;
    let id: u64 = form.required("entry")?;
    let id = i64::try_from(id).unwrap_or(0);
    // Just before the next one, the newest is this one, if it is there.
    let found = app.store.list_audit(Some(id.saturating_add(1)), 1).await?;
    let entry = found.into_iter().find(|entry| entry.id == id);
    let entry = entry.ok_or_else(|| ApiError::NotFound(format!("audit entry {id}")))?;
    match Plans::new(app.store.clone()).undo(&entry, by).await {
        Ok(plan) => view::done(&format!("/admin/plans/{}", plan.code), "undone"),
        Err(AdminError::VersionConflict { name, .. }) => {
            let fault = format!(
                "Plan '{name}' was changed again after that, so it can't be taken back by itself: undo the later change first, or set the value on the plan's page."
            );
            let filter = AuditFilter {
                target: Some(name),
                ..AuditFilter::default()
            };
            let page = page(&app, &view, filter, None, fault).await?;
            view::show_with(http::StatusCode::PRECONDITION_FAILED, &page)
        }
        Err(error) => Err(error.into()),
    }
}

async fn page<'a>(
    app: &App,
    view: &'a View,
    filter: AuditFilter,
    before: Option<i64>,
    fault: String,
) -> Result<AuditPage<'a>, ApiError> {
    let mut entries = app.store.search_audit(&filter, before, PAGE + 1).await?;
    let next = if entries.len() > PAGE {
        entries.truncate(PAGE);
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in [
            ("actor", &filter.actor),
            ("action", &filter.action),
            ("target", &filter.target),
        ] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        let last = entries.last().map_or(0, |entry| entry.id);
        query.append_pair("before", &last.to_string());
        format!("/admin/audit?{}", query.finish())
    } else {
        String::new()
    };
    let plans = app.store.list_plans().await?;
    let rows = entries.into_iter().map(|entry| {
        let mut changes = Vec::new();
        compare(
            "",
            entry.before.as_ref(),
            entry.after.as_ref(),
            &mut changes,
        );
        AuditRow {
            can_undo: view.is_operator() && undo::can_undo(&entry, &plans),
            changes,
            entry,
        }
    });
    Ok(AuditPage {
        view,
        rows: rows.collect(),
        filter,
        next,
        fault,
    })
}

/// Adds every leaf in which `before` and `after` differ.
fn compare(
    path: &str,
    before: Option<&Value>,
    after: Option<&Value>,
    changes: &mut Vec<(String, String, String)>,
) {
    if before == after {
        return;
    }
    let (before_members, after_members) = (members(before), members(after));
    if before_members.is_empty() && after_members.is_empty() {
        changes.push((path.to_owned(), leaf(before), leaf(after)));
        return;
    }
    let mut names: Vec<&String> = before_members.iter().map(|(name, _)| name).collect();
    names.extend(
        after_members
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !before_members.iter().any(|(known, _)| known == *name)),
    );
    for name in names {
        let find = |members: &[(String, Value)]| {
            members
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        };
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path} › {name}")
        };
        let (before, after) = (find(&before_members), find(&after_members));
        compare(&path, before.as_ref(), after.as_ref(), changes);
    }
}

/// The parts of an object or a list; those of a list by what they say they are, so that one that is added is not seen
/// as a change of all behind it.
fn members(value: Option<&Value>) -> Vec<(String, Value)> {
    match value {
        Some(Value::Object(object)) => object
            .iter()
            .filter(|(name, _)| *name != "version")
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        Some(Value::Array(list)) => list
            .iter()
            .enumerate()
            .map(|(index, value)| (name_in_list(index, value), value.clone()))
            .collect(),
        _ => Vec::new(),
    }
}

fn name_in_list(index: usize, value: &Value) -> String {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    match (text("feature_key"), text("scope"), text("window")) {
        (Some(key), ..) => key.to_owned(),
        (None, Some(scope), Some(window)) => format!("per {scope} and {window}"),
        _ => (index + 1).to_string(),
    }
}

fn leaf(value: Option<&Value>) -> String {
    match value {
        None => String::new(),
        Some(Value::Null) => "none".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_is_named_and_nothing_else() {
        let limits = |hard| json!([{"scope": "tenant", "window": "period", "hard_limit": hard}]);
        let plan = |hard, more: Option<Value>| {
            let mut features = vec![json!({"feature_key": "messages", "limits": limits(hard)})];
            features.extend(more);
            json!({"name": "x", "features": features, "version": hard})
        };
        let mut changes = Vec::new();
        let added = json!({"feature_key": "cost", "limits": []});
        compare(
            "",
            Some(&plan(1, None)),
            Some(&plan(2, Some(added))),
            &mut changes,
        );
        let hard = "features › messages › limits › per tenant and period › hard_limit";
        assert_eq!(
            changes,
            [
                (hard.to_owned(), "1".to_owned(), "2".to_owned()),
                (
                    "features › cost › feature_key".to_owned(),
                    String::new(),
                    "cost".to_owned()
                ),
                (
                    "features › cost › limits".to_owned(),
                    String::new(),
                    "[]".to_owned()
                ),
            ]
        );
    }
}
