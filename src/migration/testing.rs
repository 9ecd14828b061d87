//! Fakes: two ends of a VM that is only RAM, and a connection between them that fails on demand.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::peer::Process;
use super::*;
use crate::boot::{Boot, BootFiles, KernelBoot};
use crate::memory::MemoryConfig;
use crate::memory::dirty::PAGE;
use crate::units::Gpa;

/// Pages of the fake guest: three regions of 1 MiB, so that both of two connections carry pages.
pub(super) const PAGES: u64 = 3 * 256;
pub(super) const STATE: &[u8] = b"everything else";
pub(super) const BOOT: [&[u8]; 2] = [b"kernel", b"initrd"];
pub(super) const PROMISE: &[u8] = b"what the guest was promised";

pub(super) fn ram() -> GuestRam {
    let config = MemoryConfig::of(0);
    GuestRam::new(&config, &[(Gpa(0), PAGES * PAGE)]).unwrap()
}

/// Which end runs the VM, and whether the processes live.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) at_source: AtomicBool,
    pub(super) at_destination: AtomicBool,
    pub(super) source_dead: AtomicBool,
    pub(super) destination_dead: AtomicBool,
}

impl World {
    fn check(&self) {
        let both =
            self.at_source.load(Ordering::SeqCst) && self.at_destination.load(Ordering::SeqCst);
        assert!(!both, "two run");
    }

    pub(super) fn kill_source(&self) {
        self.source_dead.store(true, Ordering::SeqCst);
        self.at_source.store(false, Ordering::SeqCst);
    }

    pub(super) fn kill_destination(&self) {
        self.destination_dead.store(true, Ordering::SeqCst);
        self.at_destination.store(false, Ordering::SeqCst);
    }

    pub(super) fn running(&self) -> (bool, bool) {
        (
            self.at_source.load(Ordering::SeqCst),
            self.at_destination.load(Ordering::SeqCst),
        )
    }
}

/// The fault of a fake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fails {
    #[default]
    Never,
    Promise,
    Log,
    /// Fails at this call.
    Collect(u32),
    Stop,
    Prepare,
    OtherRam,
    Load,
}

pub(super) struct FakeOrigin {
    pub(super) ram: GuestRam,
    pub(super) world: Arc<World>,
    pub(super) fails: Fails,
    pub(super) running: bool,
    collected: u32,
    stopped: bool,
    pub(super) throttled: Vec<u8>,
    /// Pages that the guest writes per round while it runs.
    pub(super) busy: u64,
    /// Called at each collection, with its number.
    pub(super) at_collect: Box<dyn FnMut(u32)>,
}

impl FakeOrigin {
    pub(super) fn new(world: &Arc<World>) -> Self {
        let ram = ram();
        for page in (0..PAGES).step_by(3) {
            ram.write(Gpa(page * PAGE), &page.to_le_bytes()).unwrap();
        }
        world.at_source.store(true, Ordering::SeqCst);
        Self {
            ram,
            world: Arc::clone(world),
            fails: Fails::Never,
            running: true,
            collected: 0,
            stopped: false,
            throttled: Vec::new(),
            busy: 2,
            at_collect: Box::new(|_| {}),
        }
    }
}

fn fail() -> MigrationVmError {
    "injected: No space left on device".into()
}

impl SourceVm for FakeOrigin {
    fn promise(&mut self) -> Result<Vec<u8>, MigrationVmError> {
        if self.fails == Fails::Promise {
            return Err(fail());
        }
        Ok(PROMISE.to_vec())
    }

    fn boot_files(&mut self) -> Result<Option<BootFiles>, MigrationVmError> {
        let config = Boot::Kernel(KernelBoot {
            kernel: "kernel".into(),
            initrd: Some("initrd".into()),
            cmdline: String::new(),
            modules: Vec::new(),
        });
        let files = BOOT.map(<[u8]>::to_vec).into();
        Ok(Some(BootFiles::received(&config, files)?))
    }

    fn ram(&self) -> GuestRam {
        self.ram.clone()
    }

    fn start_log(&mut self) -> Result<(), MigrationVmError> {
        if self.fails == Fails::Log {
            return Err(fail());
        }
        Ok(())
    }

