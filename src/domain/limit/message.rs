//! What a refusal says of the limit that it broke.

use std::fmt::Write as _;

use super::{LimitType, Scope, Violation};
use crate::domain::{feature::FeatureKey, quantity::Quantity, window::WindowKind};

impl Violation {
    /// Which limit is broken, how much of it is used, and when it resets: a sentence for people, as answers and
    /// explanations tell it.
    #[must_use]
    pub fn message(&self, plan_code: &str) -> String {
        let limit = &self.limit;
        let mut text = if limit.is_own {
            "The tenant's own limit".to_owned()
        } else {
            format!("Plan '{plan_code}'")
        };
        let is_raised = self.limit_type == LimitType::HardLimit && limit.granted > Quantity::ZERO;
        text.push_str(if is_raised {
            " with grants allows "
        } else {
            " allows "
        });
        text.push_str(&amount(self.limit_value, &limit.feature, &limit.unit));
        text.push(' ');
        text.push_str(per(limit.kind));
        text.push_str(match limit.scope {
            Scope::Tenant => "",
            Scope::Key => " for each API key",
            Scope::User => " for each end user",
        });
        if self.limit_type == LimitType::SoftLimit {
            text.push_str(" (a soft limit, which blocks here)");
        }
        if self.is_larger_than_limit() {
            let _ = write!(
                text,
                "; this request needs {}, more than the whole limit, and can never fit.",
                self.requested
            );
            return text;
        }
        let _ = write!(text, "; {} {} used", self.settled, are(self.settled));
        let is_spent = self.settled >= self.limit_value;
        if !is_spent && self.reserved > Quantity::ZERO {
            let reserved = self.reserved;
            let _ = write!(
                text,
                ", {reserved} {} reserved by requests in flight",
                are(reserved)
            );
        }
        if !is_spent && self.requested > Quantity::ONE {
            let _ = write!(text, ", this request needs {}", self.requested);
        }
        text.push('.');
        if self.is_by_reservations_alone() {
            text.push_str(" Try again in a moment.");
        } else if let Some(end) = limit.window.resets_at() {
            let _ = write!(text, " Resets {end}.");
        } else {
            text.push_str(" It never resets.");
        }
        text
    }
}

/// `200 messages`, `1 input token`, `5 pages of 'ocr'`.
fn amount(quantity: Quantity, feature: &FeatureKey, unit: &str) -> String {
    let s = if quantity == Quantity::ONE { "" } else { "s" };
    match feature {
        FeatureKey::Messages => format!("{quantity} message{s}"),
        FeatureKey::InputTokens => format!("{quantity} input token{s}"),
        FeatureKey::OutputTokens => format!("{quantity} output token{s}"),
        FeatureKey::Cost => format!("a cost of {quantity} micro-dollar{s}"),
        FeatureKey::Named(name) => format!("{quantity} {unit} of '{name}'"),
    }
}

fn are(quantity: Quantity) -> &'static str {
    if quantity == Quantity::ONE {
        "is"
    } else {
        "are"
    }
}

fn per(kind: WindowKind) -> &'static str {
    match kind {
        WindowKind::Minute => "per minute",
        WindowKind::Hour => "per hour",
        WindowKind::Day => "per day",
        WindowKind::Week => "per week",
        WindowKind::Month => "per month",
        WindowKind::Period => "per period",
        WindowKind::Lifetime => "in all",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        limit::{ActiveLimit, LimitState, SoftLimitMode},
        time::Timestamp,
        window::Window,
    };

    #[test]
    fn what_allows_it_is_the_plan_or_the_tenants_own_limit_with_grants() {
        let told = |is_own, granted, mode, settled| {
            let hard = Quantity::new(10 + granted);
            let window = Window::new(Timestamp::EPOCH, Timestamp::NEVER).unwrap();
            let limit = ActiveLimit {
                soft: Some(Quantity::new(5)),
                hard: Some(hard),
                granted: Quantity::new(granted),
                is_own,
                ..ActiveLimit::unlimited(FeatureKey::Messages, window)
            };
            let state = LimitState {
                limit,
                settled: Quantity::new(settled),
                reserved: Quantity::ZERO,
            };
            let broken = state.admit(Quantity::ONE, mode).unwrap();
            let message = broken.message("starter");
            let end = message.find(';').unwrap();
            message[..end].to_owned()
        };
        let (warn, block) = (SoftLimitMode::Warn, SoftLimitMode::Block);
        for (is_own, granted, mode, settled, expected) in [
            (
                false,
                0,
                warn,
                10,
                "Plan 'starter' allows 10 messages in all",
            ),
            (
                false,
                2,
                warn,
                12,
                "Plan 'starter' with grants allows 12 messages in all",
            ),
            (
                true,
                0,
                warn,
                10,
                "The tenant's own limit allows 10 messages in all",
            ),
            (
                true,
                2,
                warn,
                12,
                "The tenant's own limit with grants allows 12 messages in all",
            ),
            (
                false,
                2,
                block,
                5,
                "Plan 'starter' allows 5 messages in all (a soft limit, which blocks here)",
            ),
        ] {
            assert_eq!(told(is_own, granted, mode, settled), expected);
        }
    }
}
