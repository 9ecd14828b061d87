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
        "doctor::hv_evmcs_is_the_one_thing_missing_on_amd",
        one_thing_missing,
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

fn one_thing_missing() -> TestResult {
    let ended = doctor(&[])?;
    ended.expect_code(3)?;
    if !ended.stdout.contains("hv-evmcs is the one thing missing") {
        return Err(ended.wrong("hv-evmcs as the one thing missing"));
    }
    doctor(&["--profile", "windows"])?.expect_code(0)?;
    Ok(())
}

/// What the doctor says of a profile is what `hypernest run` does with it, in both directions.
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
