extern crate std;

use std::string::{String, ToString};
use std::vec::Vec;

use super::*;
use crate::vmx::Field;
use builder::*;
use processor::processor;
use proptest::prelude::*;

mod builder;
mod processor;

fn valid() -> Vec<(Builder, &'static str)> {
    std::vec![
        (vmx_off(), "VMX off"),
        (
            Builder {
                flags: flag::EVMCS,
                ..vmx_off()
            },
            "VMX off"
        ),
        (vmx_on(), "VMX on, no current VMCS"),
        (
            vmx_loaded(),
            "VMX on, VMCS at 0x2000 (revision 0x11e57ed0), L1 running"
        ),
        (
            evmcs(),
            "VMX on, enlightened VMCS (revision 0x11e57ed0), L1 running"
        ),
        (
            Builder {
                flags: flag::EVMCS | flag::GUEST_MODE | flag::RUN_PENDING,
                ..evmcs()
            },
            "VMX on, enlightened VMCS (revision 0x11e57ed0), L2 running at 0xffff800000001234, entry pending",
        ),
        (
            Builder {
                flags: flag::GUEST_MODE | flag::MTF_PENDING,
                vmx_flags: 1,
                deadline: 77,
                ..vmx_guest()
            },
            "VMX on, VMCS at 0x2000 (revision 0x11e57ed0), L2 running at 0xffff800000001234, \
             monitor-trap-flag exit pending, preemption timer running",
        ),
        (
            Builder {
                pages: shadowed().to_vec(),
                ..vmx_guest()
            },
            "VMX on, VMCS at 0x2000 (revision 0x11e57ed0), shadow VMCS, L2 running at 0xffff800000001234",
        ),
        // Outside guest mode the shadow VMCS is in L1's memory.
        (
            Builder {
                pages: shadowed()[..1].to_vec(),
                ..vmx_loaded()
            },
            "VMX on, VMCS at 0x2000 (revision 0x11e57ed0), L1 running",
        ),
        (
            Builder {
                smm_flags: 3,
                ..vmx_loaded()
            },
            "VMX on, VMCS at 0x2000 (revision 0x11e57ed0), L1 running, in system-management mode that left \
             L2",
        ),
        (svm(), "SVM, L1 running, GIF 1"),
        (Builder { flags: 0, ..svm() }, "SVM, L1 running, GIF 0"),
        (
            Builder {
                flags: flag::GUEST_MODE | flag::RUN_PENDING | flag::GIF,
                ..svm_guest()
            },
            "SVM, VMCB at 0x3000, L2 running, entry pending, GIF 1",
        ),
    ]
}

#[test]
fn what_kvm_writes_is_read_and_summarised() {
    for (blob, summary) in valid() {
        let bytes = blob.bytes();
        let state = NestedState::parse(&bytes).unwrap_or_else(|error| panic!("{summary}: {error}"));
        assert_eq!(state.to_string(), summary);
        // A buffer that is longer than the blob, as KVM_GET_NESTED_STATE's is.
        let mut buffer = bytes.clone();
        buffer.resize(MOST + 1, 0xAA);
        assert_eq!(NestedState::parse(&buffer), Ok(state), "{summary}");
        assert_eq!(state.in_guest_mode(), blob.flags & flag::GUEST_MODE != 0);
        assert_eq!(state.needs_evmcs(), blob.flags & flag::EVMCS != 0);
    }
}

#[test]
fn a_blob_cut_short_is_never_read() {
    for (blob, summary) in valid() {
        let bytes = blob.bytes();
        for len in [
            0,
            1,
            HEADER - 1,
            HEADER,
            bytes.len() - PAGE.min(bytes.len()),
            bytes.len() - 1,
        ] {
            if len < bytes.len() {
                assert!(
                    NestedState::parse(&bytes[..len]).is_err(),
                    "{summary} at {len}"
                );
            }
        }
    }
}

