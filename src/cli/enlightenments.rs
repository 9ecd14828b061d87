//! `hypernest enlightenments`: the table, or the details of one.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{CliError, ExitStatus, print};
use crate::hyperv::book::{facts, prose};
use crate::hyperv::enlightenment::EnlightenmentMsrs;
use crate::hyperv::request::did_mean;
use crate::hyperv::{Enlightenment, Profile, Row};

/// List the Hyper-V enlightenments and profiles, or describe one
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An enlightenment or a profile, with or without `hv-`
    #[arg(value_name = "NAME")]
    name: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the table or one entry.
///
/// # Errors
/// If there is no such enlightenment or profile, or the result cannot be printed.
pub fn run(args: &Args) -> Result<ExitStatus, CliError> {
    let mut text = Vec::new();
    write(args, &mut text)?;
    print(&String::from_utf8_lossy(&text))?;
    Ok(ExitStatus::DONE)
}

fn write(args: &Args, out: &mut impl Write) -> Result<(), CliError> {
    let Some(name) = &args.name else {
        return if args.json {
            write_json(out, &table())
        } else {
            list(out).map_err(CliError::Stdout)
        };
    };
    let key = name.trim().to_ascii_lowercase();
    // `passthrough` is both; the profile's description is more complete.
    if let Some(profile) = Profile::ALL.into_iter().find(|p| p.name() == key) {
        return if args.json {
            write_json(out, &profile_as_json(profile))
        } else {
            describe_profile(out, profile).map_err(CliError::Stdout)
        };
    }
    let Some(id) = Enlightenment::by_name(name) else {
        return Err(CliError::NoSuchEnlightenment {
            name: name.clone(),
            suggestion: did_mean(&key),
        });
    };
    if args.json {
        write_json(out, &row_as_json(id.row()))
    } else {
        describe(out, id.row()).map_err(CliError::Stdout)
    }
}

fn list(out: &mut impl Write) -> io::Result<()> {
    let rows = || Enlightenment::all().map(Enlightenment::row);
    let width = rows().map(|row| row.name.len()).max().unwrap_or(0);
    for row in rows() {
        writeln!(out, "{:width$}  {}", row.name, row.summary)?;
    }
    writeln!(out)?;
    for profile in Profile::ALL {
        writeln!(out, "{profile:width$}  {}", profile.summary())?;
    }
    writeln!(
        out,
        "\n`hypernest enlightenments NAME` describes one; `hypernest doctor` lists which this host has."
    )
}

fn describe(out: &mut impl Write, row: &Row) -> io::Result<()> {
    writeln!(out, "{}\n\n{}\n", row.name, wrapped(&prose(row)))?;
    for (what, value) in facts(row) {
        writeln!(out, "{what:12} {value}")?;
    }
    Ok(())
}

fn describe_profile(out: &mut impl Write, profile: Profile) -> io::Result<()> {
    writeln!(out, "{profile}\n\n{}", wrapped(profile.summary()))?;
    let members = profile.members();
    let width = members.iter().map(|m| m.id.name().len()).max().unwrap_or(0);
    if !members.is_empty() {
        writeln!(out)?;
    }
    for member in members {
        writeln!(out, "{:width$}  {}", member.id, member.why)?;
    }
    Ok(())
}

/// Breaks `text` into lines of at most 100 columns.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + word.len() < 100 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

fn write_json(out: &mut impl Write, value: &Value) -> Result<(), CliError> {
    serde_json::to_writer_pretty(&mut *out, value)
        .map_err(io::Error::from)
        .and_then(|()| writeln!(out))
        .map_err(CliError::Stdout)
}

fn table() -> Value {
    json!({
        "enlightenments": Enlightenment::all().map(|id| row_as_json(id.row())).collect::<Vec<_>>(),
        "profiles": Profile::ALL.map(profile_as_json),
    })
}

