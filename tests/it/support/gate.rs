//! The binary under test, in a directory of its own and with an environment that holds nothing else.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::Value;
use tollgate::store::{SharedStore, postgres::PostgresStore, sqlite::SqliteStore};

use super::{
    Answer, Database, FakeOpenAi, PATIENCE, RedisServer, eventually, tenant::TenantBuilder,
};

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

/// What the next server is started with.
#[derive(Clone)]
pub(crate) struct Serve {
    variables: BTreeMap<String, String>,
    arguments: Vec<String>,
    directory: Arc<tempfile::TempDir>,
    survives_full_disk: bool,
    /// Where its store is, if not in the data dir; kept until nobody needs it.
    postgres: Option<Arc<Database>>,
    /// What it shares with others that are started with it.
    replicas: Option<Arc<SharedByReplicas>>,
}

/// Redis, and the directories of the servers beside the first.
struct SharedByReplicas {
    redis: RedisServer,
    others: Vec<Arc<tempfile::TempDir>>,
}

/// A running server; killed when dropped. Or several as one: what is asked of it is asked of each.
pub(crate) struct Tollgate {
    serve: Serve,
    child: Running,
    pub(crate) base: String,
    others: Vec<Tollgate>,
    /// The lines of stdout that came before and just after the address.
    log: Arc<Mutex<String>>,
    pub(crate) http: reqwest::Client,
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug)]
pub(crate) struct CliRun {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Tollgate {
    pub(crate) fn serve() -> Serve {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let variables = [
            ("PATH", "/usr/bin:/bin"),
            ("TOLLGATE_LISTEN", "127.0.0.1:0"),
            ("ENABLE_USAGE_GUARDRAILS", "true"),
            ("TOLLGATE_PROVIDER", "simulated"),
            ("LOG_FORMAT", "json"),
        ];
        Serve {
            variables: variables
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            arguments: vec!["serve".to_owned()],
            directory: Arc::new(directory),
            survives_full_disk: false,
            postgres: None,
            replicas: None,
        }
    }
}

impl Serve {
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn upstream(self, upstream: &FakeOpenAi) -> Self {
        self.set("TOLLGATE_PROVIDER", "openai")
            .set("OPENAI_BASE_URL", &upstream.base_url())
    }

    /// With its store in Postgres, which others may share.
    pub(crate) fn on_postgres(mut self, database: &Arc<Database>) -> Self {
        self.postgres = Some(Arc::clone(database));
        self.set("DATABASE_URL", &database.url())
    }

    /// As three replicas on Postgres and Redis, which share out the requests of every tenant.
    pub(crate) fn on_three_replicas(self) -> Self {
        let others = (1..3).map(|_| tempfile::tempdir().expect("a temporary directory"));
        let shared = SharedByReplicas {
            redis: RedisServer::start(),
            others: others.map(Arc::new).collect(),
        };
        let mut serve = self.on_postgres(&Arc::new(Database::migrated()));
        serve.replicas = Some(Arc::new(shared));
        serve
    }

    /// What each of several servers is started with.
    fn each(&self) -> Vec<Self> {
        let Some(replicas) = &self.replicas else {
            return vec![self.clone()];
        };
        let mut one = self
            .clone()
            .set("USAGE_GUARDRAIL_CACHE_BACKEND", "redis")
            .set("USAGE_GUARDRAIL_REDIS_URL", &replicas.redis.url())
            // What a command changed at one holds at all at once; how soon else is tested elsewhere.
            .set("USAGE_GUARDRAIL_CACHE_TTL_SECONDS", "0");
        one.variables
            .entry("USAGE_GUARDRAIL_FAIL_MODE".to_owned())
            .or_insert_with(|| "closed".to_owned());
        let others = replicas.others.iter().map(|directory| Self {
            directory: Arc::clone(directory),
            ..one.clone()
        });
        std::iter::once(one.clone()).chain(others).collect()
    }

    /// Has writes that [`Tollgate::take_writes`] forbids fail, as on a full disk, instead of ending the process.
    pub(crate) fn on_a_disk_that_may_fill(mut self) -> Self {
        self.survives_full_disk = true;
        self
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("var")
    }

    /// How many usage events are in the store of a server that has stopped.
    pub(crate) fn stored_events(&self) -> i64 {
        let database = rusqlite::Connection::open(self.data_dir().join("tollgate.db"));
        let count = "SELECT count(*) FROM usage_events";
        database
            .and_then(|store| store.query_row(count, [], |row| row.get(0)))
            .expect("the store can be read")
    }

