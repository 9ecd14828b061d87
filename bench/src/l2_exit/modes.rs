//! The host's and L1's setup for each mode, the modes that this host supports, and how to measure them in few
//! boots of a Linux L1.

use hypernest_nested::l2exit::Mode;

use crate::kvm_module::Vendor;
use crate::report::L1;
use crate::wire;

/// The mode's title in sentences and tables. Whether an L1 other than our own uses an offer cannot be
/// observed.
pub(crate) fn title(l1: L1, mode: Mode) -> &'static str {
    if matches!(l1, L1::Manual | L1::Image) {
        match mode {
            Mode::Evmcs => return "eVMCS offered",
            Mode::EvmcsEmsr => return "eVMCS offered, with its MSR bitmap",
            Mode::EvmcsDirectFlush => return "eVMCS offered, with direct flush",
            Mode::SvmEmsr => return "SVM; the enlightened MSR bitmap offered",
            Mode::SvmDirectFlush => return "SVM; direct flush offered",
            _ => {}
        }
    }
    match mode {
        Mode::Classic => "no eVMCS; no shadow VMCS",
        Mode::ClassicShadow => "no eVMCS; shadow VMCS",
        Mode::Offered => "eVMCS offered, not used; no shadow VMCS",
        Mode::OfferedShadow => "eVMCS offered, not used; shadow VMCS",
        Mode::Evmcs => "eVMCS used",
        Mode::EvmcsEmsr => "eVMCS used, with its MSR bitmap",
        Mode::EvmcsDirectFlush => "eVMCS used, with direct flush",
        Mode::Svm => "SVM",
        Mode::SvmEmsr => "SVM, with the enlightened MSR bitmap",
        Mode::SvmDirectFlush => "SVM, with direct flush",
    }
}

/// The enlightenments that L1 is offered, as for `--hv`: of those that are independent of others, only the
/// ones that the mode uses. Linux uses an MSR bitmap that it is offered.
pub(crate) fn hv(mode: Mode) -> &'static str {
    match mode {
        Mode::Classic | Mode::ClassicShadow | Mode::Svm => {
            "nested,-evmcs,-emsr-bitmap,-tlbflush-direct"
        }
        Mode::Offered | Mode::OfferedShadow => "nested",
        Mode::Evmcs => "nested,-emsr-bitmap,-tlbflush-direct",
        Mode::EvmcsEmsr => "nested,-tlbflush-direct",
        Mode::EvmcsDirectFlush => "nested,-emsr-bitmap",
        Mode::SvmEmsr => "nested,-evmcs,-tlbflush-direct",
        Mode::SvmDirectFlush => "nested,-evmcs,-emsr-bitmap",
    }
}

/// The mode in which a Linux L1's KVM runs L2.
pub(crate) fn of_linux(mode: Mode) -> wire::Mode {
    if mode.is_svm() {
        wire::Mode::Svm
    } else if mode.uses_evmcs() {
        wire::Mode::Evmcs
    } else {
        wire::Mode::Vmcs
    }
}

/// The vendor whose CPUs support it.
fn vendor(mode: Mode) -> Vendor {
    if mode.is_svm() {
        Vendor::Amd
    } else {
        Vendor::Intel
    }
}

/// The properties of a host that decide which modes it supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Its CPU's vendor.
    pub(crate) vendor: Vendor,
    /// The CPU shows VMX or SVM.
    pub(crate) virtualization: bool,
    /// Guests can be offered VMX or SVM.
    pub(crate) nested: bool,
    /// KVM has Hyper-V's interface.
    pub(crate) hyperv: bool,
    /// KVM can offer an enlightened VMCS.
    pub(crate) evmcs: bool,
    /// KVM can offer the enlightened MSR bitmap.
    pub(crate) emsr_bitmap: bool,
    /// KVM can offer direct flush of L2's TLB.
    pub(crate) direct_flush: bool,
    /// `kvm_intel.enable_shadow_vmcs`.
    pub(crate) shadow: Option<bool>,
    /// KVM's module may be reloaded.
    pub(crate) may_reload: bool,
}

/// The remedy for a host without nesting.
const EMULATED: &str = "use an emulated host, by `cargo lab demo` in the source tree (docs/lab.md)";

