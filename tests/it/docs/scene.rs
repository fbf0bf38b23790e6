//! Where a page is run: a directory, a server as `serve --dev` starts it, and one shell that runs the page's blocks in
//! their order, as somebody who reads it would.
//!
//! `scene.sh` puts commands in its `PATH` that a test can't have as they are: `tollgate serve` and `systemctl` start and
//! stop the server in the background, `cargo run --release --` is the binary under test. Addresses and directories that
//! pages name are put in the scene; all else runs as it stands.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
};

use super::page::{Block, Mark, blocks_of};
use crate::support::in_repository;

/// Longer than any page takes.
const PATIENCE_SECONDS: &str = "150";

struct Scene {
    directory: tempfile::TempDir,
    address: String,
}

impl Scene {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            directory: tempfile::tempdir().unwrap(),
            address: listener.local_addr().unwrap().to_string(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What a page says, of this scene.
    fn localized(&self, text: &str) -> String {
        let here = self.directory.path().display();
        text.replace("127.0.0.1:8080", &self.address)
            .replace("/var/lib/tollgate", &format!("{here}/var"))
            .replace("/etc/tollgate", &format!("{here}/etc"))
            .replace("/backups", &format!("{here}/backups"))
    }

    fn script_of(&self, blocks: &[Block]) -> String {
        let mut script = format!("source {}\n", in_repository("tests/docs/scene.sh"));
        for block in blocks.iter().filter(|block| !block.is_run_elsewhere()) {
            let _ = writeln!(script, "at {}", block.place);
            for mark in &block.marks {
                if let Mark::Before(commands) = mark {
                    let _ = writeln!(script, "{}", self.localized(commands));
                }
            }
            if let Some(name) = block.file() {
                fs::write(self.path(name), self.localized(&block.text)).unwrap();
                continue;
            }
            match block.language.as_str() {
                "sh" => script.push_str(&self.localized(&block.text)),
                "console" => {
                    let commands = block
                        .text
                        .lines()
                        .filter_map(|line| line.strip_prefix("$ "));
                    for command in commands {
                        let _ = writeln!(script, "{}", self.localized(command));
                    }
                }
                "json" => {
                    let parsed = serde_json::from_str::<serde_json::Value>(&block.text);
                    parsed.unwrap_or_else(|error| panic!("{}: {error}", block.place));
                }
                "" => {} // a picture
                other => panic!(
                    "{}: a block of '{other}' needs a mark that says what runs it, or why nothing does",
                    block.place
                ),
            }
        }
        script.push_str("stop_server\n");
        script
    }

    /// Runs the script; everything that it printed.
    fn run(&self, script: &str) -> Result<String, String> {
        let (path, log) = (self.path("script.sh"), self.path("output"));
        fs::write(&path, script).unwrap();
        let output = fs::File::create(&log).unwrap();
        let status = Command::new("timeout")
            .args([PATIENCE_SECONDS, "bash"])
            .arg(&path)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("SCENE", self.directory.path())
            .env("SCENE_ADDRESS", &self.address)
            .env("SCENE_BINARY", env!("CARGO_BIN_EXE_tollgate"))
            .env("SCENE_REPOSITORY", env!("CARGO_MANIFEST_DIR"))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .status()
            .unwrap();
        let printed = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        if status.success() {
            Ok(printed)
        } else {
            let log = fs::read_to_string(self.path("server.log")).unwrap_or_default();
            Err(format!(
                "{status}\n{printed}\n--- the server's log ---\n{log}"
            ))
        }
    }

    /// Statuses of 400 and above that the page's servers answered with, the scene's own questions aside.
    fn refusals(&self) -> BTreeSet<u16> {
        let metrics = fs::read_to_string(self.path("metrics")).unwrap_or_default();
        let counted = metrics
            .lines()
            .filter(|line| line.starts_with("http_requests_total{"));
        counted
            .filter(|line| !line.contains(r#"route="/readyz""#))
            .filter_map(|line| line.split("status=\"").nth(1)?.get(..3)?.parse().ok())
            .filter(|status| *status >= 400)
            .collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let id = fs::read_to_string(self.path("server.pid")).unwrap_or_default();
        let id = id
            .trim()
            .parse()
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(id) = id {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
        }
    }
}

/// Runs all of a page.
pub(super) fn play(page: &str) {
    let (scene, blocks) = (Scene::new(), blocks_of(page));
    assert!(!blocks.is_empty(), "{page} has no code blocks");
    if let Err(said) = scene.run(&scene.script_of(&blocks)) {
        panic!("{page}: {said}");
    }
    let announced: BTreeSet<u16> = blocks
        .iter()
        .flat_map(|block| &block.marks)
        .filter_map(|mark| match mark {
            Mark::Answers(statuses) => Some(statuses.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(
        scene.refusals(),
        announced,
        "{page}: refusals that it had, and those that it announces"
    );
}

fn block(place: &str, text: &str) -> Block {
    Block {
        place: place.to_owned(),
        language: "sh".to_owned(),
        marks: Vec::new(),
        text: text.to_owned(),
    }
}

#[test]
fn a_page_whose_command_fails_is_caught_wherever_it_fails() {
    for failing in [
        "tollgate plan show nowhere\n",
        "false | true\n",
        "x=$(false)\n",
        "tollgate serve --listen nowhere\n",
    ] {
        let scene = Scene::new();
        let blocks = [
            block("page:1", "true\n"),
            block("page:2", failing),
            block("page:3", "touch too-far\n"),
        ];
        let said = scene.run(&scene.script_of(&blocks)).unwrap_err();
        assert!(said.contains("failed in page:2"), "{failing}: {said}");
        assert!(!scene.path("too-far").exists(), "{failing}");
    }
}

#[test]
fn an_answer_that_no_page_announces_is_seen_also_before_a_restart() {
    let scene = Scene::new();
    let blocks = [
        block(
            "page:1",
            "curl -s http://127.0.0.1:8080/nowhere\nsystemctl restart tollgate\n",
        ),
        block("page:2", "curl -s http://127.0.0.1:8080/v1/models\n"),
    ];
    scene.run(&scene.script_of(&blocks)).unwrap();
    assert_eq!(scene.refusals(), BTreeSet::from([401, 404]));
}