    /// The store of a server that has stopped, or that shares it.
    pub(crate) async fn open_store(&self) -> SharedStore {
        match &self.postgres {
            Some(database) => {
                let url = database.url().parse().expect("an address");
                let store = PostgresStore::open(&url).await.expect("the store opens");
                Arc::new(store)
            }
            None => {
                let path = self.data_dir().join("tollgate.db");
                Arc::new(SqliteStore::open(&path).expect("the store opens"))
            }
        }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = if self.survives_full_disk {
            // A signal that is ignored stays so through exec (signal(7)).
            let mut command = Command::new("/bin/sh");
            command.args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#, BINARY]);
            command
        } else {
            Command::new(BINARY)
        };
        command
            .args(arguments)
            .env_clear()
            .envs(&self.variables)
            .env("TOLLGATE_DATA_DIR", self.data_dir())
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command beside the server, or without one.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> CliRun {
        let child = self.command(arguments).spawn().expect("the binary starts");
        // A thread of its own: what waits for a process must not hold up the test's runtime.
        let (sender, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || drop(sender.send(child.wait_with_output())));
        let output = tokio::time::timeout(PATIENCE, ended)
            .await
            .expect("a command ends in time");
        let output = output
            .expect("the thread sends")
            .expect("the output can be read");
        CliRun {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    pub(crate) async fn start(self) -> Tollgate {
        let started = join_all(self.each().into_iter().map(Self::start_one)).await;
        let mut started = started.into_iter();
        let mut gate = started.next().expect("there is one at least");
        gate.others = started.collect();
        gate.serve = self;
        gate
    }

    async fn start_one(self) -> Tollgate {
        let gate = self.try_start().await;
        let gate = gate.unwrap_or_else(|ended| panic!("it does not start: {ended:?}"));
        eventually("the server is ready", || async {
            let answer = gate.http.get(format!("{}/readyz", gate.base));
            let answer = answer.send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        gate
    }

    /// Starts until the address is told.
    ///
    /// # Errors
    /// How it ended before that.
    pub(crate) async fn try_start(self) -> Result<Tollgate, CliRun> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let child = self.command(&arguments).spawn();
        let mut child = Running(child.expect("the binary starts"));
        let log = Arc::new(Mutex::new(String::new()));
        let log_ends = collect(child.stderr.take().expect("piped"), Arc::clone(&log));
        let (sender, first_line) = tokio::sync::oneshot::channel();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = stdout.read_line(&mut line);
            drop(sender.send(line));
            // Read on, so that the server never blocks on a full pipe.
            let _ = stdout.read_to_string(&mut String::new());
        });
        let line = tokio::time::timeout(PATIENCE, first_line)
            .await
            .expect("a first line in time")
            .unwrap_or_default();
        let Some(base) = line.trim().strip_prefix("tollgate listening on ") else {
            // It says nothing else first: it has ended, or is about to.
            let status = child.wait().expect("the process is ours");
            log_ends.join().expect("the thread reads to the end");
            return Err(CliRun {
                code: status.code().unwrap_or(-1),
                stdout: line,
                stderr: log.lock().unwrap().clone(),
            });
        };
        Ok(Tollgate {
            base: base.to_owned(),
            serve: self,
            child,
            others: Vec::new(),
            log,
            http: client(),
        })
    }
}

/// A client that neither pools across tests nor follows redirects.
pub(crate) fn client() -> reqwest::Client {
    // The client asks for a crypto provider even where it speaks plain HTTP; another test may have set it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_certs_only([])
        .build()
        .expect("a client")
}

fn collect(
    mut from: impl Read + Send + 'static,
    into: Arc<Mutex<String>>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            into.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    })
}

impl Tollgate {
    pub(crate) fn tenant(&self, slug: &str) -> TenantBuilder<'_> {
        TenantBuilder::new(self, slug)
    }

