//! The numbers and argument types of ioctls that kvm-ioctls lacks (include/uapi/linux/kvm.h).

use kvm_bindings::{
    KVMIO, kvm_cpuid2, kvm_device_attr, kvm_ioeventfd, kvm_irqfd, kvm_reinject_control,
    kvm_signal_mask, kvm_xsave,
};

use super::state::Sregs;

nix::ioctl_write_ptr_bad!(
    reinject_control,
    nix::request_code_none!(KVMIO, 0x71),
    kvm_reinject_control
);
nix::ioctl_write_ptr!(irqfd, KVMIO, 0x76, kvm_irqfd);
nix::ioctl_write_ptr!(ioeventfd, KVMIO, 0x79, kvm_ioeventfd);
nix::ioctl_write_ptr!(set_xsave, KVMIO, 0xa5, kvm_xsave);
nix::ioctl_readwrite!(get_supported_hv_cpuid, KVMIO, 0xc1, kvm_cpuid2);
nix::ioctl_write_ptr!(set_signal_mask, KVMIO, 0x8b, kvm_signal_mask);
nix::ioctl_write_int_bad!(set_tsc_khz, nix::request_code_none!(KVMIO, 0xa2));
nix::ioctl_none!(get_tsc_khz, KVMIO, 0xa3);
nix::ioctl_none!(reset_dirty_rings, KVMIO, 0xc7);
nix::ioctl_read!(get_sregs2, KVMIO, 0xcc, Sregs);
nix::ioctl_write_ptr!(set_sregs2, KVMIO, 0xcd, Sregs);
nix::ioctl_none!(get_stats_fd, KVMIO, 0xce);
nix::ioctl_read!(get_xsave2, KVMIO, 0xcf, kvm_xsave);
nix::ioctl_write_ptr!(set_device_attr, KVMIO, 0xe1, kvm_device_attr);
nix::ioctl_write_ptr!(get_device_attr, KVMIO, 0xe2, kvm_device_attr);
nix::ioctl_write_ptr!(has_device_attr, KVMIO, 0xe3, kvm_device_attr);
