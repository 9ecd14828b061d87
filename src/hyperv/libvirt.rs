//! Generates docs/libvirt.md: the libvirt domain of each profile, from the table.

use std::fmt::Write as _;

use super::enlightenment::Enlightenment as E;
use super::profile::{Member, Profile};

/// The place of an enlightenment in a domain (libvirt's "Hypervisor features", "Time keeping" and "panic
/// device").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LibvirtElement {
    /// An element of `<hyperv>`.
    Feature(&'static str),
    /// A child of an element of `<hyperv>`.
    Child(&'static str, &'static str),
    /// `<spinlocks>`, with its count.
    Spinlocks,
    /// A timer of `<clock>`.
    Clock,
    /// A panic device.
    Panic,
    /// libvirt has no element for it.
    None,
}

fn place(id: E) -> LibvirtElement {
    use LibvirtElement::{Child, Clock, Feature, None, Panic, Spinlocks};
    match id {
        E::Relaxed => Feature("relaxed"),
        E::Vapic => Feature("vapic"),
        E::Spinlocks => Spinlocks,
        E::VpIndex => Feature("vpindex"),
        E::Runtime => Feature("runtime"),
        E::Crash => Panic,
        E::Reset => Feature("reset"),
        E::Time => Clock,
        E::Frequencies => Feature("frequencies"),
        E::Reenlightenment => Feature("reenlightenment"),
        E::Synic => Feature("synic"),
        E::Stimer => Feature("stimer"),
        E::StimerDirect => Child("stimer", "direct"),
        E::TlbFlush => Feature("tlbflush"),
        E::TlbFlushExt => Child("tlbflush", "extended"),
        E::TlbFlushDirect => Child("tlbflush", "direct"),
        E::Ipi => Feature("ipi"),
        E::XmmInput => Feature("xmm_input"),
        E::Avic => Feature("avic"),
        E::Evmcs => Feature("evmcs"),
        E::EmsrBitmap => Feature("emsr_bitmap"),
        E::VendorId => Feature("vendor_id"),
        E::TscInvariant
        | E::ExtHypercalls
        | E::NoNonarchCoresharing
        | E::VersionIdBuild
        | E::VersionIdMajor
        | E::VersionIdMinor
        | E::VersionIdSpack
        | E::VersionIdSbranch
        | E::VersionIdSnumber
        | E::EnforceCpuid
        | E::Passthrough
        | E::Syndbg => None,
    }
}

/// The elements of a domain that give a guest `members`, and the CPU feature with which it can be a
/// hypervisor.
fn domain(members: &[Member], feature: Option<&str>) -> String {
    let has = |wanted: LibvirtElement| members.iter().any(|member| place(member.id) == wanted);
    let mut xml = String::from("<features>\n  <acpi/>\n  <apic/>\n  <hyperv mode='custom'>\n");
    let mut line = |text: &str| {
        // Writing to a string cannot fail.
        let _written = writeln!(xml, "{text}");
    };
    for member in members {
        match place(member.id) {
            LibvirtElement::Feature(name) => {
                let children: Vec<&str> = members
                    .iter()
                    .filter_map(|other| match place(other.id) {
                        LibvirtElement::Child(parent, child) if parent == name => Some(child),
                        _ => None,
                    })
                    .collect();
                if children.is_empty() {
                    line(&format!("    <{name} state='on'/>"));
                } else {
                    line(&format!("    <{name} state='on'>"));
                    for child in children {
                        line(&format!("      <{child} state='on'/>"));
                    }
                    line(&format!("    </{name}>"));
                }
            }
            LibvirtElement::Spinlocks => {
                let count = member.number.unwrap_or_default();
                line(&format!("    <spinlocks state='on' retries='{count}'/>"));
            }
            LibvirtElement::Child(..)
            | LibvirtElement::Clock
            | LibvirtElement::Panic
            | LibvirtElement::None => {}
        }
    }
    line("  </hyperv>");
    line("  <kvm>\n    <hidden state='on'/>\n  </kvm>\n</features>");
    match feature {
        Some(name) => line(&format!(
            "<cpu mode='host-passthrough'>\n  <feature policy='require' name='{name}'/>\n</cpu>"
        )),
        None => line("<cpu mode='host-passthrough'/>"),
    }
    if has(LibvirtElement::Clock) {
        line("<clock offset='utc'>\n  <timer name='hypervclock' present='yes'/>\n</clock>");
    }
    if has(LibvirtElement::Panic) {
        line("<devices>\n  <panic model='hyperv'/>\n</devices>");
    }
    xml
}

const HEAD: &str = "\
<!-- Written from src/hyperv/libvirt.rs and the profiles. Do not edit: change those, then run
     `HYPERNEST_BLESS=1 cargo test -p hypernest --lib libvirt`. -->
# The profiles in libvirt

For Windows under libvirt and QEMU, with the enlightenments of hypernest's profiles: these are the parts \
of a domain (`virsh edit NAME`)
for each of them. The names and the meaning of each element are in libvirt's \"Domain XML format\", under \
\"Hypervisor features\"; what it
does for a guest is in [Enlightenments](enlightenments.md). **No domain of this page was started**: the lab \
has no libvirt. The names of the
elements are checked against the table of enlightenments only.

- `hv-time` is a timer of the clock, and `hv-crash` a panic device.
- An older libvirt does not take `avic`, `emsr_bitmap`, `xmm_input` or the children of `tlbflush`: leave \
them out, or give QEMU's flags by
  `<qemu:commandline>`. `virsh domcapabilities` lists what yours takes.
- `avic` is of use only where KVM uses APICv or AVIC (`hypernest doctor`); elsewhere leave it out.
- `<hidden state='on'/>` hides KVM's own CPUID leaves, which a Linux guest would take before Hyper-V's.
- After an edit, shut the VM down and start it again: a reboot of the guest does not apply it.

