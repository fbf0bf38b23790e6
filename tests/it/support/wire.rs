//! A wire between a program and a server that can be slow, go dead, or be cut.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// What the wire does to each piece that comes over it.
#[derive(Default)]
struct Mood {
    delay_ms: AtomicU64,
    /// Takes pieces towards the server, or from it, and passes them to nobody.
    loses: [AtomicBool; 2],
    /// So many connections that were made first lose everything.
    forgotten: AtomicUsize,
    has_ended: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

/// Which way a piece goes; an index into [`Mood::loses`].
#[derive(Clone, Copy)]
enum Way {
    There,
    Back,
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

    /// Takes everything and passes nothing on, as a firewall that has forgotten a connection does. A connection that
    /// has lost something is cut when it is to pass things on again: no network drops bytes out of a stream.
    pub(crate) fn swallow(&self, swallows: bool) {
        for loses in &self.mood.loses {
            loses.store(swallows, Ordering::SeqCst);
        }
    }

    /// Passes on what goes to the server, and loses what it answers: all that is asked is done, and nobody hears of it.
    pub(crate) fn lose_answers(&self, loses: bool) {
        self.mood.loses[Way::Back as usize].store(loses, Ordering::SeqCst);
    }

    /// Nothing comes over the connections there are any more, and nobody is told; new ones are good.
    pub(crate) fn forget(&self) {
        let made = self.mood.connections.lock().unwrap().len();
        self.mood.forgotten.store(made, Ordering::SeqCst);
    }

    /// How many connections were made over it so far.
    pub(crate) fn made(&self) -> usize {
        self.mood.connections.lock().unwrap().len() / 2
    }

    /// Ends all connections there are.
    pub(crate) fn cut(&self) {
        for connection in &*self.mood.connections.lock().unwrap() {
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
    let number = {
        let mut connections = mood.connections.lock().unwrap();
        let number = connections.len();
        for end in &ends {
            end.set_nodelay(true)?;
            connections.push(end.try_clone()?);
        }
        number
    };
    let [client, server] = ends;
    let ways = [
        (Way::There, client.try_clone()?, server.try_clone()?),
        (Way::Back, server, client),
    ];
    for (way, from, to) in ways {
        let mood = Arc::clone(mood);
        std::thread::spawn(move || {
            let _ = pass(&mood, number, way, &from, &to);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn pass(
    mood: &Mood,
    number: usize,
    way: Way,
    mut from: &TcpStream,
    mut to: &TcpStream,
) -> io::Result<()> {
    let mut piece = [0; 65_536];
    let mut has_lost = false;
    loop {
        let length = from.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(mood.delay_ms.load(Ordering::SeqCst)));
        if number < mood.forgotten.load(Ordering::SeqCst) {
            continue;
        }
        if mood.loses[way as usize].load(Ordering::SeqCst) {
            has_lost = true;
        } else if has_lost {
            return Ok(());
        } else {
            to.write_all(&piece[..length])?;
        }
    }
}
