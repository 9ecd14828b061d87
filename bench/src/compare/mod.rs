//! `hypernest-bench compare`: the differences between two reports, and whether they are significant.

mod expression;
mod json;
mod table;

use std::path::PathBuf;

use clap::Args;
use thiserror::Error;

pub(crate) use self::expression::Expression;
use self::expression::Statistic;
use crate::report::{
    FileError, Group, Measured, PARTS, Report, groups, number, plain, ratio, read,
};

/// Compare two results of l2-exit: B in parts of A
///
/// The exit code is 0, or 1 if a condition holds or cannot be evaluated because B lacks a figure of A, or 2
/// if the reports cannot be compared.
#[derive(Clone, Debug, Args)]
pub(crate) struct CompareArgs {
    /// The l2-exit.json to compare with
    #[arg(value_name = "A.json")]
    a: PathBuf,
    /// The l2-exit.json that is compared
    #[arg(value_name = "B.json")]
    b: PathBuf,
    /// End with exit code 1 if this holds: MODE.KIND[.PART].STATISTIC, then >, >=, < or <=, then a number in
    /// the unit of the reports, or with an x in parts of A's, as in 'evmcs.cpuid.p50 > 1.05x'. May be given
    /// several times. Statistics: p50 p90 p99 p99.9 min max mean samples host-exits; parts: round-trip
    /// l2-to-l1 l1 l1-to-l2
    #[arg(long, value_name = "CONDITION")]
    fail_if: Vec<Expression>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Two reports cannot be compared.
#[derive(Debug, Error)]
pub(crate) enum CompareError {
    /// One cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Their units differ.
    #[error("A is in {a} and B in {b}: these cannot be compared")]
    Units { a: String, b: String },
    /// Neither report has the figure of a condition.
    #[error("neither report has the figure of the condition {0}")]
    Unknown(Expression),
    #[error("cannot write the comparison as JSON")]
    Json(#[from] serde_json::Error),
}

/// The text to show, and whether a condition failed.
pub(crate) fn run(args: &CompareArgs) -> Result<(String, bool), CompareError> {
    let (a, b) = (read(&args.a)?, read(&args.b)?);
    if args.json {
        compare_as_json(&a, &b, &args.fail_if)
    } else {
        compare(&a, &b, &args.fail_if)
    }
}

fn compare_as_json(
    a: &Report,
    b: &Report,
    conditions: &[Expression],
) -> Result<(String, bool), CompareError> {
    let (judged, failed) = judge_all(a, b, conditions)?;
    let mut comparison = json::Comparison::of(a, b);
    comparison.failed = failed;
    comparison.conditions = judged
        .into_iter()
        .map(|(condition, judgement)| json::Condition {
            condition: condition.to_string(),
            failed: judgement.fails,
            why: judgement.why,
        })
        .collect();
    let mut text = serde_json::to_string_pretty(&comparison)?;
    text.push('\n');
    Ok((text, failed))
}

/// Each condition with its result for each L1 that it applies to.
type Judged<'a> = Vec<(&'a Expression, Judgement)>;

/// Evaluates all conditions. The result includes whether one fails.
fn judge_all<'a>(
    a: &Report,
    b: &Report,
    conditions: &'a [Expression],
) -> Result<(Judged<'a>, bool), CompareError> {
    if a.unit.name != b.unit.name {
        let name = |report: &Report| plain(&report.unit.name).into_owned();
        return Err(CompareError::Units {
            a: name(a),
            b: name(b),
        });
    }
    let mut all = Vec::new();
    for condition in conditions {
        let judged = judge(condition, a, b);
        if judged.is_empty() {
            return Err(CompareError::Unknown(condition.clone()));
        }
        all.extend(judged.into_iter().map(|judgement| (condition, judgement)));
    }
    let failed = all.iter().any(|(_, judgement)| judgement.fails);
    Ok((all, failed))
}

