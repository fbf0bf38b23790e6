//! What the journal promises, on real files.

pub(crate) mod disk;
mod model;
mod torture;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tempfile::TempDir;
use uuid::Uuid;

use self::disk::Disk;
use super::*;
use crate::{
    clock::ManualClock,
    domain::{
        feature::FeatureKey,
        ids::{EventId, TenantId},
        limit::Subject,
        time::Timestamp,
        usage::{Quantities, Source},
        window::Window,
    },
};

fn clock() -> Clock {
    Clock::Manual(ManualClock::at("2026-11-24T14:40:09.5Z".parse().unwrap()))
}

fn tenant(number: u8) -> TenantId {
    TenantId::new(Uuid::from_u128(number.into()))
}

/// One message of `tenant`; `number` tells events apart.
fn event(tenant: TenantId, number: u64) -> UsageEvent {
    UsageEvent {
        event_id: EventId::new(Uuid::from_u128(number.into())),
        request_id: format!("req-{number}"),
        source: Source::Chat,
        tenant_id: tenant,
        key_id: None,
        user: String::new(),
        model: Some("gpt-5".to_owned()),
        quantities: Quantities::default().with(FeatureKey::Messages, Quantity::ONE),
        estimated: false,
        reason: None,
        price_id: None,
        admitted_at: Timestamp::from_seconds(1_000),
        recorded_at: Timestamp::from_seconds(1_001),
    }
}

fn counter(tenant: TenantId) -> CounterKey {
    CounterKey {
        tenant,
        subject: Subject::Tenant,
        feature: FeatureKey::Messages,
        window: Window::new(Timestamp::EPOCH, Timestamp::NEVER).unwrap(),
    }
}

fn total(tenant: TenantId, quantity: i64) -> Snapshot {
    Snapshot {
        changed: vec![(counter(tenant), Quantity::new(quantity))],
        removed: Vec::new(),
    }
}

fn directory() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.redb");
    (directory, path)
}

fn open(path: &Path) -> Journal {
    Journal::open(path, Durability::Full, clock()).unwrap()
}

fn seqs(events: &[(Seq, UsageEvent)]) -> Vec<u64> {
    events.iter().map(|(seq, _)| seq.0).collect()
}

#[tokio::test]
async fn appended_events_are_read_back_in_order_after_a_reopen() {
    let (_directory, path) = directory();
    let journal = open(&path);
    let id = journal.id();
    for number in 1..=5 {
        let seq = journal.append(event(tenant(1), number)).await;
        assert_eq!(seq, Ok(Seq(number)));
    }
    journal.close().await;

    let journal = open(&path);
    assert_eq!(journal.id(), id);
    let expected: Vec<_> = (1..=5)
        .map(|number| (Seq(number), event(tenant(1), number)))
        .collect();
    assert_eq!(journal.read_undrained(100).await, Ok(expected.clone()));
    assert_eq!(
        journal.read_undrained(2).await.as_deref(),
        Ok(&expected[..2])
    );
    assert_eq!((journal.pending(), journal.last_seq()), (5, Seq(5)));
    assert_eq!(journal.damaged_moved_to(), None);
}

#[tokio::test]
async fn appends_that_wait_together_get_consecutive_seqs_in_few_commits() {
    let (_directory, path) = directory();
    let disk = Disk::default();
    let journal = Journal::open_with(&path, disk.opener(Durability::Full), &clock()).unwrap();
    let before = disk.sync_count();
    let appends = (0..5_000).map(|number| journal.append(event(tenant(1), number)));
    let mut seqs: Vec<_> = tokio::time::timeout(Duration::from_secs(10), join_all(appends))
        .await
        .expect("everyone who waits is told")
        .into_iter()
        .map(|seq| seq.unwrap().0)
        .collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=5_000).collect::<Vec<_>>());
    let commits = disk.sync_count() - before;
    assert!(commits < 2_500, "{commits} syncs for 5,000 events");
}

#[tokio::test]
async fn a_mark_forgets_exactly_what_is_drained_even_within_a_row() {
    let (_directory, path) = directory();
    let mut journal = open(&path);
    // Whatever rows these make, each mark below falls once before, within or at the end of one.
    join_all((1..=20).map(|number| journal.append(event(tenant(1), number)))).await;
    for upto in 1..=20 {
        let drained = i64::try_from(upto).unwrap();
        let marked = journal
            .mark_drained(Seq(upto), total(tenant(1), drained))
            .await;
        assert_eq!(marked, Ok(()));
        if upto % 3 == 0 {
            journal.close().await;
            journal = open(&path);
        }
        let rest = journal.read_undrained(100).await.unwrap();
        assert_eq!(seqs(&rest), (upto + 1..=20).collect::<Vec<_>>());
        assert_eq!(journal.drained(), Seq(upto));
        assert_eq!(journal.pending(), 20 - upto);
        let left = Seq(if upto < 20 { 20 } else { 0 });
        assert_eq!(journal.last_seq_of(tenant(1)), left);
        let totals = journal.load_snapshot().await;
        assert_eq!(totals, Ok(total(tenant(1), drained).changed));
    }
}

