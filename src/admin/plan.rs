//! One plan: every limit a field, what a change would do, and what to do when two people change it.

use askama::Template;
use axum::extract::State;
use http::StatusCode;

use super::{
    assets,
    form::{Fault, Form},
    format::{self, unit_name},
    plans::{limit_text, read_limit},
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    domain::{
        feature::FeatureKey,
        limit::{Limit, Scope},
        names::{DisplayName, PlanCode},
        plan::{AllowedModels, Plan, PlanFeature},
        window::WindowKind,
    },
    http::{
        error::{ApiError, ApiResult},
        fields::FieldType as _,
        path::InPath,
    },
    services::{
        AdminError,
        plans::{Change, FeatureChange, PlanChange, Plans},
        standings::PlanPreview,
    },
};

#[derive(Template)]
#[template(path = "plans/plan.html")]
struct PlanPage<'a> {
    view: &'a View,
    code: String,
    version: i64,
    name: Field,
    models: Field,
    features: Vec<FeatureRows>,
    fault: Fault,
    /// Somebody else saved meanwhile.
    is_conflict: bool,
    /// Something else was done, and what was typed beside it is still to be saved.
    is_unsaved: bool,
    preview: Option<PlanPreview>,
    tenants: u64,
    scopes: [&'static str; 3],
    windows: [&'static str; 7],
    add: &'a Form,
}

/// A field as it is shown.
#[derive(Clone, Debug, Default)]
struct Field {
    name: String,
    value: String,
    /// As it is stored: sent along, so that it can be told what was changed in the form.
    stored: String,
    /// What is wrong with it; `""`: nothing.
    fault: String,
    /// What somebody else has saved there meanwhile; `""`: the same.
    theirs: String,
}

struct FeatureRows {
    key: String,
    name: String,
    unit: String,
    is_metered: bool,
    limits: Vec<LimitRow>,
}

struct LimitRow {
    /// `Messages soft limit`, and what more there is to tell it from others of the feature.
    soft_label: String,
    hard_label: String,
    /// `per tenant and period`.
    place: String,
    remove: String,
    is_first: bool,
    soft: Field,
    hard: Field,
}

fn plans(app: &App) -> Plans {
    Plans::new(app.store.clone())
}

/// `GET /admin/plans/{code}`.
pub(super) async fn show(
    State(app): State<App>,
    view: View,
    InPath(code): InPath<PlanCode>,
) -> PageResult {
    let plan = plans(&app).get(&code).await?;
    let none = Form::default();
    view::show(&page(&app, &view, &plan, &none).await?)
}

/// `POST /admin/plans/{code}`: what it does is in `do`.
pub(super) async fn change(
    State(app): State<App>,
    view: View,
    InPath(code): InPath<PlanCode>,
    form: Form,
) -> PageResult {
    view.operator()?;
    match form.text("do") {
        "delete" => match plans(&app).delete(&code, None, &view.actor).await {
            Ok(()) => view::done("/admin/plans", "deleted"),
            Err(error) => {
                let plan = plans(&app).get(&code).await?;
                let mut page = page(&app, &view, &plan, &form).await?;
                page.fault = Fault::of_service(error)?;
                view::mend(&page)
            }
        },
        "add" => add(&app, &view, &code, &form).await,
        what => match what.strip_prefix("remove ") {
            Some(place) => remove(&app, &view, &code, &form, place).await,
            None => save(&app, &view, &code, &form).await,
        },
    }
}

/// What the form makes of `plan`.
struct Edited {
    plan: Plan,
    /// By the field's name.
    faults: Vec<(String, String)>,
}

/// The name of the hidden field that says what the field `name` was when its page was shown.
fn was(name: &str) -> String {
    format!("was {name}")
}

/// What was typed into a field; `None` if the form lacks it, or has it as its page did.
fn typed<'a>(form: &'a Form, name: &str) -> Option<&'a str> {
    let typed = form.raw(name)?;
    let was = form.raw(&was(name));
    was.is_none_or(|was| was.trim() != typed.trim())
        .then_some(typed)
}

