//! docs/enlightenments.md, written from the table.

use std::fmt;

use super::enlightenment::{Argument, Enlightenment, EnlightenmentMsrs, Migration, Need, Row};
use super::profile::{Otherwise, Profile};
use super::qemu::{DIFFERENCES, DifferencePlace, MOVING, When};
use super::table::TABLE;

const HEAD: &str = "\
<!-- Written from src/hyperv/table.rs and src/hyperv/profile.rs. Do not edit: change those, then run
     `HYPERNEST_BLESS=1 cargo test -p hypernest --lib book`. -->
# Hyper-V enlightenments

An enlightenment is a part of Hyper-V's interface that a guest may use in place of emulated hardware. The \
names are QEMU's.

## Asking for them

`--hv LIST` takes names and profiles, separated by commas:

| Item | Meaning |
|---|---|
| `windows` | a profile |
| `hv-time`, `hv_time`, `time` | an enlightenment; upper or lower case |
| `-time`, `time=off` | without this one, wherever it stands in the list |
| `spinlocks=0xfff` | one with a value |
| `evmcs=auto` | with this one where the host has it; elsewhere without it, with a warning |

A list that names no profile stands for itself: `--hv time,relaxed` is these two. A list that only removes \
things takes them
from the default profile: `--hv -runtime` is everything but hv-runtime. All mistakes in a list are reported \
at once.

A request is carried out or refused. What one enlightenment requires is added, with a note, when it takes \
nothing away from the
guest; when it was removed, the list is refused, unless it is a profile's member that would need it: that \
one goes too, with a note.
What the host cannot do is refused, with what would give it. What no host of its vendor can do, as the \
enlightened VMCS on AMD, is left
out of a profile with a warning, and refused only when asked for by name.

A list that no known guest would use is accepted with a warning that names what to add: no guest takes a \
hypervisor for Hyper-V without
hv-vpindex, for example.

KVM's own leaves are hidden where a Linux guest takes its clock from Hyper-V (hv-vpindex, hv-frequencies, \
and hv-time or
hv-tsc-invariant): a Linux that finds both takes KVM. Any other list, and `--hv none`, shows them, so that \
Linux has kvmclock and
need not measure its TSC's frequency. `--kvm-leaves` shows them in any case, `--kvm-leaves=false` never: at \
0x40000100, or at
0x40000000 with `--hv none`. QEMU shows them unless it is given `kvm=off`.

";

const QEMU: &str = "\
Requests are read a little more strictly than QEMU's flags:

- On Intel, hv-emsr-bitmap and hv-tlbflush-direct are refused without hv-evmcs, and everywhere without \
`--nested`: nothing could use them.
- What is required is added instead of refused.
- Any enlightenment by itself, such as hv-vendor-id, makes the guest see Hyper-V; with QEMU some of them do \
not.
- hv-avic is refused where KVM uses no APICv or AVIC, but for `passthrough`.
- `passthrough` also shows what QEMU has no flag for, and shows hv-evmcs, hv-emsr-bitmap and \
hv-tlbflush-direct only with `--nested`.

Leaves above the greatest one in 0x40000000.EAX are no part of the interface: on Intel they read as the \
highest basic leaf.
";

/// The whole document.
pub fn document() -> String {
    let mut out = HEAD.to_owned();
    profiles(&mut out);
    out.push_str(
        "## All of them\n\n| Name | Since Linux | Implemented by | What it does \
        |\n|---|---|---|---|\n",
    );
    for row in &TABLE {
        out.push_str(&format!(
            "| [{name}](#{name}) | {} | {} | {} |\n",
            row.since,
            row.owner,
            row.summary,
            name = row.name
        ));
    }
    out.push_str(
        "\n\"Since Linux\" is the first kernel with everything that hypernest requires for it.\n\n",
    );
    for row in &TABLE {
        out.push_str(&format!("### {}\n\n{}\n\n", row.name, prose(row)));
        for (what, value) in facts(row) {
            out.push_str(&format!("- {what}: {value}\n"));
        }
        out.push('\n');
    }
    differences(&mut out);
    out
}

fn profiles(out: &mut String) {
    out.push_str("## Profiles\n\n");
    for profile in Profile::ALL {
        out.push_str(&format!("**`{profile}`**: {}\n\n", profile.summary()));
    }
    out.push_str(
        "Members of `windows` and `nested`, and why. Where the last column says \"left out\", a host that \
         cannot have the member \
         starts the VM without it, with a note; else the VM is refused there, and the message names the \
         list without it.\n\n\
         | Member | In | Why | On a host without |\n|---|---|---|---|\n",
    );
    let windows = Profile::Windows.members();
    for member in Profile::Nested.members() {
        let both = windows.iter().any(|m| m.id == member.id);
        let value = member
            .number
            .map(|n| format!("=0x{n:x}"))
            .unwrap_or_default();
        out.push_str(&format!(
            "| {}{value} | {} | {} | {} |\n",
            member.id,
            if both { "both" } else { "`nested`" },
            member.why,
            match member.otherwise {
                Otherwise::Refuse if member.id.row().needs.contains(&Need::Intel) => {
                    "refused; left out on AMD"
                }
                Otherwise::Refuse => "refused",
                Otherwise::LeaveOut => "left out",
            }
        ));
    }
    out.push('\n');
}

