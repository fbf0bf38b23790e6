//! Any history of appends, marks and reopens, beside a model of it.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Events of these tenants, at once.
    Append(Vec<u8>),
    /// Marks this many more as drained; forgets the total of this tenant if it is none of theirs.
    Drain(usize, u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::collection::vec(0_u8..4, 1..6).prop_map(Step::Append),
        3 => (0_usize..9, 0_u8..4).prop_map(|(count, forget)| Step::Drain(count, forget)),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    undrained: Vec<(Seq, UsageEvent)>,
    totals: HashMap<CounterKey, Quantity>,
    drained: u64,
    last: u64,
}

impl Model {
    fn drain(&mut self, count: usize, forget: u8) -> (Seq, Snapshot) {
        let count = count.min(self.undrained.len());
        let mut snapshot = Snapshot::default();
        for (seq, event) in self.undrained.drain(..count) {
            self.drained = seq.0;
            let key = counter(event.tenant_id);
            let total = self.totals.entry(key.clone()).or_default();
            *total = total.plus(event.quantities.of(&FeatureKey::Messages));
            snapshot.changed.retain(|(other, _)| *other != key);
            snapshot.changed.push((key, *total));
        }
        let forgotten = counter(tenant(forget));
        if snapshot.changed.iter().all(|(key, _)| *key != forgotten) {
            self.totals.remove(&forgotten);
            snapshot.removed.push(forgotten);
        }
        (Seq(self.drained), snapshot)
    }

    async fn check(&self, journal: &Journal) {
        assert_eq!(
            journal.read_undrained(usize::MAX).await.as_ref(),
            Ok(&self.undrained)
        );
        let totals: HashMap<_, _> = journal.load_snapshot().await.unwrap().into_iter().collect();
        assert_eq!(totals, self.totals);
        assert_eq!(
            (journal.last_seq(), journal.drained()),
            (Seq(self.last), Seq(self.drained))
        );
        assert_eq!(journal.pending(), self.last - self.drained);
        for tenant in (0..4).map(tenant) {
            let last = self
                .undrained
                .iter()
                .rfind(|(_, event)| event.tenant_id == tenant)
                .map_or(Seq(0), |(seq, _)| *seq);
            assert_eq!(journal.last_seq_of(tenant), last);
        }
    }
}

async fn follow(steps: Vec<Step>) {
    let (_directory, path) = directory();
    let open = || Journal::open(&path, Durability::Process, clock()).unwrap();
    let mut journal = open();
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Append(tenants) => {
                let events: Vec<_> = (model.last + 1..)
                    .zip(tenants)
                    .map(|(number, owner)| event(tenant(owner), number))
                    .collect();
                let seqs = join_all(events.iter().map(|event| journal.append(event.clone()))).await;
                for (seq, event) in seqs.into_iter().zip(events) {
                    model.last += 1;
                    assert_eq!(seq, Ok(Seq(model.last)));
                    model.undrained.push((Seq(model.last), event));
                }
            }
            Step::Drain(count, forget) => {
                let (upto, snapshot) = model.drain(count, forget);
                assert_eq!(journal.mark_drained(upto, snapshot).await, Ok(()));
            }
            Step::Reopen => {
                journal.close().await;
                journal = open();
            }
        }
        model.check(&journal).await;
    }
    journal.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn snapshot_and_undrained_events_are_always_the_totals(steps in proptest::collection::vec(step(), 1..25)) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(follow(steps));
    }
}
