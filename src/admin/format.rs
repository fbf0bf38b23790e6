//! Numbers and times as people read them, with the exact value at hand: in the tooltip, and for machines in `datetime`.

use std::{borrow::Borrow, fmt};

use askama::filters::HtmlSafe;

use crate::{
    domain::{
        quantity::Quantity,
        time::{MICROS_PER_SECOND, Timestamp},
    },
    services::usage_view::Percent,
};

/// The unit of money, in millionths of a dollar.
const MONEY: &str = "usd_micros";

/// A quantity with its unit: `1.2 M` with the title `1,203,441 tokens`; money as dollars.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amount<'a> {
    quantity: Quantity,
    unit: &'a str,
}

impl HtmlSafe for Amount<'_> {}

pub(super) fn amount(quantity: impl Borrow<Quantity>, unit: &str) -> Amount<'_> {
    let quantity = *quantity.borrow();
    Amount { quantity, unit }
}

impl Amount<'_> {
    /// As plain text, exact: `1,203,441 tokens`, `$1.234567`.
    pub(super) fn exact(&self) -> String {
        if self.unit == MONEY {
            return dollars(self.quantity.get());
        }
        let unit = match (self.quantity.get(), self.unit.strip_suffix('s')) {
            (1, Some(single)) => single,
            _ => self.unit,
        };
        format!("{} {unit}", grouped(self.quantity.get()))
    }

    /// As plain text, short: `1.2 M`, `$1.23`.
    pub(super) fn short(&self) -> String {
        if self.unit == MONEY {
            return short_dollars(self.quantity.get());
        }
        short(self.quantity.get())
    }
}

impl fmt::Display for Amount<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (exact, short) = (self.exact(), self.short());
        write!(
            f,
            "<span class=\"number\" title=\"{}\">{}</span>",
            escaped(&exact),
            escaped(&short)
        )
    }
}

/// The unit as it stands behind a number that [`Amount`] shows: nothing for money, whose sign says it.
pub(super) fn unit_word(unit: &str) -> &str {
    if unit == MONEY { "" } else { unit }
}

/// As above where a unit stands alone.
pub(super) fn unit_name(unit: &str) -> &str {
    if unit == MONEY { "dollars" } else { unit }
}

/// A plain count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count(u64);

impl HtmlSafe for Count {}

pub(super) fn count(count: impl Borrow<u64>) -> Count {
    Count(*count.borrow())
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = i64::try_from(self.0).unwrap_or(i64::MAX);
        let (exact, short) = (grouped(count), short(count));
        write!(f, "<span class=\"number\" title=\"{exact}\">{short}</span>")
    }
}

/// A count with what is counted, which is given in the plural.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    count: Count,
    what: &'static str,
}

impl HtmlSafe for Counted {}

/// `count` of `what`: `1 tenant`, `12.3 K tenants`.
pub(super) fn counted(of: impl Borrow<u64>, what: &'static str) -> Counted {
    let count = count(of);
    Counted { count, what }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.count.0, self.what.strip_suffix('s')) {
            (1, Some(single)) => single,
            _ => self.what,
        };
        write!(f, "{} {what}", self.count)
    }
}

/// `87.5 %`; a dash where there is none.
pub(super) fn percent(percent: Option<Percent>) -> String {
    let Some(Percent(hundredths)) = percent else {
        return "–".to_owned();
    };
    match (hundredths / 100, hundredths % 100) {
        (0, 1..10) => "<0.1 %".to_owned(),
        (whole @ 100.., _) | (whole, 0) => format!("{} %", grouped(whole)),
        (whole, part) => format!("{whole}.{} %", part / 10),
    }
}

/// How a sum changed against the one before: `+12 %`, `−3 %`, `×4.1`, `same`; `None` where there was nothing before.
pub(super) fn change(now: Quantity, before: Quantity) -> Option<String> {
    let (now, before) = (i128::from(now.get()), i128::from(before.get()));
    if before <= 0 {
        return None;
    }
    let permille = (now - before) * 1000 / before;
    Some(match permille {
        -4..=4 => "same".to_owned(),
        5..3000 => format!("+{} %", (permille + 5) / 10),
        3000.. => {
            let tenths = now * 10 / before;
            format!("×{}.{}", tenths / 10, tenths % 10)
        }
        _ => format!("−{} %", (5 - permille) / 10),
    })
}

