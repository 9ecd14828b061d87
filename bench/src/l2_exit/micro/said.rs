//! The lines of text that the guest program prints on its console.

use hypernest_nested::l2exit::Kind;

/// A parsed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A kind starts.
    Running(Kind),
    /// A kind is not available.
    Skip(Kind, String),
    /// A kind failed.
    Fail(Kind, String),
    /// L1 lacks something that the mode needs.
    Refused(String),
    /// All kinds are done.
    Done,
    /// Anything else.
    Text,
}

/// Parses `line`.
pub(super) fn parse(line: &str) -> Said {
    let of_kind = |rest: &str| {
        let (kind, why) = rest.split_once(": ")?;
        Some((Kind::parse(kind)?, why.to_owned()))
    };
    if line == "l1: done" {
        return Said::Done;
    }
    let said = if let Some(kind) = line.strip_prefix("l1: running ") {
        Kind::parse(kind).map(Said::Running)
    } else if let Some(rest) = line.strip_prefix("skip ") {
        of_kind(rest).map(|(kind, why)| Said::Skip(kind, why))
    } else if let Some(rest) = line.strip_prefix("fail ") {
        of_kind(rest).map(|(kind, why)| Said::Fail(kind, why))
    } else {
        let why = line.strip_prefix("refused: ");
        why.map(|why| Said::Refused(why.to_owned()))
    };
    said.unwrap_or(Said::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        for (line, wanted) in [
            ("l1: running cpuid", Said::Running(Kind::Cpuid)),
            ("l1: running away", Said::Text),
            (
                "skip xsetbv: no XSAVE: none",
                Said::Skip(Kind::Xsetbv, "no XSAVE: none".into()),
            ),
            ("skip xsetbv", Said::Text),
            ("fail ipi: x", Said::Fail(Kind::Ipi, "x".into())),
            ("refused: no eVMCS", Said::Refused("no eVMCS".into())),
            ("l1: done", Said::Done),
            ("", Said::Text),
        ] {
            assert_eq!(parse(line), wanted, "{line}");
        }
    }
}
