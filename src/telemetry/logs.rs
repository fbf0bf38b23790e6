//! Logs: to stderr, one JSON object a line, or in a form for people.

use std::io;

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter,
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    registry::Registry,
    util::SubscriberInitExt as _,
};

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
        Format::Json => json(filter, io::stderr)?.try_init(),
        Format::Pretty => pretty(filter, io::stderr)?.try_init(),
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
    let lines = fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(writer);
    Ok(Registry::default().with(env_filter(filter)?).with(lines))
}

fn pretty<W>(filter: &str, writer: W) -> Result<impl Subscriber + Send + Sync + use<W>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
    let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = fmt::layer()
        .compact()
        .with_target(false)
        .with_ansi(is_terminal && wants_colour)
        .with_writer(writer);
    Ok(Registry::default().with(env_filter(filter)?).with(lines))
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
    fn a_filter_that_cannot_be_read_is_named() {
        let error = env_filter("tollgate=loud").unwrap_err();
        assert!(error.to_string().contains("'tollgate=loud'"), "{error}");
    }
}
