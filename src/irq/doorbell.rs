//! Doorbells: writes of a driver that signal an eventfd and do not exit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;
use nix::sys::eventfd::EventFd;
use tracing::warn;

use crate::bus::lock;
use crate::error::chain;
use crate::kvm::attachment::VmAttachment;
use crate::kvm::{KvmError, eventfd};

pub use crate::kvm::eventfd::{IoAddress, Match};

/// All doorbells of a machine.
#[derive(Clone, Debug, Default)]
pub struct Doorbells(Arc<Mutex<All>>);

#[derive(Debug, Default)]
struct All {
    vm: Option<Arc<VmFd>>,
    bells: BTreeMap<u64, Bell>,
    next: u64,
}

#[derive(Debug)]
struct Bell {
    event: Arc<EventFd>,
    which: Match,
    at: Option<IoAddress>,
    /// It is registered with the VM.
    assigned: bool,
}

impl Bell {
    fn assign(&mut self, vm: Option<&Arc<VmFd>>) -> Result<(), KvmError> {
        if let (Some(vm), Some(at), false) = (vm, self.at, self.assigned) {
            eventfd::assign_io(vm, &self.event, at, self.which)?;
            self.assigned = true;
        }
        Ok(())
    }

    fn deassign(&mut self, vm: Option<&Arc<VmFd>>) {
        if let (Some(vm), Some(at), true) = (vm, self.at, self.assigned) {
            // KVM fails this only for what was not assigned.
            let _gone = eventfd::deassign_io(vm, &self.event, at, self.which);
        }
        self.assigned = false;
    }
}

impl Doorbells {
    /// A new one, at no address yet.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn doorbell(&self, which: Match) -> Result<Doorbell, KvmError> {
        let event = Arc::new(eventfd::new()?);
        let mut all = lock(&self.0);
        let id = all.next;
        all.next += 1;
        let bell = Bell {
            event: Arc::clone(&event),
            which,
            at: None,
            assigned: false,
        };
        all.bells.insert(id, bell);
        Ok(Doorbell {
            all: self.clone(),
            id,
            event,
        })
    }
}

impl VmAttachment for Doorbells {
    /// A doorbell that KVM does not take stays with its device's register, where writes exit.
    fn attach(&self, vm: &Arc<VmFd>) -> Result<(), KvmError> {
        let mut all = lock(&self.0);
        for bell in all.bells.values_mut() {
            if let Err(e) = bell.assign(Some(vm)) {
                warn!("a doorbell exits to user space: {}", chain(&e));
            }
        }
        all.vm = Some(Arc::clone(vm));
        Ok(())
    }

    fn detach(&self) {
        let mut all = lock(&self.0);
        let vm = all.vm.take();
        for bell in all.bells.values_mut() {
            bell.deassign(vm.as_ref());
        }
    }
}

/// An eventfd that writes of the guest at an address signal. It is attached again to the VM that a reset
/// makes, unless its device has detached it. Dropping it frees it.
///
/// It only saves exits: a write exits and reaches the register's device while there is no doorbell, while it
/// moves, or where KVM took none, so the device handles both. KVM looks for doorbells before anything else at
/// the address: a device detaches one whose register is hidden or not decoded.
#[derive(Debug)]
pub struct Doorbell {
    all: Doorbells,
    id: u64,
    event: Arc<EventFd>,
}

impl Doorbell {
    /// What is signalled. Reads do not block.
    pub fn eventfd(&self) -> &Arc<EventFd> {
        &self.event
    }

    /// Puts it at `at`, or moves it there.
    ///
    /// # Errors
    /// If KVM refuses: another doorbell is there, or there are too many. It is at no address then.
    pub fn attach(&self, at: IoAddress) -> Result<(), KvmError> {
        self.place(Some(at))
    }

    /// Takes it away from where it is.
    pub fn detach(&self) {
        let _nothing_to_assign = self.place(None);
    }

    fn place(&self, at: Option<IoAddress>) -> Result<(), KvmError> {
        let mut all = lock(&self.all.0);
        let All { vm, bells, .. } = &mut *all;
        let Some(bell) = bells.get_mut(&self.id).filter(|bell| bell.at != at) else {
            return Ok(());
        };
        bell.deassign(vm.as_ref());
        bell.at = at;
        bell.assign(vm.as_ref()).inspect_err(|_| bell.at = None)
    }

