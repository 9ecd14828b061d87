//! What starts in the guest: a kernel with its files, or firmware.

use std::path::{Path, PathBuf};

use super::build::{Build, Files, command_line, known};
use super::parse;
use super::parse::Wrong;
use super::problem::Origin;
use crate::boot::find::{self, FirmwareKind, InstalledFirmware};
use crate::boot::{Boot, BootModule, FirmwareBoot, KernelBoot};
use crate::layout::MachineType;

/// The settings of a kernel that is started directly.
const OF_A_KERNEL: [&str; 4] = ["kernel", "initrd", "cmdline", "module"];

impl Build<'_> {
    pub(super) fn boot(&mut self, machine: MachineType) -> Option<Boot> {
        let kernel = self.kernel();
        if !self.is_given("firmware") {
            if let Some(part) = self.part("firmware-vars") {
                let wrong = Wrong::new(
                    "variables belong to firmware, and none is given",
                    "--firmware as well",
                );
                self.push("firmware-vars", &part.origin, wrong);
            }
            if !self.is_given("kernel") {
                let wrong = Wrong::new("no kernel is given", "what to boot, or --firmware");
                self.push("kernel", &Origin::Flag("kernel"), wrong);
            }
            return kernel.map(Boot::Kernel);
        }
        for key in OF_A_KERNEL {
            if let Some(part) = self.part(key) {
                let wrong = Wrong::new(
                    "a kernel and firmware cannot be combined",
                    "a kernel, or firmware that boots from a disk",
                );
                self.push(key, &part.origin, wrong);
            }
        }
        self.firmware(machine).map(Boot::Firmware)
    }

    fn is_given(&self, key: &'static str) -> bool {
        self.part(key).is_some() || self.draft.attempted(key)
    }

    fn kernel(&mut self) -> Option<KernelBoot> {
        let kernel = self.path("kernel");
        let initrd = self.path("initrd");
        for (key, path) in [("kernel", &kernel), ("initrd", &initrd)] {
            if let (Some(path), Some(part)) = (path, self.part(key)) {
                self.readable(key, &part.origin, path);
            }
        }
        let mut modules = Vec::new();
        for entry in self.draft.get(known("module")) {
            let mut parts = self.parts("module", &entry.parts);
            match parts.remove("path") {
                Some(part) => {
                    if let Some(path) = self.path_of("module", part) {
                        self.readable("module", &part.origin, &path);
                        let cmdline = parts
                            .remove("args")
                            .and_then(|part| self.parsed("module", part, command_line));
                        modules.push(BootModule {
                            path,
                            cmdline: cmdline.unwrap_or_default(),
                        });
                    }
                }
                None => {
                    let wrong = Wrong::new("the module has no path", "a file");
                    self.push("module", &entry.origin, wrong);
                }
            }
        }
        let cmdline = self.one("cmdline", command_line);
        Some(KernelBoot {
            kernel: kernel?,
            initrd,
            cmdline: cmdline.unwrap_or_default(),
            modules,
        })
    }

    fn firmware(&mut self, machine: MachineType) -> Option<FirmwareBoot> {
        let vars = self.path("firmware-vars");
        let parts = self.parts_of("firmware");
        let Some(part) = parts.get("path") else {
            let origin = self.part("firmware").map(|part| part.origin.clone());
            let wrong = Wrong::new("no firmware is named", "uefi, seabios or a file");
            self.push(
                "firmware",
                &origin.unwrap_or(Origin::Flag("firmware")),
                wrong,
            );
            return None;
        };
        let origin = &part.origin;
        if machine == MachineType::Direct1 {
            let wrong = Wrong::new(
                "the machine type direct-1 has no firmware",
                "--machine pc-1",
            );
            self.push("firmware", origin, wrong);
        }
        if let Some(part) = self.part("fw-cfg")
            && parse::boolean(&part.value) == Ok(false)
            && self.files == Files::MustBeThere
        {
            let wrong = Wrong::new("firmware needs fw_cfg", "true with firmware");
            self.push("fw-cfg", &part.origin, wrong);
        }
        let template = parts.get("template");
        let template = template.and_then(|part| {
            let path = self.path_of("firmware", part)?;
            self.readable("firmware", &part.origin, &path);
            Some(path)
        });
        let word = self.parsed("firmware", part, |v| {
            parse::text(v, "uefi, seabios or a file")
        })?;
        let kind = FirmwareKind::NAMES.iter().find(|(name, _)| *name == word);
        let found = match kind {
            Some((_, kind)) => match find::installed(*kind) {
                Some(found) => found,
                None => {
                    let wrong = Wrong::new(
                        format!(
                            "this host has no such firmware: install {}",
                            kind.packages()
                        ),
                        "firmware that is installed, or a file",
                    );
                    self.push("firmware", origin, wrong);
                    return None;
                }
            },
            None => {
                let code = self.path_of("firmware", part)?;
                self.readable("firmware", origin, &code);
                InstalledFirmware {
                    template: self.template_beside(&code),
                    code,
                }
            }
        };
        let template = template.or(found.template);
        if let (Some(path), Some(part)) = (&vars, self.part("firmware-vars")) {
            self.variables(path, &part.origin, template.is_some());
        }
        Some(FirmwareBoot {
            code: found.code,
            template,
            vars,
        })
    }

    fn template_beside(&self, code: &Path) -> Option<PathBuf> {
        // A saved VM has its variables.
        let new = self.files == Files::MustBeThere;
        new.then(|| find::template_beside(code)).flatten()
    }

    fn variables(&mut self, path: &Path, origin: &Origin, has_template: bool) {
        if self.files == Files::MayLack || has_template {
            return;
        }
        let wrong = Wrong::new(
            format!(
                "this firmware has no template of variables to make {} from",
                path.display()
            ),
            "--firmware FILE,template=FILE",
        );
        self.push("firmware-vars", origin, wrong);
    }
}
