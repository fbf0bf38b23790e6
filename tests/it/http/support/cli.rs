//! The built command line.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use tokio::sync::oneshot;

/// The built program.
pub(in crate::http) const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

/// A command that has ended.
#[derive(Clone, Debug)]
pub(in crate::http) struct CliRun {
    pub(in crate::http) exit_code: i32,
    pub(in crate::http) stdout: String,
    pub(in crate::http) stderr: String,
}

impl CliRun {
    #[track_caller]
    pub(in crate::http) fn expect_ok(self) -> Self {
        assert_eq!(self.exit_code, 0, "{self:#?}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(in crate::http) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// The program with an environment of its own: nothing of the machine's, and no `.env` of the working directory.
pub(in crate::http) fn command(data_dir: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command
        .env_clear()
        .env("TOLLGATE_DATA_DIR", data_dir)
        .env("NO_COLOR", "1")
        .current_dir(data_dir.parent().unwrap())
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end, without holding up the test's runtime: an upstream may live there.
pub(in crate::http) async fn run(data_dir: &Path, arguments: &[&str]) -> CliRun {
    let mut command = command(data_dir);
    command.args(arguments);
    let (send, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = send.send(command.output());
    });
    let output = super::soon("the end of a command", ended)
        .await
        .unwrap()
        .unwrap();
    CliRun {
        exit_code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
