//! A disk that fails and heals: what was `Ok` stays, what was `Err` is not there, and no restart is needed.

use std::time::{Duration, Instant};

use super::*;

/// Waits until `condition` holds.
async fn until(mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(20), "never came");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn open_on(watch: &Arc<Watch>, path: &Path) -> Journal {
    Journal::open_with(path, watch.opener(Durability::Full), &clock()).unwrap()
}

/// Appends `count` events at once; gives those that were taken, and how many were refused.
async fn append_together(
    journal: &Journal,
    next: &mut u64,
    count: u64,
) -> (Vec<(Seq, UsageEvent)>, usize) {
    let numbers = *next..*next + count;
    *next += count;
    let appends = numbers.map(|number| async move {
        let event = event(tenant(1), number);
        (journal.append(event.clone()).await, event)
    });
    let mut taken = Vec::new();
    let mut refused = 0;
    for (answer, event) in join_all(appends).await {
        match answer {
            Ok(seq) => taken.push((seq, event)),
            Err(_) => refused += 1,
        }
    }
    (taken, refused)
}

/// `good` changes of the disk work, `bad` fail, then it is well again: what is in the file at the end?
async fn survives(good: u64, bad: u64) -> usize {
    let (_directory, path) = directory();
    let watch = Arc::new(Watch::default());
    let journal = open_on(&watch, &path);
    let mut next = 1;
    let (mut taken, mut refused) = append_together(&journal, &mut next, 3).await;

    watch.fail(good, bad);
    for round in 0_u64..60 {
        let (more, lost) = append_together(&journal, &mut next, 1 + round % 3).await;
        taken.extend(more);
        refused += lost;
        if round % 4 == 3 {
            // May fail, and may be done all the same: the total it sets is right either way.
            let upto = Seq(journal.drained().0 + 2);
            let snapshot = total(tenant(1), i64::try_from(upto.0).unwrap());
            let _ = journal.mark_drained(upto, snapshot).await;
        }
        if watch.is_healed() {
            break;
        }
    }
    until(|| watch.is_healed() && journal.status() == JournalStatus::Ok).await;
    // Before anything else is written: a row of refused events would be overwritten by the next append.
    let healed = journal.read_undrained(1_000).await.unwrap();
    let kept = taken.iter().filter(|(seq, _)| journal.drained() < *seq);
    assert!(healed.iter().eq(kept), "{good} good, {bad} bad");
    assert_eq!(journal.pending(), u64::try_from(healed.len()).unwrap());
    let (more, lost) = append_together(&journal, &mut next, 2).await;
    assert_eq!(lost, 0, "healed in place ({good} good, {bad} bad)");
    taken.extend(more);
    let seen = journal.read_undrained(1_000).await.unwrap();
    journal.close().await;

    let journal = Journal::open(&path, Durability::Process, clock()).unwrap();
    assert_eq!(journal.damaged_moved_to(), None);
    taken.retain(|(seq, _)| journal.drained() < *seq);
    let found = journal.read_undrained(1_000).await.unwrap();
    assert_eq!(found, taken, "{good} good, {bad} bad");
    assert_eq!(seen, found);
    let settled = journal.load_snapshot().await.unwrap();
    let settled = settled.first().map_or(0, |(_, total)| total.get());
    let last = i64::try_from(journal.last_seq().0).unwrap();
    assert_eq!(settled + i64::try_from(found.len()).unwrap(), last);
    journal.close().await;
    refused
}

#[tokio::test]
async fn one_failed_change_of_the_disk_loses_nothing_and_refuses_nothing() {
    let refused = join_all((0..60).map(|good| survives(good, 1))).await;
    assert_eq!(refused, [0; 60]);
}

#[tokio::test]
async fn whatever_part_of_a_commit_or_reopen_fails_ok_is_kept_and_err_is_not() {
    // Together, since most of the time goes into the pauses between attempts to reopen.
    let refused = join_all((0..60).flat_map(|good| [2, 3, 7].map(|bad| survives(good, bad)))).await;
    assert_ne!(refused.iter().sum::<usize>(), 0, "longer faults are told");
}

#[tokio::test]
async fn a_failing_journal_refuses_at_once_and_heals_without_a_restart() {
    let (_directory, path) = directory();
    let watch = Arc::new(Watch::default());
    let journal = open_on(&watch, &path);
    journal.append(event(tenant(1), 1)).await.unwrap();

    watch.fail(0, u64::MAX);
    let error = journal.append(event(tenant(1), 2)).await.unwrap_err();
    assert!(error.to_string().contains("the disk fails"), "{error}");
    let JournalStatus::Failing { detail } = journal.status() else {
        panic!("a failing disk must be seen");
    };
    assert!(detail.contains("the disk fails"), "{detail}");

    let mut refused = Box::pin(journal.append(event(tenant(1), 3)));
    let answer = futures_util::poll!(&mut refused);
    assert!(
        matches!(
            answer,
            std::task::Poll::Ready(Err(JournalError::Failing(_)))
        ),
        "{answer:?}"
    );
    let mark = journal.mark_drained(Seq(1), Snapshot::default()).await;
    assert!(matches!(mark, Err(JournalError::Failing(_))), "{mark:?}");

    watch.heal();
    until(|| journal.status() == JournalStatus::Ok).await;
    assert_eq!(journal.append(event(tenant(1), 4)).await, Ok(Seq(2)));
    let events = journal.read_undrained(9).await.unwrap();
    assert_eq!(
        events,
        [(Seq(1), event(tenant(1), 1)), (Seq(2), event(tenant(1), 4))]
    );
}

#[tokio::test]
async fn a_process_that_ends_while_its_disk_fails_has_kept_what_was_ok() {
    for good in 0..40 {
        let (_directory, path) = directory();
        let watch = Arc::new(Watch::default());
        let journal = open_on(&watch, &path);
        let mut next = 1;
        let (mut taken, _) = append_together(&journal, &mut next, 3).await;
        watch.fail(good, u64::MAX);
        while journal.status() == JournalStatus::Ok {
            let (more, _) = append_together(&journal, &mut next, 2).await;
            taken.extend(more);
        }
        journal.close().await;

        let journal = Journal::open(&path, Durability::Process, clock()).unwrap();
        let mut found = journal.read_undrained(1_000).await.unwrap();
        assert_eq!(journal.damaged_moved_to(), None);
        found.truncate(taken.len());
        assert_eq!(found, taken, "{good} good changes");
    }
}

#[tokio::test]
async fn a_file_that_was_replaced_is_not_written_to() {
    let (_directory, path) = directory();
    let watch = Arc::new(Watch::default());
    let journal = open_on(&watch, &path);
    journal.append(event(tenant(1), 1)).await.unwrap();
    fs::remove_file(&path).unwrap();
    open(&path).close().await;

    watch.fail(0, 1);
    let error = journal.append(event(tenant(1), 2)).await.unwrap_err();
    assert!(error.to_string().contains("another file"), "{error}");
    journal.close().await;
    assert_eq!(open(&path).pending(), 0);
}
