//! One line a figure: `row N | what | figure | goal | met`.

use std::io::{self, Write as _};

/// What a figure has to be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// Prints figures, and counts those that miss their goal.
#[derive(Default)]
pub(crate) struct Report {
    missed: usize,
}

impl Report {
    /// Prints a figure of design.md §6; `unit` follows the number.
    pub(crate) fn figure(
        &mut self,
        row: &str,
        what: &str,
        figure: f64,
        unit: &str,
        goal: Goal,
    ) -> io::Result<()> {
        let shown = |number: f64| format!("{}{unit}", number_text(number));
        let (goal_text, met) = match goal {
            Goal::AtMost(most) => (format!("≤ {}", shown(most)), figure <= most),
            Goal::AtLeast(least) => (format!("≥ {}", shown(least)), least <= figure),
        };
        self.missed += usize::from(!met);
        let verdict = if met { "met" } else { "NOT met" };
        note(&format!(
            "row {row} | {what} | {} | {goal_text} | {verdict}",
            shown(figure)
        ))
    }

    pub(crate) fn missed(&self) -> usize {
        self.missed
    }
}

/// Prints a line that is no figure.
pub(crate) fn note(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Three digits that matter, and whole numbers from 100 on.
fn number_text(number: f64) -> String {
    let digits = match number.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{number:.digits$}")
}

pub(crate) fn median(numbers: &[f64]) -> f64 {
    quantile(numbers, 0.5)
}

/// The number below which the given part of `numbers` lies; 0 of none.
pub(crate) fn quantile(numbers: &[f64], part: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a list of some thousand numbers"
    )]
    let at = (last as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}
