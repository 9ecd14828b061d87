//! Text form of a report.

use std::fmt::Write;

use super::{InspectReport, SavedCpu, SavedEndpoint, SavedVcpu};
use crate::config::show_size;

/// Renders the report as lines.
pub fn render(report: &InspectReport) -> String {
    let mut text = format!(
        "{}: saved by {} (format {})\n",
        shown(&report.name),
        shown(&report.writer),
        report.format
    );
    let mut line = |what: &str, value: &str| {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "  {what:<10}{}", shown(value));
    };
    let cpu = &report.cpu;
    line(
        "CPU",
        &format!(
            "{}, {} bits of physical address",
            name(cpu),
            cpu.physical_bits
        ),
    );
    line("features", &cpu.features.join(" "));
    line("Hyper-V", &report.hv.join(" "));
    for register in &report.hyperv {
        line("", &format!("{} {}", register.name, register.value.0));
    }
    let time = &report.time;
    line(
        "time",
        &format!(
            "TSC {} at {}, KVM's clock {} s, saved at {} s since 1970",
            time.tsc,
            time.khz,
            time.clock_ns / 1_000_000_000,
            time.realtime_ns / 1_000_000_000
        ),
    );
    let guest = &time.guest;
    for (is, what) in [
        (guest.notify, "requests notification of a new TSC frequency"),
        (
            guest.emulate,
            "requests its old TSC frequency until it has adapted",
        ),
        (
            guest.emulating,
            "still has its old TSC frequency from an earlier migration",
        ),
        (guest.invariant, "relies on an invariant TSC"),
    ] {
        if is {
            line("", what);
        }
    }
    let ram = &report.ram;
    line(
        "memory",
        &format!(
            "{}, of which {} KiB are in the file{}",
            show_size(ram.size),
            ram.data >> 10,
            if ram.checked { ", all checked" } else { "" }
        ),
    );
    let devices: Vec<_> = report.devices.iter().map(|d| d.name.as_str()).collect();
    line("devices", &devices.join(" "));
    for endpoint in &report.endpoints {
        let SavedEndpoint { setting, value } = endpoint;
        line(
            "names",
            &format!("{setting} {value} (not opened unless --{setting} is given)"),
        );
    }
    for file in &report.boot {
        let saved = match file.bytes {
            Some(bytes) => format!("{} KiB are saved with the VM", bytes.div_ceil(1024)),
            None => "not saved: a reset needs --kernel".to_owned(),
        };
        line("boots", &format!("{} {} ({saved})", file.role, file.path));
    }
    for vcpu in &report.vcpus {
        line(&format!("vCPU {}", vcpu.index), &describe(vcpu));
        if let Some(nested) = &vcpu.nested {
            line("", &nested.summary);
        }
        for register in &vcpu.hyperv {
            line("", &format!("{} {}", register.name, register.value.0));
        }
    }
    text
}

/// KVM sets no brand string for guests, so it is often empty.
fn name(cpu: &SavedCpu) -> String {
    match cpu.brand.as_str() {
        "" => format!("{} processor without a brand string", cpu.vendor),
        brand => format!("{brand} ({})", cpu.vendor),
    }
}

fn describe(vcpu: &SavedVcpu) -> String {
    format!(
        "{}, {}, RIP {}, RSP {}, CR3 {}",
        vcpu.state, vcpu.mode, vcpu.rip.0, vcpu.rsp.0, vcpu.cr3.0
    )
}

/// Escapes text from the file, which may contain terminal control sequences.
fn shown(words: &str) -> String {
    let mut text = String::new();
    for c in words.chars() {
        if c.is_control() {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    text
}
