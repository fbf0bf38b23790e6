//! Administrators: named tokens with a role, kept as hashes. The one of `TOLLGATE_ADMIN_TOKEN` is not stored at all,
//! so that changing the setting takes the old token away.

use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use super::{
    AdminError,
    secrets::{self, SecretKind},
};
use crate::{
    clock,
    domain::{
        administrator::{Actor, AdminToken, Role},
        ids::AdminTokenId,
        names::DisplayName,
        time::Timestamp,
    },
    store::{
        SharedStore, StoreResult,
        keys::{Owners, SecretHash},
    },
};

/// The name of the first administrator, whether its token is set or was made at the first start.
pub const BOOTSTRAP: &str = "bootstrap";
/// Names by which the audit log knows others than those who are named here.
const RESERVED: [&str; 5] = ["cli", "setup", "stripe", FIRST_START, BOOTSTRAP];
const FIRST_START: &str = "first start";
/// Under which the id of the set token is derived from it: another token is another administrator, whose
/// predecessor's sessions are over.
const BOOTSTRAP_IDS: Uuid = Uuid::from_u128(0x7a3f_2b1e_9c4d_5e6f_8a0b_1c2d_3e4f_5a6b);

/// Somebody who proved to be an administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Administrator {
    pub admin_token_id: AdminTokenId,
    pub name: DisplayName,
    pub role: Role,
}

impl Administrator {
    #[must_use]
    pub fn may(&self, needed: Role) -> bool {
        self.role >= needed
    }

    /// The administrator at work, as the audit log names it; `address` is the peer's.
    #[must_use]
    pub fn acting(&self, address: Option<String>, at: Timestamp) -> Actor {
        Actor {
            name: self.name.to_string(),
            address,
            at,
        }
    }
}

impl From<AdminToken> for Administrator {
    fn from(token: AdminToken) -> Self {
        Self {
            admin_token_id: token.admin_token_id,
            name: token.name,
            role: token.role,
        }
    }
}

/// A token with what is told of it only once.
#[derive(Debug)]
pub struct IssuedToken {
    pub token: AdminToken,
    pub secret: SecretString,
}

/// The administrator of `TOLLGATE_ADMIN_TOKEN`.
#[derive(Clone)]
struct Bootstrap {
    secret: SecretHash,
    token: AdminToken,
}

/// The administrators, as they are kept.
#[derive(Clone)]
pub struct Administrators {
    store: SharedStore,
    bootstrap: Option<Bootstrap>,
}

