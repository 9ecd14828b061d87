//! The system calls of tap devices that nix does not know (linux/if_tun.h, netdevice(7)).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::{
    IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_UP, IFF_VNET_HDR,
    c_int, c_short, c_uint, ifreq,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The most bytes of an interface's name.
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;

// The kernel declares the first for an int, and takes an ifreq.
nix::ioctl_readwrite_bad!(tun_set_iff, libc::TUNSETIFF, ifreq);
nix::ioctl_readwrite_bad!(tun_get_iff, libc::TUNGETIFF, ifreq);
nix::ioctl_readwrite_bad!(tun_set_queue, libc::TUNSETQUEUE, ifreq);
nix::ioctl_write_int_bad!(tun_set_offload, libc::TUNSETOFFLOAD);
nix::ioctl_write_ptr_bad!(tun_set_header, libc::TUNSETVNETHDRSZ, c_int);
nix::ioctl_readwrite_bad!(get_flags, libc::SIOCGIFFLAGS, ifreq);
nix::ioctl_readwrite_bad!(set_flags, libc::SIOCSIFFLAGS, ifreq);

/// A request for the interface called `name`.
fn request(name: &str, flags: c_int) -> io::Result<ifreq> {
    if name.len() > MAX_NAME || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    })
}

fn name_of(request: &ifreq) -> String {
    let bytes = request.ifr_name.iter().map(|byte| byte.cast_unsigned());
    let bytes: Vec<_> = bytes.take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn flags_of(request: &ifreq) -> c_int {
    // SAFETY: the kernel has written flags, and each bit pattern is some.
    c_int::from(unsafe { request.ifr_ifru.ifru_flags })
}

/// Makes `file` a queue of the tap interface `name`, which has several with `many`, and is made if there is
/// none; with an empty name, one that the kernel names. Returns the interface's name.
///
/// # Errors
/// EPERM, if the interface belongs to another user or would have to be made without CAP_NET_ADMIN; EINVAL, if
/// it is no tap or has not these queues; EBUSY, if all its queues are in use.
pub(crate) fn attach(file: &File, name: &str, many: bool) -> io::Result<String> {
    let many = if many { IFF_MULTI_QUEUE } else { 0 };
    let mut request = request(name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | many)?;
    // SAFETY: the kernel reads and writes an ifreq, which outlives the call.
    unsafe { tun_set_iff(file.as_raw_fd(), &raw mut request) }?;
    Ok(name_of(&request))
}

/// What `file` is a queue of.
fn interface(file: &File) -> io::Result<ifreq> {
    let mut request = request("", 0)?;
    // SAFETY: the kernel writes an ifreq, which outlives the call.
    unsafe { tun_get_iff(file.as_raw_fd(), &raw mut request) }?;
    Ok(request)
}

/// Checks that `file`, which was opened elsewhere, is a queue of a tap interface with headers.
///
/// # Errors
/// If it is not.
pub(crate) fn check_given(file: &File) -> io::Result<()> {
    let interface = interface(file).map_err(|error| {
        let why = format!("the given descriptor is no queue of a tap interface: {error}");
        io::Error::new(error.kind(), why)
    })?;
    let flags = flags_of(&interface);
    for (flag, name) in [
        (IFF_TAP, "IFF_TAP"),
        (IFF_NO_PI, "IFF_NO_PI"),
        (IFF_VNET_HDR, "IFF_VNET_HDR"),
    ] {
        if flags & flag == 0 {
            let why = format!(
                "the given descriptor of the interface {} was opened without {name}",
                name_of(&interface)
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
    }
    Ok(())
}

/// Sets how many bytes come before each frame.
pub(crate) fn set_header(file: &File, len: usize) -> io::Result<()> {
    let len = c_int::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads an int, which outlives the call.
    unsafe { tun_set_header(file.as_raw_fd(), &raw const len) }?;
    Ok(())
}

/// Sets what frames to the guest may leave to it, for all queues of the interface: `TUN_F_*`.
pub(crate) fn set_offloads(file: &File, flags: c_uint) -> io::Result<()> {
    // SAFETY: the kernel takes a number.
    unsafe { tun_set_offload(file.as_raw_fd(), flags.cast_signed()) }?;
    Ok(())
}

/// Lets a queue of an interface with several take part, or not.
pub(crate) fn set_attached(file: &File, attached: bool) -> io::Result<()> {
    let flag = if attached {
        IFF_ATTACH_QUEUE
    } else {
        IFF_DETACH_QUEUE
    };
    let mut request = request("", flag)?;
    // SAFETY: the kernel reads an ifreq, which outlives the call.
    unsafe { tun_set_queue(file.as_raw_fd(), &raw mut request) }?;
    Ok(())
}

/// Sets an interface up, if it is down.
pub(crate) fn set_up(name: &str) -> io::Result<()> {
    let any = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut request = request(name, 0)?;
    // SAFETY: the kernel writes an ifreq, which outlives the call.
    unsafe { get_flags(any.as_raw_fd(), &raw mut request) }?;
    let flags = flags_of(&request);
    if flags & IFF_UP != 0 {
        return Ok(());
    }
    let mut request = self::request(name, flags | IFF_UP)?;
    // SAFETY: the kernel reads an ifreq, which outlives the call.
    unsafe { set_flags(any.as_raw_fd(), &raw mut request) }?;
    Ok(())
}
