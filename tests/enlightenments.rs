//! Every enlightenment works end to end: a guest program uses all that CPUID announces, under each profile.

use hypernest_lab::suite::{Test, TestResult};

use crate::needs;
use crate::vm::{Ended, Site, Vm};

const fn test(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run).needs(needs::hyperv)
}

pub(crate) const TESTS: &[Test] = &[
    test("enlightenments::windows_profile", windows),
    test("enlightenments::all_of_them", all),
    test("enlightenments::nested_profile", nested).needs(needs::evmcs),
    test("enlightenments::nested_profile_without_evmcs", nested_svm).needs(needs::nested_svm),
    test("enlightenments::with_a_split_irqchip", split),
    test("enlightenments::enforced", enforced),
    test("enlightenments::one_by_one", one_by_one).limit_seconds(120),
    Test::new("enlightenments::none", none).needs(needs::guests),
    test("enlightenments::identity", identity),
];

/// Part of the warning about a list that no known guest uses.
const UNUSED: &str = "will have no effect: no known guest uses";

/// Runs hvtest with `vcpus` vCPUs; the checks `required` must find their features.
fn hvtest(
    vcpus: u32,
    required: &[&str],
    arguments: &[&str],
) -> Result<Ended, Box<dyn std::error::Error>> {
    let site = Site::new()?;
    let line = format!("hvtest cpus={vcpus} require={}", required.join(","));
    let mut command = site.enlightened_guest(&line);
    command.args(["--cpus", &vcpus.to_string()]).args(arguments);
    let ended = Vm::start(&mut command)?.end()?;
    ended.expect_code(0)?;
    Ok(ended)
}

/// The same, without output on stderr.
fn quiet(vcpus: u32, required: &[&str], arguments: &[&str]) -> TestResult {
    let ended = hvtest(vcpus, required, arguments)?;
    if !ended.stderr.is_empty() {
        return Err(ended.wrong("nothing on stderr"));
    }
    Ok(())
}

/// The checks of the profile `windows` on every host that supports it.
const WINDOWS: &[&str] = &[
    "interface",
    "hypercall-page",
    "bad-hypercall",
    "vpindex",
    "runtime",
    "crash-registers",
    "relaxed",
    "reference-counter",
    "reference-tsc-page",
    "frequencies",
    "assist-page",
    "spinlocks",
    "tlbflush-space",
    "tlbflush-list",
    "tlbflush-space-ex",
    "tlbflush-list-ex",
    "tlbflush-xmm",
    "tlbflush-ext",
    "tlbflush-bad",
    "ipi",
    "ipi-ex",
    "ipi-xmm",
    "ipi-bad",
    "synic",
    "stimer-message",
    "stimer-periodic",
    "stimer-direct",
    "post-message",
    "signal-event",
];

fn windows() -> TestResult {
    quiet(4, WINDOWS, &["--hv", "windows"])
}

fn all() -> TestResult {
    let more = ["reenlightenment", "reset-register", "ext-hypercalls"];
    quiet(2, &[WINDOWS, &more].concat(), &["--hv", "all"])
}

fn nested() -> TestResult {
    let more = ["evmcs", "reenlightenment"];
    quiet(2, &[WINDOWS, &more].concat(), &["--nested"])
}

/// The profile unchanged, with `=auto`, and without hv-evmcs are equivalent; only the last gives no warning.
fn nested_svm() -> TestResult {
    for list in ["nested", "nested,evmcs=auto"] {
        let site = Site::new()?;
        let mut command =
            site.enlightened_guest("hvtest cpus=1 require=interface,vpindex,reenlightenment");
        let ended = Vm::start(command.args(["--nested", "--hv", list]))?.end()?;
        ended.expect_error(0, &["WARN", "hv-evmcs is left out: it needs Intel's VMX"])?;
    }
    let required = [WINDOWS, &["reenlightenment"]].concat();
    quiet(2, &required, &["--nested", "--hv", "nested,-hv-evmcs"])
}

fn split() -> TestResult {
    quiet(2, WINDOWS, &["--irqchip", "split"])
}

