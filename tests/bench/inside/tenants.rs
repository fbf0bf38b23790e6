//! Row 13: a million tenants in the store, ten thousand of them active, on the built binary with an upstream that
//! answers at once. No tokenizer is needed for it, whose tables would count as memory of the tenants.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, params};
use tollgate::{services::secrets, store::sqlite::SqliteStore};

use super::{
    fixtures,
    report::{median, micros, row},
};

const TENANTS: u64 = 1_000_000;
const ACTIVE: u64 = 10_000;
/// 2026-01-01T00:00:00Z and a month later, in µs.
const PERIOD: (i64, i64) = (1_767_225_600_000_000, 1_769_904_000_000_000);

const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-5.1","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"completion_tokens":5,"total_tokens":17}}"#;

pub(crate) fn run() {
    let directory = fixtures::directory();
    seed(&directory.path().join("tollgate.db"));
    let upstream = start_upstream();

    let mut starts = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        let server = Server::start(directory.path(), &upstream);
        starts.push(begun.elapsed());
        drop(server);
    }
    let start = median(&mut starts);
    row(
        13,
        "start with 1,000,000 tenants",
        &format!("{:.0} ms", micros(start) / 1e3),
        "< 300 ms",
        start < Duration::from_millis(300),
    );

    let server = Server::start(directory.path(), &upstream);
    let idle = server.resident_megabytes();
    let mut client = Client::connect(&server.address);
    client.chat(TENANTS - 1); // what is made once: connections, prepared statements
    let mut active: Vec<u64> = (0..ACTIVE)
        .map(|number| number * (TENANTS / ACTIVE))
        .collect();
    let mut cold: Vec<Duration> = active.iter().map(|&number| client.chat(number)).collect();
    let mut warm: Vec<Duration> = active.drain(..).map(|number| client.chat(number)).collect();
    let resident = server.resident_megabytes();
    row(
        13,
        "resident with 10,000 active",
        &format!("{resident:.0} MB ({idle:.0} MB before them)"),
        "< 100 MB",
        resident < 100.0,
    );
    let (cold, warm) = (median(&mut cold), median(&mut warm));
    let more = cold.saturating_sub(warm);
    row(
        13,
        "a cold key",
        &format!(
            "{:.0} us more than a warm one's {:.0} us",
            micros(more),
            micros(warm)
        ),
        "<= 200 us more",
        more <= Duration::from_micros(200),
    );
}

fn secret(number: u64) -> String {
    format!("tg_bench{number:038}")
}

fn seed(path: &Path) {
    drop(SqliteStore::open(path).expect("a new directory can be opened")); // it makes the tables
    let mut connection = Connection::open(path).expect("it was just made");
    connection
        .execute_batch("PRAGMA synchronous = OFF; PRAGMA cache_size = -262144;")
        .expect("SQLite knows these");
    let transaction = connection.transaction().expect("nobody else writes");
    transaction
        .execute_batch(
            "INSERT INTO plans VALUES ('pro', 'Pro', '[]', 1);
             INSERT INTO plan_features VALUES ('pro', 'messages', 'Messages', 'requests', 1, NULL, NULL),
                                              ('pro', 'input_tokens', 'Input tokens', 'tokens', 1, NULL, NULL),
                                              ('pro', 'output_tokens', 'Output tokens', 'tokens', 1, NULL, NULL);
             INSERT INTO plan_feature_limits VALUES ('pro', 'messages', 'tenant', 'period', 1000, 1500, 0),
                                                    ('pro', 'input_tokens', 'tenant', 'period', 1000000, 1500000, 0),
                                                    ('pro', 'output_tokens', 'tenant', 'period', 400000, 600000, 0);",
        )
        .expect("the tables are there");
    insert_tenants(&transaction);
    transaction.commit().expect("the disk takes it");
}

fn insert_tenants(connection: &Connection) {
    let prepare = |sql| connection.prepare(sql).expect("the tables are there");
    let mut tenants =
        prepare("INSERT INTO tenants (tenant_id, slug, name, created_at) VALUES (?1, ?2, ?2, ?3)");
    let mut subscriptions = prepare(
        "INSERT INTO subscriptions (tenant_id, plan_code, status, status_since, period_start, period_end, period_months)
         VALUES (?1, 'pro', 'active', ?2, ?2, ?3, 1)",
    );
    let mut keys = prepare(
        "INSERT INTO keys (key_id, tenant_id, name, secret_hash, created_at) VALUES (?1, ?1, 'bench', ?2, ?3)",
    );
    let (start, end) = PERIOD;
    for number in 0..TENANTS {
        let id = fixtures::tenant(number).uuid().into_bytes();
        let slug = format!("tenant-{number}");
        let inserted = tenants
            .execute(params![id, slug, start])
            .and_then(|_| subscriptions.execute(params![id, start, end]))
            .and_then(|_| keys.execute(params![id, secrets::hash(&secret(number)).0, start]));
        inserted.expect("each tenant is new");
    }
}

/// Answers every request with the same completion; gives its base URL.
fn start_upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length";
    let answer = format!("{head}: {}\r\n\r\n{ANSWER}", ANSWER.len());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut reader = BufReader::new(stream);
                while read_message(&mut reader).is_some() {
                    if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("http://{address}/v1")
}

/// The first line of an HTTP message with a length; `None` at the end of the connection.
fn read_message(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(first)
}

/// The built binary; killed when dropped.
struct Server {
    process: Child,
    _stdout: BufReader<ChildStdout>,
    address: String,
}

impl Server {
    fn start(data_dir: &Path, upstream: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .arg("serve")
            .env_clear()
            .env("TOLLGATE_LISTEN", "127.0.0.1:0")
            .env("TOLLGATE_DATA_DIR", data_dir)
            .env("OPENAI_BASE_URL", upstream)
            .env("ENABLE_USAGE_GUARDRAILS", "true")
            .env("RUST_LOG", "error")
            .current_dir(data_dir)
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo has built it");
        let mut stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut line = String::new();
        stdout
            .read_line(&mut line)
            .expect("it says where it listens");
        let (_, address) = line.trim_end().rsplit_once("http://").unwrap_or_else(|| {
            let _ = process.kill();
            panic!("it said {line:?} instead of where it listens")
        });
        Self {
            address: address.to_owned(),
            process,
            _stdout: stdout,
        }
    }

    fn resident_megabytes(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
        let kilobytes: f64 = kilobytes
            .and_then(|text| text.parse().ok())
            .expect("Linux says how much");
        kilobytes / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("it is a TCP connection");
        Self(BufReader::new(stream))
    }

    /// One chat of a tenant, and how long its answer took.
    fn chat(&mut self, number: u64) -> Duration {
        let body =
            r#"{"model":"gpt-5.1","max_tokens":64,"messages":[{"role":"user","content":"hello"}]}"#;
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            secret(number),
            body.len()
        );
        let begun = Instant::now();
        self.0
            .get_mut()
            .write_all(request.as_bytes())
            .expect("it is connected");
        let first = read_message(&mut self.0).expect("it answers");
        let took = begun.elapsed();
        assert!(first.contains(" 200 "), "it answered {first}");
        took
    }
}
