//! The Hyper-V enlightenments: one table, its resolution, the CPUID leaves, and the synthetic MSRs that
//! hypernest owns.
//!
//! An enlightenment is a part of Hyper-V's interface that a guest may detect and use instead of emulated
//! hardware: a hypercall in place of an interrupt storm, a page in place of a clock chip, a shared page in
//! place of VMREAD. KVM implements most of them; user space selects which ones are reported to a guest, and
//! implements the few for which KVM exits.
//!
//! ```text
//!  --hv LIST ─► Request ──┐
//!                         ├─► resolve ─► Resolved ─► cpuid_leaves   the leaves shown to the guest
//!  host (ioctls) ─► HostHv┘     │                 ├─► vcpu_setup     the setup of each vCPU before it runs, in order
//!                               │                 ├─► msr_filter     the MSRs that exit to hypernest
//!                               ▼                 ├─► saved_msrs     the MSRs in KVM that are state, in order
//!                            Problems             └─► Partition      the MSRs that hypernest owns
//! ```
//!
//! Everything here is pure: plain values in, plain values out. Other modules call KVM.

pub mod book;
pub mod cpuid;
pub mod crash;
pub mod enlightenment;
mod explicit;
pub mod host;
pub mod hypercall;
pub mod libvirt;
pub mod msr;
pub mod outcome;
pub mod partition;
pub mod profile;
pub mod qemu;
pub mod reenlightenment;
pub mod request;
pub mod resolve;
pub mod setup;
mod table;

pub use crash::{CrashReport, HypervCrash};
pub use enlightenment::{Enlightenment, EnlightenmentSet, Row};
pub use explicit::ToldEvmcs;
pub use host::{HostHv, HvCap, KernelVersion};
pub use hypercall::{GuestBytes, UserHypercalls};
pub use outcome::{EnlightenmentProblem, MissingRequirement, Note};
pub use partition::{Partition, WriteOutcome};
pub use profile::Profile;
pub use request::{EnlightenmentRequest, RequestProblem, Value};
pub use resolve::{Resolved, resolve};
pub use setup::{MsrFilterRange, SavedMsrs, VcpuSetup};
