//! The outbox: what is to be sent is handed out once at a time, and ends as it is told.

use std::time::Duration;

use super::{SharedStore, ada, at, by, stored_tenant};
use crate::{
    domain::{feature::FeatureKey, quantity::Quantity, time::Timestamp},
    store::outbox::{
        Ending, Finished, Kind, Lease, Leased, NewEntry, OutboxFilter, Replaying, Status,
    },
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            outbox,
            an_identifier_seen_before_adds_nothing,
            what_is_leased_is_nobody_elses_until_its_lease_ends,
            a_lease_is_renewed_unless_it_was_lost_or_holds_up_a_lane,
            a_kind_waits_for_no_other,
            of_a_lane_only_the_oldest_is_handed_out,
            what_is_due_longest_goes_first_in_a_lane_or_in_none,
            what_is_replayed_waits_for_what_of_its_lane_is_being_sent,
            an_attempt_ends_as_it_is_told_and_a_lost_one_changes_nothing,
            what_is_dead_or_uncertain_is_replayed_and_audited,
            entries_are_listed_newest_first_page_by_page,
            what_was_sent_is_pruned_and_what_was_given_up_stays,
        );
    };
}
pub(crate) use cases;

const SECOND: Duration = Duration::from_secs(1);
const LONGEST_LEASE: Duration = Duration::from_secs(60);

fn noon() -> Timestamp {
    at("2026-01-02T12:00:00Z")
}

fn entry(identifier: &str, created_at: Timestamp) -> NewEntry {
    NewEntry {
        identifier: identifier.to_owned(),
        kind: Kind::Notice,
        topic: Some("limit_reached".to_owned()),
        tenant: None,
        feature: Some(FeatureKey::Messages),
        value: Some(Quantity::new(80)),
        lane: None,
        about: None,
        payload: format!("payload of {identifier}"),
        created_at,
    }
}

async fn lease(store: &SharedStore, now: Timestamp, limit: usize) -> Vec<Leased> {
    let lease = Lease {
        kind: Kind::Notice,
        now,
        until: now.plus(60 * SECOND),
        limit,
    };
    store.lease(lease).await.unwrap()
}

fn names(leased: &[Leased]) -> Vec<&str> {
    leased.iter().map(|it| it.identifier.as_str()).collect()
}

async fn end(store: &SharedStore, leased: &Leased, ending: Ending, now: Timestamp) {
    let finished = Finished {
        identifier: leased.identifier.clone(),
        attempts: leased.attempts,
        doubt_since: None,
        ending,
        tell: Vec::new(),
    };
    store.finish(&[finished], now).await.unwrap();
}

async fn statuses(store: &SharedStore) -> Vec<(String, Status)> {
    let all = store.list_outbox(&OutboxFilter::default(), None, 50).await;
    let all = all.unwrap().into_iter();
    all.map(|it| (it.identifier, it.status)).collect()
}

pub(crate) async fn an_identifier_seen_before_adds_nothing(store: &SharedStore) {
    let one = entry("a", noon());
    assert_eq!(store.enqueue(std::slice::from_ref(&one)).await, Ok(1));
    let other = NewEntry {
        payload: "another".to_owned(),
        ..one
    };
    assert_eq!(store.enqueue(&[other, entry("b", noon())]).await, Ok(1));
    let leased = lease(store, noon(), 10).await;
    assert_eq!(names(&leased), ["a", "b"]);
    assert_eq!(leased[0].payload, "payload of a");
}

pub(crate) async fn what_is_leased_is_nobody_elses_until_its_lease_ends(store: &SharedStore) {
    let entries: Vec<NewEntry> = ["c", "b", "a"]
        .iter()
        .enumerate()
        .map(|(index, name)| entry(name, noon().plus(SECOND * u32::try_from(index).unwrap())))
        .collect();
    store.enqueue(&entries).await.unwrap();
    assert_eq!(
        names(&lease(store, noon(), 10).await),
        ["c"],
        "only what is due"
    );
    let now = noon().plus(2 * SECOND);
    assert_eq!(
        names(&lease(store, now, 1).await),
        ["b"],
        "the oldest first"
    );
    assert_eq!(names(&lease(store, now, 10).await), ["a"]);
    assert_eq!(
        names(&lease(store, now.plus(57 * SECOND), 10).await),
        [""; 0]
    );
    let again = lease(store, now.plus(60 * SECOND), 10).await;
    assert_eq!(names(&again), ["c", "b", "a"]);
    assert!(again.iter().all(|it| it.attempts == 2));
}

