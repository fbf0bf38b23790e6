//! A browser without JavaScript: it keeps the cookie, sends forms, and says where they come from.

use reqwest::Method;

use crate::support::{Answer, Serve, Tollgate};

/// The token that servers of these tests are started with: an owner's.
pub(crate) const TOKEN: &str = "test-only-0123456789abcdef0123456789abcdef";

pub(crate) fn serve() -> Serve {
    Tollgate::serve().set("TOLLGATE_ADMIN_TOKEN", TOKEN)
}

#[derive(Clone)]
pub(crate) struct Browser {
    pub(crate) base: String,
    pub(crate) http: reqwest::Client,
    pub(crate) cookie: String,
}

impl Browser {
    /// Nobody is signed in.
    pub(crate) fn new(gate: &Tollgate) -> Self {
        Self {
            base: gate.base.clone(),
            http: gate.http.clone(),
            cookie: String::new(),
        }
    }

    pub(crate) async fn signed_in(gate: &Tollgate, token: &str) -> Self {
        let mut browser = Self::new(gate);
        let answer = browser.post("/admin/login", &[("token", token)]).await;
        assert_eq!(answer.status, 303, "{}", answer.text);
        browser.cookie = cookie_of(&answer);
        browser
    }

    /// Another administrator, signed in.
    pub(crate) async fn of_role(gate: &Tollgate, role: &str) -> Self {
        let made = gate
            .cli_json(&["admin-token", "create", role, "--role", role])
            .await;
        Self::signed_in(gate, made["token"].as_str().unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], &[]).await
    }

    /// The page at `path`, which must be there.
    pub(crate) async fn page(&self, path: &str) -> String {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer.text
    }

    /// Sends a form as a browser does from a page of this server.
    pub(crate) async fn post(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        let ours = [("sec-fetch-site", "same-origin")];
        self.send(Method::POST, path, &ours, form).await
    }

    /// Sends a form that must be taken; the page that it leads to.
    pub(crate) async fn submit(&self, path: &str, form: &[(&str, &str)]) -> String {
        let answer = self.post(path, form).await;
        assert_eq!(answer.status, 303, "{path} {form:?}: {}", answer.text);
        self.page(answer.header("location").expect("a way on"))
            .await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        form: &[(&str, &str)],
    ) -> Answer {
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.base));
        if !self.cookie.is_empty() {
            request = request.header("cookie", &self.cookie);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if method == Method::POST {
            let mut body = form_urlencoded::Serializer::new(String::new());
            body.extend_pairs(form);
            request = request
                .header("content-type", "application/x-www-form-urlencoded")
                .body(body.finish());
        }
        Answer::read(request.send().await.expect("an answer")).await
    }
}

/// `name=value` of the cookie that an answer sets.
pub(crate) fn cookie_of(answer: &Answer) -> String {
    let set = answer.header("set-cookie").expect("a cookie");
    set.split(';').next().unwrap().to_owned()
}

/// The value of the field of this name.
pub(crate) fn value_of(page: &str, name: &str) -> String {
    let after = page
        .split(&format!("name=\"{name}\" value=\""))
        .nth(1)
        .unwrap_or_else(|| panic!("no field {name}: {page}"));
    after.split('"').next().unwrap().to_owned()
}
