//! L1's reports to the host, one JSON object per line.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How L1's KVM runs L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// VMX with an enlightened VMCS.
    Evmcs,
    /// VMX without an enlightened VMCS.
    Vmcs,
    /// SVM.
    Svm,
}

impl Mode {
    /// The name on the command line and in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Evmcs => "evmcs",
            Self::Vmcs => "vmcs",
            Self::Svm => "svm",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A line of L1's report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub(crate) enum Message {
    /// L1 has started.
    Started {
        /// Its kernel's release.
        kernel: String,
        /// Its clock source.
        clocksource: String,
        /// Lines of its kernel log that show which hypervisor it detected.
        log: Vec<String>,
    },
    /// L1's KVM is loaded.
    Loaded {
        /// The mode that was requested.
        mode: Mode,
        /// Its kernel's log messages meanwhile.
        log: Vec<String>,
    },
    /// One run of an L2.
    Round(Round),
    /// A mode could not be measured.
    Failed { mode: Mode, why: String },
    /// The report is complete.
    Done,
}

/// One run of an L2 in one mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Round {
    /// The mode in which L1's KVM ran it.
    pub(crate) mode: Mode,
    /// The exit that was timed.
    pub(crate) kind: String,
    /// The number of samples.
    pub(crate) samples: u64,
    /// Their histogram in TSC ticks, see [`crate::histogram`].
    pub(crate) ticks: String,
    /// The number of samples above the histogram's maximum.
    pub(crate) out_of_range: u64,
    /// The same for intervals around nothing.
    pub(crate) empty_ticks: String,
    /// Exits of L1's vCPU to the host while the samples were taken, less those of as many empty intervals.
    /// Negative only if those had more.
    pub(crate) host_exits: i64,
}

/// L1's report is malformed.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of L1's report cannot be read")]
pub(crate) struct Unreadable {
    line: usize,
    source: serde_json::Error,
}

/// All lines of a report. An incomplete last line is left out: L1 was stopped while it wrote it.
pub(crate) fn parse(text: &str) -> Result<Vec<Message>, Unreadable> {
    text.split_inclusive('\n')
        .enumerate()
        .filter(|(_, line)| line.ends_with('\n') && !line.trim().is_empty())
        .map(|(index, line)| {
            serde_json::from_str(line.trim()).map_err(|source| Unreadable {
                line: index + 1,
                source,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &Message) -> String {
        serde_json::to_string(message).unwrap() + "\r\n"
    }

    #[test]
    fn what_is_written_is_read() {
        let messages = [
            Message::Started {
                kernel: "6.12".into(),
                clocksource: "hyperv_clocksource_tsc_page".into(),
                log: vec!["a \"quoted\" line".into()],
            },
            Message::Round(Round {
                mode: Mode::Evmcs,
                kind: "cpuid".into(),
                samples: 3,
                ticks: "x".into(),
                out_of_range: 0,
                empty_ticks: "y".into(),
                host_exits: -1,
            }),
            Message::Done,
        ];
        let text: String = messages.iter().map(line).collect();
        assert_eq!(parse(&text).unwrap(), messages);
    }

    #[test]
    fn half_a_line_is_left_out_and_a_wrong_one_named() {
        assert_eq!(
            parse("{\"what\":\"done\"}\n{\"wha").unwrap(),
            [Message::Done]
        );
        let error = parse("{\"what\":\"done\"}\n\n{\"what\":\"dance\"}\n").unwrap_err();
        assert_eq!(error.line, 3);
    }
}
