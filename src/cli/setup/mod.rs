//! `tollgate setup`: the wizard (interface.md §6), one file a section.
//!
//! What is asked next is a function of what was answered so far: going back takes an answer away, and nothing else
//! has to be undone. Nothing is written before everything is answered.

mod admin;
mod answers;
mod artifact;
mod ask;
mod files;
mod provider;
mod question;
mod storage;
mod stripe;
mod summary;
mod usage;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::{Stored, Typed, output::Output, usage::ARTIFACT};
use crate::{
    clock::Clock,
    config::{self, Loaded, settings::Default as Usual, sources::SettingFlags},
    control::Input,
};
use answers::Given;
use ask::{Answer, Asker, Terminal, Usually};
use question::{Answers, Question};
use summary::Plan;

const NO_TERMINAL: &str = "setup asks on a terminal, and there is none; give --non-interactive with --answers-file or --var";

/// Asks what tollgate needs to know, and writes it to .env and the entitlements artifact
///
/// Sections: provider, storage, usage, stripe, admin. Esc goes back to the question before. Answers given beforehand
/// (--non-interactive) take the default where they name none; secrets are never written to the summary or to exported
/// answers (there they are null). Limits are brought into the catalogue at the end unless --no-apply is given.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate setup --sections usage --non-interactive --var ENABLE_USAGE_GUARDRAILS=true --var USAGE_PLAN_CODES=starter"
)]
pub(super) struct Setup {
    /// Only these sections; several by repeating or with commas
    #[arg(long, value_name = "SECTION", value_delimiter = ',')]
    sections: Vec<Section>,
    /// Ask nothing: take the answers given, else the defaults
    #[arg(long)]
    non_interactive: bool,
    /// A flat JSON object of answers; of several the later ones win
    #[arg(long, value_name = "F")]
    answers_file: Vec<PathBuf>,
    /// One answer; wins over files
    #[arg(long, value_name = "K=V")]
    var: Vec<String>,
    /// Write the answers to a file that --answers-file takes; secrets are left null
    #[arg(long, value_name = "F")]
    export_answers: Option<PathBuf>,
    /// Write the summary to a file, as JSON
    #[arg(long, value_name = "F")]
    summary_path: Option<PathBuf>,
    /// Show what would be written, and write neither .env nor the artifact
    #[arg(long)]
    dry_run: bool,
    /// Leave the limits in the artifact; `usage sync-entitlements` brings them into the catalogue
    #[arg(long)]
    no_apply: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Section {
    Provider,
    Storage,
    Usage,
    Stripe,
    Admin,
}

impl Section {
    const ALL: [Self; 5] = [
        Self::Provider,
        Self::Storage,
        Self::Usage,
        Self::Stripe,
        Self::Admin,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::Provider => "Provider",
            Self::Storage => "Storage",
            Self::Usage => "Usage & Entitlements",
            Self::Stripe => "Stripe",
            Self::Admin => "Administration",
        }
    }

    /// The questions that are reached with these answers, in order.
    fn questions(self, there: &There, answers: &Answers) -> Vec<Question> {
        match self {
            Self::Provider => provider::questions(there, answers),
            Self::Storage => storage::questions(there),
            Self::Usage => usage::questions(there, answers),
            Self::Stripe => stripe::questions(there, answers),
            Self::Admin => admin::questions(there),
        }
    }

    /// Tries what was entered; what it found, or what failed, for people.
    async fn test(self, there: &There, answers: &Answers) -> Result<Option<String>, String> {
        match self {
            Self::Provider => provider::test(there, answers).await,
            Self::Storage => storage::test(there, answers).await,
            Self::Usage => usage::test(there, answers).await,
            Self::Stripe => stripe::test(there, answers).await,
            Self::Admin => Ok(None),
        }
    }
}

/// What is there before anything is asked.
#[derive(Clone, Default)]
pub(super) struct There {
    directory: PathBuf,
    data_dir: PathBuf,
    dot_env: HashMap<String, String>,
    environment: HashMap<String, String>,
    artifact: artifact::Existing,
}

