//! The audit log.

use serde_json::json;

use super::{SharedStore, ada, at, by, key_of, plan, secret, stored_plan, stored_tenant};
use crate::{
    clock::new_id,
    domain::{
        administrator::{Actor, AdminToken, Role},
        ids::AdminTokenId,
        plan::Plan,
    },
    store::audit::AuditFilter,
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            audit,
            a_change_is_audited_with_who_what_old_and_new,
            entries_are_listed_newest_first_page_by_page,
            entries_are_found_by_who_what_and_when,
            no_entry_holds_a_secret_or_its_hash,
        );
    };
}
pub(crate) use cases;

pub(crate) async fn a_change_is_audited_with_who_what_old_and_new(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let renamed = Plan {
        name: "Renamed".parse().unwrap(),
        ..starter.clone()
    };
    let ben = by("2026-03-01T00:00:00Z");
    store.update_plan(&renamed, &ben).await.unwrap();
    store.delete_plan(&starter.code, None, &ben).await.unwrap();

    let entries = store.list_audit(None, 10).await.unwrap();
    let actions: Vec<&str> = entries.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["plan.delete", "plan.update", "plan.create"]);
    assert!(entries.iter().all(|entry| entry.target == "starter"));
    let (deleted, updated, created) = (&entries[0], &entries[1], &entries[2]);
    assert_eq!(created.by, ada());
    assert_eq!(updated.by, ben);
    assert_eq!(created.before, None);
    assert_eq!(deleted.after, None);
    let (before, after) = (
        updated.before.as_ref().unwrap(),
        updated.after.as_ref().unwrap(),
    );
    assert_eq!(before["name"], "Starter ü");
    assert_eq!(after["name"], "Renamed");
    assert_eq!(
        (&before["version"], &after["version"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(
        after["features"][0]["limits"][1],
        json!({"scope": "tenant", "window": "period", "soft_limit": 150, "hard_limit": 200})
    );
}

pub(crate) async fn entries_are_found_by_who_what_and_when(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let ben = Actor {
        name: "ben".to_owned(),
        ..by("2026-03-01T00:00:00Z")
    };
    store.delete_plan(&starter.code, None, &ben).await.unwrap();
    stored_tenant(store, "acme").await;
    let text = |text: &str| Some(text.to_owned());
    let all = AuditFilter::default;
    for (filter, expected) in [
        (all(), &["tenant.create", "plan.delete", "plan.create"][..]),
        (
            AuditFilter {
                actor: text("ben"),
                ..all()
            },
            &["plan.delete"],
        ),
        (
            AuditFilter {
                action: text("plan"),
                ..all()
            },
            &["plan.delete", "plan.create"],
        ),
        (
            AuditFilter {
                action: text("plan.create"),
                target: text("starter"),
                ..all()
            },
            &["plan.create"],
        ),
        (
            AuditFilter {
                action: text("pla"),
                ..all()
            },
            &[],
        ),
        (
            AuditFilter {
                since: Some(ben.at),
                ..all()
            },
            &["plan.delete"],
        ),
        (
            AuditFilter {
                until: Some(ben.at),
                ..all()
            },
            &["tenant.create", "plan.create"],
        ),
    ] {
        let found = store.search_audit(&filter, None, 10).await.unwrap();
        let actions: Vec<&str> = found.iter().map(|entry| entry.action.as_str()).collect();
        assert_eq!(actions, expected, "{filter:?}");
    }
    let first = store.search_audit(&all(), None, 1).await.unwrap();
    let second = store.search_audit(&all(), Some(first[0].id), 1).await;
    assert_eq!(second.unwrap()[0].action, "plan.delete");
}

pub(crate) async fn entries_are_listed_newest_first_page_by_page(store: &SharedStore) {
    for code in ["a", "b", "c"] {
        store.create_plan(&plan(code), &ada()).await.unwrap();
    }
    let newest = store.list_audit(None, 2).await.unwrap();
    let targets: Vec<&str> = newest.iter().map(|entry| entry.target.as_str()).collect();
    assert_eq!(targets, ["c", "b"]);
    let older = store.list_audit(Some(newest[1].id), 2).await.unwrap();
    assert_eq!(older.len(), 1);
    assert_eq!(older[0].target, "a");
}

pub(crate) async fn no_entry_holds_a_secret_or_its_hash(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await;
    let key = key_of(acme.tenant_id, "2026-01-01T00:00:00Z");
    store.create_key(&key, secret(0xA7), &ada()).await.unwrap();
    store
        .rotate_key(
            key.key_id,
            secret(0xA8),
            at("2026-01-02T00:00:00Z"),
            None,
            &ada(),
        )
        .await
        .unwrap();
    store.revoke_key(key.key_id, None, &ada()).await.unwrap();
    let token = AdminToken {
        admin_token_id: AdminTokenId::new(new_id()),
        name: "ada".parse().unwrap(),
        role: Role::Owner,
        created_at: ada().at,
        revoked_at: None,
    };
    store
        .create_admin_token(&token, secret(0xA9), &ada())
        .await
        .unwrap();

    let entries = store.list_audit(None, 10).await.unwrap();
    let actions: Vec<&str> = entries.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(
        actions,
        [
            "admin_token.create",
            "key.revoke",
            "key.rotate",
            "key.create",
            "tenant.create"
        ]
    );
    let text = format!("{entries:?}").to_lowercase();
    assert!(!text.contains("secret_hash"), "{text}");
    for hash in ["a7a7", "a8a8", "a9a9", "167, 167", "168, 168", "169, 169"] {
        assert!(!text.contains(hash), "{hash} is in {text}");
    }
    assert!(text.contains("old_secret_until"), "{text}");
}
