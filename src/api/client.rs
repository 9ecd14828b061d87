//! The user's side of the control socket.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::protocol::{ControlReply, ControlRequest};
use super::{ApiError, RunDirs};
use crate::config::is_name;
use crate::machine::Status;
use crate::text::nearest;

/// A VM answers at once or is in trouble.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const MAX_REPLY: u64 = 1 << 20;

/// Returns the status of the VM `name`.
///
/// # Errors
/// If there is no such VM, or it does not answer.
pub fn status(dirs: &RunDirs, name: &str) -> Result<Box<Status>, ApiError> {
    call(dirs, name, &ControlRequest::Status {})?.ok_or_else(|| ApiError::Talk {
        name: name.to_owned(),
        source: ErrorKind::InvalidData.into(),
    })
}

/// Sends `request` to the VM `name`, and waits for its reply. The status comes with the replies to `status`
/// and `migrate`.
///
/// # Errors
/// If there is no such VM, or it does not answer, or refuses.
pub fn call(
    dirs: &RunDirs,
    name: &str,
    request: &ControlRequest,
) -> Result<Option<Box<Status>>, ApiError> {
    let stream = match connect(dirs, name) {
        Ok(Some(stream)) => stream,
        Ok(None) => return Err(no_such_vm(dirs, name)),
        Err(source) => {
            return Err(ApiError::Talk {
                name: name.to_owned(),
                source,
            });
        }
    };
    let reply = talk(stream, request).map_err(|source| ApiError::Talk {
        name: name.to_owned(),
        source: match source.kind() {
            // What a timeout of the socket looks like.
            ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
            _ => source,
        },
    })?;
    match reply {
        ControlReply::Ok(status) => Ok(status),
        ControlReply::Error(why) => Err(ApiError::Refused {
            name: name.to_owned(),
            why,
        }),
    }
}

/// One of the running VMs.
#[derive(Debug)]
pub struct FoundVm {
    /// Its name.
    pub name: String,
    /// How it is, or why that is not known.
    pub status: Result<Box<Status>, ApiError>,
}

/// All running VMs of this user, by name.
///
/// # Errors
/// If the run directories cannot be read.
pub fn list(dirs: &RunDirs) -> Result<Vec<FoundVm>, ApiError> {
    let mut found = Vec::new();
    for name in dirs.names()? {
        let status = status(dirs, &name);
        // The directory of one that has died is left out.
        if !matches!(status, Err(ApiError::NoSuchVm { .. })) {
            found.push(FoundVm { name, status });
        }
    }
    Ok(found)
}

/// `None` if nobody is there.
fn connect(dirs: &RunDirs, name: &str) -> io::Result<Option<UnixStream>> {
    if !is_name(name) {
        return Ok(None);
    }
    match UnixStream::connect(dirs.socket(name)) {
        Ok(stream) => Ok(Some(stream)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn no_such_vm(dirs: &RunDirs, name: &str) -> ApiError {
    let running: Vec<String> = dirs
        .names()
        .unwrap_or_default()
        .into_iter()
        .filter(|other| matches!(connect(dirs, other), Ok(Some(_))))
        .collect();
    ApiError::NoSuchVm {
        name: name.to_owned(),
        meant: nearest(name, running.iter().map(String::as_str)).map(str::to_owned),
        running,
    }
}

fn talk(mut stream: UnixStream, request: &ControlRequest) -> io::Result<ControlReply> {
    // A job takes as long as it takes; should the VM die, the connection ends.
    let waits = request.is_job() || matches!(request, ControlRequest::CancelMigration {});
    let patience = (!waits).then_some(PATIENCE);
    let request = request.write()?;
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_REPLY)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(ControlReply::read(&line)?)
}