/// An instant: `in 2 d 3 h` with the exact time in the title.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    at: Timestamp,
    now: Timestamp,
}

impl HtmlSafe for Moment {}

/// Templates have references, the rest values: both are taken.
pub(super) fn moment(at: impl Borrow<Timestamp>, now: impl Borrow<Timestamp>) -> Moment {
    let (at, now) = (*at.borrow(), *now.borrow());
    Moment { at, now }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, exact) = (self.at.to_whole_second(), exact_time(self.at));
        let relative = relative(self.at, self.now);
        write!(
            f,
            "<time datetime=\"{at}\" title=\"{exact}\">{relative}</time>"
        )
    }
}

/// `2026-11-29 03:34:02 UTC`.
pub(super) fn exact_time(at: impl Borrow<Timestamp>) -> String {
    let at = *at.borrow();
    let text = at.to_whole_second().to_string();
    match text.strip_suffix('Z').and_then(|text| text.split_once('T')) {
        Some((date, time)) => format!("{date} {time} UTC"),
        None => text,
    }
}

/// `2026-11-29`.
pub(super) fn date(at: Timestamp) -> String {
    let text = at.to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

/// `14:05` of the UTC day.
pub(super) fn hour(at: Timestamp) -> String {
    let text = at.to_whole_second().to_string();
    let time = text.split('T').nth(1).unwrap_or_default();
    time.get(..5).unwrap_or_default().to_owned()
}

fn relative(at: Timestamp, now: Timestamp) -> String {
    if at == Timestamp::NEVER {
        return "never".to_owned();
    }
    let seconds = (at.micros().saturating_sub(now.micros())) / MICROS_PER_SECOND;
    match seconds {
        -4..=4 => "now".to_owned(),
        5.. => format!("in {}", span(seconds)),
        _ => format!("{} ago", span(-seconds)),
    }
}

/// A number of seconds in its two largest units.
fn span(seconds: i64) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let index = UNITS
        .iter()
        .position(|(length, _)| seconds >= *length)
        .unwrap_or(3);
    let (length, unit) = UNITS[index];
    let (whole, rest) = (seconds / length, seconds % length);
    // Beyond ten of a unit the next smaller one is noise.
    let next = UNITS.get(index + 1).filter(|_| whole < 10);
    match next.map(|(length, unit)| (rest / length, unit)) {
        Some((part @ 1.., unit_of_part)) => format!("{whole} {unit} {part} {unit_of_part}"),
        _ => format!("{whole} {unit}"),
    }
}

/// `1,203,441`.
pub(super) fn grouped(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0 {
        format!("−{text}")
    } else {
        text
    }
}

/// `950`, `9,999`, `12.3 K`, `1.2 M`: never rounded up, so that what is used does not look like its limit.
fn short(value: i64) -> String {
    const STEPS: [(u64, &str); 4] = [
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
        (1_000, "K"),
    ];
    let size = value.unsigned_abs();
    let sign = if value < 0 { "−" } else { "" };
    let step = STEPS.iter().find(|(step, _)| size >= *step);
    match step {
        Some((step, letter)) if size >= 10_000 => {
            let tenths = size / (step / 10);
            match (tenths / 10, tenths % 10) {
                (whole @ 100.., _) | (whole, 0) => format!("{sign}{whole} {letter}"),
                (whole, part) => format!("{sign}{whole}.{part} {letter}"),
            }
        }
        _ => grouped(value),
    }
}

/// `$1,234.567890` without zeros at its end beyond the cents.
fn dollars(micros: i64) -> String {
    let size = micros.unsigned_abs();
    let whole = grouped(i64::try_from(size / 1_000_000).unwrap_or(i64::MAX));
    let part = format!("{:06}", size % 1_000_000);
    let kept = part.trim_end_matches('0').len().max(2);
    let sign = if micros < 0 { "−" } else { "" };
    format!("{sign}${whole}.{}", &part[..kept])
}

