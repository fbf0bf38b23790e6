//! Router and description, walked side by side.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::*;

/// What people look at; not described but for its entrance.
const PAGES: &str = "/admin/";

/// Path → methods, as the router itself has them. axum shows them by `Debug` alone; should that ever change, this
/// finds no route, which the tests would notice.
fn served() -> BTreeMap<String, BTreeSet<String>> {
    let Parts { api, admin, pages } = &*PARTS;
    let router = api.clone().nest(ADMIN, admin.clone()).merge(pages.clone());
    let text = format!("{router:?}");
    let after = |text: &str, mark: &str| text.split(mark).nth(1).unwrap_or_default().to_owned();
    let mut methods = BTreeMap::new();
    let routes = after(&text, "routes: {");
    for route in routes.split("RouteId(").skip(1) {
        let id = route.split(')').next().unwrap_or_default().to_owned();
        let allowed = after(route, "allow_header: Bytes(b\"");
        let allowed = allowed.split('"').next().unwrap_or_default();
        let allowed: BTreeSet<String> = allowed
            .split(',')
            .filter(|method| !method.is_empty() && *method != "HEAD")
            .map(|method| method.to_lowercase())
            .collect();
        methods.entry(id).or_insert(allowed);
    }
    let paths = after(&text, "paths: {");
    paths
        .split("RouteId(")
        .skip(1)
        .filter_map(|entry| {
            let (id, rest) = entry.split_once("): \"")?;
            let path = rest.split('"').next()?;
            Some((path.to_owned(), methods.get(id)?.clone()))
        })
        .collect()
}

fn described() -> BTreeMap<String, BTreeSet<String>> {
    let paths = document()["paths"].as_object().unwrap().clone();
    paths
        .into_iter()
        .map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            (path, methods.cloned().collect())
        })
        .collect()
}

fn document() -> Value {
    serde_json::to_value(description()).unwrap()
}

fn operations() -> Vec<(String, String, Value)> {
    let document = document();
    let paths = document["paths"].as_object().unwrap();
    let of_path = |(path, item): (&String, &Value)| {
        let item = item.as_object().unwrap();
        let operations = item.iter();
        operations
            .map(|(method, operation)| (path.clone(), method.clone(), operation.clone()))
            .collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

#[test]
fn every_route_is_described_and_every_description_is_served() {
    let mut served = served();
    assert!(served.len() > 20, "{served:?}");
    let described = described();
    // Of pages, what is described is served; a form's address that is opened by itself leads to its page.
    for (path, methods) in &mut served {
        if path.starts_with(PAGES) {
            methods.retain(|method| described.get(path).is_some_and(|it| it.contains(method)));
        }
    }
    served.retain(|_, methods| !methods.is_empty());
    assert_eq!(served, described);
}

#[test]
fn nothing_reaches_a_model_without_a_key_that_is_metered() {
    let free: Vec<String> = operations()
        .into_iter()
        .filter(|(_, _, operation)| {
            let security = operation["security"].as_array();
            !security.is_some_and(|schemes| {
                !schemes.is_empty()
                    && schemes
                        .iter()
                        .all(|scheme| scheme != &serde_json::json!({}))
            })
        })
        .map(|(path, ..)| path)
        .collect();
    for path in &free {
        let is_open = ["/healthz", "/readyz", "/metrics", "/openapi.json"].contains(&path.as_str());
        let is_elsewhere =
            path == "/admin" || path.starts_with(PAGES) || path.starts_with("/webhooks/");
        assert!(is_open || is_elsewhere, "{path} asks for no token");
    }
    let metered: BTreeSet<String> = error::METERED_ENDPOINTS
        .iter()
        .map(|endpoint| endpoint.split_once(' ').unwrap().1.to_owned())
        .collect();
    let below_v1 = |path: &String| path.starts_with("/v1/");
    let served: BTreeSet<String> = served().into_keys().filter(below_v1).collect();
    assert_eq!(served, metered, "what is below /v1 goes to the model");
    for (path, method, operation) in operations() {
        let reaches = path.starts_with("/v1/") || path.starts_with("/api/v1/chat");
        if reaches && method == "post" {
            assert!(
                operation["responses"]["429"].is_object(),
                "{path} is not guarded"
            );
            assert_eq!(
                operation["security"][0],
                serde_json::json!({"tenant_key": []})
            );
        }
    }
}

#[test]
fn administration_names_a_role_and_changes_need_more_than_a_viewer() {
    for (path, method, operation) in operations() {
        if !path.starts_with("/api/v1/admin/") {
            continue;
        }
        let role = operation["security"][0]["administrator"][0].as_str();
        let accepted: &[&str] = match method.as_str() {
            "get" => &["viewer", "operator", "owner"],
            _ => &["operator", "owner"],
        };
        assert!(
            role.is_some_and(|role| accepted.contains(&role)),
            "{method} {path}: {role:?}"
        );
    }
}

#[test]
fn every_operation_has_a_summary_a_tag_and_its_errors() {
    let document = document();
    let tags: BTreeSet<&str> = document["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| tag["name"].as_str().unwrap())
        .collect();
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations() {
        let place = format!("{method} {path}");
        assert!(operation["summary"].is_string(), "{place} has no summary");
        let tag = operation["tags"][0].as_str().unwrap_or_default();
        assert!(tags.contains(tag), "{place}: {tag}");
        assert!(
            ids.insert(operation["operationId"].as_str().unwrap().to_owned()),
            "{place}: its id is there twice"
        );
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.contains_key("503"), "{place}");
        if operation.get("requestBody").is_some() {
            assert!(responses.contains_key("400"), "{place}");
        }
    }
}
