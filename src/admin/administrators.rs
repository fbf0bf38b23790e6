//! Administrators: made, each token shown once, and revoked. An owner's page; others look.

use askama::Template;
use axum::extract::State;
use secrecy::ExposeSecret as _;

use super::{
    assets,
    form::{Fault, Form},
    format, view,
    view::{PageResult, View},
};
use crate::{
    app::App,
    domain::{
        administrator::{AdminToken, Role},
        ids::AdminTokenId,
        names::DisplayName,
    },
    http::error::{self, ApiResult},
};

const PATH: &str = "/admin/administrators";

#[derive(Template)]
#[template(path = "administrators.html")]
struct AdministratorsPage<'a> {
    view: &'a View,
    rows: Vec<Row>,
    roles: [(Role, &'static str); 3],
    form: &'a Form,
    fault: Fault,
    /// Name and token of the one just made.
    made: Option<(String, String)>,
}

struct Row {
    token: AdminToken,
    /// Its token is `TOLLGATE_ADMIN_TOKEN`, so only the settings end it.
    is_set: bool,
}

/// `GET /admin/administrators`.
pub(super) async fn list(State(app): State<App>, view: View) -> PageResult {
    let form = Form::default();
    view::show(&page(&app, &view, &form).await?)
}

/// `POST /admin/administrators`: `do` is `create` or `revoke`.
pub(super) async fn change(State(app): State<App>, view: View, form: Form) -> PageResult {
    view.owner()?;
    let fault = match form.text("do") {
        "create" => match create(&app, &view, &form).await {
            Ok(made) => {
                let none = Form::default();
                let mut page = page(&app, &view, &none).await?;
                page.made = Some(made);
                return view::show(&page);
            }
            Err(error) => Fault::mend(error)?,
        },
        "revoke" => match revoke(&app, &view, &form).await {
            Ok(()) => return view::done(PATH, "revoked"),
            Err(error) => Fault {
                field: String::new(),
                ..Fault::mend(error)?
            },
        },
        _ => return Err(error::nothing_at(PATH)),
    };
    let mut page = page(&app, &view, &form).await?;
    page.fault = fault;
    view::mend(&page)
}

async fn create(app: &App, view: &View, form: &Form) -> ApiResult<(String, String)> {
    let name: DisplayName = form.required("name")?;
    let role: Role = form.required("role")?;
    let made = app.administrators.create(name, role, &view.actor).await?;
    Ok((
        made.token.name.to_string(),
        made.secret.expose_secret().to_owned(),
    ))
}

async fn revoke(app: &App, view: &View, form: &Form) -> ApiResult<()> {
    let id: AdminTokenId = form.required("administrator")?;
    app.administrators.revoke(id, &view.actor).await?;
    Ok(())
}

async fn page<'a>(app: &App, view: &'a View, form: &'a Form) -> ApiResult<AdministratorsPage<'a>> {
    let tokens = app.administrators.list().await?.into_iter();
    let rows = tokens.map(|token| Row {
        is_set: app.administrators.is_set(token.admin_token_id),
        token,
    });
    Ok(AdministratorsPage {
        view,
        rows: rows.collect(),
        roles: [
            (Role::Viewer, "looks"),
            (Role::Operator, "changes plans, tenants, keys and grants"),
            (
                Role::Owner,
                "also makes and ends administrators and sessions",
            ),
        ],
        form,
        fault: Fault::default(),
        made: None,
    })
}
