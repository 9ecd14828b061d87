//! A relay between the two ends of a live migration: it forwards bytes and counts them, the same way for
//! every VMM.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// A relay. Its threads end with the connections.
pub(crate) struct Relay {
    bytes: Arc<AtomicU64>,
}

impl Relay {
    /// Forwards every connection from the socket at `from` to that at `to`.
    pub(crate) fn start(from: &Path, to: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(from)?;
        let bytes = Arc::new(AtomicU64::new(0));
        let (counter, to) = (Arc::clone(&bytes), to.to_owned());
        // The thread waits for connections until the process ends: a few such threads do no harm.
        thread::spawn(move || accept(&listener, &to, &counter));
        Ok(Self { bytes })
    }

    /// The number of bytes from the source to the destination.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

fn accept(listener: &UnixListener, to: &PathBuf, bytes: &Arc<AtomicU64>) {
    for source in listener.incoming() {
        let (Ok(source), Ok(destination)) = (source, UnixStream::connect(to)) else {
            continue;
        };
        let (Ok(back_from), Ok(back_to)) = (destination.try_clone(), source.try_clone()) else {
            continue;
        };
        let bytes = Arc::clone(bytes);
        thread::spawn(move || pass(source, destination, &bytes));
        thread::spawn(move || pass(back_from, back_to, &AtomicU64::new(0)));
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, bytes: &AtomicU64) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(read) = from.read(&mut buffer) {
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            break;
        }
        bytes.fetch_add(read as u64, Ordering::Relaxed);
    }
    // The other end may already be closed.
    let _gone = to.shutdown(Shutdown::Write);
}
