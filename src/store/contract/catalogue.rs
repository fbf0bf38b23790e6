//! Plans, tenants, subscriptions, overrides, grants, and the feed of what changed.

use super::{
    SharedStore, ada, at, by, key_of, limit, new_tenant_id, plan, position, secret, stored_plan,
    stored_tenant, subscription, tenant,
};
use crate::{
    clock::new_id,
    domain::{
        feature::FeatureKey,
        grant::Grant,
        ids::{GrantId, TenantId},
        limit::{Override, Scope},
        plan::{AllowedModels, Plan},
        quantity::Quantity,
        reset::Reset,
        subscription::{Period, Subscription, SubscriptionStatus},
        tenant::{Tenant, TenantRef},
        window::WindowKind,
    },
    store::{
        StoreError,
        catalogue::{Changed, TenantPolicy, TenantSearch},
        usage::Tell,
        versions,
    },
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            catalogue,
            a_plan_is_found_as_it_was_made,
            plans_are_listed_by_code,
            a_plan_code_is_taken_once,
            an_update_replaces_a_plan_whole_and_raises_its_version,
            an_update_of_an_old_version_is_refused_and_changes_nothing,
            several_plans_are_written_together_or_not_at_all,
            a_plan_in_use_is_not_deleted,
            a_plan_without_subscriptions_is_deleted_with_its_features,
            what_is_not_there_is_not_found,
            a_tenant_is_found_by_id_and_slug_as_it_was_made,
            of_a_deleted_tenant_is_found_what_is_kept,
            what_decides_on_a_tenant_is_found_at_once,
            a_slug_and_an_id_are_taken_once,
            a_tenant_on_a_missing_plan_is_not_made,
            a_deleted_tenant_is_hidden_and_its_slug_stays_taken,
            tenants_are_listed_by_slug_page_by_page,
            tenants_are_found_by_a_part_of_their_name_by_plan_and_by_status,
            a_tenant_has_one_subscription_which_is_replaced,
            an_override_is_replaced_whole_and_removed,
            a_change_of_what_has_changed_since_is_refused_and_changes_nothing,
            tenants_are_counted_without_deleted_ones,
            grants_are_listed_oldest_first,
            grants_of_several_tenants_come_in_the_order_asked,
            resets_of_several_tenants_come_in_the_order_asked,
            revoking_a_grant_again_changes_nothing,
            the_change_feed_names_what_every_write_changed,
            a_write_that_fails_is_not_in_the_change_feed,
            late_usage_is_a_change_of_its_tenant,
            a_pruned_change_feed_says_that_everything_changed,
            a_change_feed_is_pruned_from_its_beginning_a_part_at_a_time,
            a_version_that_the_store_has_not_reached_means_that_everything_changed,
        );
    };
}
pub(crate) use cases;

fn not_found<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::NotFound { .. }))
}

fn version_conflict<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::VersionConflict { .. }))
}

fn already_exists<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::AlreadyExists { .. }))
}

fn grant(tenant: TenantId, created_at: &str) -> Grant {
    Grant {
        grant_id: GrantId::new(new_id()),
        tenant_id: tenant,
        feature: FeatureKey::OutputTokens,
        quantity: Quantity::new(5_000),
        reason: "a gift".to_owned(),
        created_at: at(created_at),
        expires_at: at("2026-12-01T00:00:00Z"),
        revoked_at: None,
    }
}

fn override_of(feature: FeatureKey, hard: i64) -> Override {
    Override {
        feature,
        limits: vec![
            limit(Scope::Tenant, WindowKind::Period, None, Some(hard)),
            limit(Scope::Key, WindowKind::Hour, Some(hard), None),
        ],
        until: Some(at("2026-06-01T00:00:00Z")),
    }
}

async fn by_id(store: &SharedStore, tenant: TenantId) -> Tenant {
    let found = store.find_tenant(&TenantRef::Id(tenant)).await.unwrap();
    found.unwrap()
}

pub(crate) async fn a_plan_is_found_as_it_was_made(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let found = store.find_plan(&starter.code).await.unwrap();
    assert_eq!(found, Some(starter));
}

