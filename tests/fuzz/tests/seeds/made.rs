//! The seeds, as this program's own code makes them.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use hypernest::api::{ControlCommand, JobRequest, Save};
use hypernest::config::SETTINGS;
use hypernest::machine::{AfterSave, Migrate};
use hypernest::migration::pages::Packer;
use hypernest::migration::transport::{Address, Cancel, Dialer, Security, TlsFiles};
use hypernest::migration::wire::{
    FrameKind, FrameWriter, Hello, PromiseMessage, Refuse, StateMessage, Versions, WireMessage,
};
use hypernest::state::Sections;
use hypernest::units::Gpa;
use hypernest_nested::board::Board;
use hypernest_nested::l2exit::Kind as BoardKind;
use hypernest_nested::nested_state::REVISION;
use hypernest_nested::probe::{ALIVE, Width, mark_header, samples_header};
use hypernest_nested::tsc::{self, Clock, Clocks};
use l2probe::document::{Document, FORMAT, Measurement, Outcome, Place, Unit, VERSION};

type Seed = (&'static str, String, Vec<u8>);

pub(crate) fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target: &'static str, name: &str, bytes: Vec<u8>| {
        seeds.push((target, name.to_owned(), bytes));
    };

    let mut board = words(&Board::new(BoardKind::Cpuid, 4, 0x20_0000).words());
    board.extend(words(&[100, 110, 120, 130, 200, 210, 0, 230]));
    add("board", "cpuid", board);
    virtio(&mut add);
    nested_states(&mut add);
    streams(&mut add);

    for (name, kernel) in [
        ("pvh", pvh()),
        ("multiboot", multiboot()),
        ("bzimage", bzimage()),
    ] {
        add("boot-image", name, kernel.clone());
        for (files, flags) in [("alone", 0), ("with-files", 1 | 2 << 1)] {
            let mut load = vec![flags];
            load.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
            load.extend([16, 0, 8, 0]);
            load.extend(&kernel);
            load.extend(b"0123456789abcdef01234567console=ttyS0");
            add("boot-load", &format!("{name}-{files}"), load);
        }
    }

    let examples: Vec<_> = SETTINGS
        .iter()
        .filter(|setting| !["kernel", "initrd", "module"].contains(&setting.key))
        .map(|setting| setting.file_example)
        .collect();
    add(
        "config-file",
        "every-setting",
        examples.join("\n").into_bytes(),
    );
    // A file that is there on every system where a fuzzer runs.
    add(
        "config-file",
        "accepted",
        b"kernel = \"/proc/self/exe\"\nmemory = \"1G\"\n".to_vec(),
    );
    add(
        "enlightenments",
        "nested",
        b"nested,-hv-evmcs,hv-spinlocks=0x1fff,hv-vendor-id=KVM Hv".to_vec(),
    );

    requests(&mut add);
    guests(&mut add);
    results(&mut add);
    saved(&mut add);
    wire(&mut add);
    add("tls-handshake", "client-hello", client_hello());
    seeds
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// KVM's blobs: VMX off, on, with a VMCS, in L2, with an enlightened VMCS; SVM outside and inside L2.
fn nested_states(add: &mut impl FnMut(&'static str, &str, Vec<u8>)) {
    const VMX: u8 = 1 | 2;
    const SVM: u8 = 4 | 8;
    let vmcs = || {
        let mut page = vec![0; 4096];
        put(&mut page, 0, &REVISION.to_le_bytes());
        put(&mut page, 8, &1_u32.to_le_bytes());
        // No shadow VMCS; an exit by CPUID.
        put(&mut page, 176, &u64::MAX.to_le_bytes());
        put(&mut page, 812, &24_u32.to_le_bytes());
        page
    };
    let vmcb = || {
        let mut page = vec![0; 4096];
        // VMRUN is intercepted, an address space, nested paging, and an L1 in long mode.
        put(&mut page, 0x10, &1_u32.to_le_bytes());
        put(&mut page, 0x58, &1_u32.to_le_bytes());
        put(&mut page, 0x90, &1_u64.to_le_bytes());
        put(&mut page, 0x400 + 0x158, &0x8005_0033_u64.to_le_bytes());
        put(&mut page, 0x400 + 0x170, &2_u64.to_le_bytes());
        page
    };
    let none = u64::MAX;
    for (name, has, flags, format, first, second, page) in [
        ("vmx-off", VMX, 0_u16, 0_u16, none, none, None),
        ("vmx-on", VMX, 0, 0, 0x1000, none, None),
        ("vmx-loaded", VMX, 0, 0, 0x1000, 0x2000, Some(vmcs())),
        ("vmx-guest", VMX, 1, 0, 0x1000, 0x2000, Some(vmcs())),
        ("evmcs", VMX, 4, 0, 0x1000, none, Some(vmcs())),
        ("evmcs-guest", VMX, 1 | 4, 0, 0x1000, none, Some(vmcs())),
        ("svm", SVM, 1 << 8, 1, 0, 0, None),
        ("svm-guest", SVM, 1 | 1 << 8, 1, 0x3000, 0, Some(vmcb())),
    ] {
        let page = page.unwrap_or_default();
        let mut blob = vec![has, 40];
        blob.extend(flags.to_le_bytes());
        blob.extend(format.to_le_bytes());
        blob.extend(u32::try_from(128 + page.len()).unwrap().to_le_bytes());
        blob.extend(words(&[first, second]));
        blob.resize(2 + 128, 0);
        blob.extend(page);
        add("nested-state", name, blob);
    }
}

fn frame(name: &str, values: &[u64]) -> Vec<u8> {
    let mut bytes = samples_header(name, Width::Eight, values.len())
        .unwrap()
        .to_vec();
    bytes.extend(name.as_bytes());
    bytes.extend(words(values));
    bytes
}

fn streams(add: &mut impl FnMut(&'static str, &str, Vec<u8>)) {
    let mut stream = vec![ALIVE];
    stream.extend(b"l1: begins\n");
    stream.extend(mark_header("warm").unwrap());
    stream.extend(b"warm");
    stream.extend(frame("cpuid", &[1, 2, 3]));
    add("probe-stream", "all-items", stream);

    let clocks = Clocks::NONE.with(Clock::ALL[0]).with(Clock::ALL[1]);
    let hello = tsc::Hello {
        vcpus: 2,
        clocks,
        tsc_hz: 2_400_000_000,
        ..tsc::Hello::default()
    };
    let mut buffer = [0; tsc::MAX_WORDS];
    let mut stream = frame(tsc::Hello::NAME, hello.encode(&mut buffer));
    let shared = tsc::Shared::new();
    let mut sampler = tsc::Sampler::new(&shared, 0, clocks);
    sampler.read(Clock::ALL[0], || 5);
    let report = sampler.report();
    stream.extend(frame(tsc::Report::NAME, report.encode(&mut buffer)));
    stream.extend(frame(
        tsc::Ack::NAME,
        tsc::Ack::default().encode(&mut buffer),
    ));
    stream.extend(b"a line\n");
    add("tsc-stream", "all-items", stream);
}

/// An ELF file of one segment at 1 MiB, with the note that names its 32-bit entry (XEN_ELFNOTE_PHYS32_ENTRY).
fn pvh() -> Vec<u8> {
    let mut elf = vec![0; 64 + 2 * 56];
    put(&mut elf, 0, b"\x7fELF\x02\x01\x01");
    put(&mut elf, 16, &2_u16.to_le_bytes());
    put(&mut elf, 18, &62_u16.to_le_bytes());
    put(&mut elf, 20, &1_u32.to_le_bytes());
    put(&mut elf, 24, &0x10_0000_u64.to_le_bytes());
    put(&mut elf, 32, &64_u64.to_le_bytes());
    put(&mut elf, 52, &64_u16.to_le_bytes());
    put(&mut elf, 54, &56_u16.to_le_bytes());
    put(&mut elf, 56, &2_u16.to_le_bytes());
    // PT_LOAD, readable and executable, and PT_NOTE: offset, virtual and physical address, sizes, alignment.
    for (number, kind, offset, size) in [(0, 1_u32, 0_u64, 208_u64), (1, 4, 176, 20)] {
        let header = 64 + number * 56;
        put(&mut elf, header, &kind.to_le_bytes());
        put(&mut elf, header + 4, &5_u32.to_le_bytes());
        let address = 0x10_0000 + offset;
        put(
            &mut elf,
            header + 8,
            &words(&[offset, address, address, size, size, 4]),
        );
    }
    elf.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    elf.extend(b"Xen\0");
    elf.extend(0x10_0000_u32.to_le_bytes());
    elf.resize(208, 0xf4);
    elf
}

/// A flat multiboot 1 image at 1 MiB (flag 16).
fn multiboot() -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const FLAGS: u32 = 1 << 16 | 3;
    const AT: u32 = 0x10_0000;
    let header = [
        MAGIC,
        FLAGS,
        0_u32.wrapping_sub(MAGIC.wrapping_add(FLAGS)),
        AT,
        AT,
        AT + 64,
        AT + 128,
        AT + 32,
    ];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.resize(64, 0xf4);
    image
}

/// The setup header of Linux's boot protocol 2.15, and a page of kernel.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x400];
    put(&mut image, 0x1f1, &[1]);
    put(&mut image, 0x1f4, &(4096_u32 / 16).to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS\x0f\x02");
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x214, &0x10_0000_u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000_u32.to_le_bytes());
    put(&mut image, 0x234, &[1, 21, 3, 0]);
    put(&mut image, 0x238, &2047_u32.to_le_bytes());
    put(&mut image, 0x258, &0x10_0000_u64.to_le_bytes());
    put(&mut image, 0x260, &0x10_0000_u32.to_le_bytes());
    image.resize(0x400 + 4096, 0xf4);
    image
}

