//! The files that a guest boots from: opened once and held, so that every reset boots what the VM was started
//! with.

use std::path::Path;
use std::sync::Arc;

use super::image::{Image, Role};
use super::{Boot, BootError};
use crate::state::snapshot::SavedFiles;

/// A kernel and what is handed to it, or firmware. Clones share the files.
#[derive(Clone, Debug)]
pub struct BootFiles(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The kernel, or the firmware.
    first: Image,
    /// The initrd, if any, then the modules.
    others: Vec<Image>,
}

/// What starts.
fn first(boot: &Boot) -> (Role, &Path) {
    match boot {
        Boot::Kernel(boot) => (Role::Kernel, &boot.kernel),
        Boot::Firmware(boot) => (Role::Firmware, &boot.code),
    }
}

/// The files that `boot` names beside the first.
fn others(boot: &Boot) -> impl Iterator<Item = (Role, &Path)> {
    let kernel = boot.kernel().into_iter();
    kernel.flat_map(|boot| {
        let initrd = boot.initrd.iter();
        let initrd = initrd.map(|path| (Role::Initrd, path.as_path()));
        let modules = boot.modules.iter();
        initrd.chain(modules.map(|m| (Role::Module, m.path.as_path())))
    })
}

impl BootFiles {
    /// Opens the files that `boot` names on this host.
    ///
    /// # Errors
    /// If one is not a readable regular file, or empty.
    pub fn open(boot: &Boot) -> Result<Self, BootError> {
        let (role, path) = first(boot);
        let others = others(boot).map(|(role, path)| Image::open(role, path));
        Ok(Self(Arc::new(Inner {
            first: Image::open(role, path)?,
            others: others.collect::<Result<_, _>>()?,
        })))
    }

    /// The files of a saved VM. Their content is checked when it is used.
    ///
    /// # Errors
    /// If there are not as many as `boot` names.
    pub fn saved(boot: &Boot, files: &SavedFiles) -> Result<Self, BootError> {
        Self::of(boot, files.entries().to_vec(), |role, path, entry| {
            Image::part(role, path, files.file(), entry)
        })
    }

    /// The files that a migration's source sent.
    ///
    /// # Errors
    /// If there are not as many as `boot` names.
    pub fn received(boot: &Boot, files: Vec<Vec<u8>>) -> Result<Self, BootError> {
        Self::of(boot, files, Image::in_memory)
    }

    fn of<T>(
        boot: &Boot,
        contents: Vec<T>,
        image: impl Fn(Role, &Path, T) -> Image,
    ) -> Result<Self, BootError> {
        let (found, expected) = (contents.len(), Self::named(boot).count());
        let mut contents = contents.into_iter();
        match contents.next() {
            Some(content) if found == expected => {
                let (role, path) = first(boot);
                Ok(Self(Arc::new(Inner {
                    first: image(role, path, content),
                    others: others(boot)
                        .zip(contents)
                        .map(|((role, path), content)| image(role, path, content))
                        .collect(),
                })))
            }
            _ => Err(BootError::OtherFiles { found, expected }),
        }
    }

    /// The files that `boot` names, in the order of [`BootFiles::all`].
    pub fn named(boot: &Boot) -> impl Iterator<Item = (Role, &Path)> {
        std::iter::once(first(boot)).chain(others(boot))
    }

    /// The kernel, or the firmware.
    pub fn first(&self) -> &Image {
        &self.0.first
    }

    /// The initrd, if any, then the modules.
    pub fn others(&self) -> &[Image] {
        &self.0.others
    }

    /// The initrd.
    pub fn initrd(&self) -> Option<&Image> {
        self.others()
            .first()
            .filter(|image| image.role() == Role::Initrd)
    }

    /// All of them, in the order in which they are saved and sent.
    pub fn all(&self) -> impl Iterator<Item = &Image> {
        std::iter::once(self.first()).chain(self.others())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::boot::image::Content;
    use crate::boot::{BootModule, KernelBoot};

    fn config(dir: &Path) -> Boot {
        let file = |name: &str| {
            let path = dir.join(name);
            fs::write(&path, name).unwrap();
            path
        };
        Boot::Kernel(KernelBoot {
            kernel: file("kernel"),
            initrd: Some(file("initrd")),
            cmdline: String::new(),
            modules: vec![BootModule {
                path: file("module"),
                cmdline: String::new(),
            }],
        })
    }

    fn content(image: &Image) -> String {
        let mut bytes = vec![0; usize::try_from(image.len()).unwrap()];
        image.read_exact_at(0, &mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn open_files_are_held_when_others_take_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let files = BootFiles::open(&config).unwrap();
        let kernel = dir.path().join("kernel");
        fs::remove_file(&kernel).unwrap();
        fs::write(&kernel, "another").unwrap();
        let all: Vec<_> = files.all().map(content).collect();
        assert_eq!(all, ["kernel", "initrd", "module"]);
        assert_eq!(files.initrd().map(content).as_deref(), Some("initrd"));
    }

    #[test]
    fn received_files_must_be_those_of_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let sent = |n: usize| (0..n).map(|n| vec![u8::try_from(n).unwrap(); 3]).collect();
        for other in [0, 1, 2, 4] {
            let error = BootFiles::received(&config, sent(other)).unwrap_err();
            assert!(
                matches!(error, BootError::OtherFiles { found, expected: 3 } if found == other)
            );
        }
        let files = BootFiles::received(&config, sent(3)).unwrap();
        assert_eq!(files.first().role(), Role::Kernel);
        assert_eq!(content(&files.others()[1]), "\u{2}\u{2}\u{2}");
    }
}