pub(crate) async fn a_lease_is_renewed_unless_it_was_lost_or_holds_up_a_lane(store: &SharedStore) {
    let in_lane = NewEntry {
        lane: Some("x".to_owned()),
        ..entry("in-lane", noon())
    };
    store.enqueue(&[entry("a", noon()), in_lane]).await.unwrap();
    let first = lease(store, noon(), 10).await;
    let later = noon().plus(60 * SECOND);
    store.renew(&first, later.plus(SECOND)).await.unwrap();
    assert_eq!(names(&lease(store, later, 10).await), ["in-lane"]);
    let later = later.plus(SECOND);
    let second = lease(store, later, 10).await;
    assert_eq!(names(&second), ["a"]);
    let far = later.plus(3600 * SECOND);
    store.renew(&first, far).await.unwrap();
    let later = later.plus(60 * SECOND);
    let third = lease(store, later, 10).await;
    assert_eq!(names(&third), ["a", "in-lane"], "the first lease was lost");
    end(store, &third[0], Ending::Sent, later).await;
    store.renew(&third, far).await.unwrap();
    let left = store.list_outbox(&OutboxFilter::default(), None, 9).await;
    let sent = left.unwrap().into_iter().find(|it| it.identifier == "a");
    assert_eq!(sent.unwrap().next_attempt_at, None);
}

pub(crate) async fn a_kind_waits_for_no_other(store: &SharedStore) {
    let batch = NewEntry {
        kind: Kind::AnalyticsBatch,
        ..entry("batch", noon())
    };
    store
        .enqueue(&[batch, entry("notice", noon())])
        .await
        .unwrap();
    assert_eq!(names(&lease(store, noon(), 10).await), ["notice"]);
    let mut counts = store.count_outbox().await.unwrap();
    counts.sort_by_key(|(kind, ..)| kind.as_str());
    assert_eq!(
        counts,
        [
            (Kind::AnalyticsBatch, Status::Pending, 1),
            (Kind::Notice, Status::Pending, 1)
        ]
    );
}

pub(crate) async fn of_a_lane_only_the_oldest_is_handed_out(store: &SharedStore) {
    let in_lane = |name: &str, lane: &str, later: u32| NewEntry {
        lane: Some(lane.to_owned()),
        ..entry(name, noon().plus(later * SECOND))
    };
    store
        .enqueue(&[
            in_lane("x1", "x", 0),
            in_lane("x2", "x", 1),
            in_lane("y1", "y", 1),
        ])
        .await
        .unwrap();
    let now = noon().plus(5 * SECOND);
    let first = lease(store, now, 10).await;
    assert_eq!(names(&first), ["x1", "y1"]);
    assert_eq!(
        names(&lease(store, now, 10).await),
        [""; 0],
        "one at a time"
    );
    let retry = Ending::Retry {
        at: now.plus(9 * SECOND),
        error: "busy".to_owned(),
    };
    end(store, &first[0], retry, now).await;
    assert_eq!(
        names(&lease(store, now, 10).await),
        [""; 0],
        "none overtakes"
    );
    let first = lease(store, now.plus(9 * SECOND), 10).await;
    assert_eq!(names(&first), ["x1"]);
    end(
        store,
        &first[0],
        Ending::Dead {
            error: "no".to_owned(),
        },
        now,
    )
    .await;
    assert_eq!(names(&lease(store, now, 10).await), ["x2"]);
}

pub(crate) async fn what_is_due_longest_goes_first_in_a_lane_or_in_none(store: &SharedStore) {
    let entries = [
        ("a", None, 3),
        ("b", None, 1),
        ("x1", Some("x"), 0),
        ("x2", Some("x"), 0),
        ("y1", Some("y"), 2),
        ("z1", Some("z"), 9),
    ];
    let entries = entries.map(|(name, lane, later)| NewEntry {
        lane: lane.map(str::to_owned),
        ..entry(name, noon().plus(later * SECOND))
    });
    store.enqueue(&entries).await.unwrap();
    let now = noon().plus(5 * SECOND);
    for expected in [&["x1", "b"][..], &["y1", "a"], &[]] {
        assert_eq!(names(&lease(store, now, 2).await), expected);
    }
}

