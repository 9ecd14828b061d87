#![no_main]

use hypernest_fuzz_targets::run;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    run("virtio-port-state", bytes);
});