#[test]
fn malformed_headers_are_named() {
    let pages = |n| std::vec![vmcs12(); n];
    let size = |given, expected| Some(Malformed::Size { given, expected });
    let table = [
        (
            Builder {
                format: 2,
                ..vmx_off()
            },
            Some(Malformed::Format(2)),
        ),
        (
            Builder {
                size: Some(0),
                ..vmx_off()
            },
            size(0, HEADER),
        ),
        (
            Builder {
                size: Some(u32::MAX),
                ..vmx_off()
            },
            size(u32::MAX, HEADER),
        ),
        (
            Builder {
                size: Some(129),
                ..vmx_on()
            },
            size(129, HEADER),
        ),
        (
            Builder {
                pages: pages(1),
                ..vmx_on()
            },
            size(4224, HEADER),
        ),
        (
            Builder {
                pages: pages(0),
                ..vmx_loaded()
            },
            size(128, 4224),
        ),
        (
            Builder {
                pages: pages(2),
                ..vmx_loaded()
            },
            size(8320, 4224),
        ),
        // A page after the end that the size gives.
        (
            Builder {
                size: Some(128),
                ..vmx_loaded()
            },
            size(128, 4224),
        ),
        (
            Builder {
                size: Some(4225),
                pages: pages(2),
                ..vmx_loaded()
            },
            size(4225, 4224),
        ),
        (
            Builder {
                pages: shadowed()[..1].to_vec(),
                ..vmx_guest()
            },
            size(4224, 8320),
        ),
        (
            Builder {
                pages: pages(1),
                ..svm()
            },
            size(4224, HEADER),
        ),
        (
            Builder {
                pages: pages(0),
                ..svm_guest()
            },
            size(128, 4224),
        ),
        (
            Builder {
                flags: 0x10,
                ..vmx_off()
            },
            Some(Malformed::Flags(0x10)),
        ),
        (
            Builder {
                flags: flag::GIF,
                ..vmx_on()
            },
            Some(Malformed::Flags(flag::GIF)),
        ),
        (
            Builder {
                flags: flag::EVMCS,
                ..svm()
            },
            Some(Malformed::Flags(flag::EVMCS)),
        ),
        (
            Builder {
                flags: flag::MTF_PENDING,
                ..svm()
            },
            Some(Malformed::Flags(flag::MTF_PENDING)),
        ),
        (
            Builder {
                vmx_flags: 2,
                ..vmx_guest()
            },
            Some(Malformed::VmxFlags(2)),
        ),
    ];
    for (blob, error) in table {
        assert_eq!(blob.error(), error, "{blob:?}");
    }
    assert_eq!(NestedState::parse(&[0; 127]), Err(Malformed::NoHeader(127)));
    let bytes = vmx_loaded().bytes();
    let truncated = Malformed::Truncated {
        size: 4224,
        bytes: 4223,
    };
    assert_eq!(NestedState::parse(&bytes[..4223]), Err(truncated));
}

