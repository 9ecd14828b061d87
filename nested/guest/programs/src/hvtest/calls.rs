//! Hypercalls.

use hypernest_nested::hyperv::{hypercall as call, leaf, msr, status};

use super::partition::vp_index_of;
use super::{Check, Feature, Guest, Stop, equal, failed, write};
use crate::cpu::cpuid;
use crate::hypercall::Input;
use crate::pages::Page;
use crate::text::Text;
use crate::trap;
use crate::window::Window;

const SIGNAL_EVENTS: Feature = Feature::high_privilege(5);
const POST_MESSAGES: Feature = Feature::high_privilege(4);
const EXTENDED: Feature = Feature::high_privilege(20);
const XMM_INPUT: Feature = Feature::available(4);
const EXTENDED_RANGES: Feature = Feature::available(14);
const FLUSH: Feature = Feature::recommended(2);
const CLUSTER_IPI: Feature = Feature::recommended(10);
const SPARSE_SETS: Feature = Feature::recommended(11);

/// A call code that no specification defines.
const NO_CODE: u16 = 0x0FFF;
/// A connection that is not open.
const NO_CONNECTION: u64 = 0x00AB_CDEF;
/// Flush flag: ranges are in the extended format (TLFS, HvCallFlushVirtualAddressList).
const EXTENDED_RANGE_FORMAT: u64 = 1 << 3;

fn succeeds(guest: &Guest, code: u16, header: u16, repetitions: u16, input: Input) -> Check {
    let result = guest
        .calls()?
        .call(call::input(code, header, repetitions), input);
    equal("status", call::status(result), status::SUCCESS)?;
    equal(
        "repetitions done",
        call::repetitions_done(result),
        repetitions,
    )
}

fn answers(guest: &Guest, control: u64, input: Input, wanted: u16) -> Check {
    equal(
        "status",
        call::status(guest.calls()?.call(control, input)),
        wanted,
    )
}

/// Quadwords of input in memory.
fn in_memory(words: &[u64]) -> Input {
    let page = Page::new();
    for (index, word) in words.iter().enumerate() {
        page.write64(index * 8, *word);
    }
    Input::Memory(page, None)
}

/// The first quadwords that do not fit into RDX and R8.
fn in_xmm(rdx: u64, r8: u64, words: &[u64]) -> Input {
    let mut xmm = [0; 12];
    xmm[..words.len()].copy_from_slice(words);
    Input::Xmm(rdx, r8, xmm)
}

pub(super) fn unknown(guest: &mut Guest) -> Check {
    answers(
        guest,
        call::input(NO_CODE, 0, 0),
        Input::Registers(0, 0),
        status::INVALID_HYPERCALL_CODE,
    )?;
    // Bits 31:27 of the input value are reserved.
    answers(
        guest,
        u64::from(NO_CODE) | 1 << 27,
        Input::Registers(0, 0),
        status::INVALID_HYPERCALL_INPUT,
    )
}

pub(super) fn long_spin_wait(guest: &mut Guest) -> Check {
    let attempts = cpuid(leaf::RECOMMENDATIONS, 0).ebx;
    // The value "never notify" means that the hypervisor does not use the call.
    if attempts == 0 || attempts == u32::MAX {
        return Err(Stop::Absent(Text::new(format_args!(
            "spin attempts before telling: {attempts:#x}"
        ))));
    }
    succeeds(
        guest,
        call::NOTIFY_LONG_SPIN_WAIT,
        0,
        0,
        Input::Registers(attempts.into(), 0),
    )
}

/// Remaps the window; after `flush` every processor must read the new page through it.
///
/// On a processor that keeps translations over an exit this detects a missing flush. Emulated ones drop them
/// at each exit: there, only the call's result is tested.
fn flushes(guest: &Guest, flush: impl Fn(u64) -> Check) -> Check {
    const OLD: u64 = 0x01D0_01D0;
    const NEW: u64 = 0x0E30_0E30;
    let (old, new) = (Page::new(), Page::new());
    old.write64(0, OLD);
    new.write64(0, NEW);
    let window = Window::open(old);
    let look = |order: usize, wanted: u64| {
        let seen = if order == 0 {
            Some(Window::look())
        } else {
            guest.processors.run(order, |_| Window::look())
        };
        let seen = seen.ok_or_else(|| failed!("processor {order} does not answer"))?;
        if seen == wanted {
            Ok(())
        } else {
            Err(failed!(
                "processor {order} reads {seen:#x} instead of {wanted:#x}"
            ))
        }
    };
    // The others still have the last check's translation, if there is one.
    for order in guest.processors.others() {
        let flushed = guest.processors.run(order, |_| {
            crate::cpu::flush_own_translations();
            0
        });
        equal("answer of another processor", flushed.unwrap_or(1), 0)?;
    }
    (0..guest.processors.count).try_for_each(|order| look(order, OLD))?;
    window.turn_to(new);
    flush(window.address())?;
    (0..guest.processors.count).try_for_each(|order| look(order, NEW))
}

