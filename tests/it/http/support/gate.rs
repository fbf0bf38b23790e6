//! The built server, run as its users run it: a process with a cleared environment, on a free port, with a data
//! directory of its own.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::{
    FakeOpenAi, PATIENCE,
    cli::{self, CliRun},
    eventually,
    http::{Address, Reply},
    soon,
    tenant::TenantBuilder,
};

const ANNOUNCES: &str = "tollgate listening on http://";
/// What a stream whose client has gone may still take to settle.
const SETTLING: Duration = Duration::from_secs(5);

/// A server about to be started.
pub(in crate::http) struct Builder {
    environment: BTreeMap<String, String>,
}

impl Builder {
    pub(in crate::http) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.insert(name.to_owned(), value.to_string());
        self
    }

    /// Where the models are; the operator's key is `sk-operator`.
    pub(in crate::http) fn upstream(self, upstream: &FakeOpenAi) -> Self {
        self.env("TOLLGATE_PROVIDER", "openai")
            .env("OPENAI_BASE_URL", upstream.base_url())
            .env("OPENAI_API_KEY", "sk-operator")
    }

    /// Starts it, and waits until it would take a chat.
    pub(in crate::http) async fn start(self) -> Tollgate {
        let root = tempfile::tempdir().unwrap();
        let data_dir = root.path().join("data");
        std::fs::create_dir(&data_dir).unwrap();
        let (process, address) = launch(&data_dir, &self.environment).await;
        let gate = Tollgate {
            address: Address::new(address),
            process: Some(process),
            environment: self.environment,
            _root: root,
            data_dir,
        };
        gate.ready().await;
        gate
    }
}

/// A running server; killed on drop, after a look whether anything is left reserved.
pub(in crate::http) struct Tollgate {
    pub(in crate::http) address: Address,
    process: Option<Process>,
    environment: BTreeMap<String, String>,
    data_dir: PathBuf,
    _root: TempDir,
}

struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Tollgate {
    /// Guardrails on, the simulated provider unless an upstream is given.
    pub(in crate::http) fn serve() -> Builder {
        let environment = BTreeMap::new();
        Builder { environment }
            .env("TOLLGATE_LISTEN", "127.0.0.1:0")
            .env("ENABLE_USAGE_GUARDRAILS", "true")
            .env("TOLLGATE_PROVIDER", "simulated")
            .env("LOG_FORMAT", "json")
            .env("RUST_LOG", "info")
            .env("TOLLGATE_ADMIN_TOKEN", super::admin::BOOTSTRAP_TOKEN)
    }

    /// Runs a command beside the server.
    pub(in crate::http) async fn cli(&self, arguments: &[&str]) -> CliRun {
        cli::run(&self.data_dir, arguments).await
    }

    /// A tenant about to be made, with a plan of its own.
    pub(in crate::http) fn tenant<'a>(&'a self, slug: &'a str) -> TenantBuilder<'a> {
        TenantBuilder::new(self, slug)
    }

    pub(in crate::http) async fn get(&self, path: &str) -> Reply {
        self.address.get_path(path).await
    }

    /// The sum of a metric over all labels that contain every one of `labels`; 0 if there is none.
    pub(in crate::http) async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.get("/metrics").await.expect_ok().text;
        metric_in(&text, name, labels).unwrap_or(0.0)
    }

    /// What the server has logged, a JSON object a line.
    pub(in crate::http) fn logged(&self) -> Vec<Value> {
        let log = self.process.as_ref().unwrap().log.lock().unwrap().clone();
        log.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// What the server has logged, as it is.
    pub(in crate::http) fn log_text(&self) -> String {
        self.process.as_ref().unwrap().log.lock().unwrap().clone()
    }

    /// The server's resident memory, by `proc_pid_status(5)`.
    pub(in crate::http) fn resident_kib(&self) -> u64 {
        let id = self.process.as_ref().unwrap().child.id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse().unwrap()
    }

    /// Waits for a log line with this `code`.
    pub(in crate::http) async fn logs(&self, code: &str) -> Value {
        eventually(&format!("a log line with code {code}"), || async {
            self.logged().into_iter().find(|line| line["code"] == code)
        })
        .await
    }

    /// Waits until nothing is reserved.
    pub(in crate::http) async fn settled(&self) {
        eventually("the end of all reservations", || async {
            (self.metric("usage_reservations", &[]).await == 0.0).then_some(())
        })
        .await;
    }

    /// Ends it as a power cut would.
    pub(in crate::http) async fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.child.kill().unwrap();
            process.wait().await;
        }
    }

    /// Asks it to stop, as a service manager does, and waits until it has.
    pub(in crate::http) async fn terminate(&mut self) -> ExitStatus {
        self.begin_stop().wait().await
    }

    /// Asks it to stop; it may still have streams to end.
    pub(in crate::http) fn begin_stop(&mut self) -> Stopping {
        let process = self.process.take().expect("the server was stopped before");
        process.signal(Signal::TERM);
        Stopping(process)
    }

    /// Starts it again on the same data; tenants made before still work.
    pub(in crate::http) async fn restart(&mut self) {
        if self.process.is_some() {
            assert!(self.terminate().await.success());
        }
        let (process, address) = launch(&self.data_dir, &self.environment).await;
        self.process = Some(process);
        self.address.set(address);
        self.ready().await;
    }

    async fn ready(&self) {
        eventually("a server that takes chats", || async {
            (self.get("/readyz").await.status == 200).then_some(())
        })
        .await;
    }
}