impl There {
    fn of(loaded: &Loaded, dot_env: HashMap<String, String>) -> anyhow::Result<Self> {
        let directory = std::env::current_dir().context("the working directory can't be read")?;
        let data_dir = loaded.config.data_dir.clone();
        Ok(Self {
            artifact: artifact::Existing::read(&data_dir.join(ARTIFACT))?,
            environment: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            directory,
            data_dir,
            dot_env,
        })
    }

    /// What `.env` says, else the setting's default: what a question begins with.
    fn value(&self, name: &str) -> Option<String> {
        let of_file = self.dot_env.get(name).filter(|value| !value.is_empty());
        of_file
            .cloned()
            .or_else(|| match config::settings::setting(name).default {
                Usual::Value(value) => Some(value.to_owned()),
                Usual::None(_) => None,
            })
    }

    /// What holds for a server that is started here: the environment wins over `.env`.
    fn current(&self, name: &str) -> Option<String> {
        let given = self
            .environment
            .get(name)
            .or_else(|| self.dot_env.get(name));
        given.filter(|value| !value.is_empty()).cloned()
    }

    fn has(&self, name: &str) -> bool {
        self.current(name).is_some()
    }
}

impl Setup {
    pub(super) async fn run(self, flags: SettingFlags) -> anyhow::Result<Output> {
        let is_asked = !self.non_interactive;
        if is_asked && !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            bail!(NO_TERMINAL);
        }
        let sources = super::sources(flags.clone())?;
        let there = There::of(&config::Config::load(&sources)?, sources.dot_env)?;
        let sections = self.sections();
        let given = answers::read(&self.answers_file, &self.var)?;
        answers::check_keys(&given, &known_keys())?;
        let (answers, checks) = if is_asked {
            let mut person = Prefilled(&given, Terminal);
            ask_all(&sections, &there, &given, &mut person).await?
        } else {
            ask_all(&sections, &there, &given, &mut answers::Beforehand(&given)).await?
        };
        for warning in unused(&given, &answers) {
            eprintln!("warning: {warning}");
        }
        let plan = Plan::new(&there, &sections, &answers, checks, Clock::System.now())?;
        self.finish(plan, &answers, flags, is_asked).await
    }

    /// In the order of the wizard, whatever order they were named in.
    fn sections(&self) -> Vec<Section> {
        let is_named =
            |section: &Section| self.sections.is_empty() || self.sections.contains(section);
        Section::ALL.into_iter().filter(is_named).collect()
    }

    async fn finish(
        self,
        plan: Plan,
        answers: &Answers,
        flags: SettingFlags,
        is_asked: bool,
    ) -> anyhow::Result<Output> {
        if let Some(path) = &self.export_answers {
            answers::export(path, answers)?;
        }
        if is_asked && !self.dry_run {
            eprint!("\n{}", plan.lines().join("\n") + "\n\n");
            if !ask::confirm("Write this?", Usually::Yes)? {
                bail!("nothing was written");
            }
        }
        let mut done = summary::Done::DryRun;
        let mut applied = None;
        if !self.dry_run {
            plan.write()?;
            done = summary::Done::Written;
            let is_wanted = plan.is_enabled()
                && !self.no_apply
                && (!is_asked
                    || ask::confirm("Bring these limits into the catalogue now?", Usually::Yes)?);
            if is_wanted {
                applied = Some(apply(&plan, flags).await?);
                done = summary::Done::Applied;
            }
        }
        let body = plan.json(done);
        if let Some(path) = &self.summary_path {
            files::write_private(path, &format!("{body:#}\n"))
                .with_context(|| format!("the summary can't be written to {}", path.display()))?;
        }
        // A person has seen the summary before it was written.
        let mut lines = if is_asked && !self.dry_run {
            Vec::new()
        } else {
            plan.lines()
        };
        lines.extend(applied.iter().flat_map(Output::text_lines));
        lines.extend(plan.closing(done));
        Ok(Output::of_json(body).lines(lines))
    }
}

/// Asks what was not given beforehand with the given answer as what Enter means.
struct Prefilled<'a>(&'a Given, Terminal);

