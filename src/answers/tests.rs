use std::{fs, os::unix::fs::FileExt as _, pin::pin};

use tempfile::TempDir;

use super::*;
use crate::{
    clock::ManualClock,
    journal::{
        Durability, Opener,
        tests::disk::{Call, Disk, Fault, How},
    },
};

const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

fn asked(key: &str) -> AskedBy<'_> {
    AskedBy {
        tenant: TenantId::new(Uuid::from_u128(7)),
        route: "/v1/chat/completions",
        key,
    }
}

fn answer(body: &[u8]) -> Answer {
    Answer {
        status: 200,
        headers: vec![("content-type".to_owned(), b"text/plain".to_vec())],
        body: body.to_vec(),
    }
}

fn opened(directory: &TempDir, room: u64) -> Answers {
    opened_with(directory, redb_file::on_disk(), room)
}

fn opened_with(directory: &TempDir, opener: Opener, room: u64) -> Answers {
    let path = directory.path().join("answers.redb");
    let clock = ManualClock::at("2026-11-24T14:40:09Z".parse().unwrap());
    let file = RedbFile::new(&path, CACHE_BYTES, opener);
    Answers::in_file(file, Clock::Manual(clock), room)
}

async fn claimed(answers: &Answers, key: &str) -> Claim {
    claimed_at(answers, key, NOW).await
}