impl Facts {
    /// The reason why `mode` cannot be measured here with `l1`; `None` if it can.
    pub(crate) fn lack(&self, l1: L1, mode: Mode) -> Option<String> {
        if !self.virtualization {
            return Some(format!(
                "this host's CPU shows neither VMX nor SVM (`hypernest doctor` says why): {EMULATED}"
            ));
        }
        let wanted = vendor(mode);
        if wanted != self.vendor {
            return Some(match wanted {
                Vendor::Intel => "VMX and eVMCS are Intel's; this host's CPU has SVM".to_owned(),
                Vendor::Amd => "SVM is AMD's; this host's CPU has VMX".to_owned(),
            });
        }
        if !self.nested {
            return Some(format!(
                "this host's KVM cannot show VMX or SVM to guests: load {} with nested=1 (see `hypernest \
                 doctor`), or {EMULATED}",
                self.vendor.module()
            ));
        }
        if !self.hyperv {
            return Some("this host's KVM has no Hyper-V interface (CONFIG_KVM_HYPERV)".to_owned());
        }
        if let Some(why) = self.lacks_enlightenment(mode) {
            return Some(why.to_owned());
        }
        if l1 == L1::Linux && mode.uses_direct_flush() {
            return Some(
                "the L2 that Linux runs here flushes nothing by hypercall, so direct flush makes no \
                 difference"
                    .to_owned(),
            );
        }
        if l1 == L1::Image && mode.offers_evmcs() && !mode.uses_evmcs() {
            return Some(
                "whether an L1 of yours uses the eVMCS that it is offered is its own affair: see evmcs"
                    .to_owned(),
            );
        }
        let wanted = mode.shadow_vmcs()?;
        if self.shadow == Some(wanted) || self.may_reload {
            return None;
        }
        Some(format!(
            "it needs kvm_intel.enable_shadow_vmcs={}, and only root can reload the module",
            u8::from(wanted)
        ))
    }

    fn lacks_enlightenment(&self, mode: Mode) -> Option<&'static str> {
        if mode.offers_evmcs() && !self.evmcs {
            Some("this host's KVM cannot offer an enlightened VMCS")
        } else if mode.uses_emsr_bitmap() && !self.emsr_bitmap {
            Some("this host's KVM cannot offer the enlightened MSR bitmap (Linux 5.17 can)")
        } else if mode.uses_direct_flush() && !self.direct_flush {
            Some("this host's KVM cannot offer direct flush of L2's TLB (Linux 6.2 can)")
        } else {
            None
        }
    }
}

/// One boot of a Linux L1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    pub(crate) hv: &'static str,
    /// The required value of the host's `enable_shadow_vmcs`.
    pub(crate) shadow: Option<bool>,
    /// The modes to measure, in order.
    pub(crate) modes: Vec<Mode>,
}

/// The boots that measure `wanted`: one for each pair of enlightenments and host setting, the host's present
/// setting first, to reload its module as seldom as possible.
pub(crate) fn boots(wanted: &[Mode], shadow_now: Option<bool>) -> Vec<Boot> {
    let mut boots: Vec<Boot> = Vec::new();
    // Modes that do not depend on the setting share another mode's boot, so they come last.
    let mut sorted = wanted.to_vec();
    sorted.sort_by_key(|mode| {
        let shadow = mode.shadow_vmcs();
        (shadow.is_none(), shadow != shadow_now)
    });
    for mode in sorted {
        let (hv, shadow) = (hv(mode), mode.shadow_vmcs());
        let fitting = boots
            .iter_mut()
            .find(|boot| boot.hv == hv && (shadow.is_none() || boot.shadow == shadow));
        match fitting {
            Some(boot) if boot.modes.contains(&mode) => {}
            Some(boot) => boot.modes.push(mode),
            None => boots.push(Boot {
                hv,
                shadow,
                modes: vec![mode],
            }),
        }
    }
    for boot in &mut boots {
        boot.modes.sort();
    }
    boots.sort_by_key(|boot| {
        let reload = boot.shadow.is_some() && boot.shadow != shadow_now;
        (reload, boot.modes.first().copied())
    });
    boots
}

#[cfg(test)]
mod tests {
    use super::*;
    use Mode::{
        Classic, ClassicShadow, Evmcs, EvmcsDirectFlush, EvmcsEmsr, Offered, OfferedShadow, Svm,
    };

    fn plan(wanted: &[Mode], now: bool) -> Vec<(Option<bool>, Vec<Mode>)> {
        boots(wanted, Some(now))
            .into_iter()
            .map(|boot| (boot.shadow, boot.modes))
            .collect()
    }

