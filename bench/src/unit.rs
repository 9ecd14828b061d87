//! The value of a TSC tick on this host.

use hypernest::kvm::tsc::host_tsc;
use hypernest::units::TscKhz;
use hypernest_lab::host::Host;
use serde::{Deserialize, Serialize};

use crate::cpu;

/// The unit of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Unit {
    /// `ns`, `emulated instructions` or `TSC ticks`.
    pub(crate) name: String,
    /// The number of TSC ticks in one unit.
    pub(crate) ticks: f64,
    /// The source of that number.
    pub(crate) why: String,
}

/// The unit on `host` (the lab's name for it) if a guest's TSC runs at `khz`.
pub(crate) fn unit(host: Option<Host>, khz: Option<TscKhz>) -> Unit {
    match (host, khz) {
        (Some(Host::Intel), _) => {
            let (ticks, spread) = ticks_per_instruction();
            instructions(ticks, spread)
        }
        (lab, Some(khz)) => Unit {
            name: "ns".to_owned(),
            ticks: f64::from(khz.0) / 1e6,
            why: match lab {
                Some(Host::Amd) => format!(
                    "the TSC ticks at {khz}; the CPU is emulated and its time is the emulator's: compare \
                     host exits, not ns"
                ),
                _ => format!("the TSC ticks at {khz}"),
            },
        },
        (_, None) => Unit {
            name: "TSC ticks".to_owned(),
            ticks: 1.0,
            why: "KVM does not report the frequency of the TSC".to_owned(),
        },
    }
}

fn instructions(ticks: f64, spread: f64) -> Unit {
    Unit {
        name: "emulated instructions".to_owned(),
        ticks,
        why: format!(
            "the emulated TSC counts instructions: {ticks:.3} ticks each, by the shortest run of a loop of \
             known length; half of its runs lie within {:.2} % above",
            spread * 100.0
        ),
    }
}

/// Long against reading the TSC, short against the time between two timer interrupts.
const TURNS: u64 = 20_000;
const REPEATS: usize = 21;

/// Ticks per instruction in a loop of known length, and the relative distance of the median above it. The
/// result is the minimum, since an interrupt can only lengthen a repeat, and lengthens most of them if
/// interrupts are frequent.
fn ticks_per_instruction() -> (f64, f64) {
    let mut ratios = [0.0; REPEATS];
    for ratio in &mut ratios {
        let start = host_tsc();
        cpu::counted_loop(TURNS);
        let ticks = host_tsc().wrapping_sub(start);
        *ratio = ticks as f64 / (TURNS * cpu::LOOP_LENGTH) as f64;
    }
    least_and_spread(ratios)
}

fn least_and_spread(mut ratios: [f64; REPEATS]) -> (f64, f64) {
    ratios.sort_by(f64::total_cmp);
    let least = ratios[0];
    (least, (ratios[REPEATS / 2] - least) / least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_by_the_frequency() {
        let unit = unit(None, Some(TscKhz(2_500_000)));
        assert_eq!((unit.name.as_str(), unit.ticks), ("ns", 2.5));
        assert!(unit.why.contains("2500000 kHz"));
        assert_eq!(super::unit(None, None).name, "TSC ticks");
    }

    #[test]
    fn interrupts_do_not_stretch_the_unit() {
        let mut ratios = [1.05; REPEATS];
        ratios[7] = 1.0;
        let (least, spread) = least_and_spread(ratios);
        assert!((least - 1.0).abs() < 1e-9 && (spread - 0.05).abs() < 1e-9);
    }

    #[test]
    fn an_emulators_time_is_called_that() {
        let unit = unit(Some(Host::Amd), Some(TscKhz(1_000_000)));
        assert!(unit.why.contains("emulated"));
        let unit = instructions(1.0, 0.0012);
        assert!(unit.why.contains("1.000 ticks") && unit.why.contains("0.12 %"));
    }
}
