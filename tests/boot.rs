//! Kernels and tables: real ones load, each protocol enters its kernel, and iasl accepts every table.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hypernest::boot::BootModule;
use hypernest::boot::KernelBoot;
use hypernest::boot::acpi::{self, AcpiConfig};
use hypernest::boot::entry::Mode;
use hypernest::boot::{self, Entry, Platform};
use hypernest::cpuid::Topology;
use hypernest::layout::{self, AddressMap, AddressWidth, MachineType};
use hypernest::memory::GuestRam;
use hypernest::memory::MemoryConfig;
use hypernest::units::Gpa;
use hypernest_lab::host::Host;
use hypernest_lab::plan::LAB_DIR_VARIABLE;
use hypernest_lab::suite::{Test, TestResult};

pub(crate) const TESTS: &[Test] = &[
    Test::new(
        "boot::iasl_decompiles_and_recompiles_every_table",
        iasl_accepts_every_table,
    )
    .needs(needs_iasl)
    .only_on(&[Host::Here]),
    Test::new(
        "boot::stock_kernels_load_by_their_protocols",
        stock_kernels_load,
    )
    .needs(needs_lab_directory)
    .only_on(&[Host::Here]),
    Test::new(
        "boot::each_protocol_enters_its_kernel",
        each_protocol_enters_its_kernel,
    ),
];

/// The path of iasl: `HYPERNEST_IASL`, or on the PATH.
fn iasl() -> Option<PathBuf> {
    if let Some(path) = env::var_os("HYPERNEST_IASL") {
        return Some(path.into());
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join("iasl"))
        .find(|path| path.is_file())
}

fn needs_iasl() -> Result<(), String> {
    match iasl() {
        Some(_) => Ok(()),
        None => Err("iasl (HYPERNEST_IASL, or acpica-tools on the PATH)".to_owned()),
    }
}

fn run_iasl(dir: &Path, arguments: &[&str]) -> Result<String, Box<dyn std::error::Error>> {
    let program = iasl().ok_or("iasl is gone")?;
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "iasl {arguments:?}: {text}");
    Ok(text)
}

const MAP: &AddressMap = &AddressMap::PC_1;

const WIDTH: AddressWidth = AddressWidth {
    bits: 40,
    firmware: Some(40),
};

/// The tables with fix-ups applied; not the RSDP, which is no table to iasl.
fn tables(config: &AcpiConfig) -> Vec<Vec<u8>> {
    let placed = acpi::build(config).placed(|_| Gpa(0x7ff_0000));
    let mut tables = Vec::new();
    for (_, bytes) in placed
        .iter()
        .filter(|(_, bytes)| bytes.starts_with(b"FACS"))
    {
        let mut rest = &bytes[..];
        // They are aligned to 16 bytes, with zeros in between.
        while let Some(start) = rest.chunks(16).position(|chunk| chunk[0] != 0) {
            rest = &rest[start * 16..];
            let len = u32::from_le_bytes(rest[4..8].try_into().unwrap());
            let len = usize::try_from(len).unwrap();
            tables.push(rest[..len].to_vec());
            rest = rest.get(len.next_multiple_of(16)..).unwrap_or_default();
        }
    }
    tables
}

fn iasl_accepts_every_table() -> TestResult {
    let machine = |map: &'static AddressMap, apic_ids: Vec<u32>, pic, ram| AcpiConfig {
        apic_ids,
        pic,
        ram: map.ram_ranges(ram),
        map,
        ecam: map.ecam.clone(),
        pci_mmio32: map.pci_mmio32(ram),
        pci_mmio64: map.pci_mmio64(ram, WIDTH),
        fw_cfg: true,
    };
    let configs = MachineType::NAMES.map(|(_, machine_type)| {
        let map = machine_type.map();
        let small = machine(map, vec![0], true, 128 << 20);
        // The maximum configuration: some APIC ids are above 254, and there is RAM above 4 GiB.
        let large = machine(map, (0..255).map(|vp| vp * 2).collect(), false, 8 << 30);
        [small, large]
    });
    for config in configs.into_iter().flatten() {
        let dir = tempfile::tempdir()?;
        let tables = tables(&config);
        assert_eq!(tables.len(), 8);
        for table in tables {
            let name = String::from_utf8(table[..4].to_vec())?;
            let (aml, dsl) = (format!("{name}.aml"), format!("{name}.dsl"));
            fs::write(dir.path().join(&aml), &table)?;
            let text = run_iasl(dir.path(), &["-d", &aml])?.to_lowercase();
            let clean = !text.contains("warning") && !text.contains("error");
            assert!(clean, "{name}: {text}");
            let text = run_iasl(dir.path(), &["-tc", "-p", "again", &dsl])?;
            let clean = text.contains("Compilation successful. 0 Errors, 0 Warnings, 0 Remarks");
            assert!(clean, "{name}: {text}");
            // The compiler writes its own name and version into the header, and recomputes the checksum.
            let again = fs::read(dir.path().join("again.aml"))?;
            let (header, body) = table.split_at(36);
            let (new_header, new_body) = again.split_at(36);
            assert!(new_body == body, "{name} changed");
            assert_eq!(new_header[..8], header[..8], "{name}");
        }
    }
    Ok(())
}

