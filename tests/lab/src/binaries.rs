//! The project's programs, linked statically so that they run in a host with only a kernel.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

use crate::owned::{OwnedChild, tied};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Programs could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Cargo could not be run.
    #[error("cannot run cargo: {0}")]
    Cargo(#[from] std::io::Error),
    /// Cargo failed, and has printed the reason.
    #[error("building the programs for the lab failed")]
    Failed,
    /// Cargo's output is not as expected.
    #[error("cargo built no {0}")]
    NotBuilt(&'static str),
    /// Not in the project's directory.
    #[error("not inside the project: run this in a clone of it")]
    NoWorkspace,
}

/// The paths of the programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The init of lab hosts.
    pub init: PathBuf,
    /// The VMM.
    pub hypernest: PathBuf,
    /// Measurements.
    pub bench: PathBuf,
    /// Measurements from inside a guest.
    pub l2probe: PathBuf,
    /// Samples of a guest's clocks.
    pub tscprobe: PathBuf,
}

/// The root of the project.
pub fn workspace() -> Result<PathBuf, BuildError> {
    let output = OwnedChild::output(cargo()?.args([
        "locate-project",
        "--workspace",
        "--message-format",
        "plain",
    ]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Path::new(text.trim())
        .parent()
        .filter(|root| output.status.success() && root.is_absolute())
        .map(Path::to_owned)
        .ok_or(BuildError::NoWorkspace)
}

/// Cargo, without the environment variables that `cargo run` set for this process.
pub fn cargo() -> std::io::Result<Command> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = tied(program)?;
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    Ok(command)
}

/// Cargo building static programs into a separate directory, so that both these and the ordinary ones stay
/// cached.
fn static_cargo(root: &Path, subcommand: &str) -> std::io::Result<Command> {
    let mut command = cargo()?;
    command
        .current_dir(root)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .args([
            subcommand,
            "--quiet",
            "--release",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(root.join("target/lab"));
    Ok(command)
}

/// Builds all of the project's programs for a lab host.
pub fn build() -> Result<Binaries, BuildError> {
    let root = workspace()?;
    let mut command = static_cargo(&root, "build")?;
    command.args([
        "--package",
        "hypernest",
        "--package",
        "hypernest-bench",
        "--package",
        "hypernest-lab",
        "--package",
        "l2probe",
        "--package",
        "tscprobe",
    ]);
    command.args([
        "--bin",
        "hypernest",
        "--bin",
        "hypernest-bench",
        "--bin",
        "l2probe",
        "--bin",
        "tscprobe",
        "--bin",
        "lab-init",
    ]);
    // Standard output is reserved for the command's own output.
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    if !OwnedChild::spawn(&mut command)?.wait()?.success() {
        return Err(BuildError::Failed);
    }
    let built = |name: &'static str| {
        let path = root
            .join("target/lab")
            .join(TARGET)
            .join("release")
            .join(name);
        if path.is_file() {
            Ok(path)
        } else {
            Err(BuildError::NotBuilt(name))
        }
    };
    Ok(Binaries {
        init: built("lab-init")?,
        hypernest: built("hypernest")?,
        bench: built("hypernest-bench")?,
        l2probe: built("l2probe")?,
        tscprobe: built("tscprobe")?,
    })
}

/// Builds the tests that run on hosts, and returns their paths.
pub fn build_suites() -> Result<Vec<PathBuf>, BuildError> {
    let root = workspace()?;
    let mut command = static_cargo(&root, "test")?;
    command.args([
        "--package",
        "hypernest",
        "--test",
        "vm",
        "--no-run",
        "--message-format",
        "json",
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = OwnedChild::spawn(&mut command)?;
    let mut text = String::new();
    if let Some(from) = &mut child.child().stdout {
        std::io::Read::read_to_string(from, &mut text)?;
    }
    if !child.wait()?.success() {
        return Err(BuildError::Failed);
    }
    let suites: Vec<PathBuf> = text.lines().filter_map(test_executable).collect();
    if suites.is_empty() {
        Err(BuildError::NotBuilt("tests for hosts"))
    } else {
        Ok(suites)
    }
}

/// The executable in a line of cargo's JSON messages.
fn test_executable(line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let is_test = message["target"]["kind"]
        .as_array()?
        .iter()
        .any(|kind| kind == "test");
    let executable = message["executable"].as_str()?;
    is_test.then(|| PathBuf::from(executable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_executables_count() {
        for (line, wanted) in [
            (
                r#"{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":"/x/vm-1"}"#,
                Some("/x/vm-1"),
            ),
            (
                r#"{"reason":"compiler-artifact","target":{"kind":["bin"]},"executable":"/x/hypernest"}"#,
                None,
            ),
            (
                r#"{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":null}"#,
                None,
            ),
            (r#"{"reason":"build-finished","success":true}"#, None),
            ("not json", None),
        ] {
            assert_eq!(test_executable(line), wanted.map(PathBuf::from), "{line}");
        }
    }
}
