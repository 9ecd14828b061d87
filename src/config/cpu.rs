//! `--cpu MODEL[,-FEATURE…]`: the processor that the guest sees.

use super::CpuConfig;
use super::parse::{self, Wrong};
use super::setting::Scalar;
use crate::cpuid::{CpuModel, feature, msr_feature};
use crate::text::nearest;

const MODELS: [(&str, CpuModel); 4] = [
    ("host", CpuModel::Host),
    ("x86-64-v2", CpuModel::X86_64V2),
    ("x86-64-v3", CpuModel::X86_64V3),
    ("x86-64-v4", CpuModel::X86_64V4),
];

/// Features that another setting controls, or that every guest of a hypervisor sees.
const NOT_MASKED: [(&str, &str); 3] = [
    ("vmx", "it is shown with nested only: leave nested out"),
    ("svm", "it is shown with nested only: leave nested out"),
    ("hypervisor", "every guest sees it"),
];

/// Features by name: CPUID's, then those of MSRs.
fn names() -> impl Iterator<Item = &'static str> {
    let cpuid = feature::ALL.iter().map(|feature| feature.name);
    cpuid.chain(msr_feature::ALL.iter().map(|feature| feature.name))
}

/// Parses a model and the masked features.
pub(super) fn model(value: &Scalar) -> Result<(CpuModel, Vec<&'static str>), Wrong> {
    let Scalar::Text(text) = value else {
        return parse::choice(value, &MODELS).map(|model| (model, Vec::new()));
    };
    let mut words = text.split(',');
    let name = Scalar::Text(words.next().unwrap_or_default().to_owned());
    let model = parse::choice(&name, &MODELS)?;
    let mut without = words.map(masked).collect::<Result<Vec<_>, _>>()?;
    without.sort_by_key(|name| names().position(|known| known == *name));
    without.dedup();
    Ok((model, without))
}

fn masked(word: &str) -> Result<&'static str, Wrong> {
    let wrong = |what: String| Wrong::new(what, "-FEATURE, by the name that QEMU has for it");
    let name = word
        .trim()
        .strip_prefix('-')
        .ok_or_else(|| wrong(format!("{word} does not mask a feature")))?;
    let dashed = name.replace('_', "-");
    let found = names().find(|known| known.replace('_', "-") == dashed);
    let feature = found.ok_or_else(|| {
        let near = nearest(name, names());
        let hint = near.map_or(String::new(), |name| format!(" (did you mean -{name}?)"));
        wrong(format!("no CPU feature is called {name}{hint}"))
    })?;
    match NOT_MASKED.iter().find(|(other, _)| *other == feature) {
        Some((_, why)) => Err(wrong(format!("{feature} cannot be masked: {why}"))),
        None => Ok(feature),
    }
}

impl CpuConfig {
    /// The model with its mask, in the form of `--cpu`.
    pub fn model_with_mask(&self) -> String {
        let name = MODELS.iter().find(|(_, model)| *model == self.model);
        let mut text = name.map_or("host", |(name, _)| name).to_owned();
        for feature in &self.without {
            text.push_str(",-");
            text.push_str(feature);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::Topology;

    #[test]
    fn a_model_with_a_mask_is_shown_as_it_is_parsed() {
        for (text, shown) in [
            ("host", "host"),
            ("x86-64-v3", "x86-64-v3"),
            ("host,-flushbyasid", "host,-flushbyasid"),
            (
                "host,-lbrv,-npt,-svme-addr-chk,-npt",
                "host,-npt,-lbrv,-svme_addr_chk",
            ),
            ("host,-gds-no,-vmx-vpid", "host,-gds-no,-vmx-vpid"),
        ] {
            let (model, without) = model(&Scalar::Text(text.to_owned())).unwrap();
            let topology = Topology {
                sockets: 1,
                cores: 1,
                threads: 1,
            };
            let cpus = CpuConfig {
                count: 1,
                topology,
                model,
                without,
                nested: false,
            };
            assert_eq!(cpus.model_with_mask(), shown);
        }
    }

    #[test]
    fn what_is_no_feature_or_has_another_setting_is_refused() {
        for (text, expected) in [
            ("host,avx2", "avx2 does not mask a feature"),
            ("host,-vmx-vpi", "did you mean -vmx-vpid?"),
            ("host,-svm", "leave nested out"),
            ("host,-hypervisor", "every guest sees it"),
            ("host,", "does not mask"),
            ("hosts,-avx2", "did you mean host?"),
        ] {
            let wrong = model(&Scalar::Text(text.to_owned())).unwrap_err();
            let said = format!("{wrong:?}");
            assert!(said.contains(expected), "{text}: {said}");
        }
    }
}
