//! Promises, as a file or the other end of a connection has them, beside some host.
#![no_main]

use std::sync::OnceLock;

use hypernest::config::VmConfig;
use hypernest::kvm::host::{HostCaps, KvmCaps, KvmFacts, System};
use hypernest::machine::promise::Promise;
use libfuzzer_sys::fuzz_target;

const CONFIG: &str =
    "name = \"fuzz\"\nmemory = \"64M\"\nkernel = \"/nowhere\"\nnested = true\nhv = \"none\"\n";

fn parts() -> &'static (VmConfig, HostCaps) {
    static PARTS: OnceLock<(VmConfig, HostCaps)> = OnceLock::new();
    PARTS.get_or_init(|| {
        let config = VmConfig::from_saved(CONFIG.to_owned()).expect("a configuration");
        let caps = KvmCaps {
            hyperv: true,
            pit2: true,
            nested_state: 8320,
            ..KvmCaps::default()
        };
        let kvm = KvmFacts {
            caps,
            ..KvmFacts::default()
        };
        let system = System::default();
        (config, HostCaps { system, kvm })
    })
}

fuzz_target!(|json: &[u8]| {
    let Ok(promise) = serde_json::from_slice::<Promise>(json) else {
        return;
    };
    let (config, host) = parts();
    match promise.check(config, host) {
        Ok(plan) => {
            plan.cpuid.for_vcpu(0);
            plan.phys_bits();
        }
        Err(mismatches) => assert!(mismatches.iter().all(|m| !m.to_string().is_empty())),
    }
});
