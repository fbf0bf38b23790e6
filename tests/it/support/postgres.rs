//! A real Postgres for tests: one server for all tests of a run, a database of its own for each.
//!
//! Whoever comes first starts the server, in a temporary directory and as an ordinary user (it refuses root). Every test
//! process holds a lock for as long as it lives; a watchdog ends the server, and removes it, once nobody has held it for
//! a while. So nothing is left behind, however tests end. Unit tests include this file too.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Goes up with whatever of this file changes the server.
const VERSION: u32 = 4;
/// As a user of Debian that may do nothing else.
const NOBODY: u32 = 65_534;
/// The role whose connections must bring [`PASSWORD`]; `tollgate` is trusted.
pub(crate) const GUARDED: &str = "guarded";
pub(crate) const PASSWORD: &str = "correct-horse-battery";

/// A server's directory and port.
pub(crate) struct Cluster {
    directory: PathBuf,
    pub(crate) port: u16,
    /// Beyond what all have.
    settings: &'static [(&'static str, &'static str)],
}

impl Cluster {
    /// A new server in `directory`, which may be there, running.
    fn start_in(directory: &Path, settings: &'static [(&'static str, &'static str)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let cluster = Self {
            directory: directory.to_owned(),
            port,
            settings,
        };
        fs::create_dir_all(directory).unwrap();
        let _ = fs::remove_dir_all(cluster.data());
        if is_root() {
            chown(directory, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // Texts in English order: whatever is not compared byte by byte is noticed.
        let mut init = cluster.command("initdb");
        init.args(["-U", "tollgate", "-A", "trust", "--no-sync", "-E", "UTF8"]);
        init.args([
            "--locale=C.UTF-8",
            "--locale-provider=icu",
            "--icu-locale=en-US",
        ]);
        run(init.arg("-D").arg(cluster.data()));
        let rules = format!(
            "local all all trust\nhost all {GUARDED} all scram-sha-256\nhost all all all trust\n"
        );
        fs::write(cluster.data().join("pg_hba.conf"), rules).unwrap();
        cluster.write_certificates();
        cluster.start();
        cluster.run_sql(
            "postgres",
            &format!("CREATE ROLE {GUARDED} LOGIN SUPERUSER PASSWORD '{PASSWORD}'"),
        );
        cluster
    }

    /// A server for one test that ends, kills or pauses it; it ends with the test.
    pub(crate) fn of_its_own() -> OwnCluster {
        Self::in_directory(tempfile::tempdir().unwrap(), &[])
    }

    /// The same in `directory`, with settings of its own.
    pub(crate) fn in_directory(
        directory: tempfile::TempDir,
        settings: &'static [(&'static str, &'static str)],
    ) -> OwnCluster {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let cluster = Self::start_in(&directory.path().join("server"), settings);
        OwnCluster {
            cluster,
            _directory: directory,
        }
    }

    pub(crate) fn start(&self) {
        // Durable on every commit as far as the program can tell; the disk itself is not waited for.
        let settings = [
            ("port", self.port.to_string()),
            ("listen_addresses", "127.0.0.1".to_owned()),
            (
                "unix_socket_directories",
                self.directory.display().to_string(),
            ),
            ("fsync", "off".to_owned()),
            ("full_page_writes", "off".to_owned()),
            ("wal_level", "minimal".to_owned()),
            ("max_wal_senders", "0".to_owned()),
            ("max_wal_size", "1GB".to_owned()),
            ("shared_buffers", "128MB".to_owned()),
            // Files in its directory, which goes with the test: others stay behind a server that is killed.
            ("dynamic_shared_memory_type", "mmap".to_owned()),
            ("max_connections", "400".to_owned()),
            ("ssl", "on".to_owned()),
        ];
        let own = self.settings.iter();
        let own = own.map(|(name, value)| (*name, (*value).to_owned()));
        let options: Vec<String> = settings
            .into_iter()
            .chain(own)
            .map(|(name, value)| format!("-c {name}={value}"))
            .collect();
        let mut start = self.command("pg_ctl");
        start
            .arg("-D")
            .arg(self.data())
            .arg("-l")
            .arg(self.directory.join("log"));
        start
            .arg("-o")
            .arg(options.join(" "))
            .args(["-w", "-t", "120", "start"]);
        run_or(&mut start, || {
            fs::read_to_string(self.directory.join("log")).unwrap_or_default()
        });
    }

    /// Ends it as an operator would who is in a hurry: connections are cut, nothing is lost.
    pub(crate) fn stop(&self) {
        let mut stop = self.command("pg_ctl");
        stop.arg("-D").arg(self.data());
        run(stop.args(["-m", "fast", "-w", "-t", "120", "stop"]));
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&self) {
        let processes = self.processes();
        for process in &processes {
            let _ = kill_process(*process, Signal::KILL);
        }
        for process in processes {
            let name = PathBuf::from(format!("/proc/{}", process.as_raw_nonzero()));
            wait_for("the server's end", || !name.exists() || is_zombie(&name));
        }
        // Nobody may ever wait for the first process, whose number then stays in use.
        let port = self.port;
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
        let _ = fs::remove_file(self.directory.join(format!(".s.PGSQL.{port}.lock")));
    }

    /// Stands still: it takes connections, and answers nothing.
    pub(crate) fn pause(&self) {
        for process in self.processes() {
            let _ = kill_process(process, Signal::STOP);
        }
    }

    pub(crate) fn resume(&self) {
        for process in self.processes() {
            let _ = kill_process(process, Signal::CONT);
        }
    }

    /// The server's first process and its children.
    fn processes(&self) -> Vec<Pid> {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let Some(first) = file
            .lines()
            .next()
            .and_then(|line| line.trim().parse::<i32>().ok())
        else {
            return Vec::new();
        };
        let children = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let status = fs::read_to_string(entry.path().join("status")).ok()?;
                let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
                let is_child = parent.trim() == first.to_string();
                is_child.then(|| entry.file_name().to_str()?.parse::<i32>().ok())?
            });
        std::iter::once(first)
            .chain(children)
            .filter_map(Pid::from_raw)
            .collect()
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Certificates of those whom `ca.pem` makes trusted: for `localhost`, and not for 127.0.0.1.
    fn write_certificates(&self) {
        let certificates = Certificates::for_localhost();
        fs::write(self.authority(), certificates.authority).unwrap();
        fs::write(self.data().join("server.crt"), certificates.server).unwrap();
        let name = self.data().join("server.key");
        fs::write(&name, certificates.key).unwrap();
        fs::set_permissions(&name, fs::Permissions::from_mode(0o600)).unwrap();
        if is_root() {
            chown(&name, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    /// The file of the certificate that makes the server's trusted.
    pub(crate) fn authority(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    fn command(&self, name: &str) -> Command {
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
            command.arg(binaries().join(name));
            command
        } else {
            Command::new(binaries().join(name))
        };
        command.current_dir(&self.directory).env_clear();
        command
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C.UTF-8");
        command
    }

    /// Runs statements, each by itself, in `database`.
    pub(crate) fn run_sql(&self, database: &str, sql: &str) {
        let (port, database, sql) = (self.port, database.to_owned(), sql.to_owned());
        in_a_runtime(async move {
            let settings = format!("host=127.0.0.1 port={port} user=tollgate dbname={database}");
            let (client, connection) = tokio_postgres::connect(&settings, tokio_postgres::NoTls)
                .await
                .unwrap_or_else(|error| panic!("{settings}: {error:?}"));
            let asked = async {
                let done = client.simple_query(&sql).await;
                done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
                drop(client);
            };
            let (ended, ()) = tokio::join!(connection, asked);
            let _ = ended;
        });
    }

    fn address(&self, database: &str) -> String {
        format!("postgres://tollgate@127.0.0.1:{}/{database}", self.port)
    }
}

/// In PEM.
pub(crate) struct Certificates {
    /// Who trusts this trusts the server.
    pub(crate) authority: String,
    pub(crate) server: String,
    pub(crate) key: String,
}

impl Certificates {
    pub(crate) fn for_localhost() -> Self {
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertifiedIssuer::self_signed(authority, authority_key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let server = params.signed_by(&key, &authority).unwrap();
        Self {
            authority: authority.pem(),
            server: server.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A server that ends with its test.
pub(crate) struct OwnCluster {
    cluster: Cluster,
    _directory: tempfile::TempDir,
}

impl std::ops::Deref for OwnCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl OwnCluster {
    pub(crate) fn url(&self) -> String {
        self.address("postgres")
    }
}

impl Drop for OwnCluster {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A database for one test; gone with it.
pub(crate) struct Database {
    name: String,
}

impl Database {
    /// Without any table.
    pub(crate) fn empty() -> Self {
        Self::made_from("template1")
    }

    /// With the schema of this version: a copy of one that was migrated once.
    pub(crate) fn migrated() -> Self {
        static TEMPLATE: OnceLock<String> = OnceLock::new();
        Self::made_from(TEMPLATE.get_or_init(make_template))
    }

    fn made_from(template: &str) -> Self {
        let name = format!("test_{:032x}", rand::random::<u128>());
        let sql = format!("CREATE DATABASE {name} TEMPLATE {template}");
        server().run_sql("postgres", &sql);
        Self { name }
    }

    pub(crate) fn url(&self) -> String {
        server().address(&self.name)
    }

    /// As the role that needs a password, with a query such as `sslmode=require`.
    pub(crate) fn guarded_url(&self, host: &str, query: &str) -> String {
        let (name, port) = (&self.name, server().port);
        format!("postgres://{GUARDED}:{PASSWORD}@{host}:{port}/{name}?{query}")
    }

    /// What a hand at the `psql` prompt would do.
    pub(crate) fn run_sql(&self, sql: &str) {
        server().run_sql(&self.name, sql);
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let name = &self.name;
        server().run_sql("postgres", &format!("DROP DATABASE {name} WITH (FORCE)"));
    }
}

/// The server that all tests share.
pub(crate) fn server() -> &'static Cluster {
    static SERVER: OnceLock<(Cluster, File)> = OnceLock::new();
    &SERVER.get_or_init(join_server).0
}

/// In memory where there is much of it: the disk is not waited for anyway, and hundreds of databases, each of hundreds
/// of files, are made and removed in a run.
fn shared_directory() -> PathBuf {
    const ROOMY_BYTES: u64 = 8 << 30;
    let memory = Path::new("/dev/shm");
    let size = rustix::fs::statvfs(memory).map_or(0, |of| of.f_blocks * of.f_frsize);
    let parent = if size >= ROOMY_BYTES {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let user = rustix::process::getuid().as_raw();
    parent.join(format!("tollgate-tests-postgres-{VERSION}-{user}"))
}

fn join_server() -> (Cluster, File) {
    let directory = shared_directory();
    fs::create_dir_all(&directory).unwrap();
    let open = |name: &str| {
        let path = directory.join(name);
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .unwrap()
    };
    let user = open("users.lock");
    user.lock_shared().unwrap(); // kept for as long as this process lives
    let starting = open("start.lock");
    starting.lock().unwrap();
    let port_file = directory.join("port");
    let running = fs::read_to_string(&port_file)
        .ok()
        .and_then(|text| text.parse().ok());
    if let Some(port) = running
        && TcpStream::connect(("127.0.0.1", port)).is_ok()
    {
        return (
            Cluster {
                directory,
                port,
                settings: &[],
            },
            user,
        );
    }
    let cluster = Cluster::start_in(&directory, &[]);
    fs::write(&port_file, cluster.port.to_string()).unwrap();
    start_watchdog(&cluster);
    (cluster, user)
}

/// Ends the server once nobody has used it for 20 s.
fn start_watchdog(cluster: &Cluster) {
    let directory = cluster.directory.display();
    let stop = cluster.command("pg_ctl");
    let stop: Vec<_> = std::iter::once(stop.get_program())
        .chain(stop.get_args())
        .collect();
    let stop: Vec<_> = stop.iter().map(|word| word.to_string_lossy()).collect();
    let stop = stop.join(" ");
    let script = format!(
        "idle=0
         while sleep 2; do
             if flock -n -x {directory}/users.lock true; then idle=$((idle + 1)); else idle=0; fi
             if [ $idle -ge 10 ]; then
                 flock -n -x {directory}/users.lock sh -c '{stop} -D {directory}/data -m immediate stop; \
                     rm -rf {directory}/data {directory}/port' && exit
             fi
         done"
    );
    let mut watchdog = Command::new("setsid"); // which forks, so that nobody waits for it
    watchdog
        .args(["--fork", "sh", "-c", &script])
        .current_dir("/")
        .env_clear();
    watchdog.env("PATH", "/usr/bin:/bin");
    watchdog
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let forked = watchdog.status().expect("setsid is part of util-linux");
    assert!(forked.success(), "{forked}");
}

/// The database that others are copied from: named by what its migrations say.
fn make_template() -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/postgres");
    let mut files: Vec<_> = fs::read_dir(migrations)
        .unwrap()
        .map(|it| it.unwrap().path())
        .collect();
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        fs::read(file).unwrap().hash(&mut hasher);
    }
    let name = format!("template_{:016x}", hasher.finish());
    let server = server();
    let lock = File::create(server.directory.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let made = server.directory.join("data").join(&name);
    if !made.exists() {
        server.run_sql("postgres", &format!("DROP DATABASE IF EXISTS {name}"));
        server.run_sql("postgres", &format!("CREATE DATABASE {name}"));
        let url = server.address(&name);
        in_a_runtime(async move { super::bring_up_to_date(&url).await });
        File::create(made).unwrap().flush().unwrap();
    }
    name
}

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// Debian's directory of the newest version's programs.
fn binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let version = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions
        .map(|entry| entry.path().join("bin"))
        .filter(|path| path.join("initdb").exists())
        .max_by_key(version);
    newest
        .expect("these tests need a real Postgres: install Debian's package postgresql (make deps)")
}

fn run(command: &mut Command) {
    run_or(command, String::new);
}

/// `more` is said where it fails.
fn run_or(command: &mut Command, more: impl FnOnce() -> String) {
    let shown = format!("{command:?}");
    // Into files: a server that inherited a pipe would keep a test's output open.
    let mut output = tempfile::tempfile().unwrap();
    let write = || Stdio::from(output.try_clone().unwrap());
    command.stdin(Stdio::null()).stdout(write()).stderr(write());
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    if !status.success() {
        use std::io::{Read as _, Seek as _};
        let mut text = String::new();
        output.rewind().unwrap();
        output.read_to_string(&mut text).unwrap();
        panic!("{shown}: {status}\n{text}\n{}", more());
    }
}

/// In a thread of its own: the caller may be in a runtime, and be dropping something.
fn in_a_runtime(work: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        runtime.unwrap().block_on(work);
    });
    thread
        .join()
        .expect("what was to be done in the database was done");
}

fn is_zombie(process: &Path) -> bool {
    let status = fs::read_to_string(process.join("stat")).unwrap_or_default();
    status
        .rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "waited in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
