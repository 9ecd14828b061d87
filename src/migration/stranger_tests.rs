//! Connections from strangers, besides one from a source.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::source::{self, End, migrate};
use super::testing::{FakeOrigin, FakeTarget, World, same};
use super::transport::{Dialer, Security, TlsFiles};
use super::*;

fn tls(name: &str) -> Security {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/migration/transport/certificates");
    Security::Tls(TlsFiles {
        cert: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
        ca: dir.join("ca.pem"),
    })
}

fn a_source_comes_after_strangers(here: &Security, there: &Security, connections: u16) {
    let world = Arc::new(World::default());
    let cancel = Cancel::new().unwrap();
    let anywhere = Address::Tcp {
        host: "127.0.0.1".to_owned(),
        port: 0,
    };
    // Longer than this test may take: only parallel handling keeps them from delaying the source.
    let long = Duration::from_secs(600);
    let mut listener = Listener::new(anywhere, there, long, &cancel).unwrap();
    let address = listener.address();
    let Address::Tcp { port, .. } = address else {
        unreachable!("it listens on TCP");
    };
    let mut target = FakeTarget::new(&world);
    let destination = std::thread::spawn(move || {
        let options = destination::DestinationOptions {
            stall: long,
            ..destination::DestinationOptions::default()
        };
        receive(&mut target, &mut listener, &options, &cancel).unwrap();
        target
    });
    // Silent connections, a closed one, and one that slowly sends the beginning of a possible handshake.
    let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    let silent: Vec<_> = (0..100).map(|_| connect()).collect();
    drop(connect());
    let over = Arc::new(AtomicBool::new(false));
    let mut dripping = connect();
    let stop = Arc::clone(&over);
    let drip = std::thread::spawn(move || {
        while !stop.load(Ordering::SeqCst) && dripping.write_all(&[0x16]).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });

    let mut origin = FakeOrigin::new(&world);
    let dialer = Dialer::new(address, here, long).unwrap();
    let options = source::SourceOptions {
        connections,
        stall: long,
        ..source::SourceOptions::default()
    };
    let progress = Progress::new("there".to_owned());
    let cancel = Cancel::new().unwrap();
    let end = migrate(&mut origin, &dialer, &options, &progress, &cancel);
    assert!(matches!(end, End::Gone), "{end:?}");
    let target = destination.join().unwrap();
    assert!(same(&origin.ram(), &target.ram.unwrap()));
    over.store(true, Ordering::SeqCst);
    drip.join().unwrap();
    drop(silent);
}

#[test]
fn strangers_do_not_delay_a_source_with_certificates() {
    a_source_comes_after_strangers(&tls("source"), &tls("destination"), 3);
}

#[test]
fn strangers_do_not_delay_a_source_without_certificates() {
    a_source_comes_after_strangers(&Security::Plaintext, &Security::Plaintext, 1);
}
