//! Tests on one host, in one boot of it.

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::boots::{Boot, limit};
use super::retry::Retries;
use crate::binaries::Binaries;
use crate::boot;
use crate::cache::Cache;
use crate::exec::{here_environment, plan};
use crate::fetch::{self, Fetch};
use crate::host::Host;
use crate::owned::{OwnedChild, OwnedDirectory, tied};
use crate::plan::{CARRIED_DIR, Input, LAB_LONG_VARIABLE};
use crate::progress;
use crate::session::{self, Broken, Sink};
use crate::setup::{self, Optional};
use crate::suite::describe;
use crate::suite::protocol::{Event, Listed, Outcome};
use crate::suite::verdict::Record;

/// The time limit of a host beyond its tests, each of which has its own limit.
const BESIDE_TESTS: Duration = Duration::from_secs(600);

/// The factor for the time limits of loops at their full length.
const LONG_PATIENCE: u32 = 8;

/// The results of several hosts.
#[derive(Debug, Default)]
pub(super) struct HostResults {
    pub(super) records: Vec<Record>,
    /// Failures other than those of tests.
    pub(super) trouble: Vec<String>,
    /// The reasons of emulator restarts, and the test that was running.
    pub(super) restarts: Vec<String>,
}

impl HostResults {
    pub(super) fn add(&mut self, other: HostResults) {
        self.records.extend(other.records);
        self.trouble.extend(other.trouble);
        self.restarts.extend(other.restarts);
    }
}

/// The parameters of a run on one host.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostRun<'a> {
    host: Host,
    cache: &'a Cache,
    binaries: &'a Binaries,
    long: bool,
    progress: &'a progress::Tests,
}

/// The state of one batch: the tests of one stage of one suite.
struct Batch<'a> {
    host: Host,
    waiting: VecDeque<Listed>,
    running: Option<(Listed, Instant)>,
    records: Vec<Record>,
    bytes: Vec<u8>,
    said: Vec<u8>,
    retries: Retries,
    restarts: Vec<String>,
    progress: &'a progress::Tests,
    /// The factor for the time limits of tests.
    patience: u32,
    /// The directory of the files that the stages of a chain pass on.
    carried: Option<PathBuf>,
    /// The archive of these files from a host.
    fetched: Vec<u8>,
}

impl<'a> HostRun<'a> {
    pub(super) fn new(
        host: Host,
        cache: &'a Cache,
        binaries: &'a Binaries,
        long: bool,
        progress: &'a progress::Tests,
    ) -> Self {
        Self {
            host,
            cache,
            binaries,
            long,
            progress,
        }
    }

    /// Runs the tests of `boot` and of the following boots, each of which receives the files that the
    /// previous one left in [`CARRIED_DIR`].
    pub(super) fn run(self, boot: Boot<'_>) -> HostResults {
        let mut results = HostResults::default();
        let carried = match &boot.next {
            Some(_) => OwnedDirectory::new(&self.cache.runs(), "carried").map(Some),
            None => Ok(None),
        };
        let carried = match carried {
            Ok(carried) => carried,
            Err(error) => {
                results.trouble.push(format!("{} host: {error}", self.host));
                return results;
            }
        };
        let carried = carried.as_ref().map(OwnedDirectory::path);
        let mut next = Some(boot);
        while let Some(boot) = next {
            results.add(self.one(boot.binary, boot.tests, carried));
            next = boot.next.map(|next| *next);
        }
        results
    }

    /// Runs `tests` of `binary` in a host that receives the files in `carried` and stores its own there.
    fn one(self, binary: &Path, tests: Vec<Listed>, carried: Option<&Path>) -> HostResults {
        let mut batch = Batch::new(self.host, tests, self.progress);
        batch.carried = carried.map(Path::to_owned);
        if self.long {
            batch.patience = LONG_PATIENCE;
        }
        let stage = batch.waiting.front().map(|test| test.stage.clone());
        let ended = self.batch(binary, &mut batch);
        let trouble = ended.err().map(|error| {
            let stage = stage.unwrap_or_default();
            format!("{} host, stage {stage}: {error}", self.host)
        });
        HostResults {
            records: batch.records,
            trouble: trouble.into_iter().collect(),
            restarts: batch.restarts,
        }
    }

