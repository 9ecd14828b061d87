//! Builds the freestanding image in `elf`, a separate workspace with its own flags.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Variables that the caller sets for its own programs and that must not reach a freestanding one: flags such
/// as `-C target-feature=+crt-static`, and the wrappers by which clippy and others replace the compiler.
const CALLERS: [&str; 10] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_TARGET_DIR",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
];

/// The programs' only architecture, in the form for which `core` comes with every toolchain.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    for input in [
        "build.rs",
        "elf/Cargo.toml",
        "elf/Cargo.lock",
        "elf/link.ld",
        "elf/src",
        "programs",
        "../src",
        "../Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", here.join(input).display());
    }

    let script = here.join("elf/link.ld");
    let flags = [
        "-Crelocation-model=static".to_owned(),
        "-Ccode-model=small".to_owned(),
        "-Cforce-unwind-tables=no".to_owned(),
        format!("-Clink-arg=-Wl,-T,{}", script.display()),
        "-Clink-args=-nostdlib -nostartfiles -static -no-pie".to_owned(),
        "-Clink-args=-Wl,--build-id=none,-z,noexecstack,-z,max-page-size=4096".to_owned(),
    ];
    let mut flags = flags.to_vec();
    // Hosts that interpret guest code support few SSE instructions. If the compiler ever requires SSE2, only
    // those hosts are lost.
    let without_sse = "-Ctarget-feature=-sse,-sse2";
    if compiler_takes(without_sse) {
        flags.push(without_sse.to_owned());
    } else {
        println!(
            "cargo::warning=this compiler needs SSE2: the guest programs will not run where KVM interprets \
             guest code"
        );
    }
    let out = variable("OUT_DIR");
    let mut cargo = Command::new(variable("CARGO"));
    for name in CALLERS {
        cargo.env_remove(name);
    }
    cargo
        .current_dir(here.join("elf"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .args([
            "build",
            "--release",
            "--quiet",
            "--offline",
            "--locked",
            "--target",
            TARGET,
            "--target-dir",
            &out,
        ]);
    let status = cargo
        .status()
        .unwrap_or_else(|error| panic!("starting {cargo:?}: {error}"));
    assert!(
        status.success(),
        "the guest image does not build ({status}): {cargo:?}"
    );

    // Outside the target's directory, so that the library need not contain its name.
    for image in ["guest", "guest-multiboot"] {
        let from = PathBuf::from(&out).join(TARGET).join("release").join(image);
        let to = PathBuf::from(&out).join(image);
        std::fs::copy(&from, &to).unwrap_or_else(|error| {
            panic!("copying {} to {}: {error}", from.display(), to.display())
        });
    }
}

fn compiler_takes(flag: &str) -> bool {
    let mut rustc = Command::new(variable("RUSTC"));
    let output = rustc
        .args(["--print=cfg", "--target", TARGET, flag])
        .output();
    output
        .unwrap_or_else(|error| panic!("starting {rustc:?}: {error}"))
        .status
        .success()
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name} for build scripts: {error}"))
}
