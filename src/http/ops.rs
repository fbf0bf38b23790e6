//! What operators and their machines ask: does it live, would it take a chat, what does it count.

use std::{
    future::{Ready, ready},
    sync::Arc,
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use subtle::ConstantTimeEq as _;

use super::{
    auth::bearer,
    error::{ApiError, ApiResult},
};

/// What these routes ask of the program; its router has an `Arc` of it in its state.
pub trait Ops: Send + Sync {
    /// Never calls the upstream: it is asked every few seconds.
    fn readiness(&self) -> BoxFuture<'_, Readiness>;
    /// All metrics in Prometheus' text format, gauges brought up to date.
    fn metrics_text(&self) -> String;
    /// What `/metrics` wants as bearer; `None`: it is open.
    fn metrics_token(&self) -> Option<&SecretString>;
    /// Whether this is the valid token of an administrator, of any role.
    fn is_admin_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, bool>;
}

/// The state of these routes.
pub type SharedOps = Arc<dyn Ops>;

/// How a part does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PartStatus {
    Ok,
    /// It does its work, but not as it should.
    Degraded,
    Down,
}

/// A part, and what is to say of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Part {
    pub status: PartStatus,
    pub detail: Option<String>,
}

impl Part {
    #[must_use]
    pub const fn ok() -> Self {
        Self {
            status: PartStatus::Ok,
            detail: None,
        }
    }

    #[must_use]
    pub fn degraded(detail: impl Into<String>) -> Self {
        Self {
            status: PartStatus::Degraded,
            detail: Some(detail.into()),
        }
    }

    #[must_use]
    pub fn down(detail: impl Into<String>) -> Self {
        Self {
            status: PartStatus::Down,
            detail: Some(detail.into()),
        }
    }
}

/// All parts that a chat needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Parts {
    pub store: Part,
    pub ledger: Part,
    pub journal: Part,
    pub provider: Part,
}

impl Parts {
    fn worst(&self) -> PartStatus {
        [&self.store, &self.ledger, &self.journal, &self.provider]
            .into_iter()
            .map(|part| part.status)
            .max()
            .unwrap_or(PartStatus::Ok)
    }
}

/// Whether a chat would be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chats {
    Taken,
    /// The journal can't be written, no provider is configured, or a part is down and the fail mode is `closed`.
    Refused,
}

/// What `/readyz` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    pub chats: Chats,
    pub parts: Parts,
}

impl Readiness {
    /// `ready`, `degraded` or `not_ready`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match (self.chats, self.parts.worst()) {
            (Chats::Refused, _) => "not_ready",
            (Chats::Taken, PartStatus::Ok) => "ready",
            (Chats::Taken, PartStatus::Degraded | PartStatus::Down) => "degraded",
        }
    }
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct ReadinessBody {
    status: &'static str,
    parts: Parts,
}

impl IntoResponse for Readiness {
    fn into_response(self) -> Response {
        let status_code = match self.chats {
            Chats::Refused => StatusCode::SERVICE_UNAVAILABLE,
            Chats::Taken => StatusCode::OK,
        };
        let body = ReadinessBody {
            status: self.word(),
            parts: self.parts,
        };
        (status_code, [(CACHE_CONTROL, NO_STORE)], Json(body)).into_response()
    }
}

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

#[derive(Serialize, utoipa::ToSchema)]
pub struct Alive {
    status: &'static str,
}

/// `GET /healthz`: the process lives.
#[utoipa::path(get, path = "/healthz", tag = "operation", responses((status = 200, description = "It lives", body = Alive)))]
pub fn healthz() -> Ready<Response> {
    ready(([(CACHE_CONTROL, NO_STORE)], Json(Alive { status: "ok" })).into_response())
}

/// `GET /readyz`: 200 as long as a chat would be taken.
#[utoipa::path(
    get, path = "/readyz", tag = "operation",
    responses(
        (status = 200, description = "`ready` or `degraded`", body = ReadinessBody),
        (status = 503, description = "`not_ready`", body = ReadinessBody),
    ),
)]
pub async fn readyz(State(ops): State<SharedOps>) -> Readiness {
    ops.readiness().await
}

