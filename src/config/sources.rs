//! Where values come from: flag > environment > `.env` in the working directory > default.

use std::{
    cmp::Reverse,
    collections::HashMap,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{
    LogFormat, dot_env,
    settings::{Kind, SETTINGS, Setting},
};

/// Our own prefixes: an unknown variable with one of them is a mistake worth naming.
const PREFIXES: [&str; 2] = ["TOLLGATE_", "USAGE_"];

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag,
    Environment,
    DotEnv,
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::DotEnv => ".env",
            Self::Default => "default",
        })
    }
}

/// The flags that stand for settings; global to all commands, hidden from their help (`tollgate config` lists them).
#[derive(Clone, Default)]
pub struct SettingFlags(HashMap<&'static str, String>);

/// Names only: the wizard gives secrets this way.
impl fmt::Debug for SettingFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl clap::Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        SETTINGS
            .iter()
            .filter_map(argument)
            .fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in SETTINGS
            .iter()
            .filter(|setting| setting.kind != Kind::Secret)
        {
            if let Some(value) = matches.get_one::<String>(setting.name) {
                self.0.insert(setting.name, value.clone());
            }
        }
        Ok(())
    }
}

fn argument(setting: &'static Setting) -> Option<Arg> {
    let argument = Arg::new(setting.name)
        .long(setting.flag()?)
        .help(setting.description.replace('`', ""))
        .help_heading("Settings")
        .value_name("VALUE")
        .action(ArgAction::Set)
        .global(true)
        .hide(true);
    Some(if setting.kind == Kind::Switch {
        argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
    } else {
        argument
    })
}

/// All that was given, before any of it is judged.
#[derive(Clone)]
pub struct Sources {
    pub flags: SettingFlags,
    pub environment: HashMap<String, OsString>,
    pub dot_env: HashMap<String, String>,
    /// The form of the log unless `LOG_FORMAT` says: it depends on whether stderr is a terminal.
    pub log_format: LogFormat,
}

/// Names only: before they are judged, secrets are among the values.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("flags", &self.flags)
            .field("environment", &self.environment.keys())
            .field("dot_env", &self.dot_env.keys())
            .finish_non_exhaustive()
    }
}

/// Why `.env` can't be read.
#[derive(Debug, thiserror::Error)]
pub enum DotEnvError {
    #[error("can't read {}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    /// The line itself may hold a secret, so only its number is told.
    #[error("line {line} of {} can't be read; write NAME=value, with quotes around a value that has spaces or '#'", path.display())]
    Malformed { path: PathBuf, line: usize },
}

impl Sources {
    /// The process's environment, and `.env` in `directory` if it is there.
    ///
    /// # Errors
    /// [`DotEnvError`].
    pub fn of_process(
        flags: SettingFlags,
        directory: &Path,
        log_format: LogFormat,
    ) -> Result<Self, DotEnvError> {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .collect();
        let dot_env = read_dot_env(&directory.join(".env"))?;
        Ok(Self {
            flags,
            environment,
            dot_env,
            log_format,
        })
    }

    /// Nothing but what [`with_flag`](Self::with_flag) adds: for a program that is run inside another.
    #[must_use]
    pub fn none() -> Self {
        Self {
            flags: SettingFlags::default(),
            environment: HashMap::new(),
            dot_env: HashMap::new(),
            log_format: LogFormat::Json,
        }
    }

    /// Gives `name` a value as if its flag were there.
    #[must_use]
    pub fn with_flag(mut self, name: &'static str, value: String) -> Self {
        self.flags.0.insert(name, value);
        self
    }

    /// Whether the setting was given by its flag.
    pub(super) fn has_flag(&self, name: &str) -> bool {
        self.flags.0.contains_key(name)
    }

    /// Takes a setting away wherever it was given; whether it was.
    pub fn remove(&mut self, name: &'static str) -> bool {
        let was_given = matches!(self.find(name), Ok(Some((value, _))) if !value.is_empty());
        self.flags.0.remove(name);
        self.environment.remove(name);
        self.dot_env.remove(name);
        was_given
    }

    /// The value of the strongest source that names the setting, without spaces around it.
    ///
    /// # Errors
    /// [`NotUtf8`] for a variable that is not.
    pub(super) fn find(&self, name: &str) -> Result<Option<(String, Origin)>, NotUtf8> {
        if let Some(value) = self.flags.0.get(name) {
            return Ok(Some((value.trim().to_owned(), Origin::Flag)));
        }
        if let Some(value) = self.environment.get(name) {
            let value = value.to_str().ok_or(NotUtf8)?;
            return Ok(Some((value.trim().to_owned(), Origin::Environment)));
        }
        let value = self.dot_env.get(name);
        Ok(value.map(|value| (value.trim().to_owned(), Origin::DotEnv)))
    }

