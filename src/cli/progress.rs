//! A bar for long work, on a terminal only.

use std::sync::{Arc, OnceLock};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::control::{Progress, Step};

/// The bar of one command; drawn on stderr once there is a first step, wiped away when the value is dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown(Arc<OnceLock<ProgressBar>>);

impl Shown {
    pub(super) fn progress(&self) -> Progress {
        let bar = Arc::clone(&self.0);
        Arc::new(move |step| show(bar.get_or_init(new_bar), step))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = self.0.get() {
            bar.finish_and_clear();
        }
    }
}

fn new_bar() -> ProgressBar {
    // Nothing is drawn where stderr is no terminal.
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} {eta}")
        .expect("a template that a test has seen");
    bar.with_style(style)
}

fn show(bar: &ProgressBar, step: Step) {
    bar.set_length(step.total);
    bar.set_position(step.done);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_can_be_made_and_moved() {
        let shown = Shown::default();
        let progress = shown.progress();
        progress(Step { done: 1, total: 3 });
        assert_eq!(shown.0.get().unwrap().position(), 1);
    }
}
