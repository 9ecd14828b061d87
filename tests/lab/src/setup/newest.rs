//! The newest kernel of the archive's backports, for tests that move VMs between kernels. It is fetched when
//! it is first used.

use std::fs;
use std::path::Path;

use super::apt::{self, Area};
use super::tree::{self, Tree, Unpackers, at};
use super::{Optional, SetupError, say};

/// The previous release provides the tools that unpack a kernel.
const SUITES: [&str; 2] = ["trixie", "trixie-backports"];

/// Its part of the lab.
pub const PART: Optional = Optional {
    directory: "linux-newest",
    name: "the newest kernel",
    make,
};

fn make(making: &Path, finished: &Path) -> Result<(), SetupError> {
    let area = Area::open(&making.join("apt"), &apt::archives()?, &SUITES)?;
    let (image, version) = area.newest_kernel("linux-image-cloud-amd64")?;
    say(&format!("Debian {version}"));
    // Since Linux 6.19 the image package is empty; the kernel and its modules are in separate packages.
    let parts = ["binary", "modules"].map(|part| image.replacen("image", part, 1));
    area.download(&[&parts[0], &parts[1]])?;
    area.closure(None, &["zstd", "lz4", "xz-utils"])?;
    let (kernel, tools) = (making.join("kernel"), making.join("tools"));
    area.unpack(&kernel, |package| parts.iter().any(|part| part == package))?;
    area.unpack(&tools, |package| !parts.iter().any(|part| part == package))?;
    let unpackers = Unpackers::Tree(Tree::new(tools));
    tree::kernel(&kernel, finished, &unpackers)?;
    let version_file = finished.join("version");
    fs::write(&version_file, &version).map_err(at(&version_file))
}