    fn collect(&mut self, dirty: &mut PageSet) -> Result<(), MigrationVmError> {
        self.collected += 1;
        (self.at_collect)(self.collected);
        if self.fails == Fails::Collect(self.collected) {
            return Err(fail());
        }
        // The guest has written pages meanwhile, and so has saving its state.
        let writes = if self.stopped { 1 } else { self.busy };
        for write in 0..writes {
            let page = (u64::from(self.collected) * 101 + write * 3) % PAGES;
            let content = if page.is_multiple_of(2) {
                [0; 8]
            } else {
                (!u64::from(self.collected)).to_le_bytes()
            };
            self.ram.write(Gpa(page * PAGE), &content).unwrap();
            dirty.insert(0, page);
        }
        Ok(())
    }

    fn throttle(&mut self, percent: u8) {
        self.throttled.push(percent);
        if percent >= 65 {
            self.busy = 2;
        }
    }

    fn stop(&mut self) -> Result<Stopped, MigrationVmError> {
        self.world.at_source.store(false, Ordering::SeqCst);
        self.stopped = true;
        if self.fails == Fails::Stop {
            return Err(fail());
        }
        Ok(Stopped {
            state: STATE.to_vec(),
            running: self.running,
        })
    }

    fn resume(&mut self) {
        let alive = !self.world.source_dead.load(Ordering::SeqCst);
        self.world.at_source.store(alive, Ordering::SeqCst);
        self.world.check();
    }

    fn keep_stopped(&mut self) {
        assert!(!self.world.at_source.load(Ordering::SeqCst));
    }
}

pub(super) struct FakeTarget {
    pub(super) world: Arc<World>,
    pub(super) fails: Fails,
    pub(super) ram: Option<GuestRam>,
    pub(super) ran: Option<bool>,
    loaded: bool,
    has_boot_files: bool,
}

impl FakeTarget {
    pub(super) fn new(world: &Arc<World>) -> Self {
        Self {
            world: Arc::clone(world),
            fails: Fails::Never,
            ram: None,
            ran: None,
            loaded: false,
            has_boot_files: false,
        }
    }
}

impl DestinationVm for FakeTarget {
    fn prepare(&mut self, promise: &[u8]) -> Result<GuestRam, Vec<String>> {
        assert_eq!(promise, PROMISE);
        if self.fails == Fails::Prepare {
            return Err(vec!["no avx512f".to_owned(), "no\u{1b} eVMCS".to_owned()]);
        }
        if self.fails == Fails::OtherRam {
            let config = MemoryConfig::of(0);
            return Ok(GuestRam::new(&config, &[(Gpa(0), PAGE)]).unwrap());
        }
        let ram = ram();
        self.ram = Some(ram.clone());
        Ok(ram)
    }

    fn keep_boot_files(&mut self, files: Vec<Vec<u8>>) -> Result<(), MigrationVmError> {
        assert_eq!(files, BOOT);
        self.has_boot_files = true;
        Ok(())
    }

    fn load(&mut self, state: Vec<u8>, running: bool) -> Result<(), MigrationVmError> {
        self.loaded = running;
        if self.fails == Fails::Load {
            return Err(fail());
        }
        assert_eq!(state, STATE);
        assert!(self.has_boot_files);
        Ok(())
    }

    fn run(&mut self) {
        self.ran = Some(self.loaded);
        let alive = !self.world.destination_dead.load(Ordering::SeqCst);
        self.world.at_destination.store(alive, Ordering::SeqCst);
        self.world.check();
    }
}

/// Whether two RAMs have the same content.
pub(super) fn same(a: &GuestRam, b: &GuestRam) -> bool {
    let (mut x, mut y) = (vec![0; 4096], vec![0; 4096]);
    (0..PAGES).all(|page| {
        a.read(Gpa(page * PAGE), &mut x).unwrap();
        b.read(Gpa(page * PAGE), &mut y).unwrap();
        x == y
    })
}

/// A process that a test kills, in place of one of the two ends.
pub(super) struct Victim(Mutex<Child>, pub(super) Process);

impl Victim {
    pub(super) fn new() -> Self {
        let child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = Process::of(child.id()).unwrap();
        Self(Mutex::new(child), process)
    }

    pub(super) fn kill(&self) {
        let mut child = self.0.lock().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    ToDestination,
    ToSource,
}

/// The fault of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection is closed before it.
    Cut,
    /// The connection is closed in the middle of it.
    Torn,
    /// The connection is closed after it.
    CutAfter,
    /// Nothing is forwarded any more, in either direction.
    Stall,
    /// A bit of its end flips.
    Damage,
    /// A bit of its kind flips.
    OtherKind,
    /// The source's process dies before the frame.
    KillSource,
    /// The destination's process dies before the frame.
    KillDestination,
}

