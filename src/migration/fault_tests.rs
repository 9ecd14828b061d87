//! Faults at every frame of a migration: two VMs never run, and none is lost.

use std::sync::Arc;
use std::time::Duration;

use super::testing::*;
use super::wire::{FrameKind, Versions};
use super::*;

const LONG: Duration = Duration::from_secs(120);

struct Setup {
    at: Option<At>,
    origin_fails: Fails,
    target_fails: Fails,
    source: source::SourceOptions,
    destination: destination::DestinationOptions,
    running: bool,
    cancel_at: Option<u32>,
    busy: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            at: None,
            origin_fails: Fails::Never,
            target_fails: Fails::Never,
            source: source::SourceOptions {
                stall: LONG,
                // The other end's process is unknown, as between two hosts.
                process: None,
                end_of_peer: Duration::ZERO,
                ..source::SourceOptions::default()
            },
            destination: destination::DestinationOptions {
                stall: LONG,
                process: None,
                end_of_peer: Duration::ZERO,
                ..destination::DestinationOptions::default()
            },
            running: true,
            cancel_at: None,
            busy: 2,
        }
    }
}

#[derive(Debug)]
struct Result {
    end: End,
    received: std::result::Result<Received, MigrationError>,
    /// (source, destination).
    running: (bool, bool),
    /// RAM is the same at both.
    same: bool,
    /// The kind of the frame that was hit.
    hit: Option<u16>,
    ran: Option<bool>,
    throttled: Vec<u8>,
    report: MigrationReport,
}

fn run(setup: Setup) -> Result {
    let dir = tempfile::tempdir().unwrap();
    let (front, back) = (dir.path().join("front"), dir.path().join("back"));
    let world = Arc::new(World::default());
    let stall = setup.source.stall;
    let incoming = Cancel::new().unwrap();
    let mut listener = Listener::new(
        Address::Unix(back.clone()),
        &Security::Unsaid,
        setup.destination.stall,
        &incoming,
    )
    .unwrap();
    let victims = Arc::new((Victim::new(), Victim::new()));
    let mut source_options = setup.source;
    let mut destination_options = setup.destination;
    if let Some(At(fault @ (Fault::KillSource | Fault::KillDestination), ..)) = setup.at {
        source_options.process = Some(victims.0.1.clone());
        destination_options.process = Some(victims.1.1.clone());
        // The surviving end waits for the other's process to end; the dead end is a thread that has to
        // return.
        match fault {
            Fault::KillSource => destination_options.end_of_peer = LONG,
            _ => source_options.end_of_peer = LONG,
        }
    }
    let (seen, dying) = (Arc::clone(&world), Arc::clone(&victims));
    let proxy = Proxy::new(&front, &back, setup.at, move |fault| match fault {
        Fault::KillSource => {
            seen.kill_source();
            dying.0.kill();
        }
        _ => {
            seen.kill_destination();
            dying.1.kill();
        }
    });

    let mut target = FakeTarget::new(&world);
    target.fails = setup.target_fails;
    let destination = std::thread::spawn(move || {
        let received = receive(&mut target, &mut listener, &destination_options, &incoming);
        (received, target)
    });
    let mut origin = FakeOrigin::new(&world);
    origin.fails = setup.origin_fails;
    origin.running = setup.running;
    origin.busy = setup.busy;
    let cancel = Cancel::new().unwrap();
    let (canceller, cancel_at) = (cancel.clone(), setup.cancel_at);
    origin.at_collect = Box::new(move |call| {
        if Some(call) == cancel_at {
            canceller.set();
        }
    });
    if setup.cancel_at == Some(0) {
        cancel.set();
    }
    let dialer = Dialer::new(Address::Unix(front.clone()), &Security::Unsaid, stall).unwrap();
    let progress = Progress::new("here".to_owned());
    let end = migrate(&mut origin, &dialer, &source_options, &progress, &cancel);
    // A destination that was not contacted keeps waiting; so does one whose source was refused by the
    // proxy.
    let hit = proxy.hit();
    proxy.stop(&front);
    if !destination.is_finished()
        && let Ok(mut nobody) = std::os::unix::net::UnixStream::connect(&back)
    {
        let hello = wire::Hello {
            protocol: wire::Hello::PROTOCOL.to_owned(),
            versions: Versions { min: 900, max: 900 },
            needs: Vec::new(),
            session: String::new(),
            connection: 0,
            connections: 1,
            process: None,
        };
        let body = wire::WireMessage::body(&hello);
        let mut writer = wire::FrameWriter::default();
        let _gone = writer.write(&mut nobody, FrameKind::Hello, &body);
    }
    let (received, target) = destination.join().unwrap();
    Result {
        end,
        received,
        running: world.running(),
        same: target.ram.is_some_and(|ram| same(&ram, &origin.ram)),
        hit,
        ran: target.ran,
        throttled: origin.throttled,
        report: progress.report(),
    }
}

