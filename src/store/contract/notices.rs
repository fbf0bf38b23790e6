//! What was told, so that it is told once.

use std::time::Duration;

use super::{SharedStore, at, new_tenant_id};
use crate::{
    clock::new_id,
    domain::{
        feature::FeatureKey,
        ids::{KeyId, TenantId},
        limit::Subject,
        quantity::Quantity,
        window::WindowKind,
    },
    store::{
        notices::{NoticeChange, NoticeKey, Told},
        outbox::{Kind, NewEntry, OutboxFilter},
    },
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            notices,
            of_two_who_tell_the_same_one_does_and_nothing_is_sent_twice,
            what_was_told_is_changed_only_as_it_was_seen,
            each_subject_has_its_own,
            a_window_that_ended_is_found_until_that_is_told,
        );
    };
}
pub(crate) use cases;

fn key(tenant: TenantId, subject: Subject, mark: &str) -> NoticeKey {
    NoticeKey {
        tenant,
        subject,
        feature: Some(FeatureKey::Messages),
        window: WindowKind::Day,
        window_start: at("2026-01-02T00:00:00Z"),
        mark: mark.to_owned(),
    }
}

fn told(limit: i64, used: i64) -> Told {
    Told {
        window_end: at("2026-01-03T00:00:00Z"),
        limit: Quantity::new(limit),
        used: Quantity::new(used),
        at: at("2026-01-02T10:00:00Z"),
    }
}

fn change(key: &NoticeKey, seen: Option<i64>, becomes: Option<Told>, send: &str) -> NoticeChange {
    let entry = NewEntry {
        identifier: send.to_owned(),
        kind: Kind::Notice,
        topic: None,
        tenant: Some(key.tenant),
        feature: None,
        value: None,
        lane: None,
        about: None,
        payload: String::new(),
        created_at: at("2026-01-02T10:00:00Z"),
    };
    NoticeChange {
        key: key.clone(),
        seen: seen.map(Quantity::new),
        becomes,
        entries: if send.is_empty() { vec![] } else { vec![entry] },
    }
}

async fn sent(store: &SharedStore) -> Vec<String> {
    let all = store
        .list_outbox(&OutboxFilter::default(), None, 50)
        .await
        .unwrap();
    all.into_iter().map(|it| it.identifier).collect()
}

pub(crate) async fn of_two_who_tell_the_same_one_does_and_nothing_is_sent_twice(
    store: &SharedStore,
) {
    let key = key(new_tenant_id(), Subject::Tenant, "threshold:80");
    let both = [
        change(&key, None, Some(told(100, 80)), "first"),
        change(&key, None, Some(told(100, 81)), "second"),
    ];
    assert_eq!(store.change_told(&both).await, Ok(vec![true, false]));
    assert_eq!(sent(store).await, ["first"]);
    let rows = store
        .list_told(key.tenant, &Subject::Tenant, told(0, 0).at)
        .await;
    assert_eq!(rows, Ok(vec![(key, told(100, 80))]));
}

pub(crate) async fn what_was_told_is_changed_only_as_it_was_seen(store: &SharedStore) {
    let key = key(new_tenant_id(), Subject::Tenant, "threshold:80");
    for (seen, becomes, send, made, left) in [
        (None, Some(told(100, 80)), "a", true, Some(100)),
        (Some(50), Some(told(200, 160)), "b", false, Some(100)),
        (Some(100), Some(told(200, 160)), "c", true, Some(200)),
        (Some(100), None, "", false, Some(200)),
        (Some(200), None, "", true, None),
        (Some(200), None, "", false, None),
    ] {
        let made_it = store
            .change_told(&[change(&key, seen, becomes, send)])
            .await;
        assert_eq!(made_it, Ok(vec![made]), "{seen:?} → {becomes:?}");
        let rows = store
            .list_told(key.tenant, &Subject::Tenant, told(0, 0).at)
            .await
            .unwrap();
        let limits: Vec<i64> = rows.iter().map(|(_, told)| told.limit.get()).collect();
        assert_eq!(limits, left.into_iter().collect::<Vec<_>>());
    }
    assert_eq!(sent(store).await, ["c", "a"]);
}

pub(crate) async fn each_subject_has_its_own(store: &SharedStore) {
    let tenant = new_tenant_id();
    let subjects = [
        Subject::Tenant,
        Subject::Key(KeyId::new(new_id())),
        Subject::User("".into()),
        Subject::User("bob".into()),
    ];
    for subject in &subjects {
        let change = change(
            &key(tenant, subject.clone(), "limit"),
            None,
            Some(told(1, 1)),
            "",
        );
        assert_eq!(store.change_told(&[change]).await, Ok(vec![true]));
    }
    for subject in &subjects {
        let rows = store
            .list_told(tenant, subject, told(0, 0).at)
            .await
            .unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].0.subject, *subject);
    }
    let later = store
        .list_told(tenant, &Subject::Tenant, told(0, 0).window_end)
        .await;
    assert_eq!(later, Ok(vec![]), "the window excludes its end");
}

pub(crate) async fn a_window_that_ended_is_found_until_that_is_told(store: &SharedStore) {
    let tenant = new_tenant_id();
    let subscription = NoticeKey {
        feature: None,
        ..key(tenant, Subject::Tenant, "subscription:past_due")
    };
    let keys = ["threshold:80", "limit"].map(|mark| key(tenant, Subject::Tenant, mark));
    for key in keys.iter().chain([&subscription]) {
        store
            .change_told(&[change(key, None, Some(told(100, 90)), "")])
            .await
            .unwrap();
    }
    let end = told(0, 0).window_end;
    let just_before = end.minus(Duration::from_micros(1));
    assert_eq!(store.list_ended(just_before, 10).await, Ok(vec![]));
    let ended = store.list_ended(end, 10).await.unwrap();
    assert_eq!(ended.len(), 1, "one of a limit and window: {ended:?}");
    let reset = key(tenant, Subject::Tenant, "window_reset");
    store
        .change_told(&[change(&reset, None, Some(told(100, 90)), "reset")])
        .await
        .unwrap();
    assert_eq!(store.list_ended(end, 10).await, Ok(vec![]));
    assert_eq!(store.prune_told(end, 10).await, Ok(0));
    assert_eq!(
        store.prune_told(end.plus(Duration::from_secs(1)), 10).await,
        Ok(4)
    );
}