/// Reads every field that was typed into; all others stay, as somebody else may have saved them meanwhile.
fn edited(plan: &Plan, form: &Form) -> Edited {
    let mut edited = plan.clone();
    let mut faults = Vec::new();
    if let Some(name) = typed(form, "name") {
        match DisplayName::of_text(name.trim()) {
            Some(name) => edited.name = name,
            None => faults.push((
                "name".to_owned(),
                format!("Write {}.", DisplayName::ACCEPTED),
            )),
        }
    }
    if let Some(models) = typed(form, "allowed_models") {
        let models = models.split([',', '\n']).map(str::trim);
        edited.allowed_models = AllowedModels(
            models
                .filter(|it| !it.is_empty())
                .map(str::to_owned)
                .collect(),
        );
    }
    for feature in &mut edited.features {
        let unit = feature.unit.clone();
        for (scope, window) in places(feature) {
            let read = |side: &'static str, faults: &mut Vec<(String, String)>| {
                let name = field_name(&feature.key, scope, window, side);
                let text = typed(form, &name)?;
                match read_limit(text, &unit) {
                    Ok(value) => Some(value),
                    Err(told) => {
                        faults.push((name, told));
                        None
                    }
                }
            };
            let (soft, hard) = (read("soft", &mut faults), read("hard", &mut faults));
            let is_it = |it: &&mut Limit| (it.scope, it.window) == (scope, window);
            let limit = match feature.limits.iter_mut().find(is_it) {
                Some(limit) => limit,
                None => {
                    feature.limits.push(Limit {
                        scope,
                        window,
                        soft: None,
                        hard: None,
                    });
                    feature.limits.last_mut().expect("it was just added")
                }
            };
            limit.soft = soft.unwrap_or(limit.soft);
            limit.hard = hard.unwrap_or(limit.hard);
            if limit.check().is_err() && (soft.is_some() || hard.is_some()) {
                let name = field_name(&feature.key, scope, window, "soft");
                let most = limit_text(limit.hard, &unit);
                faults.push((
                    name,
                    format!("The soft limit is above the hard limit: write at most {most}."),
                ));
            }
        }
        // A limit without values says nothing in a plan.
        feature
            .limits
            .retain(|limit| limit.soft.is_some() || limit.hard.is_some());
    }
    Edited {
        plan: edited,
        faults,
    }
}

/// Where a feature has limits; the tenant's period is always among them, and first.
fn places(feature: &PlanFeature) -> Vec<(Scope, WindowKind)> {
    let usual = (Scope::Tenant, WindowKind::Period);
    let others = feature
        .limits
        .iter()
        .map(|limit| (limit.scope, limit.window));
    let is_metered = feature.is_metered || feature.limits.is_empty();
    let usual_first = is_metered.then_some(usual);
    usual_first
        .into_iter()
        .chain(others.filter(|place| !is_metered || *place != usual))
        .collect()
}

fn field_name(key: &FeatureKey, scope: Scope, window: WindowKind, side: &str) -> String {
    format!("limit {key} {scope} {window} {side}")
}

async fn save(app: &App, view: &View, code: &PlanCode, form: &Form) -> PageResult {
    let stored = plans(app).get(code).await?;
    let expected: Option<i64> = form.optional("version")?;
    let Edited { plan, faults } = edited(&stored, form);
    let is_old = expected.is_some_and(|expected| expected != stored.version);
    let mut again = page(app, view, &stored, form).await?;
    again.say(&faults);
    if is_old {
        return conflict(again); // before faults: whoever mends one has seen what else changed
    }
    if !faults.is_empty() {
        return view::mend(&again);
    }
    if form.text("do") == "preview" {
        again.preview = Some(app.reports.preview(&plan).await?);
        return view::show(&again);
    }
    let change = PlanChange {
        name: Some(plan.name),
        allowed_models: Some(plan.allowed_models),
        features: Some(plan.features),
    };
    match plans(app).set(code, &change, expected, &view.actor).await {
        Ok(saved) if saved.version == stored.version => view::done(&address(code), "unchanged"),
        Ok(_) => view::done(&address(code), "saved"),
        Err(AdminError::VersionConflict { .. }) => {
            let stored = plans(app).get(code).await?;
            conflict(page(app, view, &stored, form).await?)
        }
        Err(error) => {
            again.fault = Fault::of_service(error)?;
            again.say(&[(again.fault.field.clone(), again.fault.message.clone())]);
            view::mend(&again)
        }
    }
}

