//! The numbers and argument types of the ioctls that kvm-ioctls does not have (include/uapi/linux/kvm.h).

use kvm_bindings::{KVMIO, kvm_cpuid2, kvm_device_attr};

/// `struct kvm_signal_mask` with the one signal-set size that x86-64 kernels take. The ioctl's number holds the size of
/// the structure without its flexible tail.
#[repr(C)]
#[derive(Debug)]
pub(super) struct SignalMask {
    pub(super) len: u32,
    pub(super) sigset: [u8; 8],
}

const SIGNAL_MASK_HEADER: usize = size_of::<u32>();

nix::ioctl_readwrite!(get_supported_hv_cpuid, KVMIO, 0xc1, kvm_cpuid2);
nix::ioctl_none!(get_stats_fd, KVMIO, 0xce);
nix::ioctl_write_ptr!(set_device_attr, KVMIO, 0xe1, kvm_device_attr);
nix::ioctl_write_ptr!(get_device_attr, KVMIO, 0xe2, kvm_device_attr);
nix::ioctl_write_ptr!(has_device_attr, KVMIO, 0xe3, kvm_device_attr);
nix::ioctl_write_ptr_bad!(
    set_signal_mask,
    nix::request_code_write!(KVMIO, 0x8b, SIGNAL_MASK_HEADER),
    SignalMask
);
