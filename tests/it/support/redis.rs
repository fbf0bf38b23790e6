//! Redis servers of a test's own: real ones, ended with the test. Unit tests use this file too.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A server starts in some ten milliseconds; a busy machine takes longer.
const START_TIME: Duration = Duration::from_secs(20);

/// A server on a free port of this machine, without persistence unless asked for; killed on drop.
pub(crate) struct RedisServer {
    port: u16,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    directory: TempDir,
    child: Option<Child>,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        Self::with_options(&["--save", ""])
    }

    pub(crate) fn with_options(options: &[&str]) -> Self {
        Self::with(options, &[])
    }

    pub(crate) fn with(options: &[&str], environment: &[(String, String)]) -> Self {
        let mut server = Self {
            port: 0,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            environment: environment.to_vec(),
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
            child: None,
        };
        // Between looking for a free port and taking it another may be faster.
        while server.child.is_none() {
            server.port = free_port();
            server.try_start();
        }
        server
    }

    fn try_start(&mut self) {
        let started = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .arg("--dir")
            .arg(self.directory.path())
            .args(&self.options)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = started.expect(
            "redis-server can't be run: install Debian's package redis-server (`make deps`)",
        );
        let deadline = Instant::now() + START_TIME;
        loop {
            if self
                .try_ask(&["PING"])
                .is_some_and(|answer| answer == "+PONG")
            {
                self.child = Some(child);
                return;
            }
            if child.try_wait().expect("it was started here").is_some() {
                return;
            }
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// The first line of the answer to a command.
    pub(crate) fn ask(&self, command: &[&str]) -> String {
        let answer = self.try_ask(command);
        answer.unwrap_or_else(|| panic!("no answer to {command:?}"))
    }

    fn try_ask(&self, command: &[&str]) -> Option<String> {
        let (line, _) = self.send(command)?;
        (!line.is_empty()).then_some(line)
    }

    /// Sends a command; the first line of the answer, and the rest.
    fn send(&self, command: &[&str]) -> Option<(String, BufReader<TcpStream>)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "*{}\r\n", command.len()).ok()?;
        for word in command {
            write!(stream, "${}\r\n{word}\r\n", word.len()).ok()?;
        }
        let mut answer = BufReader::new(stream);
        let mut line = String::new();
        answer.read_line(&mut line).ok()?;
        Some((line.trim_end().to_owned(), answer))
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the server runs");
        let id = i32::try_from(child.id()).expect("it is a process id");
        let id = Pid::from_raw(id).expect("it is not 0");
        kill_process(id, signal).expect("the server can be signalled");
    }

    /// From now on it takes connections, and answers nothing.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server can be killed");
            child.wait().expect("it was started here");
        }
    }

    /// Starts it again where it was.
    pub(crate) fn revive(&mut self) {
        self.kill();
        let deadline = Instant::now() + START_TIME;
        while self.child.is_none() {
            self.try_start();
            assert!(Instant::now() < deadline, "the port is taken");
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = listener.local_addr().expect("it is bound");
    address.port()
}

/// Three masters, each with a third of the slots; and those that stand by, each ready to take its master's place.
pub(crate) struct RedisCluster {
    pub(crate) masters: Vec<RedisServer>,
    pub(crate) standbys: Vec<RedisServer>,
}

const SLOTS: [(&str, &str); 3] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];

impl RedisCluster {
    pub(crate) fn start() -> Self {
        let nodes = SLOTS.iter().map(|_| Self::start_node());
        let (masters, buses): (Vec<_>, Vec<_>) = nodes.unzip();
        for (server, (first, last)) in masters.iter().zip(SLOTS) {
            assert_eq!(
                server.ask(&["CLUSTER", "ADDSLOTSRANGE", first, last]),
                "+OK"
            );
        }
        let cluster = Self {
            masters,
            standbys: Vec::new(),
        };
        for (server, bus) in cluster.masters.iter().zip(&buses).skip(1) {
            cluster.meet(server, bus);
        }
        cluster.comes_together();
        cluster
    }

    /// With one that stands by for each master.
    pub(crate) fn start_with_standbys() -> Self {
        let mut cluster = Self::start();
        for _ in SLOTS {
            let (server, bus) = Self::start_node();
            cluster.meet(&server, &bus);
            cluster.standbys.push(server);
        }
        cluster.comes_together();
        for (master, standby) in cluster.masters.iter().zip(&cluster.standbys) {
            let id = master.bulk(&["CLUSTER", "MYID"]).expect("it has an id");
            assert_eq!(standby.ask(&["CLUSTER", "REPLICATE", &id]), "+OK");
        }
        wait_for("those that stand by follow their masters", || {
            let follows = |server: &RedisServer| server.replication_says("master_link_status:up");
            cluster.standbys.iter().all(follows)
        });
        cluster
    }

    /// A server, and the port that others of its cluster reach it at.
    fn start_node() -> (RedisServer, String) {
        let bus = free_port().to_string();
        let options = [
            ["--cluster-enabled", "yes"],
            ["--cluster-port", &bus],
            ["--cluster-node-timeout", "2000"],
            ["--cluster-replica-validity-factor", "0"], // a busy machine is no reason to stay without a master
            ["--cluster-config-file", "nodes.conf"],
            ["--repl-diskless-sync-delay", "0"],
            ["--save", ""],
        ];
        (RedisServer::with_options(options.as_flattened()), bus)
    }

    fn meet(&self, server: &RedisServer, bus: &str) {
        let port = server.port.to_string();
        let met = self.masters[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]);
        assert_eq!(met, "+OK");
    }

    /// Each has to know all the others, and that every slot is served.
    fn comes_together(&self) {
        let count = self.masters.len() + self.standbys.len();
        wait_for("the cluster comes together", || {
            let mut nodes = self.masters.iter().chain(&self.standbys);
            nodes.all(|server| server.cluster_knows(count))
        });
    }

    /// Ends a master, and waits until the one that stood by for it serves in its place.
    pub(crate) fn fail_over(&mut self, index: usize) {
        self.masters[index].kill();
        wait_for("the one that stood by is the master", || {
            self.standbys[index].replication_says("role:master")
        });
    }

    /// As the setting takes it.
    pub(crate) fn urls(&self) -> String {
        let urls: Vec<String> = self.masters.iter().map(RedisServer::url).collect();
        urls.join(",")
    }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + START_TIME;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl RedisServer {
    fn cluster_knows(&self, nodes: usize) -> bool {
        let Some(text) = self.bulk(&["CLUSTER", "INFO"]) else {
            return false;
        };
        text.contains("cluster_state:ok")
            && text.contains(&format!("cluster_known_nodes:{nodes}"))
            && text.contains("cluster_slots_ok:16384")
    }

    fn replication_says(&self, what: &str) -> bool {
        let text = self.bulk(&["INFO", "replication"]);
        text.is_some_and(|text| text.lines().any(|line| line == what))
    }

    /// The answer to a command that answers with a text.
    pub(crate) fn bulk(&self, command: &[&str]) -> Option<String> {
        let (head, mut rest) = self.send(command)?;
        let mut bytes = vec![0; head.strip_prefix('$')?.parse().ok()?];
        rest.read_exact(&mut bytes).ok()?;
        String::from_utf8(bytes).ok()
    }
}
