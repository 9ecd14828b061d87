//! What takes a VM a while, on a thread of its own.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use super::protocol::JobRequest;
use crate::error::chain;
use crate::life::MachineHandle;
use crate::machine::{AfterSave, Status, migrate, save};

/// What happens to the VM once a job is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VmAfterJob {
    /// It stays.
    Stays,
    /// It ends, and is gone once its run directory is; after a migration, with how that ended.
    Ends(Option<Box<Status>>),
}

/// Done, or why not; then the VM stays.
pub(super) type Done = Result<VmAfterJob, String>;

type ReadStatus = Arc<dyn Fn() -> Status + Send + Sync>;

/// Starts `job` for the VM that `handle` leads to. When it is done, that is in the channel, and then `wake`
/// can be read from.
pub(super) fn start(
    job: JobRequest,
    handle: &MachineHandle,
    wake: &UnixStream,
    status: &ReadStatus,
) -> Receiver<Done> {
    let (done, result) = sync_channel(1);
    let started = wake.try_clone().and_then(|mut wake| {
        let (handle, done, status) = (handle.clone(), done.clone(), Arc::clone(status));
        std::thread::Builder::new()
            .name("job".to_owned())
            .spawn(move || {
                let _watch = handle.watch_thread("job");
                // Nobody may wait for it any more.
                let _heard = done.send(carry_out(job, &handle, &status));
                let _woken = wake.write_all(&[0]);
            })
    });
    if let Err(e) = started {
        let _there_is_room = done.try_send(Err(format!("cannot start a thread for it: {e}")));
    }
    result
}

fn carry_out(job: JobRequest, handle: &MachineHandle, status: &ReadStatus) -> Done {
    match job {
        JobRequest::Save(args) => save(handle, &args.dir, args.then)
            .map(|()| match args.then {
                AfterSave::Stop => VmAfterJob::Ends(None),
                AfterSave::AsBefore | AfterSave::Run | AfterSave::Pause => VmAfterJob::Stays,
            })
            .map_err(|e| chain(&e)),
        // The VM ends, and cannot be asked any more.
        JobRequest::Migrate(args) => {
            migrate::migrate(handle, &args).map(|()| VmAfterJob::Ends(Some(Box::new(status()))))
        }
        JobRequest::CancelMigration => migrate::cancel(handle).map(|()| VmAfterJob::Stays),
    }
}