fn lab_directory() -> Option<PathBuf> {
    env::var_os(LAB_DIR_VARIABLE).map(PathBuf::from)
}

fn needs_lab_directory() -> Result<(), String> {
    match lab_directory() {
        Some(_) => Ok(()),
        None => Err(format!("stock kernels ({LAB_DIR_VARIABLE})")),
    }
}

fn load(
    kernel: &Path,
    initrd: Option<&Path>,
    modules: &[(PathBuf, &str)],
) -> Result<(Entry, GuestRam), Box<dyn std::error::Error>> {
    let size = 512 << 20;
    let memory = MemoryConfig::of(size);
    let ram = GuestRam::new(&memory, &MAP.ram_ranges(size))?;
    let module = |(path, cmdline): &(PathBuf, &str)| BootModule {
        path: path.clone(),
        cmdline: (*cmdline).to_owned(),
    };
    let config = KernelBoot {
        kernel: kernel.to_owned(),
        initrd: initrd.map(Path::to_owned),
        cmdline: "console=ttyS0".to_owned(),
        modules: modules.iter().map(module).collect(),
    };
    let platform = Platform {
        name: "test".to_owned(),
        apic_ids: vec![0],
        topology: Topology {
            sockets: 1,
            cores: 1,
            threads: 1,
        },
        pic: true,
        map: MAP,
        address_width: WIDTH,
        fw_cfg: true,
    };
    let entry = boot::load(&config, &ram, &platform)?;
    Ok((entry, ram))
}

fn read<const N: usize>(ram: &GuestRam, gpa: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.read(Gpa(gpa), &mut bytes).expect("RAM");
    bytes
}

fn word(ram: &GuestRam, gpa: u64) -> u64 {
    u32::from_le_bytes(read(ram, gpa)).into()
}

/// Kernels from unmodified packages.
fn stock_kernels_load() -> TestResult {
    let lab = lab_directory().ok_or("the lab's directory is gone")?;
    let dir = tempfile::tempdir()?;
    let initrd = dir.path().join("initrd");
    fs::write(&initrd, [7; 5000])?;
    for (kernel, mode) in [
        ("linux-6.12/vmlinux", Mode::Protected32),
        ("linux-6.12/vmlinuz", Mode::Long64),
        ("linux-6.1/vmlinux", Mode::Protected32),
        ("linux-6.1/vmlinuz", Mode::Long64),
    ] {
        let (entry, ram) = load(&lab.join(kernel), Some(&initrd), &[])?;
        assert_eq!(entry.mode, mode, "{kernel}");
        assert_ne!(
            read(&ram, entry.rip),
            [0; 8],
            "{kernel} has no code at its entry"
        );
    }

    let dom0 = lab.join("linux-dom0/vmlinux");
    let modules = [(dom0.clone(), "console=hvc0"), (initrd, "")];
    let (entry, ram) = load(&lab.join("xen"), None, &modules)?;
    assert_eq!((entry.mode, entry.rax), (Mode::Protected32, 0x2bad_b002));
    assert_ne!(
        read(&ram, entry.rip),
        [0; 8],
        "Xen has no code at its entry"
    );
    let list = word(&ram, entry.rbx + 24);
    let (start, end) = (word(&ram, list), word(&ram, list + 4));
    assert_eq!(end - start, fs::metadata(&dom0)?.len());
    assert_eq!(&read(&ram, start), b"\x7fELF");
    assert_eq!(read(&ram, word(&ram, list + 16)), [7; 5000]);
    Ok(())
}

