//! How each VMM is told to migrate its VM.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use super::MigrationError;
use super::qmp::Qmp;
use crate::program;

/// The limits of a migration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) bandwidth_mib: u32,
    pub(crate) downtime_ms: u32,
}

/// `hypernest migrate` of the VM `name`, whose control socket is below `runtime`, to `address`.
pub(crate) fn hypernest(runtime: &Path, name: &str, address: &str, limits: Limits) -> Command {
    let mut command = Command::new(program::hypernest());
    command.env("XDG_RUNTIME_DIR", runtime);
    command.args(["migrate", name, address]);
    command.args(["--downtime-ms", &limits.downtime_ms.to_string()]);
    command.args(["--bandwidth", &format!("{}M", limits.bandwidth_mib)]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    hypernest::end_with_parent(&mut command);
    command
}

/// Sets the limits of QEMU's migrations.
pub(crate) fn limit(qmp: &mut Qmp, limits: Limits) -> Result<(), MigrationError> {
    let parameters = json!({
        "max-bandwidth": u64::from(limits.bandwidth_mib) << 20,
        "downtime-limit": limits.downtime_ms,
    });
    qmp.call("migrate-set-parameters", &parameters).map(drop)
}