fn short_dollars(micros: i64) -> String {
    let size = micros.unsigned_abs();
    let sign = if micros < 0 { "−" } else { "" };
    match size {
        0 => "$0".to_owned(),
        1..1_000_000 => {
            let tenths_of_mills = size / 100;
            if tenths_of_mills == 0 {
                format!("{sign}<$0.0001")
            } else {
                format!("{sign}$0.{tenths_of_mills:04}")
            }
        }
        1_000_000..10_000_000_000 => {
            let cents = size / 10_000;
            let whole = grouped(i64::try_from(cents / 100).unwrap_or(i64::MAX));
            format!("{sign}${whole}.{:02}", cents % 100)
        }
        _ => format!(
            "{sign}${}",
            short(i64::try_from(size / 1_000_000).unwrap_or(i64::MAX))
        ),
    }
}

/// For an attribute's value.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: i64, unit: &str) -> (String, String) {
        let amount = amount(Quantity::new(value), unit);
        (amount.short(), amount.exact())
    }

    #[test]
    fn quantities_are_short_and_exact() {
        for (value, short, exact) in [
            (0, "0", "0 tokens"),
            (1, "1", "1 token"),
            (999, "999", "999 tokens"),
            (9_999, "9,999", "9,999 tokens"),
            (12_345, "12.3 K", "12,345 tokens"),
            (199_999, "199 K", "199,999 tokens"),
            (1_203_441, "1.2 M", "1,203,441 tokens"),
            (2_000_000, "2 M", "2,000,000 tokens"),
            (
                9_007_199_254_740_991,
                "9,007 T",
                "9,007,199,254,740,991 tokens",
            ),
            (-12_345, "−12.3 K", "−12,345 tokens"),
        ] {
            let shown = shown(value, "tokens");
            let short = short.replace("9,007", "9007");
            assert_eq!(shown, (short, exact.to_owned()));
        }
    }

    #[test]
    fn one_is_not_many() {
        let shown = |count: u64| counted(count, "tenants").to_string();
        assert!(shown(1).ends_with("> tenant") && shown(0).ends_with("> tenants"));
    }

    #[test]
    fn money_is_dollars() {
        for (value, short, exact) in [
            (0, "$0", "$0.00"),
            (65, "<$0.0001", "$0.000065"),
            (12_345, "$0.0123", "$0.012345"),
            (1_234_567, "$1.23", "$1.234567"),
            (1_234_500_000, "$1,234.50", "$1,234.50"),
            (12_345_000_000, "$12.3 K", "$12,345.00"),
            (-1_500_000, "−$1.50", "−$1.50"),
        ] {
            assert_eq!(shown(value, MONEY), (short.to_owned(), exact.to_owned()));
        }
    }

    #[test]
    fn a_title_is_escaped() {
        let text = amount(Quantity::new(5), "\"<b>").to_string();
        assert!(text.contains("title=\"5 &quot;&lt;b&gt;\""), "{text}");
        let text = amount(Quantity::new(65), MONEY).to_string();
        assert!(text.contains(">&lt;$0.0001</span>"), "{text}");
    }

    #[test]
    fn times_are_relative_with_the_exact_one_at_hand() {
        let now: Timestamp = "2026-11-29T12:00:00Z".parse().unwrap();
        for (at, text) in [
            ("2026-11-29T12:00:03Z", "now"),
            ("2026-11-29T11:59:30Z", "30 s ago"),
            ("2026-11-29T14:05:00Z", "in 2 h 5 min"),
            ("2026-12-01T15:00:00Z", "in 2 d 3 h"),
            ("2026-10-01T00:00:00Z", "59 d ago"),
        ] {
            assert_eq!(relative(at.parse().unwrap(), now), text);
        }
        assert_eq!(
            moment(now, now).to_string(),
            "<time datetime=\"2026-11-29T12:00:00Z\" title=\"2026-11-29 12:00:00 UTC\">now</time>"
        );
        assert_eq!(relative(Timestamp::NEVER, now), "never");
    }

    #[test]
    fn shares_and_changes_are_rounded_for_reading() {
        for (hundredths, text) in [
            (0, "0 %"),
            (8_750, "87.5 %"),
            (5, "<0.1 %"),
            (123_456, "1,234 %"),
        ] {
            assert_eq!(percent(Some(Percent(hundredths))), text);
        }
        assert_eq!(percent(None), "–");
        for (now, before, text) in [
            (112, 100, Some("+12 %")),
            (97, 100, Some("−3 %")),
            (100, 100, Some("same")),
            (410, 100, Some("×4.1")),
            (5, 0, None),
        ] {
            let shown = change(Quantity::new(now), Quantity::new(before));
            assert_eq!(shown.as_deref(), text);
        }
    }
}
