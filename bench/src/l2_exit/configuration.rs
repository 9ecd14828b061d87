//! What can be compared, what of it this host can do, and in how few boots of L1.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::kvm_module::Vendor;
use crate::wire::Mode;

/// A way to run L2.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Configuration {
    /// L1 uses its enlightened VMCS
    Evmcs,
    /// L1 is offered one and does not use it; the host shadows L1's VMCS
    OfferedShadow,
    /// L1 is not offered one; the host shadows L1's VMCS
    ClassicShadow,
    /// L1 is not offered one; each of its VMREADs and VMWRITEs is an exit
    Classic,
    /// L1 is offered one and does not use it; each of its VMREADs and VMWRITEs is an exit
    Offered,
    /// AMD
    Svm,
}

impl Configuration {
    /// As on the command line and in files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Evmcs => "evmcs",
            Self::OfferedShadow => "offered-shadow",
            Self::ClassicShadow => "classic-shadow",
            Self::Classic => "classic",
            Self::Offered => "offered",
            Self::Svm => "svm",
        }
    }

    /// In the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Evmcs => "eVMCS used",
            Self::OfferedShadow => "eVMCS offered, not used; shadow VMCS",
            Self::ClassicShadow => "no eVMCS; shadow VMCS",
            Self::Classic => "no eVMCS; no shadow VMCS",
            Self::Offered => "eVMCS offered, not used; no shadow VMCS",
            Self::Svm => "SVM",
        }
    }

    /// The enlightenments that L1 is given, as for `--hv`.
    pub(crate) fn hv(self) -> &'static str {
        match self {
            Self::Evmcs | Self::OfferedShadow | Self::Offered => "nested",
            Self::ClassicShadow | Self::Classic | Self::Svm => "nested,-evmcs",
        }
    }

    /// How L1's KVM runs L2.
    pub(crate) fn mode(self) -> Mode {
        match self {
            Self::Evmcs => Mode::Evmcs,
            Self::Svm => Mode::Svm,
            _ => Mode::Vmcs,
        }
    }

    /// Whether the host shadows L1's VMCS; `None` where that makes no difference.
    pub(crate) fn shadow(self) -> Option<bool> {
        match self {
            Self::Evmcs | Self::Svm => None,
            Self::OfferedShadow | Self::ClassicShadow => Some(true),
            Self::Classic | Self::Offered => Some(false),
        }
    }

    /// Whose CPUs can do it.
    pub(crate) fn vendor(self) -> Vendor {
        if self == Self::Svm {
            Vendor::Amd
        } else {
            Vendor::Intel
        }
    }
}

/// What of a host decides what it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Its CPU's vendor.
    pub(crate) vendor: Vendor,
    /// Guests can be shown VMX or SVM.
    pub(crate) nested: bool,
    /// KVM has Hyper-V's interface.
    pub(crate) hyperv: bool,
    /// KVM can offer an enlightened VMCS.
    pub(crate) evmcs: bool,
    /// `kvm_intel.enable_shadow_vmcs`.
    pub(crate) shadow: Option<bool>,
    /// KVM's module may be loaded anew.
    pub(crate) may_reload: bool,
}

impl Facts {
    /// Why `configuration` cannot be measured here; `None` if it can.
    pub(crate) fn lack(&self, configuration: Configuration) -> Option<String> {
        let wanted = configuration.vendor();
        if wanted != self.vendor {
            return Some(match wanted {
                Vendor::Intel => "VMX and eVMCS are Intel's; this host's CPU has SVM".to_owned(),
                Vendor::Amd => "SVM is AMD's; this host's CPU has VMX".to_owned(),
            });
        }
        if !self.nested {
            return Some(format!(
                "this host's KVM cannot show VMX or SVM to guests: load {} with nested=1, on a CPU that has it (`hypernest doctor` tells more)",
                self.vendor.module()
            ));
        }
        if !self.hyperv {
            return Some("this host's KVM has no Hyper-V interface (CONFIG_KVM_HYPERV)".to_owned());
        }
        if configuration.hv() == "nested" && !self.evmcs {
            return Some("this host's KVM cannot offer an enlightened VMCS".to_owned());
        }
        let wanted = configuration.shadow()?;
        if self.shadow == Some(wanted) || self.may_reload {
            return None;
        }
        Some(format!(
            "it needs kvm_intel.enable_shadow_vmcs={}, and only root can load the module anew",
            u8::from(wanted)
        ))
    }
}

/// One boot of L1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    /// The enlightenments.
    pub(crate) hv: &'static str,
    /// What the host's `enable_shadow_vmcs` must be.
    pub(crate) shadow: Option<bool>,
    /// What is measured, in order.
    pub(crate) configurations: Vec<Configuration>,
}

