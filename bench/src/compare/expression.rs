//! Conditions on two reports, as `evmcs.cpuid.p50 > 1.05x`.

use std::fmt;
use std::str::FromStr;

use hypernest_nested::l2exit::Mode;
use thiserror::Error;

/// `MODE.KIND[.PART].STATISTIC OPERATOR NUMBER[x]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expression {
    /// The mode.
    pub(crate) mode: Mode,
    /// The kind of exits.
    pub(crate) kind: String,
    /// The part's name; the round trip if none is given.
    pub(crate) part: &'static str,
    /// The figure.
    pub(crate) statistic: Statistic,
    pub(crate) operator: Operator,
    pub(crate) limit: f64,
    /// The limit is relative to A's figure.
    pub(crate) relative: bool,
}

/// A statistic of a distribution, or the number of host exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "names of statistics")]
pub(crate) enum Statistic {
    Samples,
    Min,
    P50,
    P90,
    P99,
    P99_9,
    Max,
    Mean,
    HostExits,
}

const STATISTICS: [(&str, Statistic); 9] = [
    ("p50", Statistic::P50),
    ("p90", Statistic::P90),
    ("p99", Statistic::P99),
    ("p99.9", Statistic::P99_9),
    ("min", Statistic::Min),
    ("max", Statistic::Max),
    ("mean", Statistic::Mean),
    ("samples", Statistic::Samples),
    ("host-exits", Statistic::HostExits),
];

/// The parts of a sample.
pub(crate) const PARTS: [&str; 4] = ["round-trip", "l2-to-l1", "l1", "l1-to-l2"];

/// A comparison operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
    /// `<`
    Less,
    /// `<=`
    AtMost,
}

/// Longer operators come first.
const OPERATORS: [(&str, Operator); 4] = [
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    (">", Operator::Greater),
    ("<", Operator::Less),
];

impl Operator {
    /// Whether the comparison of `value` with `limit` holds.
    pub(crate) fn holds(self, value: f64, limit: f64) -> bool {
        match self {
            Self::Greater => value > limit,
            Self::AtLeast => value >= limit,
            Self::Less => value < limit,
            Self::AtMost => value <= limit,
        }
    }
}

/// A malformed condition.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum ExpressionError {
    #[error("there is no >, >=, < or <= in it; a condition is like evmcs.cpuid.p50 > 1.05x")]
    NoOperator,
    #[error(
        "{0:?} is not MODE.KIND.STATISTIC or MODE.KIND.PART.STATISTIC, as evmcs.cpuid.l1.p50 is"
    )]
    Names(String),
    #[error("{0:?} is no mode; give one of {list}", list = words(Mode::ALL.iter().map(|mode| mode.name())))]
    Mode(String),
    #[error("the kind of exits is missing or too long")]
    Kind,
    #[error("{0:?} is no part; give one of {list}", list = words(PARTS))]
    Part(String),
    #[error("{0:?} is no statistic; give one of {list}", list = words(STATISTICS.map(|(name, _)| name)))]
    Statistic(String),
    #[error("host exits are those of the whole round trip: leave the part out")]
    PartOfExits,
    #[error(
        "{0:?} is no number; a limit is like 1.05x (in parts of A) or 13000 (in the unit of the reports)"
    )]
    Number(String),
}

fn words<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// The maximum length of a kind's name.
const LONGEST_KIND: usize = 64;

impl FromStr for Expression {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        let found = OPERATORS.iter().find_map(|(sign, operator)| {
            let (left, right) = text.split_once(sign)?;
            Some((left.trim(), *operator, right.trim()))
        });
        let (left, operator, right) = found.ok_or(ExpressionError::NoOperator)?;
        let (limit, relative) = number(right)?;
        let names = || ExpressionError::Names(left.to_owned());
        let (mode, rest) = left.split_once('.').ok_or_else(names)?;
        let mode = Mode::parse(mode).ok_or_else(|| ExpressionError::Mode(mode.to_owned()))?;
        let (kind, rest) = rest.split_once('.').ok_or_else(names)?;
        if kind.is_empty() || kind.len() > LONGEST_KIND || kind.contains(char::is_control) {
            return Err(ExpressionError::Kind);
        }
        // A statistic's name may contain a dot, a part's name does not.
        let whole = statistic(rest).map(|statistic| (None, statistic));
        let (part, statistic) = match (whole, rest.split_once('.')) {
            (Some(whole), _) => whole,
            (None, Some((part, rest))) => {
                let known = PARTS.into_iter().find(|known| *known == part);
                let known = known.ok_or_else(|| ExpressionError::Part(part.to_owned()))?;
                let of_part = statistic(rest);
                let of_part = of_part.ok_or_else(|| ExpressionError::Statistic(rest.to_owned()))?;
                (Some(known), of_part)
            }
            (None, None) => return Err(ExpressionError::Statistic(rest.to_owned())),
        };
        if part.is_some() && statistic == Statistic::HostExits {
            return Err(ExpressionError::PartOfExits);
        }
        Ok(Self {
            mode,
            kind: kind.to_owned(),
            part: part.unwrap_or(PARTS[0]),
            statistic,
            operator,
            limit,
            relative,
        })
    }
}

