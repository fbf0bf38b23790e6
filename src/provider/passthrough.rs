//! Passes requests of the `/v1` routes on as they came, and their answers back.
//!
//! One request here is at most one request upstream. Where a kept-alive connection turns out to be closed before a byte
//! of the request was written, a fresh one takes its place, once. A request that was written, if only in part, is never
//! sent again, since the upstream may have been at work on it (RFC 9110 §9.2.2).

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header, uri::PathAndQuery,
};
use http_body_util::Full;
use tokio::time::Instant;

use super::{
    Endpoint, Forward, ProviderError, SetupError, UpstreamBody,
    body::Watch,
    connect::{Connector, Target},
    pool::{Lease, Pool, Unanswered},
};

/// What is set here, or must not go upstream whoever sent it (RFC 9110 §7.6.1).
const OWN_HEADERS: [HeaderName; 11] = [
    header::HOST,
    header::AUTHORIZATION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
];

pub(super) struct Passthrough {
    pool: Arc<Pool>,
    target: Target,
    host: HeaderValue,
    /// In the order of [`Endpoint::ALL`].
    paths: [PathAndQuery; 4],
    /// `Bearer …`, marked sensitive; `None` where no key is sent.
    authorization: Option<HeaderValue>,
}

impl Passthrough {
    pub(super) fn new(
        target: Target,
        connector: Connector,
        authorization: Option<HeaderValue>,
    ) -> Result<Self, SetupError> {
        let host = HeaderValue::from_str(&target.authority)
            .map_err(|_| SetupError(format!("'{}' is no host", target.authority)))?;
        let paths = Endpoint::ALL.map(|endpoint| {
            let path = format!("{}{}", target.base_path, endpoint.path());
            PathAndQuery::from_maybe_shared(Bytes::from(path))
                .expect("a path that was parsed, with a plain path after it")
        });
        Ok(Self {
            pool: Pool::new(connector),
            target,
            host,
            paths,
            authorization,
        })
    }

    pub(super) async fn send(
        &self,
        forward: Forward,
    ) -> Result<Response<UpstreamBody>, ProviderError> {
        let now = Instant::now();
        let mut watch = Watch::start(forward.patience, now);
        let answer = self.answer(forward, now);
        let answered = tokio::time::timeout_at(watch.deadline(), answer).await;
        let (response, lease) = answered.map_err(|_| ProviderError::Timeout)??;
        watch.progress();
        Ok(response.map(|body| UpstreamBody::upstream(body, lease, watch)))
    }

    async fn answer(
        &self,
        forward: Forward,
        now: Instant,
    ) -> Result<(Response<hyper::body::Incoming>, Lease), ProviderError> {
        let Forward {
            endpoint,
            headers,
            body,
            ..
        } = forward;
        let mut lease = self.pool.take(now).await?;
        let request = self.request(endpoint, headers, body, lease.version());
        let mut answered = lease.send(request).await;
        if let Err(Unanswered {
            unsent: Some(mut request),
            ..
        }) = answered
        {
            lease = self.pool.take_fresh(now).await?;
            self.address(&mut request, endpoint, lease.version());
            answered = lease.send(*request).await;
        }
        match answered {
            Ok(response) => Ok((response, lease)),
            Err(Unanswered { error, .. }) => Err(ProviderError::Unreachable(format!(
                "the connection to {} gave no answer: {error}",
                self.target.authority
            ))),
        }
    }

    fn request(
        &self,
        endpoint: Endpoint,
        mut headers: HeaderMap,
        body: Bytes,
        version: Version,
    ) -> Request<Full<Bytes>> {
        for name in &OWN_HEADERS {
            headers.remove(name);
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        // The answer's usage is read on its way, so it must come uncompressed.
        let identity = HeaderValue::from_static("identity");
        headers.insert(header::ACCEPT_ENCODING, identity);
        if endpoint.method() == http::Method::POST {
            let json = HeaderValue::from_static("application/json");
            headers.insert(header::CONTENT_TYPE, json);
        } else {
            headers.remove(header::CONTENT_TYPE);
        }
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = endpoint.method();
        *request.headers_mut() = headers;
        self.address(&mut request, endpoint, version);
        request
    }

    /// Says where `request` goes as `version` has it, whatever it was addressed for before.
    fn address(&self, request: &mut Request<Full<Bytes>>, endpoint: Endpoint, version: Version) {
        *request.uri_mut() = self.uri(endpoint, version);
        *request.version_mut() = version;
        if version == Version::HTTP_11 {
            request
                .headers_mut()
                .insert(header::HOST, self.host.clone());
        } else {
            request.headers_mut().remove(header::HOST);
        }
    }

    /// Only a path in HTTP/1.1; HTTP/2 makes its pseudo-headers of the whole.
    fn uri(&self, endpoint: Endpoint, version: Version) -> Uri {
        let [chat, responses, embeddings, models] = &self.paths;
        let path = match endpoint {
            Endpoint::ChatCompletions => chat,
            Endpoint::Responses => responses,
            Endpoint::Embeddings => embeddings,
            Endpoint::Models => models,
        }
        .clone();
        if version == Version::HTTP_11 {
            return Uri::from(path);
        }
        Uri::builder()
            .scheme(self.target.scheme.clone())
            .authority(self.target.authority.as_str())
            .path_and_query(path)
            .build()
            .expect("the parts of a URL that was parsed")
    }
}

#[cfg(test)]
mod tests;
