//! The result: writing and parsing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::counts::Counts;

/// The value of [`Document::format`].
pub const FORMAT: &str = "l2probe";
/// The value of [`Document::version`]; raised by a change that breaks readers.
pub const VERSION: u32 = 1;
/// The maximum length of a document.
pub const MAX_LEN: usize = 16 << 20;

/// The whole result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The program that wrote it.
    pub made_by: String,
    /// Its command line.
    pub command_line: Vec<String>,
    /// Start time in seconds since 1970; 0 if unknown.
    pub started_unix: u64,
    /// The environment of the measurement.
    pub place: Place,
    /// A measurement for each kind, including skipped ones.
    pub measurements: Vec<Measurement>,
    /// Notes for the reader.
    pub notes: Vec<String>,
    /// The only round that this is the result of, counted from 1; `None` if it is the whole result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u32>,
}

/// The environment, as seen from inside. Unknown properties are empty or `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The kernel's release.
    pub kernel: String,
    /// The Windows subsystem, if this is one.
    pub wsl: Option<Wsl>,
    /// The CPU's name.
    pub cpu_model: String,
    /// CPUs that the program may use.
    pub cpus: usize,
    /// The kernel's clock source.
    pub clocksource: String,
    /// Other clock sources that the kernel could use.
    pub clocksources: Vec<String>,
    /// The hypervisor by CPUID; `None` if CPUID names none.
    pub hypervisor: Option<Hypervisor>,
    /// Whether a hypervisor executes CPUID.
    pub cpuid: Trapped,
    /// The time-stamp counter.
    pub tsc: Tsc,
}

/// A Windows Subsystem for Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wsl {
    /// Version 1, which does not use a virtual machine.
    Wsl1,
    /// Version 2.
    Wsl2,
}

/// The hypervisor's description in CPUID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hypervisor {
    /// The twelve letters at the first leaf, without trailing zeros.
    pub signature: String,
    /// The interface at the second leaf, if it is text: `Hv#1` for Hyper-V's.
    pub interface: Option<String>,
    /// The leaves from 0x40000000, by their number in hexadecimal: EAX, EBX, ECX, EDX.
    pub leaves: BTreeMap<String, [u32; 4]>,
}

/// Whether a hypervisor executes an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trapped {
    /// It takes much longer than on any CPU.
    Yes,
    /// It takes as long as on the CPU itself.
    No,
    /// It was not measured, or the figure fits neither case.
    #[default]
    Unknown,
}

/// The time-stamp counter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tsc {
    /// Its rate by the kernel's clock, in kHz; `None` if it cannot be read.
    pub khz: Option<f64>,
    /// The relative difference between the estimates.
    pub spread: f64,
    /// CPUID reports an invariant TSC.
    pub invariant: bool,
}

/// The unit of a measurement's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Ticks of the time-stamp counter.
    Ticks,
    /// Nanoseconds of CLOCK_MONOTONIC.
    Ns,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Its name.
    pub kind: String,
    /// Its outcome.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The outcome of a measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// Measured values.
    Measured {
        /// Their unit.
        unit: Unit,
        /// A list for each round; empty ones are omitted.
        rounds: Vec<Counts>,
    },
    /// Not supported here.
    Skipped {
        /// The reason.
        why: String,
    },
}

/// A text that is not a document.
#[derive(Debug, Error)]
pub enum Unreadable {
    /// Too long.
    #[error("longer than any result of l2probe ({MAX_LEN} bytes)")]
    Long,
    /// No line of the text is a document.
    #[error("no result of l2probe in it")]
    Nothing,
    /// A line that begins like a document is malformed.
    #[error("a broken result of l2probe")]
    Broken(#[from] serde_json::Error),
    /// The document has another version.
    #[error("a result of l2probe in version {0} of its form; this program reads {VERSION}")]
    Version(u64),
}

impl Document {
    /// The document as one line.
    ///
    /// # Errors
    /// None is expected.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        Ok(line)
    }

    /// Reads a document, or the last one among other lines, such as the output of a serial port. If a run was
    /// interrupted before it wrote its whole result, its rounds are merged into one document.
    ///
    /// # Errors
    /// If there is no document, or it is malformed.
    pub fn read(text: &str) -> Result<Self, Unreadable> {
        if text.len() > MAX_LEN {
            return Err(Unreadable::Long);
        }
        // The whole text, or a line; the error of a malformed document takes precedence over its absence.
        let mut broken = None;
        let mut rounds: Vec<Self> = Vec::new();
        for candidate in std::iter::once(text).chain(text.lines().rev()) {
            let Some(json) = candidate.find('{').map(|at| candidate[at..].trim_end()) else {
                continue;
            };
            match serde_json::from_str::<serde_json::Value>(json) {
                Ok(value) if value["format"] == FORMAT => {
                    let document = Self::of(value)?;
                    let round = document.round;
                    match round {
                        // Other output precedes these rounds.
                        None if !rounds.is_empty() => break,
                        None => return Ok(document),
                        Some(_) => rounds.push(document),
                    }
                    if round == Some(1) {
                        break;
                    }
                }
                Ok(_) => {}
                Err(error) if json.contains("\"format\":\"l2probe\"") => {
                    broken.get_or_insert(error);
                }
                Err(_) => {}
            }
        }
        match rounds.into_iter().rev().reduce(Self::and) {
            Some(document) => Ok(Self {
                round: None,
                ..document
            }),
            None => Err(broken.map_or(Unreadable::Nothing, Unreadable::Broken)),
        }
    }