/// With hv-enforce-cpuid, accesses to unannounced features fault.
fn enforced() -> TestResult {
    let site = Site::new()?;
    let mut command = site.enlightened_guest("hvtest cpus=2 enforced require=interface,vpindex");
    command.args(["--cpus", "2", "--hv", "hv-vpindex,hv-enforce-cpuid"]);
    let ended = Vm::start(&mut command)?.end()?;
    ended.expect_code(0)?.expect_lines(&[
        "ok vpindex",
        "ok enforced-40000003",
        "ok enforced-40000073",
        "ok enforced-40000080",
        "ok enforced-40000105",
        "ok enforced-40000106",
    ])?;
    Ok(())
}

/// Each alone, with its requirements: its own checks find it.
fn one_by_one() -> TestResult {
    for (name, checks) in [
        ("hv-relaxed", &["interface", "relaxed"][..]),
        ("hv-vapic", &["assist-page", "apic-registers"]),
        ("hv-spinlocks=0x1fff", &["spinlocks"]),
        ("hv-vpindex", &["vpindex"]),
        ("hv-runtime", &["runtime"]),
        ("hv-crash", &["crash-registers"]),
        ("hv-time", &["reference-counter", "reference-tsc-page"]),
        ("hv-synic", &["synic", "post-message", "signal-event"]),
        ("hv-stimer", &["stimer-message", "stimer-periodic"]),
        ("hv-stimer-direct", &["stimer-direct"]),
        ("hv-tlbflush", &["tlbflush-space", "tlbflush-list-ex"]),
        ("hv-tlbflush-ext", &["tlbflush-ext"]),
        ("hv-ipi", &["ipi", "ipi-ex"]),
        ("hv-reset", &["reset-register"]),
        ("hv-frequencies", &["frequencies"]),
        ("hv-reenlightenment", &["reenlightenment"]),
        ("hv-xmm-input,hv-tlbflush", &["tlbflush-xmm"]),
        ("hv-ext-hypercalls", &["ext-hypercalls"]),
    ] {
        let ended =
            hvtest(1, checks, &["--hv", name]).map_err(|error| format!("{name}: {error}"))?;
        // hypernest warns about a list that no known guest uses; this program uses each enlightenment alone.
        if !ended.stderr.lines().all(|line| line.contains(UNUSED)) {
            return Err(ended.wrong("nothing but the warning of an unused enlightenment"));
        }
    }
    Ok(())
}

/// Without enlightenments there is no sign of Hyper-V.
fn none() -> TestResult {
    let ended = hvtest(1, &[], &["--hv", "none"])?;
    if !ended.stderr.is_empty() {
        return Err(ended.wrong("nothing on stderr"));
    }
    let found = ended.stdout.lines().filter(|line| line.starts_with("ok "));
    assert_eq!(found.count(), 0, "{}", ended.stdout);
    Ok(())
}

/// The hypervisor's identity, followed by KVM's own leaves.
fn identity() -> TestResult {
    let site = Site::new()?;
    let list = "hv-vpindex,hv-vendor-id=HyperNestVM!,hv-version-id-build=0x5678,hv-version-id-major=11,\
        hv-version-id-minor=2,hv-version-id-spack=3,hv-version-id-sbranch=4,hv-version-id-snumber=5";
    let mut command = site.enlightened_guest("hvdump");
    command.args(["--kvm-leaves", "--hv", list]);
    let ended = Vm::start(&mut command)?.end()?;
    ended.expect_code(0)?;
    let words = |leaf: &str| -> Option<Vec<u32>> {
        let start = format!("cpuid {leaf} ");
        let mut lines = ended.stdout.lines();
        let words = lines.find_map(|l| l.trim_matches('\0').strip_prefix(&start))?;
        let words = words.split(' ');
        words.map(|w| u32::from_str_radix(w, 16).ok()).collect()
    };
    let text = |leaf: &str| {
        let bytes = words(leaf)?.into_iter().skip(1).flat_map(u32::to_le_bytes);
        String::from_utf8(bytes.collect()).ok()
    };
    let shown = &ended.stdout;
    assert_eq!(text("40000000").as_deref(), Some("HyperNestVM!"), "{shown}");
    let version = vec![0x5678, 11 << 16 | 2, 3, 4 << 24 | 5];
    assert_eq!(words("40000002"), Some(version), "{shown}");
    assert_eq!(
        text("40000100").as_deref(),
        Some("KVMKVMKVM\0\0\0"),
        "{shown}"
    );
    Ok(())
}