pub(crate) async fn several_plans_are_written_together_or_not_at_all(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let renamed = Plan {
        name: "Renamed".parse().unwrap(),
        ..starter.clone()
    };
    let fresh = Plan {
        version: 0,
        ..plan("gold")
    };
    let stale = Plan {
        version: 9,
        ..starter.clone()
    };
    let refused = store
        .put_plans(&[fresh.clone(), renamed.clone(), stale], &ada())
        .await;
    assert!(matches!(refused, Err(StoreError::VersionConflict { .. })));
    assert_eq!(store.list_plans().await.unwrap(), [starter]);
    store.put_plans(&[fresh, renamed], &ada()).await.unwrap();
    let plans = store.list_plans().await.unwrap();
    let versions = plans.iter().map(|plan| (plan.code.as_str(), plan.version));
    assert_eq!(versions.collect::<Vec<_>>(), [("gold", 1), ("starter", 2)]);
}

pub(crate) async fn plans_are_listed_by_code(store: &SharedStore) {
    let (pro, free) = (
        stored_plan(store, "pro").await,
        stored_plan(store, "free").await,
    );
    assert_eq!(store.list_plans().await.unwrap(), [free, pro]);
}

pub(crate) async fn a_plan_code_is_taken_once(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let again = store.create_plan(&plan("starter"), &ada()).await;
    assert_eq!(
        again,
        Err(StoreError::AlreadyExists {
            what: "plan",
            name: "starter".to_owned()
        })
    );
    assert_eq!(store.list_plans().await.unwrap(), [starter]);
}

pub(crate) async fn an_update_replaces_a_plan_whole_and_raises_its_version(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let changed = Plan {
        name: "Renamed".parse().unwrap(),
        allowed_models: AllowedModels::default(),
        features: starter.features[..1].to_vec(),
        ..starter.clone()
    };
    assert_eq!(store.update_plan(&changed, &ada()).await, Ok(2));
    let expected = Plan {
        version: 2,
        ..changed
    };
    assert_eq!(
        store.find_plan(&starter.code).await.unwrap(),
        Some(expected)
    );
}

pub(crate) async fn an_update_of_an_old_version_is_refused_and_changes_nothing(
    store: &SharedStore,
) {
    let starter = stored_plan(store, "starter").await;
    store.update_plan(&starter, &ada()).await.unwrap();
    let stale = Plan {
        name: "Stale".parse().unwrap(),
        ..starter.clone()
    };
    assert_eq!(
        store.update_plan(&stale, &ada()).await,
        Err(StoreError::VersionConflict {
            what: "plan",
            name: "starter".to_owned(),
            current: 2
        })
    );
    let found = store.find_plan(&starter.code).await.unwrap().unwrap();
    assert_eq!((found.name, found.version), (starter.name, 2));
}

pub(crate) async fn a_plan_in_use_is_not_deleted(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let acme = stored_tenant(store, "acme").await;
    let subscribed = subscription(&starter.code);
    store
        .set_subscription(acme.tenant_id, &subscribed, None, &ada())
        .await
        .unwrap();
    assert_eq!(
        store.delete_plan(&starter.code, None, &ada()).await,
        Err(StoreError::PlanInUse {
            plan: starter.code.clone(),
            subscriptions: 1
        })
    );
    assert_eq!(store.find_plan(&starter.code).await.unwrap(), Some(starter));
}

pub(crate) async fn a_plan_without_subscriptions_is_deleted_with_its_features(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    store
        .delete_plan(&starter.code, None, &ada())
        .await
        .unwrap();
    assert_eq!(store.find_plan(&starter.code).await.unwrap(), None);
    let bare = Plan {
        features: vec![],
        ..starter
    };
    store.create_plan(&bare, &ada()).await.unwrap();
    assert_eq!(store.find_plan(&bare.code).await.unwrap(), Some(bare));
}

