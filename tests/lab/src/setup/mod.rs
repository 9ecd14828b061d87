//! `cargo lab setup`: puts emulators and kernels into the user's cache.

pub mod alpine;
pub mod apt;
pub mod chromium;
pub mod debian;
pub mod firmware;
pub mod newest;
pub mod sources;
mod tree;
pub mod version;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use thiserror::Error;

use self::apt::{AptError, Area};
use self::sources::Archive;
use self::tree::{Tree, Unpackers, at, copy};
use crate::bzimage::BzImageError;
use crate::cache::{Cache, Manifest};
use crate::host::Machine;
use crate::owned::OwnedDirectory;
use crate::progress::Steps;

/// QEMU as an AMD host: older versions corrupt EFLAGS under nested SVM (7.2) or abort on CR8 writes (10.0).
const QEMU_SUITES: [&str; 2] = ["trixie", "trixie-backports"];
/// Bochs 2.7: 3.x does not boot Linux with the CPU model that has eVMCS's prerequisites.
const BOCHS_SUITES: [&str; 2] = ["bookworm", "bookworm-security"];

/// Setup failed.
#[derive(Debug, Error)]
pub enum SetupError {
    /// A package failed.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// A file operation failed.
    #[error("{}: {error}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// A package lacks an expected file.
    #[error("not found: {path}")]
    NotInPackage {
        /// The file.
        path: String,
    },
    /// A kernel image that cannot be unpacked.
    #[error("{}: {error}", path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// Why it failed.
        error: BzImageError,
    },
    /// Unpacking failed.
    #[error("{program} could not unpack into {}: {output}", into.display())]
    Unpack {
        /// The program.
        program: &'static str,
        /// The file that it should have made.
        into: PathBuf,
        /// Its output.
        output: String,
    },
    /// The cache directory.
    #[error("the lab's cache directory: {0}")]
    Cache(io::Error),
    /// This machine cannot do something.
    #[error("{what} needs {missing}")]
    Lacks {
        /// What it should have done.
        what: String,
        /// What it would need.
        missing: String,
    },
    /// The machine has no apt, and no parts were given by flags.
    #[error(
        "this machine has no apt, so the lab cannot fetch its parts itself. Get these and name them:\n\
         \x20 AMD lab:   QEMU 11.1 or newer                        --qemu PATH/qemu-system-x86_64\n\
         \x20 Intel lab: Bochs 2.7 with VMX and corei7_skylake_x    --bochs PATH/bochs --bochs-share DIR\n\
         \x20            isolinux.bin and ldlinux.c32               --isolinux DIR\n\
         \x20            genisoimage                                on the PATH\n\
         \x20 both:      a Linux 6.12 with KVM as modules           --kernel 6.12=DIR (holds vmlinuz and \
         modules)\n\
         \x20            busybox, statically linked                 --busybox PATH\n\
         \x20 also on the PATH: xz, zstd, lz4, gzip, objcopy"
    )]
    NoApt,
}

/// Parts from other sources than the distribution's packages.
#[derive(Debug, Clone, Default, Args)]
pub struct Given {
    /// QEMU 11.1 or newer, for the AMD lab.
    #[arg(long, value_name = "PATH", env = "HYPERNEST_LAB_QEMU")]
    pub qemu: Option<PathBuf>,
    /// Bochs 2.7, for the Intel lab. One built without its debugger is 2.5 times as fast.
    #[arg(long, value_name = "PATH", env = "HYPERNEST_LAB_BOCHS")]
    pub bochs: Option<PathBuf>,
    /// The directory with Bochs's BIOS-bochs-latest and VGABIOS-lgpl-latest.
    #[arg(long, value_name = "DIR")]
    pub bochs_share: Option<PathBuf>,
    /// The directory with isolinux.bin and ldlinux.c32.
    #[arg(long, value_name = "DIR")]
    pub isolinux: Option<PathBuf>,
    /// A kernel, as 6.12=DIR: vmlinuz and modules somewhere below DIR.
    #[arg(long, value_name = "SERIES=DIR", value_parser = parse_kernel)]
    pub kernel: Vec<(String, PathBuf)>,
    /// A statically linked busybox.
    #[arg(long, value_name = "PATH")]
    pub busybox: Option<PathBuf>,
    /// A Debian archive to use instead of the configured one.
    #[arg(long, value_name = "ADDRESS")]
    pub mirror: Option<String>,
}