    /// Where it is.
    pub fn address(&self) -> Option<IoAddress> {
        lock(&self.all.0).bells.get(&self.id)?.at
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        self.detach();
        lock(&self.all.0).bells.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::{Kvm, VcpuFd};

    use super::*;
    use crate::kvm::exit::{self, Exit};
    use crate::kvm::memory;
    use crate::memory::{GuestRam, MemoryConfig};
    use crate::units::Gpa;

    /// Real mode: writes 7 to the byte at 0x20010, a 16-bit 7 to port 0x90, and ends at port 0x80.
    const CODE: [u8; 20] = [
        0xb8, 0x00, 0x20, // mov ax, 0x2000
        0x8e, 0xd8, // mov ds, ax
        0xc6, 0x06, 0x10, 0x00, 0x07, // mov byte [0x10], 7
        0xb8, 0x07, 0x00, // mov ax, 7
        0xba, 0x90, 0x00, // mov dx, 0x90
        0xef, // out dx, ax
        0xb2, 0x80, // mov dl, 0x80
        0xee, // out dx, al
    ];
    const REGISTER: IoAddress = IoAddress::Mmio(0x2_0010);
    const PORT: IoAddress = IoAddress::Port(0x90);

    struct Guest {
        vm: Arc<VmFd>,
        vcpu: VcpuFd,
        _ram: GuestRam,
    }

    fn guest() -> Option<Guest> {
        let vm = Kvm::new().ok()?.create_vm().unwrap();
        let config = MemoryConfig::of(0);
        let ram = GuestRam::new(&config, &[(Gpa(0), 0x1_0000)]).unwrap();
        ram.write(Gpa(0x1000), &CODE).unwrap();
        memory::add_ram(&vm, &ram).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        Some(Guest {
            vm: Arc::new(vm),
            vcpu,
            _ram: ram,
        })
    }

    impl Guest {
        /// Runs the program; how often it exited before its end.
        fn exits(&mut self) -> usize {
            let mut regs = self.vcpu.get_regs().unwrap();
            (regs.rip, regs.rflags) = (0x1000, 2);
            self.vcpu.set_regs(&regs).unwrap();
            for exits in 0.. {
                match exit::run(&mut self.vcpu) {
                    Exit::PortOut { port: 0x80, .. } => return exits,
                    Exit::PortOut { port: 0x90, .. } | Exit::MmioWrite { addr: 0x2_0010, .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            unreachable!()
        }
    }

    fn rings(doorbell: &Doorbell) -> u64 {
        doorbell.eventfd().read().unwrap_or(0)
    }

    #[test]
    fn a_doorbell_takes_the_writes_at_its_address_and_moves() {
        let Some(mut guest) = guest() else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let doorbells = Doorbells::default();
        let bell = doorbells.doorbell(Match::Any).unwrap();
        let port = doorbells.doorbell(Match::U16(7)).unwrap();
        let other = doorbells.doorbell(Match::U16(8)).unwrap();
        port.attach(PORT).unwrap();
        other.attach(PORT).unwrap();
        doorbells.attach(&guest.vm).unwrap();
        assert_eq!((guest.exits(), rings(&port), rings(&other)), (1, 1, 0));
        bell.attach(IoAddress::Mmio(0x3_0000)).unwrap();
        assert_eq!((guest.exits(), rings(&bell)), (1, 0));
        bell.attach(REGISTER).unwrap();
        bell.attach(REGISTER).unwrap();
        assert_eq!((guest.exits(), rings(&bell)), (0, 1));
        assert_eq!(bell.address(), Some(REGISTER));
        bell.detach();
        assert_eq!((guest.exits(), rings(&bell)), (1, 0));
        drop(port);
        assert_eq!(guest.exits(), 2);
    }

    #[test]
    fn the_next_vm_has_them_again_and_a_taken_address_is_refused() {
        let (Some(mut first), Some(mut second)) = (guest(), guest()) else {
            return eprintln!("skipped: /dev/kvm does not open");
        };
        let doorbells = Doorbells::default();
        let bell = doorbells.doorbell(Match::Any).unwrap();
        doorbells.attach(&first.vm).unwrap();
        bell.attach(REGISTER).unwrap();
        let rival = doorbells.doorbell(Match::Any).unwrap();
        assert!(rival.attach(REGISTER).is_err());
        assert_eq!(rival.address(), None);
        doorbells.detach();
        assert_eq!((first.exits(), rings(&bell)), (2, 0));
        doorbells.attach(&second.vm).unwrap();
        assert_eq!((second.exits(), rings(&bell)), (1, 1));
        drop(bell);
        rival.attach(REGISTER).unwrap();
        assert_eq!((second.exits(), rings(&rival)), (1, 1));
    }
}
