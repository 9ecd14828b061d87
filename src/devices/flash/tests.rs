use proptest::prelude::*;

use super::*;

const CODE_LEN: usize = 0x3000;
const VARS_LEN: usize = 0x2000;
const CODE: u64 = CODE_LEN as u64;
const VARS: u64 = VARS_LEN as u64;
/// The variables in the device's region.
const AT: u64 = MAX_LEN - CODE - VARS;

fn flash(path: Option<&Path>) -> Flash {
    let flash = Flash::new(MemorySlots::new(8));
    flash.set_code(&vec![0xc0; CODE_LEN]).unwrap();
    let mut template = vec![ERASED; VARS_LEN];
    template[..4].copy_from_slice(b"_FVH");
    flash.set_vars(&template, path).unwrap();
    flash
}

fn read(flash: &Flash, at: u64) -> u8 {
    let mut byte = [0xff];
    flash.read(Region::ONLY, at, &mut byte);
    byte[0]
}

fn write(flash: &Flash, at: u64, bytes: &[u8]) {
    for byte in bytes {
        flash.write(Region::ONLY, at, &[*byte]);
    }
}

fn slots(flash: &Flash) -> (usize, usize) {
    let inner = lock(&flash.0);
    let of = |part: &Part| part.slots.len();
    let vars = inner.vars.as_ref().map_or(0, |vars| of(&vars.part));
    (inner.code.as_ref().map_or(0, of), vars)
}

fn saved(flash: &Flash) -> Vec<u8> {
    let mut encoder = Encoder::new();
    flash.save(&mut encoder);
    encoder.into_body()
}

#[test]
fn the_guest_sees_variables_or_the_status() {
    let flash = flash(None);
    assert_eq!(slots(&flash), (1, 1));
    assert_eq!(read(&flash, AT), b'_');
    write(&flash, AT, &[0x50, 0x70]);
    assert_eq!((read(&flash, AT), slots(&flash)), (0, (1, 0)));
    write(&flash, AT + 4, &[0x10, 0x5a, 0x70]);
    assert_eq!(read(&flash, AT + 9), 0x80);
    write(&flash, AT, &[0xff]);
    assert_eq!((read(&flash, AT + 4), slots(&flash)), (0x5a, (1, 1)));
    // Code, and what is below, take nothing.
    write(&flash, AT + VARS, &[0x70]);
    write(&flash, AT - 1, &[0x70]);
    assert_eq!((read(&flash, AT - 1), slots(&flash)), (0xff, (1, 1)));
    assert_eq!(flash.code_end(0x1000), vec![0xc0; 0x1000]);
}

#[test]
fn what_is_written_is_in_the_file_in_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vars");
    let first = flash(Some(&path));
    first.acquire().unwrap();
    let content = || std::fs::read(&path).unwrap();
    assert_eq!(content().len() as u64, VARS);
    write(&first, AT + 0x1004, &[0x10, 1]);
    assert_eq!(content()[0x1004], 1);
    write(&first, AT + 0x1fff, &[0x20, 0xd0]);
    assert_eq!(content()[0x1004], ERASED);
    assert_eq!(content()[..4], *b"_FVH");
    write(&first, AT + 8, &[0x10, 7, 0xff]);
    assert!(flash(Some(&path)).acquire().is_err(), "another VM has it");
    drop(first);
    let again = flash(Some(&path));
    again.acquire().unwrap();
    assert_eq!(read(&again, AT + 8), 7);
}

#[test]
fn a_restored_vm_has_its_variables_and_not_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vars");
    let source = flash(None);
    write(&source, AT + 5, &[0x10, 0x77, 0x70]);
    let body = saved(&source);
    for code_first in [true, false] {
        let target = Flash::new(MemorySlots::new(8));
        target.keep_vars_in(&path).unwrap();
        let code = || target.set_code(&vec![0xc0; CODE_LEN]).unwrap();
        if code_first {
            code();
        }
        assert_eq!(target.has_code(), code_first);
        let mut decoder = Decoder::new("flash", 1, &body);
        target.load(&mut decoder).unwrap();
        decoder.finish().unwrap();
        if !code_first {
            code();
        }
        target.acquire().unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[5], 0x77);
        assert_eq!((read(&target, AT), slots(&target)), (0x80, (1, 0)));
        assert_eq!(saved(&target), body);
        target.reset();
        assert_eq!((read(&target, AT + 5), slots(&target)), (0x77, (1, 1)));
        target.release();
    }
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    let slots = || MemorySlots::new(8);
    let most = usize::try_from(MAX_LEN).unwrap();
    for len in [0, 1, 0x1800, most + BLOCK_LEN] {
        let error = Flash::new(slots()).set_code(&vec![0; len]).unwrap_err();
        assert!(matches!(error, FlashError::Length { .. }), "{len}");
        let error = flash(None).set_vars(&vec![0; len], None).unwrap_err();
        assert!(matches!(error, FlashError::Length { .. }), "{len}");
    }
    let too_much = vec![0; most - CODE_LEN + BLOCK_LEN];
    assert!(flash(None).set_vars(&too_much, None).is_err());
}

proptest! {
    /// A guest that writes anything anywhere, and a state that says anything.
    #[test]
    fn it_outlasts_any_guest(
        ops in proptest::collection::vec(
            (AT - 8..MAX_LEN, prop::collection::vec(
                prop::sample::select(vec![0x10_u8, 0x20, 0xd0, 0x50, 0x70, 0x90, 0xff, 0xe8]), 1..9)), 0..60),
        state in any::<Vec<u8>>(),
    ) {
        let flash = flash(None);
        for (at, bytes) in ops {
            flash.write(Region::ONLY, at, &bytes);
            let mut data = vec![0xff; bytes.len()];
            flash.read(Region::ONLY, at, &mut data);
        }
        let body = saved(&flash);
        let other = self::flash(None);
        other.load(&mut Decoder::new("flash", 1, &body)).unwrap();
        prop_assert_eq!(saved(&other), body);
        // Refused or not, it goes on.
        let _loaded = other.load(&mut Decoder::new("flash", 1, &state));
        other.reset();
        read(&other, AT);
    }
}
