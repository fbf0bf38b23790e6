//! Who is signed in at the admin page. Whoever guesses tokens there is slowed down; the API is not touched by that.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use secrecy::{ExposeSecret as _, SecretString};

use super::{
    AdminError,
    administrators::{Administrator, Administrators},
    secrets::{self, SecretKind},
};
use crate::{
    clock,
    domain::{administrator::Actor, ids::SessionId, session::Session, time::Timestamp},
    store::{SharedStore, StoreError, StoreResult},
};

/// How much of what a browser calls itself is kept.
const USER_AGENT_CHARS: usize = 200;
/// So many wrong tokens in a row are let by, …
const WRONG_AT_ONCE: u32 = 5;
/// … and then one each time this has passed.
const WRONG_EVERY: Duration = Duration::from_secs(10);
/// Of so many addresses wrong tokens are remembered: an attacker has many.
const ADDRESSES: usize = 4_096;

/// Where somebody signs in from.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// The peer's.
    pub address: Option<IpAddr>,
    /// As the browser calls itself.
    pub user_agent: String,
}

/// Somebody who is signed in.
#[derive(Clone, Debug)]
pub struct SignedIn {
    pub session: Session,
    pub administrator: Administrator,
}

/// Why somebody could not sign in.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignInError {
    #[error("this token is not an administrator's, or it was revoked")]
    WrongToken,
    /// The token was not looked at.
    #[error("too many wrong tokens came from this address")]
    SlowDown { retry_after: Duration },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The sessions, as they are kept.
pub struct Sessions {
    store: SharedStore,
    administrators: Administrators,
    wrong: Mutex<WrongTokens>,
}

impl Sessions {
    #[must_use]
    pub fn new(store: SharedStore, administrators: Administrators) -> Self {
        Self {
            store,
            administrators,
            wrong: Mutex::default(),
        }
    }

    /// Begins a session of the token's administrator; its secret is told only here.
    ///
    /// # Errors
    /// [`SignInError`]; a token that came too soon after wrong ones is not looked at, be it right or wrong.
    pub async fn sign_in(
        &self,
        token: &str,
        visitor: &Visitor,
        now: Timestamp,
    ) -> Result<(SignedIn, SecretString), SignInError> {
        self.wrong_tokens(|wrong| wrong.check(visitor.address, now))?;
        let Some(administrator) = self.administrators.authenticate(token).await? else {
            self.wrong_tokens(|wrong| wrong.note(visitor.address, now));
            return Err(SignInError::WrongToken);
        };
        let address = visitor.address.map(|address| address.to_string());
        let session = Session::begin(
            SessionId::new(clock::new_id()),
            administrator.admin_token_id,
            address.clone(),
            visitor.user_agent.chars().take(USER_AGENT_CHARS).collect(),
            now,
        );
        let secret = secrets::generate(SecretKind::Session);
        let hash = secrets::hash(secret.expose_secret());
        let by = administrator.acting(address, now);
        self.store.create_session(&session, hash, &by).await?;
        let signed_in = SignedIn {
            session,
            administrator,
        };
        Ok((signed_in, secret))
    }

