//! Packages of the machine's distribution, downloaded without root and without touching its own package
//! state.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use super::sources::{self, Archives, SourcesError};
use super::version::{self, Candidate};
use crate::owned::{OwnedChild, tied};

/// Packages could not be obtained.
#[derive(Debug, Error)]
pub enum AptError {
    /// The machine has none.
    #[error("this machine has no apt")]
    NoApt,
    /// A file of the lab or of apt could not be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}: {error}")]
    Start {
        /// The program.
        program: String,
        /// Why it failed.
        error: io::Error,
    },
    /// A program failed.
    #[error("{what} failed:\n{output}")]
    Failed {
        /// Its task.
        what: String,
        /// Its output.
        output: String,
    },
    /// A package is not available.
    #[error("the archive has no {package} of version {series} in {suites}")]
    NotThere {
        /// The package.
        package: String,
        /// The wanted version.
        series: String,
        /// The suites that were searched.
        suites: String,
    },
    /// There is no usable archive.
    #[error(transparent)]
    Sources(#[from] SourcesError),
}

/// The file of an area's sources in its directory.
const SOURCES: &str = "etc/apt/lab.sources";

/// Some suites of an archive, with separate package state.
#[derive(Debug)]
pub struct Area {
    directory: PathBuf,
    suites: String,
}

/// Whether this machine has apt.
pub fn there() -> bool {
    Command::new("apt-get")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// The archives of this machine's configuration.
pub fn archives() -> Result<Archives, AptError> {
    if !there() {
        return Err(AptError::NoApt);
    }
    let mut found = Vec::new();
    let list = Path::new("/etc/apt/sources.list");
    if list.exists() {
        found.extend(sources::parse_one_line(&read(list)?));
    }
    let parts = Path::new("/etc/apt/sources.list.d");
    let mut files: Vec<PathBuf> = fs::read_dir(parts)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.sort();
    for file in files {
        match file.extension().and_then(|ending| ending.to_str()) {
            Some("list") => found.extend(sources::parse_one_line(&read(&file)?)),
            Some("sources") => found.extend(sources::parse_deb822(&read(&file)?)),
            _ => {}
        }
    }
    Ok(sources::archives(&found)?)
}

fn read(path: &Path) -> Result<String, AptError> {
    fs::read_to_string(path).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> AptError {
    let path = path.to_owned();
    move |error| AptError::File { path, error }
}

/// Runs a program until it exits; if it fails, its output is the error.
pub(super) fn run(what: &str, command: &mut Command) -> Result<Vec<u8>, AptError> {
    let output = OwnedChild::output(command).map_err(|error| AptError::Start {
        program: command.get_program().display().to_string(),
        error,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(AptError::Failed {
        what: what.to_owned(),
        output: text,
    })
}

/// A command that ends with this process.
pub(super) fn command(program: &str) -> Result<Command, AptError> {
    tied(program).map_err(|error| AptError::Start {
        program: program.to_owned(),
        error,
    })
}

impl Area {
    /// Reads the package lists of `suites` into `directory`.
    pub fn open(directory: &Path, archives: &Archives, suites: &[&str]) -> Result<Self, AptError> {
        for part in [
            "etc/apt/apt.conf.d",
            "state/lists/partial",
            "cache/archives/partial",
        ] {
            let part = directory.join(part);
            fs::create_dir_all(&part).map_err(at(&part))?;
        }
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).map_err(at(&path))
        };
        write("state/status", String::new())?;
        write(SOURCES, sources::write_deb822(archives, suites))?;
        write("apt.conf", configuration(directory) + &network()?)?;
        let area = Self {
            directory: directory.to_owned(),
            suites: suites.join(", "),
        };
        run(
            "apt-get update",
            area.apt("apt-get")?.args(["-q", "update"]),
        )?;
        Ok(area)
    }

    fn apt(&self, program: &str) -> Result<Command, AptError> {
        let mut command = command(program)?;
        command
            .env("APT_CONFIG", self.directory.join("apt.conf"))
            .env("LC_ALL", "C")
            .current_dir(self.debs());
        Ok(command)
    }

    /// The file of its sources, in the deb822 format.
    pub fn sources(&self) -> PathBuf {
        self.directory.join(SOURCES)
    }

    fn debs(&self) -> PathBuf {
        self.directory.join("cache/archives")
    }

    /// Downloads packages and all their dependencies.
    pub fn closure(&self, release: Option<&str>, packages: &[&str]) -> Result<(), AptError> {
        let mut command = self.apt("apt-get")?;
        command.args(["-q", "--yes", "--download-only", "--no-install-recommends"]);
        if let Some(release) = release {
            command.args(["--target-release", release]);
        }
        command.arg("install").args(packages);
        run(
            &format!("downloading {}", packages.join(", ")),
            &mut command,
        )?;
        Ok(())
    }

    /// Downloads packages without their dependencies.
    pub fn download(&self, packages: &[&str]) -> Result<(), AptError> {
        let what = format!("downloading {}", packages.join(", "));
        run(
            &what,
            self.apt("apt-get")?.args(["-q", "download"]).args(packages),
        )?;
        Ok(())
    }

    /// The package of a kernel metapackage in the given series, and its version.
    pub fn kernel(&self, metapackage: &str, series: &str) -> Result<(String, String), AptError> {
        let candidates = self.candidates(metapackage)?;
        self.image(metapackage, series, version::newest(&candidates, series))
    }

    /// The same for the newest available version.
    pub fn newest_kernel(&self, metapackage: &str) -> Result<(String, String), AptError> {
        let candidates = self.candidates(metapackage)?;
        self.image(metapackage, "", version::newest_of_all(&candidates))
    }

    fn candidates(&self, package: &str) -> Result<Vec<Candidate>, AptError> {
        let text = run(
            &format!("looking for {package}"),
            self.apt("apt-cache")?.args(["show", package]),
        )?;
        Ok(version::parse_show(&String::from_utf8_lossy(&text)))
    }

    fn image(
        &self,
        metapackage: &str,
        series: &str,
        candidate: Option<&Candidate>,
    ) -> Result<(String, String), AptError> {
        let found = candidate.and_then(|candidate| {
            let image = candidate.depends.iter().find(|name| {
                let version = name.strip_prefix("linux-image-");
                version.is_some_and(|version| version.starts_with(series))
            });
            Some((image?.clone(), candidate.version.clone()))
        });
        found.ok_or_else(|| AptError::NotThere {
            package: metapackage.to_owned(),
            series: series.to_owned(),
            suites: self.suites.clone(),
        })
    }

    /// Unpacks every downloaded package whose name passes `wanted` into `into`.
    pub fn unpack(&self, into: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), AptError> {
        fs::create_dir_all(into).map_err(at(into))?;
        let debs = self.debs();
        for entry in fs::read_dir(&debs).map_err(at(&debs))? {
            let path = entry.map_err(at(&debs))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or("");
            let package = name.split('_').next().unwrap_or("");
            if name.ends_with(".deb") && wanted(package) {
                let mut dpkg = command("dpkg-deb")?;
                dpkg.arg("--extract").arg(&path).arg(into);
                run(&format!("unpacking {name}"), &mut dpkg)?;
            }
        }
        Ok(())
    }

    /// The version of a downloaded package.
    pub fn version(&self, package: &str) -> Option<String> {
        let prefix = format!("{package}_");
        fs::read_dir(self.debs()).ok()?.flatten().find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let rest = name.strip_prefix(&prefix)?;
            let version = rest.split('_').next()?.replace("%3a", ":");
            Some(version::upstream(&version).to_owned())
        })
    }
}

/// The lines of the machine's apt configuration that give access to the archive.
pub(super) fn network() -> Result<String, AptError> {
    let machine = run(
        "reading apt's configuration",
        command("apt-config")?.arg("dump"),
    )?;
    let machine = String::from_utf8_lossy(&machine);
    let lines = machine.lines().filter(|line| passes_on(line));
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}

/// apt's configuration for a separate directory. Keys and passwords for the archive remain the machine's.
fn configuration(directory: &Path) -> String {
    let here = directory.display();
    format!(
        "Dir::State \"{here}/state\";\n\
         Dir::State::lists \"{here}/state/lists\";\n\
         Dir::State::status \"{here}/state/status\";\n\
         Dir::Cache \"{here}/cache\";\n\
         Dir::Cache::archives \"{here}/cache/archives\";\n\
         Dir::Log \"{here}\";\n\
         Dir::Etc::sourcelist \"{here}/{SOURCES}\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::Etc::parts \"{here}/etc/apt/apt.conf.d\";\n\
         Dir::Etc::main \"/dev/null\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\n\
         APT::Sandbox::User \"root\";\n\
         APT::Get::List-Cleanup \"false\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n"
    )
}

/// Whether a line configures access to the archive; other settings of downloads (index targets) are not
/// needed.
fn passes_on(line: &str) -> bool {
    line.starts_with("Acquire::")
        && ![
            "IndexTargets",
            "Languages",
            "Retries",
            "CompressionTypes",
            "Changelogs",
        ]
        .iter()
        .any(|other| line["Acquire::".len()..].starts_with(other))
}

#[cfg(test)]
mod tests {
    use super::passes_on;

    #[test]
    fn only_the_way_to_the_archive_is_taken_over() {
        for (line, wanted) in [
            ("Acquire::http::Proxy \"http://proxy.example:3128\";", true),
            ("Acquire::Check-Valid-Until \"false\";", true),
            ("Acquire::IndexTargets::deb::DEP-11 \"\";", false),
            ("Acquire \"\";", false),
            ("APT::Update::Post-Invoke:: \"rm -f x\";", false),
            ("Dir \"/\";", false),
        ] {
            assert_eq!(passes_on(line), wanted, "{line}");
        }
    }
}
