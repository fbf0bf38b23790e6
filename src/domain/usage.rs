//! What was used: quantities, and the events that record them.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    feature::FeatureKey,
    ids::{EventId, KeyId, TenantId},
    quantity::Quantity,
    time::Timestamp,
};

/// Quantities per feature, zeros left out: those of the built-in features in their order, then an operator's own in
/// the order added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quantities {
    /// At the place of each in [`FeatureKey::BUILT_IN`]; looked up without a search.
    built_in: [Quantity; FeatureKey::BUILT_IN.len()],
    named: Vec<(FeatureKey, Quantity)>,
}

impl Quantities {
    /// Adds to what is there of `feature`.
    pub fn add(&mut self, feature: FeatureKey, quantity: Quantity) {
        if let Some(place) = feature.built_in_place() {
            self.built_in[place] = self.built_in[place].plus(quantity);
            return;
        }
        match self.named.iter().position(|(key, _)| *key == feature) {
            Some(place) => {
                let sum = &mut self.named[place].1;
                *sum = sum.plus(quantity);
                if *sum == Quantity::ZERO {
                    self.named.remove(place);
                }
            }
            None if quantity == Quantity::ZERO => {}
            None => self.named.push((feature, quantity)),
        }
    }

    #[must_use]
    pub fn with(mut self, feature: FeatureKey, quantity: Quantity) -> Self {
        self.add(feature, quantity);
        self
    }

    /// How much of `feature`; zero if it is not there.
    #[must_use]
    pub fn of(&self, feature: &FeatureKey) -> Quantity {
        match feature.built_in_place() {
            Some(place) => self.built_in[place],
            None => self
                .named
                .iter()
                .find(|(key, _)| key == feature)
                .map_or(Quantity::ZERO, |(_, quantity)| *quantity),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&FeatureKey, Quantity)> {
        let built_in = FeatureKey::BUILT_IN.iter().zip(self.built_in);
        built_in
            .filter(|(_, quantity)| *quantity != Quantity::ZERO)
            .chain(self.named())
    }

    /// Those of an operator's own features.
    pub fn named(&self) -> impl ExactSizeIterator<Item = (&FeatureKey, Quantity)> {
        self.named.iter().map(|(key, quantity)| (key, *quantity))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.built_in == [Quantity::ZERO; FeatureKey::BUILT_IN.len()] && self.named.is_empty()
    }
}

impl FromIterator<(FeatureKey, Quantity)> for Quantities {
    fn from_iter<I: IntoIterator<Item = (FeatureKey, Quantity)>>(pairs: I) -> Self {
        let mut quantities = Self::default();
        for (feature, quantity) in pairs {
            quantities.add(feature, quantity);
        }
        quantities
    }
}

/// Where an event came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A request that went through tollgate to a model.
    Chat,
    Reservation,
    Cloudevent,
    Manual,
    Correction,
}

impl Source {
    pub const ALL: [Self; 5] = [
        Self::Chat,
        Self::Reservation,
        Self::Cloudevent,
        Self::Manual,
        Self::Correction,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Reservation => "reservation",
            Self::Cloudevent => "cloudevent",
            Self::Manual => "manual",
            Self::Correction => "correction",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One settled request; unique by id; never changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageEvent {
    pub event_id: EventId,
    /// The `X-Request-Id` of the request that caused it.
    pub request_id: String,
    pub source: Source,
    pub tenant_id: TenantId,
    pub key_id: Option<KeyId>,
    /// The end user; `""` if the request named none.
    pub user: String,
    pub model: Option<String>,
    pub quantities: Quantities,
    /// Counted with the tokenizer, since the provider reported nothing usable.
    pub estimated: bool,
    pub reason: Option<String>,
    /// The price entry that its cost was taken from.
    pub price_id: Option<String>,
    /// Decides the windows that it counts in.
    pub admitted_at: Timestamp,
    pub recorded_at: Timestamp,
}

/// The namespace of ids made from keys (RFC 9562 §5.5): one of tollgate's own, drawn at random once.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1c_95b2_2f0e_4d53_9a3f_0a0d_5f7c_11e4);

/// The id of the event that a key stands for (a version 5 UUID): the same key of the same tenant finds itself.
#[must_use]
pub fn event_id_of(tenant: TenantId, source: Source, key: &str) -> EventId {
    let name = format!("{tenant}\0{source}\0{key}");
    EventId::new(Uuid::new_v5(&NAMESPACE, name.as_bytes()))
}

/// Token counts of one request, as far as known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TokenUsage {
    /// All input, what was cached included.
    pub input_tokens: Quantity,
    /// All output, reasoning included.
    pub output_tokens: Quantity,
    pub cached_input_tokens: Quantity,
    pub cache_write_input_tokens: Quantity,
    pub reasoning_output_tokens: Quantity,
}
