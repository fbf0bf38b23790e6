//! The API's own description: `GET /openapi.json`, and docs/reference/openapi.json, which `make generate` writes.
//!
//! An endpoint describes itself by `#[utoipa::path]` beside its handler: summary, body, what it answers when it
//! works, and the errors that are its own ([`errors`]). What holds for all is added here, so that no endpoint can
//! forget it: path parameters, the request id, and the errors that follow from having a body, a query, a token.

pub mod answers;
mod common;
pub mod errors;
mod schemas;

use std::{
    future::{Ready, ready},
    sync::LazyLock,
};

use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        ComponentsBuilder, OpenApi as Document,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

/// What the description says of the whole API.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "tollgate",
        description = "Meters, limits and bills what tenants use of a language model. Errors have one form: \
                       `{\"error\": {\"code\", \"message\", …, \"request_id\"}}`; below `/v1` with OpenAI's `type` and `param`. \
                       Times are RFC 3339 in UTC, quantities whole numbers up to 2^53-1.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "chat", description = "Answers from the model, metered and limited"),
        (name = "openai", description = "OpenAI's API, metered and limited"),
        (name = "usage", description = "What the tenant of the key used"),
        (name = "operation", description = "Health, metrics, this description"),
        (name = "plans", description = "The catalogue"),
        (name = "tenants", description = "Tenants, subscriptions, overrides and grants"),
        (name = "keys", description = "Tenants' API keys"),
        (name = "reports", description = "Usage, audit and status"),
        (name = "administrators", description = "Who may administer"),
    ),
    components(schemas(errors::ErrorBody, answers::ChatFrame, answers::OpenAiErrorBody)),
    modifiers(&Security),
)]
struct Frame;

/// The names of these schemes are what `security(…)` of an endpoint refers to.
struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut Document) {
        let bearer = |description: &str| {
            SecurityScheme::Http(
                HttpBuilder::new()
                    .scheme(HttpAuthScheme::Bearer)
                    .description(Some(description))
                    .build(),
            )
        };
        let components = document.components.take().unwrap_or_default();
        let components = ComponentsBuilder::from(components)
            .security_scheme("tenant_key", bearer("A tenant's API key, `tg_…`"))
            .security_scheme(
                "administrator",
                bearer(
                    "An administrator's token, `tga_…`. An operation names the least role: `viewer` reads, \
                     `operator` changes plans, tenants, keys and grants, `owner` also administrators. The cookie of \
                     the page's session stands for it; changes are then taken from the page itself alone.",
                ),
            )
            .security_scheme(
                "metrics_token",
                bearer("The token of `TOLLGATE_METRICS_TOKEN`, where that is set"),
            )
            .build();
        document.components = Some(components);
    }
}

/// `docs/reference/openapi.json`, byte for byte what is served.
#[must_use]
pub fn json() -> String {
    let description = crate::http::router::description();
    let mut json = description
        .to_pretty_json()
        .expect("a description is plain data");
    json.push('\n');
    json
}

/// This description.
#[utoipa::path(
    get, path = "/openapi.json", tag = "operation",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)),
)]
pub fn show() -> Ready<impl IntoResponse> {
    static JSON: LazyLock<String> = LazyLock::new(json);
    ready(([(CONTENT_TYPE, "application/json")], JSON.as_str()))
}

/// The description of all endpoints that `routes` has.
#[must_use]
pub fn complete(routes: Document) -> Document {
    let mut document = Frame::openapi();
    document.merge(routes);
    common::add_to_all(&mut document);
    document
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn generated_api_description_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/openapi.json");
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            fs::write(&path, json()).unwrap();
        }
        let on_disk = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            on_disk == json(),
            "docs/reference/openapi.json is out of date; run `make generate`"
        );
    }
}
