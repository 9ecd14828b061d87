//! Network cards: a network of the host behind a controller.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::table::{BuildError, DeviceConfig, DeviceKey, DeviceValue, Fault, PACKED, Site, Takes};
use crate::net::loopback::Loopback;
use crate::net::none::Nothing;
use crate::net::passt::{self, Forward, Passt};
use crate::net::stream::{Client, Connect, Given, Server, StreamBackend};
use crate::net::tap::{MAX_NAME, Tap, TapSource};
use crate::net::{Backend, MAX_PAIRS, mac_of, parse_mac, show_mac};
use crate::pci::Slot;
use crate::sys::inherited;
use crate::virtio::net::{Net, NetOptions};

/// The key with the kind of network. Only network cards have it.
pub const NET_KEY: &str = "net";
const IFNAME: &str = "ifname";
const PATH: &str = "path";
const SERVER: &str = "server";
const FD: &str = "fd";
const HOSTFWD: &str = "hostfwd";
const MAC: &str = "mac";
const MTU: &str = "mtu";
const QUEUES: &str = "queues";
const OFFLOAD: &str = "offload";

// Kinds of network.
const USER: &str = "user";
const TAP: &str = "tap";
const STREAM: &str = "stream";
const LOOPBACK: &str = "loopback";
const NONE: &str = "none";

/// The keys of a network card, beside those of its controller.
pub static VIRTIO_NET_KEYS: &[DeviceKey] = &[
    DeviceKey {
        takes: Takes::Words(&[USER, TAP, STREAM, LOOPBACK, NONE]),
        about: "the network: the host's by passt, without privileges (`user`); an interface of the host \
                (`tap`); a peer at a stream socket, such as another VM (`stream`); each frame comes back, \
                for tests (`loopback`); or none",
        default: "`none`",
        local: true,
        ..DeviceKey::of(NET_KEY)
    },
    DeviceKey {
        takes: Takes::Text { max: 1000 },
        about: "of `user`: a port of the host that leads to one of the guest, as \
                `tcp:[ADDRESS]:PORT-:PORT` or `udp:…`; may be given several times",
        default: "none",
        local: true,
        repeats: true,
        ..DeviceKey::of(HOSTFWD)
    },
    DeviceKey {
        takes: Takes::Text { max: MAX_NAME },
        about: "of `tap`: the interface, which is made if there is none and hypernest may",
        default: "a new one",
        local: true,
        ..DeviceKey::of(IFNAME)
    },
    DeviceKey {
        takes: Takes::Socket,
        about: "of `stream`: the socket's path",
        default: "must be given, or `fd`",
        local: true,
        ..DeviceKey::of(PATH)
    },
    DeviceKey {
        takes: Takes::Switch,
        about: "of `stream`: makes the socket and waits for a peer there, instead of connecting to it",
        default: "`off`",
        local: true,
        ..DeviceKey::of(SERVER)
    },
    DeviceKey {
        takes: Takes::Text { max: 100 },
        about: "of `tap` and `stream`: a descriptor that hypernest was started with; of a tap with several \
                queues one for each, as `5:6`",
        default: "none",
        local: true,
        ..DeviceKey::of(FD)
    },
    DeviceKey {
        takes: Takes::Text { max: 17 },
        about: "the card's hardware address",
        default: "52:54:00 and three bytes that depend on the names of the VM and the card",
        ..DeviceKey::of(MAC)
    },
    DeviceKey {
        takes: Takes::Number {
            what: "MTU",
            // Of IPv4 (RFC 791), and the greatest of the field.
            first: 68,
            last: 65535,
        },
        about: "the MTU that the guest is told of, from 68 to 65535",
        default: "none; 1500 in most guests",
        ..DeviceKey::of(MTU)
    },
    DeviceKey {
        takes: Takes::Number {
            what: "number of queues",
            first: 1,
            last: MAX_PAIRS as u32,
        },
        about: "how many pairs of queues the guest may use, from 1 to 16; more than 1 need `tap`",
        default: "1",
        ..DeviceKey::of(QUEUES)
    },
    DeviceKey {
        takes: Takes::Switch,
        about: "checksums and segmentation are left to the network, which `tap` can",
        default: "`on` for `tap` and `loopback`",
        ..DeviceKey::of(OFFLOAD)
    },
    PACKED,
];

