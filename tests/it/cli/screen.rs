//! A terminal for tests: what a person would see, and the keys that a person would press.

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use super::Shell;
use crate::support::PATIENCE;

/// A terminal that a person sits at: a window of tmux with a command in it.
pub(super) struct Screen {
    socket: String,
    pub(super) shell: Shell,
}

impl Screen {
    pub(super) fn of(shell: Shell, words: &str) -> Self {
        let socket = format!("tollgate-{}", tollgate::clock::new_id());
        let variables: Vec<String> = shell
            .environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let screen = Self { socket, shell };
        let line = format!(
            "trap : INT; cd {} && env -i TERM=tmux-256color {} {} {words}; echo \"exit code $?\"; exec sleep 1000",
            screen.shell.path().display(),
            variables.join(" "),
            env!("CARGO_BIN_EXE_tollgate")
        );
        screen.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "180",
            "-y",
            "60",
            "sh",
            "-c",
            &line,
        ]);
        screen
    }

    fn tmux(&self, words: &[&str]) -> Output {
        let output = Command::new("tmux")
            .args(["-L", &self.socket])
            .args(words)
            .output()
            .expect("tmux is there (`make deps` installs it)");
        assert!(output.status.success(), "{words:?}: {output:?}");
        output
    }

    pub(super) fn text(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p", "-S", "-200"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What is on the screen, with its colours as escape codes.
    pub(super) fn coloured(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p", "-e"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// How many lines have gone off the screen at its top.
    pub(super) fn lines_gone(&self) -> u64 {
        let output = self.tmux(&["display-message", "-p", "#{history_size}"]);
        let shown = String::from_utf8_lossy(&output.stdout);
        shown.trim().parse().unwrap()
    }

    /// Waits until the last question on the screen is the one with this key.
    #[track_caller]
    pub(super) fn asks(&self, key: &str) -> &Self {
        self.shows(&format!("? {key}: "), |text, wanted| {
            text.lines()
                .rev()
                .find(|line| line.starts_with("? "))
                .is_some_and(|line| line.starts_with(wanted))
        })
    }

    #[track_caller]
    pub(super) fn says(&self, wanted: &str) -> &Self {
        self.shows(wanted, |text, wanted| text.contains(wanted))
    }

    #[track_caller]
    fn shows(&self, wanted: &str, holds: impl Fn(&str, &str) -> bool) -> &Self {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.text(), wanted) {
            assert!(
                Instant::now() < deadline,
                "no '{wanted}' on the screen:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        self
    }

    pub(super) fn keys(&self, keys: &[&str]) -> &Self {
        self.tmux(&[&["send-keys"], keys].concat());
        self
    }

    pub(super) fn enter(&self) -> &Self {
        self.keys(&["Enter"])
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = Command::new("tmux")
            .args(["-L", &self.socket, "kill-server"])
            .output();
    }
}
