//! One counter: what is settled and reserved of one feature by one subject in one window.
//!
//! A counter's settled value is *exact by sequence*: it starts from a sum that covers the journal up to `base_seq`,
//! and adds an event once, if the event lies after that. So a settle may come in any order, and before, during or
//! after a load.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::LedgerError;
use crate::{
    domain::{
        feature::FeatureKey,
        ids::TenantId,
        limit::{Standing, Subject},
        quantity::{Quantity, Sum},
        window::Window,
    },
    store::usage::{CounterOf, Seq},
};

/// The name of a counter among those of all tenants; a row of the journal's snapshot is kept under it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CounterKey {
    pub tenant: TenantId,
    pub subject: Subject,
    pub feature: FeatureKey,
    pub window: Window,
}

impl CounterKey {
    pub(super) fn new(tenant: TenantId, counter: CounterOf) -> Self {
        Self {
            tenant,
            subject: counter.subject,
            feature: counter.feature,
            window: counter.window,
        }
    }

    /// Among those of its tenant.
    #[must_use]
    pub fn counter(&self) -> CounterOf {
        CounterOf {
            subject: self.subject.clone(),
            feature: self.feature.clone(),
            window: self.window,
        }
    }
}

/// Tells those who wait for a load that it ended: by an error, or, when the sender is gone, that they should look
/// again (it was loaded, or its loader was cancelled and somebody else must do it).
pub(super) type LoadEnd = watch::Receiver<Option<LedgerError>>;

/// What comes in while a counter's sum is being read.
#[derive(Debug)]
pub(super) struct Loading {
    end: LoadEnd,
    settled: Vec<(Seq, Quantity)>,
    drained: Vec<(Seq, Quantity)>,
}

impl Loading {
    pub(super) fn new(end: LoadEnd) -> Box<Self> {
        Box::new(Self {
            end,
            settled: Vec::new(),
            drained: Vec::new(),
        })
    }

    pub(super) fn end(&self) -> LoadEnd {
        self.end.clone()
    }
}

#[derive(Debug)]
pub(super) struct Counter {
    pub(super) feature: FeatureKey,
    pub(super) window: Window,
    /// Granted to the open holds that count here.
    pub(super) reserved: Sum,
    /// The hard limit it was last judged by, for usage that comes without limits.
    pub(super) hard: Option<Quantity>,
    settled: Sum,
    /// The value over all events up to the drained position, or up to `base_seq` if that is later.
    drained: Sum,
    /// The first value covered the journal up to here.
    base_seq: Seq,
    /// `Some`: the values are not known yet.
    loading: Option<Box<Loading>>,
    /// `drained` differs from the snapshot's row.
    pub(super) is_dirty: bool,
    /// The snapshot may hold a row of it.
    pub(super) is_saved: bool,
}

impl Counter {
    /// A counter that nothing has been settled in.
    pub(super) fn zero(feature: FeatureKey, window: Window) -> Self {
        Self {
            feature,
            window,
            reserved: Sum::default(),
            hard: None,
            settled: Sum::default(),
            drained: Sum::default(),
            base_seq: Seq::default(),
            loading: None,
            is_dirty: false,
            is_saved: false,
        }
    }

    pub(super) fn loading(feature: FeatureKey, window: Window, end: LoadEnd) -> Self {
        Self {
            loading: Some(Loading::new(end)),
            ..Self::zero(feature, window)
        }
    }

    /// A counter from its row of the snapshot, which covers the journal up to `covered`.
    pub(super) fn saved(
        feature: FeatureKey,
        window: Window,
        value: Quantity,
        covered: Seq,
    ) -> Self {
        Self {
            settled: value.into(),
            drained: value.into(),
            base_seq: covered,
            is_saved: true,
            ..Self::zero(feature, window)
        }
    }

    pub(super) fn is_of(&self, feature: &FeatureKey, window: Window) -> bool {
        self.feature == *feature && self.window == window
    }

