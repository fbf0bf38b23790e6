//! `kill -9` under load, as often as asked for.

use std::{
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all};
use serde_json::{Value, json};
use tollgate::{
    clock::{self, Clock},
    domain::{
        feature::FeatureKey,
        ids::EventId,
        quantity::Quantity,
        usage::{Quantities, Source, UsageEvent},
    },
    journal::{Durability, Journal},
};

use crate::support::{FakeOpenAi, Frames, PATIENCE, Tenant, Tollgate, eventually, torture};

/// What a client does, again and again.
#[derive(Clone, Copy, Debug)]
enum Habit {
    Whole,
    Stream,
    /// Goes at the first frame.
    HangsUp,
}

/// Asks until it is stopped; counts answers that came whole.
async fn load(acme: Tenant, answered: Arc<AtomicI64>, stop: Arc<AtomicBool>, habit: Habit) {
    while !stop.load(Ordering::SeqCst) {
        let is_answered = match habit {
            Habit::Whole => read_whole(&acme).await,
            Habit::Stream => read_stream(&acme, usize::MAX).await,
            Habit::HangsUp => read_stream(&acme, 1).await,
        };
        match (is_answered, habit) {
            (Some(true), _) => _ = answered.fetch_add(1, Ordering::SeqCst),
            (Some(false), Habit::HangsUp) => {}
            (Some(false), Habit::Whole | Habit::Stream) => panic!("a request was refused"),
            (None, _) => return, // the server was killed under it
        }
    }
}

async fn read_whole(acme: &Tenant) -> Option<bool> {
    let body = json!({ "model": "gpt-5.1", "messages": [{ "role": "user", "content": "hi" }] });
    acme.try_post("/v1/chat/completions", &body)
        .await
        .ok()
        .map(|answer| answer.status == 200)
}

/// Reads `frames` pieces at most, then hangs up.
async fn read_stream(acme: &Tenant, frames: usize) -> Option<bool> {
    let body = json!({ "model": "gpt-5.1", "stream": true, "messages": [{ "role": "user", "content": "hi" }] });
    let request = acme
        .request(reqwest::Method::POST, "/v1/chat/completions")
        .body(body.to_string());
    let mut stream = request.send().await.ok()?.bytes_stream().take(frames);
    let mut last = Vec::new();
    while let Some(chunk) = stream.next().await {
        last = chunk.ok()?.to_vec();
    }
    Some(last.ends_with(b"data: [DONE]\n\n"))
}

/// How long starts took, by the clock and by the processor.
#[derive(Default)]
struct Starts {
    took: Vec<Duration>,
    computed: Vec<Duration>,
}

impl Starts {
    async fn again(&mut self, gate: Tollgate) -> Tollgate {
        let begun = Instant::now();
        let gate = gate.restart().await;
        self.took.push(begun.elapsed());
        self.computed.push(gate.processor_time());
        gate
    }

    /// Nothing else may have held it up, where the machine is not too busy to tell.
    fn check(mut self, allowed: Duration) {
        self.took.sort();
        let [fastest, median, slowest] =
            [0, self.took.len() / 2, self.took.len() - 1].map(|place| self.took[place]);
        let computed = self.computed.iter().max().expect("a start");
        eprintln!(
            "{} starts: ready after {fastest:.1?}, {median:.1?} (median), {slowest:.1?} at most, computing {computed:.1?} at most",
            self.took.len()
        );
        assert!(*computed < allowed, "{:?}", self.computed);
        assert!(median < allowed || is_busy(), "{:?}", self.took);
    }
}

/// Whether more is to be computed than twice what the machine can: then the clock says nothing.
fn is_busy() -> bool {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split(' ').next().unwrap().parse().unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    load > 2.0 * f64::from(u32::try_from(cores).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answered_request_is_counted_once_however_often_the_process_is_killed() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(2));
    let mut gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let answered = Arc::new(AtomicI64::new(0));
    let mut starts = Starts::default();
    let (mut called, mut counted) = (0, 0);
    for seed in torture::rounds(20, "KILLS") {
        work_until_killed(&mut gate, &acme, &answered, seed % 40 * 7 % 40).await;
        if seed % 4 == 3 {
            kill_while_it_recovers(&gate).await;
        }
        gate = starts.again(gate).await;
        called = i64::try_from(upstream.calls()).unwrap();
        let acme = acme.at(&gate);
        counted = acme.total("messages").await;
        let released = answered.load(Ordering::SeqCst);
        assert!(
            released <= counted,
            "seed {seed}: {released} were answered, {counted} are counted"
        );
        assert!(
            counted <= called,
            "seed {seed}: {counted} are counted of {called} that ran"
        );
        assert_eq!(
            acme.used("messages").await,
            counted,
            "seed {seed}: live totals equal the store's"
        );
        assert_eq!(
            acme.total("output_tokens").await,
            2 * counted,
            "seed {seed}: each counted whole"
        );
    }
    eprintln!("{called} ran, {counted} are counted");
    starts.check(Duration::from_secs(1));
    let settings = gate.settings(); // keeps the data dir
    gate.finish().await;
    assert_eq!(settings.stored_events(), counted);
}