#[tokio::test]
async fn a_mark_beyond_the_end_or_before_the_last_mark_changes_no_more_than_it_may() {
    let (_directory, path) = directory();
    let journal = open(&path);
    for number in 1..=3 {
        journal.append(event(tenant(1), number)).await.unwrap();
    }
    journal
        .mark_drained(Seq(9), total(tenant(1), 3))
        .await
        .unwrap();
    assert_eq!((journal.drained(), journal.pending()), (Seq(3), 0));
    journal
        .mark_drained(Seq(1), Snapshot::default())
        .await
        .unwrap();
    assert_eq!(journal.drained(), Seq(3));
    assert_eq!(journal.append(event(tenant(1), 4)).await, Ok(Seq(4)));
    assert_eq!(seqs(&journal.read_undrained(9).await.unwrap()), [4]);
}

#[tokio::test]
async fn drained_rows_leave_the_file() {
    let (_directory, path) = directory();
    let journal = open(&path);
    for number in 1..=3 {
        journal.append(event(tenant(1), number)).await.unwrap();
    }
    let mut rows = Vec::new();
    for upto in 1..=3 {
        let mark = journal.mark_drained(Seq(upto), Snapshot::default());
        assert_eq!(mark.await, Ok(()));
        rows.push(count_rows(&journal));
    }
    assert_eq!(rows, [2, 1, 0]);
}

fn count_rows(journal: &Journal) -> u64 {
    use redb::ReadableTableMetadata as _;

    let events = redb::TableDefinition::<'_, u64, &[u8]>::new("events");
    let read = journal.inner.shared.begin_read().unwrap();
    read.open_table(events).unwrap().len().unwrap()
}

#[tokio::test]
async fn seqs_go_on_after_all_was_drained_and_the_file_reopened() {
    let (_directory, path) = directory();
    let journal = open(&path);
    journal.append(event(tenant(1), 1)).await.unwrap();
    journal.append(event(tenant(1), 2)).await.unwrap();
    journal
        .mark_drained(Seq(2), Snapshot::default())
        .await
        .unwrap();
    journal.close().await;

    let journal = open(&path);
    assert_eq!((journal.last_seq(), journal.pending()), (Seq(2), 0));
    assert_eq!(journal.append(event(tenant(1), 3)).await, Ok(Seq(3)));
}

#[tokio::test]
async fn the_last_undrained_seq_is_known_for_each_tenant() {
    let (_directory, path) = directory();
    let journal = open(&path);
    for (number, owner) in [(1, 1), (2, 2), (3, 1)] {
        journal.append(event(tenant(owner), number)).await.unwrap();
    }
    let last = |journal: &Journal| [1, 2, 3].map(|owner| journal.last_seq_of(tenant(owner)).0);
    assert_eq!(last(&journal), [3, 2, 0]);
    journal
        .mark_drained(Seq(2), Snapshot::default())
        .await
        .unwrap();
    assert_eq!(last(&journal), [3, 0, 0]);
    journal.close().await;
    assert_eq!(last(&open(&path)), [3, 0, 0]);
}

#[tokio::test]
async fn a_dropped_append_leaves_the_journal_whole() {
    let (_directory, path) = directory();
    let journal = open(&path);
    for number in 1..=50 {
        let mut append = Box::pin(journal.append(event(tenant(1), number)));
        // Polled once it is on its way; then its caller goes.
        let _ = futures_util::poll!(&mut append);
    }
    let seq = journal.append(event(tenant(1), 99)).await.unwrap();
    let events = journal.read_undrained(100).await.unwrap();
    assert_eq!(seqs(&events), (1..=seq.0).collect::<Vec<_>>());
    assert_eq!(events.last(), Some(&(seq, event(tenant(1), 99))));
}

#[tokio::test]
async fn a_file_in_use_is_named() {
    let (_directory, path) = directory();
    let journal = open(&path);
    let error = Journal::open(&path, Durability::Full, clock()).unwrap_err();
    assert_eq!(error, JournalError::Locked(path.clone()));
    assert!(error.to_string().contains("cache.redb"), "{error}");
    assert!(journal.append(event(tenant(1), 1)).await.is_ok());

    journal.close().await;
    assert_eq!(open(&path).pending(), 1, "a closed file is free");
}

