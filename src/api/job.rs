//! Requests that take a VM a while, each on a thread of its own.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, sync_channel};

use super::protocol::{Balloon, DiskResize, DiskThrottle, NetLink, Save};
use crate::block::{DiskRequest, Resize, ThrottleChange};
use crate::bus::DeviceRequest;
use crate::error::chain;
use crate::life::MachineHandle;
use crate::machine::{self, AfterSave, Migrate, Status};
use crate::memory::balloon::BalloonRequest;
use crate::net::control::NetRequest;
use crate::sys::{Role, spawn};

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

/// Starts `job` for the VM that `handle` leads to. When it is done, that is in the channel, and then `wake`
/// can be read from.
pub(super) fn start(
    handle: &MachineHandle,
    wake: &UnixStream,
    job: impl FnOnce(&MachineHandle) -> Done + Send + 'static,
) -> Receiver<Done> {
    let (done, result) = sync_channel(1);
    let started = wake.try_clone().and_then(|mut wake| {
        let (handle, done) = (handle.clone(), done.clone());
        spawn(Role::Job, move || {
            let _watch = handle.watch_thread();
            // Nobody may wait for it any more.
            let _heard = done.send(job(&handle));
            let _woken = wake.write_all(&[0]);
        })
    });
    if let Err(e) = started {
        let _there_is_room = done.try_send(Err(format!("cannot start a thread for it: {e}")));
    }
    result
}

/// Saves the VM.
pub(super) fn save(handle: &MachineHandle, args: &Save) -> Done {
    machine::save(handle, &args.dir, args.then)
        .map(|()| match args.then {
            AfterSave::Stop => VmAfterJob::Ends(None),
            AfterSave::AsBefore | AfterSave::Run | AfterSave::Pause => VmAfterJob::Stays,
        })
        .map_err(|e| chain(&e))
}

/// Migrates the VM. It ends then, so its last status is read here.
pub(super) fn migrate(handle: &MachineHandle, args: &Migrate, status: impl Fn() -> Status) -> Done {
    machine::migrate::migrate(handle, args).map(|()| VmAfterJob::Ends(Some(Box::new(status()))))
}

/// Cancels the migration.
pub(super) fn cancel_migration(handle: &MachineHandle) -> Done {
    machine::migrate::cancel(handle).map(|()| VmAfterJob::Stays)
}

/// Gives a disk another size.
pub(super) fn resize_disk(handle: &MachineHandle, args: &DiskResize) -> Done {
    let resize = Resize {
        size: args.size,
        shrink: args.shrink,
    };
    request_device(
        handle,
        &args.id,
        DeviceRequest::Disk(DiskRequest::Resize(resize)),
    )
}

/// Limits a disk.
pub(super) fn throttle_disk(handle: &MachineHandle, args: &DiskThrottle) -> Done {
    let change = ThrottleChange {
        iops: args.iops,
        bps: args.bps,
    };
    request_device(
        handle,
        &args.id,
        DeviceRequest::Disk(DiskRequest::Throttle(change)),
    )
}

/// Sets the link of a network card.
pub(super) fn link_net(handle: &MachineHandle, args: &NetLink) -> Done {
    let request = DeviceRequest::Net(NetRequest::Plug(args.up));
    request_device(handle, &args.id, request)
}

/// Has a balloon leave the guest so much memory.
pub(super) fn inflate_balloon(handle: &MachineHandle, args: &Balloon) -> Done {
    let request = DeviceRequest::Balloon(BalloonRequest::Target(args.size));
    request_device(handle, &args.id, request)
}

fn request_device(handle: &MachineHandle, id: &str, request: DeviceRequest) -> Done {
    let done = machine::request_device(handle, id, request);
    done.map(|()| VmAfterJob::Stays).map_err(|e| chain(&e))
}
