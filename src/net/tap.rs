//! A tap device: the guest's frames are those of a network interface of the host (Documentation/networking/
//! tuntap.rst). Its queues are descriptors, one for each pair of the card's.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, c_uint};

use super::{Backend, HEADER, MAX_PAIRS, Offloads, Sent};
use crate::memory::Readable;
pub use crate::sys::tun::MAX_NAME;
use crate::sys::{Bell, Readiness, set_nonblocking, tun};

/// The file that tap devices come from.
const DEVICE: &str = "/dev/net/tun";

/// Where the queues of a tap come from.
#[derive(Debug)]
pub enum TapSource {
    /// An interface of the host by its name; it is made if there is none and this process may. None: the
    /// kernel names it.
    Interface(Option<String>),
    /// Descriptors that this process was started with.
    Given(Vec<OwnedFd>),
}

/// The tap of a card.
pub struct Tap {
    /// For messages.
    name: String,
    source: TapSource,
    pairs: u16,
    /// How many of them the guest uses.
    active: u16,
    readiness: Arc<Readiness>,
    queues: Vec<Queue>,
    offloads: Offloads,
    /// The interface was removed.
    gone: bool,
    complained: bool,
}

struct Queue {
    file: File,
    readable: bool,
    attached: bool,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap")
            .field("name", &self.name)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Tap {
    /// Of the card called `name` with so many pairs of queues.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new(name: &str, source: TapSource, pairs: u16) -> io::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            source,
            pairs: pairs.clamp(1, MAX_PAIRS),
            active: 1,
            readiness: Arc::new(Readiness::new()?),
            queues: Vec::new(),
            offloads: Offloads::default(),
            gone: false,
            complained: false,
        })
    }

    fn open(&self) -> io::Result<Vec<File>> {
        match &self.source {
            TapSource::Given(fds) => {
                let files = fds.iter().map(|fd| Ok(File::from(fd.try_clone()?)));
                let files: Vec<_> = files.collect::<io::Result<_>>()?;
                for file in &files {
                    tun::check_given(file)?;
                    set_nonblocking(file.as_fd())?;
                }
                Ok(files)
            }
            TapSource::Interface(name) => {
                let mut interface = name.clone().unwrap_or_default();
                let mut files = Vec::new();
                for _ in 0..self.pairs {
                    let file = OpenOptions::new()
                        .read(true)
                        .write(true)
                        .custom_flags(libc::O_NONBLOCK)
                        .open(DEVICE)
                        .map_err(|error| no_device(&error))?;
                    interface = tun::attach(&file, &interface, self.pairs > 1)
                        .map_err(|error| not_attached(&interface, self.pairs, &error))?;
                    files.push(file);
                }
                if name.is_none() {
                    tracing::info!("the network of {} is the interface {interface}", self.name);
                }
                tun::set_up(&interface).map_err(|error| {
                    let why = format!(
                        "the interface {interface} is down, and cannot be set up ({error}): run \
                         `ip link set {interface} up` as root"
                    );
                    io::Error::new(error.kind(), why)
                })?;
                Ok(files)
            }
        }
    }

    fn apply_offloads(&mut self) {
        // All queues of an interface have the same.
        let Some(queue) = self.queues.first().filter(|_| !self.gone) else {
            return;
        };
        if let Err(error) = tun::set_offloads(&queue.file, flags(self.offloads)) {
            self.complain(&format!("takes no offloads: {error}"));
        }
    }

    /// Tells of a failure that the guest can bring about, once.
    fn complain(&mut self, what: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!("the tap of {} {what}", self.name);
        }
    }

    /// Frames come from the queues that the guest uses alone.
    fn apply_active(&mut self) {
        if self.pairs == 1 || self.gone {
            return;
        }
        let mut failure = None;
        for (index, queue) in self.queues.iter_mut().enumerate() {
            let attached = index < self.active.into();
            if queue.attached == attached {
                continue;
            }
            match tun::set_attached(&queue.file, attached) {
                Ok(()) => queue.attached = attached,
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            self.complain(&format!("does not change its queues: {error}"));
        }
    }

    fn lost(&mut self) {
        if !std::mem::replace(&mut self.gone, true) {
            tracing::warn!(
                "the network of {} was lost, as its interface was removed; its link is down",
                self.name
            );
        }
    }
}

/// As the kernel has them. It refuses those without what they need (set_offload in drivers/net/tun.c).
fn flags(offloads: Offloads) -> c_uint {
    let ecn = offloads.ecn && (offloads.tso4 || offloads.tso6);
    let mut flags = 0;
    for (offload, flag) in [
        (offloads.checksum, TUN_F_CSUM),
        (offloads.tso4, TUN_F_TSO4),
        (offloads.tso6, TUN_F_TSO6),
        (ecn, TUN_F_TSO_ECN),
    ] {
        flags |= if offload && offloads.checksum {
            flag
        } else {
            0
        };
    }
    flags
}

