//! Builds blobs for tests.

extern crate std;

use std::vec::Vec;

use super::super::*;

pub(super) const VMXON: u64 = 0x1000;
pub(super) const VMCS: u64 = 0x2000;

/// A blob under construction; each field is that of the header.
#[derive(Debug, Clone)]
pub(super) struct Builder {
    pub(super) flags: u16,
    pub(super) format: u16,
    pub(super) size: Option<u32>,
    pub(super) first: u64,
    pub(super) second: u64,
    pub(super) smm_flags: u16,
    pub(super) vmx_flags: u32,
    pub(super) deadline: u64,
    pub(super) pages: Vec<[u8; PAGE]>,
}

impl Builder {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let len = u32::try_from(HEADER + self.pages.len() * PAGE).expect("few pages");
        let size = self.size.unwrap_or(len);
        let mut bytes = Vec::new();
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.format.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend(self.first.to_le_bytes());
        bytes.extend(self.second.to_le_bytes());
        bytes.extend(self.smm_flags.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(self.vmx_flags.to_le_bytes());
        bytes.extend(self.deadline.to_le_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(self.pages.iter().flatten());
        bytes
    }

    pub(super) fn error(&self) -> Option<Malformed> {
        NestedState::parse(&self.bytes()).err()
    }
}

pub(super) fn put(page: &mut [u8; PAGE], offset: usize, bytes: &[u8]) {
    page[offset..offset + bytes.len()].copy_from_slice(bytes);
}

pub(super) fn vmcs12() -> [u8; PAGE] {
    let mut page = [0; PAGE];
    put(&mut page, 0, &REVISION.to_le_bytes());
    put(&mut page, 8, &1_u32.to_le_bytes());
    put(&mut page, 176, &u64::MAX.to_le_bytes());
    put(&mut page, 544, &0xFFFF_8000_0000_1234_u64.to_le_bytes());
    put(&mut page, 748, &(1_u32 << 31).to_le_bytes());
    put(&mut page, 812, &24_u32.to_le_bytes());
    page
}

/// A VMCS with a shadow VMCS, and the shadow VMCS.
pub(super) fn shadowed() -> [[u8; PAGE]; 2] {
    let (mut page, mut shadow) = (vmcs12(), vmcs12());
    put(&mut page, 176, &0x7000_u64.to_le_bytes());
    put(&mut page, 804, &(1_u32 << 14).to_le_bytes());
    put(&mut shadow, 0, &(REVISION | 1 << 31).to_le_bytes());
    [page, shadow]
}

pub(super) fn vmcb12() -> [u8; PAGE] {
    let mut page = [0; PAGE];
    put(&mut page, 0x10, &1_u32.to_le_bytes());
    put(&mut page, 0x58, &1_u32.to_le_bytes());
    put(&mut page, 0x90, &1_u64.to_le_bytes());
    put(&mut page, 0x400 + 0x158, &0x8005_0033_u64.to_le_bytes());
    put(&mut page, 0x400 + 0x170, &0x2_u64.to_le_bytes());
    put(&mut page, 0x400 + 0x178, &0x4567_u64.to_le_bytes());
    page
}

pub(super) fn vmx_off() -> Builder {
    Builder {
        flags: 0,
        format: 0,
        size: None,
        first: u64::MAX,
        second: u64::MAX,
        smm_flags: 0,
        vmx_flags: 0,
        deadline: 0,
        pages: Vec::new(),
    }
}

pub(super) fn vmx_on() -> Builder {
    Builder {
        first: VMXON,
        ..vmx_off()
    }
}

pub(super) fn vmx_loaded() -> Builder {
    Builder {
        second: VMCS,
        pages: std::vec![vmcs12()],
        ..vmx_on()
    }
}

pub(super) fn vmx_guest() -> Builder {
    Builder {
        flags: flag::GUEST_MODE,
        ..vmx_loaded()
    }
}

pub(super) fn evmcs() -> Builder {
    Builder {
        flags: flag::EVMCS,
        second: u64::MAX,
        ..vmx_loaded()
    }
}

pub(super) fn svm() -> Builder {
    Builder {
        flags: flag::GIF,
        format: 1,
        first: 0,
        second: 0,
        ..vmx_off()
    }
}

pub(super) fn svm_guest() -> Builder {
    Builder {
        flags: flag::GIF | flag::GUEST_MODE,
        first: 0x3000,
        pages: std::vec![vmcb12()],
        ..svm()
    }
}