/// Clients of every habit, until some more are answered; then `kill -9`.
async fn work_until_killed(
    gate: &mut Tollgate,
    acme: &Tenant,
    answered: &Arc<AtomicI64>,
    more: u64,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let before = answered.load(Ordering::SeqCst);
    let clients: Vec<_> = [Habit::Whole, Habit::Stream, Habit::HangsUp]
        .repeat(3)
        .into_iter()
        .map(|habit| {
            let (acme, answered, stop) = (acme.at(gate), Arc::clone(answered), Arc::clone(&stop));
            tokio::spawn(load(acme, answered, stop, habit))
        })
        .collect();
    let enough = before + 5 + i64::try_from(more).unwrap();
    eventually("requests are answered", || async {
        (answered.load(Ordering::SeqCst) > enough).then_some(())
    })
    .await;
    gate.kill9();
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("no client was refused");
    }
}

/// Starts the server once more, and kills it as soon as it has taken the data dir.
async fn kill_while_it_recovers(gate: &Tollgate) {
    let lock = gate.settings().data_dir().join("tollgate.lock");
    let inode = format!(":{} ", std::fs::metadata(lock).unwrap().ino());
    let mut recovering = gate.settings().command(&["serve"]).spawn().unwrap();
    eventually("the server takes the data dir", || async {
        std::fs::read_to_string("/proc/locks")
            .unwrap()
            .contains(&inode)
            .then_some(())
    })
    .await;
    recovering.kill().unwrap();
    recovering.wait().unwrap();
}

const WAITING: i64 = 100_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_hundred_thousand_events_waiting_it_is_ready_within_five_seconds() {
    let mut gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    acme.complete(json!({})).await.expect_ok();
    let tenant = acme.get("/api/v1/usage").await.json()["tenant_id"].clone();
    assert_eq!(gate.terminate().await, 0);
    let settings = gate.settings();
    let data_dir = settings.data_dir();
    fill(&data_dir.join("cache.redb"), &tenant).await;
    let in_the_way = rusqlite::Connection::open(data_dir.join("tollgate.db")).unwrap();
    in_the_way.busy_timeout(PATIENCE).unwrap();
    in_the_way
        .execute_batch("BEGIN IMMEDIATE; CREATE TABLE in_the_way (x)")
        .unwrap();

    let mut starts = Starts::default();
    let mut expected = WAITING + 1;
    for _ in torture::rounds(3, "FULL_STARTS") {
        gate = starts.again(gate).await;
        assert!(WAITING <= gate.metric("usage_journal_pending", "").await);
        acme.at(&gate).complete(json!({})).await.expect_ok();
        expected += 1;
    }
    starts.check(Duration::from_secs(5));

    in_the_way.execute_batch("ROLLBACK").unwrap();
    drop(in_the_way);
    gate.is_drained().await;
    let acme = acme.at(&gate);
    assert_eq!(acme.used("messages").await, expected);
    assert_eq!(acme.total("messages").await, expected);
    gate.finish().await;
    assert_eq!(settings.stored_events(), expected);
}

/// Puts [`WAITING`] messages of `tenant` into the journal.
async fn fill(path: &Path, tenant: &Value) {
    let tenant_id = tenant.as_str().unwrap().parse().unwrap();
    let now = Clock::System.now();
    let event = || UsageEvent {
        event_id: EventId::new(clock::new_id()),
        request_id: "req-waiting".to_owned(),
        source: Source::Chat,
        tenant_id,
        key_id: None,
        user: String::new(),
        model: Some("gpt-5.1".to_owned()),
        quantities: Quantities::default().with(FeatureKey::Messages, Quantity::ONE),
        estimated: false,
        reason: None,
        price_id: None,
        admitted_at: now,
        recorded_at: now,
    };
    let journal = Journal::open(path, Durability::Process, Clock::System).unwrap();
    for _ in 0..100 {
        let appends = (0..WAITING / 100).map(|_| journal.append(event()));
        for appended in join_all(appends).await {
            appended.unwrap();
        }
    }
    journal.close().await;
}
