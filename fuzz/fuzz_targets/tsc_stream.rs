//! What samplers of clocks send through the debug console or a serial port.
#![no_main]

use hypernest_nested::tsc::{Next, next_said};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    let mut rest = stream;
    loop {
        let taken = match next_said(rest) {
            Next::Incomplete => return,
            Next::Skip { bytes, .. } => bytes,
            Next::Said(_, taken) => taken,
        };
        assert!(taken > 0 && taken <= rest.len());
        rest = &rest[taken..];
    }
});
