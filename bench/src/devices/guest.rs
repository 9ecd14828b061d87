//! The guest's system: its shell, what it lacks, and its devices.

use super::console::Console;
use super::loads::Load;
use super::machine::SERIAL;
use super::network::{GUEST, MAC, PREFIX};
use super::{Bench, DevicesError, disk, moving, net};

/// Programs of the guest, by what needs them.
const ALWAYS: [&str; 1] = ["cat"];
const FOR_DISK: [&str; 3] = ["fio", "gzip", "base64"];
const FOR_NETWORK: [&str; 2] = ["bash", "ip"];

/// Waits for the shell of root, sets its network card up if it has one, and returns the name of the scratch
/// disk in the guest.
pub(super) fn prepare(console: &mut Console, bench: &Bench) -> Result<String, DevicesError> {
    console.until(&bench.prompt)?;
    // A shell that prints nothing but the output of its commands. Each word that is waited for is written so
    // that its echo is another.
    console.tell("exec sh")?;
    console.tell("stty -echo; PS1=; PS2=; dmesg -n 1; echo; echo @rea''dy")?;
    console.until("@ready")?;
    let missing = missing(console, &needed(&bench.loads))?;
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(console.failed(&format!("has a guest without {missing}")));
    }
    for (place, program) in PROGRAMS {
        console.tell(&format!("cat >{place} <<'END'\n{program}END"))?;
    }
    if bench.has_network() {
        let card = find(
            console,
            "card",
            &format!(
                "for n in /sys/class/net/*; do [ \"$(cat $n/address 2>/dev/null)\" = {MAC} ] && \
             echo @card ${{n##*/}}; done"
            ),
        )?;
        console.tell(&format!(
            "ip address add {GUEST}/{PREFIX} dev {card}; ip link set {card} up"
        ))?;
    }
    find(
        console,
        "disk",
        &format!(
            "for b in /sys/block/*; do [ \"$(cat $b/serial 2>/dev/null)\" = {SERIAL} ] && \
             echo @disk ${{b##*/}}; done"
        ),
    )
}

/// The programs of this program that run in the guest.
const PROGRAMS: [(&str, &str); 3] = [
    (disk::PLACE, disk::PROGRAM),
    (net::PLACE, net::PROGRAM),
    (moving::PLACE, moving::PROGRAM),
];

fn needed(loads: &[Load]) -> Vec<&'static str> {
    let mut needed = ALWAYS.to_vec();
    if loads.iter().any(|load| load.needs_fio()) {
        needed.extend(FOR_DISK);
    }
    if loads.iter().any(|load| load.needs_network()) {
        needed.extend(FOR_NETWORK);
    }
    needed
}

/// Those of `programs` that the guest has not.
fn missing(
    console: &mut Console,
    programs: &[&'static str],
) -> Result<Vec<&'static str>, DevicesError> {
    for program in programs {
        console.tell(&format!(
            "command -v {program} >/dev/null && echo @yes || echo @no {program}"
        ))?;
    }
    let mut missing = Vec::new();
    for program in programs {
        console.until("@")?;
        if console.until("\n")?.starts_with("no") {
            missing.push(*program);
        }
    }
    Ok(missing)
}

/// The name that `command` prints after `@what`.
fn find(console: &mut Console, what: &str, command: &str) -> Result<String, DevicesError> {
    let word = format!("@{what}");
    console.tell(&format!("{command}; echo {word}"))?;
    let name = console.line(&word)?;
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(console.failed(&format!("has a guest that does not find its {what}")));
    }
    console.until(&word)?;
    Ok(name)
}

/// The guest powers off.
pub(super) fn end(mut console: Console) -> Result<(), DevicesError> {
    console.tell("sync; poweroff -f")?;
    console.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::loads::chosen;

    #[test]
    fn the_programs_can_be_typed() {
        // They are in here-documents, and a terminal takes lines of up to 4095 characters.
        for (_, program) in PROGRAMS {
            assert!(
                program
                    .lines()
                    .all(|line| line != "END" && line.len() < 1000)
            );
            assert!(program.ends_with('\n') && program.is_ascii() && !program.contains('\t'));
        }
    }

    #[test]
    fn only_what_is_used_is_needed() {
        let needed = |name: &str| needed(&chosen(&[name.to_owned()]));
        assert_eq!(needed("memory"), ["cat"]);
        assert_eq!(needed("net"), ["cat", "bash", "ip"]);
        assert_eq!(needed("randread-1"), ["cat", "fio", "gzip", "base64"]);
        assert_eq!(needed("migration").len(), 6);
    }
}
