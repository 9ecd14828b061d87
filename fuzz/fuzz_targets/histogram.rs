//! Histograms in reports, as anyone may hand them around.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "the target reads and adds up")]
#[path = "../../bench/src/histogram.rs"]
mod histogram;

fuzz_target!(|text: &str| {
    if let Ok(one) = histogram::decode(text) {
        let _ = histogram::sum([&one, &one]);
    }
});
