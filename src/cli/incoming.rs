//! `hypernest run --incoming`: receives a VM from another process and runs it.

use std::io::Cursor;

use super::migrate::SecurityArgs;
use super::run::to_its_end;
use super::{CliError, ExitStatus};
use crate::api::{ApiError, RunDir, RunDirs, Server};
use crate::boot::BootFiles;
use crate::config::{HostLimits, LocalFlags, adapt};
use crate::error::chain;
use crate::kvm::host::HostCaps;
use crate::machine::{Identity, Local, Machine, Unloaded, outlook, workaround};
use crate::memory::GuestRam;
use crate::migration::transport::Security;
use crate::migration::wire::{MAX_PROMISE, MAX_STATE};
use crate::migration::{
    Address, Cancel, DestinationVm, Listener, MigrationError, MigrationVmError, STALL, destination,
    receive,
};
use crate::state::Sections;

/// Waits at `address` for a VM, and runs it until it ends.
pub(super) fn run(
    address: &str,
    security: &SecurityArgs,
    flags: LocalFlags,
    paused: bool,
) -> Result<ExitStatus, CliError> {
    let wrong = |why| CliError::Argument {
        flag: "--incoming",
        why,
    };
    let address: Address = address
        .parse()
        .map_err(|e: crate::migration::transport::BadAddress| wrong(e.to_string()))?;
    let security = Security::from_flags(
        security.tls_cert.as_ref(),
        security.tls_key.as_ref(),
        security.tls_ca.as_ref(),
        security.plaintext,
    );
    let security = security.map_err(wrong)?;
    let failed = |e: MigrationError| CliError::Incoming(Box::new(e));
    let cancel = Cancel::new().map_err(|source| {
        failed(MigrationError::Resources {
            doing: "wait for a VM",
            source,
        })
    })?;
    let listener = Listener::new(address, &security, STALL, &cancel);
    let mut listener = listener.map_err(|e| failed(e.into()))?;
    let mut incoming = Incoming {
        flags,
        paused,
        prepared: None,
        machine: None,
        server: None,
    };
    let options = destination::DestinationOptions::default();
    receive(&mut incoming, &mut listener, &options, &cancel).map_err(failed)?;
    drop(listener);
    // Both exist after a successful migration.
    let (Some(server), Some(machine)) = (incoming.server, incoming.machine) else {
        return Ok(ExitStatus::FAILED);
    };
    let _server = match server {
        Ok(server) => Some(server),
        // The VM runs on no other host any more, so it continues without a control socket.
        Err(e) => {
            tracing::error!("the VM runs, but cannot be controlled: {}", chain(&e));
            None
        }
    };
    to_its_end(machine)
}

struct Incoming {
    flags: LocalFlags,
    paused: bool,
    prepared: Option<Prepared>,
    machine: Option<Machine>,
    /// Set once the VM belongs to this process.
    server: Option<Result<Server, ApiError>>,
}

/// Told to the source, whose user may not see this process: the remedy is in the message.
fn no_directory(e: &ApiError) -> String {
    let remedy = match e {
        ApiError::NameTaken { .. } => "; start `hypernest run --incoming` with another --name",
        _ => "",
    };
    format!("{}{remedy}", chain(e))
}

struct Prepared {
    local: Local,
    dir: RunDir,
    ram: GuestRam,
    /// Created while RAM is being transferred, so that the guest does not wait for it.
    unloaded: Option<Unloaded>,
}