impl Asker for Prefilled<'_> {
    fn section(&mut self, title: &str) {
        self.1.section(title);
    }

    fn ask(&mut self, question: &Question, earlier: Option<&str>) -> anyhow::Result<Answer> {
        let given = self.0.get(&question.key).and_then(Option::as_deref);
        let given = given.filter(|_| !question.is_secret());
        self.1.ask(question, earlier.or(given))
    }

    fn failed(&mut self, problem: &str) -> anyhow::Result<Answer> {
        self.1.failed(problem)
    }
}

/// Every question that is reached, section by section; gives the answers and what the tests found.
async fn ask_all(
    sections: &[Section],
    there: &There,
    given: &Given,
    asker: &mut dyn Asker,
) -> anyhow::Result<(Answers, Vec<String>)> {
    let mut answers = Answers::looking_ahead(given.clone());
    let mut history: Vec<(usize, String)> = Vec::new();
    let mut earlier: BTreeMap<String, String> = BTreeMap::new();
    let mut found: BTreeMap<usize, String> = BTreeMap::new();
    let (mut at, mut titled) = (0, None);
    while let Some(section) = sections.get(at) {
        if titled != Some(at) {
            asker.section(section.title());
            titled = Some(at);
        }
        let open = section.questions(there, &answers);
        let open = open
            .into_iter()
            .find(|question| !answers.has(&question.key));
        let is_back = match open {
            Some(question) => {
                let before = earlier.get(&question.key).map(String::as_str);
                match asker.ask(&question, before)? {
                    Answer::Value(value) => {
                        answers.put(&question.key, value);
                        history.push((at, question.key));
                        false
                    }
                    Answer::Back => true,
                }
            }
            None => match section.test(there, &answers).await {
                Ok(seen) => {
                    found.extend(seen.map(|seen| (at, seen)));
                    at += 1;
                    false
                }
                Err(problem) => match asker.failed(&problem)? {
                    Answer::Value(_) => {
                        found.insert(at, format!("kept although {problem}"));
                        at += 1;
                        false
                    }
                    Answer::Back => true,
                },
            },
        };
        if is_back && let Some((place, key)) = history.pop() {
            // What it was is offered again, and so is everything that hung on it.
            earlier.extend(answers.take_back(&key).map(|value| (key, value)));
            at = place;
        }
    }
    Ok((answers, found.into_values().collect()))
}

/// Every key that some question has, whatever is answered to others; limits are known by their form.
fn known_keys() -> BTreeSet<String> {
    let keys = provider::KEYS
        .iter()
        .chain(&storage::KEYS)
        .chain(&usage::KEYS)
        .chain(&stripe::KEYS)
        .chain(&admin::KEYS);
    keys.map(|&key| key.to_owned()).collect()
}

/// Limits that were given for plans or features that were not chosen.
fn unused(given: &Given, answers: &Answers) -> Vec<String> {
    if !answers.is(usage::ENABLED, "true") {
        return Vec::new();
    }
    let is_unused = |key: &&String| usage::is_limit_key(key) && !answers.has(key);
    let keys = given.keys().filter(is_unused);
    keys.map(|key| {
        format!(
            "the answer {key} is of no plan in {} and feature in {}, and is not used",
            usage::PLAN_CODES,
            usage::DIMENSIONS
        )
    })
    .collect()
}

/// `usage sync-entitlements --create-plans`, with the settings as they are now.
async fn apply(plan: &Plan, flags: SettingFlags) -> anyhow::Result<Output> {
    let loaded = super::load_quietly(flags)?;
    let words = ["usage", "sync-entitlements", "--create-plans"].map(str::to_owned);
    let command: Stored = super::stored_of(&words)?;
    let typed = Typed {
        argv: words.to_vec(),
        directory: std::env::current_dir().context("the working directory can't be read")?,
        input: Some(Input {
            path: plan.artifact_path().display().to_string(),
            text: plan.artifact_text().to_owned(),
        }),
    };
    super::run_somewhere(command, &typed, &loaded)
        .await
        .context("the limits are written, and could not be brought into the catalogue")
}

/// Makes the directory of the artifact, for the owner alone as the data dir is.
fn make_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

#[cfg(test)]
mod tests;