/// A mask of all running processors: their indexes are the numbers below their count.
fn everybody(guest: &Guest) -> u64 {
    (1 << guest.processors.count) - 1
}

pub(super) fn flush_space(guest: &mut Guest) -> Check {
    guest.needs(FLUSH)?;
    flushes(guest, |_| {
        let input = in_memory(&[0, call::FLUSH_ALL_SPACES, everybody(guest)]);
        succeeds(guest, call::FLUSH_SPACE, 0, 0, input)
    })?;
    flushes(guest, |_| {
        let input = in_memory(&[0, call::FLUSH_ALL_SPACES | call::FLUSH_ALL_PROCESSORS, 0]);
        succeeds(guest, call::FLUSH_SPACE, 0, 0, input)
    })
}

pub(super) fn flush_list(guest: &mut Guest) -> Check {
    guest.needs(FLUSH)?;
    flushes(guest, |address| {
        let input = in_memory(&[0, call::FLUSH_ALL_SPACES, everybody(guest), address]);
        succeeds(guest, call::FLUSH_LIST, 0, 1, input)
    })?;
    // Bits 11:0 of a range are the number of pages after its first: the window is the fourth.
    flushes(guest, |address| {
        let ranges = [0x7000_0000, (address - 3 * 4096) | 5];
        let input = in_memory(&[
            0,
            call::FLUSH_ALL_SPACES,
            everybody(guest),
            ranges[0],
            ranges[1],
        ]);
        succeeds(guest, call::FLUSH_LIST, 0, 2, input)
    })?;
    // More ranges than a hypervisor stores.
    flushes(guest, |address| {
        let mut words = [address; 40];
        words[..3].copy_from_slice(&[0, call::FLUSH_ALL_SPACES, everybody(guest)]);
        succeeds(guest, call::FLUSH_LIST, 0, 37, in_memory(&words))
    })
}

pub(super) fn flush_space_ex(guest: &mut Guest) -> Check {
    guest.needs(FLUSH)?;
    guest.needs(SPARSE_SETS)?;
    // One bank, then two, of which the second is empty, then all processors without banks.
    flushes(guest, |_| {
        let input = in_memory(&[
            0,
            call::FLUSH_ALL_SPACES,
            call::SET_SPARSE,
            0b1,
            everybody(guest),
        ]);
        succeeds(guest, call::FLUSH_SPACE_EX, 1, 0, input)
    })?;
    flushes(guest, |_| {
        let input = in_memory(&[
            0,
            call::FLUSH_ALL_SPACES,
            call::SET_SPARSE,
            0b11,
            everybody(guest),
            0,
        ]);
        succeeds(guest, call::FLUSH_SPACE_EX, 2, 0, input)
    })?;
    flushes(guest, |_| {
        let input = in_memory(&[0, call::FLUSH_ALL_SPACES, call::SET_ALL, 0]);
        succeeds(guest, call::FLUSH_SPACE_EX, 0, 0, input)
    })
}

pub(super) fn flush_list_ex(guest: &mut Guest) -> Check {
    guest.needs(FLUSH)?;
    guest.needs(SPARSE_SETS)?;
    flushes(guest, |address| {
        let input = in_memory(&[
            0,
            call::FLUSH_ALL_SPACES,
            call::SET_SPARSE,
            0b11,
            everybody(guest),
            0,
            0x7000_0000,
            address,
        ]);
        succeeds(guest, call::FLUSH_LIST_EX, 2, 2, input)
    })?;
    flushes(guest, |address| {
        let input = in_memory(&[0, call::FLUSH_ALL_SPACES, call::SET_ALL, 0, address]);
        succeeds(guest, call::FLUSH_LIST_EX, 0, 1, input)
    })
}