/// A server that was asked to stop.
pub(in crate::http) struct Stopping(Process);

impl Stopping {
    pub(in crate::http) async fn wait(mut self) -> ExitStatus {
        self.0.wait().await
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    async fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let deadline = Instant::now() + PATIENCE * 2;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server did not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // Captured by the test harness, and shown with the failure.
            eprintln!("--- the server's log ---\n{}", self.log.lock().unwrap());
        }
    }
}

impl Drop for Tollgate {
    fn drop(&mut self) {
        if self.process.is_none() || std::thread::panicking() {
            return;
        }
        let address = self.address.get();
        let deadline = Instant::now() + SETTLING;
        loop {
            let text = blocking_metrics(address);
            let left = metric_in(&text, "usage_reservations", &[]);
            if left == Some(0.0) {
                return;
            }
            assert!(Instant::now() < deadline, "reservations are left: {left:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Starts the server, and gives the address that the first line of its output names.
async fn launch(data_dir: &Path, environment: &BTreeMap<String, String>) -> (Process, SocketAddr) {
    let mut child = cli::command(data_dir)
        .arg("serve")
        .envs(environment)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = Arc::new(Mutex::new(String::new()));
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let written = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let mut log = written.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (send, first_line) = oneshot::channel();
    std::thread::spawn(move || {
        let mut lines = stdout.lines().map_while(Result::ok);
        let _ = send.send(lines.next());
        lines.for_each(drop); // a full pipe would stop the server
    });
    let process = Process { child, log };
    let line = soon("the server's first line", first_line)
        .await
        .unwrap()
        .unwrap_or_default();
    let address = line
        .strip_prefix(ANNOUNCES)
        .and_then(|address| address.parse().ok())
        .unwrap_or_else(|| panic!("the server's first line is {line:?}"));
    (process, address)
}

/// Outside of any runtime: drop can't wait for a future.
fn blocking_metrics(address: SocketAddr) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let _ = stream.set_read_timeout(Some(SETTLING));
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
    }
    text
}

fn metric_in(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = rest.rsplit_once(' ')?;
            let is_this = found.is_empty() || found.starts_with('{');
            (is_this && labels.iter().all(|label| found.contains(label)))
                .then(|| value.parse::<f64>().unwrap())
        })
        .reduce(|sum, value| sum + value)
}

#[test]
fn a_metric_is_summed_over_the_labels_asked_for() {
    let text = "# HELP a b\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"3\"} 4\na_total_more 9\nb 1.5\n";
    assert_eq!(metric_in(text, "a_total", &["x=\"1\""]), Some(7.0));
    assert_eq!(metric_in(text, "a_total", &["y=\"2\""]), Some(3.0));
    assert_eq!(metric_in(text, "b", &[]), Some(1.5));
    assert_eq!(metric_in(text, "c", &[]), None);
}