fn parse_kernel(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((series @ ("6.12" | "6.1" | "newest"), directory)) => {
            Ok((series.to_owned(), directory.into()))
        }
        _ => Err("expected 6.12=DIR, 6.1=DIR or newest=DIR".to_owned()),
    }
}

fn say(text: &str) {
    eprintln!("lab setup: {text}");
}

/// The cache's contents, built first if needed.
pub fn ensure(cache: &Cache) -> Result<Manifest, SetupError> {
    match cache.manifest() {
        Some(manifest) => Ok(manifest),
        None => setup(cache, &Given::default(), false),
    }
}

/// Fills the cache. With `refresh`, or for the given parts, existing contents are rebuilt.
pub fn setup(cache: &Cache, given: &Given, refresh: bool) -> Result<Manifest, SetupError> {
    let lock = cache.lock(|| say("waiting for another setup to end"));
    let _lock = lock.map_err(SetupError::Cache)?;
    let anew = refresh || given.any();
    if let Some(manifest) = cache.manifest()
        && !anew
    {
        return Ok(manifest);
    }
    let making = OwnedDirectory::new(&cache.making(), "setup").map_err(SetupError::Cache)?;
    let making = making.path();
    let finished = making.join("finished");
    let mut manifest = Manifest::default();
    if apt::there() {
        from_packages(making, &finished, given, &mut manifest)?;
    } else if !given.any() {
        return Err(SetupError::NoApt);
    }
    from_given(&finished, given, &mut manifest)?;
    cache
        .replace(&finished, &manifest)
        .map_err(SetupError::Cache)?;
    say(&format!("ready in {}", cache.held().display()));
    Ok(manifest)
}

/// A part of the lab that is large or rarely needed, and therefore made when it is first needed.
#[derive(Debug, Clone, Copy)]
pub struct Optional {
    /// Its directory in the lab's directory.
    pub directory: &'static str,
    /// Its name in messages.
    pub name: &'static str,
    /// Makes it: with a directory for what is unfinished, in an empty directory.
    make: fn(&Path, &Path) -> Result<(), SetupError>,
}

impl Optional {
    const ALL: [Optional; 5] = [
        alpine::PART,
        chromium::PART,
        debian::PART,
        firmware::PART,
        newest::PART,
    ];

    /// The one that contains a path in the lab's directory.
    pub fn of(path: &str) -> Option<Self> {
        let first = path.split('/').next();
        Self::ALL
            .into_iter()
            .find(|part| first == Some(part.directory))
    }

    /// Adds it to the lab's directory, if it is missing.
    pub fn ensure(self, cache: &Cache) -> Result<(), SetupError> {
        let place = cache.held().join(self.directory);
        if place.exists() {
            return Ok(());
        }
        let lock = cache.lock(|| say("waiting for another setup to end"));
        let _lock = lock.map_err(SetupError::Cache)?;
        if place.exists() {
            return Ok(());
        }
        say(&format!("getting {} from packages", self.name));
        let making = OwnedDirectory::new(&cache.making(), self.directory);
        let making = making.map_err(SetupError::Cache)?;
        let finished = making.path().join("finished");
        fs::create_dir(&finished).map_err(at(&finished))?;
        (self.make)(making.path(), &finished)?;
        fs::rename(&finished, &place).map_err(at(&place))
    }
}

/// Adds the parts that `machine` uses and that are missing.
pub fn ensure_parts(cache: &Cache, machine: &Machine) -> Result<(), SetupError> {
    for path in machine.parts() {
        if let Some(part) = Optional::of(path) {
            part.ensure(cache)?;
        }
    }
    Ok(())
}

impl Given {
    fn any(&self) -> bool {
        self.qemu.is_some()
            || self.bochs.is_some()
            || self.bochs_share.is_some()
            || self.isolinux.is_some()
            || !self.kernel.is_empty()
            || self.busybox.is_some()
    }
}

