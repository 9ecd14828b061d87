//! `hypernest-bench tsc`: clocks of guests that are moved, as the guests themselves read them.

use std::error::Error;
use std::process::{Command, Stdio};

use hypernest_lab::host::Host;
use hypernest_lab::suite::{Stage, Test, TestResult};
use serde_json::Value;

use crate::l2_exit::{BENCH, L1_PARAMETERS};
use crate::vm::is_long_run;
use crate::{needs, stock_linux};

pub(crate) const TESTS: &[Test] = &[
    Test::new(
        "tsc_bench::a_guest_is_measured_where_there_is_no_hyper_v",
        plain,
    )
    .only_on(&[Host::Here])
    .needs(needs::guests),
    amd("tsc_bench::no_clock_steps_back_across_saves", || {
        micro("save")
    }),
    amd("tsc_bench::no_clock_steps_back_across_migrations", || {
        micro("migrate")
    }),
    amd(
        "tsc_bench::no_clock_of_a_linux_steps_back_across_saves",
        || linux("save"),
    ),
    amd(
        "tsc_bench::no_clock_of_a_linux_steps_back_across_migrations",
        || linux("migrate"),
    ),
    amd("tsc_bench::no_clock_of_a_guests_guest_steps_back", of_an_l2)
        .stage(ROOMY)
        .limit_seconds(400),
    intel(
        "tsc_bench::a_guest_adapts_to_other_frequencies_and_no_clock_steps_back",
        || other_frequencies(1),
    ),
    intel(
        "tsc_bench::two_vcpus_adapt_to_other_frequencies_and_no_clock_steps_back",
        || other_frequencies(2),
    ),
    intel(
        "tsc_bench::a_guest_that_does_not_answer_keeps_its_frequency",
        unanswered,
    ),
];

/// With space for a saved hypervisor.
const ROOMY: Stage = Stage {
    name: "roomy",
    memory_mib: 4096,
    with: &["linux-6.12/vmlinux", "linux-6.12/modules"],
    ..Stage::PLAIN
};

const fn amd(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Amd])
        .stage(stock_linux::AMD)
        .needs(needs::hyperv)
        .limit_seconds(400)
}

const fn intel(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Intel])
        .stage(stock_linux::INTEL)
        .needs(needs::hyperv)
        .limit_seconds(600)
}

/// The number of moves: `few`, or in long runs more.
fn moves(few: u32) -> u32 {
    if is_long_run() { 20 } else { few }
}