fn moved(result: &Result) {
    assert!(matches!(result.end, End::Gone), "{result:?}");
    assert!(result.received.is_ok(), "{result:?}");
    assert_eq!(result.running, (false, true));
    assert!(result.same, "RAM differs");
}

fn kept(result: &Result) {
    assert!(matches!(result.end, End::Kept(_)), "{result:?}");
    assert!(result.received.is_err(), "{result:?}");
    assert_eq!(result.running, (true, false));
    assert_eq!(result.ran, None);
}

fn options(connections: u16, zstd: bool) -> source::SourceOptions {
    source::SourceOptions {
        connections,
        zstd,
        ..Setup::default().source
    }
}

#[test]
fn migration_moves_all_of_the_memory() {
    for (connections, zstd, running) in [
        (1, false, true),
        (1, true, false),
        (2, false, true),
        (5, true, true),
    ] {
        let result = run(Setup {
            source: options(connections, zstd),
            running,
            ..Setup::default()
        });
        moved(&result);
        assert_eq!(result.ran, Some(running));
        let report = result.report;
        assert_eq!(report.phase, Some(phase::SourcePhase::Gone));
        assert!(report.sent > 0 && report.rounds >= 1 && report.downtime_ms.is_some());
        assert_eq!(report.remaining, 0);
    }
}

#[test]
fn busy_guest_is_throttled_until_it_converges() {
    let result = run(Setup {
        busy: PAGES,
        source: source::SourceOptions {
            downtime: Duration::ZERO,
            ..options(1, false)
        },
        cancel_at: Some(40),
        ..Setup::default()
    });
    assert!(
        result.throttled.starts_with(&[20, 35, 50, 65]),
        "{result:?}"
    );
}

/// Injects `fault` at each frame of `direction` in turn. `each` gets the kind of the frame.
fn at_each_frame(
    fault: Fault,
    direction: Direction,
    connections: u16,
    stall: Duration,
    each: impl Fn(&Result, FrameKind),
) {
    let (mut frame, mut slow) = (0, 0);
    loop {
        let base = Setup::default();
        let result = run(Setup {
            at: Some(At(fault, direction, frame)),
            source: source::SourceOptions {
                stall,
                ..options(connections, false)
            },
            destination: destination::DestinationOptions {
                stall,
                ..base.destination
            },
            ..Setup::default()
        });
        let Some(hit) = result.hit else {
            // A busy machine exceeds a short timeout also without a fault, before the frame.
            if stall < LONG && !matches!(result.end, End::Gone) && slow < 20 {
                slow += 1;
                continue;
            }
            moved(&result);
            assert!(frame >= 4, "{frame} frames were hit");
            return;
        };
        let kind = FrameKind::all().find(|kind| kind.number() == hit).unwrap();
        // Never two copies, which the fakes check at all times, and never none.
        assert_ne!(result.running, (true, true));
        each(&result, kind);
        frame += 1;
    }
}

/// A connection fault before Commit leaves the VM at the source; after Commit, at the destination; at
/// Commit or Running, the source may be undecided.
fn decided(result: &Result, kind: FrameKind, delivered: bool) {
    match (kind, delivered) {
        (FrameKind::Commit, false) => {
            // Commit did not arrive: no copy runs, and the source holds everything.
            assert!(!result.running.1, "{result:?}");
            match &result.end {
                End::Kept(_) => assert!(result.running.0),
                End::Undecided(_) => assert!(!result.running.0),
                End::Gone => panic!("{result:?}"),
            }
        }
        (FrameKind::Commit, true) | (FrameKind::Running, _) => {
            assert_eq!(result.running, (false, true), "{result:?}");
            assert!(
                matches!(result.end, End::Gone | End::Undecided(_)),
                "{result:?}"
            );
        }
        _ => kept(result),
    }
}

#[test]
fn cut_connection_leaves_one_vm() {
    for connections in [1, 2] {
        for direction in [Direction::ToDestination, Direction::ToSource] {
            for fault in [Fault::Cut, Fault::Torn] {
                at_each_frame(fault, direction, connections, LONG, |result, kind| {
                    decided(result, kind, false);
                });
            }
        }
    }
}

#[test]
fn connection_cut_after_any_frame_leaves_one_vm() {
    for direction in [Direction::ToDestination, Direction::ToSource] {
        at_each_frame(
            Fault::CutAfter,
            direction,
            1,
            LONG,
            |result, kind| match kind {
                // The replies to these may still get through before the connection ends, and so may Commit.
                FrameKind::State | FrameKind::Ready => match &result.end {
                    End::Gone => assert_eq!(result.running, (false, true), "{result:?}"),
                    End::Kept(_) => assert_eq!(result.running, (true, false), "{result:?}"),
                    End::Undecided(_) => assert!(!result.running.0, "{result:?}"),
                },
                kind => decided(result, kind, true),
            },
        );
    }
}

