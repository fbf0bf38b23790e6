//! Sessions of the admin page: how long an administrator stays signed in there.

use std::time::Duration;

use super::{
    ids::{AdminTokenId, SessionId},
    time::Timestamp,
};

/// A session that is not used for this long is over.
const IDLE: Duration = Duration::from_secs(12 * 3600);
/// However much it is used, a session is over after this.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// That it is used is noted at most this often: a page view should not cost a write.
const NOTED_EVERY: Duration = Duration::from_secs(60);

/// An administrator who is signed in at the page, without the session's secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub session_id: SessionId,
    pub admin_token_id: AdminTokenId,
    pub created_at: Timestamp,
    /// To the minute.
    pub last_seen_at: Timestamp,
    /// Over from here on.
    pub expires_at: Timestamp,
    /// The peer's at sign-in.
    pub address: Option<String>,
    /// As the browser called itself at sign-in.
    pub user_agent: String,
}

impl Session {
    /// One that begins at `now`.
    #[must_use]
    pub fn begin(
        session_id: SessionId,
        admin_token_id: AdminTokenId,
        address: Option<String>,
        user_agent: String,
        now: Timestamp,
    ) -> Self {
        Self {
            session_id,
            admin_token_id,
            created_at: now,
            last_seen_at: now,
            expires_at: now.plus(IDLE),
            address,
            user_agent,
        }
    }

    /// The session as used at `now`; `None` if that is not worth noting yet.
    #[must_use]
    pub fn seen_at(&self, now: Timestamp) -> Option<Self> {
        (now.since(self.last_seen_at) >= NOTED_EVERY).then(|| Self {
            last_seen_at: now,
            expires_at: now.plus(IDLE).min(self.created_at.plus(LONGEST)),
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn use_prolongs_a_session_and_never_past_its_longest() {
        let begun = Timestamp::from_seconds(1_000_000);
        let mut session = Session::begin(
            SessionId::new(Uuid::from_u128(1)),
            AdminTokenId::new(Uuid::from_u128(2)),
            None,
            String::new(),
            begun,
        );
        assert_eq!(session.expires_at, begun.plus(IDLE));
        assert_eq!(session.seen_at(begun.plus(NOTED_EVERY / 2)), None);
        let mut now = begun;
        while now < session.expires_at {
            session = session.seen_at(now).unwrap_or(session);
            now = now.plus(IDLE / 2);
        }
        assert_eq!(session.expires_at, begun.plus(LONGEST));
    }
}