pub(crate) async fn what_is_not_there_is_not_found(store: &SharedStore) {
    let nobody = new_tenant_id();
    let nothing = plan("nothing");
    assert_eq!(store.find_plan(&nothing.code).await, Ok(None));
    assert_eq!(store.find_tenant(&TenantRef::Id(nobody)).await, Ok(None));
    assert!(not_found(store.update_plan(&nothing, &ada()).await));
    assert!(not_found(
        store.delete_plan(&nothing.code, None, &ada()).await
    ));
    let subscribed = subscription(&nothing.code);
    let no_tenant = store
        .set_subscription(nobody, &subscribed, None, &ada())
        .await;
    assert!(not_found(no_tenant));
    let acme = stored_tenant(store, "acme").await;
    let no_plan = store
        .set_subscription(acme.tenant_id, &subscribed, None, &ada())
        .await;
    assert_eq!(
        no_plan,
        Err(StoreError::NotFound {
            what: "plan",
            name: "nothing".to_owned()
        })
    );
    let limits = override_of(FeatureKey::Messages, 1);
    assert!(not_found(
        store.set_override(nobody, &limits, None, &ada()).await
    ));
    let removed = store
        .remove_override(nobody, &FeatureKey::Messages, None, &ada())
        .await;
    assert_eq!(removed, Ok(false));
    let gift = grant(nobody, "2026-01-01T00:00:00Z");
    assert!(not_found(store.add_grant(&gift, &ada()).await));
    assert!(not_found(store.revoke_grant(gift.grant_id, &ada()).await));
}

pub(crate) async fn a_tenant_is_found_by_id_and_slug_as_it_was_made(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let acme = Tenant {
        subscription: Some(subscription(&starter.code)),
        overrides: vec![
            override_of(FeatureKey::Messages, 5),
            override_of("seats".parse().unwrap(), 6),
        ],
        ..tenant("acme")
    };
    store.create_tenant(&acme, &ada()).await.unwrap();
    assert_eq!(by_id(store, acme.tenant_id).await, acme);
    let slug = TenantRef::Slug(acme.slug.clone());
    assert_eq!(store.find_tenant(&slug).await.unwrap(), Some(acme));
}

pub(crate) async fn of_a_deleted_tenant_is_found_what_is_kept(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let acme = Tenant {
        subscription: Some(subscription(&starter.code)),
        ..tenant("acme")
    };
    store.create_tenant(&acme, &ada()).await.unwrap();
    let gift = grant(acme.tenant_id, "2026-02-01T00:00:00Z");
    store.add_grant(&gift, &ada()).await.unwrap();
    let names = [
        TenantRef::Slug(acme.slug.clone()),
        TenantRef::Id(acme.tenant_id),
    ];
    for name in &names {
        assert_eq!(store.find_former(name).await, Ok(None), "{name}");
    }
    let deleted = store.delete_tenant(acme.tenant_id, None, &ada()).await;
    deleted.unwrap();
    let mut kept = TenantPolicy {
        tenant: acme,
        plan: Some(starter),
        grants: vec![gift],
        resets: vec![],
    };
    for name in &names {
        assert_eq!(store.find_tenant(name).await, Ok(None), "{name}");
        assert_eq!(
            store.find_former(name).await,
            Ok(Some(kept.clone())),
            "{name}"
        );
    }
    let never = stored_tenant(store, "beta").await;
    let at = by("2026-01-02T00:00:00Z");
    let deleted = store.delete_tenant(never.tenant_id, None, &at).await;
    deleted.unwrap();
    let all = [(kept.tenant.clone(), ada().at), (never, at.at)];
    assert_eq!(store.list_former(None, 9).await, Ok(all.to_vec()));
    let first = store.list_former(None, 1).await.unwrap();
    assert_eq!(first, all[..1]);
    let rest = store.list_former(Some(&first[0].0.slug), 9).await;
    assert_eq!(rest.unwrap(), all[1..]);

    let code = kept.plan.take().unwrap().code;
    store.delete_plan(&code, None, &ada()).await.unwrap();
    assert_eq!(store.find_former(&names[0]).await, Ok(Some(kept)));
}

