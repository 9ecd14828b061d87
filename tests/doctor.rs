//! `hypernest doctor` is right on each kind of host.

use hypernest_lab::host::Host;
use hypernest_lab::suite::{Test, TestResult};

use crate::needs;
use crate::vm::{Ended, Site, Vm};

pub(crate) const TESTS: &[Test] = &[
    Test::new("doctor::nested_works_with_vmx_and_evmcs", nested_works)
        .only_on(&[Host::Intel])
        .needs(needs::evmcs),
    Test::new(
        "doctor::nested_works_on_amd_without_evmcs",
        nested_works_on_amd,
    )
    .only_on(&[Host::Amd])
    .needs(needs::nested_svm),
    Test::new(
        "doctor::every_profile_it_recommends_starts",
        recommended_profiles_start,
    )
    .needs(needs::guests),
];

fn doctor(arguments: &[&str]) -> Result<Ended, Box<dyn std::error::Error>> {
    let site = Site::new()?;
    Vm::start(site.hypernest().arg("doctor").args(arguments))?.end()
}

fn nested_works() -> TestResult {
    let ended = doctor(&[])?;
    ended.expect_code(0)?;
    if ended.stdout.contains("FAIL") {
        return Err(ended.wrong("no failed check"));
    }
    Ok(())
}

fn nested_works_on_amd() -> TestResult {
    let ended = doctor(&[])?;
    ended.expect_code(0)?;
    if ended.stdout.contains("FAIL") || !ended.stdout.contains("hv-evmcs is left out") {
        return Err(ended.wrong("no failed check, and a note that hv-evmcs is left out"));
    }
    Ok(())
}

/// The doctor's verdict on a profile agrees with `hypernest run`, in both directions.
fn recommended_profiles_start() -> TestResult {
    for profile in ["none", "windows", "nested", "all", "passthrough"] {
        let verdict = doctor(&["--profile", profile])?;
        let site = Site::new()?;
        let mut command = site.enlightened_guest("hello");
        command.args(["--hv", profile]);
        if profile == "nested" {
            command.arg("--nested");
        }
        let ran = Vm::start(command)?.end()?;
        if verdict.status.code() != ran.status.code() {
            return Err(ran.wrong(&format!(
                "the doctor's verdict for {profile}, {}",
                verdict.status
            )));
        }
    }
    Ok(())
}
