//! What takes a VM a while, on a thread of its own.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use super::protocol::Job;
use crate::error::chain;
use crate::life::LifeHandle;
use crate::machine::{Status, migrate, save};

/// Done, and after a migration how it ended, or why not.
pub(super) type Done = Result<Option<Box<Status>>, String>;

type ReadStatus = Arc<dyn Fn() -> Status + Send + Sync>;

/// Starts `job` for the VM that `life` leads to. When it is done, that is in the channel, and then `wake` can be read from.
pub(super) fn start(
    job: Job,
    life: &LifeHandle,
    wake: &UnixStream,
    status: &ReadStatus,
) -> Receiver<Done> {
    let (done, result) = sync_channel(1);
    let started = wake.try_clone().and_then(|mut wake| {
        let (life, done, status) = (life.clone(), done.clone(), Arc::clone(status));
        std::thread::Builder::new()
            .name("job".to_owned())
            .spawn(move || {
                // Nobody may wait for it any more.
                let _heard = done.send(carry_out(job, &life, &status));
                let _woken = wake.write_all(&[0]);
            })
    });
    if let Err(e) = started {
        let _there_is_room = done.try_send(Err(format!("cannot start a thread for it: {e}")));
    }
    result
}

fn carry_out(job: Job, life: &LifeHandle, status: &ReadStatus) -> Done {
    match job {
        Job::Save(args) => save(life, &args.dir, args.then)
            .map(|()| None)
            .map_err(|e| chain(&e)),
        // The VM ends, and cannot be asked any more.
        Job::Migrate(args) => migrate::migrate(life, &args).map(|()| Some(Box::new(status()))),
        Job::CancelMigration => migrate::cancel(life).map(|()| None),
    }
}