/// Two calls of one lane are never made at once, not even where a person has the older one sent again.
pub(crate) async fn what_is_replayed_waits_for_what_of_its_lane_is_being_sent(store: &SharedStore) {
    let in_lane = |name: &str, lane: &str, later: u32| NewEntry {
        lane: Some(lane.to_owned()),
        ..entry(name, noon().plus(later * SECOND))
    };
    let of_all = [
        ("x1", "x", 0),
        ("x2", "x", 1),
        ("x3", "x", 2),
        ("y1", "y", 0),
    ];
    let of_all = of_all.map(|(name, lane, later)| in_lane(name, lane, later));
    store.enqueue(&of_all).await.unwrap();
    let now = noon().plus(5 * SECOND);
    let dead = || Ending::Dead {
        error: "no".to_owned(),
    };
    for leased in lease(store, now, 10).await {
        end(store, &leased, dead(), now).await;
    }
    let second = lease(store, now, 10).await;
    assert_eq!(names(&second), ["x2"]);

    let replay = async |name, at: Timestamp| {
        let by = by(&at.to_string());
        match store.replay(name, LONGEST_LEASE, &by).await.unwrap() {
            Replaying::Replayed(it) => it.next_attempt_at.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    // `x2` is on its way until its lease ends; of the other lane nothing is.
    let later = now.plus(SECOND);
    let due = replay("x1", later).await;
    assert!(due > later && due <= later.plus(LONGEST_LEASE), "{due}");
    assert_eq!(replay("y1", later).await, later);
    assert_eq!(names(&lease(store, later, 10).await), ["y1"]);
    end(store, &second[0], Ending::Sent, later).await;
    assert_eq!(
        names(&lease(store, later, 10).await),
        [""; 0],
        "none overtakes"
    );
    let first = lease(store, due, 10).await;
    assert_eq!(names(&first), ["x1"]);
    end(store, &first[0], dead(), due).await;

    // One that is to be tried again after a long pause is not on its way.
    let third = lease(store, due, 10).await;
    assert_eq!(names(&third), ["x3"]);
    let retry = Ending::Retry {
        at: due.plus(60 * LONGEST_LEASE),
        error: "busy".to_owned(),
    };
    end(store, &third[0], retry, due).await;
    assert_eq!(replay("x1", due).await, due);
    assert_eq!(names(&lease(store, due, 10).await), ["x1"]);
}

pub(crate) async fn an_attempt_ends_as_it_is_told_and_a_lost_one_changes_nothing(
    store: &SharedStore,
) {
    let all = ["dead", "gone", "retried", "sent", "uncertain"];
    let entries: Vec<NewEntry> = all.iter().map(|name| entry(name, noon())).collect();
    store.enqueue(&entries).await.unwrap();
    let leased = lease(store, noon(), 10).await;
    let error = || "said no".to_owned();
    let endings = [
        Ending::Dead { error: error() },
        Ending::Forgotten,
        Ending::Retry {
            at: noon().plus(SECOND),
            error: error(),
        },
        Ending::Sent,
        Ending::Uncertain { error: error() },
    ];
    for (leased, ending) in leased.iter().zip(endings) {
        end(store, leased, ending, noon()).await;
    }
    let expected = [
        ("uncertain", Status::Uncertain),
        ("sent", Status::Sent),
        ("retried", Status::Pending),
        ("dead", Status::Dead),
    ];
    let expected = expected.map(|(name, status)| (name.to_owned(), status));
    assert_eq!(statuses(store).await, expected);
    let listed = store.list_outbox(&OutboxFilter::default(), None, 50).await;
    let retried = listed.unwrap().remove(2);
    assert_eq!(retried.last_error.as_deref(), Some("said no"));
    assert_eq!(retried.next_attempt_at, Some(noon().plus(SECOND)));

    let second = lease(store, noon().plus(SECOND), 10).await;
    assert_eq!(names(&second), ["retried"]);
    end(store, &leased[2], Ending::Sent, noon()).await;
    assert_eq!(
        statuses(store).await,
        expected,
        "the first attempt was lost"
    );
    end(store, &second[0], Ending::Sent, noon()).await;
    assert_eq!(statuses(store).await[2].1, Status::Sent);
}

pub(crate) async fn what_is_dead_or_uncertain_is_replayed_and_audited(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await;
    let of_acme = NewEntry {
        tenant: Some(acme.tenant_id),
        ..entry("a", noon())
    };
    store.enqueue(&[of_acme]).await.unwrap();
    assert_eq!(
        store.replay("none", LONGEST_LEASE, &ada()).await,
        Ok(Replaying::NotFound)
    );
    let pending = store.replay("a", LONGEST_LEASE, &ada()).await.unwrap();
    assert!(matches!(pending, Replaying::NotEnded(it) if it.status == Status::Pending));
    for ending in [
        Ending::Dead {
            error: "no".to_owned(),
        },
        Ending::Uncertain {
            error: "?".to_owned(),
        },
    ] {
        let leased = lease(store, noon(), 10).await;
        assert_eq!(leased[0].attempts, 1, "attempts count anew");
        end(store, &leased[0], ending, noon()).await;
        let replayed = store
            .replay("a", LONGEST_LEASE, &by("2026-01-02T11:00:00Z"))
            .await
            .unwrap();
        let Replaying::Replayed(it) = replayed else {
            panic!("{replayed:?}")
        };
        assert_eq!(
            (it.status, it.tenant_slug.as_deref()),
            (Status::Pending, Some("acme"))
        );
    }
    let audit = store.list_audit(None, 1).await.unwrap().remove(0);
    assert_eq!(
        (audit.action.as_str(), audit.target.as_str()),
        ("outbox.replay", "a")
    );
    assert_eq!(audit.before.unwrap()["status"], "uncertain");
}

pub(crate) async fn entries_are_listed_newest_first_page_by_page(store: &SharedStore) {
    let entries = [("a", 0), ("b", 1), ("c", 1)]
        .map(|(name, later)| entry(name, noon().plus(later * SECOND)));
    store.enqueue(&entries).await.unwrap();
    let filter = OutboxFilter::default();
    let first = store.list_outbox(&filter, None, 2).await.unwrap();
    let last = first.last().unwrap();
    let before = Some((last.created_at, last.identifier.clone()));
    let second = store.list_outbox(&filter, before, 2).await.unwrap();
    let names: Vec<&str> = first
        .iter()
        .chain(&second)
        .map(|it| it.identifier.as_str())
        .collect();
    assert_eq!(names, ["c", "b", "a"]);
    for (filter, count) in [
        (
            OutboxFilter {
                kind: Some(Kind::NoticeCheck),
                ..OutboxFilter::default()
            },
            0,
        ),
        (
            OutboxFilter {
                kind: Some(Kind::Notice),
                ..OutboxFilter::default()
            },
            3,
        ),
        (
            OutboxFilter {
                status: Some(Status::Dead),
                ..OutboxFilter::default()
            },
            0,
        ),
        (
            OutboxFilter {
                tenant: Some(super::new_tenant_id()),
                ..OutboxFilter::default()
            },
            0,
        ),
    ] {
        let found = store.list_outbox(&filter, None, 9).await.unwrap();
        assert_eq!(found.len(), count, "{filter:?}");
    }
}

pub(crate) async fn what_was_sent_is_pruned_and_what_was_given_up_stays(store: &SharedStore) {
    let entries = ["dead", "pending", "sent"].map(|name| entry(name, noon()));
    store.enqueue(&entries).await.unwrap();
    let leased = lease(store, noon(), 10).await;
    end(
        store,
        &leased[0],
        Ending::Dead {
            error: "no".to_owned(),
        },
        noon(),
    )
    .await;
    end(store, &leased[2], Ending::Sent, noon()).await;
    assert_eq!(store.prune_outbox(noon(), 10).await, Ok(0));
    assert_eq!(store.prune_outbox(noon().plus(SECOND), 10).await, Ok(1));
    let left = statuses(store).await.into_iter().map(|(name, _)| name);
    assert_eq!(left.collect::<Vec<_>>(), ["pending", "dead"]);
}