    fn batch(self, binary: &Path, batch: &mut Batch<'_>) -> Result<(), String> {
        if self.host == Host::Here {
            batch.skip_what_needs_parameters();
        }
        batch.skip_what_needs_parts(self.cache);
        while !batch.waiting.is_empty() {
            let ended = if self.host == Host::Here {
                self.once_here(binary, batch)
            } else {
                self.once_emulated(binary, batch)
            };
            match ended {
                Ok(()) if batch.running.is_none() && batch.waiting.is_empty() => {}
                Ok(()) => {
                    // The test binary itself ended early; the running test fails.
                    let said = String::from_utf8_lossy(&batch.said).into_owned();
                    if !batch
                        .fail_running(&format!("the test binary ended during this test\n{said}"))
                    {
                        return Err(format!("the test binary ended early\n{said}"));
                    }
                }
                Err(Ended::Emulator(why)) if batch.may_retry() => batch.put_back(&why),
                Err(Ended::Emulator(why) | Ended::Test(why)) => {
                    if !batch.fail_running(&why) {
                        return Err(why);
                    }
                }
                Err(Ended::Lab(why)) => return Err(why),
            }
        }
        Ok(())
    }

    fn arguments(batch: &Batch<'_>) -> Vec<String> {
        let mut arguments = vec!["--run-json".to_owned()];
        arguments.extend(batch.waiting.iter().map(|test| test.name.clone()));
        arguments
    }

    fn once_emulated(self, binary: &Path, batch: &mut Batch<'_>) -> Result<(), Ended> {
        const BINARY: &str = "/bin/suite";
        let Some(first) = batch.waiting.front() else {
            return Ok(());
        };
        let mut machine = first.machine().map_err(Ended::Lab)?;
        setup::ensure_parts(self.cache, &machine).map_err(|error| Ended::Lab(error.to_string()))?;
        machine.files.push((binary.to_owned(), BINARY.to_owned()));
        let mut command = vec![BINARY.to_owned()];
        command.extend(Self::arguments(batch));
        let mut plan = plan(self.host, &machine, &command, Input::Nothing);
        if self.long {
            plan.environment
                .insert(LAB_LONG_VARIABLE.to_owned(), "1".to_owned());
        }
        if let Some(carried) = &batch.carried {
            machine
                .files
                .push((carried.clone(), CARRIED_DIR.to_owned()));
            plan.fetch = vec![CARRIED_DIR.to_owned()];
            batch.fetched.clear();
        }
        let limit: Duration = batch.waiting.iter().map(|test| batch.limit(test)).sum();
        let lab = |error: &dyn std::fmt::Display| Ended::Lab(error.to_string());
        let mut booting = boot::boot(
            self.host,
            &machine,
            &plan,
            &self.cache.held(),
            self.binaries,
            &self.cache.runs(),
        )
        .map_err(|error| lab(&error))?;
        let result = session::follow(self.host, &mut booting, None, BESIDE_TESTS + limit, batch);
        let Err(broken) = result else {
            return batch.keep_carried().map_err(|error| lab(&error));
        };
        let log = session::keep_logs(self.host, &booting, &self.cache.logs());
        let log = log.map(|log| log.display().to_string()).unwrap_or_default();
        let why = format!("{broken} (the log of the host's kernel: {log})");
        Err(match broken {
            Broken::Vanished { .. } | Broken::Garbled(_) | Broken::Short { .. } => {
                Ended::Emulator(why)
            }
            _ => Ended::Test(why),
        })
    }

