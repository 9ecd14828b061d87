//! Round trips from the guest to user space and back, in the guest's ticks.

use std::collections::BTreeMap;

use super::contender::{Contender, Guest};
use super::running::Running;
use super::samples::{least, medians, ratio, spread, table};
use super::{Bench, GUEST_MEMORY_MIB, VmmError, floor};

/// An address without a device in all VMMs: RAM ends far below, and the device windows are elsewhere.
const NOBODY: u64 = 0xD000_0000;
/// The kinds that the guest program measures, by its own names; `msr` is a register of hv-reenlightenment,
/// which hypernest emulates itself.
const KINDS: [&str; 5] = ["cpuid", "pio-out", "pio-in", "mmio", "msr"];

/// The median of each kind, one map per round.
type Rounds = Vec<BTreeMap<String, f64>>;

/// Other activity of the host can only lengthen a round trip, so the cost of a VMM above the floor is the
/// difference of the minimum medians.
pub(super) fn measure(bench: &Bench) -> Result<String, VmmError> {
    let cmdline =
        format!("exits n=2000 warmup=200 kinds=cpuid,pio-out,pio-in,msr mmio={NOBODY:#x}");
    let guest = Guest {
        kernel: &bench.guest,
        initrd: None,
        cmdline: &cmdline,
        memory_mib: GUEST_MEMORY_MIB,
    };
    let mut floors = Rounds::new();
    let mut contenders: BTreeMap<Contender, Rounds> = BTreeMap::new();
    for _ in 0..bench.rounds {
        floors.push(medians(
            "the bare loop",
            &floor::run(&bench.guest, &cmdline)?,
        )?);
        for &contender in &bench.contenders {
            let running = Running::start(contender, &guest, &bench.terms, bench.limit)?;
            let round = medians(contender.name(), &running.finish()?)?;
            contenders.entry(contender).or_default().push(round);
        }
    }

    let mut head = vec!["round trip, guest ticks", "bare KVM_RUN"];
    head.extend(contenders.keys().map(|c| c.name()));
    let above = ["hypernest", "q35", "microvm"].map(|who| format!("{who} above the floor"));
    head.extend(above.iter().take(contenders.len()).map(String::as_str));
    let against = ["to q35's", "to microvm's"];
    head.extend(against.iter().take(contenders.len() - 1));
    let rows: Vec<_> = KINDS
        .iter()
        .map(|kind| row(kind, &floors, &contenders))
        .collect();
    Ok(table(&head, &rows))
}

fn row(kind: &str, floors: &Rounds, contenders: &BTreeMap<Contender, Rounds>) -> Vec<String> {
    let of = |rounds: &Rounds| -> Vec<f64> {
        let values = rounds.iter().filter_map(|round| round.get(kind));
        values.copied().collect()
    };
    let floor = of(floors);
    let mut row = vec![kind.to_owned(), spread(&floor, 0)];
    row.extend(contenders.values().map(|rounds| spread(&of(rounds), 0)));
    let above: Vec<Option<f64>> = contenders
        .values()
        .map(|rounds| Some(least(&of(rounds))? - least(&floor)?))
        .collect();
    let show = |above: &Option<f64>| above.map_or("-".to_owned(), |ticks| format!("{ticks:.0}"));
    row.extend(above.iter().map(show));
    if let Some((ours, theirs)) = above.split_first() {
        row.extend(theirs.iter().map(|&theirs| ratio(*ours, theirs)));
    }
    row
}
