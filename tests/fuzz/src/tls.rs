//! The TLS handshake of a migration's destination with any client.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use hypernest::migration::transport::{Address, Cancel, Listener, Security, TlsFiles};

/// The timeout; neither end should wait for the other, because the bytes are there before the handshake
/// begins.
const STALL: Duration = Duration::from_secs(5);

thread_local! {
    static LISTENER: RefCell<(Listener, Cancel)> = RefCell::new(listener());
}

fn listener() -> (Listener, Cancel) {
    let certificates =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/migration/transport/certificates");
    let files = TlsFiles {
        cert: certificates.join("destination.pem"),
        key: certificates.join("destination.key"),
        ca: certificates.join("ca.pem"),
    };
    let address = Address::Tcp {
        host: "127.0.0.1".to_owned(),
        port: 0,
    };
    let cancel = Cancel::new().expect("a descriptor");
    let listener = Listener::new(address, &Security::Tls(files), STALL, &cancel);
    (listener.expect("a port of the loopback interface"), cancel)
}

/// Sends the client's bytes, then closes its side of the connection. Returns whether the server replied with
/// anything other than an alert. A client without a key of the CA cannot send a frame.
pub(crate) fn handshake(bytes: &[u8]) -> bool {
    LISTENER.with_borrow_mut(|(listener, cancel)| {
        let Address::Tcp { host, port } = listener.address() else {
            return false;
        };
        let Ok(mut client) = TcpStream::connect((host.as_str(), port)) else {
            return false;
        };
        // More than a socket's buffer would wait for the server, which runs later on this thread.
        let bytes = &bytes[..bytes.len().min(64 << 10)];
        if client.write_all(bytes).is_err() || client.shutdown(Shutdown::Write).is_err() {
            return false;
        }
        let deadline = Some(Instant::now() + STALL);
        let Ok(mut server) = listener.accept(cancel, deadline) else {
            return false;
        };
        let mut frame = [0; 64];
        let read = server.read(&mut frame);
        assert!(
            !matches!(read, Ok(1..)),
            "bytes came through without a client's certificate"
        );
        drop(server);
        let mut answer = Vec::new();
        let _reset = client.read_to_end(&mut answer);
        // A handshake record (RFC 8446, 5.1).
        answer.first() == Some(&22)
    })
}