    fn once_here(self, binary: &Path, batch: &mut Batch<'_>) -> Result<(), Ended> {
        let lab = |error: io::Error| Ended::Lab(error.to_string());
        let directory = OwnedDirectory::new(&self.cache.runs(), "here").map_err(lab)?;
        let mut command = tied(binary).map_err(lab)?;
        command
            .args(Self::arguments(batch))
            .envs(here_environment(self.cache, self.binaries))
            .envs(self.long.then_some((LAB_LONG_VARIABLE, "1")))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = OwnedChild::spawn(&mut command).map_err(lab)?;
        let Some(mut output) = child.child().stdout.take() else {
            return Ok(());
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(read @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        loop {
            match receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => batch.stdout(&bytes).map_err(lab)?,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if let Some(why) = batch.overdue() {
                return Err(Ended::Test(why));
            }
        }
    }
}

/// The reason why a batch ended early.
enum Ended {
    /// The emulator failed: not the test's fault.
    Emulator(String),
    /// The running test failed.
    Test(String),
    /// The lab failed.
    Lab(String),
}

impl<'a> Batch<'a> {
    fn new(host: Host, tests: Vec<Listed>, progress: &'a progress::Tests) -> Self {
        Self {
            host,
            waiting: tests.into(),
            running: None,
            records: Vec::new(),
            bytes: Vec::new(),
            said: Vec::new(),
            retries: Retries::default(),
            restarts: Vec::new(),
            progress,
            patience: 1,
            carried: None,
            fetched: Vec::new(),
        }
    }

    fn record(&mut self, test: &Listed, outcome: Outcome, took: Option<Duration>) {
        self.progress.ended(limit(self.host, test));
        let name = test.name.clone();
        let took = took.map_or(String::new(), |took| format!(" ({} s)", took.as_secs()));
        let said = describe(&name, &outcome, &took);
        println!("{:5} {said}", self.host.name());
        self.records.push(Record {
            host: self.host,
            name,
            outcome,
        });
    }

    /// Makes the parts of the lab that tests need; the tests of one that cannot be made are skipped.
    fn skip_what_needs_parts(&mut self, cache: &Cache) {
        for test in std::mem::take(&mut self.waiting) {
            let parts = test.with.iter().chain(&test.disks);
            let mut parts = parts.filter_map(|path| Optional::of(path));
            let missing = parts.find_map(|part| {
                let error = part.ensure(cache).err()?;
                Some(format!("{}: {error}", part.name))
            });
            match missing {
                Some(missing) => self.record(&test, Outcome::Skipped(missing), None),
                None => self.waiting.push_back(test),
            }
        }
    }

    /// Unpacks the files from a host.
    fn keep_carried(&self) -> io::Result<()> {
        let Some(carried) = self.carried.clone().filter(|_| !self.fetched.is_empty()) else {
            return Ok(());
        };
        let from = Fetch {
            path: CARRIED_DIR.to_owned(),
            local: carried,
        };
        fetch::unpack(&self.fetched[..], &[from])
    }

    fn skip_what_needs_parameters(&mut self) {
        let (here, elsewhere) = self
            .waiting
            .drain(..)
            .partition(|test| test.parameters.is_empty());
        self.waiting = here;
        for test in Vec::from(elsewhere) {
            let missing = format!(
                "{} set, as only emulated hosts do",
                test.parameters.join(" ")
            );
            self.record(&test, Outcome::Skipped(missing), None);
        }
    }

    fn limit(&self, test: &Listed) -> Duration {
        limit(self.host, test) * self.patience
    }

    fn may_retry(&mut self) -> bool {
        let running = self.running.as_ref();
        self.retries
            .allow(running.map(|(test, _)| test.name.as_str()))
    }

    /// Puts the running test back into the queue, for the next boot of an emulator that ended.
    fn put_back(&mut self, why: &str) {
        let during = match &self.running {
            Some((test, _)) => format!("during {}", test.name),
            None => "while no test ran".to_owned(),
        };
        eprintln!("lab: {why}, {during}; booting it once more for the tests that have not run");
        self.restarts
            .push(format!("{} host, {during}: {why}", self.host));
        if let Some((test, _)) = self.running.take() {
            self.waiting.push_front(test);
        }
        self.bytes.clear();
    }

    /// Marks the running test as failed; returns false if there was none.
    fn fail_running(&mut self, why: &str) -> bool {
        self.bytes.clear();
        match self.running.take() {
            Some((test, since)) => {
                let failed = Outcome::Failed(why.to_owned());
                self.record(&test, failed, Some(since.elapsed()));
                true
            }
            None => false,
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Started { name } => {
                let at = self.waiting.iter().position(|test| test.name == name);
                let test = at.and_then(|at| self.waiting.remove(at));
                self.running = test.map(|test| (test, Instant::now()));
            }
            Event::Ended { name, outcome } => {
                let ended = self.running.take_if(|(test, _)| test.name == name);
                if let Some((test, since)) = ended {
                    self.record(&test, outcome, Some(since.elapsed()));
                }
            }
        }
    }
}

impl Sink for Batch<'_> {
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend(bytes);
        while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(event) => self.event(event),
                // Other output is stored in case the binary ends early.
                Err(_) => self.said.extend(line),
            }
        }
        Ok(())
    }

    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.said.extend(bytes);
        Ok(())
    }

    fn fetched(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.fetched.extend(bytes);
        Ok(())
    }

    fn overdue(&mut self) -> Option<String> {
        let (test, since) = self.running.as_ref()?;
        let limit = self.limit(test);
        (since.elapsed() > limit).then(|| format!("no end after {} s", limit.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str, parameters: &[&str]) -> Listed {
        Listed {
            name: name.to_owned(),
            hosts: vec!["here".to_owned()],
            stage: "plain".to_owned(),
            cpus: 1,
            memory_mib: 1024,
            kernel: "linux-6.12".to_owned(),
            intel: "skylake".to_owned(),
            with: Vec::new(),
            disks: Vec::new(),
            without: Vec::new(),
            parameters: parameters.iter().map(|&text| text.to_owned()).collect(),
            after: None,
            limit_seconds: 0,
        }
    }

    fn line(event: &Event) -> Vec<u8> {
        let mut line = serde_json::to_vec(event).unwrap();
        line.push(b'\n');
        line
    }

    #[test]
    fn a_run_that_breaks_off_blames_the_test_it_was_at_and_keeps_the_rest() {
        let progress = progress::Tests::new([], [], 1);
        let mut batch = Batch::new(
            Host::Here,
            vec![listed("a", &[]), listed("b", &[]), listed("c", &[])],
            &progress,
        );
        let mut stream = line(&Event::Started {
            name: "a".to_owned(),
        });
        stream.extend(b"noise\n");
        stream.extend(line(&Event::Ended {
            name: "a".to_owned(),
            outcome: Outcome::Passed,
        }));
        stream.extend(line(&Event::Started {
            name: "b".to_owned(),
        }));
        for piece in stream.chunks(7) {
            batch.stdout(piece).unwrap();
        }
        assert_eq!(batch.said, b"noise\n");
        assert_eq!(batch.waiting.len(), 1);
        assert!(batch.fail_running("gone"));
        assert!(!batch.fail_running("gone"));
        let seen: Vec<_> = batch
            .records
            .iter()
            .map(|r| (r.name.as_str(), &r.outcome))
            .collect();
        assert_eq!(
            seen,
            [
                ("a", &Outcome::Passed),
                ("b", &Outcome::Failed("gone".to_owned()))
            ]
        );
    }

    #[test]
    fn a_test_the_emulator_took_along_runs_again() {
        let progress = progress::Tests::new([], [], 1);
        let mut batch = Batch::new(
            Host::Amd,
            vec![listed("a", &[]), listed("b", &[])],
            &progress,
        );
        batch
            .stdout(&line(&Event::Started {
                name: "a".to_owned(),
            }))
            .unwrap();
        assert!(batch.may_retry());
        batch.put_back("gone");
        assert_eq!(HostRun::arguments(&batch), ["--run-json", "a", "b"]);
        assert_eq!(batch.restarts, ["amd host, during a: gone"]);
        batch
            .stdout(&line(&Event::Started {
                name: "a".to_owned(),
            }))
            .unwrap();
        // Only one retry is allowed.
        assert!(!batch.may_retry());
    }

    #[test]
    fn parameters_are_for_emulated_hosts() {
        let progress = progress::Tests::new([], [], 1);
        let mut batch = Batch::new(
            Host::Here,
            vec![listed("a", &["kvm_intel.ept=0"]), listed("b", &[])],
            &progress,
        );
        batch.skip_what_needs_parameters();
        assert_eq!(HostRun::arguments(&batch), ["--run-json", "b"]);
        assert!(matches!(batch.records[0].outcome, Outcome::Skipped(_)));
    }
}
