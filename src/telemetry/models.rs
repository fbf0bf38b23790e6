//! Names of models as labels: a client chooses them, so their number is bounded.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
};

use wildmatch::WildMatch;

/// So many names of models get a label of their own.
const MOST: usize = 50;
/// So many of them may be names that nobody listed: listed names always find room.
const MOST_UNLISTED: usize = 20;
const LONGEST_BYTES: usize = 128;
/// The label of all the rest.
pub(super) const OTHER: &str = "other";

/// Decides which names of models become labels: first come, first served, but for the room kept for listed ones.
#[derive(Default)]
pub(super) struct ModelLabels(RwLock<Names>);

#[derive(Default)]
struct Names {
    /// Names and patterns of the price list, names of the upstream's `/models`.
    listed: Vec<WildMatch>,
    given: HashSet<Arc<str>>,
    unlisted: usize,
}

impl ModelLabels {
    pub(super) fn list(&self, patterns: impl IntoIterator<Item = String>) {
        let patterns: Vec<WildMatch> = patterns
            .into_iter()
            .map(|pattern| WildMatch::new(&pattern))
            .collect();
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .listed = patterns;
    }

    pub(super) fn label(&self, model: &str) -> Arc<str> {
        if let Some(label) = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .find(model)
        {
            return label;
        }
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .give(model)
    }
}

impl Names {
    /// The label of a name that has one, or can't have one any more.
    fn find(&self, model: &str) -> Option<Arc<str>> {
        if let Some(label) = self.given.get(model) {
            return Some(Arc::clone(label));
        }
        (self.given.len() >= MOST || !is_printable(model)).then(|| OTHER.into())
    }

    fn give(&mut self, model: &str) -> Arc<str> {
        if let Some(label) = self.find(model) {
            return label; // another request was faster
        }
        let is_listed = self.listed.iter().any(|pattern| pattern.matches(model));
        if !is_listed {
            if self.unlisted >= MOST_UNLISTED {
                return OTHER.into();
            }
            self.unlisted += 1;
        }
        let label: Arc<str> = model.into();
        self.given.insert(Arc::clone(&label));
        label
    }
}

fn is_printable(model: &str) -> bool {
    !model.is_empty() && model.len() <= LONGEST_BYTES && !model.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_models_find_room_whatever_names_clients_invent() {
        let labels = ModelLabels::default();
        labels.list(["gpt-5.1*".to_owned()]);
        let invented: HashSet<Arc<str>> = (0..1_000)
            .map(|i| labels.label(&format!("made-up-{i}")))
            .collect();
        assert_eq!(invented.len(), MOST_UNLISTED + 1, "the rest is 'other'");
        assert_eq!(&*labels.label("gpt-5.1-mini"), "gpt-5.1-mini");
        assert_eq!(
            &*labels.label("made-up-0"),
            "made-up-0",
            "a label once given stays"
        );
    }

    #[test]
    fn there_are_never_more_than_fifty() {
        let labels = ModelLabels::default();
        labels.list(["*".to_owned()]);
        let given: HashSet<Arc<str>> = (0..1_000).map(|i| labels.label(&format!("m{i}"))).collect();
        assert_eq!(given.len(), MOST + 1, "fifty and 'other'");
    }

    #[test]
    fn a_name_that_is_none_is_other() {
        let labels = ModelLabels::default();
        for model in ["", "a\nb", &"x".repeat(129)] {
            assert_eq!(&*labels.label(model), OTHER, "{model:?}");
        }
    }
}