/// `GET /metrics`, in Prometheus' text format.
///
/// # Errors
/// [`ApiError::InvalidApiKey`] where a token is wanted and none that serves came.
#[utoipa::path(
    get, path = "/metrics", tag = "operation",
    security((), ("metrics_token" = []), ("administrator" = ["viewer"])),
    responses((status = 200, description = "In Prometheus' text format", body = String, content_type = "text/plain")),
)]
pub async fn metrics(State(ops): State<SharedOps>, headers: HeaderMap) -> ApiResult<Response> {
    if let Some(wanted) = ops.metrics_token() {
        let given = bearer(&headers).ok_or(ApiError::InvalidApiKey)?;
        if !is_equal(given, wanted) && !ops.is_admin_token(given).await {
            return Err(ApiError::InvalidApiKey);
        }
    }
    let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok((
        [(CONTENT_TYPE, format), (CACHE_CONTROL, NO_STORE)],
        ops.metrics_text(),
    )
        .into_response())
}

/// Takes as long for a wrong token as for the right one of the same length.
fn is_equal(given: &str, wanted: &SecretString) -> bool {
    given
        .as_bytes()
        .ct_eq(wanted.expose_secret().as_bytes())
        .into()
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        body::{Body, to_bytes},
        routing::get,
    };
    use http::Request;
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;

    struct Fixed {
        readiness: Readiness,
        token: Option<SecretString>,
    }

    impl Ops for Fixed {
        fn readiness(&self) -> BoxFuture<'_, Readiness> {
            Box::pin(async move { self.readiness.clone() })
        }

        fn metrics_text(&self) -> String {
            "build_info 1\n".to_owned()
        }

        fn metrics_token(&self) -> Option<&SecretString> {
            self.token.as_ref()
        }

        fn is_admin_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, bool> {
            Box::pin(async move { token == "tga_admin" })
        }
    }

    fn all_ok() -> Parts {
        Parts {
            store: Part::ok(),
            ledger: Part::ok(),
            journal: Part::ok(),
            provider: Part::ok(),
        }
    }

    async fn ask(
        readiness: Readiness,
        token: Option<&str>,
        path: &str,
        bearer: Option<&str>,
    ) -> Response {
        let ops: SharedOps = Arc::new(Fixed {
            readiness,
            token: token.map(SecretString::from),
        });
        let router = Router::new()
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .with_state(ops);
        let mut request = Request::builder().uri(path);
        if let Some(bearer) = bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        router
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap()
    }

    fn all_ready() -> Readiness {
        Readiness {
            chats: Chats::Taken,
            parts: all_ok(),
        }
    }

    async fn text(response: Response) -> String {
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn readiness_is_whether_a_chat_would_be_taken() {
        let store_away = Parts {
            store: Part::down("no connection"),
            ..all_ok()
        };
        let journal_slow = Parts {
            journal: Part::degraded("9 s behind"),
            ..all_ok()
        };
        for (chats, parts, status_code, status) in [
            (Chats::Taken, all_ok(), 200, "ready"),
            (Chats::Taken, journal_slow, 200, "degraded"),
            (Chats::Taken, store_away.clone(), 200, "degraded"),
            (Chats::Refused, store_away, 503, "not_ready"),
        ] {
            let response = ask(Readiness { chats, parts }, None, "/readyz", None).await;
            assert_eq!(response.status(), status_code);
            let body: Value = serde_json::from_str(&text(response).await).unwrap();
            assert_eq!(body["status"], status);
        }
    }

    #[tokio::test]
    async fn every_part_is_named_with_its_status_and_detail() {
        let readiness = Readiness {
            chats: Chats::Refused,
            parts: Parts {
                provider: Part::down("set OPENAI_API_KEY"),
                ..all_ok()
            },
        };
        let body: Value =
            serde_json::from_str(&text(ask(readiness, None, "/readyz", None).await).await).unwrap();
        assert_eq!(
            body,
            json!({
                "status": "not_ready",
                "parts": {
                    "store": {"status": "ok", "detail": null},
                    "ledger": {"status": "ok", "detail": null},
                    "journal": {"status": "ok", "detail": null},
                    "provider": {"status": "down", "detail": "set OPENAI_API_KEY"},
                }
            })
        );
    }

    #[tokio::test]
    async fn metrics_want_their_token_or_an_administrators_where_one_is_set() {
        for (set, given, status) in [
            (None, None, 200),
            (None, Some("anything"), 200),
            (Some("m-token"), Some("m-token"), 200),
            (Some("m-token"), Some("tga_admin"), 200),
            (Some("m-token"), Some("m-tokem"), 401),
            (Some("m-token"), Some("m-token-longer"), 401),
            (Some("m-token"), None, 401),
        ] {
            let response = ask(all_ready(), set, "/metrics", given).await;
            assert_eq!(response.status(), status, "{set:?} {given:?}");
        }
        let response = ask(all_ready(), None, "/metrics", None).await;
        assert_eq!(
            response.headers()[CONTENT_TYPE],
            "text/plain; version=0.0.4; charset=utf-8"
        );
    }
}