    /// Who is signed in by this secret; `None` if the session is over, or its administrator is no more.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn find(&self, secret: &str, now: Timestamp) -> StoreResult<Option<SignedIn>> {
        if !secrets::has_form(SecretKind::Session, secret) {
            return Ok(None);
        }
        let Some(session) = self.store.find_session(secrets::hash(secret), now).await? else {
            return Ok(None);
        };
        let Some(administrator) = self.administrators.still(session.admin_token_id).await? else {
            return Ok(None);
        };
        let session = match session.seen_at(now) {
            Some(seen) => {
                self.store.touch_session(&seen).await?;
                seen
            }
            None => session,
        };
        Ok(Some(SignedIn {
            session,
            administrator,
        }))
    }

    /// Everybody who is signed in, the one seen last first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self, now: Timestamp) -> Result<Vec<SignedIn>, AdminError> {
        let mut signed_in = Vec::new();
        for session in self.store.list_sessions(now).await? {
            if let Some(administrator) = self.administrators.still(session.admin_token_id).await? {
                signed_in.push(SignedIn {
                    session,
                    administrator,
                });
            }
        }
        Ok(signed_in)
    }

    /// Ends a session at once.
    ///
    /// # Errors
    /// `NotFound`, also for one that is over already.
    pub async fn end(&self, session: SessionId, by: &Actor) -> Result<(), AdminError> {
        self.store.end_session(session, by).await?;
        Ok(())
    }

    fn wrong_tokens<T>(&self, with: impl FnOnce(&mut WrongTokens) -> T) -> T {
        with(&mut self.wrong.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// From where wrong tokens came: for each address the instant at which all of them are forgotten again. Every one
/// moves it on by [`WRONG_EVERY`].
#[derive(Default)]
struct WrongTokens(HashMap<Option<IpAddr>, Timestamp>);

impl WrongTokens {
    fn check(&self, address: Option<IpAddr>, now: Timestamp) -> Result<(), SignInError> {
        let forgotten_at = self.0.get(&network(address)).copied().unwrap_or(now);
        let free_at = forgotten_at.minus(WRONG_EVERY * (WRONG_AT_ONCE - 1));
        if free_at <= now {
            return Ok(());
        }
        Err(SignInError::SlowDown {
            retry_after: free_at.since(now),
        })
    }

    fn note(&mut self, address: Option<IpAddr>, now: Timestamp) {
        let address = network(address);
        if self.0.len() >= ADDRESSES && !self.0.contains_key(&address) {
            self.0.retain(|_, forgotten_at| *forgotten_at > now);
            if self.0.len() >= ADDRESSES
                && let Some((first, _)) = self.0.iter().min_by_key(|(_, at)| **at)
            {
                let first = *first;
                self.0.remove(&first);
            }
        }
        let forgotten_at = self.0.entry(address).or_insert(now);
        *forgotten_at = (*forgotten_at).max(now).plus(WRONG_EVERY);
    }
}

/// Whoever has one address of IPv6 has all that share its first 64 bits (RFC 6177).
fn network(address: Option<IpAddr>) -> Option<IpAddr> {
    address.map(|address| match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{domain::administrator::Role, store::sqlite::SqliteStore};

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn now() -> Timestamp {
        Timestamp::from_seconds(1_000)
    }

    fn visitor(address: &str) -> Visitor {
        Visitor {
            address: Some(address.parse().unwrap()),
            user_agent: "a browser".to_owned(),
        }
    }

    async fn opened() -> (Sessions, Administrators, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&directory.path().join("t.db")).unwrap());
        let set = SecretString::from(TOKEN);
        let administrators = Administrators::open(store.clone(), Some(&set), now()).await;
        let administrators = administrators.unwrap();
        (
            Sessions::new(store, administrators.clone()),
            administrators,
            directory,
        )
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_session_lasts_until_it_is_ended_or_its_administrator_is_revoked() {
        let (sessions, administrators, _directory) = opened().await;
        let here = visitor("192.0.2.7");
        let (root, secret) = sessions.sign_in(TOKEN, &here, now()).await.unwrap();
        let by = root.administrator.acting(None, now());
        let bob = administrators
            .create("bob".parse().unwrap(), Role::Viewer, &by)
            .await
            .unwrap();
        let token = bob.secret.expose_secret();
        let (_, of_bob) = sessions.sign_in(token, &here, now()).await.unwrap();
        let names = |list: Vec<SignedIn>| -> Vec<String> {
            list.iter()
                .map(|it| it.administrator.name.to_string())
                .collect()
        };
        let mut listed = names(sessions.list(now()).await.unwrap());
        listed.sort();
        assert_eq!(listed, ["bob", "bootstrap"]);

        administrators
            .revoke(bob.token.admin_token_id, &by)
            .await
            .unwrap();
        let found = sessions.find(of_bob.expose_secret(), now()).await.unwrap();
        assert!(found.is_none());
        assert_eq!(names(sessions.list(now()).await.unwrap()), ["bootstrap"]);

        let secret = secret.expose_secret();
        assert!(sessions.find(secret, now()).await.unwrap().is_some());
        for wrong in ["", TOKEN, token, "tgs_x"] {
            assert!(sessions.find(wrong, now()).await.unwrap().is_none());
        }
        sessions.end(root.session.session_id, &by).await.unwrap();
        assert!(sessions.find(secret, now()).await.unwrap().is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn wrong_tokens_are_slowed_down_by_address() {
        let (sessions, _, _directory) = opened().await;
        let here = visitor("2001:db8::1");
        for _ in 0..WRONG_AT_ONCE {
            let wrong = sessions.sign_in("wrong", &here, now()).await.unwrap_err();
            assert_eq!(wrong, SignInError::WrongToken);
        }
        for (token, address) in [("wrong", "2001:db8::1"), (TOKEN, "2001:db8::2")] {
            let slowed = sessions.sign_in(token, &visitor(address), now()).await;
            let retry_after = WRONG_EVERY;
            assert_eq!(
                slowed.map(|_| ()),
                Err(SignInError::SlowDown { retry_after })
            );
        }
        let elsewhere = visitor("192.0.2.7");
        assert!(sessions.sign_in(TOKEN, &elsewhere, now()).await.is_ok());
        let later = now().plus(WRONG_EVERY);
        assert!(sessions.sign_in(TOKEN, &here, later).await.is_ok());
    }

    #[test]
    fn only_so_many_addresses_are_remembered() {
        let mut wrong = WrongTokens::default();
        for number in 0..u32::try_from(ADDRESSES).unwrap() + 50 {
            let address = IpAddr::V4(number.into());
            wrong.note(Some(address), now());
            assert!(wrong.0.len() <= ADDRESSES && wrong.0.contains_key(&Some(address)));
        }
    }
}