fn differences(out: &mut String) {
    out.push_str(
        "## What a guest sees differently from QEMU\n\n| VM | Where | Value | Why \
        |\n|---|---|---|---|\n",
    );
    for difference in DIFFERENCES {
        let when = match difference.when {
            When::With(id) => format!("with {id}"),
            When::Without(id) => format!("without {id}"),
        };
        let place = match difference.place {
            DifferencePlace::Cpuid { leaf, reg, mask } => {
                format!("CPUID {leaf:#x}.{reg}[{}]", mask.trailing_zeros())
            }
            DifferencePlace::Msr { msr, mask } => format!("MSR {msr}[{}]", mask.trailing_zeros()),
        };
        out.push_str(&format!(
            "| {when} | {place} | {} | {} |\n",
            difference.what, difference.reason
        ));
    }
    let moving: Vec<String> = MOVING.iter().map(ToString::to_string).collect();
    out.push_str(&format!(
        "\nMSRs {} are clocks and cannot be compared.\n\n{QEMU}",
        moving.join(" and ")
    ));
}

/// The summary and the details of a row.
pub fn prose(row: &Row) -> String {
    if row.detail.is_empty() {
        row.summary.to_owned()
    } else {
        format!("{} {}", row.summary, row.detail)
    }
}

/// Further facts of a row as (label, value); empty ones are left out.
pub fn facts(row: &Row) -> Vec<(&'static str, String)> {
    let names = |ids: &[Enlightenment]| join(ids.iter());
    let requires = join(row.requires.iter().map(|r| match r.only {
        Some(vendor) => format!("{} (on {vendor})", r.id),
        None => r.id.to_string(),
    }));
    let profiles = join(
        Profile::ALL
            .into_iter()
            .filter(|p| p.members().iter().any(|m| m.id == row.id)),
    );
    let value = match row.argument {
        Argument::None => String::new(),
        argument => argument.to_string(),
    };
    [
        ("Also called", join(row.aliases.iter())),
        ("Value", value),
        ("CPUID", join(row.bits.iter())),
        ("MSRs", join(row.msrs.iter())),
        (
            "Hypercalls",
            join(row.hypercalls.iter().map(|code| format!("{code:#06x}"))),
        ),
        ("Needs", join(row.needs.iter())),
        ("Requires", requires),
        ("Better with", names(row.recommends)),
        ("Used with", used_with(row)),
        ("Not with", names(row.conflicts)),
        ("Implemented by", row.owner.to_string()),
        ("Since Linux", row.since.to_string()),
        ("Migration", row.migration.to_string()),
        ("In profiles", profiles),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .collect()
}

fn used_with(row: &Row) -> String {
    join(row.used_with.iter().map(|any| {
        let names: Vec<&str> = any.iter().map(|id| id.name()).collect();
        names.join(" or ")
    }))
}

fn join(items: impl Iterator<Item = impl fmt::Display>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    items.join(", ")
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no value but `on`, `off` or `auto`"),
            Self::Number { min, max } => {
                write!(f, "a number from {min} to {max:#x}, decimal or 0x…")
            }
            Self::Text { max } => write!(f, "a text of 1 to {max} bytes"),
            Self::OnOffAuto => f.write_str("`on`, `off` or `auto`"),
        }
    }
}

impl fmt::Display for EnlightenmentMsrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cap(cap) => write!(f, "{cap}"),
            Self::Bits => f.write_str("its bits in KVM_GET_SUPPORTED_HV_CPUID"),
            Self::Intel => f.write_str("an Intel processor"),
            Self::Nested => f.write_str("a KVM that nests, and --nested"),
            Self::EvmcsVersion => f.write_str("an enlightened VMCS version in KVM"),
            Self::ActiveApicv => f.write_str("APICv or AVIC in use by KVM"),
            Self::InvariantTsc => f.write_str("an invariant TSC on the host"),
            Self::NotYet => f.write_str("a later version of hypernest"),
        }
    }
}

impl fmt::Display for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => Ok(()),
            Self::If(what) => write!(f, "only if {what}"),
            Self::Blocked(why) => write!(f, "not possible: {why}"),
            Self::BlockedIfAuto(why) => write!(f, "not possible with `auto`: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::{env, fs};

    use super::*;

    #[test]
    fn the_book_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/enlightenments.md");
        if env::var_os("HYPERNEST_BLESS").is_some() {
            fs::write(&path, document()).unwrap();
        }
        let book = fs::read_to_string(&path).unwrap();
        assert!(
            book == document(),
            "docs/enlightenments.md differs from the table: run `HYPERNEST_BLESS=1 cargo test -p hypernest \
             --lib book`"
        );
    }

    #[test]
    fn facts_show_every_field_of_a_row() {
        let row = Enlightenment::EmsrBitmap.row();
        assert_eq!(
            facts(row),
            [
                ("CPUID", "0x4000000a.EAX[19]".to_owned()),
                (
                    "Needs",
                    "its bits in KVM_GET_SUPPORTED_HV_CPUID, a KVM that nests, and --nested"
                        .to_owned()
                ),
                ("Requires", "hv-evmcs (on Intel)".to_owned()),
                ("Used with", "hv-vpindex".to_owned()),
                ("Implemented by", "KVM".to_owned()),
                ("Since Linux", "5.17".to_owned()),
                ("In profiles", "nested, all, passthrough".to_owned()),
            ]
        );
    }
}