/// The boots that measure `wanted`: one for each pair of enlightenments and host setting, the host's present setting
/// first, so that its module is loaded anew as seldom as possible.
pub(crate) fn boots(wanted: &[Configuration], shadow_now: Option<bool>) -> Vec<Boot> {
    let mut boots: Vec<Boot> = Vec::new();
    // Those that do not care about the setting go along with others, so they come last.
    let mut sorted = wanted.to_vec();
    sorted.sort_by_key(|c| (c.shadow().is_none(), c.shadow() != shadow_now));
    for configuration in sorted {
        let (hv, shadow) = (configuration.hv(), configuration.shadow());
        let fitting = boots
            .iter_mut()
            .find(|boot| boot.hv == hv && (shadow.is_none() || boot.shadow == shadow));
        match fitting {
            Some(boot) if boot.configurations.contains(&configuration) => {}
            Some(boot) => boot.configurations.push(configuration),
            None => boots.push(Boot {
                hv,
                shadow,
                configurations: vec![configuration],
            }),
        }
    }
    for boot in &mut boots {
        boot.configurations.sort();
    }
    boots.sort_by_key(|b| {
        let reload = b.shadow.is_some() && b.shadow != shadow_now;
        (reload, b.configurations.first().copied())
    });
    boots
}

#[cfg(test)]
mod tests {
    use super::*;
    use Configuration::{Classic, ClassicShadow, Evmcs, Offered, OfferedShadow, Svm};

    fn plan(wanted: &[Configuration], now: bool) -> Vec<(Option<bool>, Vec<Configuration>)> {
        boots(wanted, Some(now))
            .into_iter()
            .map(|boot| (boot.shadow, boot.configurations))
            .collect()
    }

    #[test]
    fn few_boots_and_the_present_setting_first() {
        assert_eq!(
            plan(&[Evmcs, OfferedShadow, ClassicShadow, Classic], true),
            [
                (Some(true), vec![Evmcs, OfferedShadow]),
                (Some(true), vec![ClassicShadow]),
                (Some(false), vec![Classic]),
            ]
        );
        assert_eq!(
            plan(&[Evmcs, OfferedShadow, Classic, Offered], false),
            [
                (Some(false), vec![Evmcs, Offered]),
                (Some(false), vec![Classic]),
                (Some(true), vec![OfferedShadow]),
            ]
        );
        assert_eq!(
            plan(&[Evmcs, Classic], true),
            [(None, vec![Evmcs]), (Some(false), vec![Classic])]
        );
        assert_eq!(plan(&[Svm, Svm], false), [(None, vec![Svm])]);
    }

    #[test]
    fn every_configuration_is_measured_once() {
        for now in [None, Some(false), Some(true)] {
            let all = Configuration::value_variants();
            let mut planned: Vec<_> = boots(all, now)
                .into_iter()
                .flat_map(|boot| boot.configurations)
                .collect();
            planned.sort();
            let mut all = all.to_vec();
            all.sort();
            assert_eq!(planned, all);
        }
    }

    #[test]
    fn what_a_host_lacks_is_named() {
        let intel = Facts {
            vendor: Vendor::Intel,
            nested: true,
            hyperv: true,
            evmcs: true,
            shadow: Some(true),
            may_reload: false,
        };
        let amd = Facts {
            vendor: Vendor::Amd,
            evmcs: false,
            shadow: None,
            ..intel
        };
        for (facts, configuration, wanted) in [
            (intel, Evmcs, None),
            (intel, ClassicShadow, None),
            (intel, Classic, Some("only root")),
            (intel, Svm, Some("SVM is AMD's")),
            (amd, Svm, None),
            (amd, Evmcs, Some("Intel's")),
            (amd, Classic, Some("Intel's")),
            (
                Facts {
                    evmcs: false,
                    ..intel
                },
                OfferedShadow,
                Some("enlightened VMCS"),
            ),
            (
                Facts {
                    nested: false,
                    ..intel
                },
                ClassicShadow,
                Some("nested=1"),
            ),
            (
                Facts {
                    hyperv: false,
                    ..amd
                },
                Svm,
                Some("CONFIG_KVM_HYPERV"),
            ),
            (
                Facts {
                    may_reload: true,
                    ..intel
                },
                Classic,
                None,
            ),
        ] {
            let lack = facts.lack(configuration);
            match (lack, wanted) {
                (None, None) => {}
                (Some(lack), Some(wanted)) => assert!(lack.contains(wanted), "{lack}"),
                (lack, wanted) => panic!("{configuration:?}: {lack:?}, wanted {wanted:?}"),
            }
        }
    }
}