fn requests(add: &mut impl FnMut(&'static str, &str, Vec<u8>)) {
    let save = Save {
        dir: "/var/lib/vm".into(),
        then: AfterSave::default(),
    };
    let migrate = Migrate {
        to: "tcp:host:4444".to_owned(),
        downtime_ms: 300,
        bandwidth: Some(1 << 30),
        connections: 2,
        zstd: true,
        tls_cert: Some("/c.pem".into()),
        tls_key: None,
        tls_ca: None,
        plaintext: false,
    };
    for (name, command) in [
        ("status", ControlCommand::Status),
        ("save", ControlCommand::Job(JobRequest::Save(save))),
        (
            "migrate",
            ControlCommand::Job(JobRequest::Migrate(Box::new(migrate))),
        ),
    ] {
        add("control-request", name, command.write().into_bytes());
    }
}

/// What guests do.
fn guests(add: &mut impl FnMut(&'static str, &str, Vec<u8>)) {
    let mut crash = words(&[0, 0, 0, 0, 12]);
    crash.extend(b"guest panic\n");
    add("crash-message", "message", crash);

    let calls = [
        [0x005c, 0, 0],
        [0x005d | 1 << 16, 1, 0],
        [0x8001, 0, 8],
        [0x8001 | 1 << 16, 0, 8],
        [0x0002 | 1 << 32, 0, 0],
    ];
    add("hypercalls", "each", words(calls.as_flattened()));

    let mut msrs = Vec::new();
    for (what, number, value) in [
        (4, 0, 0xdead_u64),
        (0, 0, 0),
        (4, 5, 1 << 63 | 1 << 62),
        (5, 0, 1 << 16 | 0xee),
        (5, 1, 1),
        (5, 2, 0),
        (1, 0, 0),
        (2, 0x10, 0),
    ] {
        msrs.push(what);
        msrs.extend(u32::to_le_bytes(number));
        msrs.extend(value.to_le_bytes());
    }
    add("synthetic-msrs", "crash-and-reenlightenment", msrs);
    lives(add);

    // Every range of ports and memory, read and written with each size.
    for board in 0..4 {
        let mut accesses = vec![board];
        for place in 0..32_u8 {
            for what in [0, 4, 1, 5, 2, 6, 8 | 2, 8 | 6] {
                accesses.extend([what, place, place & 7]);
                accesses.extend(u64::from(place).wrapping_mul(0x0101_0101).to_le_bytes());
            }
        }
        add("devices", &format!("every-range-{board}"), accesses.clone());
        for section in 0..if board < 2 { 16 } else { 18 } {
            let mut state = vec![board, section, 0, 0, 4, 1, 0, 1, 0];
            state.extend(&accesses[1..1 + 11 * 16]);
            add(
                "device-state",
                &format!("section-{board}-{section:02}"),
                state,
            );
        }
    }
}

/// What the guest reports, its users ask for and the main thread does, as the target `life` reads it.
fn lives(add: &mut impl FnMut(&'static str, &str, Vec<u8>)) {
    const REPORT: u8 = 0;
    const ASK: u8 = 1;
    const EVENTS: [u8; 2] = [2, 0];
    const REQUEST: [u8; 2] = [3, 0];
    const DUE: [u8; 2] = [4, 0];
    const HOLD: [u8; 2] = [5, 0];
    const RELEASE: [u8; 2] = [6, 0];
    const END: u8 = 7;
    const RESET: [u8; 2] = [REPORT, 0];
    const POWER_OFF: [u8; 2] = [REPORT, 1];
    const DEBUG_EXIT: [u8; 2] = [REPORT, 0x32];
    const PANICKED: [u8; 2] = [REPORT, 3];
    const PAUSE: [u8; 2] = [ASK, 0];
    const RESUME: [u8; 2] = [ASK, 1];
    const USER_RESET: [u8; 2] = [ASK, 2];
    const KILL: [u8; 2] = [ASK, 4];
    // As `main_loop` goes: the events, what follows, one request, what follows.
    const TURN: [[u8; 2]; 4] = [EVENTS, DUE, REQUEST, DUE];

    let lives: [(&str, u8, Vec<[u8; 2]>); 6] = [
        (
            "reset-while-paused",
            0,
            [&[PAUSE][..], &TURN, &[RESET], &TURN, &[RESUME], &TURN].concat(),
        ),
        (
            "held-power-off",
            0,
            [&[HOLD, POWER_OFF][..], &TURN, &[RELEASE], &TURN].concat(),
        ),
        (
            "kill-beats-hold",
            0,
            [&[HOLD, DEBUG_EXIT, USER_RESET][..], &TURN, &[KILL], &TURN].concat(),
        ),
        (
            "crash-then-reset",
            1,
            [&[PANICKED][..], &TURN, &[RESET], &TURN, &[RESUME], &TURN].concat(),
        ),
        (
            "first-event-wins",
            3,
            [&[PANICKED, POWER_OFF, RESET, [REPORT, 0x57]][..], &TURN].concat(),
        ),
        (
            "handed-over",
            2,
            [&[HOLD, PANICKED][..], &TURN, &[[END, 0], DUE]].concat(),
        ),
    ];
    for (name, on_crash, steps) in lives {
        let mut life = vec![on_crash];
        life.extend(steps.as_flattened());
        add("life", name, life);
    }
}

/// A driver that starts an entropy device and asks it for bytes, in the steps of that target.
fn virtio(add: &mut impl FnMut(&'static str, &str, Vec<u8>)) {
    const STRUCTURES: u8 = 1;
    const MSIX: u8 = 2;
    const NOTIFY: u8 = 3;
    const RAM: u8 = 6;
    let mut seed = Vec::new();
    let mut write = |to: u8, size: u8, offset: u16, value: u64| {
        seed.push(0x20 | size << 3 | to);
        seed.extend(offset.to_le_bytes());
        seed.extend(value.to_le_bytes());
    };
    // MSI-X: a message for each vector, none masked; enabled at its capability.
    for vector in 0..2 {
        write(MSIX, 3, vector * 16, 0xfee0_0000);
        write(MSIX, 3, vector * 16 + 8, 0x40);
    }
    for offset in (0x40..0xa0).step_by(4) {
        write(0, 1, offset + 2, 0x8000);
    }
    // A buffer of 64 bytes that the device writes, in rings at 0x1000, 0x2000 and 0x3000.
    write(RAM, 3, 0x1000, 0x8000);
    write(RAM, 3, 0x1008, 64 | 2 << 32);
    write(RAM, 3, 0x2000, 1 << 16);
    // Acknowledge and driver; VERSION_1; the queue; driver OK (virtio 1.2, 3.1.1).
    write(STRUCTURES, 0, 0x14, 3);
    write(STRUCTURES, 2, 0x08, 1);
    write(STRUCTURES, 2, 0x0c, 1);
    write(STRUCTURES, 0, 0x14, 0xb);
    write(STRUCTURES, 1, 0x10, 0);
    write(STRUCTURES, 1, 0x1a, 1);
    for (register, ring) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000)] {
        write(STRUCTURES, 3, register, ring);
    }
    write(STRUCTURES, 1, 0x1c, 1);
    write(STRUCTURES, 0, 0x14, 0xf);
    write(NOTIFY, 1, 0, 0);
    // No bus master, stopped, moved, reset.
    write(0, 1, 0x04, 2);
    write(NOTIFY, 1, 0, 0);
    write(4, 0, 0, 0);
    write(0, 1, 0x04, 6);
    write(5, 0, 0, 0);
    write(0, 2, 0x10, 0xd800_0000);
    write(0, 2, 0x10, 0xd000_0000);
    write(STRUCTURES, 0, 0x14, 0);
    add("virtio-rng", "a-driver", seed);
}

/// Results of measurements.
fn results(add: &mut impl FnMut(&'static str, &str, Vec<u8>)) {
    add(
        "fail-condition",
        "relative",
        b"evmcs.cpuid.p50 > 1.05x".to_vec(),
    );
    add(
        "fail-condition",
        "part",
        b"classic.hlt.l2-to-l1.p99.9 <= 12000".to_vec(),
    );
    let document = Document {
        format: FORMAT.to_owned(),
        version: VERSION,
        made_by: "l2probe".to_owned(),
        command_line: vec!["l2probe".to_owned()],
        started_unix: 1_700_000_000,
        round: None,
        place: Place::default(),
        measurements: vec![
            Measurement {
                kind: "cpuid".to_owned(),
                outcome: Outcome::Measured {
                    unit: Unit::Ticks,
                    rounds: vec![[100, 101, 100_000].into_iter().collect()],
                },
            },
            Measurement {
                kind: "msr".to_owned(),
                outcome: Outcome::Skipped {
                    why: "needs root".to_owned(),
                },
            },
        ],
        notes: Vec::new(),
    };
    let line = document.line().unwrap();
    add("l2probe-document", "line", line.clone().into_bytes());
    let console = format!("[    1.0] boot\n{line}[    2.0] reboot: System halted\n");
    add("l2probe-document", "in-a-console", console.into_bytes());

    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/l2-exit-2.json");
    let mut report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let histogram = find_histogram(&report).expect("a report has histograms");
    add("histogram", "of-a-report", histogram.into_bytes());
    if let Some(results) = report["results"].as_array_mut() {
        results.truncate(3);
    }
    let tsc = serde_json::json!({
        "version": 1,
        "made_by": "hypernest-bench",
        "command_line": ["hypernest-bench", "tsc"],
        "started": "2025-01-01T00:00:00Z",
        "environment": report["environment"],
        "guest": {
            "kind": "micro", "vcpus": 1, "tsc_khz": 2400000.0, "moved_by": "migrate",
            "reenlightenment": "not-offered",
        },
        "warnings": [],
        "failures": [],
        "clocks": [],
        "moves": [],
        "segments": [],
        "offsets": [],
    });
    add(
        "report",
        "three-results",
        serde_json::to_vec(&report).unwrap(),
    );
    add("tsc-report", "no-moves", serde_json::to_vec(&tsc).unwrap());
}

/// The first text of a report that is an HDR histogram (base64 of its cookie).
fn find_histogram(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) => text.starts_with("HISTFAAA").then(|| text.clone()),
        serde_json::Value::Array(values) => values.iter().find_map(find_histogram),
        serde_json::Value::Object(values) => values.values().find_map(find_histogram),
        _ => None,
    }
}

fn saved(add: &mut impl FnMut(&'static str, &str, Vec<u8>)) {
    let mut sections = Sections::new();
    sections.push("config", 1, b"name".to_vec());
    sections.push_optional("note", 1, Vec::new());
    sections.push("ram", 1, words(&[1, 0, 4096, 4096]));
    let mut file = Vec::new();
    sections.encode(&mut file).unwrap();
    let damaged = file.iter().copied().map(|byte| byte.max(1)).collect();
    add("state-file", "three-sections", file);
    add("state-file", "damaged", damaged);

    for section in 0..20 {
        // As it was saved, and with one byte changed.
        add(
            "saved-sections",
            &format!("whole-{section:02}"),
            vec![section & 1, section, 0, 0, 0],
        );
        add(
            "saved-sections",
            &format!("byte-{section:02}"),
            vec![section & 1, section, 0, 9, 0, 0xff],
        );
    }
    let promise = serde_json::json!({
        "hv": ["hv-relaxed", "hv-time"],
        "cpuid": [],
        "feature_msrs": [{ "msr": 0x480, "value": 1 }],
        "xsave_size": 4096,
    });
    add("promise", "small", serde_json::to_vec(&promise).unwrap());
}

fn wire(add: &mut impl FnMut(&'static str, &str, Vec<u8>)) {
    fn say(writer: &mut FrameWriter, stream: &mut Vec<u8>, message: &impl WireMessage) {
        writer
            .write(stream, kind_of(message), &message.body())
            .unwrap();
    }
    fn kind_of<M: WireMessage>(_: &M) -> FrameKind {
        M::KIND
    }
    let (mut writer, mut stream) = (FrameWriter::default(), Vec::new());
    let hello = Hello {
        protocol: Hello::PROTOCOL.to_owned(),
        versions: Versions { min: 1, max: 1 },
        needs: vec!["zstd".to_owned()],
        session: "0123".to_owned(),
        connection: 0,
        connections: 1,
        process: None,
    };
    say(&mut writer, &mut stream, &hello);
    let promise = PromiseMessage {
        len: 5,
        ram: vec![(0, 1 << 20)],
    };
    say(&mut writer, &mut stream, &promise);
    for zstd in [false, true] {
        let mut packer = Packer::new(zstd, true).unwrap();
        packer.add(Gpa(0), &[0; 4096]);
        packer.add(Gpa(4096), &[0x5a; 4096]);
        if let Some(body) = packer.body() {
            writer.write(&mut stream, FrameKind::Pages, body).unwrap();
        }
    }
    let state = StateMessage {
        len: 5,
        running: true,
    };
    say(&mut writer, &mut stream, &state);
    writer.write(&mut stream, FrameKind::Commit, &[]).unwrap();
    // A checksum that is wrong, which the target mends.
    let last = stream.len() - 1;
    stream[last] ^= 1;
    add("migration-wire", "source", stream);
    let mut stream = Vec::new();
    let refuse = Refuse {
        reasons: vec!["no SVM".to_owned()],
    };
    say(&mut writer, &mut stream, &refuse);
    add("migration-wire", "refuse", stream);
}

/// What a source sends first, caught by a listener that does not answer.
fn client_hello() -> Vec<u8> {
    let certificates =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/migration/transport/certificates");
    let security = Security::Tls(TlsFiles {
        cert: certificates.join("source.pem"),
        key: certificates.join("source.key"),
        ca: certificates.join("ca.pem"),
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = Address::Tcp {
        host: "127.0.0.1".to_owned(),
        port: listener.local_addr().unwrap().port(),
    };
    let caught = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut record = [0; 5];
        stream.read_exact(&mut record).unwrap();
        let mut body = vec![0; u16::from_be_bytes([record[3], record[4]]).into()];
        stream.read_exact(&mut body).unwrap();
        [&record[..], &body].concat()
    });
    let dialer = Dialer::new(address, &security, Duration::from_secs(5)).unwrap();
    let mut stream = dialer.dial(&Cancel::new().unwrap()).unwrap();
    // The listener closes instead of answering.
    let _closed = stream.write_all(b"x");
    caught.join().unwrap()
}
