//! The newest kernel of the archive's backports, for tests that move VMs between kernels. It is fetched when
//! it is first used.

use std::fs;

use super::apt::{self, Area};
use super::tree::{self, Tree, Unpackers, at};
use super::{SetupError, say};
use crate::cache::Cache;
use crate::host::{Kernel, Machine};
use crate::owned::OwnedDirectory;

/// The previous release provides the tools that unpack a kernel.
const SUITES: [&str; 2] = ["trixie", "trixie-backports"];

/// Adds it to the lab's directory, if `machine` runs it and it is missing.
pub fn ensure(cache: &Cache, machine: &Machine) -> Result<(), SetupError> {
    let name = Kernel::Newest.directory();
    let place = cache.held().join(name);
    if machine.kernel != Kernel::Newest || place.exists() {
        return Ok(());
    }
    let lock = cache.lock(|| say("waiting for another setup to end"));
    let _lock = lock.map_err(SetupError::Cache)?;
    if place.exists() {
        return Ok(());
    }
    if !apt::there() {
        return Err(SetupError::NotInPackage {
            path: "the newest kernel: there is no apt; pass --kernel newest=DIR to cargo lab setup"
                .to_owned(),
        });
    }
    let making = OwnedDirectory::new(&cache.making(), name).map_err(SetupError::Cache)?;
    let making = making.path();
    let area = Area::open(&making.join("apt"), &apt::archives()?, &SUITES)?;
    let (image, version) = area.newest_kernel("linux-image-cloud-amd64")?;
    say(&format!("{name}: downloading Debian {version}"));
    // Since Linux 6.19 the image package is empty; the kernel and its modules are in separate packages.
    let parts = ["binary", "modules"].map(|part| image.replacen("image", part, 1));
    area.download(&[&parts[0], &parts[1]])?;
    area.closure(None, &["zstd", "lz4", "xz-utils"])?;
    let (kernel, tools) = (making.join("kernel"), making.join("tools"));
    area.unpack(&kernel, |package| parts.iter().any(|part| part == package))?;
    area.unpack(&tools, |package| !parts.iter().any(|part| part == package))?;
    let finished = making.join("finished");
    let unpackers = Unpackers::Tree(Tree::new(tools));
    tree::kernel(&kernel, &finished, &unpackers)?;
    let version_file = finished.join("version");
    fs::write(&version_file, &version).map_err(at(&version_file))?;
    fs::rename(&finished, &place).map_err(at(&place))
}