fn row_as_json(row: &Row) -> Value {
    let names = |ids: &[Enlightenment]| ids.iter().map(|id| id.name()).collect::<Vec<_>>();
    let strings = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>();
    json!({
        "name": row.name,
        "aliases": row.aliases,
        "summary": row.summary,
        "detail": row.detail,
        "value": row.argument.to_string(),
        "cpuid": row.bits.iter().map(|b| json!({
            "leaf": b.leaf, "register": b.reg.to_string(), "bit": b.bit, "reported_by_kvm": b.reported,
        })).collect::<Vec<_>>(),
        "msrs": row.msrs.iter().map(|EnlightenmentMsrs { first, last, .. }| json!({
            "first": first.0, "last": last.0,
        })).collect::<Vec<_>>(),
        "hypercalls": row.hypercalls,
        "needs": strings(&mut row.needs.iter().map(ToString::to_string)),
        "requires": row.requires.iter().map(|r| json!({
            "name": r.id.name(), "only_on": r.only.map(|v| v.to_string()),
        })).collect::<Vec<_>>(),
        "recommends": names(row.recommends),
        "used_with": row.used_with.iter().map(|any| names(any)).collect::<Vec<_>>(),
        "conflicts": names(row.conflicts),
        "since_linux": row.since.to_string(),
        "owner": row.owner.to_string(),
        "migration": row.migration.to_string(),
        "profiles": Profile::ALL.into_iter()
            .filter(|p| p.members().iter().any(|m| m.id == row.id))
            .map(Profile::name)
            .collect::<Vec<_>>(),
    })
}

fn profile_as_json(profile: Profile) -> Value {
    json!({
        "name": profile.name(),
        "summary": profile.summary(),
        "members": profile.members().iter().map(|m| json!({
            "name": m.id.name(), "value": m.number, "why": m.why,
            "refused_without": m.otherwise == crate::hyperv::profile::Otherwise::Refuse,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(name: Option<&str>, json: bool) -> Result<String, CliError> {
        let args = Args {
            name: name.map(str::to_owned),
            json,
        };
        let mut out = Vec::new();
        write(&args, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_list_has_a_line_for_each() {
        let text = output(None, false).unwrap();
        for id in Enlightenment::all() {
            let line = format!("{} ", id.name());
            assert_eq!(
                text.lines().filter(|l| l.starts_with(&line)).count(),
                1,
                "{id}"
            );
        }
        assert!(text.contains("\nnested "));
    }

    #[test]
    fn one_is_described_under_any_spelling() {
        let text = output(Some("STIMER_direct"), false).unwrap();
        assert_eq!(text, output(Some("hv-stimer-direct"), false).unwrap());
        assert!(text.starts_with("hv-stimer-direct\n\nSynthetic timers"));
        assert!(text.contains("\nRequires     hv-stimer\n"), "{text}");
        assert!(
            output(Some("nested"), false)
                .unwrap()
                .contains("\nhv-evmcs ")
        );
        assert!(output(Some("none"), false).unwrap().starts_with("none\n"));
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_nearest() {
        assert!(matches!(
            output(Some("hv-evmsc"), false),
            Err(CliError::NoSuchEnlightenment {
                suggestion: Some("hv-evmcs"),
                ..
            })
        ));
    }

    #[test]
    fn json_says_the_same() {
        let all: Value = serde_json::from_str(&output(None, true).unwrap()).unwrap();
        assert_eq!(
            all["enlightenments"].as_array().unwrap().len(),
            Enlightenment::all().count()
        );
        assert_eq!(
            all["profiles"].as_array().unwrap().len(),
            Profile::ALL.len()
        );
        let one: Value = serde_json::from_str(&output(Some("evmcs"), true).unwrap()).unwrap();
        assert_eq!(one["cpuid"][0]["leaf"], 0x4000_0004);
        assert_eq!(one["cpuid"][0]["bit"], 14);
        let profile: Value = serde_json::from_str(&output(Some("windows"), true).unwrap()).unwrap();
        assert_eq!(profile["members"][0]["name"], "hv-relaxed");
    }
}
