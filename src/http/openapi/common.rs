//! What is said of every endpoint, by what it has: parameters in its path, a body, a query, a token, a model that is run.

use utoipa::openapi::{
    Header, HttpMethod, ObjectBuilder, OpenApi, Ref, RefOr, Required, Type,
    content::ContentBuilder,
    path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem},
};

use super::errors::answer;

/// Named parts of paths: name, what it is, an example.
const PATH_PARAMETERS: [(&str, &str, &str); 5] = [
    ("code", "A plan's code", "starter"),
    ("key", "A feature's key", "messages"),
    ("t", "A tenant's slug or id", "acme"),
    (
        "id",
        "The id of what the path is about",
        "key_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b",
    ),
    (
        "user",
        "An end user's id, as the application gave it",
        "u-17",
    ),
];

pub(super) fn add_to_all(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let names: Vec<&str> = names_in(path).collect();
        for (method, operation) in operations(item) {
            for name in &names {
                add_path_parameter(operation, name);
            }
            add_operation_id(operation, &method, path);
            add_errors(operation);
            if runs_a_model(operation) {
                add_guard(operation);
            }
            add_request_id(operation);
            if path.starts_with("/v1/") {
                speak_openai(operation);
            }
        }
    }
}

fn names_in(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| {
        part.strip_prefix('{')
            .and_then(|part| part.strip_suffix('}'))
    })
}

pub(super) fn operations(
    item: &mut PathItem,
) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    [
        (HttpMethod::Get, &mut item.get),
        (HttpMethod::Put, &mut item.put),
        (HttpMethod::Post, &mut item.post),
        (HttpMethod::Delete, &mut item.delete),
        (HttpMethod::Patch, &mut item.patch),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

fn add_path_parameter(operation: &mut Operation, name: &str) {
    let parameters = operation.parameters.get_or_insert_default();
    let is_it = |it: &Parameter| it.name == name && it.parameter_in == ParameterIn::Path;
    if parameters.iter().any(is_it) {
        return;
    }
    let known = PATH_PARAMETERS.iter().find(|(known, ..)| *known == name);
    let (_, description, example) =
        known.unwrap_or_else(|| panic!("{{{name}}} has no row in PATH_PARAMETERS"));
    parameters.push(
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some(*description))
            .schema(Some(
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .min_length(Some(1)),
            ))
            .example(Some((*example).into()))
            .build(),
    );
}

/// The handler's name alone would come many times: `get_api_v1_admin_plans_code`.
fn add_operation_id(operation: &mut Operation, method: &HttpMethod, path: &str) {
    let method = match method {
        HttpMethod::Get => "get",
        HttpMethod::Put => "put",
        HttpMethod::Post => "post",
        HttpMethod::Delete => "delete",
        HttpMethod::Patch => "patch",
        HttpMethod::Options | HttpMethod::Head | HttpMethod::Trace => "other",
    };
    let path: String = path
        .chars()
        .filter(|letter| !"{}".contains(*letter))
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '_'
            }
        })
        .collect();
    operation.operation_id = Some(format!("{method}{path}"));
}

fn add_errors(operation: &mut Operation) {
    let has_query = operation
        .parameters
        .iter()
        .flatten()
        .any(|it| it.parameter_in == ParameterIn::Query);
    let has_body = operation.request_body.is_some();
    let roles = administrators_roles(operation);
    let mut add = |status: &str, description: &str| {
        let responses = &mut operation.responses.responses;
        if !responses.contains_key(status) {
            responses.insert(status.to_owned(), answer(description));
        }
    };
    if has_body {
        add("400", "`invalid_request`: the body can't be read");
        add("408", "`request_timeout`: no more of the body came");
        add("413", "`body_too_large`");
        add("415", "`unsupported_media_type`: the body is packed");
    }
    if has_body || has_query {
        add("422", "`invalid_request`: `param` names the bad field");
    }
    if operation.security.is_some() {
        add(
            "401",
            "`invalid_api_key`: the token is missing, unknown, revoked, expired or of the wrong kind",
        );
    }
    if roles.iter().any(|role| role != "viewer") {
        add("403", "`forbidden`: the administrator's role is too low");
    }
    add(
        "500",
        "`internal_error`: a fault of tollgate; its log says what",
    );
    add(
        "503",
        "`usage_store_unavailable` or `overloaded`: try again soon",
    );
}

/// The roles that an endpoint names; none if it is not an administrator's.
pub(super) fn administrators_roles(operation: &Operation) -> Vec<String> {
    let security = serde_json::to_value(&operation.security).unwrap_or_default();
    let schemes = security.as_array().into_iter().flatten();
    schemes
        .filter_map(|scheme| scheme["administrator"].as_array())
        .flatten()
        .filter_map(|role| role.as_str().map(str::to_owned))
        .collect()
}

/// Below `/v1` errors have OpenAI's form, and the upstream's pass through.
fn speak_openai(operation: &mut Operation) {
    let errors = operation
        .responses
        .responses
        .iter_mut()
        .filter(|(status, _)| !status.starts_with('2'));
    for (_, response) in errors {
        if let RefOr::T(response) = response {
            let content = ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("OpenAiErrorBody")))
                .build();
            response.content.clear();
            response
                .content
                .insert("application/json".to_owned(), content);
        }
    }
}

/// What a client may say beside the body of a request that runs a model.
const GUARDED_PARAMETERS: [(&str, &str); 2] = [
    ("X-Tollgate-User", "The end user; at most 128 bytes"),
    (
        "Idempotency-Key",
        "1-255 visible ASCII characters; the same key and body again gets the first answer, for 24 hours",
    ),
];
/// What its answer tells beside the body.
const GUARDED_HEADERS: [(&str, &str); 6] = [
    ("X-Usage-Decision", "`allow`, `soft_limit` or `hard_limit`"),
    ("RateLimit-Policy", "The hard limits (IETF draft-11)"),
    ("RateLimit", "What is left of them"),
    (
        "X-Usage-Warning",
        "A feature whose soft limit is passed; one header each",
    ),
    (
        "X-Usage-Output-Capped",
        "The output maximum, where it was lowered",
    ),
    (
        "Idempotent-Replayed",
        "`true`: the first answer to this key, charged once",
    ),
];

/// Whether the guard lets it through to a model: it has a body, and an answer for a model that fails.
fn runs_a_model(operation: &Operation) -> bool {
    operation.request_body.is_some() && operation.responses.responses.contains_key("502")
}

fn add_guard(operation: &mut Operation) {
    let parameters = operation.parameters.get_or_insert_default();
    parameters.extend(GUARDED_PARAMETERS.map(|(name, description)| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .description(Some(description))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
            .build()
    }));
    let responses = &mut operation.responses.responses;
    let repeats = "`idempotency_key_in_use` or `idempotency_answer_too_large`";
    responses.insert("409".to_owned(), answer(repeats));
    let reused = "`invalid_request`, `open_input_not_allowed`, `model_not_priced` or `idempotency_key_reused`";
    responses.insert("422".to_owned(), answer(reused));
    if let Some(RefOr::T(response)) = responses.get_mut("200") {
        for (name, description) in GUARDED_HEADERS {
            let mut header = Header::new(ObjectBuilder::new().schema_type(Type::String));
            header.description = Some(description.to_owned());
            response.headers.insert(name.to_owned(), header);
        }
    }
}

fn add_request_id(operation: &mut Operation) {
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            let mut header = Header::new(ObjectBuilder::new().schema_type(Type::String));
            header.description = Some("The request's id: the client's own, or one made".to_owned());
            response.headers.insert("X-Request-Id".to_owned(), header);
        }
    }
}
