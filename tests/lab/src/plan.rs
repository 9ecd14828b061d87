//! The instructions for the init of a lab host: a JSON file in the initramfs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The plan's path in the initramfs.
pub const PATH: &str = "/lab-plan.json";

/// The payload's path in a lab host.
pub const LAB_DIR: &str = "/lab";

/// The directory of the files that a lab host of one stage passes on to the next one.
pub const CARRIED_DIR: &str = "/carried";

/// The environment variable that names the payload's directory, in lab hosts and on this machine.
pub const LAB_DIR_VARIABLE: &str = "HYPERNEST_LAB_DIR";

/// The environment variable that names the host: `amd`, `intel` or `here`.
pub const LAB_HOST_VARIABLE: &str = "HYPERNEST_LAB_HOST";

/// The environment variable that requests loops at their full length.
pub const LAB_LONG_VARIABLE: &str = "HYPERNEST_LAB_LONG";

/// A kernel module to load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its file in the initramfs.
    pub path: String,
    /// Its parameters, as in `enable_shadow_vmcs=0 ept=1`.
    pub parameters: String,
}

/// The command's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// No input.
    Nothing,
    /// Input comes over the control line.
    Line,
    /// Input comes over the control line, and the command gets its own terminal.
    Terminal {
        /// Rows of it.
        rows: u16,
        /// Columns of it.
        columns: u16,
    },
}

/// The plan of a lab host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Modules in load order.
    pub modules: Vec<Module>,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
    /// Its input.
    pub input: Input,
    /// Files and directories that are sent back when the command has ended.
    #[serde(default)]
    pub fetch: Vec<String>,
}
