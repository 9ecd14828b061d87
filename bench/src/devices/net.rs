//! The loads on the network: TCP in both directions, and a byte there and back.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::console::Console;
use super::cost::{Sample, Shown};
use super::figures::{Figure, Values};
use super::network::HOST;
use super::peer::{self, Carried, Stream};
use super::{Bench, DevicesError};

/// The guest's end of a load.
pub(super) const PROGRAM: &str = include_str!("net.sh");
/// Where the guest has it.
pub(super) const PLACE: &str = "/run/hypernest-bench-net.sh";

/// Seconds before the measurement, in which TCP finds its window.
const RAMP: Duration = Duration::from_secs(1);

const BYTES: Figure = Figure::new("throughput", "MiB/s", 0);
const BYTES_COST: Shown = Shown {
    cpu: Figure::new("CPU time of the VMM per GiB", "ms", 0),
    beside_vcpus: Figure::new("of that beside the vCPUs", "ms", 0),
    exits: Figure::new("exits of the VM per MiB", "exits", 1),
};
const TRIPS: Figure = Figure::new("throughput", "round trips/s", 0);
const MEDIAN: Figure = Figure::new("median latency", "us", 0);
const TAIL: Figure = Figure::new("99th percentile of the latency", "us", 0);
const TRIP_COST: Shown = Shown {
    cpu: Figure::new("CPU time of the VMM per round trip", "us", 1),
    beside_vcpus: Figure::new("of that beside the vCPUs", "us", 1),
    exits: Figure::new("exits of the VM per round trip", "exits", 2),
};

impl Stream {
    pub(super) const ALL: [Self; 3] = [Self::Out, Self::In, Self::Echo];

    /// Its name on the command line, and for the guest's end.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Out => "tcp-out",
            Self::In => "tcp-in",
            Self::Echo => "tcp-echo",
        }
    }

    /// What a reader is shown.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Out => "TCP from the guest",
            Self::In => "TCP to the guest",
            Self::Echo => "TCP, a byte there and back",
        }
    }
}

/// Runs a load.
pub(super) fn measure(
    console: &mut Console,
    bench: &Bench,
    what: Stream,
) -> Result<Values, DevicesError> {
    let failed = |console: &Console, error: &io::Error| {
        console.failed(&format!("was not measured by {}: {error}", what.key()))
    };
    let listener = peer::listen(HOST).map_err(|error| failed(console, &error))?;
    let start = port(&listener).map(|port| format!("bash {PLACE} {} {HOST} {port}", what.key()));
    let start = start.map_err(|error| failed(console, &error))?;
    let mut stream = connect(console, bench, &listener, &start)?;
    let pid = console.pid();
    let times = [RAMP, Duration::from_secs(bench.seconds.into())];
    let carried = peer::carry(&mut stream, what, times, || Sample::of(pid));
    let carried = carried.map_err(|error| failed(console, &error))?;
    drop(stream);
    console.until("@net ended")?;
    Ok(values(what, &carried))
}

pub(super) fn port(listener: &TcpListener) -> io::Result<u16> {
    Ok(listener.local_addr()?.port())
}

/// Runs `command` in the guest, which makes a connection.
pub(super) fn connect(
    console: &mut Console,
    bench: &Bench,
    listener: &TcpListener,
    command: &str,
) -> Result<TcpStream, DevicesError> {
    console.tell(&format!(
        "{command}; cat /run/hypernest-bench-net.txt; echo '@net ended'"
    ))?;
    if console.line("@net ")? != "connected" {
        return Err(console.failed("has a guest that does not reach the host by its network card"));
    }
    let stream = peer::accept(listener, bench.limit);
    stream.map_err(|error| console.failed(&format!("has a guest without a connection: {error}")))
}

fn values(what: Stream, carried: &Carried<Sample>) -> Values {
    let [before, after] = carried.samples;
    let cost = after.since(before);
    // Far below 2^53.
    let count = carried.count as f64;
    let per_second = count / carried.elapsed.as_secs_f64();
    let mib = f64::from(1 << 20);
    let mut values;
    if what == Stream::Echo {
        let quantile = |quantile| carried.latencies.value_at_quantile(quantile) as f64 / 1e3;
        values = vec![
            (TRIPS, per_second),
            (MEDIAN, quantile(0.5)),
            (TAIL, quantile(0.99)),
        ];
        values.extend(cost.values(TRIP_COST, count, count));
    } else {
        values = vec![(BYTES, per_second / mib)];
        // The cost is in microseconds, and shown in milliseconds.
        let gib = count / mib / 1024.0;
        values.extend(cost.values(BYTES_COST, gib * 1e3, count / mib));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;

    #[test]
    fn figures_are_of_bytes_or_of_round_trips() {
        let sample = Sample::of(std::process::id()).unwrap();
        let mut carried = Carried {
            count: 4 << 20,
            elapsed: Duration::from_secs(2),
            latencies: Histogram::new(3).unwrap(),
            samples: [sample; 2],
        };
        let of_bytes = values(Stream::In, &carried);
        assert_eq!(of_bytes[0], (BYTES, 2.0));
        assert_eq!(of_bytes[1], (BYTES_COST.cpu, 0.0));
        carried.count = 100;
        carried.latencies.record_n(40_000, 100).unwrap();
        let of_trips = values(Stream::Echo, &carried);
        assert_eq!(of_trips[0], (TRIPS, 50.0));
        assert!((of_trips[1].1 - 40.0).abs() < 0.1, "{of_trips:?}");
    }

    #[test]
    fn the_guests_end_knows_each_load() {
        for what in Stream::ALL {
            assert!(PROGRAM.contains(&format!("\n{}) ", what.key())), "{what:?}");
        }
    }
}