fn from_packages(
    making: &Path,
    finished: &Path,
    given: &Given,
    manifest: &mut Manifest,
) -> Result<(), SetupError> {
    say(&format!(
        "downloads packages from this machine's archive, takes about 2 min on two cores and 0.4 GB below \
         {}; nothing is \
         installed",
        making.parent().unwrap_or(making).display()
    ));
    let mut steps = Steps::new(
        "lab setup",
        &[
            ("reading package lists", 15),
            ("downloading QEMU and tools", 15),
            ("downloading Bochs", 10),
            ("downloading kernels and Xen", 20),
            ("unpacking", 60),
        ],
    );
    let archives = match &given.mirror {
        Some(uri) => sources::Archives {
            main: Archive {
                uri: uri.clone(),
                signed_by: None,
                trusted: false,
            },
            security: None,
        },
        None => apt::archives()?,
    };
    steps.begin();
    let new = Area::open(&making.join("apt-new"), &archives, &QEMU_SUITES)?;
    let old = Area::open(&making.join("apt-old"), &archives, &BOCHS_SUITES)?;
    let (linux_612, linux_612_version) = new.kernel("linux-image-cloud-amd64", "6.12")?;
    let (linux_61, linux_61_version) = old.kernel("linux-image-cloud-amd64", "6.1")?;
    let (linux_dom0, linux_dom0_version) = old.kernel("linux-image-amd64", "6.1")?;

    steps.begin();
    new.closure(
        Some("trixie-backports"),
        &[
            "qemu-system-x86",
            "qemu-system-data",
            "seabios",
            "isolinux",
            "syslinux-common",
            "genisoimage",
            "acpica-tools",
            "busybox-static",
            "passt",
            "iproute2",
            "iperf3",
            "zstd",
            "lz4",
            "xz-utils",
        ],
    )?;
    steps.begin();
    old.closure(None, &["bochs", "bochs-term"])?;
    steps.begin();
    new.download(&[&linux_612])?;
    old.download(&[&linux_61, &linux_dom0, "xen-hypervisor-4.17-amd64"])?;

    steps.begin();
    let is_kernel = |package: &str| package.starts_with("linux-image-");
    let (new_root, old_root) = (making.join("new"), making.join("old"));
    new.unpack(&new_root, |package| !is_kernel(package))?;
    old.unpack(&old_root, |package| !is_kernel(package))?;
    let unpackers = Unpackers::Tree(Tree::new(new_root.clone()));
    for (area, package, name, version) in [
        (&new, &linux_612, "linux-6.12", &linux_612_version),
        (&old, &linux_61, "linux-6.1", &linux_61_version),
        (&old, &linux_dom0, "linux-dom0", &linux_dom0_version),
    ] {
        say(&format!("{name}: Debian {version}"));
        let root = making.join(package);
        area.unpack(&root, |candidate| candidate == package)?;
        tree::kernel(&root, &finished.join(name), &unpackers)?;
        manifest.versions.insert(name.to_owned(), version.clone());
    }
    programs(
        &Tree::new(new_root),
        &Tree::new(old_root),
        finished,
        &unpackers,
    )?;
    for (area, package, name) in [
        (&new, "qemu-system-x86", "qemu"),
        (&old, "bochs", "bochs"),
        (&old, "xen-hypervisor-4.17-amd64", "xen"),
        (&new, "busybox-static", "busybox"),
        (&new, "acpica-tools", "iasl"),
        (&new, "passt", "passt"),
    ] {
        if let Some(version) = area.version(package) {
            manifest.versions.insert(name.to_owned(), version);
        }
    }
    Ok(())
}

/// Firmware that QEMU needs for a PC; its packages also contain that of many other machines.
const QEMU_ROMS: [&str; 10] = [
    "bios-256k.bin",
    "bios-microvm.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "multiboot_dma.bin",
    "pvh.bin",
    "qboot.rom",
    "vgabios-stdvga.bin",
    "efi-e1000e.rom",
    "efi-virtio.rom",
];

/// Programs for the network of a lab host.
const NET_PROGRAMS: [(&str, &str); 4] = [
    ("bin", "passt"),
    ("bin", "ip"),
    ("sbin", "bridge"),
    ("bin", "iperf3"),
];

