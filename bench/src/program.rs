//! The programs of this project that are run or copied by this one.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The VMM's name.
pub(crate) const HYPERNEST: &str = "hypernest";

/// The program called `name`: beside this one, else on the PATH.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(own.as_deref(), &path, name)
}

fn find_in(own: Option<&Path>, path: &OsStr, name: &str) -> Option<PathBuf> {
    let beside = own.map(|own| own.with_file_name(name));
    let on_path = std::env::split_paths(path).map(|directory| directory.join(name));
    beside
        .into_iter()
        .chain(on_path)
        .find(|program| program.is_file())
}

/// The program called `name` on the PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    find_in(None, &std::env::var_os("PATH").unwrap_or_default(), name)
}

/// The VMM; its bare name if it is not found, so that the attempt to start it says so.
pub(crate) fn hypernest() -> PathBuf {
    find(HYPERNEST).unwrap_or_else(|| HYPERNEST.into())
}

/// The mistake of a user without `hypernest`; `flag` can name it, if there is such a flag.
pub(crate) fn no_hypernest(flag: Option<&str>) -> Option<String> {
    if find(HYPERNEST).is_some() {
        return None;
    }
    let flag = flag.map_or_else(String::new, |flag| format!(", or name it by {flag}"));
    Some(format!(
        "hypernest is neither beside this program nor on the PATH: install it by `cargo install --path .` in \
         the source tree{flag}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_program_beside_this_one_comes_before_the_path() {
        let root = tempfile::tempdir().unwrap();
        let place = |name: &str| root.path().join(name);
        for directory in ["own", "other"] {
            fs::create_dir(place(directory)).unwrap();
        }
        let own = place("own/hypernest-bench");
        let path = std::env::join_paths([place("nowhere"), place("other")]).unwrap();
        let find = || find_in(Some(&own), &path, HYPERNEST);
        assert_eq!(find(), None);
        fs::write(place("other/hypernest"), "").unwrap();
        assert_eq!(find(), Some(place("other/hypernest")));
        fs::write(place("own/hypernest"), "").unwrap();
        assert_eq!(find(), Some(place("own/hypernest")));
        assert_eq!(
            find_in(None, &path, HYPERNEST),
            Some(place("other/hypernest"))
        );
    }
}