    pub(super) fn load_end(&self) -> Option<LoadEnd> {
        self.loading.as_ref().map(|loading| loading.end())
    }

    pub(super) fn is_loading(&self) -> bool {
        self.loading.is_some()
    }

    /// Whether it can be dropped: a load gives the same values again.
    pub(super) fn is_idle(&self) -> bool {
        self.loading.is_none() && self.reserved == Sum::default()
    }

    pub(super) fn settled(&self) -> Quantity {
        self.settled.quantity()
    }

    pub(super) fn standing(&self) -> Standing {
        Standing {
            settled: self.settled.quantity(),
            reserved: self.reserved.quantity(),
        }
    }

    /// The value for the snapshot, unless it covers events after `upto`: those will be added to the row again.
    pub(super) fn drained_at(&self, upto: Seq) -> Option<Quantity> {
        (self.loading.is_none() && self.base_seq <= upto).then(|| self.drained.quantity())
    }

    pub(super) fn settle(&mut self, seq: Seq, used: Quantity) {
        match &mut self.loading {
            Some(loading) => loading.settled.push((seq, used)),
            None if seq > self.base_seq => self.settled.add(used),
            None => {} // in the sum it started from
        }
    }

    /// Notes that an event is in the store now; true if that makes the snapshot's row out of date for the first time.
    pub(super) fn drain(&mut self, seq: Seq, used: Quantity) -> bool {
        match &mut self.loading {
            Some(loading) => {
                loading.drained.push((seq, used));
                false
            }
            None if seq > self.base_seq => {
                self.drained.add(used);
                !std::mem::replace(&mut self.is_dirty, true)
            }
            None => false,
        }
    }

    /// Ends a load: `base` is the sum of all events up to `covered`; later ones came in meanwhile.
    pub(super) fn install(&mut self, base: Quantity, covered: Seq) {
        let Some(loading) = self.loading.take() else {
            return;
        };
        let since = |events: &[(Seq, Quantity)]| {
            let mut sum = Sum::from(base);
            for &(_, used) in events.iter().filter(|(seq, _)| *seq > covered) {
                sum.add(used);
            }
            sum
        };
        self.settled = since(&loading.settled);
        self.drained = since(&loading.drained);
        self.base_seq = covered;
        self.is_dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::time::Timestamp;

    fn window() -> Window {
        Window::new(Timestamp::EPOCH, Timestamp::NEVER).unwrap()
    }

    proptest! {
        #[test]
        fn an_event_counts_once_wherever_it_falls_around_a_load(
            events in proptest::collection::vec(-5_i64..50, 1..20),
            covered in 0_usize..20,
            order in any::<prop::sample::Index>(),
            drained_before in 0_usize..20,
            installed_after in 0_usize..20,
        ) {
            let covered = covered.min(events.len());
            let base: i64 = events[..covered].iter().sum();
            let seq = |index: usize| Seq(u64::try_from(index).unwrap() + 1);
            let (_sender, end) = watch::channel(None);
            let mut counter = Counter::loading(FeatureKey::Messages, window(), end);

            // Settles come in any order, the load ends anywhere between them.
            let first = order.index(events.len());
            for step in 0..events.len() {
                if step == installed_after {
                    counter.install(Quantity::new(base), Seq(u64::try_from(covered).unwrap()));
                }
                let index = (first + step) % events.len();
                counter.settle(seq(index), Quantity::new(events[index]));
            }
            for (index, &used) in events.iter().enumerate() {
                if index == drained_before {
                    counter.install(Quantity::new(base), Seq(u64::try_from(covered).unwrap()));
                }
                counter.drain(seq(index), Quantity::new(used));
            }
            counter.install(Quantity::new(base), Seq(u64::try_from(covered).unwrap()));

            let total = Quantity::new(events.iter().sum());
            prop_assert_eq!(counter.settled(), total);
            prop_assert_eq!(counter.drained_at(Seq(u64::MAX)), Some(total));
        }
    }
}