    #[test]
    fn few_boots_and_the_present_setting_first() {
        assert_eq!(
            plan(&[Evmcs, OfferedShadow, ClassicShadow, Classic], true),
            [
                (Some(true), vec![ClassicShadow]),
                (Some(true), vec![OfferedShadow]),
                (None, vec![Evmcs]),
                (Some(false), vec![Classic]),
            ]
        );
        assert_eq!(
            plan(&[Evmcs, OfferedShadow, Classic, Offered], false),
            [
                (Some(false), vec![Classic]),
                (Some(false), vec![Offered]),
                (None, vec![Evmcs]),
                (Some(true), vec![OfferedShadow]),
            ]
        );
        assert_eq!(plan(&[Svm, Svm], false), [(None, vec![Svm])]);
    }

    #[test]
    fn every_mode_is_measured_once() {
        for now in [None, Some(false), Some(true)] {
            let mut planned: Vec<_> = boots(Mode::ALL, now)
                .into_iter()
                .flat_map(|boot| boot.modes)
                .collect();
            planned.sort();
            assert_eq!(planned, Mode::ALL);
        }
    }

    #[test]
    fn what_a_host_lacks_is_named() {
        let intel = Facts {
            vendor: Vendor::Intel,
            virtualization: true,
            nested: true,
            hyperv: true,
            evmcs: true,
            emsr_bitmap: true,
            direct_flush: true,
            shadow: Some(true),
            may_reload: false,
        };
        let amd = Facts {
            vendor: Vendor::Amd,
            evmcs: false,
            shadow: None,
            ..intel
        };
        let root = Facts {
            may_reload: true,
            ..intel
        };
        let old = Facts {
            emsr_bitmap: false,
            direct_flush: false,
            ..intel
        };
        let without_evmcs = Facts {
            evmcs: false,
            ..intel
        };
        let not_nested = Facts {
            nested: false,
            ..intel
        };
        // Such as a virtual machine without nesting.
        let neither = Facts {
            virtualization: false,
            ..not_nested
        };
        let without_hyperv = Facts {
            hyperv: false,
            ..amd
        };
        for (facts, l1, mode, wanted) in [
            (intel, L1::Linux, Evmcs, None),
            (intel, L1::Linux, EvmcsEmsr, None),
            (intel, L1::Micro, EvmcsDirectFlush, None),
            (
                intel,
                L1::Linux,
                EvmcsDirectFlush,
                Some("flushes nothing by hypercall"),
            ),
            (intel, L1::Micro, ClassicShadow, None),
            (intel, L1::Micro, OfferedShadow, None),
            (intel, L1::Image, OfferedShadow, Some("its own affair")),
            (intel, L1::Image, EvmcsDirectFlush, None),
            (intel, L1::Micro, Classic, Some("only root")),
            (intel, L1::Micro, Svm, Some("SVM is AMD's")),
            (amd, L1::Micro, Svm, None),
            (amd, L1::Micro, Evmcs, Some("Intel's")),
            (amd, L1::Linux, Classic, Some("Intel's")),
            (
                without_evmcs,
                L1::Micro,
                OfferedShadow,
                Some("enlightened VMCS"),
            ),
            (not_nested, L1::Micro, ClassicShadow, Some("nested=1")),
            (not_nested, L1::Micro, Evmcs, Some("cargo lab demo")),
            (neither, L1::Micro, Evmcs, Some("neither VMX nor SVM")),
            (neither, L1::Micro, Svm, Some("neither VMX nor SVM")),
            (neither, L1::Linux, Svm, Some("cargo lab demo")),
            (without_hyperv, L1::Micro, Svm, Some("CONFIG_KVM_HYPERV")),
            (old, L1::Micro, EvmcsEmsr, Some("Linux 5.17")),
            (old, L1::Micro, EvmcsDirectFlush, Some("Linux 6.2")),
            (old, L1::Micro, Evmcs, None),
            (root, L1::Micro, Classic, None),
        ] {
            let lack = facts.lack(l1, mode);
            match (lack, wanted) {
                (None, None) => {}
                (Some(lack), Some(wanted)) => assert!(lack.contains(wanted), "{lack}"),
                (lack, wanted) => panic!("{mode:?}: {lack:?}, wanted {wanted:?}"),
            }
        }
    }
}
