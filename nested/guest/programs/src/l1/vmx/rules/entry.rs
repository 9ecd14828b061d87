//! Failures of an entry, and the effect of VMREAD and VMWRITE meanwhile.

use core::mem::offset_of;

use hypernest_nested::evmcs::{self, Evmcs};
use hypernest_nested::vmx::controls::{exit, pin, secondary};
use hypernest_nested::vmx::{Field, instruction_error};

use super::super::fields::{try_read, try_write};
use super::super::switch::Failed;
use super::{Rig, looking};
use crate::checks::{Check, equal, failed};
use crate::l1::l2::Shared;

type NamedCheck = (&'static str, fn(&mut Rig) -> Check);

pub(super) const CHECKS: &[NamedCheck] = &[
    ("entry", entry),
    ("resume-first", resume_first),
    ("clean-after-exit", clean_after_exit),
    ("wrong-version", wrong_version),
    ("switched-off", switched_off),
    ("vmread", vmread),
    ("vmread-unknown", vmread_unknown),
    ("vmwrite", vmwrite),
    ("no-preemption-timer", no_preemption_timer),
    ("no-posted-interrupts", no_posted_interrupts),
    ("no-shadow-vmcs", no_shadow_vmcs),
    ("no-pml", no_pml),
    ("no-saved-preemption-timer", no_saved_preemption_timer),
];

extern "sysv64" fn idle(_: &'static Shared) -> ! {
    looking(|| 1)
}

/// L2 runs from stop to stop.
fn entry(rig: &mut Rig) -> Check {
    rig.begin(idle)?;
    rig.run_to_stop()?;
    equal("what L2 has seen", super::seen(), 0)?;
    rig.run_to_stop()?;
    equal("what L2 has seen", super::seen(), 1)
}

/// There is no launch state: VMRESUME works for the first entry, too.
fn resume_first(rig: &mut Rig) -> Check {
    rig.begin(idle)?;
    rig.vmx.launched = true;
    rig.run_to_stop().map(|_| ())
}

/// After an exit L0 reports all groups as unchanged.
fn clean_after_exit(rig: &mut Rig) -> Check {
    rig.begin(idle)?;
    equal("clean bits of a new page", rig.clean_bits(), 0)?;
    rig.run_to_stop()?;
    equal("clean bits", rig.clean_bits(), evmcs::clean::ALL)
}

fn wrong_version(rig: &mut Rig) -> Check {
    let version_at = offset_of!(Evmcs, revision_id);
    rig.begin(idle)?;
    let page = rig.page();
    page.write32(version_at, evmcs::VERSION + 1);
    refused(rig, Failed::Invalid)?;
    page.write32(version_at, evmcs::VERSION);
    rig.run_to_stop().map(|_| ())
}

/// If it is disabled in the assist page, the entry uses the plain VMCS, of which there is none.
fn switched_off(rig: &mut Rig) -> Check {
    rig.begin(idle)?;
    rig.run_to_stop()?;
    rig.vmx.fields.switch_on(false);
    let result = refused(rig, Failed::Invalid);
    rig.vmx.fields.switch_on(true);
    result?;
    // The page was released: it is read in full again.
    rig.run_to_stop().map(|_| ())
}

/// Not allowed by the TLFS; KVM reads it from the page, for a Windows that uses it.
fn vmread(rig: &mut Rig) -> Check {
    rig.begin(idle)?;
    rig.run_to_stop()?;
    for field in [Field::GUEST_RIP, Field::EXIT_REASON, Field::HOST_RSP] {
        match try_read(field) {
            Ok(value) => equal("a field by VMREAD", value, rig.read(field))?,
            Err(failed) => return Err(failed!("VMREAD of {field:?}: {failed:?}")),
        }
    }
    Ok(())
}

fn vmread_unknown(rig: &mut Rig) -> Check {
    rig.begin(idle)?;
    rig.run_to_stop()?;
    match try_read(Field::PREEMPTION_TIMER) {
        Err(Failed::Valid) => Ok(()),
        other => Err(failed!(
            "VMREAD of a field that has no place in the page: {other:?}"
        )),
    }
}

fn vmwrite(rig: &mut Rig) -> Check {
    rig.begin(idle)?;
    rig.run_to_stop()?;
    let before = rig.read(Field::GUEST_RIP);
    match try_write(Field::GUEST_RIP, 0) {
        Err(Failed::Invalid) => {}
        other => return Err(failed!("VMWRITE: {other:?}")),
    }
    equal("RIP in the page", rig.read(Field::GUEST_RIP), before)?;
    rig.run_to_stop().map(|_| ())
}

fn no_preemption_timer(rig: &mut Rig) -> Check {
    lacking(rig, Field::PIN_CONTROLS, pin::PREEMPTION_TIMER)
}

fn no_posted_interrupts(rig: &mut Rig) -> Check {
    lacking(rig, Field::PIN_CONTROLS, pin::POSTED_INTERRUPTS)
}

fn no_shadow_vmcs(rig: &mut Rig) -> Check {
    lacking(rig, Field::SECONDARY_CONTROLS, secondary::VMCS_SHADOWING)
}

fn no_pml(rig: &mut Rig) -> Check {
    let control = secondary::PAGE_MODIFICATION_LOG;
    lacking(rig, Field::SECONDARY_CONTROLS, control)
}

fn no_saved_preemption_timer(rig: &mut Rig) -> Check {
    lacking(rig, Field::EXIT_CONTROLS, exit::SAVE_PREEMPTION_TIMER)
}

/// The entry fails with a control that the enlightened VMCS does not support.
fn lacking(rig: &mut Rig, field: Field, control: u32) -> Check {
    rig.begin(idle)?;
    let controls = rig.read(field);
    rig.write(field, controls | u64::from(control));
    refused(rig, Failed::Valid)?;
    equal(
        "instruction error",
        rig.read(Field::INSTRUCTION_ERROR),
        instruction_error::ENTRY_CONTROLS.into(),
    )?;
    rig.write(field, controls);
    rig.run_to_stop().map(|_| ())
}

fn refused(rig: &mut Rig, wanted: Failed) -> Check {
    match rig.enter() {
        Err(failed) if failed == wanted => Ok(()),
        Err(failed) => Err(failed!(
            "the entry ends with {failed:?} instead of {wanted:?}"
        )),
        Ok(()) => Err(failed!("the entry does not fail")),
    }
}

impl Rig {
    pub(super) fn page(&self) -> crate::pages::Page {
        self.vmx.fields.page()
    }

    pub(super) fn clean_bits(&self) -> u32 {
        self.page().read32(offset_of!(Evmcs, hv_clean_fields))
    }

    pub(super) fn set_clean_bits(&self, bits: u32) {
        self.page()
            .write32(offset_of!(Evmcs, hv_clean_fields), bits);
    }
}