fn programs(
    new: &Tree,
    old: &Tree,
    finished: &Path,
    unpackers: &Unpackers,
) -> Result<(), SetupError> {
    let qemu = finished.join("qemu");
    let program = new.find(&["usr/bin/qemu-system-x86_64"])?;
    new.bundle(&qemu, &program, &[], "", "-L \"$here/share\" ")?;
    for rom in QEMU_ROMS {
        let from = new.find(&[
            &format!("usr/share/qemu/{rom}"),
            &format!("usr/share/seabios/{rom}"),
            &format!("usr/lib/ipxe/qemu/{rom}"),
        ])?;
        copy(&from, &qemu.join("share").join(rom))?;
    }

    let bochs = finished.join("bochs");
    let plugins = old.find(&["usr/lib/x86_64-linux-gnu/bochs/plugins"])?;
    let mut libraries = Vec::new();
    for entry in fs::read_dir(&plugins).map_err(at(&plugins))? {
        let path = entry.map_err(at(&plugins))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        // The C library's module loader looks for the plain name.
        if name.ends_with(".so") {
            copy(&path, &bochs.join("plugins").join(name))?;
            if name.ends_with("_gui.so") {
                libraries.push(path);
            }
        }
    }
    let program = old.find(&["usr/bin/bochs-bin"])?;
    let environment = "export LTDL_LIBRARY_PATH=\"$here/plugins\" BXSHARE=\"$here/share\"\n";
    old.bundle(&bochs, &program, &libraries, environment, "")?;
    fs::rename(bochs.join("bochs-bin"), bochs.join("bochs")).map_err(at(&bochs))?;
    for rom in ["BIOS-bochs-latest", "VGABIOS-lgpl-latest"] {
        copy(
            &old.find(&[&format!("usr/share/bochs/{rom}")])?,
            &bochs.join("share").join(rom),
        )?;
    }

    let iso = finished.join("iso");
    new.bundle(&iso, &new.find(&["usr/bin/genisoimage"])?, &[], "", "")?;
    copy(
        &new.find(&["usr/lib/ISOLINUX/isolinux.bin"])?,
        &iso.join("isolinux.bin"),
    )?;
    copy(
        &new.find(&["usr/lib/syslinux/modules/bios/ldlinux.c32"])?,
        &iso.join("ldlinux.c32"),
    )?;

    new.bundle(
        &finished.join("iasl"),
        &new.find(&["usr/bin/iasl"])?,
        &[],
        "",
        "",
    )?;
    let net = finished.join("net");
    for (directory, name) in NET_PROGRAMS {
        let program = new.find(&[&format!("usr/{directory}/{name}")])?;
        new.bundle(&net, &program, &[], "", "")?;
    }
    // Loaded by name when iperf3 cancels a thread (pthread_cancel(3), NOTES of glibc).
    let unwinder = "libgcc_s.so.1";
    copy(
        &new.find(&[&format!("usr/lib/x86_64-linux-gnu/{unwinder}")])?,
        &net.join("lib").join(unwinder),
    )?;
    copy(
        &new.find(&["usr/bin/busybox", "bin/busybox"])?,
        &finished.join("busybox"),
    )?;
    let xen = old.find(&["boot/xen-4.17-amd64.gz"])?;
    let packed = fs::read(&xen).map_err(at(&xen))?;
    unpackers.unpack(
        crate::bzimage::Packing::Gzip,
        &packed,
        &finished.join("xen"),
    )
}

fn from_given(finished: &Path, given: &Given, manifest: &mut Manifest) -> Result<(), SetupError> {
    let link = |from: &Option<PathBuf>, to: &str| -> Result<bool, SetupError> {
        let Some(from) = from else { return Ok(false) };
        let from = fs::canonicalize(from).map_err(at(from))?;
        let to = finished.join(to);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        let gone = if to.is_dir() {
            fs::remove_dir_all(&to)
        } else {
            fs::remove_file(&to)
        };
        match gone {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&to)(error)),
            _ => {}
        }
        std::os::unix::fs::symlink(&from, &to).map_err(at(&to))?;
        Ok(true)
    };
    let mut note = |name: &str, path: &Option<PathBuf>| {
        if let Some(path) = path {
            manifest
                .versions
                .insert(name.to_owned(), format!("given: {}", path.display()));
        }
    };
    for (from, to, name) in [
        (&given.qemu, "qemu/qemu-system-x86_64", "qemu"),
        (&given.bochs, "bochs/bochs", "bochs"),
        (&given.bochs_share, "bochs/share", "bochs-share"),
        (&given.isolinux, "iso", "isolinux"),
        (&given.busybox, "busybox", "busybox"),
    ] {
        if link(from, to)? {
            note(name, from);
        }
    }
    for (series, directory) in &given.kernel {
        let name = format!("linux-{series}");
        let into = finished.join(&name);
        fs::create_dir_all(&into).map_err(at(&into))?;
        tree::kernel(directory, &into, &Unpackers::Machine)?;
        note(&name, &Some(directory.clone()));
    }
    Ok(())
}
