//! The network between the host and the guests: a bridge with two taps in a network namespace of this process
//! (network_namespaces(7)), apart from the host's networks and its packet filters. It ends with the process.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use hypernest_lab::isolated;
use thiserror::Error;

use crate::program;

/// Addresses that no network has (RFC 5737).
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Of the network, in bits.
pub(super) const PREFIX: u8 = 24;
/// The guest's card, by which the guest finds it.
pub(super) const MAC: &str = "52:54:00:be:9c:01";
/// The tap of a VM, and that of the VM to which it is migrated.
pub(super) const TAPS: [&str; 2] = ["bench0", "bench1"];

const BRIDGE: &str = "bench";
/// The package iproute2 has it.
const IP: &str = "ip";
/// The file that taps come from.
const TUN: &str = "/dev/net/tun";

/// This host has no such network.
#[derive(Debug, Error)]
#[error(
    "cannot make the network of the loads tcp-* and migration: {0}; `disk memory` does without"
)]
pub(crate) struct NetworkError(String);

/// The mistake of a user without the program that makes the network.
pub(super) fn mistake() -> Option<String> {
    let what = "the program ip (package iproute2) is not on the PATH".to_owned();
    match program::on_path(IP) {
        Some(_) => None,
        None => Some(NetworkError(what).to_string()),
    }
}

/// Puts this process, which has one thread, into a network of its own.
pub(super) fn enter() -> Result<(), NetworkError> {
    if !Path::new(TUN).exists() {
        let what = format!("{TUN} is missing (`modprobe tun`)");
        return Err(NetworkError(what));
    }
    isolated::leave_network().map_err(|error| {
        let what = "a network namespace needs root, or unprivileged user namespaces";
        NetworkError(format!("{what}: {error}"))
    })?;
    for arguments in commands() {
        run(&arguments)?;
    }
    Ok(())
}

/// The arguments of `ip` that make the network.
fn commands() -> Vec<String> {
    let mut commands = vec![
        "link set lo up".to_owned(),
        format!("link add {BRIDGE} type bridge"),
    ];
    for tap in TAPS {
        commands.push(format!("tuntap add {tap} mode tap"));
        commands.push(format!("link set {tap} master {BRIDGE} up"));
    }
    commands.push(format!("address add {HOST}/{PREFIX} dev {BRIDGE}"));
    commands.push(format!("link set {BRIDGE} up"));
    commands
}

fn run(arguments: &str) -> Result<(), NetworkError> {
    let mut command = Command::new(IP);
    command.args(arguments.split(' ')).stdin(Stdio::null());
    hypernest::end_with_parent(&mut command);
    let failed = |why: &dyn std::fmt::Display| NetworkError(format!("`{IP} {arguments}`: {why}"));
    let output = command.output().map_err(|error| failed(&error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(&format!("{}: {}", output.status, said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_taps_are_ports_of_the_bridge() {
        let commands = commands();
        for tap in TAPS {
            let made = format!("tuntap add {tap} mode tap");
            let port = format!("link set {tap} master bench up");
            let at = |text: &String| commands.iter().position(|command| command == text);
            assert!(at(&made) < at(&port) && at(&made).is_some(), "{commands:?}");
        }
        assert!(commands.contains(&"address add 192.0.2.1/24 dev bench".to_owned()));
    }

    #[test]
    fn a_failed_command_is_named_with_its_reason() {
        let error = NetworkError("`ip link`: no".to_owned()).to_string();
        assert!(error.contains("`ip link`: no; `disk memory`"), "{error}");
    }
}