fn compare(
    a: &Report,
    b: &Report,
    conditions: &[Expression],
) -> Result<(String, bool), CompareError> {
    let (judged, failed) = judge_all(a, b, conditions)?;
    let mut text = table::table(a, b);
    for (condition, judgement) in judged {
        let verdict = if judgement.fails { "FAILED" } else { "ok" };
        text.push_str(&format!("{verdict}: {condition}: {}\n", judgement.why));
    }
    Ok((text, failed))
}

/// The result of a condition for one L1.
#[derive(Debug)]
struct Judgement {
    fails: bool,
    why: String,
}

/// Evaluates a condition for each L1 for which one of the reports has its figure.
fn judge(condition: &Expression, a: &Report, b: &Report) -> Vec<Judgement> {
    let (of_a, of_b) = (groups(a), groups(b));
    let mut judged = Vec::new();
    for group in &of_b {
        let like = of_a.iter().find(|other| other.is_like(group));
        let cpus = |group: &Group<'_>| Some(group.entry(condition.mode, &condition.kind)?.cpus);
        // Results with different numbers of vCPUs are different measurements.
        let before = like
            .filter(|like| cpus(like) == cpus(group) || cpus(group).is_none())
            .and_then(|like| value(condition, like));
        if let Some(after) = value(condition, group) {
            judged.push(judge_value(condition, group, before, after));
        } else if before.is_some() {
            judged.push(lacking(group, "B"));
        }
    }
    for group in &of_a {
        let nowhere = !of_b.iter().any(|other| other.is_like(group));
        if nowhere && value(condition, group).is_some() {
            judged.push(lacking(group, "B"));
        }
    }
    judged
}

fn judge_value(
    condition: &Expression,
    group: &Group<'_>,
    before: Option<f64>,
    after: f64,
) -> Judgement {
    let title = group.title();
    if !condition.relative {
        return Judgement {
            fails: condition.operator.holds(after, condition.limit),
            why: format!("it is {} ({title})", number(after)),
        };
    }
    let Some(before) = before else {
        return lacking(group, "A");
    };
    match ratio(after, before) {
        Some(ratio) => Judgement {
            fails: condition.operator.holds(ratio, condition.limit),
            why: format!(
                "it is {ratio:.3}x, {} after {} ({title})",
                number(after),
                number(before)
            ),
        },
        None => Judgement {
            fails: true,
            why: format!(
                "A's is {}, of which there are no parts ({title})",
                number(before)
            ),
        },
    }
}

/// A condition that cannot be evaluated fails.
fn lacking(group: &Group<'_>, report: &str) -> Judgement {
    Judgement {
        fails: true,
        why: format!("{report} has no figures for it ({})", group.title()),
    }
}

