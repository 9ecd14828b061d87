//! What takes a VM a while, on a thread of its own.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, sync_channel};

use super::protocol::Job;
use crate::error::chain;
use crate::life::LifeHandle;
use crate::machine::migrate;
use crate::machine::save;

/// Done, or why not.
pub(super) type Done = Result<(), String>;

/// Starts `job` for the VM that `life` leads to. When it is done, that is in the channel, and then `wake` can be read from.
pub(super) fn start(job: Job, life: &LifeHandle, wake: &UnixStream) -> Receiver<Done> {
    let (done, result) = sync_channel(1);
    let started = wake.try_clone().and_then(|mut wake| {
        let (life, done) = (life.clone(), done.clone());
        std::thread::Builder::new()
            .name("job".to_owned())
            .spawn(move || {
                // Nobody may wait for it any more.
                let _heard = done.send(carry_out(job, &life));
                let _woken = wake.write_all(&[0]);
            })
    });
    if let Err(e) = started {
        let _there_is_room = done.try_send(Err(format!("cannot start a thread for it: {e}")));
    }
    result
}

fn carry_out(job: Job, life: &LifeHandle) -> Done {
    match job {
        Job::Save(args) => save(life, &args.dir, args.then).map_err(|e| chain(&e)),
        Job::Migrate(args) => migrate::migrate(life, &args),
        Job::CancelMigration => migrate::cancel(life),
    }
}
