//! The choice of loads.

use super::jobs::{JOBS, Job};
use super::peer::Stream;

/// What is measured in each boot of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    Disk(Job),
    Net(Stream),
    /// The memory of the VMM, after the boot and after the other loads.
    Memory,
    /// A live migration while the disk and the network are loaded.
    Migration,
}

/// Names of several loads.
const DISK: &str = "disk";
const NET: &str = "net";

impl Load {
    /// All of them, in the order in which they run.
    fn all() -> Vec<Self> {
        let disk = JOBS.into_iter().map(Self::Disk);
        let net = Stream::ALL.into_iter().map(Self::Net);
        disk.chain(net)
            .chain([Self::Memory, Self::Migration])
            .collect()
    }

    /// Its name on the command line.
    fn key(self) -> &'static str {
        match self {
            Self::Disk(job) => job.key,
            Self::Net(stream) => stream.key(),
            Self::Memory => "memory",
            Self::Migration => "migration",
        }
    }

    /// The name of its kind.
    fn group(self) -> Option<&'static str> {
        match self {
            Self::Disk(_) => Some(DISK),
            Self::Net(_) => Some(NET),
            Self::Memory | Self::Migration => None,
        }
    }

    /// Whether it runs fio.
    pub(super) fn needs_fio(self) -> bool {
        matches!(self, Self::Disk(_) | Self::Migration)
    }

    /// Whether it needs a network card.
    pub(super) fn needs_network(self) -> bool {
        matches!(self, Self::Net(_) | Self::Migration)
    }
}

/// The names that [`chosen`] takes.
pub(super) fn names() -> Vec<&'static str> {
    let mut names = vec![DISK, NET];
    names.extend(Load::all().into_iter().map(Load::key));
    names
}

/// The loads with these names; all without any.
pub(super) fn chosen(names: &[String]) -> Vec<Load> {
    let is_named = |load: &Load| {
        let own = [Some(load.key()), load.group()];
        names.is_empty() || names.iter().any(|name| own.contains(&Some(name)))
    };
    Load::all().into_iter().filter(is_named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_chosen_by_their_names_and_kinds() {
        let choose = |names: &str| {
            let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
            chosen(&names)
        };
        assert_eq!(choose(""), Load::all());
        assert_eq!(choose("disk"), JOBS.map(Load::Disk));
        assert_eq!(choose("net memory").len(), 4);
        let two = choose("migration randread-1");
        assert_eq!(two, [Load::Disk(JOBS[0]), Load::Migration]);
        assert!(two.iter().all(|load| load.needs_fio()));
        assert!(!two[0].needs_network() && two[1].needs_network());
        for name in names() {
            assert!(!choose(name).is_empty(), "{name}");
        }
    }
}
