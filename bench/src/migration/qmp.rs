//! The part of QEMU's monitor protocol that a migration needs: JSON objects, one per line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::MigrationError;

const STEP: Duration = Duration::from_millis(5);

/// A connection to a monitor.
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    until: Instant,
}

fn failed(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> MigrationError {
    MigrationError::Qmp {
        what: what.to_owned(),
        source: Some(Box::new(source)),
    }
}

impl Qmp {
    /// Connects to the socket at `path` once QEMU has created it; all later calls share the timeout `limit`.
    pub(crate) fn connect(path: &Path, limit: Duration) -> Result<Self, MigrationError> {
        let until = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => {
                    return Err(failed("it cannot be reached", error));
                }
                Err(_) => thread::sleep(STEP),
            }
        };
        let timeout = stream.set_read_timeout(Some(limit));
        timeout.map_err(|e| failed("it cannot be reached", e))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            until,
        };
        qmp.read()?;
        qmp.call("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns its result.
    pub(crate) fn call(
        &mut self,
        command: &str,
        arguments: &Value,
    ) -> Result<Value, MigrationError> {
        let line = json!({"execute": command, "arguments": arguments});
        let sent = writeln!(self.stream.get_mut(), "{line}");
        sent.map_err(|e| failed("it does not accept commands", e))?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                return Err(MigrationError::Qmp {
                    what: format!("{command}: {error}"),
                    source: None,
                });
            }
            // All other messages are events.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Starts a migration to `uri` and waits until it is done.
    pub(crate) fn migrate(&mut self, uri: &str) -> Result<(), MigrationError> {
        self.call("migrate", &json!({"uri": uri}))?;
        loop {
            let state = self.call("query-migrate", &json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    return Err(MigrationError::Qmp {
                        what: format!("the migration failed: {state}"),
                        source: None,
                    });
                }
                _ if Instant::now() > self.until => {
                    return Err(MigrationError::Qmp {
                        what: format!("the migration does not end: {state}"),
                        source: None,
                    });
                }
                _ => thread::sleep(STEP),
            }
        }
    }

    fn read(&mut self) -> Result<Value, MigrationError> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        read.map_err(|e| failed("it does not reply", e))?;
        serde_json::from_str(&line).map_err(|e| failed("it sends text that is not JSON", e))
    }
}
