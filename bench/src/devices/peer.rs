//! The host's end of the loads on the network: a sink, a source, and a client that waits for each byte to
//! come back. The host's clock measures, which is the same for all VMMs.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What goes through a connection with the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// As many bytes as the guest sends.
    Out,
    /// As many bytes as the guest takes.
    In,
    /// One byte, which the guest returns, again and again.
    Echo,
}

/// What went through a connection.
#[derive(Debug)]
pub(super) struct Carried<S> {
    /// Bytes, or round trips.
    pub(super) count: u64,
    pub(super) elapsed: Duration,
    /// Of the round trips, in nanoseconds.
    pub(super) latencies: Histogram<u64>,
    /// What was sampled before and after.
    pub(super) samples: [S; 2],
}

/// The greatest read and write.
const BLOCK: usize = 256 << 10;
/// The greatest latency that is told from greater ones: a minute.
const GREATEST_NS: u64 = 60_000_000_000;

/// Listens at a free port.
pub(super) fn listen(address: Ipv4Addr) -> io::Result<TcpListener> {
    TcpListener::bind((address, 0))
}

/// The connection that the guest makes; `limit` is the timeout for it, and for each read and write.
pub(super) fn accept(listener: &TcpListener, limit: Duration) -> io::Result<TcpStream> {
    let start = Instant::now();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(ErrorKind::TimedOut.into()),
            Ok(_) => break,
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// Carries data for `ramp`, and then for `measured`, of which the result is.
pub(super) fn carry<S>(
    stream: &mut TcpStream,
    what: Stream,
    [ramp, measured]: [Duration; 2],
    mut sample: impl FnMut() -> io::Result<S>,
) -> io::Result<Carried<S>> {
    let mut buffer = vec![0; BLOCK];
    let mut step = || match what {
        Stream::Out => some_bytes(stream.read(&mut buffer)),
        // What is in the socket's buffer is counted before the guest has it. The buffer is full when the
        // measurement begins and when it ends.
        Stream::In => some_bytes(stream.write(&buffer)),
        Stream::Echo => {
            stream.write_all(&[0])?;
            stream.read_exact(&mut buffer[..1])?;
            Ok(1)
        }
    };
    let mut step = || step().map_err(late);
    let mut latencies = Histogram::new_with_max(GREATEST_NS, 3).map_err(io::Error::other)?;
    let start = Instant::now();
    while start.elapsed() < ramp {
        step()?;
    }
    let before = sample()?;
    let start = Instant::now();
    let (mut count, mut elapsed) = (0, Duration::ZERO);
    while elapsed < measured {
        count += step()?;
        let now = start.elapsed();
        let took = u64::try_from((now - elapsed).as_nanos()).unwrap_or(u64::MAX);
        latencies.saturating_record(took);
        elapsed = now;
    }
    Ok(Carried {
        count,
        elapsed,
        latencies,
        samples: [before, sample()?],
    })
}

fn some_bytes(result: io::Result<usize>) -> io::Result<u64> {
    match result? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        bytes => Ok(bytes as u64),
    }
}

/// A read or write that timed out is said to block (socket(7), SO_RCVTIMEO).
fn late(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const LIMIT: Duration = Duration::from_secs(60);
    const TIMES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(20)];

    /// A connection to a guest that does `work` with its end.
    fn connected(work: fn(TcpStream)) -> (TcpStream, thread::JoinHandle<()>) {
        let listener = listen(Ipv4Addr::LOCALHOST).unwrap();
        let address = listener.local_addr().unwrap();
        let guest = thread::spawn(move || work(TcpStream::connect(address).unwrap()));
        (accept(&listener, LIMIT).unwrap(), guest)
    }

    #[test]
    fn each_kind_of_load_is_carried() {
        let sends = |mut stream: TcpStream| while stream.write_all(&[7; 5000]).is_ok() {};
        let takes = |mut stream: TcpStream| {
            let _all = io::copy(&mut stream, &mut io::sink());
        };
        let returns = |stream: TcpStream| {
            let _all = io::copy(&mut &stream, &mut &stream);
        };
        for (what, guest) in [
            (Stream::Out, sends as fn(_)),
            (Stream::In, takes),
            (Stream::Echo, returns),
        ] {
            let (mut stream, guest) = connected(guest);
            let mut samples = 0;
            let carried = carry(&mut stream, what, TIMES, || {
                samples += 1;
                Ok(samples)
            });
            let carried = carried.unwrap();
            assert!(carried.count > 0, "{what:?}");
            assert!(carried.elapsed >= TIMES[1]);
            assert_eq!(carried.samples, [1, 2]);
            if what == Stream::Echo {
                assert_eq!(carried.latencies.len(), carried.count);
            }
            drop(stream);
            guest.join().unwrap();
        }
    }

    #[test]
    fn a_guest_that_ends_or_never_connects_is_an_error() {
        let (mut stream, guest) = connected(drop);
        guest.join().unwrap();
        let error = carry(&mut stream, Stream::Out, TIMES, || Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        let listener = listen(Ipv4Addr::LOCALHOST).unwrap();
        let error = accept(&listener, Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
