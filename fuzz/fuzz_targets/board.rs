//! What an L1 guest program measured, as it lies in the guest's memory.
#![no_main]

use hypernest_nested::board::{MAX_CAPACITY, Split, read, samples};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|memory: &[u8]| {
    if let Ok(reading) = read(memory) {
        assert!(reading.capacity as u64 <= MAX_CAPACITY);
        let end = reading
            .samples_gpa
            .checked_add(reading.samples_len() as u64);
        assert!(end.is_some());
    }
    for sample in samples(memory) {
        if let Split::Parts {
            l2_to_l1,
            l1,
            l1_to_l2,
        } = sample.split()
        {
            assert_eq!(l2_to_l1 + l1 + l1_to_l2, sample.after - sample.before);
        }
    }
});
