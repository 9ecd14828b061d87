use super::*;
use crate::hyperv::HostHv;

fn system(flags: &str, modules: &[&str]) -> System {
    System {
        cpu: Cpu {
            vmx: flags.contains("vmx"),
            svm: flags.contains("svm"),
            hypervisor: flags.contains("hypervisor"),
            ..Cpu::default()
        },
        modules: modules
            .iter()
            .map(|m| ((*m).to_owned(), BTreeMap::new()))
            .collect(),
        ..System::default()
    }
}

#[test]
fn a_missing_device_is_explained_by_what_is_missing_below_it() {
    for (flags, modules, says) in [
        ("vmx", &[][..], "modprobe kvm_intel"),
        ("svm", &[][..], "modprobe kvm_amd"),
        ("svm", &["kvm_amd"][..], "if this is a container"),
        ("hypervisor", &[][..], "virtual machine"),
        ("", &[][..], "firmware"),
    ] {
        let error = open_error(
            &system(flags, modules),
            io::Error::from_raw_os_error(libc::ENOENT),
        );
        assert!(error.to_string().contains(says), "{flags}: {error}");
    }
}

#[test]
fn a_missing_permission_names_the_group() {
    let mut host = system("vmx", &["kvm_intel"]);
    let denied = || io::Error::from_raw_os_error(libc::EACCES);
    let error = open_error(&host, denied()).to_string();
    assert!(error.contains("group kvm"), "{error}");
    host.device = Some(Device {
        mode: 0o660,
        uid: 0,
        gid: 36,
        group: None,
    });
    let error = open_error(&host, denied()).to_string();
    assert!(error.contains("group 36"), "{error}");
    if let Some(device) = &mut host.device {
        device.group = Some("virt".to_owned());
    }
    let error = open_error(&host, denied()).to_string();
    assert!(error.contains("usermod -aG virt"), "{error}");
}

#[test]
fn a_device_without_a_driver_and_other_refusals_are_told_apart() {
    let error =
        |errno| open_error(&System::default(), io::Error::from_raw_os_error(errno)).to_string();
    assert!(error(libc::ENODEV).contains("no KVM module"));
    assert!(error(libc::EMFILE).contains("the kernel refused"));
}

#[test]
fn a_frequency_that_kvm_cannot_run_is_refused_with_the_cure() {
    let check = |kvm, kernel| {
        KvmFacts {
            tsc_khz: Some(kvm),
            refined_tsc_khz: Some(kernel),
            ..KvmFacts::default()
        }
        .check_tsc_khz()
    };
    // As seen where KVM was loaded before the kernel had refined an early 2594.7 MHz.
    for (kvm, kernel) in [(2_594_700, 2_596_100), (2_597_500, 2_596_100)] {
        let error = check(kvm, kernel).unwrap_err().to_string();
        for part in [
            kvm.to_string(),
            kernel.to_string(),
            "modprobe -r".to_owned(),
        ] {
            assert!(error.contains(&part), "{part}: {error}");
        }
    }
    assert!(check(2_596_000, 2_596_100).is_ok());
    assert!(KvmFacts::default().check_tsc_khz().is_ok());
}

#[test]
fn what_is_too_old_is_named_with_the_kernel_that_has_it() {
    let error = HostError::TooOld {
        missing: KvmCaps::default().missing(),
    };
    assert!(
        error
            .to_string()
            .contains("KVM_CAP_IMMEDIATE_EXIT (Linux 4.13)")
    );
}

#[test]
fn this_host_is_probed_and_survives_json() {
    let caps = match HostCaps::probe() {
        Ok(caps) => caps,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    assert!(caps.kvm.leaf(0, 0).is_some());
    let (quick, _kvm) = HostCaps::for_a_vm().unwrap();
    assert_eq!(HostHv::from(&quick), HostHv::from(&caps));
    // Not their contents: some leaves hold the APIC id of the CPU that was queried.
    let leaves = |facts: &KvmFacts| -> Vec<_> {
        let cpuid = facts.cpuid.iter();
        cpuid.map(|leaf| (leaf.function, leaf.index)).collect()
    };
    assert_eq!(leaves(&quick.kvm), leaves(&caps.kvm));
    assert_eq!(quick.kvm.feature_msrs, caps.kvm.feature_msrs);
    assert_eq!(caps.kvm.hv_cpuid.is_some(), caps.kvm.caps.any_hyperv());
    let json = serde_json::to_string(&caps).unwrap();
    assert_eq!(serde_json::from_str::<HostCaps>(&json).unwrap(), caps);
}
