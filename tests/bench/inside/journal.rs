//! Row 8: how fast usage becomes durable, beside what the disk and redb alone can do.

use std::{
    fs::OpenOptions,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redb::{Database, TableDefinition};
use tollgate::{
    clock::Clock,
    journal::{Durability, Journal},
};

use super::{
    fixtures,
    report::{median, micros, processor_time, rate, row},
};

/// How long each figure is measured.
const STRETCH: Duration = Duration::from_secs(4);
const WAITING: u64 = 64;

pub(crate) fn run() {
    let directory = fixtures::directory();
    let runtime = fixtures::runtime();
    let journal = Journal::open(
        &directory.path().join("cache.redb"),
        Durability::Full,
        Clock::System,
    )
    .expect("a new directory can be opened");

    let sync_before = time_of_sync(directory.path());
    let alone = runtime.block_on(time_alone(&journal));
    let sync = sync_before.min(time_of_sync(directory.path()));
    let redb = time_of_redb(directory.path());
    let goal = micros(sync) * 2.0 + 50.0;
    row(
        8,
        "journal, one event alone",
        &format!(
            "{:.0} us (fdatasync {:.0} us, redb alone {:.0} us)",
            micros(alone),
            micros(sync),
            micros(redb)
        ),
        &format!("<= 2 x fdatasync + 50 us = {goal:.0} us"),
        micros(alone) <= goal,
    );

    let before = (processor_time(), Instant::now());
    let count = append_together(&journal);
    let (used, took) = (processor_time() - before.0, before.1.elapsed());
    let per_second = rate(count, took);
    row(
        8,
        "journal, 64 waiting",
        &format!("{per_second:.0} durable events/s"),
        ">= 150,000/s",
        per_second >= 150_000.0,
    );
    let each = 1e6 / rate(count, used);
    row(
        8,
        "journal, processor time of an event (its caller's included)",
        &format!("{each:.2} us"),
        "<= 3 us",
        each <= 3.0,
    );
    runtime.block_on(journal.close());
}

/// The median time to write 4 KiB and have the disk confirm it.
fn time_of_sync(directory: &Path) -> Duration {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("sync"))
        .expect("the directory is writable");
    let mut samples = Vec::new();
    for _ in 0..500 {
        let begun = Instant::now();
        file.write_all(&[7; 4096])
            .and_then(|()| file.sync_data())
            .expect("the disk takes it");
        samples.push(begun.elapsed());
    }
    median(&mut samples)
}

/// The median time of one durable commit of one small row.
fn time_of_redb(directory: &Path) -> Duration {
    const ROWS: TableDefinition<u64, &[u8]> = TableDefinition::new("rows");
    let database = Database::create(directory.join("bare.redb")).expect("the file is new");
    let mut samples = Vec::new();
    for number in 0..500 {
        let begun = Instant::now();
        let transaction = database.begin_write().expect("nobody else writes");
        transaction
            .open_table(ROWS)
            .expect("the table can be made")
            .insert(number, [7; 160].as_slice())
            .expect("the disk takes it");
        transaction.commit().expect("the disk takes it");
        samples.push(begun.elapsed());
    }
    median(&mut samples)
}

async fn time_alone(journal: &Journal) -> Duration {
    let now = Clock::System.now();
    let mut samples = Vec::new();
    for number in 0..1000 {
        let event = fixtures::event(number, 1, now);
        let begun = Instant::now();
        journal.append(event).await.expect("the disk takes it");
        samples.push(begun.elapsed());
    }
    median(&mut samples)
}

/// Counts what 64 requests at a time have made durable when the time is up.
fn append_together(journal: &Journal) -> u64 {
    let (deadline, now) = (Instant::now() + STRETCH, Clock::System.now());
    let count = Arc::new(AtomicU64::new(0));
    fixtures::on_cores(WAITING, |lane| {
        let (journal, count) = (journal.clone(), Arc::clone(&count));
        let event = fixtures::event(lane, lane, now);
        async move {
            while Instant::now() < deadline {
                journal.append(&event).await.expect("the disk takes it");
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    count.load(Ordering::Relaxed)
}
