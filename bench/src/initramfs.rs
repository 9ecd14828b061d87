//! `hypernest-bench initramfs`: the files that `l2-exit --l1 image` needs to run l2probe in an L2 of a stock
//! Linux: an initramfs for L2 with l2probe as its init, and one for L1 with this program as its init, which
//! starts that L2.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use hypernest_lab::cpio::Writer;
use hypernest_lab::plan::LAB_DIR_VARIABLE;
use thiserror::Error;

use crate::kvm_module::Vendor;
use crate::l1_agent::MODULES;
use crate::probe_l1;
use crate::usage::{self, Usage};
use crate::{FAILED, WRONG_USE};

/// Write the initramfs of an L1 that runs l2probe in a Linux guest, for l2-exit --l1 image
///
/// L1 and L2 run the same kernel. L1's init is this program, which loads KVM's modules, starts L2 with
/// l2probe as its init, forwards its result, and powers off. Both programs must be static.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// A directory with vmlinux and, in modules/, kvm.ko, irqbypass.ko and kvm-intel.ko, kvm-amd.ko or both,
    /// uncompressed [default: linux-6.12 in $HYPERNEST_LAB_DIR]
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// A static l2probe [default: beside this program]
    #[arg(long, value_name = "FILE")]
    l2probe: Option<PathBuf>,
    /// A static hypernest-bench to run in L1 [default: this program]
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/proc/self/exe",
        hide_default_value = true
    )]
    agent: PathBuf,
    /// L2's memory
    #[arg(long, value_name = "SIZE", default_value = "192M")]
    l2_memory: String,
    /// L2's enlightenments, as for hypernest run --hv
    #[arg(long, value_name = "LIST", default_value = "windows")]
    l2_hv: String,
    /// More parameters for L2's command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    append: String,
    /// More arguments for l2probe
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    probe: String,
    /// Where to write it
    #[arg(long, value_name = "FILE", default_value = "l1.cpio")]
    out: PathBuf,
}

/// Errors of `hypernest-bench initramfs`.
#[derive(Debug, Error)]
pub(crate) enum InitramfsError {
    /// A file operation failed.
    #[error("{what}")]
    File {
        /// The operation and its file.
        what: String,
        source: io::Error,
    },
    /// Not a static program.
    #[error(
        "{} needs a dynamic linker, which an initramfs does not have: build {name} statically \
         (RUSTFLAGS='-C target-feature=+crt-static' with an explicit --target) and name it by {flag}",
        path.display()
    )]
    Dynamic {
        path: PathBuf,
        /// The program's name.
        name: &'static str,
        /// The flag that names another file.
        flag: &'static str,
    },
    /// The command line is wrong.
    #[error(transparent)]
    Usage(#[from] Usage),
    #[error("{} has neither kvm-intel.ko nor kvm-amd.ko (modules must be there uncompressed)", .0.display())]
    NoVendorModule(PathBuf),
}

impl InitramfsError {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::File { .. } => FAILED,
            Self::Usage(_) | Self::Dynamic { .. } | Self::NoVendorModule(_) => WRONG_USE,
        }
    }
}

fn file(what: impl Into<String>) -> impl FnOnce(io::Error) -> InitramfsError {
    let what = what.into();
    move |source| InitramfsError::File { what, source }
}

/// Writes the initramfs; the result is a text with the next step.
pub(crate) fn run(args: &Args) -> Result<String, InitramfsError> {
    let kernel = match (&args.kernel, std::env::var_os(LAB_DIR_VARIABLE)) {
        (Some(kernel), _) => kernel.clone(),
        (None, Some(lab)) => PathBuf::from(lab).join("linux-6.12"),
        (None, None) => {
            let why = usage::no_kernel_directory("this command");
            return Err(Usage::of(why).into());
        }
    };
    let vmlinux = kernel.join("vmlinux");
    let modules = modules(&kernel.join("modules"))?;
    let l2probe = match &args.l2probe {
        Some(path) => path.clone(),
        None => beside_this_program()?,
    };
    let l2probe = program(&l2probe, "l2probe", "--l2probe")?;
    let agent = program(&args.agent, "hypernest-bench", "--agent")?;
    let l2 = initramfs_of_l2(&l2probe).map_err(file("cannot make L2's initramfs"))?;

    let name = args.out.display().to_string();
    let to = File::create(&args.out).map_err(file(format!("cannot create {name}")))?;
    let mut archive = Writer::new(BufWriter::new(to));
    let write = |name: &str| file(format!("cannot write {name}"));
    archive.file("init", 0o755, &agent).map_err(write(&name))?;
    archive
        .copy(probe_l1::KERNEL, &vmlinux)
        .map_err(file(format!("cannot copy {}", vmlinux.display())))?;
    for module in modules {
        let file_name = module.file_name().unwrap_or_default().to_string_lossy();
        archive
            .copy(&format!("{MODULES}/{file_name}"), &module)
            .map_err(file(format!("cannot copy {}", module.display())))?;
    }
    let command_line = probe_l1::command_line(&args.append, &args.probe);
    archive
        .file(probe_l1::INITRD, 0o644, &l2)
        .and_then(|()| archive.file(probe_l1::COMMAND_LINE, 0o644, command_line.as_bytes()))
        // The console of init's own messages before it has mounted a file system.
        .and_then(|()| archive.character_device("dev/console", 5, 1))
        .map_err(write(&name))?;
    archive.finish().map_err(write(&name))?;
    Ok(next_step(args, &vmlinux))
}