/// The form as it was filled in, with what somebody else saved beside it: saving once more is a decision then.
fn conflict(mut page: PlanPage<'_>) -> PageResult {
    page.is_conflict = true;
    view::show_with(StatusCode::PRECONDITION_FAILED, &page)
}

/// Adds a feature, or a limit of one; what is there already is changed above.
async fn add(app: &App, view: &View, code: &PlanCode, form: &Form) -> PageResult {
    let stored = plans(app).get(code).await?;
    let is_there = |change: &FeatureChange| {
        let limits = stored.features.iter().filter(|it| it.key == change.key);
        limits
            .flat_map(|feature| &feature.limits)
            .any(|limit| (limit.scope, limit.window) == (change.scope, change.window))
    };
    let read = || -> ApiResult<FeatureChange> {
        let key: FeatureKey = form.required("feature_key")?;
        let unit = key.default_unit();
        let value = |name: &'static str| {
            read_limit(form.text(name), unit)
                .map(|value| value.map_or(Change::Clear, Change::Set))
                .map_err(|message| ApiError::Invalid {
                    param: name.to_owned(),
                    message,
                })
        };
        let change = FeatureChange {
            scope: form.optional("scope")?.unwrap_or(Scope::Tenant),
            window: form.optional("window")?.unwrap_or(WindowKind::Period),
            soft: value("soft_limit")?,
            hard: value("hard_limit")?,
            key,
            unit: None,
            display_name: None,
            is_metered: None,
            stripe_meter: Change::Keep,
            alert_thresholds: Change::Keep,
        };
        if is_there(&change) {
            let FeatureChange {
                key, scope, window, ..
            } = &change;
            return Err(ApiError::Invalid {
                param: "feature_key".to_owned(),
                message: format!(
                    "{key} has a limit per {scope} and {window} already: change it above."
                ),
            });
        }
        Ok(change)
    };
    let added = match read() {
        Ok(change) => plans(app)
            .set_feature(code, &change, &view.actor)
            .await
            .map_err(ApiError::from),
        Err(error) => Err(error),
    };
    match added {
        Ok(_) => done_beside(app, view, &stored, form, "saved").await,
        Err(error) => {
            let mut page = page(app, view, &stored, form).await?;
            page.fault = Fault::mend(error)?;
            view::mend(&page)
        }
    }
}

/// Takes away a feature (`messages`), or one limit of it (`messages user day`).
async fn remove(app: &App, view: &View, code: &PlanCode, form: &Form, place: &str) -> PageResult {
    let stored = plans(app).get(code).await?;
    let mut words = place.split(' ');
    let key: Option<FeatureKey> = words.next().and_then(|key| key.parse().ok());
    let limit = match (words.next(), words.next()) {
        (Some(scope), Some(window)) => Some((scope.parse(), window.parse())),
        _ => None,
    };
    let limit = match limit {
        Some((Ok(scope), Ok(window))) => Some((scope, window)),
        None => None,
        Some(_) => return view::go(&address(code)),
    };
    let Some(key) = key else {
        return view::go(&address(code));
    };
    plans(app)
        .remove_feature(code, &key, limit, None, &view.actor)
        .await?;
    done_beside(app, view, &stored, form, "removed").await
}