/// Checks the keys together, and sets those that depend on others. `here`: what the configuration names of
/// the host has to be there.
pub fn check(config: &mut DeviceConfig, vm: &str, here: bool) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |what: String, expected: &str| {
        faults.push(Fault {
            what,
            expected: expected.to_owned(),
        });
    };
    let net = config.text(NET_KEY).map(str::to_owned);
    let kind = net.as_deref().unwrap_or(NONE);
    for (key, kinds) in [
        (HOSTFWD, &[USER][..]),
        (IFNAME, &[TAP]),
        (PATH, &[STREAM]),
        (SERVER, &[STREAM]),
        (FD, &[TAP, STREAM]),
    ] {
        if config.values.contains_key(key) && !kinds.contains(&kind) {
            let kinds = kinds.join(" or ");
            fault(
                format!("{key} is of net={kinds}, and this is {kind}"),
                "one network",
            );
        }
    }
    let has = |key| config.values.contains_key(key);
    match kind {
        STREAM if has(FD) && (has(PATH) || has(SERVER)) => {
            fault("both fd and path are given".to_owned(), "one of them");
        }
        STREAM if !has(FD) && !has(PATH) => {
            fault(
                "net=stream has no socket".to_owned(),
                "path=SOCKET or fd=NUMBER",
            );
        }
        TAP if has(FD) && has(IFNAME) => {
            fault("both fd and ifname are given".to_owned(), "one of them");
        }
        USER if here && passt::find().is_none() => fault(
            format!(
                "net=user needs the program {}, which is not in PATH",
                passt::PROGRAM
            ),
            "the package passt (Debian 12, Ubuntu 23.04 and later, Fedora, Arch); or another network",
        ),
        _ => {}
    }
    if let Some(forwards) = config.text(HOSTFWD) {
        for text in forwards.split_whitespace() {
            if Forward::parse(text).is_none() {
                fault(
                    format!("{text:?} forwards no port"),
                    "as tcp::2222-:22, or tcp:127.0.0.1:2222-:22; the guest's address is passt's matter",
                );
            }
        }
    }
    if let Some(mac) = config.text(MAC)
        && parse_mac(mac).is_none()
    {
        fault(
            format!("{mac:?} cannot be a card's hardware address"),
            "six bytes as 52:54:00:12:34:56, of which the first is even",
        );
    }
    let mut queues = pairs(config);
    if let Some(numbers) = config.text(FD) {
        match descriptors(numbers) {
            None => fault(
                format!("{numbers:?} names no descriptors"),
                "a number, or several as 5:6",
            ),
            Some(fds) => {
                let count = u16::try_from(fds.len()).unwrap_or(u16::MAX);
                if has(QUEUES) && count != queues {
                    fault(
                        format!("{count} descriptors for {queues} pairs of queues"),
                        "a descriptor for each",
                    );
                }
                queues = count;
            }
        }
    }
    if queues > MAX_PAIRS {
        fault(format!("{queues} descriptors"), "no more than 16");
    }
    if queues > 1 && [USER, STREAM].contains(&kind) {
        fault(
            format!("net={kind} has one pair of queues, and the card has {queues}"),
            "queues=1, which a saved VM cannot change, or net=tap",
        );
    }
    let can_offload = [TAP, LOOPBACK].contains(&kind);
    let offload = match config.values.contains_key(OFFLOAD) {
        true => config.switch(OFFLOAD),
        false => can_offload,
    };
    if offload && !can_offload && net.is_some() && kind != NONE {
        fault(
            format!("net={kind} has no offload, and the card has it (offload=on)"),
            "offload=off, which a saved VM cannot change, or net=tap",
        );
    }
    config.values.insert(OFFLOAD, DeviceValue::Switch(offload));
    config
        .values
        .insert(QUEUES, DeviceValue::Number(queues.into()));
    if !config.values.contains_key(MAC) {
        let mac = show_mac(mac_of(vm, &config.id));
        config.values.insert(MAC, DeviceValue::Text(mac));
    }
    faults
}

