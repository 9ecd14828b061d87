//! CPU models: levels that a host supports or refuses.

use hypernest_lab::suite::{Test, TestResult};

use crate::needs;
use crate::vm::{Site, Vm};

pub(crate) const TESTS: &[Test] =
    &[Test::new("cpu::a_level_is_given_where_the_host_has_it", levels).needs(needs::guests)];

/// One feature of each level shows whether the host supports it (CPUID 1.ECX: SSE4.2; 7.EBX: AVX2, AVX512F).
fn levels() -> TestResult {
    let kvm = needs::caps()?.kvm;
    let ecx = kvm.leaf(1, 0).map_or(0, |leaf| leaf.ecx);
    let ebx = kvm.leaf(7, 0).map_or(0, |leaf| leaf.ebx);
    for (level, has) in [
        ("x86-64-v2", ecx >> 20 & 1),
        ("x86-64-v3", ebx >> 5 & 1),
        ("x86-64-v4", ebx >> 16 & 1),
    ] {
        let site = Site::new()?;
        let ended = Vm::start(site.guest("hello").args(["--cpu", level]))?.end()?;
        if has == 1 {
            ended.expect_code(0)?;
        } else {
            let lacks = format!("the host is below {level}: it does not have ");
            ended.expect_error(3, &[&lacks, "--cpu host"])?;
        }
    }
    Ok(())
}
