//! Logs: to stderr, one JSON object a line, or in a form for people.

use std::{fmt, io};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer, layer},
    layer::SubscriberExt as _,
    registry::{LookupSpan, Registry},
    util::SubscriberInitExt as _,
};

use super::{lines::Lines, trace};
use crate::{clock::Clock, json::ObjectWriter};

/// Room for the line of a refusal. A line is put together by itself, and written in one piece: its parts would pass
/// through the library's writer one by one.
const USUAL_BYTES: usize = 768;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One object a line; an event's fields stand at its top.
    Json,
    /// For people at a terminal.
    Pretty,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("'{value}' is not a log filter ({error}); write error, warn, info, debug or trace")]
    Filter { value: String, error: String },
    #[error("logs are set up already")]
    AlreadySet,
}

/// Starts logging for the whole process.
///
/// # Errors
/// [`LogError`] for a filter that can't be read, or where logs were started before.
pub fn init(format: Format, filter: &str) -> Result<(), LogError> {
    match format {
        Format::Json => json(filter, Lines::to(io::stderr()))?.try_init(),
        Format::Pretty => pretty(filter, Lines::to(io::stderr()))?.try_init(),
    }
    .map_err(|_| LogError::AlreadySet)
}

fn env_filter(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter).map_err(|error| LogError::Filter {
        value: filter.to_owned(),
        error: error.to_string(),
    })
}

fn json<W>(filter: &str, writer: W) -> Result<impl Subscriber + Send + Sync + use<W>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = layer().event_format(JsonLine).with_writer(writer);
    Ok(Registry::default().with(env_filter(filter)?).with(lines))
}

fn pretty<W>(filter: &str, writer: W) -> Result<impl Subscriber + Send + Sync + use<W>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
    let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = layer()
        .compact()
        .with_target(false)
        .with_ansi(is_terminal && wants_colour)
        .with_writer(writer);
    Ok(Registry::default().with(env_filter(filter)?).with(lines))
}

/// An event as one JSON object: when, how grave, its fields, and where in the program it came from.
///
/// Written by hand: a refused request is answered for little more than its line of log costs, and the library's own
/// form costs two or three times as much.
struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut text = String::with_capacity(USUAL_BYTES);
        let mut line = ObjectWriter::new(&mut text);
        line.shown("timestamp", Clock::System.now());
        line.text("level", metadata.level().as_str());
        event.record(&mut Fields(&mut line));
        if let Some(trace) = trace::current() {
            line.text("trace_id", trace.id());
        }
        line.text("target", metadata.target());
        line.end();
        text.push('\n');
        writer.write_str(&text)
    }
}

/// Writes an event's fields as members of its line.
struct Fields<'a, 'l>(&'a mut ObjectWriter<'l>);

impl Visit for Fields<'_, '_> {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.number(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.number(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0
            .json(field.name(), if value { "true" } else { "false" });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.text(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.shown(field.name(), format_args!("{value:?}"));
    }
}

/// For tests: what `emit` logs, as JSON, one value a line.
#[cfg(test)]
pub(crate) fn captured(emit: impl FnOnce()) -> Vec<serde_json::Value> {
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = json("info", move || writer.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, emit);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_events_fields_stand_at_the_top_of_its_line() {
        let lines = captured(|| {
            tracing::error!(
                code = "usage_limit_exceeded",
                limit_value = 200_i64,
                "refused"
            );
        });
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["code"], "usage_limit_exceeded");
        assert_eq!(lines[0]["limit_value"], 200);
        assert_eq!(lines[0]["level"], "ERROR");
        assert_eq!(lines[0]["message"], "refused");
    }

    #[test]
    fn a_text_can_say_anything_and_stays_on_its_line() {
        let said = "a \"quote\", a \\, a line\nand\ttab \u{1}, ü, 漢";
        let lines = captured(|| {
            tracing::info!(text = said, shown = %said, debug = ?said, is = true, n = u64::MAX, "{said}");
        });
        assert_eq!(lines.len(), 1);
        for field in ["text", "shown", "message"] {
            assert_eq!(lines[0][field], said, "{field}");
        }
        assert_eq!(lines[0]["debug"], format!("{said:?}"));
        assert_eq!(lines[0]["is"], true);
        assert_eq!(lines[0]["n"], u64::MAX);
        assert_eq!(lines[0]["target"], module_path!());
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_named() {
        let error = env_filter("tollgate=loud").unwrap_err();
        assert!(error.to_string().contains("'tollgate=loud'"), "{error}");
    }
}