pub(crate) async fn what_decides_on_a_tenant_is_found_at_once(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let acme = Tenant {
        subscription: Some(subscription(&starter.code)),
        ..tenant("acme")
    };
    store.create_tenant(&acme, &ada()).await.unwrap();
    let gift = grant(acme.tenant_id, "2026-02-01T00:00:00Z");
    store.add_grant(&gift, &ada()).await.unwrap();
    let found = store.find_policy(acme.tenant_id).await.unwrap();
    let expected = TenantPolicy {
        tenant: acme,
        plan: Some(starter),
        grants: vec![gift],
        resets: vec![],
    };
    assert_eq!(found, Some(expected));
    assert_eq!(store.find_policy(new_tenant_id()).await, Ok(None));
}

pub(crate) async fn a_slug_and_an_id_are_taken_once(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await;
    let same_slug = tenant("acme");
    assert!(already_exists(
        store.create_tenant(&same_slug, &ada()).await
    ));
    let same_id = Tenant {
        slug: "other".parse().unwrap(),
        ..acme.clone()
    };
    assert!(already_exists(store.create_tenant(&same_id, &ada()).await));
    assert_eq!(store.list_tenants(None, 10).await.unwrap(), [acme]);
}

pub(crate) async fn a_tenant_on_a_missing_plan_is_not_made(store: &SharedStore) {
    let acme = Tenant {
        subscription: Some(subscription(&plan("nothing").code)),
        ..tenant("acme")
    };
    assert!(not_found(store.create_tenant(&acme, &ada()).await));
    assert_eq!(store.list_tenants(None, 10).await, Ok(vec![]));
    assert_eq!(store.list_audit(None, 10).await, Ok(vec![]));
}

pub(crate) async fn a_deleted_tenant_is_hidden_and_its_slug_stays_taken(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let acme = stored_tenant(store, "acme").await;
    store
        .set_subscription(acme.tenant_id, &subscription(&starter.code), None, &ada())
        .await
        .unwrap();
    let key = key_of(acme.tenant_id, "2026-01-01T00:00:00Z");
    store.create_key(&key, secret(1), &ada()).await.unwrap();
    let name = "Acme Ltd".parse().unwrap();
    store
        .rename_tenant(acme.tenant_id, &name, None, &ada())
        .await
        .unwrap();
    assert_eq!(by_id(store, acme.tenant_id).await.name, name);

    store
        .delete_tenant(acme.tenant_id, None, &ada())
        .await
        .unwrap();
    assert!(not_found(
        store.delete_tenant(acme.tenant_id, None, &ada()).await
    ));
    assert!(not_found(
        store
            .rename_tenant(acme.tenant_id, &name, None, &ada())
            .await
    ));
    let found = store.find_tenant(&TenantRef::Id(acme.tenant_id)).await;
    assert_eq!(found, Ok(None));
    assert_eq!(store.list_tenants(None, 10).await, Ok(vec![]));
    let key = store.get_key(key.key_id).await.unwrap();
    assert_eq!(key.revoked_at, Some(ada().at));
    let again = store.create_tenant(&tenant("acme"), &ada()).await;
    assert!(matches!(again, Err(StoreError::AlreadyExists { .. })));
    store
        .delete_plan(&starter.code, Some(starter.version), &ada())
        .await
        .unwrap();
}

pub(crate) async fn tenants_are_listed_by_slug_page_by_page(store: &SharedStore) {
    let mut tenants = vec![];
    for slug in ["c", "a", "b"] {
        tenants.push(stored_tenant(store, slug).await);
    }
    let [c, a, b] = <[_; 3]>::try_from(tenants).unwrap();
    let first = store.list_tenants(None, 2).await.unwrap();
    let last = b.slug.clone();
    assert_eq!(first, [a, b]);
    let rest = store.list_tenants(Some(&last), 2).await.unwrap();
    assert_eq!(rest, [c]);
}

