//! What the host's kernel logs while a test runs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::O_NONBLOCK;

use crate::vm::is_intel_lab;

/// The kernel's log from some moment on.
pub(crate) struct KernelLog(File);

impl KernelLog {
    pub(crate) fn from_now() -> io::Result<Self> {
        let mut options = File::options();
        let mut log = options
            .read(true)
            .custom_flags(O_NONBLOCK)
            .open("/dev/kmsg")?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self(log))
    }

    /// The lines since then in which KVM complains.
    pub(crate) fn complaints_of_kvm(&mut self) -> io::Result<Vec<String>> {
        Ok(complaints(self.lines()?, is_intel_lab()))
    }

    fn lines(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        // Each read gives one record (Documentation/ABI/testing/dev-kmsg).
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => return Ok(lines),
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    let line = text.split_once(';').map_or(&*text, |(_, line)| line);
                    lines.push(line.trim_end().to_owned());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lines),
                // Records were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Lines that mention KVM, with each report of the kernel (from `cut here` to `end trace`) as one.
fn complaints(lines: Vec<String>, intel_lab: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut report: Option<Vec<String>> = None;
    for line in lines {
        if line.contains("[ cut here ]") {
            report = Some(Vec::new());
        } else if line.contains("[ end trace ") {
            let report = report.take().unwrap_or_default().join("\n");
            // Bochs logs addresses in the page modification log that are not those of pages, and KVM warns of
            // them.
            if !(intel_lab && report.contains(" vmx_flush_pml_buffer+")) {
                found.push(report);
            }
        } else if let Some(report) = &mut report {
            report.push(line);
        // The lab's TSC is calibrated twice, which tests of the clocks look after.
        } else if line.contains("kvm") && !line.contains("requested TSC rate") {
            found.push(line);
        }
    }
    // One that has not come to its end.
    found.extend(report.map(|report| report.join("\n")));
    found
}
