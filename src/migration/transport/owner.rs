//! Finds the owner of a TCP connection within this host. Loopback has no permissions: any user's process
//! can connect to a port, or listen on one. Without TLS the kernel's socket table shows which user owns the
//! other end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `TCP_ESTABLISHED` (include/net/tcp_states.h). A socket without a process has left this state, and shows
/// user 0.
const ESTABLISHED: u8 = 1;

/// Returns the user who owns the other end of the connection between `ours` and `theirs`, both on this
/// host. The other end must have been accepted, which is certain once data arrived from it: until then the
/// kernel shows user 0.
///
/// # Errors
/// If the tables cannot be read, or do not contain the connection.
pub(super) fn of_peer(ours: SocketAddr, theirs: SocketAddr) -> io::Result<u32> {
    // An IPv6 socket can hold an IPv4 connection.
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match std::fs::read_to_string(table) {
            Ok(text) => {
                if let Some(uid) = text.lines().find_map(|line| uid(line, theirs, ours)) {
                    return Ok(uid);
                }
            }
            // A host without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("the kernel lists no connection from {theirs} to {ours}"),
    ))
}

/// Returns the user in a line of /proc/net/tcp or tcp6, if it is the established socket with these
/// addresses. The columns are those of get_tcp4_sock in net/ipv4/tcp_ipv4.c.
fn uid(line: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let is = |word: &str, wanted: SocketAddr| address(word) == Some(canonical(wanted));
    if !is(words.next()?, local) || !is(words.next()?, remote) {
        return None;
    }
    if u8::from_str_radix(words.next()?, 16) != Ok(ESTABLISHED) {
        return None;
    }
    // Queues, timer, retransmits.
    words.nth(3)?.parse().ok()
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

/// Parses `0100007F:1F90`: the address as 32-bit words in the host's byte order, and the port.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    let words = ip.len() / 8;
    if !ip.is_ascii() || !matches!(ip.len(), 8 | 32) {
        return None;
    }
    for (word, bytes) in bytes.chunks_exact_mut(4).take(words).enumerate() {
        let word = u32::from_str_radix(&ip[word * 8..word * 8 + 8], 16).ok()?;
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = match words {
        1 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        _ => IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(),
    };
    Some((ip, port))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_established_socket_with_both_addresses_has_the_user() {
        let row = "   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        \
            0 4711 1";
        let (server, client) = (at("127.0.0.1:8080"), at("127.0.0.1:50000"));
        assert_eq!(uid(row, server, client), Some(1000));
        assert_eq!(uid(row, client, server), None);
        assert_eq!(uid(row, server, at("127.0.0.1:50001")), None);
        // A socket that no process has open: FIN_WAIT2, user 0.
        assert_eq!(uid(&row.replace(" 01 ", " 05 "), server, client), None);
        for damaged in [
            "",
            "  sl  local_address",
            "0: 0100007F:1F90 0100007F:C350 01 0",
            "0: é00007F:1F90 x",
        ] {
            assert_eq!(uid(damaged, server, client), None, "{damaged}");
        }
    }

    #[test]
    fn ipv6_and_ipv4_mapped_addresses_are_parsed() {
        let v6 = "0: 00000000000000000000000001000000:0050 00000000000000000000000001000000:0051 01 0:0 0:0 \
            0 7 0 1";
        assert_eq!(uid(v6, at("[::1]:80"), at("[::1]:81")), Some(7));
        let mapped = "0: 0000000000000000FFFF00000100007F:0050 0000000000000000FFFF00000100007F:0051 01 0:0 \
            0:0 0 7 0 1";
        assert_eq!(uid(mapped, at("127.0.0.1:80"), at("127.0.0.1:81")), Some(7));
    }

    #[test]
    fn both_ends_of_a_real_connection_are_ours() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"x").unwrap();
        client.write_all(b"x").unwrap();
        let us = nix::unistd::geteuid().as_raw();
        for end in [&client, &server] {
            let (ours, theirs) = (end.local_addr().unwrap(), end.peer_addr().unwrap());
            assert_eq!(of_peer(ours, theirs).unwrap(), us);
        }
        let (ours, theirs) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        drop(server);
        assert!(of_peer(ours, theirs).is_err());
    }
}
