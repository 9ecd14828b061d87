//! Programs and kernels from unpacked packages, in the form that lab hosts use.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::SetupError;
use super::apt::{command, run};
use crate::bzimage;
use crate::owned::OwnedChild;

pub(super) const LOADER: &str = "ld-linux-x86-64.so.2";

/// The root of some unpacked packages.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> SetupError {
    let path = path.to_owned();
    move |error| SetupError::File { path, error }
}

pub(super) fn copy(from: &Path, to: &Path) -> Result<(), SetupError> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    fs::copy(from, to).map_err(at(from))?;
    Ok(())
}

/// The path in `finished`, which becomes the directory that `file` names first, of the rest of `file`.
pub(super) fn below(finished: &Path, file: &str) -> PathBuf {
    let name = file.split_once('/').map_or(file, |(_, name)| name);
    finished.join(name)
}

impl Tree {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The first of `paths` that exists.
    pub(super) fn find(&self, paths: &[&str]) -> Result<PathBuf, SetupError> {
        let mut candidates = paths.iter().map(|path| self.root.join(path));
        candidates
            .find(|path| path.exists())
            .ok_or_else(|| SetupError::NotInPackage {
                path: paths.join(" or "),
            })
    }

    fn library_directories(&self) -> Vec<PathBuf> {
        [
            "usr/lib/x86_64-linux-gnu",
            "lib/x86_64-linux-gnu",
            "usr/lib/x86_64-linux-gnu/pulseaudio",
        ]
        .iter()
        .map(|path| self.root.join(path))
        .filter(|path| path.is_dir())
        .collect()
    }

    pub(super) fn loader(&self) -> Result<PathBuf, SetupError> {
        self.find(&[
            &format!("usr/lib/x86_64-linux-gnu/{LOADER}"),
            &format!("lib/x86_64-linux-gnu/{LOADER}"),
        ])
    }

    fn library_path(&self) -> String {
        let directories = self.library_directories();
        let directories: Vec<_> = directories
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        directories.join(":")
    }

    /// A command for a program of the tree, run with the tree's own libraries.
    pub(super) fn command(&self, program: &Path) -> Result<Command, SetupError> {
        let loader = self.loader()?.display().to_string();
        let mut command = command(&loader)?;
        command
            .arg("--library-path")
            .arg(self.library_path())
            .arg(program);
        Ok(command)
    }

    /// The libraries that some programs or libraries need, by the requested name.
    pub(super) fn libraries(
        &self,
        of: &[PathBuf],
    ) -> Result<BTreeMap<String, PathBuf>, SetupError> {
        let loader = self.loader()?.display().to_string();
        let mut found = BTreeMap::new();
        let mut queue: VecDeque<&PathBuf> = of.iter().collect();
        while let Some(file) = queue.pop_front() {
            let mut list = command(&loader)?;
            list.args(["--library-path", &self.library_path(), "--list"])
                .arg(file);
            let text = run(
                &format!("listing the libraries of {}", file.display()),
                &mut list,
            )?;
            found.extend(parse_list(&String::from_utf8_lossy(&text)));
        }
        Ok(found)
    }

    /// Copies a program with its libraries into `into`, and writes a script `into/NAME` that starts it from
    /// any location of the directory. `more` are libraries that it loads later; `arguments` precede the
    /// user's.
    pub(super) fn bundle(
        &self,
        into: &Path,
        program: &Path,
        more: &[PathBuf],
        environment: &str,
        arguments: &str,
    ) -> Result<(), SetupError> {
        let name = program.file_name().unwrap_or_default();
        let mut files = vec![program.to_owned()];
        files.extend(more.iter().cloned());
        let libraries = into.join("lib");
        for (name, path) in self.libraries(&files)? {
            copy(&path, &libraries.join(name))?;
        }
        copy(&self.loader()?, &libraries.join(LOADER))?;
        copy(program, &into.join("bin").join(name))?;
        let name = name.display();
        let script = format!(
            "#!/bin/sh\nhere=${{0%/*}}\n{environment}exec \"$here/lib/{LOADER}\" --library-path \
             \"$here/lib\" \"$here/bin/{name}\" {arguments}\"$@\"\n"
        );
        write_script(&into.join(name.to_string()), &script)
    }
}

pub(super) fn write_script(path: &Path, text: &str) -> Result<(), SetupError> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).map_err(at(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(at(path))
}

/// Parses the output of `ld.so --list`: `NAME => PATH (ADDRESS)`.
fn parse_list(text: &str) -> BTreeMap<String, PathBuf> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.trim().split_once(" => ")?;
            let (path, _) = rest.rsplit_once(" (")?;
            let name = name.rsplit('/').next()?;
            Some((name.to_owned(), PathBuf::from(path)))
        })
        .collect()
}

/// The source of programs that unpack.
#[derive(Debug)]
pub(super) enum Unpackers {
    Machine,
    Tree(Tree),
}

impl Unpackers {
    fn command(&self, program: &str) -> Result<Command, SetupError> {
        match self {
            Unpackers::Tree(tree) if program != "gzip" => {
                tree.command(&tree.find(&[&format!("usr/bin/{program}")])?)
            }
            _ => Ok(command(program)?),
        }
    }

