//! hypernest: a virtual machine monitor for nested virtualization with Hyper-V on KVM.
//!
//! A running VM, and which module owns what:
//!
//! ```text
//!  cli ──► config ──► machine ──────────────── builds and owns everything below
//!                       │
//!        boot ──────────┤  kernels, ACPI, SMBIOS written into guest RAM
//!        memory ────────┤  RAM in huge pages, the 32-bit PCI hole
//!        cpuid, hyperv ─┤  what the guest is told; who owns which synthetic MSR
//!        time ──────────┤  the guest's TSC and clocks, on this host and on the next
//!                       │
//!   vcpu thread: KVM_RUN ─► classify ─► dispatch ─► bus ─► devices ─► irq ─► KVM
//!                               │
//!                               └► exit statistics (HDR histograms per reason)
//! ```

pub mod api;
pub mod block;
pub mod boot;
pub mod bus;
pub mod cli;
pub mod config;
pub mod cpuid;
pub mod devices;
pub mod doctor;
pub mod error;
pub mod hyperv;
pub mod inspect;
pub mod irq;
pub mod kvm;
pub mod layout;
pub mod life;
pub mod machine;
pub mod memory;
pub mod migration;
pub mod net;
pub mod pci;
pub mod state;
mod sys;
pub mod text;
pub mod time;
pub mod units;
pub mod vcpu;
pub mod virtio;

pub use sys::end_with_parent;
