use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::Shell;

/// A running server, killed when dropped.
struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Server {
    fn start(shell: &Shell) -> Self {
        let mut command = shell.command(&["serve", "--listen", "127.0.0.1:0"]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        stdout.read_line(&mut first).unwrap();
        assert!(
            first.starts_with("tollgate listening on http://127.0.0.1:"),
            "{first:?}"
        );
        Self { child, stdout }
    }

    fn signal(&mut self, signal: Signal) -> std::process::ExitStatus {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.stdout.fill_buf();
    }
}

#[test]
fn a_command_does_the_same_beside_a_server_and_without_one() {
    let shell = Shell::new();
    shell.json("plan create starter --name Starter --preset starter");
    let server = Server::start(&shell);
    let plan = shell.json("plan show starter");
    assert_eq!(
        plan["features"][0]["hard_limit"], 200,
        "what was made before is there"
    );
    shell.json("tenant create acme --name Acme --plan starter");
    let key = shell.json("key create acme --name laptop");
    assert!(key["key"].as_str().unwrap().starts_with("tg_"));
    let table = shell.line("plan list --output table").stdout;
    assert!(
        table.starts_with("plan     name"),
        "rendered where it is typed: {table}"
    );
    assert_eq!(shell.json("plan create team --name Team")["version"], 1);
    assert_eq!(shell.json("plan delete team --yes")["deleted"], true);
    let refused = shell.line("plan show gold");
    assert!(
        refused
            .failure(1)
            .starts_with("error: there is no plan 'gold'; "),
        "{refused:?}"
    );
    let soft = shell.line("plan feature set starter messages --soft 201");
    assert!(
        soft.failure(1).contains("at most the hard_limit, 200"),
        "{soft:?}"
    );
    drop(server);
    assert_eq!(
        shell.json("tenant show acme")["plan_code"],
        "starter",
        "and stays afterwards"
    );
    assert_eq!(shell.json("plan show starter"), plan);
}

#[test]
fn a_start_makes_an_owner_where_there_are_other_administrators_only() {
    let shell = Shell::new();
    shell.json("admin-token create vera --role viewer");
    let refused = shell.line("admin-token create bootstrap --role viewer");
    assert!(refused.failure(1).contains("another name"), "{refused:?}");
    let mut server = Server::start(&shell);
    let mut second = String::new();
    server.stdout.read_line(&mut second).unwrap();
    assert!(second.starts_with("admin token: tga_"), "{second:?}");
    let listed = shell.json("admin-token list");
    assert_eq!(listed["items"][1]["name"], "bootstrap");
    assert_eq!(listed["items"][1]["role"], "owner");
}

#[test]
fn a_second_server_on_the_same_data_dir_is_refused_by_name() {
    let shell = Shell::new();
    let _server = Server::start(&shell);
    let second = shell.run(&["serve", "--listen", "127.0.0.1:0"]);
    let data_dir = fs::canonicalize(shell.path().join("var")).unwrap();
    let expected = format!(
        "error: another server runs on data dir {}",
        data_dir.display()
    );
    assert!(second.failure(1).starts_with(&expected), "{second:?}");
    assert_eq!(
        shell.json("plan list"),
        json!({"items": []}),
        "the first still answers"
    );
}

#[test]
fn a_second_server_on_the_same_database_is_refused_and_commands_are_not() {
    let shell = Shell::new().with("DATABASE_URL", "sqlite:s.db");
    let mut server = Server::start(&shell);
    shell.json("plan create team --name Team");
    let elsewhere = ["serve", "--listen", "127.0.0.1:0", "--data-dir", "other"];
    let refused = shell.run(&elsewhere);
    let here = fs::canonicalize(shell.path()).unwrap();
    let expected = format!(
        "error: another server (data dir {0}/var) runs on the database {0}/s.db; ",
        here.display()
    );
    assert!(refused.failure(1).starts_with(&expected), "{refused:?}");
    let listed = shell.json("plan list --data-dir other");
    assert_eq!(
        listed["items"][0]["plan_code"], "team",
        "it may be looked at"
    );
    server.signal(Signal::TERM);
    shell.json("backup all.backup");
    let server = Server::start(&shell);
    let replaced = shell.line("restore all.backup --yes --data-dir other");
    assert!(replaced.failure(1).starts_with(&expected), "{replaced:?}");
    drop(server);
    let restored = shell.line("restore all.backup --yes --data-dir other");
    assert_eq!(restored.code, 0, "{restored:?}");
}

#[test]
fn a_killed_server_leaves_a_data_dir_that_works() {
    let shell = Shell::new();
    let mut server = Server::start(&shell);
    shell.json("plan create team --name Team");
    server.signal(Signal::KILL);
    assert_eq!(shell.json("plan show team")["plan_code"], "team");
    let _again = Server::start(&shell);
    assert_eq!(shell.json("plan show team")["plan_code"], "team");
}

#[test]
fn a_server_that_is_told_to_stop_ends_well() {
    let shell = Shell::new();
    let mut server = Server::start(&shell);
    assert_eq!(server.signal(Signal::TERM).code(), Some(0));
    assert!(!shell.path().join("var/tollgate.sock").exists());
}

#[test]
fn a_deep_data_dir_can_be_asked_too() {
    let deep = format!("{}/{}", "d".repeat(120), "e".repeat(120));
    let shell = Shell::new().with("TOLLGATE_DATA_DIR", &deep);
    let _server = Server::start(&shell);
    assert_eq!(shell.json("plan create team --name Team")["version"], 1);
}