impl Administrators {
    /// `set` is the token of the settings; it counts as made at `now`.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn open(
        store: SharedStore,
        set: Option<&SecretString>,
        now: Timestamp,
    ) -> StoreResult<Self> {
        let Some(set) = set else {
            let bootstrap = None;
            return Ok(Self { store, bootstrap });
        };
        let secret = secrets::hash(set.expose_secret());
        let token = AdminToken {
            admin_token_id: AdminTokenId::new(Uuid::new_v5(&BOOTSTRAP_IDS, &secret.0)),
            // The first start, without the setting, may have made one.
            name: bootstrap_name(&store.list_admin_tokens().await?),
            role: Role::Owner,
            created_at: now,
            revoked_at: None,
        };
        let bootstrap = Some(Bootstrap { secret, token });
        Ok(Self { store, bootstrap })
    }

    /// Whose token this is; `None` if it is unknown or revoked.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`](crate::store::StoreError); the token of the settings is known without the store.
    pub async fn authenticate(&self, token: &str) -> StoreResult<Option<Administrator>> {
        // The time that this takes depends on hashes alone, never on how much of a secret was guessed.
        let given = secrets::hash(token);
        if let Some(bootstrap) = &self.bootstrap
            && bool::from(bootstrap.secret.0.ct_eq(&given.0))
        {
            return Ok(Some(bootstrap.token.clone().into()));
        }
        if !secrets::has_form(SecretKind::AdminToken, token) {
            return Ok(None);
        }
        let found = self.store.find_admin_token(given).await?;
        Ok(found.map(Administrator::from))
    }

    /// The administrator with this id as it is now, for one that was signed in before; `None` if it is no more.
    ///
    /// # Errors
    /// As [`authenticate`](Self::authenticate).
    pub async fn still(&self, id: AdminTokenId) -> StoreResult<Option<Administrator>> {
        if let Some(bootstrap) = &self.bootstrap
            && bootstrap.token.admin_token_id == id
        {
            return Ok(Some(bootstrap.token.clone().into()));
        }
        let found = self.store.get_admin_token(id).await?;
        Ok(found.map(Administrator::from))
    }

    /// Whether this is the administrator of `TOLLGATE_ADMIN_TOKEN`, whom only the settings end.
    #[must_use]
    pub fn is_set(&self, id: AdminTokenId) -> bool {
        let bootstrap = self.bootstrap.as_ref();
        bootstrap.is_some_and(|it| it.token.admin_token_id == id)
    }

    /// The tokens in use, oldest first; that of the settings before all.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self) -> Result<Vec<AdminToken>, AdminError> {
        let stored = self.store.list_admin_tokens().await?;
        let set = self.bootstrap.iter().map(|it| it.token.clone());
        Ok(set.chain(stored.into_iter().filter(is_in_use)).collect())
    }

    /// # Errors
    /// `Invalid` for a name that others than administrators have in the audit log; `AlreadyExists` for one in use.
    pub async fn create(
        &self,
        name: DisplayName,
        role: Role,
        by: &Actor,
    ) -> Result<IssuedToken, AdminError> {
        let is_it = |known: &str| known.eq_ignore_ascii_case(name.as_str());
        let set = self.bootstrap.as_ref();
        if set.is_some_and(|set| is_it(set.token.name.as_str())) {
            return Err(AdminError::AlreadyExists {
                what: "administrator",
                name: name.to_string(),
            });
        }
        if RESERVED.into_iter().any(is_it) {
            let accepted = format!(
                "another name: the audit log has {} for others",
                RESERVED.join(", ")
            );
            return Err(AdminError::invalid("name", &name, accepted));
        }
        self.issue(name, role, by).await
    }

    /// Makes an owner, unless there is one in the settings, or one in the store that is in use. Of servers that start at
    /// once on one store, one makes it.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn ensure_one(&self, now: Timestamp) -> Result<Option<SecretString>, AdminError> {
        if self.bootstrap.is_some() {
            return Ok(None);
        }
        let by = Actor {
            name: FIRST_START.to_owned(),
            address: None,
            at: now,
        };
        loop {
            let known = self.store.list_admin_tokens().await?;
            if known
                .iter()
                .any(|it| is_in_use(it) && it.role == Role::Owner)
            {
                return Ok(None);
            }
            match self.issue(bootstrap_name(&known), Role::Owner, &by).await {
                Ok(issued) => return Ok(Some(issued.secret)),
                // Another server has made it since; it is seen when it is looked again.
                Err(AdminError::AlreadyExists { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn issue(
        &self,
        name: DisplayName,
        role: Role,
        by: &Actor,
    ) -> Result<IssuedToken, AdminError> {
        let token = AdminToken {
            admin_token_id: AdminTokenId::new(clock::new_id()),
            name,
            role,
            created_at: by.at,
            revoked_at: None,
        };
        let secret = secrets::generate(SecretKind::AdminToken);
        let hash = secrets::hash(secret.expose_secret());
        self.store.create_admin_token(&token, hash, by).await?;
        Ok(IssuedToken { token, secret })
    }

    /// Ends a token at once.
    ///
    /// # Errors
    /// `NotFound`, also for one that is revoked already; `LastOwner`; `Invalid` for the token of the settings.
    pub async fn revoke(&self, id: AdminTokenId, by: &Actor) -> Result<AdminToken, AdminError> {
        let owners = match &self.bootstrap {
            Some(bootstrap) if bootstrap.token.admin_token_id == id => {
                let accepted = "the id of another token: this one is TOLLGATE_ADMIN_TOKEN, so take it out of the settings and restart";
                return Err(AdminError::invalid("admin_token_id", id, accepted));
            }
            Some(_) => Owners::AlsoInSettings,
            None => Owners::InStore,
        };
        Ok(self.store.revoke_admin_token(id, owners, by).await?)
    }
}

fn is_in_use(token: &AdminToken) -> bool {
    token.revoked_at.is_none()
}

/// `bootstrap`, or that with the first number that makes it a name which nobody in use has.
fn bootstrap_name(known: &[AdminToken]) -> DisplayName {
    let is_free = |name: &String| {
        let mut in_use = known.iter().filter(|it| is_in_use(it));
        !in_use.any(|it| it.name.as_str().eq_ignore_ascii_case(name))
    };
    let numbered = (2..).map(|number| format!("{BOOTSTRAP}-{number}"));
    std::iter::once(BOOTSTRAP.to_owned())
        .chain(numbered)
        .find(is_free)
        .and_then(|name| name.parse().ok())
        .expect("a word and a number are a name, and numbers do not end")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::sqlite::SqliteStore;

    fn now() -> Timestamp {
        Timestamp::from_seconds(1_000)
    }

    fn actor() -> Actor {
        Actor {
            name: "ada".to_owned(),
            address: None,
            at: now(),
        }
    }

    async fn opened(set: Option<&str>) -> (Administrators, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("t.db")).unwrap();
        let set = set.map(|set| SecretString::from(set.to_owned()));
        let opened = Administrators::open(Arc::new(store), set.as_ref(), now()).await;
        (opened.unwrap(), directory)
    }

    #[tokio::test]
    async fn of_servers_that_start_at_once_on_one_store_one_makes_the_first_administrator() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("t.db")).unwrap();
        let store: SharedStore = Arc::new(store);
        let servers =
            (0..10).map(|_| Administrators::open(SharedStore::clone(&store), None, now()));
        let servers = futures_util::future::try_join_all(servers).await.unwrap();
        let started = servers.iter().map(|it| it.ensure_one(now()));
        let made: Vec<_> = futures_util::future::try_join_all(started).await.unwrap();
        assert_eq!(made.iter().flatten().count(), 1);
        assert_eq!(store.list_admin_tokens().await.unwrap().len(), 1);
    }

    fn name(text: &str) -> DisplayName {
        text.parse().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_token_is_its_administrators_until_it_is_revoked() {
        let (it, _directory) = opened(None).await;
        let owner = it.create(name("ada"), Role::Owner, &actor()).await.unwrap();
        let issued = it
            .create(name("bob"), Role::Viewer, &actor())
            .await
            .unwrap();
        let secret = issued.secret.expose_secret();
        let bob = it.authenticate(secret).await.unwrap().unwrap();
        assert_eq!((bob.name.as_str(), bob.role), ("bob", Role::Viewer));
        assert!(bob.may(Role::Viewer) && !bob.may(Role::Operator));
        assert_eq!(it.still(bob.admin_token_id).await, Ok(Some(bob.clone())));
        for wrong in ["", "tga_x", "tg_x", &secret[..secret.len() - 1]] {
            assert_eq!(it.authenticate(wrong).await, Ok(None), "{wrong:?}");
        }
        it.revoke(bob.admin_token_id, &actor()).await.unwrap();
        assert_eq!(it.authenticate(secret).await, Ok(None));
        assert_eq!(it.still(bob.admin_token_id).await, Ok(None));
        assert_eq!(it.list().await.unwrap(), [owner.token]);
        let again = it.revoke(bob.admin_token_id, &actor()).await;
        assert!(
            matches!(again, Err(AdminError::NotFound { .. })),
            "{again:?}"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_last_owner_stays() {
        let (it, _directory) = opened(None).await;
        let make = |who: &'static str, role| {
            let it = it.clone();
            async move { it.create(name(who), role, &actor()).await.unwrap().token }
        };
        let (ada, eve) = (
            make("ada", Role::Owner).await,
            make("eve", Role::Owner).await,
        );
        make("bob", Role::Operator).await;
        let by = actor();
        let (one, other) = tokio::join!(
            it.revoke(ada.admin_token_id, &by),
            it.revoke(eve.admin_token_id, &by)
        );
        assert_eq!(
            [one.is_ok(), other.is_ok()]
                .iter()
                .filter(|is_ok| **is_ok)
                .count(),
            1,
            "two who revoke each other"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_token_of_the_settings_is_an_owner_that_only_the_settings_take_away() {
        let set = "0123456789abcdef0123456789abcdef";
        let (it, _directory) = opened(Some(set)).await;
        let bootstrap = it.authenticate(set).await.unwrap().unwrap();
        assert_eq!(bootstrap.role, Role::Owner);
        assert_eq!(it.ensure_one(now()).await.unwrap().map(|_| ()), None);
        let revoked = it.revoke(bootstrap.admin_token_id, &actor()).await;
        assert!(
            matches!(revoked, Err(AdminError::Invalid { .. })),
            "{revoked:?}"
        );
        let same_name = it
            .create(name("Bootstrap"), Role::Viewer, &actor())
            .await
            .unwrap_err();
        assert!(matches!(same_name, AdminError::AlreadyExists { .. }));
        let owner = it
            .create(name("ada"), Role::Owner, &actor())
            .await
            .unwrap()
            .token;
        it.revoke(owner.admin_token_id, &actor()).await.unwrap();
        let another = SecretString::from("another-0123456789abcdef01234567");
        let other = Administrators::open(it.store.clone(), Some(&another), now()).await;
        let other = other.unwrap();
        assert_eq!(other.authenticate(set).await, Ok(None));
        assert_eq!(other.still(bootstrap.admin_token_id).await, Ok(None));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn names_are_unique_among_those_in_use_and_never_those_of_others() {
        let (it, _directory) = opened(None).await;
        assert!(it.ensure_one(now()).await.unwrap().is_some());
        assert!(it.ensure_one(now()).await.unwrap().is_none());
        for taken in ["CLI", "setup", "stripe", "first start", "Bootstrap"] {
            let error = it
                .create(name(taken), Role::Owner, &actor())
                .await
                .unwrap_err();
            assert!(error.to_string().starts_with("name is "), "{error}");
        }
        let bob = it
            .create(name("bob"), Role::Viewer, &actor())
            .await
            .unwrap()
            .token;
        let twice = it.create(name("bob"), Role::Viewer, &actor()).await;
        assert!(
            matches!(twice, Err(AdminError::AlreadyExists { .. })),
            "{twice:?}"
        );
        it.revoke(bob.admin_token_id, &actor()).await.unwrap();
        it.create(name("bob"), Role::Viewer, &actor())
            .await
            .unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn an_owner_is_made_where_none_is_in_force_under_a_name_that_nobody_has() {
        let (it, _directory) = opened(None).await;
        it.create(name("vera"), Role::Viewer, &actor())
            .await
            .unwrap();
        // As versions before this one let somebody be called.
        it.issue(name("bootstrap"), Role::Operator, &actor())
            .await
            .unwrap();
        let secret = it.ensure_one(now()).await.unwrap().unwrap();
        let owner = it.authenticate(secret.expose_secret()).await.unwrap();
        let owner = owner.unwrap();
        assert_eq!(
            (owner.name.as_str(), owner.role),
            ("bootstrap-2", Role::Owner)
        );
        assert!(it.ensure_one(now()).await.unwrap().is_none());

        let set = SecretString::from("0123456789abcdef0123456789abcdef");
        let with_set = Administrators::open(it.store.clone(), Some(&set), now()).await;
        let with_set = with_set.unwrap();
        let names: Vec<_> = with_set.list().await.unwrap();
        let mut names: Vec<_> = names.into_iter().map(|it| it.name.to_string()).collect();
        names.sort();
        assert_eq!(names, ["bootstrap", "bootstrap-2", "bootstrap-3", "vera"]);
        with_set
            .revoke(owner.admin_token_id, &actor())
            .await
            .unwrap();
        // The setting goes: nobody is left who could make an owner.
        assert!(it.ensure_one(now()).await.unwrap().is_some());
    }
}