/// Code for both 32-bit and 64-bit mode: if the comparison `compare` is equal, it prints `text` on COM1 and
/// ends with exit code `code`; else it ends with exit code 9.
fn program(compare: &[u8], text: &str, code: u8) -> Vec<u8> {
    // mov dx, port
    let port = |port: u16| [&[0x66, 0xba][..], &port.to_le_bytes()].concat();
    // mov al, byte; out dx, al
    let out = |byte: u8| [0xb0, byte, 0xee];
    // then hlt, and again
    let exit = |code: u8| [&port(0xf4)[..], &out(code), &[0xf4, 0xeb, 0xfd]].concat();
    let unequal = exit(9);
    let jump_if_equal = [0x74, u8::try_from(unequal.len()).expect("short")];
    let print: Vec<u8> = text.bytes().flat_map(out).collect();
    [
        compare,
        &jump_if_equal,
        &unequal,
        &port(layout::SERIAL[0].0),
        &print,
        &exit(code),
    ]
    .concat()
}

fn put(file: &mut [u8], at: usize, words: &[u32]) {
    for (index, word) in words.iter().enumerate() {
        file[at + 4 * index..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

/// An ELF32 file with `code` at `physical`, entered at its first byte, with a PVH note if `pvh`.
fn elf(code: &[u8], physical: u32, pvh: bool) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    file[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    // Type and machine, version, entry, program headers' offset.
    put(&mut file, 16, &[0x3_0002, 1, physical, 52]);
    // Header size; size and number of program headers.
    put(&mut file, 40, &[52 | 32 << 16, 2]);
    let len = u32::try_from(code.len()).expect("short");
    put(
        &mut file,
        52,
        &[1, 0x1000, physical, physical, len, len + 0x1000, 7, 0x1000],
    );
    put(&mut file, 84, &[4, 0x800, 0, 0, 20, 20, 4, 4]);
    let kind = if pvh { 18 } else { 0 };
    put(
        &mut file,
        0x800,
        &[4, 4, kind, u32::from_le_bytes(*b"Xen\0"), physical],
    );
    [file, code.to_vec()].concat()
}

/// A bzImage with `code` at its 64-bit entry point.
fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut kernel = [&[0xcc; 0x200], code].concat();
    kernel.resize(0x400, 0);
    let mut file = vec![0; 1024];
    file[0x1f1] = 1;
    put(&mut file, 0x1f4, &[0x400 / 16]);
    put(
        &mut file,
        0x1fe,
        &[0x6aeb_aa55, u32::from_le_bytes(*b"HdrS"), 0x20f],
    );
    file[0x211] = 1;
    // The initrd's highest address, the alignment; relocatable and its 64-bit entry; the command line's
    // length.
    put(&mut file, 0x22c, &[0x7fff_ffff, 0x20_0000, 0x3_0001, 2047]);
    // The preferred address and the size of the working memory.
    put(&mut file, 0x258, &[0x100_0000, 0, 0x80_0000]);
    [file, kernel].concat()
}

fn each_protocol_enters_its_kernel() -> TestResult {
    let dir = tempfile::tempdir()?;
    // cmp dword [rsi + 0x202], "HdrS": the zero page's header.
    let linux = program(b"\x81\xbe\x02\x02\x00\x00HdrS", "zero page\n", 11);
    // cmp dword [ebx], magic
    let pvh = program(b"\x81\x3b\x78\xc5\x6e\x33", "start info\n", 12);
    // A multiboot header within the code, jumped over; cmp eax, magic
    let magic = 0x1bad_b002_u32;
    let header = [magic, 3, 0_u32.wrapping_sub(magic + 3)];
    let multiboot = [
        &[0xeb, 14, 0x90, 0x90][..],
        &header.map(u32::to_le_bytes).concat(),
        &program(b"\x3d\x02\xb0\xad\x2b", "multiboot\n", 13),
    ]
    .concat();
    for (name, file, text, code) in [
        ("bzimage", bzimage(&linux), "zero page\n", 11),
        ("pvh", elf(&pvh, 0x100_0000, true), "start info\n", 12),
        (
            "multiboot",
            elf(&multiboot, 0x20_0000, false),
            "multiboot\n",
            13,
        ),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, file)?;
        let output = Command::new("hypernest")
            .args(["run", "--hv", "none", "--memory", "64M", "--debug-exit"])
            .arg("--kernel")
            .arg(&path)
            .stdin(Stdio::null())
            .output()?;
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{name}: {log}");
        assert_eq!(String::from_utf8(output.stdout)?, text, "{name}: {log}");
    }
    Ok(())
}