/// The text with the next step.
fn next_step(args: &Args, vmlinux: &Path) -> String {
    let more = |name: &str, value: &str, default: &str| match value == default {
        true => String::new(),
        false => format!(" {name} {value}"),
    };
    format!(
        "written: {out}\nrun it in the modes that you want to compare:\n  \
         hypernest-bench l2-exit --l1 image={kernel} --initrd {out} --memory 768M \\\n    \
         --append '{words} -- probe-l1{memory}{hv}' --modes classic+shadow,evmcs+emsr\n",
        out = args.out.display(),
        kernel = vmlinux.display(),
        words = probe_l1::LINUX,
        memory = more("--memory", &args.l2_memory, "192M"),
        hv = more("--hv", &args.l2_hv, "windows"),
    )
}

/// The modules in load order, the vendors' modules last.
fn modules(directory: &Path) -> Result<Vec<PathBuf>, InitramfsError> {
    let mut modules: Vec<_> = ["irqbypass.ko", "kvm.ko"]
        .map(|name| directory.join(name))
        .to_vec();
    let vendors = [Vendor::Intel, Vendor::Amd].map(|vendor| directory.join(vendor.file()));
    let before = modules.len();
    modules.extend(vendors.into_iter().filter(|path| path.is_file()));
    if modules.len() == before {
        return Err(InitramfsError::NoVendorModule(directory.to_owned()));
    }
    Ok(modules)
}

fn beside_this_program() -> Result<PathBuf, InitramfsError> {
    let own = std::env::current_exe().map_err(file("cannot find this program"))?;
    Ok(own.with_file_name("l2probe"))
}

/// Reads a program and checks that it is static.
fn program(path: &Path, name: &'static str, flag: &'static str) -> Result<Vec<u8>, InitramfsError> {
    let bytes = fs::read(path).map_err(file(format!(
        "cannot read {} (a static {name}; {flag} names another)",
        path.display()
    )))?;
    if wants_interpreter(&bytes) {
        return Err(InitramfsError::Dynamic {
            path: path.to_owned(),
            name,
            flag,
        });
    }
    Ok(bytes)
}

fn initramfs_of_l2(l2probe: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = Writer::new(Vec::new());
    archive.file("init", 0o755, l2probe)?;
    archive.character_device("dev/console", 5, 1)?;
    archive.finish()
}

/// Whether an ELF file has a program header of type PT_INTERP.
pub(crate) fn wants_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    // e_phoff, e_phentsize, e_phnum of the 64-bit header; p_type of each program header.
    let number = |at: usize, len: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(elf.get(at..at.checked_add(len)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    let headers = || {
        let (first, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let types = (0..count).map_while(move |index| {
            let at = first.checked_add(index * size)?;
            number(usize::try_from(at).ok()?, 4)
        });
        Some(types.into_iter().any(|kind| kind == PT_INTERP))
    };
    headers().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        // Test binaries are dynamic unless the whole build is static.
        let own = fs::read("/proc/self/exe").unwrap();
        assert_eq!(
            wants_interpreter(&own),
            !cfg!(target_feature = "crt-static")
        );
        assert!(!wants_interpreter(hypernest_guest::GUEST));
        assert!(!wants_interpreter(b"\x7fELF"));
        let mut broken = own;
        broken[32..40].fill(0xff);
        assert!(!wants_interpreter(&broken));
    }

    /// A directory with a kernel and modules, and a program that counts as static.
    fn site() -> (tempfile::TempDir, Args) {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("modules")).unwrap();
        for name in [
            "vmlinux",
            "program",
            "modules/irqbypass.ko",
            "modules/kvm.ko",
            "modules/kvm-amd.ko",
        ] {
            fs::write(at(name), name).unwrap();
        }
        let args = Args {
            kernel: Some(directory.path().to_owned()),
            l2probe: Some(at("program")),
            agent: at("program"),
            l2_memory: "256M".into(),
            l2_hv: "windows".into(),
            append: "quiet".into(),
            probe: "--rounds 2".into(),
            out: at("l1.cpio"),
        };
        (directory, args)
    }

    #[test]
    fn an_initramfs_holds_what_its_init_needs() {
        let (_directory, args) = site();
        let text = run(&args).unwrap();
        assert!(text.contains("-- probe-l1 --memory 256M'"), "{text}");
        let archive = fs::read(&args.out).unwrap();
        let archive = String::from_utf8_lossy(&archive);
        for part in [
            "\0modules/kvm-amd.ko",
            "rdinit=/init quiet -- --serial --rounds 2",
            "dev/console",
        ] {
            assert!(archive.contains(part.trim_start_matches('\0')), "{part:?}");
        }
        // The trailers of L1's and L2's archives.
        assert_eq!(archive.matches("TRAILER!!!").count(), 2);
    }

    #[test]
    fn what_is_missing_is_named() {
        let (directory, mut args) = site();
        fs::remove_file(directory.path().join("modules/kvm-amd.ko")).unwrap();
        let error = run(&args).unwrap_err().to_string();
        assert!(
            error.contains("neither kvm-intel.ko nor kvm-amd.ko"),
            "{error}"
        );
        let (_directory, mut other) = site();
        other.l2probe = Some("/nowhere/l2probe".into());
        let error = run(&other).unwrap_err().to_string();
        assert!(error.contains("--l2probe names another"), "{error}");
        args.kernel = Some(directory.path().join("nowhere"));
        assert!(run(&args).is_err());
        if !cfg!(target_feature = "crt-static") {
            let (_directory, mut dynamic) = site();
            dynamic.agent = "/proc/self/exe".into();
            let error = run(&dynamic).unwrap_err().to_string();
            assert!(
                error.contains("build hypernest-bench statically"),
                "{error}"
            );
        }
    }
}
