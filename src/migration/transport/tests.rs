use std::path::Path;
use std::thread::JoinHandle;

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn tls(name: &str, ca: &str) -> Security {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/migration/transport/certificates");
    Security::Tls(TlsFiles {
        cert: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
        ca: dir.join(format!("{ca}.pem")),
    })
}

fn loopback(port: u16) -> Address {
    Address::Tcp {
        host: "127.0.0.1".to_owned(),
        port,
    }
}

/// A destination that replies to five bytes with five others.
fn waiting(address: Address, security: &Security) -> (Address, JoinHandle<io::Result<()>>) {
    let cancel = Cancel::new().unwrap();
    let mut listener = Listener::new(address, security, LONG, &cancel).unwrap();
    let address = listener.address();
    let thread = std::thread::spawn(move || {
        let mut stream = listener.accept(&cancel, None).map_err(io::Error::other)?;
        let mut words = [0; 5];
        stream.read_exact(&mut words)?;
        if &words != b"hello" {
            return Err(io::Error::other("another word"));
        }
        stream.write_all(b"there")?;
        stream.flush()
    });
    (address, thread)
}

fn talk(address: Address, security: &Security) -> io::Result<()> {
    let dialer = Dialer::new(address, security, LONG).map_err(io::Error::other)?;
    let mut stream = dialer
        .dial(&Cancel::new().unwrap())
        .map_err(io::Error::other)?;
    stream.write_all(b"hello")?;
    stream.flush()?;
    let mut words = [0; 5];
    stream.read_exact(&mut words)?;
    // A TLS alert instead of a plain reply counts as a failure.
    (&words == b"there")
        .then_some(())
        .ok_or_else(|| io::Error::other("another answer"))
}

#[test]
fn both_ends_show_certificates() {
    let (address, there) = waiting(loopback(0), &tls("destination", "ca"));
    talk(address, &tls("source", "ca")).unwrap();
    there.join().unwrap().unwrap();
}

#[test]
fn a_certificate_of_another_ca_or_for_another_host_is_refused() {
    for (here, there) in [
        // The source's from another CA; the destination's from another CA; the destination's for another
        // host.
        (tls("stranger", "ca"), tls("destination", "ca")),
        (tls("source", "ca"), tls("stranger", "ca")),
        (tls("source", "ca"), tls("elsewhere", "ca")),
        (tls("source", "other-ca"), tls("destination", "ca")),
        // One end without TLS.
        (Security::Plaintext, tls("destination", "ca")),
        (tls("source", "ca"), Security::Plaintext),
    ] {
        let (address, waits) = waiting(loopback(0), &there);
        assert!(talk(address, &here).is_err(), "{here:?} {there:?}");
        let heard = waits.join();
        assert!(heard.is_err() || heard.is_ok_and(|h| h.is_err()));
    }
}

#[test]
fn tcp_without_tls_is_for_loopback_and_on_request() {
    let cancel = Cancel::new().unwrap();
    let far = Address::Tcp {
        host: "192.0.2.1".to_owned(),
        port: 1,
    };
    let unprotected =
        |e: TransportError| assert!(matches!(e, TransportError::Unprotected { .. }), "{e}");
    unprotected(Dialer::new(loopback(1), &Security::Unsaid, LONG).unwrap_err());
    unprotected(Listener::new(loopback(0), &Security::Unsaid, LONG, &cancel).unwrap_err());
    unprotected(Listener::new(far.clone(), &Security::Plaintext, LONG, &cancel).unwrap_err());
    let dialer = Dialer::new(far, &Security::Plaintext, LONG).unwrap();
    unprotected(dialer.dial(&cancel).unwrap_err());
    let unix = Address::Unix("/nowhere".into());
    unprotected(Dialer::new(unix, &tls("source", "ca"), LONG).unwrap_err());
    let (address, there) = waiting(loopback(0), &Security::Plaintext);
    talk(address, &Security::Plaintext).unwrap();
    there.join().unwrap().unwrap();
}

#[test]
fn error_names_the_file_that_is_not_a_certificate() {
    for (name, ca, wrong) in [
        ("nobody", "ca", "nobody.pem"),
        ("source", "nobody", "nobody.pem"),
    ] {
        let e = Dialer::new(loopback(1), &tls(name, ca), LONG).unwrap_err();
        assert!(e.to_string().contains(wrong), "{e}");
    }
}

#[test]
fn unix_socket_is_private_and_a_stale_one_is_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let cancel = Cancel::new().unwrap();
    let address = Address::Unix(path.clone());
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listen = || Listener::new(address.clone(), &Security::Unsaid, LONG, &cancel);
    let first = listen().unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // A socket with a listener is not replaced.
    listen().unwrap_err();
    drop(first);
    assert!(!path.exists());
}

#[test]
fn commands_and_descriptors() {
    // A command's output is what it read.
    let dialer = Dialer::new(
        "exec:read -r x; echo re $x".parse().unwrap(),
        &Security::Unsaid,
        LONG,
    );
    let cancel = Cancel::new().unwrap();
    let mut stream = dialer.unwrap().dial(&cancel).unwrap();
    stream.write_all(b"you\n").unwrap();
    let mut words = String::new();
    stream.read_to_string(&mut words).unwrap();
    assert_eq!(words, "re you\n");

    let (ours, theirs) = UnixStream::pair().unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&theirs);
    let address: Address = format!("fd:{fd}").parse().unwrap();
    let unknown = Listener::new(address.clone(), &Security::Unsaid, LONG, &cancel).unwrap_err();
    assert!(
        matches!(unknown, TransportError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied)
    );
    sys::record(fd);
    let mut listener = Listener::new(address, &Security::Unsaid, LONG, &cancel).unwrap();
    let mut stream = listener.accept(&cancel, None).unwrap();
    drop(theirs);
    (&ours).write_all(b"x").unwrap();
    let mut word = [0];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"x");
    let e = listener.accept(&cancel, None).unwrap_err();
    assert!(matches!(e, TransportError::Single(_)), "{e}");
}
