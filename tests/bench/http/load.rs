//! The load: HTTP/1.1 clients that cost little themselves, in a closed loop or at a rate.
//!
//! Written by hand on tokio's sockets, since a client library would take more of the two cores than what is measured.

use std::{
    cell::RefCell,
    future::Future,
    io::{self, Write as _},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    task::{JoinSet, LocalSet},
};

use super::{
    clock,
    upstream::{SENT, content_length, number_after},
};

/// What each client sends, again and again.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) address: SocketAddr,
    pub(crate) request: Arc<[u8]>,
    /// The status that every answer must have.
    pub(crate) status: u16,
}

impl Call {
    /// A chat completion with `body`.
    pub(crate) fn chat(address: SocketAddr, key: &str, body: &str) -> Self {
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\nuser-agent: bench\r\naccept: */*\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Self {
            address,
            request: request.into_bytes().into(),
            status: 200,
        }
    }

    pub(crate) fn expect(mut self, status: u16) -> Self {
        self.status = status;
        self
    }
}

/// What a closed or open loop saw.
#[derive(Default)]
pub(crate) struct Answered {
    /// From the request's first byte to the answer's last, in milliseconds.
    pub(crate) took_ms: Vec<f64>,
    /// Requests, those before the watch began included.
    pub(crate) requests: u64,
    /// Answers a second while it was watched.
    pub(crate) per_second: f64,
}

/// What streams saw.
#[derive(Default)]
pub(crate) struct Streamed {
    pub(crate) streams: u64,
    /// From the request to the first frame, in milliseconds.
    pub(crate) first_ms: Vec<f64>,
    /// How late the end mark came: since the frame sent together with it left the upstream, in milliseconds.
    pub(crate) end_late_ms: Vec<f64>,
    /// How many frames each stream had; a frame is a chunk.
    pub(crate) frames: Vec<u32>,
}

/// Runs `clients` in a closed loop: each sends its next request when it has its answer. The first `warm_up` is not
/// watched.
pub(crate) async fn closed(
    call: &Call,
    clients: usize,
    warm_up: Duration,
    watched: Duration,
) -> anyhow::Result<Answered> {
    let seen = Rc::new(RefCell::new(Answered::default()));
    let begin = Instant::now() + warm_up;
    let end = begin + watched;
    run_clients(clients, || {
        let (call, seen) = (call.clone(), Rc::clone(&seen));
        async move {
            let mut client = Client::connect(&call).await?;
            while Instant::now() < end {
                let sent = Instant::now();
                client.ask(&call).await?;
                let mut seen = seen.borrow_mut();
                seen.requests += 1;
                if sent >= begin {
                    seen.took_ms.push(millis(sent.elapsed()));
                }
            }
            Ok(())
        }
    })
    .await?;
    let mut seen = seen.take();
    seen.per_second = count(seen.took_ms.len()) / watched.as_secs_f64();
    Ok(seen)
}

/// Runs `clients`, each one stream after the other until `time` is over, and at least one, however long connecting took;
/// a stream that has begun is read to its end.
pub(crate) async fn streams(
    call: &Call,
    clients: usize,
    time: Duration,
) -> anyhow::Result<Streamed> {
    let seen = Rc::new(RefCell::new(Streamed::default()));
    let end = Instant::now() + time;
    run_clients(clients, || {
        let (call, seen) = (call.clone(), Rc::clone(&seen));
        async move {
            let mut client = Client::connect(&call).await?;
            loop {
                client.ask_stream(&call, &seen).await?;
                if Instant::now() >= end {
                    return Ok(());
                }
            }
        }
    })
    .await?;
    Ok(seen.take())
}

async fn run_clients<F>(clients: usize, client: impl Fn() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    let mut running = JoinSet::new();
    let local = LocalSet::new();
    for _ in 0..clients {
        running.spawn_local_on(client(), &local);
    }
    local
        .run_until(async {
            while let Some(ended) = running.join_next().await {
                ended.context("a client panicked")??;
            }
            Ok(())
        })
        .await
}

/// Sends `rate` requests a second for `time`, whatever becomes of them, over as many connections as that takes.
///
/// A request that finds no connection free opens one; its time counts from when it was due.
pub(crate) async fn open(call: &Call, rate: u32, time: Duration) -> anyhow::Result<Answered> {
    let wires = Arc::new(Wires::default());
    let due = rate.saturating_mul(u32::try_from(time.as_millis())?) / 1_000;
    let pace = Arc::clone(&wires);
    let (call, sending) = (call.clone(), call.clone());
    // A thread of its own, since tokio's timer counts in milliseconds.
    let pacer = std::thread::Builder::new()
        .name("pacer".to_owned())
        .spawn(move || pace.send_all(&sending, rate, due))?;
    let seen = Rc::new(RefCell::new(Answered::default()));
    let mut readers = JoinSet::new();
    let local = LocalSet::new();
    local
        .run_until(async {
            while seen.borrow().requests < u64::from(due) {
                for wire in wires.take_opened() {
                    let reader =
                        read_answers(wire, Arc::clone(&wires), call.clone(), Rc::clone(&seen));
                    readers.spawn_local(reader);
                }
                tokio::select! {
                    () = wires.changed.notified() => {}
                    Some(ended) = readers.join_next() => ended.context("a reader panicked")??,
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
                if pacer.is_finished() && wires.all_failed() {
                    bail!("no request could be sent to {}", call.address);
                }
            }
            anyhow::Ok(())
        })
        .await?;
    pacer
        .join()
        .map_err(|_| anyhow::anyhow!("the pacer panicked"))??;
    Ok(seen.take())
}

/// The connections of an open loop.
#[derive(Default)]
struct Wires {
    free: Mutex<Vec<Arc<Wire>>>,
    /// Opened by the pacer, and not read from yet.
    opened: Mutex<Vec<Arc<Wire>>>,
    changed: Notify,
    failed: std::sync::atomic::AtomicBool,
}

struct Wire {
    stream: std::net::TcpStream,
    sent_at: Mutex<Option<Instant>>,
}

impl Wires {
    fn send_all(&self, call: &Call, rate: u32, due: u32) -> io::Result<()> {
        let begun = Instant::now();
        let sent = (0..due).try_for_each(|number| {
            let at = begun + Duration::from_secs(1) * number / rate;
            let now = Instant::now();
            if let Some(left) = at.checked_duration_since(now) {
                std::thread::sleep(left);
            }
            self.send(call)
        });
        if sent.is_err() {
            self.failed
                .store(true, std::sync::atomic::Ordering::Release);
        }
        sent
    }

    fn send(&self, call: &Call) -> io::Result<()> {
        let due = Instant::now();
        let free = lock(&self.free).pop();
        let wire = match free {
            Some(wire) => wire,
            None => self.open(call.address)?,
        };
        *lock(&wire.sent_at) = Some(due);
        (&wire.stream).write_all(&call.request)
    }

    fn open(&self, address: SocketAddr) -> io::Result<Arc<Wire>> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let wire = Arc::new(Wire {
            stream,
            sent_at: Mutex::new(None),
        });
        lock(&self.opened).push(Arc::clone(&wire));
        self.changed.notify_one();
        Ok(wire)
    }

    fn take_opened(&self) -> Vec<Arc<Wire>> {
        std::mem::take(&mut lock(&self.opened))
    }

    fn all_failed(&self) -> bool {
        self.failed.load(std::sync::atomic::Ordering::Acquire)
    }
}

async fn read_answers(
    wire: Arc<Wire>,
    wires: Arc<Wires>,
    call: Call,
    seen: Rc<RefCell<Answered>>,
) -> anyhow::Result<()> {
    let mut client = Client {
        stream: TcpStream::from_std(wire.stream.try_clone()?)?,
        buffer: Vec::with_capacity(16 * 1024),
    };
    loop {
        client.read_whole(call.status).await?;
        let sent_at = lock(&wire.sent_at).take();
        let sent_at = sent_at.context("an answer came that nobody asked for")?;
        {
            let mut seen = seen.borrow_mut();
            seen.took_ms.push(millis(sent_at.elapsed()));
            seen.requests += 1;
        }
        lock(&wires.free).push(Arc::clone(&wire));
        wires.changed.notify_one();
    }
}

/// One connection.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(call: &Call) -> io::Result<Self> {
        let stream = TcpStream::connect(call.address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(16 * 1024),
        })
    }

    /// Sends the request and reads its whole answer.
    pub(crate) async fn ask(&mut self, call: &Call) -> anyhow::Result<()> {
        self.stream.write_all(&call.request).await?;
        self.read_whole(call.status).await
    }

    async fn read_whole(&mut self, status: u16) -> anyhow::Result<()> {
        let head = self.read_head(status).await?;
        let length = head + content_length(&self.buffer[..head]);
        while self.buffer.len() < length {
            self.read_more().await?;
        }
        self.buffer.drain(..length);
        Ok(())
    }

    /// Sends the request and reads the stream to its end.
    pub(crate) async fn ask_stream(
        &mut self,
        call: &Call,
        seen: &RefCell<Streamed>,
    ) -> anyhow::Result<()> {
        let sent = Instant::now();
        self.stream.write_all(&call.request).await?;
        let head = self.read_head(call.status).await?;
        self.buffer.drain(..head);
        let (mut frames, mut left_at) = (0, 0);
        while let Some(chunk) = self.next_chunk().await? {
            if frames == 0 {
                seen.borrow_mut().first_ms.push(millis(sent.elapsed()));
            }
            frames += 1;
            left_at = number_after(&chunk, SENT).unwrap_or(left_at);
            if memmem::find(&chunk, b"[DONE]").is_some() {
                let late = clock::micros().saturating_sub(left_at);
                let late = Duration::from_micros(late);
                seen.borrow_mut().end_late_ms.push(millis(late));
            }
        }
        let mut seen = seen.borrow_mut();
        seen.streams += 1;
        seen.frames.push(frames);
        Ok(())
    }

    /// The next chunk of a chunked body; `None` at its end.
    async fn next_chunk(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = memmem::find(&self.buffer, b"\r\n") {
                let digits = std::str::from_utf8(&self.buffer[..line])?;
                let length = usize::from_str_radix(digits, 16)
                    .with_context(|| format!("'{digits}' is no chunk's length"))?;
                let (begin, end) = (line + 2, line + 2 + length);
                while self.buffer.len() < end + 2 {
                    self.read_more().await?;
                }
                let chunk = self.buffer[begin..end].to_vec();
                self.buffer.drain(..end + 2);
                return Ok((length > 0).then_some(chunk));
            }
            self.read_more().await?;
        }
    }

    /// Reads until the answer's head is there, and gives its length.
    async fn read_head(&mut self, status: u16) -> anyhow::Result<usize> {
        loop {
            if let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") {
                let found = self.buffer.get(9..12).unwrap_or_default();
                if found != status.to_string().as_bytes() {
                    let text = String::from_utf8_lossy(&self.buffer);
                    bail!("an answer is not {status}: {text}");
                }
                return Ok(end + 4);
            }
            self.read_more().await?;
        }
    }

    async fn read_more(&mut self) -> anyhow::Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            bail!("the connection was closed before the answer's end");
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A count as a number to divide; exact below 2^32.
pub(crate) fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
