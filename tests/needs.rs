//! Requirements of tests on a host.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::OnceLock;

use hypernest::cpuid::CpuVendor;
use hypernest::kvm::dirty_ring;
use hypernest::kvm::host::HostCaps;
use hypernest_lab::suite::needs_kvm;
use nix::unistd::Uid;

use crate::linux::held;
use crate::vm::{Site, Vm};

/// As [`guests`], and SIGHUP is not ignored by inheritance, as under nohup(1): hypernest keeps it so.
pub(crate) fn hangups() -> Result<(), String> {
    guests()?;
    let status = std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or("no SigIgn in /proc/self/status")?;
    // Bit 0 is signal 1.
    match ignored & 1 {
        0 => Ok(()),
        _ => Err("SIGHUP that is not ignored (nohup ignores it)".to_owned()),
    }
}

/// A KVM on which the guest programs run.
pub(crate) fn guests() -> Result<(), String> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    ANSWER
        .get_or_init(|| {
            needs_kvm()?;
            let ended = Site::new()
                .and_then(|site| Vm::start(site.guest("hello")))
                .map_err(|error| error.to_string())
                .and_then(|vm| vm.end().map_err(|error| error.to_string()));
            match ended {
                Ok(ended) if ended.stderr.contains("could not emulate an instruction") => Err(
                    "a KVM that lets the CPU run the guest's kernel code (this one interprets it)"
                        .to_owned(),
                ),
                // The tests show any other failure.
                _ => Ok(()),
            }
        })
        .clone()
}

/// Guests, and the privilege to mount in a private namespace.
pub(crate) fn mount_namespaces() -> Result<(), String> {
    guests()?;
    let busybox = held("busybox").map_err(|error| error.to_string())?;
    let output = Command::new(&busybox)
        .args(["unshare", "-m"])
        .arg(&busybox)
        .arg("true")
        .output()
        .map_err(|error| format!("{}: {error}", busybox.display()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err("the right to make a mount namespace".to_owned())
    }
}

/// A `/dev/kvm` that an ordinary user cannot open.
pub(crate) fn kvm_for_root_only() -> Result<(), String> {
    guests()?;
    let mode = std::fs::metadata("/dev/kvm").map_err(|error| error.to_string())?;
    if mode.permissions().mode() & 0o006 == 0 && Uid::effective().is_root() {
        Ok(())
    } else {
        Err("a /dev/kvm that ordinary users cannot open".to_owned())
    }
}

/// A KVM whose dirty rings contain the writes of a vCPU.
pub(crate) fn dirty_rings() -> Result<(), String> {
    guests()?;
    if dirty_ring::supported_on_host(&caps()?.system.cpu) {
        Ok(())
    } else {
        Err("VMX or SVM: a KVM that interprets the guest overflows dirty rings".to_owned())
    }
}

/// A KVM with Hyper-V, on which guests run.
pub(crate) fn hyperv() -> Result<(), String> {
    guests()?;
    match caps()?.kvm.hv_cpuid {
        Some(_) => Ok(()),
        None => Err("Hyper-V enlightenments in KVM".to_owned()),
    }
}

/// Hyper-V and eVMCS.
pub(crate) fn evmcs() -> Result<(), String> {
    hyperv()?;
    match caps()?.kvm.evmcs {
        Some(_) => Ok(()),
        None => Err("eVMCS".to_owned()),
    }
}

/// An AMD host with Hyper-V and nested SVM.
pub(crate) fn nested_svm() -> Result<(), String> {
    hyperv()?;
    let kvm = caps()?.kvm;
    if kvm.vendor() == CpuVendor::Amd && kvm.guest_svm() {
        Ok(())
    } else {
        Err("nested SVM".to_owned())
    }
}

pub(crate) fn caps() -> Result<HostCaps, String> {
    HostCaps::probe().map_err(|error| error.to_string())
}
