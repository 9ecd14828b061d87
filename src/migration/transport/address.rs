//! Addresses of the other end.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// The address to connect to, or to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `tcp:HOST:PORT`.
    Tcp {
        /// A name or a number; of IPv6 without its brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// `exec:COMMAND`: a command for the shell, with the connection as its standard input and output.
    Exec(String),
    /// `fd:N` or `fd:IN,OUT`: open descriptors.
    Fd {
        /// Read from.
        input: RawFd,
        /// Written to.
        output: RawFd,
    },
}

/// Not an address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{text:?} is not an address to migrate to: {why}; use unix:PATH, tcp:HOST:PORT, exec:COMMAND, fd:N or \
     fd:IN,OUT"
)]
pub struct BadAddress {
    text: String,
    why: &'static str,
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = |why| BadAddress {
            text: text.to_owned(),
            why,
        };
        let (kind, rest) = text.split_once(':').ok_or_else(|| bad("it has no kind"))?;
        if rest.is_empty() {
            return Err(bad("nothing follows the colon"));
        }
        match kind {
            "unix" => Ok(Self::Unix(rest.into())),
            "exec" => Ok(Self::Exec(rest.to_owned())),
            "tcp" => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("it has no port"))?;
                let port = port
                    .parse()
                    .map_err(|_| bad("the port is not a number up to 65535"))?;
                let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
                if host.is_empty() || (bare.is_none() && host.contains(':')) {
                    return Err(bad(
                        "an IPv6 address needs brackets, and a host cannot be empty",
                    ));
                }
                Ok(Self::Tcp {
                    host: bare.unwrap_or(host).to_owned(),
                    port,
                })
            }
            "fd" => {
                let number = |n: &str| n.parse::<u16>().map(RawFd::from);
                let (input, output) = rest.split_once(',').unwrap_or((rest, rest));
                match (number(input), number(output)) {
                    (Ok(input), Ok(output)) => Ok(Self::Fd { input, output }),
                    _ => Err(bad("a descriptor is a number")),
                }
            }
            _ => Err(bad("the kind is unknown")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Exec(command) => write!(f, "exec:{command}"),
            Self::Fd { input, output } if input == output => write!(f, "fd:{input}"),
            Self::Fd { input, output } => write!(f, "fd:{input},{output}"),
        }
    }
}

impl Address {
    /// Whether the address takes more than one connection.
    pub fn takes_many(&self) -> bool {
        matches!(self, Self::Unix(_) | Self::Tcp { .. })
    }
}

/// Whether traffic to `ip` stays on this host.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |host: &str, port| Address::Tcp {
            host: host.to_owned(),
            port,
        };
        for (text, address) in [
            ("unix:/run/x:y", Address::Unix("/run/x:y".into())),
            ("tcp:host:7000", tcp("host", 7000)),
            ("tcp:127.0.0.1:1", tcp("127.0.0.1", 1)),
            ("tcp:[::1]:65535", tcp("::1", 65535)),
            ("exec:ssh b 'x y'", Address::Exec("ssh b 'x y'".to_owned())),
            (
                "fd:3",
                Address::Fd {
                    input: 3,
                    output: 3,
                },
            ),
            (
                "fd:0,1",
                Address::Fd {
                    input: 0,
                    output: 1,
                },
            ),
        ] {
            assert_eq!(text.parse(), Ok(address.clone()));
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_none() {
        for (text, why) in [
            ("", "no kind"),
            ("/tmp/x", "no kind"),
            ("unix:", "nothing follows"),
            ("tcp:host", "no port"),
            ("tcp:host:70000", "65535"),
            ("tcp:::1:7", "brackets"),
            ("tcp::7", "empty"),
            ("rdma:x:1", "kind is unknown"),
            ("fd:x", "a number"),
            ("fd:-1", "a number"),
            ("fd:1,", "a number"),
        ] {
            let e = text.parse::<Address>().unwrap_err().to_string();
            assert!(e.contains(why), "{text}: {e}");
        }
    }

    #[test]
    fn loopback() {
        for (ip, local) in [
            ("127.0.0.1", true),
            ("127.8.9.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.1", false),
            ("::", false),
            ("0.0.0.0", false),
        ] {
            assert_eq!(is_loopback(ip.parse().unwrap()), local, "{ip}");
        }
    }
}
