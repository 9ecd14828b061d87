//! The contents of an emulated host: the project's programs, KVM's modules, the plan, and the requested parts
//! of the lab's directory.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use super::{BootError, at, held};
use crate::binaries::Binaries;
use crate::cpio::Writer;
use crate::host::{Host, Machine};
use crate::plan::{self, LAB_DIR, Module, Plan};

/// The modules an emulated host loads, in order.
pub(crate) fn modules(host: Host, machine: &Machine) -> Vec<Module> {
    let disks = (!machine.disks.is_empty()).then_some("virtio-blk");
    ["irqbypass", "kvm", host.kvm_module()]
        .into_iter()
        .chain(disks)
        .map(|name| {
            let settings = machine.parameters.iter().filter(|p| p.module == name);
            let settings: Vec<_> = settings.map(|p| p.setting.as_str()).collect();
            Module {
                path: format!("/modules/{name}.ko"),
                parameters: settings.join(" "),
            }
        })
        .collect()
}

pub(super) fn write(
    into: &Path,
    host: Host,
    machine: &Machine,
    plan: &Plan,
    lab: &Path,
    binaries: &Binaries,
) -> Result<(), BootError> {
    let file = File::create(into).map_err(at(into))?;
    let mut archive = Writer::new(BufWriter::new(file));
    let mut copy = |to: &str, from: &Path| archive.copy(to, from).map_err(at(from));
    copy("init", &binaries.init)?;
    copy("bin/hypernest", &binaries.hypernest)?;
    copy("bin/hypernest-bench", &binaries.bench)?;
    copy("bin/l2probe", &binaries.l2probe)?;
    copy("bin/tscprobe", &binaries.tscprobe)?;
    let kernel = held(lab, "kernel", machine.kernel.directory())?;
    for module in modules(host, machine) {
        let name = module.path.trim_start_matches("/modules/").to_owned();
        copy(&module.path, &kernel.join("modules").join(name))?;
    }
    copy(
        &format!("{LAB_DIR}/busybox"),
        &held(lab, "busybox", "busybox")?,
    )?;
    for wanted in &machine.with {
        let from = held(lab, wanted, wanted)?;
        for file in files_below(&from)? {
            let below = file.strip_prefix(lab).unwrap_or(&file);
            copy(&format!("{LAB_DIR}/{}", below.display()), &file)?;
        }
    }
    for (from, to) in &machine.files {
        for file in files_below(from)? {
            let below = file.strip_prefix(from).unwrap_or(Path::new(""));
            let to = Path::new(to).join(below);
            // Joining an empty path would append a slash.
            let to = to.display().to_string();
            copy(to.trim_end_matches('/'), &file)?;
        }
    }
    let own = |error| at(into)(error);
    for applet in [
        "sh", "ls", "cat", "dmesg", "mount", "sleep", "grep", "ps", "env", "true", "false", "echo",
    ] {
        archive
            .symlink(&format!("bin/{applet}"), &format!("{LAB_DIR}/busybox"))
            .map_err(own)?;
    }
    // The console of init's own messages before it has mounted a file system.
    archive.character_device("dev/console", 5, 1).map_err(own)?;
    let json = serde_json::to_vec(plan).map_err(|error| own(error.into()))?;
    archive.file(plan::PATH, 0o644, &json).map_err(own)?;
    archive.finish().map_err(own)?;
    Ok(())
}

/// A file itself, or all files below a directory.
fn files_below(path: &Path) -> Result<Vec<PathBuf>, BootError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(at(path))? {
        files.extend(files_below(&entry.map_err(at(path))?.path())?);
    }
    files.sort();
    Ok(files)
}
