//! What Stripe tells: each event is kept once, and the newest word on a subscription stays.

use std::time::Duration;

use super::{SharedStore, ada, at, by, new_tenant_id, stored_plan, stored_tenant};
use crate::{
    domain::{
        processor::{Known, Payment, ProcessorSubscription, order},
        subscription::SubscriptionStatus,
        time::Timestamp,
    },
    store::webhooks::{Arrival, Webhook, WebhookEnding, WebhookStatus},
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            webhooks,
            an_event_is_kept_once,
            an_event_that_comes_again_is_tried_again_if_it_was_given_up,
            what_is_due_comes_in_the_order_in_which_it_happened,
            an_attempt_ends_as_it_is_told,
            what_is_over_is_replayed_and_audited,
            events_are_listed_newest_first_page_by_page,
            what_is_done_with_is_pruned_and_what_is_not_stays,
            the_newest_state_stays_whatever_order_it_comes_in,
            news_of_invoices_are_kept_apart_from_the_state,
            a_customer_is_the_tenants_whose_subscription_names_it,
        );
    };
}
pub(crate) use cases;

const SECOND: Duration = Duration::from_secs(1);

fn noon() -> Timestamp {
    at("2026-01-10T12:00:00Z")
}

/// An event that happened so many seconds after noon, and is due as it comes.
fn webhook(event_id: &str, seconds: u32) -> Webhook {
    let happened_at = noon().plus(seconds * SECOND);
    Webhook {
        event_id: event_id.to_owned(),
        event_type: "customer.subscription.updated".to_owned(),
        object_id: "sub_1".to_owned(),
        happened_at,
        received_at: happened_at.plus(SECOND),
        tenant: None,
        tenant_slug: None,
        status: WebhookStatus::Pending,
        attempts: 0,
        last_error: None,
        next_attempt_at: Some(happened_at.plus(SECOND)),
        payload: format!(r#"{{"id":"{event_id}"}}"#),
    }
}

async fn receive(store: &SharedStore, webhook: &Webhook) -> Arrival {
    store.receive_webhook(webhook).await.unwrap()
}

async fn find(store: &SharedStore, event_id: &str) -> Webhook {
    store.find_webhook(event_id).await.unwrap().unwrap()
}

fn unmatched() -> WebhookEnding {
    WebhookEnding::Unmatched {
        error: "whose?".to_owned(),
    }
}

fn names(webhooks: &[Webhook]) -> Vec<&str> {
    webhooks.iter().map(|it| it.event_id.as_str()).collect()
}

fn state(customer: &str, status: SubscriptionStatus) -> ProcessorSubscription {
    ProcessorSubscription {
        subscription_id: "sub_1".to_owned(),
        customer_id: customer.to_owned(),
        plan_code: "starter".parse().unwrap(),
        status,
        created_at: noon(),
        period_start: noon(),
        period_end: noon().plus_months(1),
        anchor: Some(noon()),
        months: Some(1),
    }
}

fn second(seconds: u32) -> String {
    order(noon().plus(seconds * SECOND), 1, "evt_1")
}

pub(crate) async fn an_event_is_kept_once(store: &SharedStore) {
    let first = webhook("evt_1", 0);
    assert_eq!(receive(store, &first).await, Arrival::New);
    let again = Webhook {
        payload: "another".to_owned(),
        ..webhook("evt_1", 9)
    };
    let known = Arrival::Again(WebhookStatus::Pending);
    assert_eq!(receive(store, &again).await, known);
    assert_eq!(find(store, "evt_1").await, first);
    assert_eq!(store.find_webhook("evt_2").await, Ok(None));
    let ignored = Webhook {
        status: WebhookStatus::Ignored,
        next_attempt_at: None,
        payload: String::new(),
        object_id: String::new(),
        ..webhook("evt_3", 0)
    };
    receive(store, &ignored).await;
    assert_eq!(find(store, "evt_3").await, ignored);
}

pub(crate) async fn an_event_that_comes_again_is_tried_again_if_it_was_given_up(
    store: &SharedStore,
) {
    let acme = stored_tenant(store, "acme").await.tenant_id;
    let dead = WebhookEnding::Dead {
        error: "no".to_owned(),
    };
    let applied = WebhookEnding::Applied { tenant: acme };
    for (event_id, ending, was, becomes) in [
        (
            "evt_1",
            unmatched(),
            WebhookStatus::Unmatched,
            WebhookStatus::Pending,
        ),
        ("evt_2", dead, WebhookStatus::Dead, WebhookStatus::Pending),
        (
            "evt_3",
            applied,
            WebhookStatus::Applied,
            WebhookStatus::Applied,
        ),
    ] {
        receive(store, &webhook(event_id, 0)).await;
        store.end_webhook(event_id, &ending).await.unwrap();
        let again = webhook(event_id, 60);
        assert_eq!(receive(store, &again).await, Arrival::Again(was));
        let found = find(store, event_id).await;
        assert_eq!(found.status, becomes);
        if becomes == WebhookStatus::Pending {
            assert_eq!(found.attempts, 0);
            assert_eq!(found.next_attempt_at, Some(again.received_at));
        }
        assert_eq!(found.received_at, noon().plus(SECOND), "the first time");
    }
}

pub(crate) async fn what_is_due_comes_in_the_order_in_which_it_happened(store: &SharedStore) {
    for (event_id, seconds) in [("evt_c", 2), ("evt_b", 0), ("evt_a", 0), ("evt_d", 9)] {
        receive(store, &webhook(event_id, seconds)).await;
    }
    let due = async |seconds: u32, limit| {
        let due = store.list_due_webhooks(noon().plus(seconds * SECOND), limit);
        due.await.unwrap()
    };
    assert_eq!(names(&due(0, 9).await), [""; 0]);
    assert_eq!(names(&due(3, 9).await), ["evt_a", "evt_b", "evt_c"]);
    assert_eq!(names(&due(60, 2).await), ["evt_a", "evt_b"]);
}

pub(crate) async fn an_attempt_ends_as_it_is_told(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await.tenant_id;
    receive(store, &webhook("evt_1", 0)).await;
    let retry = WebhookEnding::Retry {
        at: noon().plus(60 * SECOND),
        error: "away".to_owned(),
    };
    store.end_webhook("evt_1", &retry).await.unwrap();
    let found = find(store, "evt_1").await;
    assert_eq!((found.status, found.attempts), (WebhookStatus::Pending, 1));
    assert_eq!(found.last_error.as_deref(), Some("away"));
    assert_eq!(found.next_attempt_at, Some(noon().plus(60 * SECOND)));
    let applied = WebhookEnding::Applied { tenant: acme };
    store.end_webhook("evt_1", &applied).await.unwrap();
    let expected = Webhook {
        tenant: Some(acme),
        tenant_slug: Some("acme".to_owned()),
        status: WebhookStatus::Applied,
        attempts: 2,
        next_attempt_at: None,
        ..webhook("evt_1", 0)
    };
    assert_eq!(find(store, "evt_1").await, expected);
    // Another attempt that ends later changes nothing.
    store.end_webhook("evt_1", &unmatched()).await.unwrap();
    assert_eq!(find(store, "evt_1").await, expected);
    assert_eq!(store.end_webhook("evt_2", &applied).await, Ok(()));
}

pub(crate) async fn what_is_over_is_replayed_and_audited(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await.tenant_id;
    let later = by("2026-01-11T00:00:00Z");
    assert_eq!(store.replay_webhook("evt_1", &later).await, Ok(false));
    receive(store, &webhook("evt_1", 0)).await;
    assert_eq!(store.replay_webhook("evt_1", &later).await, Ok(false));
    for ending in [unmatched(), WebhookEnding::Applied { tenant: acme }] {
        store.end_webhook("evt_1", &ending).await.unwrap();
        assert_eq!(store.replay_webhook("evt_1", &later).await, Ok(true));
        let found = find(store, "evt_1").await;
        assert_eq!((found.status, found.attempts), (WebhookStatus::Pending, 0));
        assert_eq!(found.next_attempt_at, Some(later.at));
    }
    let audit = store.list_audit(None, 1).await.unwrap().remove(0);
    assert_eq!(
        (audit.action.as_str(), audit.target.as_str()),
        ("webhook.replay", "evt_1")
    );
    assert_eq!(audit.before.unwrap()["status"], "applied");
}

pub(crate) async fn events_are_listed_newest_first_page_by_page(store: &SharedStore) {
    for (event_id, seconds) in [("evt_a", 0), ("evt_c", 1), ("evt_b", 1)] {
        receive(store, &webhook(event_id, seconds)).await;
    }
    store.end_webhook("evt_b", &unmatched()).await.unwrap();
    let first = store.list_webhooks(None, None, 2).await.unwrap();
    assert_eq!(names(&first), ["evt_c", "evt_b"]);
    let before = Some((first[1].received_at, first[1].event_id.clone()));
    let second = store.list_webhooks(None, before, 2).await.unwrap();
    assert_eq!(names(&second), ["evt_a"]);
    let status = Some(WebhookStatus::Unmatched);
    let unmatched = store.list_webhooks(status, None, 9).await.unwrap();
    assert_eq!(names(&unmatched), ["evt_b"]);
}

pub(crate) async fn what_is_done_with_is_pruned_and_what_is_not_stays(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await.tenant_id;
    for event_id in ["evt_applied", "evt_pending", "evt_unmatched"] {
        receive(store, &webhook(event_id, 0)).await;
    }
    let ignored = Webhook {
        status: WebhookStatus::Ignored,
        next_attempt_at: None,
        ..webhook("evt_ignored", 5)
    };
    receive(store, &ignored).await;
    let applied = WebhookEnding::Applied { tenant: acme };
    store.end_webhook("evt_applied", &applied).await.unwrap();
    let unmatched = unmatched();
    store
        .end_webhook("evt_unmatched", &unmatched)
        .await
        .unwrap();
    let came = noon().plus(SECOND);
    assert_eq!(store.prune_webhooks(came, 9).await, Ok(0));
    assert_eq!(store.prune_webhooks(came.plus(SECOND), 9).await, Ok(1));
    assert_eq!(store.prune_webhooks(came.plus(9 * SECOND), 9).await, Ok(1));
    let left = store.list_webhooks(None, None, 9).await.unwrap();
    assert_eq!(names(&left), ["evt_unmatched", "evt_pending"]);
}

pub(crate) async fn the_newest_state_stays_whatever_order_it_comes_in(store: &SharedStore) {
    use SubscriptionStatus::{Active, Canceled, PastDue};
    let (acme, other) = (new_tenant_id(), new_tenant_id());
    assert_eq!(store.find_known("sub_1").await, Ok(None));
    let note = async |status, seconds, tenant| {
        let state = state("cus_1", status);
        store
            .note_state(&state, &second(seconds), tenant)
            .await
            .unwrap();
        store.find_known("sub_1").await.unwrap().unwrap()
    };
    let known = |status, seconds, tenant| Known {
        tenant,
        state: Some(state("cus_1", status)),
        state_order: second(seconds),
        payment: None,
        payment_order: String::new(),
    };
    assert_eq!(note(PastDue, 5, None).await, known(PastDue, 5, None));
    assert_eq!(store.list_known(acme).await, Ok(vec![]));
    // An older one says whose it is, and nothing else.
    let found = note(Active, 3, Some(acme)).await;
    assert_eq!(found, known(PastDue, 5, Some(acme)));
    assert_eq!(note(Active, 5, None).await, found, "as new is not newer");
    assert_eq!(note(Active, 4, Some(other)).await, found);
    let found = note(Canceled, 6, None).await;
    assert_eq!(found, known(Canceled, 6, Some(acme)));
    assert_eq!(store.list_known(acme).await, Ok(vec![found]));
    assert_eq!(note(Active, 7, Some(other)).await.tenant, Some(other));
}

pub(crate) async fn news_of_invoices_are_kept_apart_from_the_state(store: &SharedStore) {
    let note = async |payment, seconds| {
        let order = second(seconds);
        store.note_payment("sub_1", payment, &order).await.unwrap();
        store.find_known("sub_1").await.unwrap().unwrap()
    };
    let first = note(Payment::Failed, 5).await;
    let expected = Known {
        payment: Some(Payment::Failed),
        payment_order: second(5),
        ..Known::default()
    };
    assert_eq!(first, expected, "before anything else is known of it");
    assert_eq!(note(Payment::Paid, 4).await, expected);
    let state = state("cus_1", SubscriptionStatus::Active);
    let acme = new_tenant_id();
    let noted = store.note_state(&state, &second(1), Some(acme)).await;
    assert_eq!(noted, Ok(()));
    let found = note(Payment::Paid, 6).await;
    let expected = Known {
        tenant: Some(acme),
        state: Some(state),
        state_order: second(1),
        payment: Some(Payment::Paid),
        payment_order: second(6),
    };
    assert_eq!(found, expected);
}

pub(crate) async fn a_customer_is_the_tenants_whose_subscription_names_it(store: &SharedStore) {
    let plan = stored_plan(store, "starter").await;
    let acme = stored_tenant(store, "acme").await;
    let other = stored_tenant(store, "other").await;
    let find = async || store.find_tenant_of_customer("cus_1").await.unwrap();
    assert_eq!(find().await, None);
    let state = state("cus_1", SubscriptionStatus::Active);
    for tenant in [None, Some(other.tenant_id)] {
        let noted = store.note_state(&state, &second(1), tenant).await;
        assert_eq!(noted, Ok(()));
        assert_eq!(find().await, tenant);
    }
    let subscription = super::subscription(&plan.code);
    assert_eq!(subscription.processor_customer_id.as_deref(), Some("cus_1"));
    store
        .set_subscription(acme.tenant_id, &subscription, None, &ada())
        .await
        .unwrap();
    assert_eq!(find().await, Some(acme.tenant_id));
    store
        .delete_tenant(acme.tenant_id, None, &ada())
        .await
        .unwrap();
    assert_eq!(find().await, Some(other.tenant_id));
}