pub(super) fn flush_xmm(guest: &mut Guest) -> Check {
    guest.needs(FLUSH)?;
    guest.needs(XMM_INPUT)?;
    flushes(guest, |_| {
        let input = in_xmm(0, call::FLUSH_ALL_SPACES, &[everybody(guest)]);
        succeeds(guest, call::FLUSH_SPACE, 0, 0, input)
    })?;
    flushes(guest, |address| {
        let input = in_xmm(
            0,
            call::FLUSH_ALL_SPACES,
            &[everybody(guest), 0x7000_0000, address],
        );
        succeeds(guest, call::FLUSH_LIST, 0, 2, input)
    })?;
    guest.needs(SPARSE_SETS)?;
    flushes(guest, |_| {
        let input = in_xmm(
            0,
            call::FLUSH_ALL_SPACES,
            &[call::SET_SPARSE, 0b1, everybody(guest)],
        );
        succeeds(guest, call::FLUSH_SPACE_EX, 1, 0, input)
    })?;
    flushes(guest, |address| {
        let input = in_xmm(
            0,
            call::FLUSH_ALL_SPACES,
            &[call::SET_SPARSE, 0b11, everybody(guest), 0, address],
        );
        succeeds(guest, call::FLUSH_LIST_EX, 2, 1, input)
    })
}

pub(super) fn flush_extended_ranges(guest: &mut Guest) -> Check {
    guest.needs(FLUSH)?;
    guest.needs(EXTENDED_RANGES)?;
    // Bits 10:0 count pages, bit 11 selects large pages.
    flushes(guest, |address| {
        let flags = call::FLUSH_ALL_SPACES | EXTENDED_RANGE_FORMAT;
        let input = in_memory(&[0, flags, everybody(guest), (address - 4096) | 2]);
        succeeds(guest, call::FLUSH_LIST, 0, 1, input)
    })
}

pub(super) fn flush_bad(guest: &mut Guest) -> Check {
    guest.needs(FLUSH)?;
    let bad = |code, header, repetitions, words: &[u64]| {
        answers(
            guest,
            call::input(code, header, repetitions),
            in_memory(words),
            status::INVALID_HYPERCALL_INPUT,
        )
    };
    let all = everybody(guest);
    // An empty list, a repeated call without repetitions, a missing header.
    bad(call::FLUSH_LIST, 0, 0, &[0, call::FLUSH_ALL_SPACES, all])?;
    bad(call::FLUSH_SPACE, 0, 1, &[0, call::FLUSH_ALL_SPACES, all])?;
    bad(call::FLUSH_SPACE, 1, 0, &[0, call::FLUSH_ALL_SPACES, all])?;
    guest.needs(SPARSE_SETS)?;
    // Banks that the header does not count.
    bad(
        call::FLUSH_SPACE_EX,
        1,
        0,
        &[0, call::FLUSH_ALL_SPACES, call::SET_SPARSE, 0b11, all, 0],
    )?;
    // Memory that does not exist.
    let control = call::input(call::FLUSH_SPACE, 0, 0);
    let nowhere = Page::existing(0x00FF_FFFF_F000).ok_or_else(|| failed!("no page"))?;
    answers(
        guest,
        control,
        Input::Memory(nowhere, None),
        status::INVALID_HYPERCALL_INPUT,
    )
}

const VECTOR: u8 = 0x61;

/// `send` must deliver the vector exactly once to every processor in `targets`.
fn interrupts(guest: &Guest, targets: core::ops::Range<usize>, send: impl Fn() -> Check) -> Check {
    let counts = |order| trap::count(order, VECTOR);
    let before: [u32; crate::MAX_CPUS] = core::array::from_fn(counts);
    send()?;
    for order in targets {
        let came = || counts(order) != before[order];
        if !guest.patience.until(came) {
            return Err(failed!("processor {order} was not interrupted"));
        }
        equal("interrupts", counts(order) - before[order], 1)?;
    }
    Ok(())
}

pub(super) fn ipi(guest: &mut Guest) -> Check {
    guest.needs(CLUSTER_IPI)?;
    let vector = u64::from(VECTOR);
    // All processors, including this one: in registers, then in memory.
    let all = 0..guest.processors.count;
    interrupts(guest, all.clone(), || {
        succeeds(
            guest,
            call::SEND_IPI,
            0,
            0,
            Input::Registers(vector, everybody(guest)),
        )
    })?;
    interrupts(guest, all, || {
        succeeds(
            guest,
            call::SEND_IPI,
            0,
            0,
            in_memory(&[vector, everybody(guest)]),
        )
    })?;
    for order in guest.processors.others() {
        let index = vp_index_of(guest, order)?;
        interrupts(guest, order..order + 1, || {
            succeeds(
                guest,
                call::SEND_IPI,
                0,
                0,
                Input::Registers(vector, 1 << index),
            )
        })?;
    }
    Ok(())
}

