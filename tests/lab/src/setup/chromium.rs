//! A headless Chromium, for the one test that examines a page. It is large, so it is fetched when that test
//! is run.

use std::fs;
use std::path::Path;

use super::apt::{self, Area};
use super::tree::{LOADER, Tree, at, copy, write_script};
use super::{Optional, SetupError};

/// It, among the parts of the lab that are made when they are first needed.
pub const PART: Optional = Optional {
    directory: CHROMIUM,
    name: "Chromium",
    make,
};

/// Its path in the lab's directory, and its name in a test's stage.
pub const CHROMIUM: &str = "chromium";

const SUITES: [&str; 2] = ["trixie", "trixie-security"];
const PACKAGES: [&str; 2] = ["chromium-headless-shell", "fonts-dejavu-core"];
const DIRECTORY: &str = "usr/lib/chromium";
const PROGRAM: &str = "chromium-headless-shell";

/// Only fonts beside this file, so that a page looks the same everywhere.
const FONTS: &str = "<?xml version=\"1.0\"?>\n\
    <!DOCTYPE fontconfig SYSTEM \"urn:fontconfig:fonts.dtd\">\n\
    <fontconfig><dir prefix=\"relative\">fonts</dir></fontconfig>\n";

/// A script that starts Chromium from any location of its directory. Chromium searches its data beside the
/// executable that the kernel reports, which is the loader; for its other processes it would start the
/// loader, too, hence the path. It only shows the tests' own pages, so it runs without a sandbox, which needs
/// a privilege that not every machine grants.
fn script() -> String {
    format!(
        "#!/bin/sh\nhere=$(cd \"${{0%/*}}\" && pwd)\nexport FONTCONFIG_FILE=\"$here/fonts.conf\"\n\
         exec \"$here/bin/{LOADER}\" --library-path \"$here/lib\" \"$here/bin/{PROGRAM}\" \
         --no-sandbox --no-zygote --browser-subprocess-path=\"$here/{CHROMIUM}\" \"$@\"\n"
    )
}

fn make(making: &Path, finished: &Path) -> Result<(), SetupError> {
    let area = Area::open(&making.join("apt"), &apt::archives()?, &SUITES)?;
    area.closure(None, &PACKAGES)?;
    let root = making.join("root");
    area.unpack(&root, |_| true)?;
    gather(&Tree::new(root), finished)
}

/// The program with its data, libraries and fonts.
fn gather(tree: &Tree, into: &Path) -> Result<(), SetupError> {
    let program = tree.find(&[&format!("{DIRECTORY}/{PROGRAM}")])?;
    for (name, path) in tree.libraries(std::slice::from_ref(&program))? {
        copy(&path, &into.join("lib").join(name))?;
    }
    let bin = into.join("bin");
    copy(&tree.loader()?, &bin.join(LOADER))?;
    copy(&program, &bin.join(PROGRAM))?;
    with_endings(&tree.find(&[DIRECTORY])?, &["pak", "dat", "bin"], &bin)?;
    let fonts = tree.find(&["usr/share/fonts/truetype/dejavu"])?;
    with_endings(&fonts, &["ttf"], &into.join("fonts"))?;
    let conf = into.join("fonts.conf");
    fs::write(&conf, FONTS).map_err(at(&conf))?;
    write_script(&into.join(CHROMIUM), &script())
}

fn with_endings(from: &Path, endings: &[&str], into: &Path) -> Result<(), SetupError> {
    for entry in fs::read_dir(from).map_err(at(from))? {
        let path = entry.map_err(at(from))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if let (true, Some(name)) = (
            ending.is_some_and(|ending| endings.contains(&ending)),
            path.file_name(),
        ) {
            copy(&path, &into.join(name))?;
        }
    }
    Ok(())
}