    /// Unpacks `data` into `into`.
    pub(super) fn unpack(
        &self,
        packing: bzimage::Packing,
        data: &[u8],
        into: &Path,
    ) -> Result<(), SetupError> {
        let (program, arguments) = packing.unpacker();
        let file = fs::File::create(into).map_err(at(into))?;
        let mut command = self.command(program)?;
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(file)
            .stderr(Stdio::piped());
        let failed = |output: String| SetupError::Unpack {
            program,
            into: into.to_owned(),
            output,
        };
        let mut child =
            OwnedChild::spawn(&mut command).map_err(|error| failed(error.to_string()))?;
        if let Some(mut input) = child.child().stdin.take() {
            // If it stops reading, its status has the reason.
            let _ = input.write_all(data);
        }
        let mut said = String::new();
        if let Some(errors) = &mut child.child().stderr {
            let _ = io::Read::read_to_string(errors, &mut said);
        }
        let status = child.wait().map_err(|error| failed(error.to_string()))?;
        if status.success() {
            Ok(())
        } else {
            Err(failed(said))
        }
    }
}

/// KVM and modules that a guest's own tools may need, by name. Not every kernel builds all of them as
/// modules.
const MODULES: [(&str, bool); 18] = [
    ("irqbypass", true),
    ("kvm", true),
    ("kvm-intel", true),
    ("kvm-amd", true),
    ("msr", false),
    ("cpuid", false),
    // Debian builds the rest of virtio into its cloud kernel.
    ("virtio-rng", false),
    ("virtio-blk", false),
    ("virtio-balloon", false),
    // Networks of a host, each after the modules that it needs.
    ("tun", false),
    ("dummy", false),
    ("veth", false),
    ("llc", false),
    ("stp", false),
    ("bridge", false),
    ("failover", false),
    ("net-failover", false),
    ("virtio-net", false),
];

/// Makes `into/{vmlinuz,vmlinux,config,modules/*.ko}` from a kernel package's files.
pub(super) fn kernel(package: &Path, into: &Path, unpackers: &Unpackers) -> Result<(), SetupError> {
    let files = files_below(package)?;
    let named = |prefix: &str| {
        files.iter().find(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name == prefix || name.starts_with(&format!("{prefix}-")))
        })
    };
    let image = named("vmlinuz").ok_or_else(|| SetupError::NotInPackage {
        path: format!("vmlinuz in {}", package.display()),
    })?;
    copy(image, &into.join("vmlinuz"))?;
    if let Some(config) = named("config") {
        copy(config, &into.join("config"))?;
    }
    vmlinux(image, &into.join("vmlinux"), unpackers)?;
    let modules = into.join("modules");
    fs::create_dir_all(&modules).map_err(at(&modules))?;
    for (name, needed) in MODULES {
        let source = files.iter().find(|path| {
            let file = path
                .file_name()
                .and_then(|file| file.to_str())
                .unwrap_or("");
            file.split_once('.').is_some_and(|(stem, ending)| {
                stem.replace('_', "-") == name
                    && ["ko", "ko.xz", "ko.zst", "ko.gz"].contains(&ending)
            })
        });
        match source {
            Some(source) => module(source, &modules.join(format!("{name}.ko")), unpackers)?,
            None if needed => {
                return Err(SetupError::NotInPackage {
                    path: format!("{name}.ko in {}", package.display()),
                });
            }
            None => {}
        }
    }
    Ok(())
}

/// The ELF kernel in a bzImage. It boots by PVH, without decompressing itself first.
pub(super) fn vmlinux(image: &Path, into: &Path, unpackers: &Unpackers) -> Result<(), SetupError> {
    let bytes = fs::read(image).map_err(at(image))?;
    let (packing, payload) = bzimage::payload(&bytes).map_err(|error| SetupError::Kernel {
        path: image.to_owned(),
        error,
    })?;
    unpackers.unpack(packing, payload, into)
}

/// Strips a module of debug data, type data and signature: it then loads four times as fast in an emulated
/// host.
fn module(source: &Path, into: &Path, unpackers: &Unpackers) -> Result<(), SetupError> {
    let packing = match source.extension().and_then(|ending| ending.to_str()) {
        Some("xz") => Some(bzimage::Packing::Xz),
        Some("zst") => Some(bzimage::Packing::Zstd),
        Some("gz") => Some(bzimage::Packing::Gzip),
        _ => None,
    };
    match packing {
        Some(packing) => {
            let bytes = fs::read(source).map_err(at(source))?;
            unpackers.unpack(packing, &bytes, into)?;
        }
        None => copy(source, into)?,
    }
    let mut objcopy = command("objcopy")?;
    objcopy
        .args(["--strip-debug", "--remove-section=.BTF"])
        .arg(into);
    run(
        "stripping a kernel module (objcopy comes with the C toolchain, package binutils)",
        &mut objcopy,
    )?;
    Ok(())
}

fn files_below(root: &Path) -> Result<Vec<PathBuf>, SetupError> {
    let mut files = Vec::new();
    let mut queue = vec![root.to_owned()];
    while let Some(directory) = queue.pop() {
        for entry in fs::read_dir(&directory).map_err(at(&directory))? {
            let entry = entry.map_err(at(&directory))?;
            let kind = entry.file_type().map_err(at(&directory))?;
            if kind.is_dir() {
                queue.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_listed_by_the_loader() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibz.so.1 => /x/lib/libz.so.1 (0x00007f00)\n\
                    \tlibgone.so.2 => not found\n\
                    \t/lib64/ld-linux-x86-64.so.2 => /x/ld-linux-x86-64.so.2 (0x00007f11)\n\
                    \tlibc.so.6 => /with space/libc.so.6 (0x00007f22)\n";
        let found = parse_list(text);
        let seen: Vec<_> = found
            .iter()
            .map(|(n, p)| (n.as_str(), p.to_str().unwrap()))
            .collect();
        assert_eq!(
            seen,
            [
                ("ld-linux-x86-64.so.2", "/x/ld-linux-x86-64.so.2"),
                ("libc.so.6", "/with space/libc.so.6"),
                ("libz.so.1", "/x/lib/libz.so.1"),
            ]
        );
    }
}