pub(super) fn ipi_ex(guest: &mut Guest) -> Check {
    guest.needs(CLUSTER_IPI)?;
    guest.needs(SPARSE_SETS)?;
    let vector = u64::from(VECTOR);
    let all = 0..guest.processors.count;
    interrupts(guest, all.clone(), || {
        succeeds(
            guest,
            call::SEND_IPI_EX,
            1,
            0,
            in_memory(&[vector, call::SET_SPARSE, 0b1, everybody(guest)]),
        )
    })?;
    interrupts(guest, all.clone(), || {
        succeeds(
            guest,
            call::SEND_IPI_EX,
            2,
            0,
            in_memory(&[vector, call::SET_SPARSE, 0b101, everybody(guest), 0]),
        )
    })?;
    interrupts(guest, all, || {
        succeeds(
            guest,
            call::SEND_IPI_EX,
            0,
            0,
            in_memory(&[vector, call::SET_ALL, 0]),
        )
    })
}

pub(super) fn ipi_xmm(guest: &mut Guest) -> Check {
    guest.needs(CLUSTER_IPI)?;
    guest.needs(SPARSE_SETS)?;
    guest.needs(XMM_INPUT)?;
    interrupts(guest, 0..guest.processors.count, || {
        let input = in_xmm(VECTOR.into(), call::SET_SPARSE, &[0b1, everybody(guest)]);
        succeeds(guest, call::SEND_IPI_EX, 1, 0, input)
    })
}

pub(super) fn ipi_bad(guest: &mut Guest) -> Check {
    guest.needs(CLUSTER_IPI)?;
    let bad = |vector: u64| {
        let control = call::input(call::SEND_IPI, 0, 0);
        answers(
            guest,
            control,
            Input::Registers(vector, everybody(guest)),
            status::INVALID_HYPERCALL_INPUT,
        )
    };
    // Vectors of exceptions, vectors past the last, a reserved half that is not zero.
    bad(0x0F)?;
    bad(0x100)?;
    bad(1 << 32 | u64::from(VECTOR))
}

/// KVM forwards these two calls to the VMM only if the synthetic interrupt controller is on.
fn with_synic(guest: &Guest) -> Check {
    guest.needs(super::synic::SYNIC)?;
    write(msr::SCONTROL, 1)
}

pub(super) fn post_message(guest: &mut Guest) -> Check {
    guest.needs(POST_MESSAGES)?;
    with_synic(guest)?;
    // Connection, message type 1 with 16 bytes of payload.
    let input = in_memory(&[NO_CONNECTION, 16 << 32 | 1, 0, 0]);
    answers(
        guest,
        call::input(call::POST_MESSAGE, 0, 0),
        input,
        status::INVALID_CONNECTION_ID,
    )
}

pub(super) fn signal_event(guest: &mut Guest) -> Check {
    guest.needs(SIGNAL_EVENTS)?;
    with_synic(guest)?;
    let control = call::input(call::SIGNAL_EVENT, 0, 0);
    answers(
        guest,
        control,
        Input::Registers(NO_CONNECTION, 0),
        status::INVALID_CONNECTION_ID,
    )?;
    answers(
        guest,
        control,
        in_memory(&[NO_CONNECTION]),
        status::INVALID_CONNECTION_ID,
    )
}

pub(super) fn extended(guest: &mut Guest) -> Check {
    guest.needs(EXTENDED)?;
    let control = call::input(call::EXT_QUERY_CAPABILITIES, 0, 0);
    let output = Page::new();
    // The content must be overwritten, by zero if there are no capabilities.
    output.write64(0, u64::MAX);
    output.write64(8, u64::MAX);
    answers(
        guest,
        control,
        Input::Memory(Page::new(), Some(output)),
        status::SUCCESS,
    )?;
    if output.read64(0) == u64::MAX {
        return Err(failed!("no capabilities were written"));
    }
    equal("bytes behind the output", output.read64(8), u64::MAX)?;
    answers(
        guest,
        control,
        Input::Registers(0, 0),
        status::INVALID_PARAMETER,
    )
}
