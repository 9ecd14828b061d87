//! `hypernest net`: the network cards of a running VM.

use clap::{Subcommand, ValueEnum};

use super::status::{devices, show_bytes};
use super::{CliError, ExitStatus, print, to_json};
use crate::api::{ApiError, ControlRequest, NetLink, RunDirs, call};
use crate::machine::DeviceStatus;
use crate::net::control::NetReport;

/// Show the network cards of a running VM, or set their links
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List a VM's network cards, with what the guest has received and sent
    List {
        /// The VM's name
        name: String,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Set a card's link up or down, as a cable does; the guest notices at once
    Link {
        /// The VM's name
        name: String,

        /// The card's id
        card: String,

        /// Whether there is to be a link
        state: LinkState,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LinkState {
    /// The card is connected to its network
    Up,
    /// The card is connected to nothing
    Down,
}

/// Carries out the command.
///
/// # Errors
/// If there is no such VM or card.
pub fn run(args: &Args) -> Result<ExitStatus, CliError> {
    let dirs = RunDirs::of_user();
    match &args.action {
        Action::List { name, json } => {
            let cards = cards(&dirs, name)?;
            print(&match json {
                true => to_json(&cards)?,
                false => list(&cards),
            })?;
        }
        Action::Link { name, card, state } => {
            let request = NetLink {
                id: card.clone(),
                up: *state == LinkState::Up,
            };
            call(&dirs, name, &ControlRequest::NetLink(request))?;
        }
    }
    Ok(ExitStatus::DONE)
}

fn cards(dirs: &RunDirs, name: &str) -> Result<Vec<DeviceStatus>, ApiError> {
    devices(dirs, name, |report| report.net.is_some())
}

fn list(cards: &[DeviceStatus]) -> String {
    let cards = cards
        .iter()
        .filter_map(|card| Some((card, card.report.net.as_ref()?)));
    let lines = cards.map(|(card, net)| format!("{}: {}\n", card.id.escape_debug(), describe(net)));
    lines.collect()
}

/// What a card shows, in one line.
pub(super) fn describe(net: &NetReport) -> String {
    let link = match (net.link, net.plugged) {
        (true, _) => "link up",
        (false, true) => "link down",
        (false, false) => "link down by a user",
    };
    let mut text = format!(
        "{}, {link}: {} received in {} frames, {} sent in {}",
        net.mac.escape_debug(),
        show_bytes(net.rx_bytes),
        net.rx_packets,
        show_bytes(net.tx_bytes),
        net.tx_packets
    );
    let dropped = net.rx_dropped.saturating_add(net.tx_dropped);
    if dropped > 0 {
        text.push_str(&format!(", {dropped} dropped"));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::bus::DeviceReport;
    use crate::cli::Cli;

    #[test]
    fn a_list_for_people() {
        let net = NetReport {
            mac: "52:54:00:00:00:01".to_owned(),
            link: true,
            plugged: true,
            rx_packets: 3,
            rx_bytes: 4000,
            tx_packets: 1,
            tx_bytes: 60,
            ..NetReport::default()
        };
        assert_eq!(
            describe(&NetReport {
                link: false,
                plugged: false,
                rx_dropped: 2,
                tx_dropped: 3,
                ..net.clone()
            }),
            "52:54:00:00:00:01, link down by a user: 4000 B received in 3 frames, 60 B sent in 1, 5 dropped"
        );
        let card = DeviceStatus {
            id: "lan".to_owned(),
            of: "virtio-net".to_owned(),
            slot: 1,
            report: DeviceReport {
                net: Some(net),
                ..DeviceReport::default()
            },
        };
        assert_eq!(
            list(&[card]),
            "lan: 52:54:00:00:00:01, link up: 4000 B received in 3 frames, 60 B sent in 1\n"
        );
        assert_eq!(list(&[]), "");
    }

    #[test]
    fn wrong_words_are_wrong_use() {
        for line in [
            "net",
            "net list",
            "net link vm lan",
            "net link vm lan on",
            "net vm",
        ] {
            let words = ["hypernest"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
