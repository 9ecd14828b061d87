//! A live migration while the disk and the network are loaded: the longest pause of beats that the guest
//! sends by the network.

use std::fs;
use std::io::{self, Read as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::beats::Beats;
use super::console::Console;
use super::figures::{Figure, Values};
use super::jobs::{JOBS, Job};
use super::machine::{self, Place};
use super::network::HOST;
use super::{Bench, DevicesError, net, peer};
use crate::migration::command::{self, Limits};
use crate::migration::qmp::Qmp;
use crate::migration::relay::Relay;
use crate::vmm::contender::Contender;

/// The program that puts all loads on a guest.
pub(super) const PROGRAM: &str = include_str!("moving.sh");
/// Where the guest has it.
pub(super) const PLACE: &str = "/run/hypernest-bench-moving.sh";

/// What a reader is shown.
pub(super) const NAME: &str = "live migration under load";
/// The load on the disk: random writes of 4 KiB.
const DISK: Job = JOBS[3];
/// The limits of both VMMs.
pub(super) const LIMITS: Limits = Limits {
    bandwidth_mib: 256,
    downtime_ms: 300,
};
/// In which a pause that began with the migration ends.
const AFTER: Duration = Duration::from_secs(1);

const ALL: Figure = Figure::new("from the command to its end", "ms", 0);
const PAUSE: Figure = Figure::new("longest pause of the guest", "ms", 1);
const CALM: Figure = Figure::new("longest pause without a migration", "ms", 1);
const SENT: Figure = Figure::new("sent", "MiB", 1);
const MEANWHILE: Figure = Figure::new("TCP from the guest meanwhile", "MiB/s", 1);

/// Takes what the guest sends, until it is dropped.
struct Sink {
    stream: TcpStream,
    bytes: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
}

impl Sink {
    fn start(stream: TcpStream) -> io::Result<Self> {
        // A thread that waits for a migration's end is ended by `drop`.
        stream.set_read_timeout(None)?;
        let bytes = Arc::new(AtomicU64::new(0));
        let (mut from, count) = (stream.try_clone()?, Arc::clone(&bytes));
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                count.fetch_add(read as u64, Ordering::Relaxed);
            }
        });
        Ok(Self {
            stream,
            bytes,
            reader: Some(reader),
        })
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Fails if the guest has closed the connection.
        let _closed = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            // The thread does not panic.
            let _joined = reader.join();
        }
    }
}

/// Loads the guest behind `source`, whose VMM is at `near`, and migrates it; returns its new console as well.
pub(super) fn measure(
    bench: &Bench,
    who: Contender,
    mut source: Console,
    near: &Place,
    disk: &str,
) -> Result<(Values, Console), DevicesError> {
    let begin = || -> io::Result<_> {
        let (listener, beats) = (peer::listen(HOST)?, Beats::receive(HOST)?);
        let port = net::port(&listener)?;
        Ok((listener, port, beats))
    };
    let (listener, port, beats) = begin().map_err(own("listen for the guest"))?;
    let seconds = u32::try_from(bench.limit.as_secs()).unwrap_or(u32::MAX / 2);
    let lines = DISK.lines(bench.size_mib, seconds).join(" ");
    let udp = beats.port();
    let load = format!("bash {PLACE} {disk} {HOST} {port} {udp} {lines}");
    let stream = net::connect(&mut source, bench, &listener, &load)?;
    let sink = Sink::start(stream).map_err(own("receive from the guest"))?;
    if !beats.wait_for(3, bench.limit) {
        return Err(source.failed("has a guest without beats"));
    }
    beats.longest_pause();
    thread::sleep(Duration::from_secs(bench.seconds.into()));
    let calm = beats.longest_pause();

    let far = near.other();
    fs::create_dir_all(&far.runtime).map_err(own("make a directory for sockets"))?;
    let mut command = machine::command(who, bench, &far);
    let mut destination = Console::start(who, &mut command, bench.limit)?;
    let [from, to] = [near.dir.join("from"), far.incoming()];
    let start = Instant::now();
    while !to.exists() {
        if start.elapsed() > bench.limit {
            return Err(destination.failed("does not listen for a migration"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    let relay = Relay::start(&from, &to).map_err(own("listen for a migration"))?;
    beats.longest_pause();
    let before = sink.bytes();
    let all = migrate(bench, who, near, &format!("unix:{}", from.display()))?;
    let meanwhile = sink.bytes() - before;
    if !beats.wait_for(3, bench.limit) {
        return Err(destination.failed("has a guest without beats since its migration"));
    }
    thread::sleep(AFTER);
    let pause = beats.longest_pause();
    if sink.bytes() == before + meanwhile {
        return Err(destination.failed("has a guest whose connection ended with its migration"));
    }
    drop(sink);
    let fio = destination.line("@fio ")?;
    // It ran until it was ended, and its job had error 0.
    if !fio.starts_with("yes 0 ") {
        return Err(destination.failed(&format!("has a guest whose disk failed: {fio}")));
    }
    destination.until("@net ended")?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    // Far below 2^53.
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let values = vec![
        (PAUSE, ms(pause)),
        (CALM, ms(calm)),
        (ALL, ms(all)),
        (SENT, mib(relay.bytes())),
        (MEANWHILE, mib(meanwhile) / all.as_secs_f64()),
    ];
    Ok((values, destination))
}

/// Migrates the VM at `near` to `address`, and returns how long it took.
fn migrate(
    bench: &Bench,
    who: Contender,
    near: &Place,
    address: &str,
) -> Result<Duration, DevicesError> {
    if who != Contender::Hypernest {
        let mut qmp = Qmp::connect(&near.monitor(), bench.limit)?;
        command::limit(&mut qmp, LIMITS)?;
        let begun = Instant::now();
        qmp.migrate(address)?;
        return Ok(begun.elapsed());
    }
    let mut command = command::hypernest(&near.runtime, machine::NAME, address, LIMITS);
    let begun = Instant::now();
    let status = command.status().map_err(|source| DevicesError::Start {
        who: who.name(),
        source,
    })?;
    match status.success() {
        true => Ok(begun.elapsed()),
        false => Err(DevicesError::NotMigrated(status)),
    }
}

fn own(doing: &'static str) -> impl Fn(io::Error) -> DevicesError {
    move |source| DevicesError::Own { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn a_sink_takes_everything_and_ends_when_it_is_dropped() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut guest = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let sink = Sink::start(listener.accept().unwrap().0).unwrap();
        guest.write_all(&[0; 1000]).unwrap();
        while sink.bytes() < 1000 {
            thread::sleep(Duration::from_millis(1));
        }
        drop(sink);
        assert_eq!(guest.read(&mut [0]).unwrap_or(0), 0);
    }

    #[test]
    fn the_guests_load_writes() {
        assert!(!DISK.reads() && DISK.depth > 1);
    }
}
