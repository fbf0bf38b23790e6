//! A wire between a program and a server that can be slow, go dead, or be cut.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// What the wire does to each piece that comes over it.
#[derive(Default)]
struct Mood {
    delay_ms: AtomicU64,
    swallows: AtomicBool,
    has_ended: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

/// Listens on a port of its own; ends when it is dropped.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    mood: Arc<Mood>,
}

impl Wire {
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mood = Arc::new(Mood::default());
        let here = Arc::clone(&mood);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if here.has_ended.load(Ordering::SeqCst) {
                    return;
                }
                // Whatever goes wrong on a wire is no more than a lost connection.
                let _ = client.and_then(|client| connect(&here, client, server));
            }
        });
        Self { address, mood }
    }

    /// Every piece, each way, comes so much later.
    pub(crate) fn delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).unwrap();
        self.mood.delay_ms.store(delay, Ordering::SeqCst);
    }

    /// Takes everything and passes nothing on, as a firewall that has forgotten a connection does.
    pub(crate) fn swallow(&self, swallows: bool) {
        self.mood.swallows.store(swallows, Ordering::SeqCst);
    }

    /// Ends all connections there are.
    pub(crate) fn cut(&self) {
        for connection in self.mood.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.mood.has_ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // wakes the one who listens
        self.cut();
    }
}

fn connect(mood: &Arc<Mood>, client: TcpStream, server: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    let ends = [client, server];
    for end in &ends {
        end.set_nodelay(true)?;
        mood.connections.lock().unwrap().push(end.try_clone()?);
    }
    let [client, server] = ends;
    let ways = [(client.try_clone()?, server.try_clone()?), (server, client)];
    for (from, to) in ways {
        let mood = Arc::clone(mood);
        std::thread::spawn(move || {
            let _ = pass(&mood, &from, &to);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn pass(mood: &Mood, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let mut piece = [0; 65_536];
    loop {
        let length = from.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(mood.delay_ms.load(Ordering::SeqCst)));
        if !mood.swallows.load(Ordering::SeqCst) {
            to.write_all(&piece[..length])?;
        }
    }
}
