//! Firmware that a distribution has installed: by the descriptions that its packages leave for VMMs (QEMU's
//! docs/interop/firmware.json), or at the places where packages without descriptions have it.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What kind of firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirmwareKind {
    /// UEFI: OVMF.
    Uefi,
    /// A PC's BIOS: SeaBIOS.
    Bios,
}

/// Firmware that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledFirmware {
    /// Its code.
    pub code: PathBuf,
    /// Its variables for a new VM.
    pub template: Option<PathBuf>,
}

impl FirmwareKind {
    /// Their names in the configuration.
    pub const NAMES: [(&str, Self); 2] = [("uefi", Self::Uefi), ("seabios", Self::Bios)];

    /// The packages that have it.
    pub fn packages(self) -> &'static str {
        match self {
            Self::Uefi => "ovmf (Debian, Ubuntu) or edk2-ovmf (Fedora, Arch)",
            Self::Bios => "seabios",
        }
    }

    /// In descriptions.
    fn interface(self) -> &'static str {
        match self {
            Self::Uefi => "uefi",
            Self::Bios => "bios",
        }
    }

    /// Code, and the variables beside it.
    fn places(self) -> &'static [(&'static str, Option<&'static str>)] {
        match self {
            Self::Uefi => &[
                (
                    "/usr/share/OVMF/OVMF_CODE_4M.fd",
                    Some("/usr/share/OVMF/OVMF_VARS_4M.fd"),
                ),
                (
                    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
                    Some("/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
                ),
                (
                    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
                    Some("/usr/share/edk2/ovmf/OVMF_VARS.fd"),
                ),
            ],
            Self::Bios => &[
                ("/usr/share/seabios/bios-256k.bin", None),
                ("/usr/share/qemu/bios-256k.bin", None),
            ],
        }
    }
}

/// The firmware of this kind that this host has, if it has any. Firmware that needs System Management Mode is
/// left out.
pub fn installed(kind: FirmwareKind) -> Option<InstalledFirmware> {
    let user = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let user = user.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".config")));
    let user = user.map(|config| config.join("qemu/firmware"));
    let directories = ["/usr/share/qemu/firmware", "/etc/qemu/firmware"].map(PathBuf::from);
    let directories: Vec<_> = directories.into_iter().chain(user).collect();
    described(kind, &directories).or_else(|| at_places(kind))
}

fn at_places(kind: FirmwareKind) -> Option<InstalledFirmware> {
    let mut places = kind
        .places()
        .iter()
        .map(|(code, template)| InstalledFirmware {
            code: PathBuf::from(code),
            template: template.map(PathBuf::from),
        });
    places.find(InstalledFirmware::is_there)
}

impl InstalledFirmware {
    fn is_there(&self) -> bool {
        self.code.is_file() && self.template.as_ref().is_none_or(|path| path.is_file())
    }
}

/// The first by the names of the descriptions; a later directory's replaces an earlier one's of that name.
fn described(kind: FirmwareKind, directories: &[PathBuf]) -> Option<InstalledFirmware> {
    let mut files = BTreeMap::new();
    for directory in directories {
        // Most hosts have only the first directory, if any.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|e| e == "json") {
                files.insert(entry.file_name(), entry.path());
            }
        }
    }
    let mut found = files.values().filter_map(|path| read(kind, path));
    found.find(InstalledFirmware::is_there)
}

fn read(kind: FirmwareKind, path: &Path) -> Option<InstalledFirmware> {
    /// No description is a hundredth of this.
    const MOST: u64 = 1 << 20;
    // A description that cannot be read, or that says something else, is none for this kind.
    let len = fs::metadata(path).ok()?.len();
    let text = (len <= MOST).then(|| fs::read_to_string(path).ok())??;
    let description: Description = serde_json::from_str(&text).ok()?;
    description.fits(kind)
}

/// What matters of a description.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Description {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    mode: Option<String>,
    executable: Option<Flash>,
    nvram_template: Option<Flash>,
    filename: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Flash {
    filename: PathBuf,
    format: String,
}