#[test]
fn a_damaged_frame_leaves_one_vm() {
    for direction in [Direction::ToDestination, Direction::ToSource] {
        for fault in [Fault::Damage, Fault::OtherKind] {
            at_each_frame(fault, direction, 1, LONG, |result, kind| {
                decided(result, kind, false);
            });
        }
    }
}

#[test]
fn stalled_connection_leaves_one_vm() {
    let stall = Duration::from_millis(250);
    for direction in [Direction::ToDestination, Direction::ToSource] {
        at_each_frame(Fault::Stall, direction, 1, stall, |result, kind| {
            decided(result, kind, false);
        });
    }
}

/// The source detects the destination's death on the same host, so it resumes the VM even within the
/// commitment window.
#[test]
fn death_of_the_destination_leaves_the_vm_at_the_source() {
    for direction in [Direction::ToDestination, Direction::ToSource] {
        at_each_frame(Fault::KillDestination, direction, 1, LONG, |result, _| {
            assert!(matches!(result.end, End::Kept(_)), "{result:?}");
            assert_eq!(result.running, (true, false), "{result:?}");
        });
    }
}

/// The VM dies with its source, unless the destination already holds everything.
#[test]
fn death_of_the_source_loses_only_a_vm_that_was_not_handed_off() {
    for direction in [Direction::ToDestination, Direction::ToSource] {
        at_each_frame(Fault::KillSource, direction, 1, LONG, |result, kind| {
            let handed_over = matches!(
                kind,
                FrameKind::Ready | FrameKind::Commit | FrameKind::Running
            );
            assert_eq!(result.running, (false, handed_over), "{result:?}");
        });
    }
}

#[test]
fn vm_that_cannot_be_saved_stays_at_the_source() {
    for fails in [
        Fails::Promise,
        Fails::Log,
        Fails::Collect(1),
        Fails::Collect(2),
        Fails::Stop,
    ] {
        let result = run(Setup {
            origin_fails: fails,
            ..Setup::default()
        });
        kept(&result);
        let End::Kept(e) = &result.end else { panic!() };
        assert!(e.chain().contains("injected"), "{e:?}");
        assert!(result.report.error.unwrap().contains("injected"));
    }
}

#[test]
fn refusing_destination_reports_its_reasons() {
    for (fails, why) in [
        (Fails::Prepare, "\n  - no avx512f\n  - no  eVMCS"),
        (Fails::OtherRam, "other RAM regions"),
        (Fails::Load, "No space left on device"),
    ] {
        let result = run(Setup {
            target_fails: fails,
            ..Setup::default()
        });
        kept(&result);
        let End::Kept(e) = &result.end else { panic!() };
        assert!(e.chain().contains(why), "{e:?}");
        if fails != Fails::Load {
            assert!(matches!(e, MigrationError::Refused(_)));
            assert_eq!(result.report.rounds, 0, "RAM was sent");
        }
    }
}

#[test]
fn version_mismatch_is_reported_by_both_ends() {
    let speak = |min, max| Versions { min, max };
    for (ours, theirs, spoken) in [
        (speak(1, 1), speak(1, 1), true),
        // One version newer or older, with the other's version still supported.
        (speak(1, 2), speak(1, 1), true),
        (speak(1, 1), speak(1, 2), true),
        (speak(2, 3), speak(1, 2), true),
        // Versions without an overlap.
        (speak(2, 2), speak(1, 1), false),
        (speak(1, 1), speak(2, 2), false),
    ] {
        let base = Setup::default();
        let result = run(Setup {
            source: source::SourceOptions {
                versions: ours,
                ..base.source
            },
            destination: destination::DestinationOptions {
                versions: theirs,
                ..base.destination
            },
            ..Setup::default()
        });
        if spoken {
            moved(&result);
            continue;
        }
        kept(&result);
        let End::Kept(e) = &result.end else { panic!() };
        let wanted =
            format!("supports version {ours} of the migration protocol, the destination {theirs}");
        assert!(e.chain().contains(&wanted), "{}", e.chain());
    }
}

#[test]
fn cancelling_at_any_time_leaves_the_vm_at_the_source() {
    // At the start, after the first round, and once the guest is stopped.
    for call in 0..3 {
        let result = run(Setup {
            cancel_at: Some(call),
            ..Setup::default()
        });
        kept(&result);
        assert!(
            matches!(result.end, End::Kept(MigrationError::Cancelled)),
            "{result:?}"
        );
    }
}

#[test]
fn nobody_there() {
    let dir = tempfile::tempdir().unwrap();
    let world = Arc::new(World::default());
    let mut origin = FakeOrigin::new(&world);
    let address = Address::Unix(dir.path().join("nobody"));
    let dialer = Dialer::new(address, &Security::Unsaid, LONG).unwrap();
    let progress = Progress::new(String::new());
    let cancel = Cancel::new().unwrap();
    let options = source::SourceOptions::default();
    let end = migrate(&mut origin, &dialer, &options, &progress, &cancel);
    assert!(matches!(end, End::Kept(MigrationError::Transport(_))));
    assert_eq!(world.running(), (true, false));
}