/// After a change beside the fields of the form: what was typed into these is not saved with it, and not lost.
/// `before`: the plan as it was until then.
async fn done_beside(
    app: &App,
    view: &View,
    before: &Plan,
    form: &Form,
    said: &'static str,
) -> PageResult {
    let Edited { plan, faults } = edited(before, form);
    if plan == *before && faults.is_empty() {
        return view::done(&address(&before.code), said);
    }
    let stored = plans(app).get(&before.code).await?;
    let none = Form::default();
    let mut again = page(app, view, &stored, form).await?;
    again.add = &none;
    again.is_unsaved = true;
    again.say(&faults);
    let seen: Option<i64> = form.optional("version")?;
    if seen.is_some_and(|seen| seen != before.version) {
        return conflict(again);
    }
    view::show(&again)
}

fn address(code: &PlanCode) -> String {
    format!("/admin/plans/{code}")
}

/// The page of the plan as it is stored, with what `form` has typed into it.
async fn page<'a>(
    app: &App,
    view: &'a View,
    plan: &Plan,
    form: &'a Form,
) -> ApiResult<PlanPage<'a>> {
    let picture = app.overview.picture(&app.tasks).await?;
    let field = |name: String, stored: String| {
        let typed = typed(form, &name);
        let is_theirs = form.raw(&was(&name)).is_none_or(|was| was != stored);
        let theirs = match typed {
            Some(typed) if is_theirs && typed.trim() != stored => stored.clone(),
            _ => String::new(),
        };
        Field {
            value: typed.unwrap_or(&stored).to_owned(),
            stored,
            name,
            fault: String::new(),
            theirs,
        }
    };
    let rows = plan.features.iter().map(|feature| {
        let limits = places(feature)
            .into_iter()
            .enumerate()
            .map(|(index, (scope, window))| {
                let is_it = |it: &&Limit| (it.scope, it.window) == (scope, window);
                let limit = feature.limits.iter().find(is_it);
                let shown = |side: &str, value| {
                    field(
                        field_name(&feature.key, scope, window, side),
                        limit_text(value, &feature.unit),
                    )
                };
                let more = if (scope, window) == (Scope::Tenant, WindowKind::Period) {
                    String::new()
                } else {
                    format!(" per {scope} and {window}")
                };
                LimitRow {
                    soft_label: format!("{} soft limit{more}", feature.display_name),
                    hard_label: format!("{} hard limit{more}", feature.display_name),
                    place: format!("per {scope} and {window}"),
                    remove: format!("remove {} {scope} {window}", feature.key),
                    is_first: index == 0 && feature.is_metered,
                    soft: shown("soft", limit.and_then(|limit| limit.soft)),
                    hard: shown("hard", limit.and_then(|limit| limit.hard)),
                }
            });
        FeatureRows {
            limits: limits.collect(),
            key: feature.key.to_string(),
            name: feature.display_name.to_string(),
            unit: unit_name(&feature.unit).to_owned(),
            is_metered: feature.is_metered,
        }
    });
    Ok(PlanPage {
        view,
        tenants: picture.of_plan.get(&plan.code).copied().unwrap_or(0),
        code: plan.code.to_string(),
        version: plan.version,
        name: field("name".to_owned(), plan.name.to_string()),
        models: field(
            "allowed_models".to_owned(),
            plan.allowed_models.0.join(", "),
        ),
        features: rows.collect(),
        fault: Fault::default(),
        is_conflict: false,
        is_unsaved: false,
        preview: None,
        scopes: ["tenant", "key", "user"],
        windows: WindowKind::ALL.map(WindowKind::as_str),
        add: form,
    })
}

impl PlanPage<'_> {
    /// Puts each fault beside its field.
    fn say(&mut self, faults: &[(String, String)]) {
        let limits = self
            .features
            .iter_mut()
            .flat_map(|feature| &mut feature.limits);
        let of_limits = limits.flat_map(|limit| [&mut limit.soft, &mut limit.hard]);
        for field in of_limits.chain([&mut self.name, &mut self.models]) {
            if let Some((_, told)) = faults.iter().find(|(name, _)| *name == field.name) {
                field.fault.clone_from(told);
            }
        }
    }

    fn selected(&self, name: &str, option: &str, usual: &str) -> bool {
        match self.add.text(name) {
            "" => option == usual,
            chosen => chosen == option,
        }
    }
}