#[derive(Debug, Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

impl Description {
    fn fits(self, kind: FirmwareKind) -> Option<InstalledFirmware> {
        const UNFIT: [&str; 4] = ["requires-smm", "amd-sev", "amd-sev-es", "intel-tdx"];
        let is_for_q35 = self.targets.iter().any(|target| {
            let mut machines = target.machines.iter();
            target.architecture == "x86_64" && machines.any(|name| name.starts_with("pc-q35"))
        });
        let unfit = self.features.iter().any(|name| UNFIT.contains(&&**name));
        let fits = self
            .interface_types
            .iter()
            .any(|name| name == kind.interface());
        if !is_for_q35 || unfit || !fits {
            return None;
        }
        let mapping = self.mapping;
        match (&*mapping.device, mapping.executable) {
            ("memory", None) => Some(InstalledFirmware {
                code: mapping.filename?,
                template: None,
            }),
            ("flash", Some(code)) => {
                let split = mapping.mode.as_deref().unwrap_or("split") == "split";
                let template = mapping.nvram_template;
                let raw = |flash: &Flash| flash.format == "raw";
                let all_raw = raw(&code) && template.as_ref().is_none_or(raw);
                (split && all_raw).then(|| InstalledFirmware {
                    code: code.filename,
                    template: template.map(|flash| flash.filename),
                })
            }
            _ => None,
        }
    }
}

/// The variables that belong to the code at `path` by the names that all distributions give: `CODE` is `VARS`
/// there.
pub fn template_beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let template = path.with_file_name(name.replace("CODE", "VARS"));
    (template != path && template.is_file()).then_some(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(code: &Path, template: &str, features: &str) -> String {
        let code = code.display();
        format!(
            r#"{{"description": "x", "interface-types": ["uefi"], "mapping": {{"device": "flash",
            "executable": {{"filename": "{code}", "format": "raw"}},
            "nvram-template": {{"filename": "{template}", "format": "raw"}}}},
            "targets": [{{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}}],
            "features": [{features}], "tags": []}}"#
        )
    }

    #[test]
    fn the_first_description_that_fits_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let [code, other, vars] = ["CODE.fd", "other.fd", "VARS.fd"].map(|name| {
            let path = dir.path().join(name);
            fs::write(&path, name).unwrap();
            path
        });
        let [package, admin] = ["package", "admin"].map(|name| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        });
        let vars = vars.to_str().unwrap().to_owned();
        let put = |dir: &Path, name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
        put(&package, "10-broken.json", "{");
        put(
            &package,
            "20-smm.json",
            &description(&other, &vars, "\"requires-smm\""),
        );
        put(
            &package,
            "30-gone.json",
            &description(&dir.path().join("gone"), &vars, ""),
        );
        put(
            &package,
            "60-plain.json",
            &description(&code, &vars, "\"acpi-s3\""),
        );
        put(&package, "70-later.json", &description(&other, &vars, ""));
        let directories = [package, admin.clone(), dir.path().join("none")];
        let found = described(FirmwareKind::Uefi, &directories).unwrap();
        assert_eq!(
            (found.code, found.template),
            (code.clone(), Some(vars.clone().into()))
        );
        assert_eq!(described(FirmwareKind::Bios, &directories), None);
        // The administrator's replaces the package's.
        put(&admin, "60-plain.json", &description(&other, &vars, ""));
        let found = described(FirmwareKind::Uefi, &directories).unwrap();
        assert_eq!(found.code, other);
        assert_eq!(template_beside(&code), Some(vars.into()));
        assert_eq!(template_beside(&other), None);
    }

    #[test]
    fn a_bios_is_a_file_in_memory() {
        let text = r#"{"interface-types": ["bios"], "mapping": {"device": "memory", "filename": "/b"},
            "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}], "features": []}"#;
        let description: Description = serde_json::from_str(text).unwrap();
        let found = description.fits(FirmwareKind::Bios).unwrap();
        assert_eq!((found.code, found.template), (PathBuf::from("/b"), None));
    }
}