/// One row per rule of `vmx_set_nested_state` and of KVM_SET_NESTED_STATE in `kvm_arch_vcpu_ioctl`.
#[test]
fn what_kvm_refuses_of_vmx_is_refused() {
    let is = |predicate: fn(&Malformed) -> bool| predicate;
    let table = [
        (
            Builder {
                second: VMCS,
                ..vmx_off()
            },
            is(|e| matches!(e, Malformed::NoVmxon(_))),
        ),
        (
            Builder {
                smm_flags: 1,
                ..vmx_off()
            },
            is(|e| matches!(e, Malformed::NoVmxon(_))),
        ),
        (
            Builder {
                flags: flag::GUEST_MODE,
                ..vmx_off()
            },
            is(|e| matches!(e, Malformed::NoVmxon(_))),
        ),
        (
            Builder {
                vmx_flags: 1,
                ..vmx_off()
            },
            is(|e| matches!(e, Malformed::NoVmxon(_))),
        ),
        (
            Builder {
                flags: flag::RUN_PENDING,
                ..vmx_loaded()
            },
            is(|e| matches!(e, Malformed::NoGuest(_))),
        ),
        (
            Builder {
                flags: flag::MTF_PENDING,
                ..vmx_loaded()
            },
            is(|e| matches!(e, Malformed::NoGuest(_))),
        ),
        (
            Builder {
                vmx_flags: 1,
                ..vmx_loaded()
            },
            is(|e| matches!(e, Malformed::NoGuest(_))),
        ),
        (
            Builder {
                first: 0x1008,
                ..vmx_on()
            },
            is(|e| matches!(e, Malformed::Address { gpa: 0x1008, .. })),
        ),
        (
            Builder {
                second: 0x2001,
                ..vmx_loaded()
            },
            is(|e| matches!(e, Malformed::Address { gpa: 0x2001, .. })),
        ),
        (
            Builder {
                second: VMXON,
                ..vmx_loaded()
            },
            is(|e| matches!(e, Malformed::VmcsIsVmxon(VMXON))),
        ),
        (
            Builder {
                flags: flag::GUEST_MODE,
                ..vmx_on()
            },
            is(|e| matches!(e, Malformed::NoVmcs)),
        ),
        (
            Builder {
                flags: flag::EVMCS,
                ..vmx_loaded()
            },
            is(|e| matches!(e, Malformed::TwoVmcs(VMCS))),
        ),
        (
            Builder {
                flags: flag::EVMCS,
                ..vmx_on()
            },
            is(|e| matches!(e, Malformed::Size { .. })),
        ),
        (
            Builder {
                smm_flags: 4,
                ..vmx_on()
            },
            is(|e| matches!(e, Malformed::SmmFlags(4))),
        ),
        (
            Builder {
                smm_flags: 1,
                ..vmx_on()
            },
            is(|e| matches!(e, Malformed::SmmFlags(1))),
        ),
        (
            Builder {
                smm_flags: 3,
                ..vmx_guest()
            },
            is(|e| matches!(e, Malformed::SmmFlags(3))),
        ),
    ];
    for (blob, predicate) in table {
        let error = blob.error();
        assert!(
            error.as_ref().is_some_and(predicate),
            "{error:?} from {blob:?}"
        );
    }
}

#[test]
fn the_revisions_of_both_vmcs_count() {
    let with = |page: usize, revision: u32| {
        let mut pages = shadowed();
        put(&mut pages[page], 0, &revision.to_le_bytes());
        Builder {
            pages: pages.to_vec(),
            ..vmx_guest()
        }
        .error()
    };
    let error = |what, revision| Some(Malformed::Revision { what, revision });
    assert_eq!(with(0, 1), error("the VMCS", 1));
    // KVM does not check the shadow bit here.
    assert_eq!(with(0, REVISION | 1 << 31), None);
    assert_eq!(with(1, 1 << 31), error("the shadow VMCS", 0));
    assert_eq!(with(1, REVISION), Some(Malformed::NotShadow));
    let zero = Malformed::Revision {
        what: "the VMCS",
        revision: 0,
    };
    assert!(zero.to_string().contains("VMRESUME"), "{zero}");
}

#[test]
fn an_enlightened_vmcs_gets_the_revision_that_kvm_forgot() {
    for (builder, changed) in [(evmcs(), true), (vmx_loaded(), false)] {
        let mut bytes = builder.bytes();
        bytes[HEADER..HEADER + 4].fill(0);
        assert!(NestedState::parse(&bytes).is_err());
        supply_revision(&mut bytes);
        assert_eq!(NestedState::parse(&bytes).is_ok(), changed);
        bytes[HEADER..HEADER + 4].fill(1);
        supply_revision(&mut bytes);
        assert!(NestedState::parse(&bytes).is_err());
        supply_revision(&mut bytes[..HEADER]);
        supply_revision(&mut bytes[..5]);
    }
}

#[test]
fn a_shadow_vmcs_belongs_to_the_blob_only_if_all_say_so() {
    let with = |offset: usize, value: &[u8]| {
        let mut pages = shadowed();
        put(&mut pages[0], offset, value);
        Builder {
            pages: pages[..1].to_vec(),
            ..vmx_guest()
        }
        .error()
    };
    assert_eq!(with(176, &u64::MAX.to_le_bytes()), None);
    assert_eq!(with(748, &[0; 4]), None);
    assert_eq!(with(804, &[0; 4]), None);
    assert_eq!(
        with(808, &[0; 4]),
        Some(Malformed::Size {
            given: 4224,
            expected: 8320
        })
    );
}

