//! A run: an admitted request while the model answers it, and the rules for what it is charged in the end.
//!
//! A run that is dropped without [`Run::finish`] is free and gives back what it held.

use std::sync::Arc;

use prometheus::HistogramTimer;

use crate::{
    config::{ChargeOnAbort, Config, Guardrails, Mode, StreamCutoff},
    domain::{quantity::Quantity, usage::TokenUsage},
    journal::JournalError,
    provider::tokens,
    services::{
        admitted::{Admitted, Ending, Settlement, Used},
        meter::OutputMeter,
    },
};

/// How a run came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model said all it wanted.
    Completed,
    /// It passed the maximum that it was given, and was stopped.
    CutOff,
    /// Its client hung up.
    ClientGone,
    /// The upstream broke off.
    Broken,
}

/// What became of a run.
#[derive(Clone, Debug)]
pub enum Outcome {
    Charged(Settlement),
    /// It produced nothing, or the abort policy forgives it.
    Free,
}

/// The rules that settings give to every run.
#[derive(Clone, Copy, Debug)]
pub struct RunRules {
    pub charge_on_abort: ChargeOnAbort,
    pub stream_cutoff: StreamCutoff,
}

impl RunRules {
    /// Observe mode, and guardrails that are off, cut off nothing.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let enforces = config.guardrails == Guardrails::On && config.mode == Mode::Enforce;
        Self {
            charge_on_abort: config.charge_on_abort,
            stream_cutoff: if enforces {
                config.stream_cutoff
            } else {
                StreamCutoff::Off
            },
        }
    }
}

/// Whether a stream may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    /// The frame just seen passes the maximum: it must not be released.
    CutOff,
}

/// Counts the input where the provider does not say.
pub type EstimateInput = Arc<dyn Fn() -> Quantity + Send + Sync>;

/// Boxed, as it goes through many hands: each future on its way would have room for it, some twice.
pub struct Run {
    admitted: Admitted,
    model: String,
    rules: RunRules,
    estimate_input: EstimateInput,
    meter: OutputMeter,
    reported: Option<TokenUsage>,
    /// More was produced after the provider last said how much.
    is_behind: bool,
    /// Measures the upstream until it is dropped, whether the run ends well or not.
    upstream: HistogramTimer,
}

impl Run {
    #[must_use]
    pub fn new(
        admitted: Admitted,
        model: &str,
        rules: RunRules,
        estimate_input: EstimateInput,
    ) -> Box<Self> {
        Box::new(Self {
            upstream: admitted.guard.metrics.upstream_begins(model),
            admitted,
            model: model.to_owned(),
            rules,
            estimate_input,
            meter: OutputMeter::new(model),
            reported: None,
            is_behind: false,
        })
    }

    #[must_use]
    pub fn admitted(&self) -> &Admitted {
        &self.admitted
    }

    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What it would be charged if it were cut off now.
    #[must_use]
    pub fn usage_so_far(&self) -> TokenUsage {
        match self.reported {
            Some(usage) if self.is_behind => at_least(usage, self.meter.tokens(self.maximum())),
            Some(usage) => usage,
            None => estimate(&self.estimate_input, self.meter.tokens(self.maximum())),
        }
    }

    /// The provider's own count; the last one seen wins.
    pub fn saw_usage(&mut self, usage: TokenUsage) {
        self.reported = Some(usage);
        self.is_behind = false;
    }

    /// Text that the model produced; none counts as nothing.
    pub fn saw_text(&mut self, answer: usize, text: &str) {
        if !text.is_empty() {
            self.meter.add(answer, text);
            self.is_behind = true;
        }
    }

    /// The maximum that the upstream was given for each answer.
    fn maximum(&self) -> Option<Quantity> {
        self.admitted.output.and_then(|output| output.sent())
    }

    /// The maximum at which it is cut off.
    fn cut_off_at(&self) -> Option<Quantity> {
        let maximum = self.maximum();
        maximum.filter(|_| self.rules.stream_cutoff == StreamCutoff::On)
    }

    /// Whether the tokenizer is needed to say how `bytes` more of text [`flow`](Self::flow), and is not there yet.
    #[must_use]
    pub fn lacks_tokenizer(&self, bytes: usize) -> bool {
        let may_count = |maximum| self.meter.may_count(maximum, bytes);
        self.cut_off_at().is_some_and(may_count) && !tokens::is_read_in(&self.model)
    }

    /// Whether what was seen so far keeps to the maximum that the upstream was given.
    pub fn flow(&mut self) -> Flow {
        match self.cut_off_at() {
            Some(maximum) if self.meter.passes(maximum) => Flow::CutOff,
            Some(_) | None => Flow::Continue,
        }
    }

    /// Settles the run by how it ended.
    ///
    /// # Errors
    /// [`JournalError`]: nothing was written down; the answer, or the stream's end, must not be released.
    pub async fn finish(mut self: Box<Self>, end: End) -> Result<Outcome, JournalError> {
        if !self.is_charged(end) {
            return Ok(Outcome::Free);
        }
        let (reported, maximum) = (self.reported, self.maximum());
        drop(self.upstream);
        // Of a whole answer the last report is all there is to it, wherever in the stream it came.
        let is_behind = self.is_behind && end != End::Completed;
        let (tokens, estimated) = match reported {
            Some(usage) if !is_behind => (usage, false),
            _ => {
                let (count_input, meter) = (self.estimate_input, Arc::new(self.meter));
                let counting = tokens::aside(move || match reported {
                    Some(usage) => at_least(usage, meter.tokens(maximum)),
                    None => estimate(&count_input, meter.tokens(maximum)),
                });
                let counted = Box::pin(counting).await; // few providers report nothing
                (counted, reported != Some(counted))
            }
        };
        let is_whole = matches!(end, End::Completed | End::CutOff);
        let used = Used {
            model: self.model,
            tokens,
            estimated,
            ending: if is_whole {
                Ending::Whole
            } else {
                Ending::Part
            },
        };
        let keyed = self.admitted.caller().keyed.clone().filter(|_| is_whole);
        let settlement = self.admitted.settle(&used).await?;
        if let Some(keyed) = keyed {
            keyed.note_whole();
        }
        Ok(Outcome::Charged(settlement))
    }

    /// Whether the model has put anything out.
    #[must_use]
    pub fn has_produced(&self) -> bool {
        let reported = self.reported.map(|usage| usage.output_tokens);
        self.meter.has_produced() || reported.is_some_and(|output| output > Quantity::ZERO)
    }

    fn is_charged(&self, end: End) -> bool {
        let has_produced = self.has_produced();
        match (end, self.rules.charge_on_abort) {
            (End::Completed | End::CutOff, _) | (End::ClientGone, ChargeOnAbort::Input) => true,
            (End::Broken, _) | (End::ClientGone, ChargeOnAbort::Produced) => has_produced,
            (End::ClientGone, ChargeOnAbort::Nothing) => false,
        }
    }
}

/// A report from the midst of a stream, with the output that was seen if that is more.
fn at_least(reported: TokenUsage, output: Quantity) -> TokenUsage {
    TokenUsage {
        output_tokens: reported.output_tokens.max(output),
        ..reported
    }
}

fn estimate(count_input: &EstimateInput, output: Quantity) -> TokenUsage {
    TokenUsage {
        input_tokens: count_input(),
        output_tokens: output,
        ..TokenUsage::default()
    }
}
