//! Beats that a guest sends by UDP, and the longest pause between two of them.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// How often the thread looks whether it shall end.
const STEP: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct Seen {
    count: u64,
    last: Option<Instant>,
    longest: Duration,
}

impl Seen {
    fn note(&mut self, now: Instant) {
        if let Some(last) = self.last {
            self.longest = self.longest.max(now.saturating_duration_since(last));
        }
        self.last = Some(now);
        self.count += 1;
    }
}

/// Receives until it is dropped.
#[derive(Debug)]
pub(super) struct Beats {
    port: u16,
    seen: Arc<Mutex<Seen>>,
    end: Arc<AtomicBool>,
    receiver: Option<JoinHandle<()>>,
}

impl Beats {
    /// At a free port.
    pub(super) fn receive(address: Ipv4Addr) -> io::Result<Self> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_read_timeout(Some(STEP))?;
        let port = socket.local_addr()?.port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let end = Arc::new(AtomicBool::new(false));
        let receiver = {
            let (seen, end) = (Arc::clone(&seen), Arc::clone(&end));
            thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    if socket.recv(&mut [0; 16]).is_ok() {
                        lock(&seen).note(Instant::now());
                    }
                }
            })
        };
        Ok(Self {
            port,
            seen,
            end,
            receiver: Some(receiver),
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Waits until there are `count` more; `false` if `limit` passes first.
    pub(super) fn wait_for(&self, count: u64, limit: Duration) -> bool {
        let (start, aim) = (Instant::now(), lock(&self.seen).count + count);
        while lock(&self.seen).count < aim {
            if start.elapsed() > limit {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// The longest pause since the last call. One that lasts is not in it.
    pub(super) fn longest_pause(&self) -> Duration {
        std::mem::take(&mut lock(&self.seen).longest)
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(receiver) = self.receiver.take() {
            // The thread does not panic.
            let _joined = receiver.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_between_two_beats() {
        let start = Instant::now();
        let mut seen = Seen::default();
        for ms in [1000, 1005, 1105, 1110] {
            seen.note(start + Duration::from_millis(ms));
        }
        assert_eq!(seen.count, 4);
        assert_eq!(seen.longest, Duration::from_millis(100));
    }

    #[test]
    fn beats_are_received_and_each_pause_is_told_once() {
        let beats = Beats::receive(Ipv4Addr::LOCALHOST).unwrap();
        let guest = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let sender = {
            let port = beats.port();
            thread::spawn(move || {
                for _ in 0..3 {
                    guest.send_to(b"\n", (Ipv4Addr::LOCALHOST, port)).unwrap();
                }
            })
        };
        // Datagrams to this machine are not lost.
        sender.join().unwrap();
        while lock(&beats.seen).count < 3 {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(beats.longest_pause() > Duration::ZERO);
        assert_eq!(beats.longest_pause(), Duration::ZERO);
        assert!(!beats.wait_for(1, Duration::from_millis(20)));
    }
}