    /// One line for each variable that looks like ours and is not, with the nearest one that is.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let is_unknown = |name: &&String| {
            PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                && !SETTINGS.iter().any(|setting| setting.name == **name)
        };
        let given = self
            .environment
            .keys()
            .map(|name| (name, "the environment"));
        let given = given.chain(self.dot_env.keys().map(|name| (name, ".env")));
        let mut unknown: Vec<_> = given.filter(|(name, _)| is_unknown(name)).collect();
        unknown.sort_unstable();
        unknown
            .into_iter()
            .map(|(name, place)| {
                format!(
                    "unknown variable {name} in {place} is ignored; did you mean {}?",
                    nearest(name)
                )
            })
            .collect()
    }
}

pub(super) struct NotUtf8;

fn nearest(name: &str) -> &'static str {
    let shared = |setting: &Setting| {
        let words = setting.name.split('_');
        words
            .filter(|word| name.split('_').any(|it| it == *word))
            .count()
    };
    let distance = |setting: &Setting| strsim::damerau_levenshtein(setting.name, name);
    SETTINGS
        .iter()
        .min_by_key(|setting| (Reverse(shared(setting)), distance(setting)))
        .map_or("", |setting| setting.name)
}

/// The variables of a `.env` file; of a name given twice the last counts. No file, no variables.
fn read_dot_env(path: &Path) -> Result<HashMap<String, String>, DotEnvError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(cause) => {
            return Err(DotEnvError::Unreadable {
                path: path.to_owned(),
                cause,
            });
        }
    };
    dot_env::variables(&text)
        .map(|variable| {
            variable.map_err(|error| DotEnvError::Malformed {
                path: path.to_owned(),
                line: line_of(&text, &error),
            })
        })
        .collect()
}

fn line_of(text: &str, error: &dotenvy::Error) -> usize {
    let dotenvy::Error::LineParse(faulty, _) = error else {
        return 1;
    };
    let first = faulty.lines().next().unwrap_or_default();
    // What was parsed has a backslash before a '$'.
    let plain = |line: &str| line.trim_end().replace("\\$", "$");
    text.lines()
        .position(|line| plain(line) == plain(first))
        .map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot_env(text: &str) -> Result<HashMap<String, String>, DotEnvError> {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(".env"), text).unwrap();
        read_dot_env(&directory.path().join(".env"))
    }

    #[test]
    fn a_dot_env_file_has_comments_quotes_and_the_last_of_two_values() {
        let read =
            dot_env("# note\nexport A=1\nB=\"two words\" # tail\nA=3\r\n\nC='x#y'\n").unwrap();
        assert_eq!(read["A"], "3");
        assert_eq!(read["B"], "two words");
        assert_eq!(read["C"], "x#y");
    }

    #[test]
    fn a_faulty_line_is_named_by_number_and_never_quoted() {
        let error = dot_env("A=$1\nOPENAI_API_KEY sk-$secret\n")
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("line 2 of "), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn no_dot_env_file_is_no_error_and_a_directory_is() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            read_dot_env(&directory.path().join(".env"))
                .unwrap()
                .is_empty()
        );
        assert!(matches!(
            read_dot_env(directory.path()),
            Err(DotEnvError::Unreadable { .. })
        ));
    }

    #[test]
    fn reading_dot_env_leaves_the_process_as_it_was() {
        dot_env("TOLLGATE_TEST_OF_DOT_ENV=1").unwrap();
        assert!(std::env::var_os("TOLLGATE_TEST_OF_DOT_ENV").is_none());
    }

    #[test]
    fn an_unknown_variable_of_ours_is_named_with_the_nearest_known_one() {
        let sources = Sources {
            flags: SettingFlags::default(),
            environment: HashMap::from([
                ("TOLLGATE_LISTEN".to_owned(), "x".into()),
                ("TOLLGATE_DATADIR".to_owned(), "x".into()),
                ("PATH".to_owned(), "x".into()),
            ]),
            dot_env: HashMap::from([("USAGE_GUARDRAIL_FAILMODE".to_owned(), "open".to_owned())]),
            log_format: LogFormat::Json,
        };
        assert_eq!(
            sources.warnings(),
            [
                "unknown variable TOLLGATE_DATADIR in the environment is ignored; did you mean TOLLGATE_DATA_DIR?",
                "unknown variable USAGE_GUARDRAIL_FAILMODE in .env is ignored; did you mean USAGE_GUARDRAIL_FAIL_MODE?",
            ]
        );
    }
}