fn pairs(config: &DeviceConfig) -> u16 {
    u16::try_from(config.number(QUEUES).max(1)).unwrap_or(MAX_PAIRS)
}

/// The numbers in `5:6`.
fn descriptors(text: &str) -> Option<Vec<i32>> {
    let numbers = text.split(':').map(|number| {
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        number.parse().ok().filter(|_| digits)
    });
    numbers.collect()
}

/// Gives a card a network that is none of the host's, and does nothing to other devices.
pub fn without_network(config: &mut DeviceConfig) {
    let mut keys = config.of.row().keys.iter();
    if keys.any(|key| key.name == NET_KEY) {
        let loopback = DeviceValue::Text(LOOPBACK.to_owned());
        config.values.insert(NET_KEY, loopback);
    }
}

/// Makes a network card.
///
/// # Errors
/// If the host has no descriptors left, or what is given as one is none; or see [`Site::virtio`].
pub fn virtio_net(config: &DeviceConfig, site: &Site<'_>) -> Result<Slot, BuildError> {
    let mac = config.text(MAC).and_then(parse_mac);
    let net = Net::new(NetOptions {
        backend: backend(config).map_err(BuildError::Network)?,
        id: config.id.clone(),
        // The check has set it.
        mac: mac.unwrap_or_else(|| mac_of("", &config.id)),
        mtu: u16::try_from(config.number(MTU))
            .ok()
            .filter(|mtu| *mtu > 0),
        pairs: pairs(config),
        offload: config.switch(OFFLOAD),
    });
    site.virtio(config, Box::new(net))
}

fn backend(config: &DeviceConfig) -> std::io::Result<Box<dyn Backend>> {
    let stream = |connect: Box<dyn Connect>| -> std::io::Result<Box<dyn Backend>> {
        Ok(Box::new(StreamBackend::new(&config.id, connect)?))
    };
    let given = || -> std::io::Result<Vec<OwnedFd>> {
        let numbers = config.text(FD).and_then(descriptors).unwrap_or_default();
        numbers.into_iter().map(inherited).collect()
    };
    match config.text(NET_KEY) {
        Some(TAP) => {
            let source = if config.text(FD).is_some() {
                TapSource::Given(given()?)
            } else {
                TapSource::Interface(config.text(IFNAME).map(str::to_owned))
            };
            Ok(Box::new(Tap::new(&config.id, source, pairs(config))?))
        }
        Some(STREAM) => match (config.text(PATH), given()?.pop()) {
            (_, Some(fd)) => stream(Box::new(Given::new(UnixStream::from(fd)))),
            (Some(path), _) if config.switch(SERVER) => {
                stream(Box::new(Server::new(Path::new(path))))
            }
            (path, _) => stream(Box::new(Client::new(Path::new(path.unwrap_or_default())))),
        },
        Some(USER) => {
            let forwards = config.text(HOSTFWD).unwrap_or_default();
            let forwards = forwards.split_whitespace().filter_map(Forward::parse);
            let program = passt::find().unwrap_or_else(|| passt::PROGRAM.into());
            stream(Box::new(Passt::new(program, forwards.collect())))
        }
        Some(LOOPBACK) => Ok(Box::new(Loopback::new(pairs(config))?)),
        _ => Ok(Box::new(Nothing)),
    }
}

#[cfg(test)]
mod tests;