pub(crate) async fn tenants_are_found_by_a_part_of_their_name_by_plan_and_by_status(
    store: &SharedStore,
) {
    let plan = stored_plan(store, "starter").await;
    for (slug, name) in [
        ("acme", "Acme, Inc."),
        ("b-100%", "b"),
        ("zeta", "Big ACME"),
    ] {
        let slug = slug.replace('%', "x");
        let on_plan = (slug != "acme").then(|| subscription(&plan.code));
        let made = Tenant {
            name: name.parse().unwrap(),
            subscription: on_plan,
            ..tenant(&slug)
        };
        store.create_tenant(&made, &ada()).await.unwrap();
    }
    let found = async |text: Option<&str>, plan: Option<&str>, status, after: Option<&str>| {
        let search = TenantSearch {
            text: text.map(str::to_owned),
            plan: plan.map(|code| code.parse().unwrap()),
            status,
        };
        let after = after.map(|slug| slug.parse().unwrap());
        let found = store.search_tenants(&search, after.as_ref(), 2).await;
        let slugs = found.unwrap().into_iter().map(|it| it.slug.to_string());
        slugs.collect::<Vec<_>>()
    };
    let past_due = Some(SubscriptionStatus::PastDue);
    assert_eq!(found(None, None, None, None).await, ["acme", "b-100x"]);
    assert_eq!(found(None, None, None, Some("b-100x")).await, ["zeta"]);
    assert_eq!(
        found(Some("aCmE"), None, None, None).await,
        ["acme", "zeta"]
    );
    assert_eq!(found(Some("%"), None, None, None).await, [""; 0]);
    assert_eq!(
        found(Some("acme"), Some("starter"), past_due, None).await,
        ["zeta"]
    );
    let active = Some(SubscriptionStatus::Active);
    assert_eq!(found(None, None, active, None).await, [""; 0]);
    assert_eq!(found(None, Some("pro"), None, None).await, [""; 0]);
}

pub(crate) async fn a_tenant_has_one_subscription_which_is_replaced(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let pro = stored_plan(store, "pro").await;
    let acme = stored_tenant(store, "acme").await;
    let first = subscription(&starter.code);
    let second = Subscription {
        plan_code: pro.code.clone(),
        status: SubscriptionStatus::Active,
        status_since: at("2026-02-05T00:00:00Z"),
        period: Period::new(at("2026-02-01T00:00:00Z"), at("2026-02-15T00:00:00Z")).unwrap(),
        processor_customer_id: None,
    };
    for subscribed in [first, second] {
        store
            .set_subscription(acme.tenant_id, &subscribed, None, &ada())
            .await
            .unwrap();
        assert_eq!(
            by_id(store, acme.tenant_id).await.subscription,
            Some(subscribed)
        );
    }
    store
        .delete_plan(&starter.code, None, &ada())
        .await
        .unwrap();
}

pub(crate) async fn an_override_is_replaced_whole_and_removed(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await;
    let kept = override_of(FeatureKey::Cost, 9);
    let replaced = override_of(FeatureKey::Messages, 5);
    let replacing = Override {
        feature: FeatureKey::Messages,
        limits: vec![limit(Scope::User, WindowKind::Minute, None, None)],
        until: None,
    };
    for limits in [&kept, &replaced, &replacing] {
        store
            .set_override(acme.tenant_id, limits, None, &ada())
            .await
            .unwrap();
    }
    let found = by_id(store, acme.tenant_id).await.overrides;
    assert_eq!(found, [replacing, kept.clone()]);
    for was_there in [true, false] {
        let removed = store
            .remove_override(acme.tenant_id, &FeatureKey::Messages, None, &ada())
            .await;
        assert_eq!(removed, Ok(was_there));
    }
    assert_eq!(by_id(store, acme.tenant_id).await.overrides, [kept]);
}

