//! What the host's kernel logs while a test runs.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::O_NONBLOCK;

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
        let mut lines = Vec::new();
        // Each read gives one record (Documentation/ABI/testing/dev-kmsg).
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => return Ok(lines),
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    let line = text.split_once(';').map_or(&*text, |(_, line)| line);
                    // Lines of a back trace do not begin with the module's name: in the Intel lab KVM warns of addresses in
                    // the page modification log that are not those of pages (`vmx_flush_pml_buffer`), which is Bochs's fault.
                    // The lab's TSC is calibrated twice, which tests of the clocks look after.
                    if line.starts_with("kvm") && !line.contains("requested TSC rate") {
                        lines.push(line.trim_end().to_owned());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lines),
                // Records were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