async fn claimed_at(answers: &Answers, key: &str, now: Timestamp) -> Claim {
    match answers.begin(asked(key), b"body", now).await.unwrap() {
        Begun::Run(claim) => claim,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_answer_is_found_by_its_repeat_and_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let answers = opened(&directory, ALL_BYTES);
    let claim = claimed(&answers, "k").await;
    assert!(!claim.is_rerun);
    let again = answers.begin(asked("k"), b"body", NOW).await.unwrap();
    assert!(matches!(again, Begun::InFlight), "{again:?}");
    claim.keep(&answer(b"hello")).await.unwrap();
    answers.close().await;

    let answers = opened(&directory, ALL_BYTES);
    match answers.begin(asked("k"), b"body", NOW).await.unwrap() {
        Begun::Answered(found) => assert_eq!(found, answer(b"hello")),
        other => panic!("{other:?}"),
    }
    let other = answers.begin(asked("k"), b"another", NOW).await.unwrap();
    assert!(matches!(other, Begun::OtherBody), "{other:?}");
    let elsewhere = AskedBy {
        route: "/v1/responses",
        ..asked("k")
    };
    let elsewhere = answers.begin(elsewhere, b"another", NOW).await.unwrap();
    assert!(matches!(elsewhere, Begun::Run(_)), "{elsewhere:?}");
}

#[tokio::test]
async fn a_request_without_an_answer_may_run_again_as_a_new_one() {
    let directory = TempDir::new().unwrap();
    let answers = opened(&directory, ALL_BYTES);
    drop(claimed(&answers, "k").await);
    let later = NOW.plus(Duration::from_secs(1));
    match answers.begin(asked("k"), b"changed", later).await.unwrap() {
        Begun::Run(claim) => assert_eq!((claim.begun_at, claim.is_rerun), (later, false)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_cut_off_by_a_crash_runs_again_as_the_same_one() {
    let directory = TempDir::new().unwrap();
    let answers = opened(&directory, ALL_BYTES);
    let claim = claimed(&answers, "k").await;
    answers.close().await; // what is dropped after this is never written, as by a crash
    drop(claim);

    let answers = opened(&directory, ALL_BYTES);
    let later = NOW.plus(Duration::from_secs(60));
    let rerun = match answers.begin(asked("k"), b"body", later).await.unwrap() {
        Begun::Run(claim) => claim,
        other => panic!("{other:?}"),
    };
    assert_eq!((rerun.begun_at, rerun.is_rerun), (NOW, true));
    let other = answers.begin(asked("k"), b"another", later).await.unwrap();
    assert!(matches!(other, Begun::OtherBody), "{other:?}");
}

#[tokio::test]
async fn after_a_day_a_key_is_new_and_its_usage_another() {
    let directory = TempDir::new().unwrap();
    let answers = opened(&directory, ALL_BYTES);
    claimed(&answers, "k")
        .await
        .keep(&answer(b"x"))
        .await
        .unwrap();
    let last = NOW.plus(KEPT_FOR).minus(Duration::from_micros(1));
    let found = answers.begin(asked("k"), b"body", last).await.unwrap();
    assert!(matches!(found, Begun::Answered(_)), "{found:?}");
    let next_day = NOW.plus(KEPT_FOR);
    match answers
        .begin(asked("k"), b"another", next_day)
        .await
        .unwrap()
    {
        Begun::Run(claim) => {
            let first = asked("k").event_id(NOW);
            assert_ne!(asked("k").event_id(claim.begun_at), first);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_or_had_to_make_room_is_not_run_again() {
    let directory = TempDir::new().unwrap();
    let answers = opened(&directory, 3_000);
    let large = answer(&vec![b'x'; LONGEST_BODY + 1]);
    claimed(&answers, "large").await.keep(&large).await.unwrap();
    let found = answers.begin(asked("large"), b"body", NOW).await.unwrap();
    assert!(matches!(found, Begun::NotKept), "{found:?}");

    for (seconds, key) in [(1, "one"), (2, "two"), (3, "three")] {
        let now = NOW.plus(Duration::from_secs(seconds));
        let claim = claimed_at(&answers, key, now).await;
        claim.keep(&answer(&[b'x'; 1_400])).await.unwrap();
    }
    for (key, is_kept) in [("one", false), ("two", true), ("three", true)] {
        let now = NOW.plus(Duration::from_secs(9));
        match answers.begin(asked(key), b"body", now).await.unwrap() {
            Begun::Answered(_) => assert!(is_kept, "{key}"),
            Begun::NotKept => assert!(!is_kept, "{key}"),
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn expiry_forgets_what_is_old_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let answers = opened(&directory, ALL_BYTES);
    claimed(&answers, "old")
        .await
        .keep(&answer(b"x"))
        .await
        .unwrap();
    let later = NOW.plus(Duration::from_secs(3600));
    let young = match answers.begin(asked("young"), b"body", later).await.unwrap() {
        Begun::Run(claim) => claim,
        other => panic!("{other:?}"),
    };
    young.keep(&answer(b"y")).await.unwrap();
    let then = NOW.plus(KEPT_FOR + Duration::from_secs(1));
    answers.expire(then).await.unwrap();
    let old = answers.begin(asked("old"), b"another", NOW).await.unwrap();
    assert!(matches!(old, Begun::Run(_)), "{old:?}");
    let young = answers.begin(asked("young"), b"body", then).await.unwrap();
    assert!(matches!(young, Begun::Answered(_)), "{young:?}");
}

#[tokio::test]
async fn what_runs_is_in_flight_however_long_it_takes() {
    let directory = TempDir::new().unwrap();
    let answers = opened(&directory, ALL_BYTES);
    let claim = claimed(&answers, "k").await;
    let then = NOW.plus(KEPT_FOR + Duration::from_secs(1));
    answers.expire(then).await.unwrap();
    let again = answers.begin(asked("k"), b"body", then).await.unwrap();
    assert!(matches!(again, Begun::InFlight), "{again:?}");
    claim.keep(&answer(b"late")).await.unwrap();
    answers.expire(then).await.unwrap();
    let again = answers.begin(asked("k"), b"body", then).await.unwrap();
    assert!(matches!(again, Begun::Run(_)), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_runs() {
    let directory = TempDir::new().unwrap();
    let answers = opened(&directory, ALL_BYTES);
    let asks = (0..32).map(|_| answers.begin(asked("k"), b"body", NOW));
    let begun = futures_util::future::join_all(asks).await;
    let runs = begun.iter().filter(|it| matches!(it, Ok(Begun::Run(_))));
    let in_flight = begun.iter().filter(|it| matches!(it, Ok(Begun::InFlight)));
    assert_eq!((runs.count(), in_flight.count()), (1, 31));
}

/// Asks until it is to run: what was given back may be behind the question in the queue.
async fn claimed_soon(answers: &Answers, key: &str) -> Claim {
    for _ in 0..1000 {
        match answers.begin(asked(key), b"body", NOW).await.unwrap() {
            Begun::Run(claim) => return claim,
            Begun::InFlight => tokio::time::sleep(Duration::from_millis(1)).await,
            other => panic!("{other:?}"),
        }
    }
    panic!("{key} is in flight for ever");
}

/// A client may hang up at any moment between its question and the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_nobody_waits_for_is_given_back() {
    let directory = TempDir::new().unwrap();
    let answers = opened(&directory, ALL_BYTES);
    for (number, waits) in [0, 0, 100, 300, 1_000, 3_000, 10_000]
        .into_iter()
        .enumerate()
    {
        let key = format!("k{number}");
        {
            let mut begin = pin!(answers.begin(asked(&key), b"body", NOW));
            assert!(futures_util::poll!(&mut begin).is_pending());
            // It is not polled meanwhile: its answer may lie there, unread.
            tokio::time::sleep(Duration::from_micros(waits)).await;
        }
        claimed_soon(&answers, &key).await;
    }
}

fn moved_aside(directory: &TempDir) -> usize {
    let files = fs::read_dir(directory.path()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with("answers.redb.damaged-20261124T144009Z"))
        .count()
}

#[tokio::test]
async fn damaged_answers_are_moved_aside_and_new_ones_are_kept() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("answers.redb");
    let answers = opened(&directory, ALL_BYTES);
    for number in 0..40 {
        let claim = claimed(&answers, &number.to_string()).await;
        claim.keep(&answer(&[b'x'; 2_000])).await.unwrap();
    }
    answers.close().await;
    let whole = fs::read(&path).unwrap();

    let mut found = 0;
    for from in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bytes = whole.clone();
        let upto = bytes.len().min(from + 2_048);
        bytes[from..upto].fill(0xA5);
        fs::write(&path, &bytes).unwrap();
        let answers = opened(&directory, ALL_BYTES);
        let claim = claimed(&answers, "new").await;
        claim.keep(&answer(b"hello")).await.unwrap();
        let again = answers.begin(asked("new"), b"body", NOW).await.unwrap();
        assert!(matches!(again, Begun::Answered(_)), "{from}: {again:?}");
        let first = answers.begin(asked("0"), b"body", NOW).await.unwrap();
        let is_new = moved_aside(&directory) > found;
        assert_eq!(matches!(first, Begun::Run(_)), is_new, "{from}: {first:?}");
        found = moved_aside(&directory);
        answers.close().await;
    }
    assert!(found > 20, "only {found} were found to be damaged");
}

#[tokio::test]
async fn what_runs_while_its_file_is_damaged_does_not_run_twice() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("answers.redb");
    let answers = opened(&directory, ALL_BYTES);
    let running = claimed(&answers, "running").await;
    // More than is held in memory.
    for number in 0..24 {
        let claim = claimed(&answers, &number.to_string()).await;
        claim
            .keep(&answer(&vec![b'x'; LONGEST_BODY / 2]))
            .await
            .unwrap();
    }
    let file = fs::File::options().write(true).open(&path).unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    file.write_all_at(&vec![0xA5; length], 0).unwrap();
    for number in 0..24 {
        drop(
            answers
                .begin(asked(&number.to_string()), b"body", NOW)
                .await,
        );
    }
    assert_eq!(moved_aside(&directory), 1);
    let again = answers.begin(asked("running"), b"body", NOW).await.unwrap();
    assert!(matches!(again, Begun::InFlight), "{again:?}");
    running.keep(&answer(b"hello")).await.unwrap();
    let again = answers.begin(asked("running"), b"body", NOW).await.unwrap();
    assert!(matches!(again, Begun::Answered(_)), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failing_disk_did_not_take_of_a_claims_end_is_made_up_for() {
    let faults = [Call::Change, Call::Write, Call::Sync].into_iter();
    let faults = faults.flat_map(|call| [How::Broken, How::Full].map(|how| (call, how)));
    for (call, how) in faults {
        let directory = TempDir::new().unwrap();
        let disk = Disk::default();
        let answers = opened_with(&directory, disk.opener(Durability::Full), ALL_BYTES);
        let given_back = [
            claimed(&answers, "forgotten").await,
            claimed(&answers, "dropped").await,
        ];
        let kept = claimed(&answers, "kept").await;
        let running = claimed(&answers, "running").await;
        disk.fail([Fault {
            call,
            how,
            good: 0,
            bad: u64::MAX,
        }]);
        let [forgotten, dropped] = given_back;
        forgotten.forget().await;
        drop(dropped);
        assert!(kept.keep(&answer(b"hello")).await.is_err());
        for key in ["unheard", "running"] {
            let begun = answers.begin(asked(key), b"body", NOW).await;
            assert!(begun.is_err(), "{key}: {begun:?}");
        }
        disk.heal();
        for key in ["forgotten", "dropped", "unheard"] {
            claimed_soon(&answers, key).await.forget().await;
        }
        let kept = answers.begin(asked("kept"), b"body", NOW).await.unwrap();
        assert!(matches!(kept, Begun::NotKept), "{kept:?}");
        let again = answers.begin(asked("running"), b"body", NOW).await.unwrap();
        assert!(matches!(again, Begun::InFlight), "{again:?}");
        running.keep(&answer(b"hello")).await.unwrap();
    }
}