pub(crate) async fn a_change_of_what_has_changed_since_is_refused_and_changes_nothing(
    store: &SharedStore,
) {
    let starter = stored_plan(store, "starter").await;
    let acme = stored_tenant(store, "acme").await;
    let id = acme.tenant_id;
    let own = override_of(FeatureKey::Messages, 5);
    let subscribed = subscription(&starter.code);
    let old = Some(versions::tenant(&acme));
    let name = "Renamed".parse().unwrap();
    store.rename_tenant(id, &name, old, &ada()).await.unwrap();
    let late = store.set_subscription(id, &subscribed, old, &ada()).await;
    assert!(version_conflict(late));
    let late = store.rename_tenant(id, &acme.name, old, &ada()).await;
    assert!(version_conflict(late));
    assert!(version_conflict(store.delete_tenant(id, old, &ada()).await));
    let now = by_id(store, id).await;
    assert_eq!((&now.name, &now.subscription), (&name, &None));
    let current = Some(versions::tenant(&now));
    store
        .set_subscription(id, &subscribed, current, &ada())
        .await
        .unwrap();

    let missing = store.set_override(id, &own, Some(1), &ada()).await;
    assert!(not_found(missing));
    store.set_override(id, &own, None, &ada()).await.unwrap();
    let old = Some(versions::override_(&own));
    let other = override_of(FeatureKey::Messages, 6);
    store.set_override(id, &other, old, &ada()).await.unwrap();
    assert!(version_conflict(
        store.set_override(id, &own, old, &ada()).await
    ));
    let late = store
        .remove_override(id, &FeatureKey::Messages, old, &ada())
        .await;
    assert!(version_conflict(late));
    assert_eq!(
        by_id(store, id).await.overrides,
        std::slice::from_ref(&other)
    );
    let current = Some(versions::override_(&other));
    let removed = store
        .remove_override(id, &FeatureKey::Messages, current, &ada())
        .await;
    assert_eq!(removed, Ok(true));
}

pub(crate) async fn tenants_are_counted_without_deleted_ones(store: &SharedStore) {
    assert_eq!(store.count_tenants().await, Ok(0));
    let acme = stored_tenant(store, "acme").await;
    stored_tenant(store, "other").await;
    assert_eq!(store.count_tenants().await, Ok(2));
    store
        .delete_tenant(acme.tenant_id, None, &ada())
        .await
        .unwrap();
    assert_eq!(store.count_tenants().await, Ok(1));
}

pub(crate) async fn grants_of_several_tenants_come_in_the_order_asked(store: &SharedStore) {
    let [one, two, three] = [
        stored_tenant(store, "one").await.tenant_id,
        stored_tenant(store, "two").await.tenant_id,
        stored_tenant(store, "three").await.tenant_id,
    ];
    let newer = grant(one, "2026-03-01T00:00:00Z");
    let older = grant(one, "2026-02-01T00:00:00Z");
    let of_three = grant(three, "2026-02-01T00:00:00Z");
    for gift in [&newer, &of_three, &older] {
        store.add_grant(gift, &ada()).await.unwrap();
    }
    let asked = vec![three, two, one, three];
    assert_eq!(
        store.list_grants_of(asked).await,
        Ok(vec![
            vec![of_three.clone()],
            vec![],
            vec![older, newer],
            vec![of_three]
        ])
    );
    assert_eq!(store.list_grants_of(vec![]).await, Ok(vec![]));
}

pub(crate) async fn resets_of_several_tenants_come_in_the_order_asked(store: &SharedStore) {
    let [one, two, three] = [
        stored_tenant(store, "one").await.tenant_id,
        stored_tenant(store, "two").await.tenant_id,
        stored_tenant(store, "three").await.tenant_id,
    ];
    let reset = |time: &str| Reset {
        feature: FeatureKey::Messages,
        at: at(time),
        reason: "agreed".to_owned(),
    };
    let (older, newer) = (reset("2026-02-01T00:00:00Z"), reset("2026-03-01T00:00:00Z"));
    for (tenant, reset) in [(one, &newer), (three, &older), (one, &older)] {
        store.add_reset(tenant, reset, &ada()).await.unwrap();
    }
    assert_eq!(
        store.list_resets_of(vec![three, two, one, three]).await,
        Ok(vec![
            vec![older.clone()],
            vec![],
            vec![older.clone(), newer],
            vec![older]
        ])
    );
    assert_eq!(store.list_resets_of(vec![]).await, Ok(vec![]));
}

pub(crate) async fn grants_are_listed_oldest_first(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await;
    let other = stored_tenant(store, "other").await;
    let newer = grant(acme.tenant_id, "2026-03-01T00:00:00Z");
    let older = grant(acme.tenant_id, "2026-02-01T00:00:00Z");
    let others = grant(other.tenant_id, "2026-02-01T00:00:00Z");
    for gift in [&newer, &older, &others] {
        store.add_grant(gift, &ada()).await.unwrap();
    }
    assert!(already_exists(store.add_grant(&newer, &ada()).await));
    let listed = store.list_grants(acme.tenant_id).await.unwrap();
    assert_eq!(listed, [older, newer]);
}

