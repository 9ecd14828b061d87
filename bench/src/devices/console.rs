//! A running VMM, and its guest's serial console on its standard input and output.

use std::io::{ErrorKind, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::DevicesError;
use crate::output::{Output, read_more};
use crate::vmm::contender::Contender;

/// How much of the console's end an error repeats.
const REPEATED: usize = 2000;

/// Killed when dropped.
pub(super) struct Console {
    who: Contender,
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    said: Vec<u8>,
    /// What was waited for ends here.
    seen: usize,
    limit: Duration,
}

impl Console {
    /// Starts `command`; `limit` is the timeout of each wait.
    pub(super) fn start(
        who: Contender,
        command: &mut Command,
        limit: Duration,
    ) -> Result<Self, DevicesError> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        hypernest::end_with_parent(command);
        let start = |source| DevicesError::Start {
            who: who.name(),
            source,
        };
        let mut child = command.spawn().map_err(start)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(start(ErrorKind::BrokenPipe.into()));
        };
        Ok(Self {
            who,
            child,
            stdin,
            stdout,
            said: Vec::new(),
            seen: 0,
            limit,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types a line.
    pub(super) fn tell(&mut self, line: &str) -> Result<(), DevicesError> {
        let told = writeln!(self.stdin, "{line}");
        told.map_err(|error| self.failed(&format!("takes no input: {error}")))
    }

    /// Waits for `text`, and returns what came before it since the last wait.
    pub(super) fn until(&mut self, text: &str) -> Result<String, DevicesError> {
        let start = Instant::now();
        loop {
            let new = &self.said[self.seen..];
            if let Some(at) = find(new, text.as_bytes()) {
                let before = String::from_utf8_lossy(&new[..at]).into_owned();
                self.seen += at + text.len();
                return Ok(before);
            }
            if !self.read_more(start)? {
                return Err(self.failed(&format!("ended before its guest wrote {text:?}")));
            }
        }
    }

    /// Waits for a line that begins with `word`, and returns its rest.
    pub(super) fn line(&mut self, word: &str) -> Result<String, DevicesError> {
        self.until(word)?;
        let line = self.until("\n")?;
        Ok(line.trim().to_owned())
    }

    /// Waits until the process ends, which it does when the guest has powered off.
    pub(super) fn end(mut self) -> Result<(), DevicesError> {
        let start = Instant::now();
        while self.read_more(start)? {}
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(self.failed(&format!("ended with {status}"))),
            Err(error) => Err(self.failed(&format!("cannot be waited for: {error}"))),
        }
    }

    /// Waits for output, as long as the limit from `start` on allows, and reads it; `false` at its end.
    fn read_more(&mut self, start: Instant) -> Result<bool, DevicesError> {
        match read_more(&mut self.stdout, &mut self.said, start, self.limit) {
            Ok(Output::More) => Ok(true),
            Ok(Output::End) => Ok(false),
            Ok(Output::Late) => {
                let seconds = self.limit.as_secs();
                Err(self.failed(&format!("was waited for for {seconds} s (--limit)")))
            }
            Err(how) => Err(self.failed(&how)),
        }
    }

    pub(super) fn failed(&self, how: &str) -> DevicesError {
        let end = &self.said[self.said.len().saturating_sub(REPEATED)..];
        DevicesError::Failed {
            who: self.who.name(),
            how: how.to_owned(),
            said: String::from_utf8_lossy(end).into_owned(),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Both fail only if the process has already been reaped.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(limit: Duration) -> Console {
        Console::start(Contender::Hypernest, &mut Command::new("sh"), limit).unwrap()
    }

    #[test]
    fn lines_are_told_and_waited_for_in_turn() {
        let mut console = shell(Duration::from_secs(60));
        console
            .tell("echo one; echo @from 5; echo @from 7; echo @end")
            .unwrap();
        assert_eq!(console.line("@from ").unwrap(), "5");
        assert_eq!(console.line("@from ").unwrap(), "7");
        assert_eq!(console.until("@end").unwrap(), "");
        console.tell("exit").unwrap();
        console.end().unwrap();
    }

    #[test]
    fn a_guest_that_says_nothing_is_not_waited_for_without_end() {
        let mut console = shell(Duration::from_millis(20));
        let error = console.until("@never").unwrap_err().to_string();
        assert!(error.contains("--limit"), "{error}");
        let mut console = shell(Duration::from_secs(60));
        console.tell("echo last words; exit 3").unwrap();
        let error = console.until("@never").unwrap_err().to_string();
        assert!(error.contains("last words"), "{error}");
        assert!(console.end().is_err());
    }
}
