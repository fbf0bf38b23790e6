//! The trace that a request belongs to, by W3C Trace Context: taken from `traceparent`, put on each log line of the
//! request, and passed on to the upstream.
//!
//! tollgate makes no spans of its own, so both headers go on as they came (Trace Context §3.2 and §3.3 of the W3C
//! recommendation): the upstream's spans hang below the caller's. Without a header that can be read there is no trace.

use std::{future::Future, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::task::futures::TaskLocalFuture;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

tokio::task_local! {
    static TRACE: Option<Arc<Trace>>;
}

/// What a caller said of the trace that its request belongs to.
#[derive(Debug, PartialEq, Eq)]
pub struct Trace {
    /// 32 digits of lower-case hex.
    id: String,
    parent: HeaderValue,
    state: Vec<HeaderValue>,
}

impl Trace {
    /// The trace of a request with these headers; `None` where they name none, or not in the documented form.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Arc<Self>> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let parent = parents.next()?;
        if parents.next().is_some() {
            return None;
        }
        let id = trace_id(parent.to_str().ok()?)?.to_owned();
        let state = headers.get_all(TRACESTATE).iter().cloned().collect();
        Some(Arc::new(Self {
            id,
            parent: parent.clone(),
            state,
        }))
    }

    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Puts the headers on a request that belongs to the same trace.
    pub fn put(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.parent.clone());
        for state in &self.state {
            headers.append(TRACESTATE, state.clone());
        }
    }
}

/// The trace id of `version-traceid-parentid-flags`; a version after 00 may have more at its end.
fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (version, id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |part: &str, digits: usize| {
        part.len() == digits
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let is_of_form = is_hex(version, 2)
        && is_hex(id, 32)
        && is_hex(parent, 16)
        && is_hex(flags, 2)
        && version != "ff"
        && (version != "00" || parts.next().is_none());
    (is_of_form && !is_zero(id) && !is_zero(parent)).then_some(id)
}

/// The trace of the request that the running task works for.
#[must_use]
pub fn current() -> Option<Arc<Trace>> {
    TRACE.try_with(Clone::clone).ok().flatten()
}

/// Has `work` belong to `trace`, with all that it logs and whatever it begins through [`carried`].
pub fn within<F: Future>(
    trace: Option<Arc<Trace>>,
    work: F,
) -> TaskLocalFuture<Option<Arc<Trace>>, F> {
    TRACE.scope(trace, work)
}

/// As [`within`], for what is no future.
pub fn within_sync<R>(trace: Arc<Trace>, work: impl FnOnce() -> R) -> R {
    TRACE.sync_scope(Some(trace), work)
}

/// Has a task that is about to be spawned belong to the trace of the one that spawns it.
pub fn carried<F: Future>(task: F) -> TaskLocalFuture<Option<Arc<Trace>>, F> {
    within(current(), task)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::logs::captured;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_a_traceparent_of_the_documented_form_names_a_trace() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(PARENT), Some(id));
        assert_eq!(trace_id(&PARENT.replacen("00", "cc", 1)), Some(id));
        let longer = format!("{}-what-comes-later", PARENT.replacen("00", "cc", 1));
        assert_eq!(trace_id(&longer), Some(id), "a later version may say more");
        for bad in [
            "",
            "00",
            &PARENT.replacen("00", "ff", 1),
            &format!("{PARENT}-more"),
            &PARENT.to_uppercase(),
            &PARENT[..PARENT.len() - 1],
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ] {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
        assert_eq!(
            Trace::of(&headers(&[
                ("traceparent", PARENT),
                ("traceparent", PARENT)
            ])),
            None,
            "two of them name none"
        );
    }

    #[test]
    fn both_headers_go_on_as_they_came() {
        let came = headers(&[
            ("traceparent", PARENT),
            ("tracestate", "vendor=1"),
            ("tracestate", "other=a-b"),
        ]);
        let mut sent = HeaderMap::new();
        Trace::of(&came).unwrap().put(&mut sent);
        assert_eq!(sent, came);
    }

    #[tokio::test]
    async fn what_a_request_begins_belongs_to_its_trace() {
        let trace = Trace::of(&headers(&[("traceparent", PARENT)]));
        let (begins, begun) = tokio::sync::oneshot::channel();
        within(trace, async {
            let task = carried(async { current() });
            assert!(begins.send(task).is_ok());
        })
        .await;
        assert_eq!(current(), None);
        let of_the_task = begun.await.unwrap().await.unwrap();
        assert_eq!(of_the_task.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    }

    #[test]
    fn a_log_line_says_which_trace_it_is_of() {
        let trace = Trace::of(&headers(&[("traceparent", PARENT)])).unwrap();
        let lines = captured(|| {
            within_sync(trace, || tracing::info!("within"));
            tracing::info!("without");
        });
        assert_eq!(lines[0]["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(lines[1].get("trace_id"), None);
    }
}
