//! `hypernest pause`, `resume`, `reset`, `power-button` and `stop`: requests to a running VM.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::{CliError, ExitStatus};
use crate::api::{ApiError, RunDirs, call, status};
use crate::life::Request;
use crate::machine::State;

/// Maximum wait until a request takes effect.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(10);

/// Which VM.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The VM's name
    name: String,
}

/// Makes the request, and waits until it takes effect where the status shows that.
///
/// # Errors
/// If there is no such VM, or the request does not take effect.
pub fn run(args: &Args, request: Request) -> Result<ExitStatus, CliError> {
    carry_out(&RunDirs::of_user(), &args.name, request, TIMEOUT)
}

fn carry_out(
    dirs: &RunDirs,
    name: &str,
    request: Request,
    patience: Duration,
) -> Result<ExitStatus, CliError> {
    match (request, call(dirs, name, &request.into())) {
        // The reply arrives after the VM has ended and released its name; without one, its process has died.
        (Request::Kill, Ok(_)) => return Ok(ExitStatus::DONE),
        (Request::Kill, Err(ApiError::Talk { source, .. })) => {
            return match source.kind() {
                ErrorKind::TimedOut => Err(CliError::NotDone {
                    name: name.to_owned(),
                    done: "ended",
                }),
                _ => Ok(ExitStatus::DONE),
            };
        }
        (_, reply) => reply?,
    };
    let done = match request {
        Request::Pause => "paused",
        Request::Resume => "resumed",
        // The guest decides whether and when to react.
        Request::Reset | Request::PowerButton | Request::Kill => return Ok(ExitStatus::DONE),
    };
    let deadline = Instant::now() + patience;
    loop {
        let state = match status(dirs, name) {
            Ok(status) => status.state,
            // The VM accepted the request, and its guest has ended it since.
            Err(ApiError::NoSuchVm { .. } | ApiError::Talk { .. })
                if request == Request::Resume =>
            {
                return Ok(ExitStatus::DONE);
            }
            Err(e) => return Err(e.into()),
        };
        match (request, state) {
            (Request::Pause, State::Paused | State::Crashed)
            | (Request::Resume, State::Running) => return Ok(ExitStatus::DONE),
            _ if Instant::now() >= deadline => {
                return Err(CliError::NotDone {
                    name: name.to_owned(),
                    done,
                });
            }
            _ => std::thread::sleep(STEP),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::api::Server;
    use crate::life::{Inbox, UserRequest, channel};
    use crate::machine::Status;

    fn in_state(state: State) -> Status {
        Status {
            name: "vm".to_owned(),
            pid: 1,
            version: String::new(),
            state,
            uptime_ms: 0,
            resets: 0,
            vcpus: 1,
            memory: 0,
            hv: Vec::new(),
            crash: None,
            tsc: crate::machine::TscStatus::default(),
            ptys: std::collections::BTreeMap::new(),
            migration: None,
            ram: None,
            devices: Vec::new(),
        }
    }

    fn next(inbox: &Inbox) -> UserRequest {
        inbox.wait();
        inbox.next_request().unwrap()
    }

    /// Returns when the status shows the request's effect, or the VM has ended.
    #[test]
    fn requests_are_waited_for() {
        let tmp = tempfile::tempdir().unwrap();
        let dirs = RunDirs::at(tmp.path().join("hypernest"));
        let (_, handle, events) = channel();
        let state = Arc::new(Mutex::new(State::Running));
        let told = Arc::clone(&state);
        let server = Server::start(dirs.claim("vm").unwrap(), handle, move || {
            in_state(*told.lock().unwrap())
        })
        .unwrap();
        let shown = Arc::clone(&state);
        let vm = std::thread::spawn(move || {
            let mut seen = Vec::new();
            loop {
                let UserRequest::Life(request) = next(&events) else {
                    continue;
                };
                seen.push(request);
                match request {
                    Request::Pause => *shown.lock().unwrap() = State::Paused,
                    Request::Resume => *shown.lock().unwrap() = State::Running,
                    Request::Kill => break,
                    _ => {}
                }
            }
            drop(server);
            seen
        });
        let requests = [
            Request::Pause,
            Request::Resume,
            Request::Reset,
            Request::PowerButton,
            Request::Kill,
        ];
        for request in requests {
            carry_out(&dirs, "vm", request, TIMEOUT).unwrap();
            match request {
                // Its name is free by then.
                Request::Kill => drop(dirs.claim("vm").unwrap()),
                Request::Pause => assert_eq!(*state.lock().unwrap(), State::Paused),
                Request::Resume => assert_eq!(*state.lock().unwrap(), State::Running),
                _ => {}
            }
        }
        // A kill may overtake requests that are not waited for.
        let seen = vm.join().unwrap();
        assert_eq!(seen[..2], requests[..2]);
        assert_eq!(seen.last(), Some(&Request::Kill));
        assert!(matches!(
            carry_out(&dirs, "vm", Request::Kill, TIMEOUT),
            Err(CliError::Api(ApiError::NoSuchVm { .. }))
        ));
    }

    #[test]
    fn a_vm_that_ends_as_soon_as_it_goes_on_has_been_resumed() {
        let tmp = tempfile::tempdir().unwrap();
        let dirs = RunDirs::at(tmp.path().join("hypernest"));
        let (_, handle, events) = channel();
        let dir = dirs.claim("vm").unwrap();
        let server = Server::start(dir, handle, || in_state(State::Paused)).unwrap();
        let vm = std::thread::spawn(move || {
            let resumed = next(&events);
            drop(server);
            resumed
        });
        carry_out(&dirs, "vm", Request::Resume, TIMEOUT).unwrap();
        let resumed = vm.join().unwrap();
        assert!(matches!(resumed, UserRequest::Life(Request::Resume)));
    }

    #[test]
    fn a_vm_that_does_nothing_is_told() {
        let tmp = tempfile::tempdir().unwrap();
        let dirs = RunDirs::at(tmp.path().join("hypernest"));
        let (_, handle, _inbox) = channel();
        let dir = dirs.claim("vm").unwrap();
        let _server = Server::start(dir, handle, || in_state(State::Running)).unwrap();
        assert!(matches!(
            carry_out(&dirs, "vm", Request::Pause, Duration::ZERO),
            Err(CliError::NotDone { done: "paused", .. })
        ));
    }
}
