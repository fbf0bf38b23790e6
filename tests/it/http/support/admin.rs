//! An administrator whose methods are requests to `/api/v1/admin`.

use http::Method;
use http_body_util::Full;
use serde_json::{Value, json};

use super::{
    gate::Tollgate,
    http::{Address, Reply},
};

/// The token that every server of these tests is started with: an owner's.
pub(in crate::http) const BOOTSTRAP_TOKEN: &str = "test-only-0123456789abcdef0123456789abcdef";

#[derive(Clone, Debug)]
pub(in crate::http) struct Admin {
    address: Address,
    pub(in crate::http) token: String,
}

impl Tollgate {
    /// The bootstrap administrator, an owner.
    pub(in crate::http) fn owner(&self) -> Admin {
        Admin {
            address: self.address.clone(),
            token: BOOTSTRAP_TOKEN.to_owned(),
        }
    }
}

impl Admin {
    pub(in crate::http) fn with_token(&self, token: &str) -> Self {
        Self {
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// Another administrator, made by this one.
    pub(in crate::http) async fn make(&self, name: &str, role: &str) -> Self {
        let body = json!({ "name": name, "role": role });
        let made = self.post("/admin-tokens", &body).await.expect_status(201);
        self.with_token(made.body["token"].as_str().unwrap())
    }

    pub(in crate::http) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], "").await
    }

    pub(in crate::http) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(Method::POST, path, &[], &body.to_string()).await
    }

    pub(in crate::http) async fn put(&self, path: &str, body: &Value) -> Reply {
        self.send(Method::PUT, path, &[], &body.to_string()).await
    }

    pub(in crate::http) async fn patch(&self, path: &str, body: &Value) -> Reply {
        self.send(Method::PATCH, path, &[], &body.to_string()).await
    }

    pub(in crate::http) async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, &[], "").await
    }

    /// A request below `/api/v1/admin`, with more headers.
    pub(in crate::http) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("/api/v1/admin{path}"))
            .header("authorization", format!("Bearer {}", self.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::from(body.to_owned());
        self.address.send(request.body(body).unwrap()).await
    }

    /// All items of a list, page by page.
    pub(in crate::http) async fn all(&self, path: &str, limit: usize) -> Vec<Value> {
        let joined = if path.contains('?') { '&' } else { '?' };
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self
                .get(&format!("{path}{joined}limit={limit}{cursor}"))
                .await
                .expect_status(200);
            items.extend(page.body["items"].as_array().unwrap().iter().cloned());
            match page.body["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return items,
            }
        }
    }
}

impl Reply {
    #[track_caller]
    pub(in crate::http) fn expect_status(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:#?}");
        self
    }

    /// A bad field, by its name.
    #[track_caller]
    pub(in crate::http) fn expect_bad(self, param: &str) -> Self {
        let reply = self.expect(422, "invalid_request");
        assert_eq!(reply.body["error"]["param"], param, "{reply:#?}");
        reply
    }
}