fn statistic(name: &str) -> Option<Statistic> {
    // The spelling in JSON is also accepted.
    let name = if name == "p99_9" { "p99.9" } else { name };
    let mut known = STATISTICS.into_iter();
    known.find_map(|(known, statistic)| (known == name).then_some(statistic))
}

fn number(text: &str) -> Result<(f64, bool), ExpressionError> {
    let (digits, relative) = match text.strip_suffix('x') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    let plain = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let value: Option<f64> = digits.parse().ok();
    match value {
        Some(value) if plain && value.is_finite() => Ok((value, relative)),
        _ => Err(ExpressionError::Number(text.to_owned())),
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.mode, self.kind)?;
        if self.part != PARTS[0] {
            write!(f, ".{}", self.part)?;
        }
        let named = STATISTICS
            .iter()
            .find(|(_, known)| *known == self.statistic);
        let statistic = named.map_or("", |(name, _)| name);
        let operator = OPERATORS.iter().find(|(_, known)| *known == self.operator);
        let operator = operator.map_or("", |(sign, _)| sign);
        let relative = if self.relative { "x" } else { "" };
        write!(f, ".{statistic} {operator} {}{relative}", self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_a_condition() {
        let plain = Expression {
            mode: Mode::Evmcs,
            kind: "cpuid".into(),
            part: "round-trip",
            statistic: Statistic::P50,
            operator: Operator::Greater,
            limit: 1.05,
            relative: true,
        };
        for (text, wanted) in [
            ("evmcs.cpuid.p50 > 1.05x", plain.clone()),
            ("  evmcs.cpuid.p50>1.05x ", plain.clone()),
            ("evmcs.cpuid.round-trip.p50 > 1.05x", plain.clone()),
            (
                "evmcs+direct-flush.flush-hypercall.l1.p99.9 <= 13000",
                Expression {
                    mode: Mode::EvmcsDirectFlush,
                    kind: "flush-hypercall".into(),
                    part: "l1",
                    statistic: Statistic::P99_9,
                    operator: Operator::AtMost,
                    limit: 13_000.0,
                    relative: false,
                },
            ),
            (
                "evmcs.cpuid.p99_9 >= 2x",
                Expression {
                    statistic: Statistic::P99_9,
                    operator: Operator::AtLeast,
                    limit: 2.0,
                    ..plain.clone()
                },
            ),
            (
                "evmcs.cpuid.host-exits < 3",
                Expression {
                    statistic: Statistic::HostExits,
                    operator: Operator::Less,
                    limit: 3.0,
                    relative: false,
                    ..plain
                },
            ),
        ] {
            assert_eq!(text.parse(), Ok(wanted.clone()), "{text}");
            assert_eq!(wanted.to_string().parse(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_none_is_told_why() {
        for (text, wanted) in [
            ("", "no >"),
            ("evmcs.cpuid.p50 = 1", "no >"),
            ("evmcs > 1", "is not MODE.KIND"),
            ("evmcs.p50 > 1", "is not MODE.KIND"),
            (
                "evmsc.cpuid.p50 > 1",
                "\"evmsc\" is no mode; give one of classic",
            ),
            ("evmcs..p50 > 1", "kind of exits is missing"),
            (
                "evmcs.cpuid.p51 > 1",
                "\"p51\" is no statistic; give one of p50",
            ),
            (
                "evmcs.cpuid.l2.p50 > 1",
                "\"l2\" is no part; give one of round-trip",
            ),
            ("evmcs.cpuid.l1.p51 > 1", "\"p51\" is no statistic"),
            ("evmcs.cpuid.l1.host-exits > 1", "leave the part out"),
            ("evmcs.cpuid.p50 > x", "\"x\" is no number"),
            ("evmcs.cpuid.p50 > 1.05xx", "is no number"),
            ("evmcs.cpuid.p50 > inf", "is no number"),
            ("evmcs.cpuid.p50 > -1", "is no number"),
            ("evmcs.cpuid.p50 >> 1", "is no number"),
            ("evmcs.cpuid.p50 >", "is no number"),
        ] {
            let error = text.parse::<Expression>().unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_is_written_back(
            text in "(evmcs|svm|classic.shadow)?\\.?(cpuid)?\\.?(l1)?\\.?(p50|p99\\.9)? ?[<>]?=? ?\
                [0-9.]{0,6}x?|\\PC{0,60}"
        ) {
            if let Ok(expression) = text.parse::<Expression>() {
                prop_assert_eq!(expression.to_string().parse(), Ok(expression));
            }
        }
    }
}
