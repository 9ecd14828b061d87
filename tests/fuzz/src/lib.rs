//! The functions of the fuzz targets. `fuzz/` runs them under libFuzzer; the test of this crate runs them on
//! the seeds that are committed in `fuzz/seeds`, in every `cargo test`.
//!
//! A target processes bytes from a hostile guest, file, client or peer. It panics when an invariant is
//! violated, and returns whether the bytes passed the first checks: a target without a seed that does so
//! tests nothing.

mod boot;
mod devices;
mod enlightened;
mod input;
mod life;
mod migration;
mod nested;
mod reports;
mod requests;
mod saved;
mod tls;
mod virtio;

pub use input::Input;

/// A target.
pub type Target = fn(&[u8]) -> bool;

/// Every target by the name of its program in `fuzz/` and of its directory of seeds.
pub const TARGETS: &[(&str, Target)] = &[
    ("board", nested::board),
    ("boot-image", boot::image),
    ("boot-load", boot::load),
    ("config-file", requests::config_file),
    ("control-reply", requests::control_reply),
    ("control-request", requests::control_request),
    ("crash-message", enlightened::crash_message),
    ("devices", devices::accesses),
    ("device-state", devices::state),
    ("enlightenments", requests::enlightenments),
    ("fail-condition", reports::fail_condition),
    ("fio-report", reports::fio_report),
    ("histogram", reports::histogram),
    ("hypercalls", enlightened::hypercalls),
    ("l2probe-document", reports::l2probe_document),
    ("life", life::life),
    ("migration-wire", migration::wire),
    ("nested-state", nested::nested_state),
    ("probe-stream", nested::probe_stream),
    ("promise", saved::promise),
    ("report", reports::report),
    ("saved-sections", saved::sections),
    ("state-file", saved::state_file),
    ("synthetic-msrs", enlightened::msrs),
    ("tls-handshake", tls::handshake),
    ("tsc-report", reports::tsc_report),
    ("tsc-stream", nested::tsc_stream),
    ("virtio-balloon", virtio::balloon),
    ("virtio-balloon-state", virtio::balloon_state),
    ("virtio-blk", virtio::blk),
    ("virtio-blk-state", virtio::blk_state),
    ("virtio-console", virtio::console),
    ("virtio-net", virtio::net),
    ("virtio-net-state", virtio::net_state),
    ("virtio-port", virtio::port),
    ("virtio-port-state", virtio::port_state),
    ("virtio-rng", virtio::rng),
    ("virtio-state", virtio::rng_state),
];

/// Runs the target called `name` on `bytes`.
///
/// # Panics
/// If there is no such target, or an invariant is violated.
pub fn run(name: &str, bytes: &[u8]) -> bool {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("no target {name}"));
    target(bytes)
}
