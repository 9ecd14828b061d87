//! The user's cache directory: emulators and kernels, shared by all clones of the project.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// Changes whenever what setup makes changes, so that an old cache is not taken for a new one.
const RECIPE: &str = "2";

/// Where everything lies.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// What the cache holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Versions by name, as people know them.
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

    /// What is held, ready to use. The same layout lies under `/lab` in lab hosts.
    pub fn held(&self) -> PathBuf {
        self.root.join(format!("held-{RECIPE}"))
    }

    /// Where half-made things lie.
    pub fn making(&self) -> PathBuf {
        self.root.join("making")
    }

    /// Where running hosts keep their files.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// Where the kernel logs of failed runs are kept.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// What is held, or none if setup has not been run (or not to its end).
    pub fn manifest(&self) -> Option<Manifest> {
        let text = std::fs::read(self.held().join("manifest.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Keeps other setups out until dropped; `waiting` is called if there is one.
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

    /// Puts a finished directory in place of what is held.
    pub fn replace(&self, finished: &Path, manifest: &Manifest) -> io::Result<()> {
        std::fs::write(
            finished.join("manifest.json"),
            serde_json::to_vec_pretty(manifest)?,
        )?;
        let held = self.held();
        if held.exists() {
            // Inside the directory that is removed after this.
            let old = finished.with_extension("old");
            std::fs::rename(&held, &old)?;
        }
        std::fs::rename(finished, &held)
    }
}
