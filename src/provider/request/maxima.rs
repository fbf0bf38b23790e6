//! The fields of a body that limit the output: what they name, and how they are lowered.

use std::ops::Range;

use serde_json::value::RawValue;

use super::{BadRequest, Splice, span_of};
use crate::{domain::quantity::Quantity, json, provider::Endpoint};

/// All that a body has of them, in the order they stand in.
#[derive(Clone, Debug, Default)]
pub(super) struct Maxima(Vec<Maximum>);

/// A field that limits the output, and where its value stands in the body.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Maximum {
    value: Option<i64>,
    span: Range<usize>,
    heeded: Heeded,
}

/// Who takes a field for the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heeded {
    /// It is the API's own.
    ByAll,
    /// Others ignore it; but where it is heeded, it goes before the API's own (llama.cpp's server).
    BySome,
}

impl Maxima {
    /// Takes note of the member `key` of `text`, if it is a maximum; says whether it is.
    pub(super) fn note(
        &mut self,
        endpoint: Endpoint,
        key: &str,
        value: &RawValue,
        text: &str,
    ) -> Result<bool, BadRequest> {
        let Some((param, heeded)) = fields(endpoint).iter().find(|(field, _)| *field == key) else {
            return Ok(false);
        };
        self.0.push(Maximum {
            value: read_maximum(param, value)?,
            span: span_of(text, value.get()),
            heeded: *heeded,
        });
        Ok(true)
    }

    /// The largest: with several fields, which one rules is the upstream's choice.
    pub(super) fn named(&self) -> Option<Quantity> {
        let named = self.0.iter().filter_map(|maximum| maximum.value);
        named.max().map(Quantity::new)
    }

    /// Lowers all that are named, and says the largest where all upstreams heed it, if that is not done yet.
    pub(super) fn lower(
        &self,
        lowered_to: Option<Quantity>,
        default_field: impl FnOnce() -> &'static str,
        body: &[u8],
        splices: &mut Vec<Splice>,
    ) {
        let Some(most) = lowered_to.or(self.named()) else {
            return;
        };
        let is_heeded = |maximum: &&Maximum| maximum.heeded == Heeded::ByAll;
        let mut is_said = false;
        for maximum in &self.0 {
            // A null beside a maximum says nothing, and stays.
            let Some(value) = maximum.value else { continue };
            is_said |= is_heeded(&maximum);
            if value > most.get() {
                splices.push(Splice {
                    span: maximum.span.clone(),
                    text: most.to_string(),
                });
            }
        }
        if is_said {
            return;
        }
        splices.push(match self.0.iter().find(is_heeded) {
            Some(null) => Splice {
                span: null.span.clone(),
                text: most.to_string(),
            },
            None => {
                let brace = body.iter().position(|&byte| byte == b'{');
                let at = brace.map_or(0, |brace| brace + 1);
                Splice {
                    span: at..at,
                    text: format!("\"{}\":{most},", default_field()),
                }
            }
        });
    }
}

/// The fields that limit the output of an endpoint.
fn fields(endpoint: Endpoint) -> &'static [(&'static str, Heeded)] {
    use Heeded::{ByAll, BySome};
    match endpoint {
        Endpoint::ChatCompletions => &[
            ("max_completion_tokens", ByAll),
            ("max_tokens", ByAll),
            ("n_predict", BySome),
        ],
        // llama.cpp's server makes a chat of it, and takes over what else is there.
        Endpoint::Responses => &[
            ("max_output_tokens", ByAll),
            ("max_completion_tokens", BySome),
            ("max_tokens", BySome),
            ("n_predict", BySome),
        ],
        Endpoint::Embeddings | Endpoint::Models => &[],
    }
}

fn read_maximum(param: &'static str, value: &RawValue) -> Result<Option<i64>, BadRequest> {
    match serde_json::from_str::<Option<i64>>(value.get()) {
        Ok(None) => Ok(None),
        Ok(Some(most)) if (1..=Quantity::MAX.get()).contains(&most) => Ok(Some(most)),
        _ => Err(BadRequest::Field {
            param,
            found: json::shown(value),
            accepted: "a whole number from 1 to 9007199254740991",
        }),
    }
}
