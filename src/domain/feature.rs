//! What is counted: the four features tollgate meters itself, and any that an operator defines.

use std::{cmp::Ordering, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The key of a feature; orders as messages, input, output, cost, then by name (interface.md §3, Errors).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FeatureKey {
    Messages,
    InputTokens,
    OutputTokens,
    Cost,
    /// An operator's own feature. Never one of the names above: only [`FeatureKey::from_str`] makes it.
    Named(Arc<str>),
}

impl FeatureKey {
    /// Those that tollgate meters by itself, in their order.
    pub const BUILT_IN: &[Self; 4] = &[
        Self::Messages,
        Self::InputTokens,
        Self::OutputTokens,
        Self::Cost,
    ];

    /// Its place in [`BUILT_IN`](Self::BUILT_IN); `None` for an operator's own.
    #[must_use]
    pub const fn built_in_place(&self) -> Option<usize> {
        match self {
            Self::Messages => Some(0),
            Self::InputTokens => Some(1),
            Self::OutputTokens => Some(2),
            Self::Cost => Some(3),
            Self::Named(_) => None,
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Messages => "messages",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::Cost => "cost",
            Self::Named(name) => name,
        }
    }

    /// The unit that a feature has unless its plan names another.
    #[must_use]
    pub fn default_unit(&self) -> &'static str {
        match self {
            Self::Messages => "requests",
            Self::InputTokens | Self::OutputTokens => "tokens",
            Self::Cost => "usd_micros",
            Self::Named(_) => "units",
        }
    }

    /// The name shown to people unless the plan has another: `input_tokens` → `Input tokens`.
    #[must_use]
    pub fn default_display_name(&self) -> String {
        let spaced = self.as_str().replace(['_', '.', '-'], " ");
        let mut letters = spaced.chars();
        letters.next().map_or(spaced.clone(), |first| {
            first.to_uppercase().chain(letters).collect()
        })
    }

    /// Whether tollgate meters it by itself.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        !matches!(self, Self::Named(_))
    }

    fn rank(&self) -> usize {
        let after_them = Self::BUILT_IN.len();
        self.built_in_place().unwrap_or(after_them)
    }
}

impl Ord for FeatureKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank()
            .cmp(&other.rank())
            .then_with(|| self.as_str().cmp(other.as_str()))
    }
}

impl PartialOrd for FeatureKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for FeatureKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' is not a feature key; write 1-64 of a-z, 0-9, '_', '.', '-', beginning with a letter or digit, such as messages"
)]
pub struct InvalidFeatureKey(String);

impl FromStr for FeatureKey {
    type Err = InvalidFeatureKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "messages" => Ok(Self::Messages),
            "input_tokens" => Ok(Self::InputTokens),
            "output_tokens" => Ok(Self::OutputTokens),
            "cost" => Ok(Self::Cost),
            name if super::names::is_feature_key(name) => Ok(Self::Named(name.into())),
            _ => Err(InvalidFeatureKey(text.to_owned())),
        }
    }
}

impl Serialize for FeatureKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for FeatureKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}