/// The figure of a condition. A measurement that failed later has none.
fn value(condition: &Expression, group: &Group<'_>) -> Option<f64> {
    let measured: &Measured = group.complete(condition.mode, &condition.kind)?;
    if condition.statistic == Statistic::HostExits {
        return measured.host_exits_per_l2_exit;
    }
    let (_, _, part) = PARTS.iter().find(|(name, ..)| *name == condition.part)?;
    let summary = part(&measured.parts)?.summary;
    Some(match condition.statistic {
        Statistic::Samples => summary.samples as f64,
        Statistic::Min => summary.min,
        Statistic::P50 => summary.p50,
        Statistic::P90 => summary.p90,
        Statistic::P99 => summary.p99,
        Statistic::P99_9 => summary.p99_9,
        Statistic::Max => summary.max,
        Statistic::Mean => summary.mean,
        Statistic::HostExits => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::{failed, measured, report_of};
    use hypernest_nested::l2exit::Mode;

    fn one(p50: f64) -> Report {
        report_of(vec![measured(Mode::Evmcs, "cpuid", p50)])
    }

    fn fails(a: &Report, b: &Report, condition: &str) -> Result<bool, String> {
        let condition: Expression = condition.parse().unwrap();
        compare(a, b, &[condition])
            .map(|(_, failed)| failed)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn conditions_hold_or_not() {
        let (a, b) = (one(1000.0), one(1100.0));
        for (condition, wanted) in [
            ("evmcs.cpuid.p50 > 1.05x", true),
            ("evmcs.cpuid.p50 > 1.15x", false),
            ("evmcs.cpuid.p50 < 0.9x", false),
            ("evmcs.cpuid.l1.p50 > 1.05x", true),
            ("evmcs.cpuid.p99.9 > 1.05x", true),
            ("evmcs.cpuid.max > 3000", false),
            ("evmcs.cpuid.p50 > 1050", true),
            ("evmcs.cpuid.host-exits > 10.5", true),
            ("evmcs.cpuid.host-exits > 1.2x", false),
            ("evmcs.cpuid.samples < 400", false),
            ("evmcs.cpuid.samples <= 400", true),
        ] {
            assert_eq!(fails(&a, &b, condition), Ok(wanted), "{condition}");
        }
        assert_eq!(fails(&a, &a, "evmcs.cpuid.p50 > 1x"), Ok(false));
    }

    #[test]
    fn json_holds_the_same_medians_and_conditions() {
        let condition: Expression = "evmcs.cpuid.p50 > 1.05x".parse().unwrap();
        let (text, failed) = compare_as_json(&one(1000.0), &one(1100.0), &[condition]).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(failed && json["failed"] == true, "{text}");
        let schema = include_str!("../../schema/compare.schema.json");
        assert_eq!(crate::report::matches_schema(schema, &json), Ok(()));
        assert_eq!(json["version"], 1);
        let change = &json["changes"][0];
        assert_eq!(change["mode"], "evmcs");
        assert_eq!(change["kind"], "cpuid");
        let median = |name: &str| change[name].as_f64().unwrap();
        assert!(median("b") > median("a"), "{text}");
        let ratio = median("b") / median("a");
        assert!((median("ratio") - ratio).abs() < 1e-9, "{text}");
        assert_eq!(
            json["conditions"][0]["condition"],
            "evmcs.cpuid.p50 > 1.05x"
        );
        assert_eq!(json["conditions"][0]["failed"], true);
        let nothing = report_of(Vec::new());
        let (text, _) = compare_as_json(&nothing, &one(1.0), &[]).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            json["only_in_b"].as_array().map(Vec::len),
            Some(1),
            "{text}"
        );
    }

    #[test]
    fn what_cannot_be_judged_is_not_well() {
        let (a, broken) = (one(1000.0), report_of(vec![failed(Mode::Evmcs, "cpuid")]));
        let nothing = report_of(Vec::new());
        for (a, b) in [(&a, &broken), (&a, &nothing), (&broken, &a)] {
            assert_eq!(fails(a, b, "evmcs.cpuid.p50 > 2x"), Ok(true));
        }
        // A limit in B's unit does not need A.
        assert_eq!(fails(&broken, &a, "evmcs.cpuid.p50 > 2000"), Ok(false));
        let error = fails(&a, &a, "evmcs.hlt.p50 > 2x").unwrap_err();
        assert!(error.contains("evmcs.hlt.p50 > 2x"), "{error}");
        assert_eq!(fails(&one(0.0), &a, "evmcs.cpuid.p50 > 2x"), Ok(true));
    }

    #[test]
    fn parts_have_the_names_of_the_report() {
        assert_eq!(expression::PARTS, PARTS.map(|(name, ..)| name));
    }

    #[test]
    fn what_is_not_in_one_unit_is_refused() {
        let (a, mut b) = (one(1000.0), one(1000.0));
        b.unit.name = "TSC ticks".into();
        let error = compare(&a, &b, &[]).unwrap_err().to_string();
        assert!(error.contains("A is in ns and B in TSC ticks"), "{error}");
    }
}
