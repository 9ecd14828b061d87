//! Messages of a test binary to the program that runs it on several hosts, one JSON object per line.

use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};

use super::Test;
use crate::host::{Host, IntelCpu, Kernel, Machine};

/// A test's properties for the runner of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// The hosts for which it is meant; empty for all.
    pub hosts: Vec<String>,
    /// The name of its stage.
    pub stage: String,
    /// CPUs of the stage.
    pub cpus: u8,
    /// Memory of the stage.
    pub memory_mib: u32,
    /// The stage's kernel, by its directory.
    pub kernel: String,
    /// The CPU of the emulated Intel host.
    pub intel: String,
    /// The stage's contents.
    pub with: Vec<String>,
    /// The stage's disks.
    pub disks: Vec<String>,
    /// The CPU features that the stage's host does not have.
    pub without: Vec<String>,
    /// The stage's module parameters.
    pub parameters: Vec<String>,
    /// The preceding stage, whose files it receives.
    pub after: Option<String>,
    /// Its time limit.
    pub limit_seconds: u32,
}

impl From<&Test> for Listed {
    fn from(test: &Test) -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Self {
            name: test.name.to_owned(),
            hosts: Host::ALL
                .into_iter()
                .filter(|host| test.is_for(*host))
                .map(|host| host.name().to_owned())
                .collect(),
            stage: test.stage.name.to_owned(),
            cpus: test.stage.cpus,
            memory_mib: test.stage.memory_mib,
            kernel: test.stage.kernel.directory().to_owned(),
            intel: test.stage.intel.name().to_owned(),
            with: texts(test.stage.with),
            disks: texts(test.stage.disks),
            without: texts(test.stage.without),
            parameters: texts(test.stage.parameters),
            after: test.stage.after.map(str::to_owned),
            limit_seconds: test.limit_seconds,
        }
    }
}

impl Listed {
    /// The emulated host of its stage.
    pub fn machine(&self) -> Result<Machine, String> {
        let kernel = Kernel::from_directory(&self.kernel)
            .ok_or_else(|| format!("unknown kernel {}", self.kernel))?;
        Ok(Machine {
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            kernel,
            intel: IntelCpu::from_str(&self.intel, false)?,
            without: self
                .without
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, _>>()?,
            parameters: self
                .parameters
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, _>>()?,
            with: self.with.clone(),
            disks: self.disks.clone(),
            files: Vec::new(),
        })
    }
}

/// The outcome of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The test passed.
    Passed,
    /// Failed, with its output.
    Failed(String),
    /// Not supported here, with the missing requirement.
    Skipped(String),
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// A test starts.
    Started {
        /// Its name.
        name: String,
    },
    /// A test has ended.
    Ended {
        /// Its name.
        name: String,
        /// Its outcome.
        outcome: Outcome,
    },
}
