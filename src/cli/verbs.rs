//! Verbs of virsh and of QEMU's monitor, and the commands that do the same.

use crate::config::is_name;
use crate::text::nearest;

/// What does the same as a verb.
#[derive(Clone, Copy)]
enum Instead {
    /// This command; `NAME` in it stands for the VM's name.
    Command(&'static str),
    /// No one command.
    Advice(&'static str),
}

use Instead::{Advice, Command};

const NO_STORE: Instead = Advice(
    "hypernest stores no VMs: keep the settings in a file, for `hypernest run --config FILE`, and check it \
     with `hypernest config --config FILE`",
);
const CONSOLE: Instead = Advice(
    "COM1 is on the terminal of `hypernest run`; with --serial pty, `hypernest status NAME` shows its \
     terminal, and --serial socket:PATH puts it on a socket",
);
const FIXED: Instead =
    Advice("the hardware of a running VM cannot be changed: stop it and run it anew");

const VERBS: [(&str, Instead); 52] = [
    ("shutdown", Command("power-button NAME")),
    ("poweroff", Command("power-button NAME")),
    ("halt", Command("power-button NAME")),
    ("destroy", Command("stop NAME")),
    ("start", Command("run --name NAME --kernel FILE")),
    ("create", Command("run --config FILE")),
    ("suspend", Command("pause NAME")),
    ("unpause", Command("resume NAME")),
    (
        "reboot",
        Advice(
            "`hypernest reset NAME` resets a VM as its reset button would; to shut its guest down first, \
             `hypernest power-button NAME` and run it again",
        ),
    ),
    ("dominfo", Command("status NAME")),
    ("domstate", Command("status NAME")),
    ("domstats", Command("status NAME --json")),
    ("domblklist", Command("disk list NAME")),
    ("domblkstat", Command("disk list NAME")),
    ("domblkinfo", Command("disk list NAME")),
    ("blockresize", Command("disk resize NAME DISK SIZE")),
    ("block_resize", Command("disk resize NAME DISK SIZE")),
    (
        "blkdeviotune",
        Command("disk throttle NAME DISK --iops 0 --bps 0"),
    ),
    (
        "block_set_io_throttle",
        Command("disk throttle NAME DISK --iops 0 --bps 0"),
    ),
    ("domiflist", Command("net list NAME")),
    ("domifstat", Command("net list NAME")),
    ("domif-getlink", Command("net list NAME")),
    ("domif-setlink", Command("net link NAME CARD down")),
    ("set_link", Command("net link NAME CARD down")),
    ("domjobinfo", Command("status NAME")),
    ("domjobabort", Command("migrate NAME --cancel")),
    ("ps", Command("list")),
    ("ls", Command("list")),
    ("managedsave", Command("save NAME DIR --then stop")),
    ("snapshot-create", Command("save NAME DIR")),
    ("snapshot-revert", Command("restore DIR")),
    ("console", CONSOLE),
    ("ttyconsole", CONSOLE),
    ("define", NO_STORE),
    ("undefine", NO_STORE),
    ("edit", NO_STORE),
    ("dumpxml", Command("status NAME --json")),
    ("capabilities", Command("doctor")),
    ("domcapabilities", Command("doctor")),
    ("nodeinfo", Command("doctor")),
    ("attach-device", FIXED),
    ("detach-device", FIXED),
    ("setmem", Command("balloon NAME SIZE")),
    ("dommemstat", Command("balloon NAME")),
    ("setvcpus", FIXED),
    ("system_powerdown", Command("power-button NAME")),
    ("system_reset", Command("reset NAME")),
    ("cont", Command("resume NAME")),
    ("quit", Command("stop NAME")),
    ("savevm", Command("save NAME DIR")),
    ("loadvm", Command("restore DIR")),
    ("info", Command("status NAME")),
];

/// What a command line with the unknown command `verb` should have been: `None` if that is unclear, or if the
/// verb is one of `ours`, misspelt. `next` is the word after it.
pub(super) fn hint<'a>(
    verb: &str,
    next: Option<&str>,
    ours: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let known = VERBS.iter().map(|(known, _)| *known);
    let meant = nearest(verb, known.chain(ours))?;
    let (_, instead) = VERBS.iter().find(|(known, _)| *known == meant)?;
    let instead = match instead {
        Command(command) => format!("write `hypernest {command}`"),
        Advice(advice) => (*advice).to_owned(),
    };
    let instead = match next.filter(|next| is_name(next)) {
        Some(name) => instead.replace("NAME", name),
        None => instead,
    };
    let whose = match meant == verb {
        true => String::new(),
        false => format!(", nor `{meant}`"),
    };
    Some(format!("there is no command `{verb}`{whose}: {instead}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    const OURS: [&str; 5] = ["stop", "restore", "status", "list", "power-button"];

    fn of(verb: &str, next: Option<&str>) -> Option<String> {
        hint(verb, next, OURS.into_iter())
    }

    #[test]
    fn each_verb_is_answered_with_what_does_the_same() {
        for (verb, next, says) in [
            (
                "shutdown",
                Some("win11"),
                ": write `hypernest power-button win11`",
            ),
            ("shutdown", None, ": write `hypernest power-button NAME`"),
            (
                "destroy",
                Some("--graceful"),
                ": write `hypernest stop NAME`",
            ),
            ("suspend", Some("vm"), ": write `hypernest pause vm`"),
            (
                "start",
                None,
                ": write `hypernest run --name NAME --kernel FILE`",
            ),
            ("dominfo", Some("vm"), ": write `hypernest status vm`"),
            (
                "managedsave",
                Some("vm"),
                ": write `hypernest save vm DIR --then stop`",
            ),
            (
                "console",
                Some("vm"),
                "`hypernest status vm` shows its terminal",
            ),
            ("define", Some("vm.xml"), "hypernest stores no VMs"),
            (
                "blockresize",
                Some("vm"),
                ": write `hypernest disk resize vm DISK SIZE`",
            ),
            ("domblklist", Some("vm"), ": write `hypernest disk list vm`"),
            // A typo of a verb is not the nearest command.
            (
                "shutdwn",
                None,
                "`shutdwn`, nor `shutdown`: write `hypernest power-button NAME`",
            ),
            (
                "detsroy",
                None,
                "`detsroy`, nor `destroy`: write `hypernest stop NAME`",
            ),
        ] {
            let hint = of(verb, next).unwrap();
            assert!(
                hint.ends_with(says) || hint.contains(says),
                "{verb}: {hint}"
            );
        }
        for verb in ["fly", "stpo", "restor", "statsu"] {
            assert_eq!(of(verb, None), None, "{verb}");
        }
    }

    /// The advice names commands and flags that exist, and no verb hides a command.
    #[test]
    fn the_advice_can_be_followed() {
        for (verb, instead) in VERBS {
            let known = Cli::try_parse_from(["hypernest", verb]).unwrap_err().kind();
            assert_eq!(known, clap::error::ErrorKind::InvalidSubcommand, "{verb}");
            if let Command(command) = instead {
                let words = ["hypernest"].into_iter().chain(command.split(' '));
                let parsed = Cli::try_parse_from(words);
                assert!(parsed.is_ok(), "{verb}: {}", parsed.unwrap_err());
            }
        }
    }
}