";

const FROM_THE_HOST: &str = "\
## Does Windows use the enlightened VMCS?

Offering it is not using it. Neither Windows nor WSL2 shows whether Hyper-V uses it, but the host sees it: \
with an ordinary VMCS, Hyper-V
executes VMREAD, VMWRITE and VMPTRLD, which leave its VM; with an enlightened VMCS it uses memory in their \
place, and KVM refuses VMPTRLD
as long as one is in use (`handle_vmptrld` in arch/x86/kvm/vmx/nested.c). VMRESUME leaves it in both cases. \
As root, while something runs
in WSL2, PID being that of QEMU:

```console
# perf stat -p PID \\
    -e kvm:kvm_exit --filter 'exit_reason == 24' -e kvm:kvm_exit --filter 'exit_reason == 21' \\
    -e kvm:kvm_exit --filter 'exit_reason == 23' -e kvm:kvm_exit --filter 'exit_reason == 25' sleep 10
```

| count | exit (Intel SDM, appendix C) | enlightened VMCS in use | ordinary VMCS |
|---|---|---|---|
| 1st | 24, VMRESUME | many | many |
| 2nd | 21, VMPTRLD | none | at least when Hyper-V changes between virtual processors |
| 3rd, 4th | 23, VMREAD and 25, VMWRITE | next to none | several for each VMRESUME without shadow VMCS, few \
with it |

With shadow VMCS (`cat /sys/module/kvm_intel/parameters/enable_shadow_vmcs` prints Y) few VMREADs leave the \
VM either, so that VMPTRLD is
the one to look at. No VMRESUME at all means that no hypervisor runs in the guest. Without perf, the same \
is in tracefs:

```console
# cd /sys/kernel/tracing; echo > trace
# echo 'exit_reason >= 19 && exit_reason <= 25' > events/kvm/kvm_exit/filter
# echo 1 > events/kvm/kvm_exit/enable; sleep 10; echo 0 > events/kvm/kvm_exit/enable
# grep -o 'reason [A-Z]*' trace | sort | uniq -c
# echo 0 > events/kvm/kvm_exit/filter
```

Both were tried on 2026-11-30 with Linux 6.18 and perf 6.1: the events, the fields and the filters exist, \
and perf prints
the counts in the order of the options. That machine's KVM has no VMX: the counts themselves were not seen.

On AMD there is no enlightened VMCS, and nothing to look for. How much it saves in your VM: [Measure your \
WSL2](measure-wsl2.md).
";

/// The whole page.
pub fn document() -> String {
    let mut out = HEAD.to_owned();
    let without = |ids: &[E]| -> Vec<Member> {
        let members = Profile::Nested.members();
        members
            .into_iter()
            .filter(|member| !ids.contains(&member.id))
            .collect()
    };
    for (title, list, members, feature) in [
        (
            "For Windows without guests of its own",
            "windows",
            Profile::Windows.members(),
            None,
        ),
        (
            "For Windows with Hyper-V or WSL2, on Intel",
            "nested",
            without(&[]),
            Some("vmx"),
        ),
        (
            "The same without the enlightened VMCS, to compare",
            "nested,-evmcs,-emsr-bitmap,-tlbflush-direct",
            without(&[E::Evmcs, E::EmsrBitmap, E::TlbFlushDirect]),
            Some("vmx"),
        ),
        (
            "For Windows with Hyper-V or WSL2, on AMD",
            "nested",
            without(&[E::Evmcs]),
            Some("svm"),
        ),
    ] {
        let xml = domain(&members, feature);
        let _written = write!(
            out,
            "## {title}\n\nAs `--hv {list}`:\n\n```xml\n{xml}```\n\n"
        );
    }
    out.push_str(FROM_THE_HOST);
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::{env, fs};

    use super::*;
    use crate::hyperv::qemu::UNKNOWN_TO_QEMU;

    #[test]
    fn the_libvirt_page_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/libvirt.md");
        if env::var_os("HYPERNEST_BLESS").is_some() {
            fs::write(&path, document()).unwrap();
        }
        let page = fs::read_to_string(&path).unwrap();
        assert!(
            page == document(),
            "docs/libvirt.md differs from the table: run `HYPERNEST_BLESS=1 cargo test -p hypernest --lib \
             libvirt`"
        );
    }

    #[test]
    fn every_member_of_a_profile_has_a_place_in_the_domain() {
        for profile in [Profile::Windows, Profile::Nested] {
            let members = profile.members();
            let xml = domain(&members, None);
            for member in &members {
                let shown = match place(member.id) {
                    LibvirtElement::Feature(name) => {
                        xml.contains(&format!("    <{name} state='on'"))
                    }
                    LibvirtElement::Child(parent, child) => {
                        let inside = xml
                            .split(&format!("<{parent} state='on'>"))
                            .nth(1)
                            .and_then(|rest| rest.split(&format!("</{parent}>")).next());
                        inside.is_some_and(|inside| {
                            inside.contains(&format!("<{child} state='on'/>"))
                        })
                    }
                    LibvirtElement::Spinlocks => {
                        xml.contains("<spinlocks state='on' retries='8191'/>")
                    }
                    LibvirtElement::Clock => {
                        xml.contains("<timer name='hypervclock' present='yes'/>")
                    }
                    LibvirtElement::Panic => xml.contains("<panic model='hyperv'/>"),
                    LibvirtElement::None => false,
                };
                assert!(shown, "{profile}: {} in\n{xml}", member.id);
            }
        }
        // libvirt cannot enable an enlightenment that QEMU does not support.
        assert!(
            UNKNOWN_TO_QEMU
                .iter()
                .all(|id| place(*id) == LibvirtElement::None)
        );
    }
}