    /// Appends the rounds of a `later` document of the same run, whose other fields replace this one's.
    fn and(self, later: Self) -> Self {
        let mut all = self.measurements;
        for new in later.measurements {
            let Some(old) = all.iter_mut().find(|old| old.kind == new.kind) else {
                all.push(new);
                continue;
            };
            if let Outcome::Measured { unit, rounds } = &mut old.outcome
                && let Outcome::Measured {
                    unit: new_unit,
                    rounds: more,
                } = new.outcome
                && *unit == new_unit
            {
                rounds.extend(more);
            }
        }
        Self {
            measurements: all,
            ..later
        }
    }

    fn of(value: serde_json::Value) -> Result<Self, Unreadable> {
        let version = value["version"].as_u64().unwrap_or(0);
        if version != u64::from(VERSION) {
            return Err(Unreadable::Version(version));
        }
        Ok(serde_json::from_value(value)?)
    }

    /// The rounds of `kind` and their unit, if it was measured.
    #[must_use]
    pub fn rounds(&self, kind: &str) -> Option<(Unit, &[Counts])> {
        let mut of = self.measurements.iter().filter(|m| m.kind == kind);
        of.find_map(|measurement| match &measurement.outcome {
            Outcome::Measured { unit, rounds } => Some((*unit, rounds.as_slice())),
            Outcome::Skipped { .. } => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn document() -> Document {
        Document {
            format: FORMAT.into(),
            version: VERSION,
            made_by: "l2probe test".into(),
            command_line: vec!["l2probe".into()],
            started_unix: 1_700_000_000,
            place: Place {
                kernel: "5.15.0-microsoft-standard-WSL2".into(),
                wsl: Some(Wsl::Wsl2),
                ..Place::default()
            },
            measurements: vec![
                Measurement {
                    kind: "cpuid".into(),
                    outcome: Outcome::Measured {
                        unit: Unit::Ticks,
                        rounds: vec![[100, 200].into_iter().collect()],
                    },
                },
                Measurement {
                    kind: "ipi-wake".into(),
                    outcome: Outcome::Skipped {
                        why: "one CPU".into(),
                    },
                },
            ],
            notes: vec![],
            round: None,
        }
    }

    #[test]
    fn what_is_written_is_read_alone_or_among_other_lines() {
        let document = document();
        let line = document.line().unwrap();
        assert_eq!(Document::read(&line).unwrap(), document);
        let noise = format!("[    1.0] hello {{\n\r{line}[    2.0] reboot: Power down\r\n");
        assert_eq!(Document::read(&noise).unwrap(), document);
        let pretty = serde_json::to_string_pretty(&document).unwrap();
        assert_eq!(Document::read(&pretty).unwrap(), document);
        assert_eq!(document.rounds("cpuid").unwrap().1[0].len(), 2);
        assert!(document.rounds("ipi-wake").is_none());
        // These names are an interface for other programs.
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["measurements"][0]["outcome"], "measured");
        assert_eq!(value["measurements"][0]["rounds"][0][0][0], 100);
        assert_eq!(value["place"]["wsl"], "wsl2");
    }

    #[test]
    fn rounds_make_a_result_where_there_is_no_whole_one() {
        let round = |number: u32, value: u64| {
            let mut document = document();
            document.round = Some(number);
            document.notes = vec![format!("only {number}")];
            let Outcome::Measured { rounds, .. } = &mut document.measurements[0].outcome else {
                panic!("{document:?}");
            };
            *rounds = vec![[value].into_iter().collect()];
            document.line().unwrap()
        };
        let values = |text: &str| -> Vec<u64> {
            let document = Document::read(text).unwrap();
            assert_eq!(document.round, None);
            let rounds = document.rounds("cpuid").unwrap().1.iter();
            rounds
                .map(|counts| counts.iter().next().unwrap().0)
                .collect()
        };
        let (one, two) = (round(1, 100), round(2, 200));
        assert_eq!(values(&one), [100]);
        assert_eq!(values(&format!("boot\n{one}noise {{\n{two}")), [100, 200]);
        assert_eq!(
            values(&format!("{one}{two}{}", &two[..two.len() / 2])),
            [100, 200]
        );
        // An earlier run is ignored, whether complete or not.
        assert_eq!(values(&format!("{one}{two}{one}{two}")), [100, 200]);
        let whole = document().line().unwrap();
        assert_eq!(values(&format!("{whole}{one}")), [100]);
        assert_eq!(
            Document::read(&format!("{one}{two}{whole}")).unwrap(),
            document()
        );
        let read = Document::read(&format!("{one}{two}")).unwrap();
        assert_eq!(read.notes, ["only 2"]);
    }

    #[test]
    fn what_is_none_is_told_from_what_is_broken() {
        assert!(matches!(
            Document::read("{}\nhello"),
            Err(Unreadable::Nothing)
        ));
        let line = document().line().unwrap();
        let half = &line[..line.len() / 2];
        assert!(matches!(Document::read(half), Err(Unreadable::Broken(_))));
        let newer = line.replace("\"version\":1", "\"version\":2");
        assert!(matches!(
            Document::read(&newer),
            Err(Unreadable::Version(2))
        ));
        let long = " ".repeat(MAX_LEN + 1);
        assert!(matches!(Document::read(&long), Err(Unreadable::Long)));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}", at in 0..400_usize) {
            let mut line = document().line().unwrap();
            let at = at.min(line.len());
            line.insert_str(at, &text);
            let _read = Document::read(&line);
            let _read = Document::read(&text);
        }
    }
}