pub(crate) async fn revoking_a_grant_again_changes_nothing(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await;
    let gift = grant(acme.tenant_id, "2026-02-01T00:00:00Z");
    store.add_grant(&gift, &ada()).await.unwrap();
    let first = by("2026-03-01T00:00:00Z");
    let revoked = store.revoke_grant(gift.grant_id, &first).await.unwrap();
    assert_eq!(revoked.revoked_at, Some(first.at));
    let entries = store.list_audit(None, 10).await.unwrap().len();
    let again = store
        .revoke_grant(gift.grant_id, &by("2026-04-01T00:00:00Z"))
        .await;
    assert_eq!(again, Ok(revoked.clone()));
    assert_eq!(store.list_grants(acme.tenant_id).await.unwrap(), [revoked]);
    assert_eq!(store.list_audit(None, 10).await.unwrap().len(), entries);
}

/// What changed since it was asked last.
struct Feed<'a> {
    store: &'a SharedStore,
    version: i64,
}

impl Feed<'_> {
    async fn next(&mut self) -> Vec<Changed> {
        let changes = self.store.changes_since(self.version).await.unwrap();
        self.version = changes.version;
        changes.changed
    }
}

pub(crate) async fn the_change_feed_names_what_every_write_changed(store: &SharedStore) {
    let mut feed = Feed { store, version: 0 };
    assert_eq!(feed.next().await, []);
    let starter = stored_plan(store, "starter").await;
    let plan_changed = [Changed::Plan(starter.code.clone())];
    assert_eq!(feed.next().await, plan_changed);
    store.update_plan(&starter, &ada()).await.unwrap();
    assert_eq!(feed.next().await, plan_changed);

    let acme = stored_tenant(store, "acme").await;
    let id = acme.tenant_id;
    let tenant_changed = [Changed::Tenant(id)];
    assert_eq!(feed.next().await, tenant_changed);
    for _ in ["first", "replaced"] {
        store
            .set_subscription(id, &subscription(&starter.code), None, &ada())
            .await
            .unwrap();
        assert_eq!(feed.next().await, tenant_changed);
        let limits = override_of(FeatureKey::Messages, 5);
        store.set_override(id, &limits, None, &ada()).await.unwrap();
        assert_eq!(feed.next().await, tenant_changed);
    }
    store
        .remove_override(id, &FeatureKey::Messages, None, &ada())
        .await
        .unwrap();
    assert_eq!(feed.next().await, tenant_changed);
    let gift = grant(id, "2026-01-01T00:00:00Z");
    store.add_grant(&gift, &ada()).await.unwrap();
    assert_eq!(feed.next().await, tenant_changed);
    store.revoke_grant(gift.grant_id, &ada()).await.unwrap();
    assert_eq!(feed.next().await, tenant_changed);

    let key = key_of(id, "2026-01-01T00:00:00Z");
    let key_changed = [Changed::Key(key.key_id)];
    store.create_key(&key, secret(1), &ada()).await.unwrap();
    assert_eq!(feed.next().await, key_changed);
    store
        .rotate_key(key.key_id, secret(2), ada().at, None, &ada())
        .await
        .unwrap();
    assert_eq!(feed.next().await, key_changed);
    store.revoke_key(key.key_id, None, &ada()).await.unwrap();
    assert_eq!(feed.next().await, key_changed);

    let free = stored_plan(store, "free").await;
    feed.next().await;
    store.delete_plan(&free.code, None, &ada()).await.unwrap();
    assert_eq!(feed.next().await, [Changed::Plan(free.code)]);
    assert_eq!(feed.next().await, []);
    let all = store.changes_since(0).await.unwrap();
    assert_eq!(all.changed.len(), 4, "each thing once: {all:?}");
}