fn no_device(error: &io::Error) -> io::Error {
    let help = match error.kind() {
        io::ErrorKind::NotFound => "load the kernel's module tun (`modprobe tun`)",
        io::ErrorKind::PermissionDenied => "this user may not open it",
        _ => "use net=user, which needs no tap device",
    };
    io::Error::new(
        error.kind(),
        format!("cannot open {DEVICE}: {error}; {help}"),
    )
}

fn not_attached(interface: &str, pairs: u16, error: &io::Error) -> io::Error {
    let many = if pairs > 1 { " multi_queue" } else { "" };
    let named = if interface.is_empty() {
        "tap0"
    } else {
        interface
    };
    let help = match error.raw_os_error() {
        Some(libc::EPERM) => format!(
            "it belongs to no one or another user, or does not exist: as root, run `ip tuntap add {named} \
             mode tap{many} user $USER` and `ip link set {named} up`; or run hypernest with CAP_NET_ADMIN, \
             or use net=user, which needs neither"
        ),
        Some(libc::EBUSY) => "another program uses it".to_owned(),
        Some(libc::EINVAL) => format!(
            "it is no tap device, or was made with{} `multi_queue`, which a card with queues={pairs} \
             does{} need",
            if pairs > 1 { "out" } else { "" },
            if pairs > 1 { "" } else { " not" },
        ),
        _ => "see ip-tuntap in ip(8)".to_owned(),
    };
    let what = match interface {
        "" => "cannot make a tap interface".to_owned(),
        name => format!("cannot use the tap interface {name}"),
    };
    io::Error::new(error.kind(), format!("{what}: {error}; {help}"))
}

impl Backend for Tap {
    fn bell(&self) -> Option<Bell> {
        Some(Bell::Descriptors(Arc::clone(&self.readiness)))
    }

    fn woken(&mut self) {
        let ready = self.readiness.take();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            queue.readable |= u32::try_from(index).is_ok_and(|number| ready.is(number));
        }
    }

    fn link(&self) -> bool {
        !self.queues.is_empty() && !self.gone
    }

    fn receive(&mut self, pair: usize, frame: &mut [u8]) -> Option<usize> {
        loop {
            let queue = self.queues.get_mut(pair).filter(|queue| queue.readable)?;
            match queue.file.read(frame) {
                Ok(count) if count > HEADER => return Some(count),
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EBADFD) => {
                        queue.readable = false;
                        self.lost();
                    }
                    // EAGAIN: nothing is there. EIO: the interface is down.
                    _ => queue.readable = false,
                },
            }
        }
    }

    fn send(&mut self, pair: usize, frame: &Readable) -> Sent {
        let Some(queue) = self.queues.get(pair) else {
            return Sent::Dropped;
        };
        match frame.write_message(queue.file.as_fd()) {
            Ok(()) => Sent::Yes,
            Err(error) => {
                if error.raw_os_error() == Some(libc::EBADFD) && queue.attached {
                    self.lost();
                }
                // EAGAIN: the interface's send buffer is full, as a card's would be. EINVAL: no frame.
                Sent::Dropped
            }
        }
    }

    fn inject(&mut self, frame: &[u8]) {
        let mut bytes = vec![0; HEADER];
        bytes.extend(frame);
        if let Some(queue) = self.queues.first_mut() {
            let _lost = queue.file.write(&bytes);
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) {
        if self.offloads != offloads {
            self.offloads = offloads;
            self.apply_offloads();
        }
    }

    fn set_pairs(&mut self, pairs: u16) {
        self.active = pairs;
        self.apply_active();
    }

    fn acquire(&mut self) -> io::Result<()> {
        if !self.queues.is_empty() {
            return Ok(());
        }
        let files = self.open()?;
        for (file, number) in files.iter().zip(0..) {
            let added = tun::set_header(file, HEADER)
                .and_then(|()| self.readiness.add(file.as_fd(), number, false));
            if added.is_err() {
                // Duplicates of given descriptors would stay.
                files
                    .iter()
                    .for_each(|file| self.readiness.remove(file.as_fd()));
            }
            added?;
        }
        self.queues = files
            .into_iter()
            .map(|file| Queue {
                file,
                readable: true,
                attached: true,
            })
            .collect();
        self.gone = false;
        self.apply_offloads();
        self.apply_active();
        Ok(())
    }

    fn release(&mut self) {
        for queue in self.queues.drain(..) {
            self.readiness.remove(queue.file.as_fd());
        }
    }
}

#[cfg(test)]
mod tests;
