//! A look at an upstream before it is used: does it answer, and does it take the key?

use std::time::Duration;

use serde_json::Value;

use super::{SetupError, openai};

/// A person waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for the list of models; how many there are, `None` if the answer is no such list.
///
/// # Errors
/// What failed, for people; never the key.
pub async fn models(settings: &openai::Settings) -> Result<Option<usize>, String> {
    let (client, authorization) = openai::client_of(settings).map_err(|SetupError(why)| why)?;
    let mut request = client
        .get(format!("{}/models", settings.base_url))
        .timeout(PATIENCE);
    if let Some(authorization) = authorization {
        request = request.header(http::header::AUTHORIZATION, authorization);
    }
    let answer = request.send().await.map_err(|error| in_words(&error))?;
    let status = answer.status();
    if status == http::StatusCode::UNAUTHORIZED || status == http::StatusCode::FORBIDDEN {
        return Err(format!("the upstream refuses the key ({status})"));
    }
    if !status.is_success() {
        return Err(format!("the upstream answers {status}"));
    }
    let body: Option<Value> = answer.json().await.ok();
    Ok(body.and_then(|body| Some(body["data"].as_array()?.len())))
}

/// The innermost cause says most: "connection refused", "no such host".
fn in_words(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} seconds", PATIENCE.as_secs());
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
