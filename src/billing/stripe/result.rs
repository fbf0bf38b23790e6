//! What became of calls, in the words of metrics.

/// What became of a call, as `stripe_push_total` counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PushResult {
    Ok,
    Error,
    /// Stripe had it already.
    Duplicate,
    /// Given up.
    Rejected,
}

impl PushResult {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Duplicate => "duplicate",
            Self::Rejected => "rejected",
        }
    }
}