/// A result, and whether the command succeeded.
fn measure(arguments: &[&str], moves: u32) -> Result<(Value, bool), Box<dyn Error>> {
    let output = Command::new(BENCH)
        .args(["tsc", "--json", "--moves", &moves.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let shown = [
        &report["failures"],
        &report["clocks"],
        &report["moves"],
        &report["segments"],
    ];
    println!("{shown:#?}");
    assert_eq!(
        report["moves"].as_array().map(Vec::len),
        Some(moves as usize)
    );
    Ok((report, output.status.success()))
}

/// The same in the AMD lab, whose clocks are those of a loaded machine: a delayed report looks as if clocks
/// had lost time or drifted. A result with no other failures is measured again, twice at most.
fn measure_again(arguments: &[&str], moves: u32) -> Result<(Value, bool), Box<dyn Error>> {
    for _ in 0..2 {
        let (report, well) = measure(arguments, moves)?;
        let failures = report["failures"].as_array().into_iter().flatten();
        let mut failures = failures.filter_map(Value::as_str);
        let of_delay = |text: &str| text.contains(" drifted by ") || text.contains(" lost ");
        if well || !failures.all(of_delay) {
            return Ok((report, well));
        }
    }
    measure(arguments, moves)
}

/// Checks that the guest has these clocks, has read each, and that none ever stepped back.
fn expect_forward(report: &Value, clocks: &[&str]) {
    let results = report["clocks"].as_array().expect("a list");
    for result in results {
        let name = result["clock"].as_str().expect("a name");
        let figures = &result["measured"];
        assert_eq!(figures.is_object(), clocks.contains(&name), "{name}");
        if figures.is_object() {
            assert_eq!(figures["backward_steps"], 0, "{name}");
            assert!(figures["reads"].as_u64() > Some(10), "{name}");
        }
    }
    // The guest was stopped during each move, and its clocks continued meanwhile.
    for of_move in report["moves"].as_array().into_iter().flatten() {
        for name in clocks {
            let gap = of_move["clocks"][name]["gap_ms"].as_f64();
            assert!(gap > Some(0.0), "{name}: {of_move:#}");
        }
    }
}

const OF_HYPERV: [&str; 3] = ["tsc", "reference-page", "reference-counter"];
const OF_LINUX: [&str; 3] = ["tsc", "monotonic", "monotonic-raw"];

fn plain() -> TestResult {
    let arguments = ["--hv", "none", "--between-ms", "300", "--vcpus", "2"];
    let (report, well) = measure(&arguments, moves(2))?;
    expect_forward(&report, &["tsc"]);
    assert_eq!(report["guest"]["reenlightenment"], "not-offered");
    assert!(well);
    Ok(())
}

/// A report takes some ms there, so there are few.
const AMD: [&str; 4] = ["--beat-us", "50000", "--between-ms", "600"];

fn micro(by: &str) -> TestResult {
    for vcpus in ["1", "2"] {
        let arguments = [&AMD[..], &["--vcpus", vcpus, "--by", by]].concat();
        let (report, well) = measure_again(&arguments, moves(2))?;
        expect_forward(&report, &OF_HYPERV);
        assert!(well);
    }
    Ok(())
}

fn linux(by: &str) -> TestResult {
    let arguments = [
        &AMD[..],
        &[
            "--guest",
            "linux",
            "--vcpus",
            "2",
            "--by",
            by,
            "--append",
            L1_PARAMETERS,
        ],
    ]
    .concat();
    let (report, well) = measure_again(&arguments, moves(2))?;
    expect_forward(&report, &OF_LINUX);
    assert!(well);
    Ok(())
}

/// A Linux in a Linux with KVM; L2 is saved and restored together with L1.
fn of_an_l2() -> TestResult {
    let guest = ["--guest", "linux-l2", "--append", L1_PARAMETERS];
    let (report, well) = measure_again(&[&AMD[..], &guest].concat(), moves(1))?;
    expect_forward(&report, &OF_LINUX);
    assert!(well);
    Ok(())
}

/// A second there takes minutes of real time.
const INTEL: [&str; 6] = [
    "--beat-us",
    "1000",
    "--between-ms",
    "30",
    "--stuck-after",
    "3",
];

fn other_frequencies(vcpus: u32) -> TestResult {
    let vcpus = vcpus.to_string();
    let arguments = [
        &INTEL[..],
        &["--tsc-khz", "1.2x,0.7x,1.0x", "--vcpus", &vcpus],
    ]
    .concat();
    let (report, well) = measure(&arguments, moves(3))?;
    expect_forward(&report, &OF_HYPERV);
    assert_eq!(report["guest"]["reenlightenment"], "emulation");
    let mut before = report["guest"]["tsc_khz"].as_f64().expect("a number");
    for of_move in report["moves"].as_array().expect("a list") {
        let target = of_move["host_khz"].as_f64().expect("a number");
        let ack = &of_move["acknowledged"];
        assert!(ack.is_object(), "{of_move:#}");
        // Emulated until the write; the write changes the frequency to the new one.
        assert_eq!(ack["status"], serde_json::json!([1, 0]));
        let khz = |index: usize| ack["frequency_khz"][index].as_f64().expect("a number");
        assert!(
            (khz(0) - before).abs() < 1.0 && (khz(1) - target).abs() < 1.0,
            "{of_move:#}"
        );
        assert!(ack["acknowledged_after_us"].as_f64() >= ack["noticed_after_us"].as_f64());
        before = target;
    }
    assert!(well);
    Ok(())
}

fn unanswered() -> TestResult {
    let arguments = [&INTEL[..], &["--tsc-khz", "1.2x,1.0x", "--no-ack"]].concat();
    let (report, well) = measure(&arguments, 1)?;
    expect_forward(&report, &OF_HYPERV);
    assert_eq!(report["moves"][0]["acknowledged"], Value::Null);
    let khz = |index: usize| report["segments"][index]["tsc_khz"].as_f64();
    assert_eq!(khz(0), khz(1));
    assert!(well);
    Ok(())
}
