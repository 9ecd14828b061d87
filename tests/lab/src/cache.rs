//! The user's cache directory: emulators and kernels, shared by all clones of the project.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// Changed with the contents that setup makes, so that an older cache is rebuilt.
const RECIPE: &str = "6";

/// The paths of the cache.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// The contents of the cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Versions by readable name.
    pub versions: BTreeMap<String, String>,
}

impl Cache {
    /// The cache of this user: `${XDG_CACHE_HOME:-~/.cache}/hypernest/lab`.
    pub fn locate() -> io::Result<Self> {
        let absolute = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| Some(absolute("HOME")?.join(".cache")))
            .ok_or_else(|| {
                io::Error::other(
                    "no cache directory: neither XDG_CACHE_HOME nor HOME is an absolute path",
                )
            })?;
        Ok(Self {
            root: base.join("hypernest/lab"),
        })
    }

    /// The directory of finished contents. The same layout is under `/lab` in lab hosts.
    pub fn held(&self) -> PathBuf {
        self.root.join(format!("held-{RECIPE}"))
    }

    /// The directory of unfinished contents.
    pub fn making(&self) -> PathBuf {
        self.root.join("making")
    }

    /// The directory of the files of running hosts.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// The directory of the kernel logs of failed runs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The contents of the cache; `None` if setup has not been run to its end.
    pub fn manifest(&self) -> Option<Manifest> {
        let text = std::fs::read(self.held().join("manifest.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Excludes other setups until dropped; `waiting` is called if one is running.
    pub fn lock(&self, waiting: impl FnOnce()) -> io::Result<Flock<std::fs::File>> {
        std::fs::create_dir_all(&self.root)?;
        let file = std::fs::File::create(self.root.join("setup.lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(lock),
            Err((file, _)) => {
                waiting();
                Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
            }
        }
    }

    /// Replaces the contents by a finished directory.
    pub fn replace(&self, finished: &Path, manifest: &Manifest) -> io::Result<()> {
        std::fs::write(
            finished.join("manifest.json"),
            serde_json::to_vec_pretty(manifest)?,
        )?;
        let held = self.held();
        if held.exists() {
            // A path in the directory that is removed afterwards.
            let old = finished.with_extension("old");
            std::fs::rename(&held, &old)?;
        }
        std::fs::rename(finished, &held)
    }
}