#[tokio::test]
async fn a_hundred_thousand_undrained_events_are_opened_in_seconds() {
    let (_directory, path) = directory();
    open(&path).close().await;
    let file = file::journal_file(&path, file::opener(Durability::Process));
    let database = file.open().unwrap();
    for first in (1..100_000).step_by(500) {
        let events: Vec<_> = (first..first + 500)
            .map(|number| row::encode_event(&event(tenant(1), number)))
            .collect();
        let row = row::encode_row(events.iter().map(Vec::as_slice));
        tables::commit(&database, Some((Seq(first), &row)), &[]).unwrap();
    }
    drop(database);

    let begin = Instant::now();
    let journal = open(&path);
    let took = begin.elapsed();
    assert_eq!(
        (journal.pending(), journal.last_seq()),
        (100_000, Seq(100_000))
    );
    // About 1 s without optimisation; a start that reads each event more than once would show.
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test]
async fn a_closed_journal_refuses() {
    let (_directory, path) = directory();
    let journal = open(&path);
    let other = journal.clone();
    journal.close().await;
    other.close().await;
    assert_eq!(
        other.append(event(tenant(1), 1)).await,
        Err(JournalError::Closed)
    );
    assert_eq!(other.read_undrained(1).await, Err(JournalError::Closed));
    assert_eq!(
        other.mark_drained(Seq(1), Snapshot::default()).await,
        Err(JournalError::Closed)
    );
}

#[tokio::test]
async fn the_file_is_the_owners_alone() {
    let (_directory, path) = directory();
    let _journal = open(&path);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn an_unwritable_place_is_an_error_and_not_damage() {
    let (directory, _) = directory();
    let path = directory.path().join("missing").join("cache.redb");
    let error = Journal::open(&path, Durability::Full, clock()).unwrap_err();
    assert!(matches!(error, JournalError::Open { .. }), "{error:?}");
    assert!(error.to_string().contains("missing"), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_moved_aside_and_a_new_journal_begun() {
    let (directory, path) = directory();
    let journal = open(&path);
    let id = journal.id();
    for number in 1..=100 {
        journal.append(event(tenant(1), number)).await.unwrap();
    }
    journal.close().await;
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();

    let mut garbage = vec![b"not a journal".repeat(1_000), vec![7], vec![0; 100_000]];
    for part in [1, 10, 500, 950] {
        garbage.push(whole[..whole.len() * part / 1_000].to_vec());
    }
    let mut flipped = whole.clone();
    for byte in flipped.iter_mut().skip(4_096) {
        *byte ^= 0x55;
    }
    garbage.push(flipped);

    for (number, bytes) in garbage.iter().enumerate() {
        fs::write(&path, bytes).unwrap();
        let journal = open(&path);
        let moved = journal.damaged_moved_to().unwrap().to_owned();
        let name = moved.file_name().unwrap().to_str().unwrap();
        assert!(
            name.starts_with("cache.redb.damaged-20261124T144009Z"),
            "{name}"
        );
        assert_eq!(&fs::read(&moved).unwrap(), bytes, "case {number}");
        assert_ne!(journal.id(), id);
        assert_eq!(journal.append(event(tenant(1), 1)).await, Ok(Seq(1)));
        journal.close().await;
        assert_eq!(open(&path).damaged_moved_to(), None);
        fs::remove_file(&path).unwrap();
    }
    let kept = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(kept, garbage.len(), "none overwrote another");
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_left_alone() {
    let (_directory, path) = directory();
    {
        let database = redb::Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let meta: redb::TableDefinition<'_, &str, u128> = redb::TableDefinition::new("meta");
            let mut meta = transaction.open_table(meta).unwrap();
            meta.insert("id", 1).unwrap();
            meta.insert("format", 2).unwrap();
        }
        transaction.commit().unwrap();
    }
    let before = fs::read(&path).unwrap();
    let error = Journal::open(&path, Durability::Full, clock()).unwrap_err();
    assert!(error.to_string().contains("format 2"), "{error}");
    assert_eq!(fs::read(&path).unwrap().len(), before.len());
}

#[tokio::test]
async fn nothing_an_event_says_is_in_debug_output() {
    let (_directory, path) = directory();
    let journal = open(&path);
    let mut secret = event(tenant(1), 1);
    secret.user = "ann@example.org".to_owned();
    journal.append(secret).await.unwrap();
    assert!(!format!("{journal:?}").contains("ann@"));
}