#[test]
fn what_vmrun_refuses_is_refused() {
    let with = |offset: usize, value: u64| {
        let mut page = vmcb12();
        put(&mut page, offset, &value.to_le_bytes());
        Builder {
            pages: std::vec![page],
            ..svm_guest()
        }
        .error()
    };
    let vmcb = |error: Option<Malformed>| matches!(error, Some(Malformed::Vmcb(_)));
    assert!(vmcb(with(0x10, 2)));
    assert!(vmcb(with(0x58, 0)));
    for cr0 in [0, 1, 1 << 31] {
        assert!(vmcb(with(0x558, cr0)), "{cr0:#x}");
    }
    assert!(vmcb(with(0x570, 1 << 17)));
    assert_eq!(with(0x3E0, u64::MAX), None);
    let unaligned = Builder {
        first: 0x3010,
        ..svm_guest()
    };
    assert_eq!(
        unaligned.error(),
        Some(Malformed::Address {
            what: "VMCB",
            gpa: 0x3010
        })
    );
    let pending = Builder {
        flags: flag::RUN_PENDING,
        ..svm()
    };
    assert!(matches!(pending.error(), Some(Malformed::NoGuest(_))));
}

#[test]
fn the_content_can_be_read() {
    let bytes = Builder {
        pages: shadowed().to_vec(),
        ..vmx_guest()
    }
    .bytes();
    let Ok(NestedState::Vmx(Vmx::On(on))) = NestedState::parse(&bytes) else {
        panic!("not VMX")
    };
    let current = on.current.expect("a VMCS");
    assert_eq!(current.vmcs.read(Field::EXIT_REASON), Some(24));
    assert_eq!(
        current.vmcs.read(Field::GUEST_RIP),
        Some(0xFFFF_8000_0000_1234)
    );
    assert_eq!(current.vmcs.read(Field::VPID), None);
    assert!(current.vmcs.is_launched() && !current.vmcs.is_shadow());
    assert!(current.shadow.is_some_and(Vmcs12::is_shadow));

    let bytes = svm_guest().bytes();
    let Ok(NestedState::Svm(Svm {
        guest: Some(guest), ..
    })) = NestedState::parse(&bytes)
    else {
        panic!("not SVM")
    };
    assert_eq!((guest.vmcb.l1_rip(), guest.vmcb.asid()), (0x4567, 1));
    assert!(guest.vmcb.has_nested_paging());
}

/// Calls everything on an accepted blob, without a panic, and checks its invariants.
fn examine(bytes: &[u8]) -> Result<String, Malformed> {
    let state = NestedState::parse(bytes)?;
    let _ = state.check(&processor());
    if let NestedState::Vmx(Vmx::On(on)) = state {
        assert!(on.vmxon.is_multiple_of(PAGE as u64));
        assert!(!on.guest_mode || on.current.is_some());
        assert!(on.guest_mode || !(on.run_pending || on.mtf_pending));
        if let Some(current) = on.current {
            assert_eq!(current.vmcs.revision(), REVISION);
            assert_ne!(current.address, Some(on.vmxon));
        }
    }
    Ok(state.to_string())
}

proptest! {
    #[test]
    fn no_header_panics(header: [u64; 5], pages in 0..3_usize, format in 0..3_u16, flags: u16) {
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes[..2].copy_from_slice(&(flags & 0x10F).to_le_bytes());
        bytes[2..4].copy_from_slice(&format.to_le_bytes());
        let size = u32::try_from(HEADER + pages * PAGE).expect("few pages");
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        bytes.resize(HEADER + pages * PAGE, 0);
        let _ = examine(&bytes);
    }

    #[test]
    fn no_change_of_a_good_blob_panics(
        which in 0..13_usize,
        changes in prop::collection::vec((0..MOST, any::<u8>()), 0..8),
        header_changes in prop::collection::vec((0..40_usize, any::<u8>()), 0..3),
        cut in 0..2 * MOST,
    ) {
        let blobs = valid();
        let mut bytes = blobs[which % blobs.len()].0.bytes();
        for (at, byte) in changes.into_iter().chain(header_changes) {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(cut);
        let _ = examine(&bytes);
    }
}
