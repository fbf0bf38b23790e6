//! Charts, drawn here: bars over time as SVG, in the colours of the style sheet.

use askama::Template;

/// A bar: what it is of, how high it is, and how much of it is of another kind.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    /// Such as `2026-11-29 10:00 UTC: 1,203 requests`.
    pub(super) title: String,
    pub(super) value: u64,
    /// Stands on the bar in another colour.
    pub(super) on_top: u64,
}

/// Bars beside each other, as wide as there is room. Words stay outside of the picture, so that they never shrink.
#[derive(Template)]
#[template(path = "chart.html")]
pub(super) struct Chart {
    /// What the chart shows, in a sentence: for who does not see it.
    label: String,
    /// How high the highest bar is, for people.
    highest: String,
    from: String,
    to: String,
    bars: Vec<Drawn>,
}

struct Drawn {
    title: String,
    x: usize,
    y: u64,
    height: u64,
    top_y: u64,
    top_height: u64,
}

/// Of the picture's own units.
const HEIGHT: u64 = 1_000;

impl Chart {
    /// `highest` says how high a bar of the given height is.
    pub(super) fn new(
        label: String,
        bars: Vec<Bar>,
        (from, to): (String, String),
        highest: impl Fn(u64) -> String,
    ) -> Self {
        let total = |bar: &Bar| bar.value.saturating_add(bar.on_top);
        let top = bars.iter().map(total).max().unwrap_or(0);
        let scaled = |value: u64| {
            let share = u128::from(value) * u128::from(HEIGHT) / u128::from(top.max(1));
            let share = u64::try_from(share).unwrap_or(HEIGHT);
            // What is there is seen, however little it is.
            if value > 0 { share.max(12) } else { 0 }
        };
        let drawn = bars.into_iter().enumerate().map(|(index, bar)| {
            let (height, top_height) = (scaled(bar.value), scaled(bar.on_top));
            let y = HEIGHT - height.min(HEIGHT);
            Drawn {
                title: bar.title,
                x: index * 10,
                y,
                height,
                top_y: y.saturating_sub(top_height),
                top_height,
            }
        });
        Self {
            label,
            highest: highest(top),
            from,
            to,
            bars: drawn.collect(),
        }
    }

    fn width(&self) -> usize {
        self.bars.len().max(1) * 10
    }
}

/// How far a limit is used, in thousandths of the bar's width.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Level {
    pub(super) used: u64,
    pub(super) reserved: u64,
    /// Where the soft limit is; `None` without one, or where it would be at the very end.
    pub(super) soft: Option<u64>,
}

impl Level {
    pub(super) fn of(used: i64, reserved: i64, soft: Option<i64>, whole: Option<i64>) -> Self {
        let Some(whole) = whole.filter(|whole| *whole > 0) else {
            return Self {
                used: if whole == Some(0) { 1_000 } else { 0 },
                ..Self::default()
            };
        };
        let share = |part: i64| {
            let share = i128::from(part.max(0)) * 1_000 / i128::from(whole);
            u64::try_from(share.min(1_000)).unwrap_or(1_000)
        };
        let used = share(used);
        Self {
            used,
            reserved: share(reserved).min(1_000 - used),
            soft: soft.map(share).filter(|soft| *soft < 1_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_bar_fills_the_chart_and_the_least_is_seen() {
        let bar = |value, on_top| Bar {
            title: "<b>".to_owned(),
            value,
            on_top,
        };
        let bars = vec![bar(u64::MAX / 2, 0), bar(1, 0), bar(0, 0)];
        let chart = Chart::new("x".into(), bars, ("a".into(), "b".into()), |top| {
            top.to_string()
        });
        let heights: Vec<u64> = chart.bars.iter().map(|bar| bar.height).collect();
        assert_eq!(heights, [HEIGHT, 12, 0]);
        let text = chart.render().unwrap();
        assert!(
            text.contains("&#60;b&#62;") && !text.contains("<b>"),
            "{text}"
        );
        assert!(!text.contains("style="), "{text}");
    }

    #[test]
    fn a_level_stays_within_its_bar() {
        let level = Level::of(150, 100, Some(160), Some(200));
        assert_eq!(
            (level.used, level.reserved, level.soft),
            (750, 250, Some(800))
        );
        let over = Level::of(500, 1, Some(200), Some(200));
        assert_eq!((over.used, over.reserved, over.soft), (1_000, 0, None));
        assert_eq!(Level::of(5, 0, None, None).used, 0);
        assert_eq!(Level::of(0, 0, None, Some(0)).used, 1_000);
    }
}