pub(crate) async fn a_write_that_fails_is_not_in_the_change_feed(store: &SharedStore) {
    let starter = stored_plan(store, "starter").await;
    let before = store.changes_since(0).await.unwrap();
    let again = store.create_plan(&starter, &ada()).await;
    assert!(already_exists(again));
    let absent = Tenant {
        subscription: Some(subscription(&plan("nothing").code)),
        ..tenant("acme")
    };
    assert!(not_found(store.create_tenant(&absent, &ada()).await));
    assert_eq!(store.changes_since(0).await.unwrap(), before);
}

pub(crate) async fn a_pruned_change_feed_says_that_everything_changed(store: &SharedStore) {
    let (early, late) = (by("2026-01-01T00:00:00Z"), by("2026-01-02T00:00:00Z"));
    store.create_plan(&plan("early"), &early).await.unwrap();
    let between = store.changes_since(0).await.unwrap().version;
    store.create_plan(&plan("late"), &late).await.unwrap();
    assert!(store.prune_changes(late.at, 100).await.unwrap() > 0);
    let everything = vec![Changed::Everything];
    assert_eq!(
        store.changes_since(0).await.unwrap().changed,
        everything,
        "the feed no longer reaches back to 0"
    );
    let later = store.changes_since(between).await.unwrap();
    assert_eq!(later.changed, [Changed::Plan("late".parse().unwrap())]);

    store
        .prune_changes(at("2026-01-03T00:00:00Z"), 100)
        .await
        .unwrap();
    let emptied = store.changes_since(between).await.unwrap();
    assert_eq!(emptied.version, later.version, "the version outlives rows");
    assert_eq!(emptied.changed, everything);
    assert_eq!(
        store.changes_since(later.version).await.unwrap().changed,
        []
    );
    store.create_plan(&plan("last"), &late).await.unwrap();
    let last = store.changes_since(later.version).await.unwrap();
    assert_eq!(last.changed, [Changed::Plan("last".parse().unwrap())]);
}

pub(crate) async fn a_change_feed_is_pruned_from_its_beginning_a_part_at_a_time(
    store: &SharedStore,
) {
    let (early, late) = (by("2026-01-01T00:00:00Z"), by("2026-01-02T00:00:00Z"));
    store.create_plan(&plan("early"), &early).await.unwrap();
    let of_early = store.changes_since(0).await.unwrap().version;
    assert!(of_early > 1, "a plan and its features are several changes");
    store.create_plan(&plan("late"), &late).await.unwrap();
    store.create_plan(&plan("dated"), &early).await.unwrap();

    let everything = [Changed::Everything];
    assert_eq!(store.prune_changes(late.at, 1).await.unwrap(), 1);
    assert_eq!(store.changes_since(0).await.unwrap().changed, everything);
    let reaching_back = store.changes_since(1).await.unwrap().changed;
    assert_eq!(reaching_back.len(), 3, "only the first is gone");

    let rest = u64::try_from(of_early - 1).unwrap();
    assert_eq!(store.prune_changes(late.at, 100).await.unwrap(), rest);
    assert_eq!(store.changes_since(1).await.unwrap().changed, everything);
    let kept = store.changes_since(of_early).await.unwrap().changed;
    let after = ["late", "dated"].map(|code| Changed::Plan(code.parse().unwrap()));
    assert_eq!(kept, after, "what comes after a change that stays, stays");
    assert_eq!(store.prune_changes(late.at, 100).await.unwrap(), 0);
}

pub(crate) async fn a_version_that_the_store_has_not_reached_means_that_everything_changed(
    store: &SharedStore,
) {
    stored_plan(store, "starter").await;
    let changes = store.changes_since(1_000_000).await.unwrap();
    assert_eq!(changes.changed, [Changed::Everything]);
    assert!(changes.version < 1_000_000);
}

/// Other servers have placed its limits by what they knew of its grants.
pub(crate) async fn late_usage_is_a_change_of_its_tenant(store: &SharedStore) {
    let late = new_tenant_id();
    let before = store.changes_since(0).await.unwrap().version;
    let tell = Tell {
        late: vec![late],
        ..Tell::default()
    };
    store.record([].into(), position(1), tell).await.unwrap();
    let changes = store.changes_since(before).await.unwrap();
    assert_eq!(changes.changed, [Changed::Tenant(late)]);
}
