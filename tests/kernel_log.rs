//! The log of the host's kernel during a test.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::O_NONBLOCK;

use hypernest_lab::host::Host;
use hypernest_lab::suite::{Test, TestResult};

use crate::vm::is_intel_lab;

pub(crate) const TESTS: &[Test] =
    &[Test::new("kernel_log::reports_of_kvm_are_found", reports_are_found).only_on(&[Host::Here])];

/// The kernel's log from the time of its creation.
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

    /// KVM's warnings and errors since then.
    pub(crate) fn complaints_of_kvm(&mut self) -> io::Result<Vec<String>> {
        Ok(complaints(self.lines()?, is_intel_lab()))
    }

    fn lines(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        // Each read returns one record (Documentation/ABI/testing/dev-kmsg).
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

/// In the last line of a report.
const END: &str = "[ end trace ";

/// Lines that mention KVM, and the first line of each report of the kernel (from `cut here` to `end trace`).
/// A report that had begun before the first line is left out.
fn complaints(lines: Vec<String>, intel_lab: bool) -> Vec<String> {
    let mark = |line: &String| line.contains("[ cut here ]") || line.contains(END);
    let begun_before = lines.iter().position(mark);
    let begun_before = begun_before.filter(|&at| lines[at].contains(END));
    let mut found = Vec::new();
    let mut in_report = false;
    let mut first_of_report = false;
    for line in lines.into_iter().skip(begun_before.map_or(0, |at| at + 1)) {
        if line.contains("[ cut here ]") {
            (in_report, first_of_report) = (true, true);
        } else if line.contains(END) {
            in_report = false;
        } else if in_report {
            // Bochs logs addresses in the page modification log that are not those of pages, and KVM warns of
            // them in vmx_flush_pml_buffer, which the compiler inlines into vmx_handle_exit.
            let of_bochs =
                intel_lab && line.contains("/vmx.c:") && line.contains(" vmx_handle_exit+");
            if std::mem::take(&mut first_of_report) && !of_bochs {
                found.push(line);
            }
        // The lab's TSC is calibrated twice; tests of the clocks check this.
        } else if line.contains("kvm") && !line.contains("requested TSC rate") {
            found.push(line);
        }
    }
    found
}

fn reports_are_found() -> TestResult {
    const REPORT: [&str; 4] = [
        "------------[ cut here ]------------",
        "WARNING: CPU: 0 PID: 1 at arch/x86/kvm/vmx/vmx.c:6228 vmx_handle_exit+0x1/0x2 [kvm_intel]",
        " kvm_arch_vcpu_ioctl_run+0x774/0x1760 [kvm]",
        "---[ end trace 0000000000000000 ]---",
    ];
    const LINE: &str = "kvm: something else";
    let found = |lines: &[&str], intel_lab| {
        complaints(
            lines.iter().map(|&line| line.to_owned()).collect(),
            intel_lab,
        )
    };
    assert_eq!(found(&REPORT, false), [REPORT[1]]);
    assert_eq!(found(&REPORT, true), [""; 0]);
    // The second half of a report, and one that has not ended.
    assert_eq!(found(&[&REPORT[2..], &[LINE]].concat(), false), [LINE]);
    assert_eq!(
        found(&[&[LINE], &REPORT[..3]].concat(), false),
        [LINE, REPORT[1]]
    );
    assert_eq!(
        found(&[&REPORT[..], &REPORT[..]].concat(), false),
        [REPORT[1]; 2]
    );
    Ok(())
}
