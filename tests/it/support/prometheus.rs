//! A real Prometheus that scrapes servers under test, and its `promtool`; both from Debian's package `prometheus`.

use std::{
    io::Write as _,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use super::{eventually, gate::client};

const PROMETHEUS: &str = "/usr/bin/prometheus";
const PROMTOOL: &str = "/usr/bin/promtool";

/// Runs promtool; what it printed, if it ended well.
///
/// # Errors
/// What it printed else.
pub(crate) fn promtool(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = start(
        Command::new(PROMTOOL)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).expect("UTF-8");
    if output.status.success() {
        Ok(said)
    } else {
        Err(said)
    }
}

fn start(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| {
        let program = command.get_program().display();
        panic!(
            "{program} can't be started ({error}); install Debian's package prometheus (make deps)"
        )
    })
}

/// A running Prometheus; killed when dropped.
pub(crate) struct Prometheus {
    child: Child,
    base: String,
    http: reqwest::Client,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    /// Scrapes `address` as job `tollgate`, every half second.
    pub(crate) async fn scraping(address: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = directory.path().join("prometheus.yml");
        let target = address.trim_start_matches("http://");
        std::fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}\n\
                 scrape_configs: [{{job_name: tollgate, static_configs: [{{targets: ['{target}']}}]}}]\n"
            ),
        )
        .expect("a configuration");
        let listen = free_address();
        let log = std::fs::File::create(directory.path().join("log")).expect("a log");
        let child = start(
            Command::new(PROMETHEUS)
                .arg(format!("--config.file={}", config.display()))
                .arg(format!(
                    "--storage.tsdb.path={}",
                    directory.path().join("data").display()
                ))
                .arg(format!("--web.listen-address={listen}"))
                .current_dir(directory.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log),
        );
        let prometheus = Self {
            child,
            base: format!("http://{listen}"),
            http: client(),
            _directory: directory,
        };
        eventually("Prometheus is ready", || async {
            let ready = format!("{}/-/ready", prometheus.base);
            let answer = prometheus.http.get(ready).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        prometheus
    }

    /// The values that an expression has now; NaN is none.
    ///
    /// # Errors
    /// What Prometheus says against the expression.
    pub(crate) async fn values(&self, expression: &str) -> Result<Vec<f64>, String> {
        let mut url = url::Url::parse(&format!("{}/api/v1/query", self.base)).expect("a URL");
        url.query_pairs_mut().append_pair("query", expression);
        let answer = self.http.get(url).send().await.expect("an answer");
        let body: Value =
            serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
        if body["status"] != "success" {
            return Err(body["error"].to_string());
        }
        let samples = body["data"]["result"].as_array().expect("a vector");
        let values = samples.iter().map(|sample| {
            let value = sample["value"][1].as_str().expect("a value");
            value.parse::<f64>().expect("a number")
        });
        Ok(values.filter(|value| !value.is_nan()).collect())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

/// Where a file of this repository lies.
pub(crate) fn in_repository(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join(path).display().to_string()
}