impl Incoming {
    fn check(&self, promise: &[u8]) -> Result<Prepared, Vec<String>> {
        let one = |e: &dyn std::error::Error| vec![chain(e)];
        let mut sections =
            Sections::decode(Cursor::new(promise), MAX_PROMISE as u64).map_err(|e| one(&e))?;
        let identity = Identity::take(&mut sections).map_err(|e| one(&e))?;
        sections.finish().map_err(|e| one(&e))?;
        let adapted = adapt(&identity.config, &self.flags, HostLimits::read());
        let adapted = adapted.map_err(|e| one(&e))?;
        for warning in &adapted.checked.warnings {
            tracing::warn!("{warning}");
        }
        let boot_is_local = adapted.boot_is_local;
        let boot = boot_is_local.then(|| BootFiles::open(&adapted.checked.config.boot));
        let local = Local {
            config: adapted.checked.config,
            host_khz: adapted.host_khz,
            paused: self.paused,
            boot: boot.transpose().map_err(|e| one(&e))?,
        };
        let (mut host, kvm) = HostCaps::for_a_vm().map_err(|e| one(&e))?;
        host.ask_tsc(&kvm).map_err(|e| one(&e))?;
        outlook(&identity, &local, &host).map_err(|lacks| {
            let each = lacks.iter().map(ToString::to_string);
            each.chain(workaround(&lacks)).collect::<Vec<_>>()
        })?;
        let dir = RunDirs::of_user()
            .claim(&local.config.name)
            .map_err(|e| vec![no_directory(&e)])?;
        let (memory, ranges) = (&local.config.memory, local.config.ram_ranges());
        let ram = GuestRam::new(memory, &ranges).map_err(|e| one(&e))?;
        let unloaded = Unloaded::on(host, kvm, &identity, ram.clone(), local.clone(), &[]);
        Ok(Prepared {
            local,
            dir,
            ram,
            unloaded: Some(unloaded.map_err(|e| one(&e))?),
        })
    }
}

impl DestinationVm for Incoming {
    fn prepare(&mut self, promise: &[u8]) -> Result<GuestRam, Vec<String>> {
        let prepared = self.check(promise)?;
        let ram = prepared.ram.clone();
        self.prepared = Some(prepared);
        Ok(ram)
    }

    fn keep_boot_files(&mut self, files: Vec<Vec<u8>>) -> Result<(), MigrationVmError> {
        let prepared = self.prepared.as_mut().ok_or("nothing was prepared")?;
        // Boot files named on this host take precedence.
        if prepared.local.boot.is_none() {
            let files = BootFiles::received(&prepared.local.config.boot, files)?;
            prepared.local.boot = Some(files.clone());
            if let Some(unloaded) = &mut prepared.unloaded {
                unloaded.boot_from(files)?;
            }
        }
        Ok(())
    }

    fn load(&mut self, state: Vec<u8>, running: bool) -> Result<(), MigrationVmError> {
        let prepared = self.prepared.as_mut().ok_or("nothing was prepared")?;
        let mut sections = Sections::decode(Cursor::new(state), MAX_STATE as u64)?;
        let identity = Identity::take(&mut sections)?;
        let unloaded = match prepared.unloaded.take() {
            Some(unloaded) if unloaded.matches(&identity) => unloaded,
            // Its devices hold files and sockets that the next attempt needs.
            before => {
                drop(before);
                let (ram, local) = (prepared.ram.clone(), prepared.local.clone());
                Unloaded::new(&identity, ram, local, &[])?
            }
        };
        let mut machine = unloaded.load(&identity, sections)?;
        machine.acquire()?;
        if !running {
            machine.stay_paused();
        }
        self.machine = Some(machine);
        Ok(())
    }

    fn run(&mut self) {
        if let (Some(machine), Some(prepared)) = (&mut self.machine, self.prepared.take()) {
            machine.start();
            // Before the source is notified: a client that sees the end of the migration can control the VM
            // here.
            let board = machine.board();
            let server = Server::start(prepared.dir, machine.handle(), move || board.status());
            self.server = Some(server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_name_is_refused_with_the_flag_for_another() {
        let taken = ApiError::NameTaken {
            name: "vm".to_owned(),
            pid: Some(7),
        };
        let told = no_directory(&taken);
        assert!(told.starts_with("a VM named vm is already running (process 7); "));
        assert!(told.contains("another --name"), "{told}");
    }
}