    /// Runs a command beside the server.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> CliRun {
        self.serve.cli(arguments).await
    }

    /// Runs a command that must work; its JSON.
    pub(crate) async fn cli_json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments
            .iter()
            .copied()
            .chain(["--output", "json"])
            .collect();
        let run = self.cli(&arguments).await;
        assert_eq!(run.code, 0, "{arguments:?}: {}", run.stderr);
        serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {}", run.stdout))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let response = self
            .http
            .get(format!("{}{path}", self.base))
            .send()
            .await
            .expect("an answer");
        Answer::read(response).await
    }

    /// Where each of its servers is.
    pub(crate) fn bases(&self) -> Vec<String> {
        let others = self.others.iter().map(|it| it.base.clone());
        std::iter::once(self.base.clone()).chain(others).collect()
    }

    /// The value of a metric: the sum of its samples whose labels contain `labels`.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> i64 {
        let mut sum = self.own_metric(name, labels).await;
        for other in &self.others {
            sum += other.own_metric(name, labels).await;
        }
        sum
    }

    async fn own_metric(&self, name: &str, labels: &str) -> i64 {
        let text = self.get("/metrics").await.expect_ok().text;
        text.lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name) && line.contains(labels))
            .map(|line| {
                line.rsplit(' ')
                    .next()
                    .and_then(|value| value.parse::<f64>().ok())
                    .expect("a sample")
            })
            .sum::<f64>() as i64
    }

    /// Waits until the log holds `text`: what reads it may be a moment behind.
    pub(crate) async fn logged(&self, text: &str) {
        eventually(text, || async { self.log().contains(text).then_some(()) }).await;
    }

    pub(crate) fn log(&self) -> String {
        let mut log = self.log.lock().unwrap().clone();
        for other in &self.others {
            log.push_str(&other.log());
        }
        log
    }

    /// Waits until `/readyz` has nothing to say against any part.
    pub(crate) async fn is_ready(&self) {
        for one in std::iter::once(self).chain(&self.others) {
            eventually("it is ready", || async {
                let ready = one.get("/readyz").await;
                (ready.status == 200 && ready.json()["status"] == "ready").then_some(())
            })
            .await;
        }
    }

    /// Waits until all usage has left the journal.
    pub(crate) async fn is_drained(&self) {
        eventually("the journal is drained", || async {
            (self.metric("usage_journal_pending", "").await == 0).then_some(())
        })
        .await;
    }

    /// Whether the server's disk takes another byte.
    pub(crate) fn take_writes(&self, takes: bool) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        let current = if takes { None } else { Some(0) };
        let limit = rustix::process::Rlimit {
            current,
            maximum: None,
        };
        let id = rustix::process::Pid::from_raw(id);
        rustix::process::prlimit(id, rustix::process::Resource::Fsize, limit)
            .expect("the process is ours");
    }

    /// What its threads have computed so far: a busy machine makes it wait, and does not add to this.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("the process is there");
        // proc(5): utime and stime are the 12th and 13th after the name, in hundredths of a second.
        let fields = stat.rsplit(')').next().expect("a name").split_whitespace();
        let ticks = fields
            .skip(11)
            .take(2)
            .map(|it| it.parse::<u64>().expect("a number"));
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    /// `kill -9`.
    pub(crate) fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for other in &mut self.others {
            other.kill9();
        }
    }

    /// SIGTERM, and the exit code; of several, the first that is not 0.
    pub(crate) async fn terminate(&mut self) -> i32 {
        let mut code = 0;
        for mut other in std::mem::take(&mut self.others) {
            code = if code == 0 {
                other.terminate_one().await
            } else {
                code
            };
        }
        let first = self.terminate_one().await;
        if first == 0 { code } else { first }
    }

    async fn terminate_one(&mut self) -> i32 {
        let id = i32::try_from(self.child.id()).expect("a process id");
        let id = rustix::process::Pid::from_raw(id).expect("a process id");
        rustix::process::kill_process(id, rustix::process::Signal::TERM)
            .expect("the process is there");
        let child = &mut self.child;
        let deadline = tokio::time::Instant::now() + 2 * PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("the process is ours") {
                return status.code().unwrap_or(-1);
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "the server does not stop"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The same settings and data dir once more.
    pub(crate) async fn restart(mut self) -> Self {
        self.kill9();
        self.serve.clone().start().await
    }

    pub(crate) fn settings(&self) -> Serve {
        self.serve.clone()
    }

    /// Stops cleanly, and checks what must hold for every server: nothing reserved, rollups equal events.
    pub(crate) async fn finish(mut self) {
        eventually("nothing is reserved", || async {
            (self.metric("usage_reservations", "").await == 0).then_some(())
        })
        .await;
        assert_eq!(self.terminate().await, 0, "{}", self.log());
        let differences = self.serve.open_store().await.check_rollups().await;
        let differences = differences.expect("the store reads");
        assert!(differences.is_empty(), "{differences:?}");
    }
}

/// A process that ends with its handle, also where whoever started it is given up before it is ready.
#[derive(Debug)]
struct Running(Child);

impl std::ops::Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.kill();
        let _ = self.wait();
    }
}