/// The fault and its place: a frame number in one direction, all connections counted together.
#[derive(Clone, Copy, Debug)]
pub(super) struct At(pub(super) Fault, pub(super) Direction, pub(super) u32);

/// Passes frames on between the source's connections and the destination, until the fault.
pub(super) struct Proxy {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    at: Option<At>,
    seen: [AtomicU32; 2],
    /// The kind of the frame that was hit.
    hit: Mutex<Option<u16>>,
    over: AtomicBool,
    streams: Mutex<Vec<UnixStream>>,
    on_kill: Box<dyn Fn(Fault) + Send + Sync>,
}

impl Proxy {
    pub(super) fn new(
        listen: &Path,
        to: &Path,
        at: Option<At>,
        on_kill: impl Fn(Fault) + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(listen).unwrap();
        let shared = Arc::new(Shared {
            at,
            seen: [AtomicU32::new(0), AtomicU32::new(0)],
            hit: Mutex::new(None),
            over: AtomicBool::new(false),
            streams: Mutex::new(Vec::new()),
            on_kill: Box::new(on_kill),
        });
        let (to, ours) = (to.to_owned(), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let mut threads = Vec::new();
            for source in listener.incoming() {
                let source = source.unwrap();
                if ours.over.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(destination) = UnixStream::connect(&to) else {
                    continue;
                };
                // Before any fault can be injected.
                ours.streams.lock().unwrap().extend([
                    source.try_clone().unwrap(),
                    destination.try_clone().unwrap(),
                ]);
                for (from, to, direction) in [
                    (&source, &destination, Direction::ToDestination),
                    (&destination, &source, Direction::ToSource),
                ] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = Arc::clone(&ours);
                    threads.push(std::thread::spawn(move || {
                        let _ended = shared.pass(from, to, direction);
                    }));
                }
            }
            ours.cut().unwrap();
            for thread in threads {
                thread.join().unwrap();
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// The kind of the frame that was hit, if the connection got that far.
    pub(super) fn hit(&self) -> Option<u16> {
        *self.shared.hit.lock().unwrap()
    }

    /// Ends all connections and the thread.
    pub(super) fn stop(mut self, listen: &Path) {
        self.shared.over.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(listen));
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Shared {
    fn cut(&self) -> std::io::Result<()> {
        for stream in self.streams.lock().unwrap().iter() {
            let _already = stream.shutdown(std::net::Shutdown::Both);
        }
        Ok(())
    }

    fn pass(
        &self,
        mut from: UnixStream,
        mut to: UnixStream,
        direction: Direction,
    ) -> std::io::Result<()> {
        loop {
            let mut header = [0; 12];
            if let Err(e) = from.read_exact(&mut header) {
                let _gone = to.shutdown(std::net::Shutdown::Write);
                return Err(e);
            }
            let len = u32::from_le_bytes(header[..4].try_into().unwrap()) as usize;
            let mut frame = header.to_vec();
            frame.resize(12 + len, 0);
            from.read_exact(&mut frame[12..])?;
            let number = self.seen[direction as usize].fetch_add(1, Ordering::SeqCst);
            if let Some(At(Fault::Stall, ..)) = self.at
                && self.hit.lock().unwrap().is_some()
            {
                continue;
            }
            let fault = self
                .at
                .filter(|at| at.1 == direction && at.2 == number)
                .map(|at| at.0);
            if let Some(fault) = fault {
                *self.hit.lock().unwrap() = Some(u16::from_le_bytes([header[4], header[5]]));
                match fault {
                    Fault::Cut => return self.cut(),
                    Fault::Torn => {
                        to.write_all(&frame[..frame.len() / 2])?;
                        return self.cut();
                    }
                    Fault::CutAfter => {
                        to.write_all(&frame)?;
                        return self.cut();
                    }
                    Fault::Stall => continue,
                    Fault::Damage => *frame.last_mut().unwrap() ^= 0x10,
                    Fault::OtherKind => frame[4] ^= 0x80,
                    Fault::KillSource | Fault::KillDestination => {
                        (self.on_kill)(fault);
                        return self.cut();
                    }
                }
            }
            to.write_all(&frame)?;
        }
    }
}
