//! Disks: a stock Linux keeps its data on virtio-blk, across resets, restores, migrations, a full host and
//! the death of hypernest.

use std::error::Error;
use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};

use hypernest_lab::cpio::Writer;
use hypernest_lab::host::Host;
use hypernest_lab::suite::{Stage, Test, TestResult};
use nix::sys::signal::Signal;

use crate::linux::{ASK, COMMAND_LINE, Report, held, initramfs_with, linux};
use crate::migration::move_on_with;
use crate::needs;
use crate::state::{restore, save};
use crate::stock_linux;
use crate::virtio::{amd, boot_twice};
use crate::vm::{Site, Vm, is_long_run};

pub(crate) const TESTS: &[Test] = &[
    amd("disk::keeps_a_file_system", file_system),
    amd("disk::continues_under_load", continues),
    amd("disk::a_full_host_pauses_the_vm", full),
    amd(
        "disk::no_flushed_write_is_lost_when_hypernest_is_killed",
        killed,
    ),
    amd("disk::is_resized_limited_and_counted", controlled),
    amd("disk::l2_writes_through_the_disk_of_l1", || of_l2(&SVM)).needs(needs::nested_svm),
    Test::new("disk::an_image_has_one_writer", one_writer)
        .needs(needs::guests)
        .limit_seconds(120),
];

/// Ten minutes of a whole processor.
pub(crate) const LONG: &[Test] =
    &[
        Test::new("disk::l2_under_evmcs_writes_through_the_disk_of_l1", || {
            of_l2(&EVMCS)
        })
        .only_on(&[Host::Intel])
        .stage(Stage {
            name: "linux-in-linux",
            memory_mib: 2048,
            ..stock_linux::INTEL
        })
        .needs(needs::evmcs)
        .limit_seconds(600),
    ];

/// Bytes of a block that the guests here write.
const BLOCK: usize = 1 << 16;

const MODULE: (&str, &str) = ("virtio-blk.ko", "linux-6.12/modules/virtio-blk.ko");

const BEGIN: &str = r#"#!/busybox sh
b=/busybox
$b mkdir /proc /sys /mnt
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
$b insmod /virtio-blk.ko
"#;

const END: &str = r#"
echo @log
$b dmesg | $b grep -v 'module verification failed' | $b grep -iE 'bug:|warning:|call trace|oops:|vd[ab].*error|I/O error|ext4.*error'
echo @end
"#;

/// What the two disks are, of which the first then writes through; a file system on the first, made in the
/// first boot and checked in later ones; and blocks of the second, of which the middle ones are discarded.
const FILES: &str = r#"
echo @disks
for d in vda vdb; do
  s=/sys/block/$d
  echo "$d $($b cat $s/size) $($b cat $s/ro) $($b cat $s/serial) $($b cat $s/cache_type)"
  echo "$d $($b cat $s/queue/physical_block_size) $($b cat $s/queue/discard_max_bytes) $($b ls $s/mq | $b wc -l)"
  q=$s/queue
  echo $d $($b cat $q/logical_block_size $q/minimum_io_size $q/optimal_io_size $q/discard_granularity)
done
s=/sys/block/vda/cache_type
echo 'write through' > $s
echo "vda $($b cat $s)"
echo @files
if $b mount -t ext4 /dev/vda /mnt 2>/dev/null; then
  cd /mnt
  $b sha256sum -c sums
  cd /
else
  $b mke2fs -b 4096 /dev/vda >/dev/null 2>&1
  $b mount -t ext4 /dev/vda /mnt
  for i in 1 2 3 4 5 6 7 8; do
    $b dd if=/dev/urandom of=/mnt/f$i bs=60000 count=20 2>/dev/null
  done
  cd /mnt
  $b sha256sum f* > sums
  cd /
  echo made
fi
$b umount /mnt
echo @blocks
$b yes hypernest | $b dd of=/dev/vdb bs=64k count=64 iflag=fullblock conv=fsync 2>/dev/null
$b blkdiscard -o 1048576 -l 2097152 /dev/vdb
"#;

fn init(site: &Site, script: &str) -> TestResult {
    initramfs_with(site, &format!("{BEGIN}{script}"), &[MODULE])
}

/// A new raw image of `mib` MiB.
fn image(site: &Site, name: &str, mib: u64) -> TestResult {
    File::create(site.path(name))?.set_len(mib << 20)?;
    Ok(())
}

/// The guest's log has no complaints.
fn quiet(said: &str) {
    let report = Report::read(said);
    assert_eq!(report.section("log"), [""; 0], "the guest complains");
    for bad in ["BUG", "WARNING", "Call Trace", "I/O error", "BAD"] {
        assert!(!said.contains(bad), "{bad}: {said}");
    }
}

fn file_system() -> TestResult {
    let site = Site::new()?;
    image(&site, "a.raw", 64)?;
    image(&site, "b.raw", 16)?;
    let mut command = linux(&site, "linux-6.12/vmlinux", "")?;
    init(&site, &format!("{FILES}{END}exec $b {ASK}\n"))?;
    command
        .args([
            "--disk",
            "a.raw,serial=first,cache=none,num-queues=2,logical_block_size=4096,min_io_size=8192,\
             opt_io_size=64K,discard_granularity=16K",
        ])
        .args([
            "--device",
            "virtio-blk,file=b.raw,id=second,cache=writethrough",
        ])
        .args(["--cpus", "2"]);
    let [first, second] = boot_twice(&site, command)?;
    for (said, files) in [(first, vec!["made".to_owned()]), (second, checked())] {
        let report = Report::read(&said);
        let disks = report.section("disks");
        // The most that a request may discard.
        let discard = 2_u64 << 30;
        assert_eq!(
            disks,
            [
                "vda 131072 0 first write back".to_owned(),
                format!("vda 4096 {discard} 2"),
                "vda 4096 8192 65536 16384".to_owned(),
                "vdb 32768 0 second write through".to_owned(),
                format!("vdb 4096 {discard} 1"),
                "vdb 512 4096 0 4096".to_owned(),
                "vda write through".to_owned(),
            ]
        );
        assert_eq!(report.section("files"), files);
        quiet(&said);
    }
    let blocks = File::open(site.path("b.raw"))?;
    let text = b"hypernest\n".repeat(BLOCK);
    for (at, written) in [
        (0, true),
        (15, true),
        (16, false),
        (47, false),
        (48, true),
        (63, true),
    ] {
        let mut block = [0; BLOCK];
        let offset = at * BLOCK;
        blocks.read_exact_at(&mut block, offset as u64)?;
        let expected = match written {
            true => &text[offset % 10..][..BLOCK],
            false => &[0; BLOCK],
        };
        assert!(block == expected, "block {at}");
    }
    // 2 of 4 MiB.
    let kib = blocks.metadata()?.blocks() / 2;
    assert!(kib <= 2048 + 64, "discarded blocks are kept: {kib} KiB");
    Ok(())
}

/// What `sha256sum -c` says of the files.
fn checked() -> Vec<String> {
    (1..=8).map(|n| format!("f{n}: OK")).collect()
}

/// Says whether each disk's rings are packed (feature 34). Then writes block after block of the first disk,
/// each with its number in every line, flushed and read back; and random bytes to the second, without an end.
const WRITER: &str = r#"
for d in virtio0 virtio1; do echo "$d packed=$($b cut -c 35 /sys/bus/virtio/devices/$d/features)"; done
while :; do $b dd if=/dev/urandom of=/dev/vdb bs=1M oflag=direct 2>/dev/null; done &
i=0
while [ $i -lt 1000000 ]; do
  i=$((i+1))
  at=$((i % 16))
  $b yes "block $i" | $b head -c 65536 > /block
  $b dd if=/block of=/dev/vda bs=64k seek=$at oflag=direct conv=notrunc,fsync 2>/dev/null || echo "BAD write $i"
  $b dd if=/dev/vda of=/back bs=64k skip=$at count=1 iflag=direct 2>/dev/null || echo "BAD read $i"
  $b cmp -s /block /back || echo "BAD block $i"
  echo "flushed $i"
done
"#;

/// The last block that the guest has flushed.
fn flushed(said: &str) -> usize {
    let lines = said.lines().map(str::trim_end);
    let numbers = lines.filter_map(|line| line.strip_prefix("flushed ")?.parse().ok());
    numbers.max().unwrap_or(0)
}

/// All blocks that were flushed are in the image. A newer one may be in the place of the oldest.
fn expect_blocks(site: &Site, name: &str, last: usize) -> TestResult {
    let image = File::open(site.path(name))?;
    for number in last.saturating_sub(14).max(1)..=last {
        let mut block = [0; BLOCK];
        image.read_exact_at(&mut block, ((number % 16) * BLOCK) as u64)?;
        let text = format!("block {number}\n").into_bytes();
        let whole = block.iter().zip(text.iter().cycle()).all(|(a, b)| a == b);
        assert!(whole, "block {number} of {last} is not in the image");
    }
    Ok(())
}

/// A guest that writes to `a.raw` and `b.raw`, which are new, with these options.
fn writer(site: &Site, a: &str, b: &str) -> Result<Vm, Box<dyn Error>> {
    image(site, "a.raw", 1)?;
    image(site, "b.raw", 16)?;
    let mut command = linux(site, "linux-6.12/vmlinux", "")?;
    init(site, WRITER)?;
    command
        .args(["--disk", &format!("a.raw,{a}")])
        .args(["--disk", &format!("b.raw,{b}")]);
    Ok(Vm::start(command)?.patient())
}

/// Restores, resets and live migrations with requests under way, in packed rings and in split ones.
fn continues() -> TestResult {
    let site = Site::new()?;
    let moves = if is_long_run() { 50 } else { 4 };
    let mut vm = writer(&site, "cache=none,packed=on", "cache=none")?;
    vm.wait_for("virtio0 packed=1")?;
    vm.wait_for("virtio1 packed=0")?;
    let mut done = 0;
    for turn in 0..moves {
        vm.wait_until("blocks", |vm| flushed(&vm.said()) >= done + 10)?;
        let ended;
        if turn % 2 == 0 {
            ended = save(&site, vm)?;
            let disks = ["--disk", "a.raw", "--disk", "b.raw,id=virtio-blk1"];
            vm = restore(&site, &disks)?.patient();
        } else {
            let disks = ["--disk", "a.raw", "--disk", "b.raw"];
            let there;
            (ended, there) = move_on_with(&site, vm, 0, &[], &disks)?;
            // Back to the name that the next save expects.
            let (back, there) = move_on_with(&site, there, 1, &[], &disks)?;
            quiet(&back.stdout);
            vm = there.patient();
        }
        quiet(&ended.stdout);
        done = flushed(&ended.stdout).max(done);
        println!("move {turn}: {done} blocks were flushed");
    }
    site.control(&["reset", "test"])?.expect_code(0)?;
    vm.wait_until("blocks after a reset", |vm| {
        vm.said().matches("flushed 3\n").count() + vm.said().matches("flushed 3\r").count() >= 1
    })?;
    vm.signal(Signal::SIGKILL)?;
    let ended = vm.end()?;
    quiet(&ended.stdout);
    Ok(())
}

/// The host has no space left in the middle of a write, and then has.
fn full() -> TestResult {
    let site = Site::new()?;
    let small = site.path("small");
    fs::create_dir(&small)?;
    let mounted = Command::new(held("busybox")?)
        .args(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs"])
        .arg(&small)
        .status()?;
    assert!(mounted.success(), "{mounted}");
    let result = on_a_full_host(&site);
    let unmounted = Command::new(held("busybox")?)
        .arg("umount")
        .arg(&small)
        .status()?;
    assert!(unmounted.success(), "{unmounted}");
    result
}

const FILLER: &str = r#"
$b yes hypernest | $b dd of=/dev/vda bs=64k count=64 iflag=fullblock oflag=direct conv=fsync 2>/dev/null || echo BAD
echo @written
"#;

fn on_a_full_host(site: &Site) -> TestResult {
    image(site, "small/a.raw", 8)?;
    let filler = site.path("small/filler");
    fs::write(&filler, vec![1; 2 << 20])?;
    let mut command = linux(site, "linux-6.12/vmlinux", "")?;
    init(site, &format!("{FILLER}{END}exec $b poweroff -f\n"))?;
    command.args(["--disk", "small/a.raw"]);
    let mut vm = Vm::start(command)?.patient();
    vm.wait_until("the pause", |vm| {
        vm.complained().contains("the VM is paused")
    })?;
    let complaint = vm.complained();
    for part in ["virtio-blk0", "no space left", "hypernest resume test"] {
        assert!(complaint.contains(part), "{complaint}");
    }
    assert_eq!(site.status()?["state"], "paused");
    // Too early: whether it has run in between is seen or not.
    site.control(&["resume", "test"])?;
    vm.wait_until("the second pause", |vm| {
        vm.complained().matches("the VM is paused").count() == 2
    })?;
    // It can even be saved, and continue in another process.
    let ended = save(site, vm)?;
    quiet(&ended.stdout);
    fs::remove_file(&filler)?;
    let mut vm = restore(site, &["--disk", "small/a.raw"])?.patient();
    vm.wait_for("@end")?;
    let ended = vm.end()?;
    ended.expect_code(0)?;
    quiet(&ended.stdout);
    let image = fs::read(site.path("small/a.raw"))?;
    let text = b"hypernest\n".iter().cycle();
    let kept = image[..64 * BLOCK].iter().eq(text.take(64 * BLOCK));
    assert!(kept, "what was written is lost");
    Ok(())
}

/// hypernest dies in the middle; the blocks that the guest had flushed are in the image, and the next VM
/// opens it.
fn killed() -> TestResult {
    let site = Site::new()?;
    let rounds = if is_long_run() { 50 } else { 3 };
    for round in 0..rounds {
        let cache = ["none", "writeback", "writethrough"][round % 3];
        let options = format!("cache={cache}");
        let mut vm = writer(&site, &options, &options)?;
        let blocks = 5 + (round * 7) % 23;
        vm.wait_until("blocks", |vm| flushed(&vm.said()) >= blocks)?;
        vm.signal(Signal::SIGKILL)?;
        let ended = vm.end()?;
        quiet(&ended.stdout);
        let last = flushed(&ended.stdout);
        println!("round {round}, cache={cache}: killed after {last} blocks");
        expect_blocks(&site, "a.raw", last)?;
    }
    Ok(())
}

/// Waits for another size of the disk, uses what is new of it when it is told to, and then reads block by
/// block. At the end it waits for a third size.
const CONTROLLED: &str = r#"
size() { $b cat /sys/block/vda/size; }
until_size() { while [ $(size) != $1 ]; do $b usleep 50000; done; }
echo "@small $(size)"
until_size 49152
echo "@large $(size)"
$b dmesg | $b grep 'vda.*new size'
echo "@counts"
read go
$b yes hypernest | $b head -c 1048576 > /blocks
$b dd if=/blocks of=/dev/vda bs=64k seek=256 count=16 oflag=direct conv=notrunc,fsync 2>/dev/null || echo "BAD write"
$b dd if=/dev/vda of=/back bs=64k skip=256 count=16 iflag=direct 2>/dev/null || echo "BAD read"
$b cmp -s /blocks /back || echo "BAD blocks"
echo "@limits"
read go
$b dd if=/dev/vda of=/dev/null bs=64k count=20 iflag=direct 2>/dev/null || echo "BAD read"
echo 'write through' > /sys/block/vda/cache_type
echo "@waits"
until_size 65536
echo "cache $($b cat /sys/block/vda/cache_type)"
$b dd if=/back of=/dev/vda bs=64k seek=496 count=16 oflag=direct conv=notrunc,fsync 2>/dev/null || echo "BAD write"
"#;

/// A number of the first disk in the status.
fn count(status: &serde_json::Value, name: &str) -> Result<u64, Box<dyn Error>> {
    let number = status["devices"][0]["disk"][name].as_u64();
    Ok(number.ok_or_else(|| format!("{name} is not in {status}"))?)
}

fn controlled() -> TestResult {
    let site = Site::new()?;
    image(&site, "a.raw", 16)?;
    let mut command = linux(&site, "linux-6.12/vmlinux", "")?;
    init(&site, &format!("{CONTROLLED}{END}exec $b poweroff -f\n"))?;
    command.args(["--disk", "a.raw,id=data"]);
    let mut vm = Vm::start(command.stdin(Stdio::piped()))?.patient();
    vm.wait_for("@small 32768")?;
    for (arguments, says) in [
        (&["resize", "test", "dat", "24M"][..], "it has data"),
        (&["resize", "test", "data", "8M"], "--shrink"),
    ] {
        let arguments = [&["disk"], arguments].concat();
        site.control(&arguments)?.expect_error(1, &[says])?;
    }
    let resized = site.control(&["disk", "resize", "test", "data", "24M"])?;
    resized.expect_code(0)?;
    assert_eq!(resized.stdout, "data: 24M (25165824 bytes)\n");
    assert_eq!(fs::metadata(site.path("a.raw"))?.len(), 24 << 20);
    vm.wait_for("@counts")?;
    assert!(vm.said().contains("@large 49152"), "{}", vm.said());

    let before = site.status()?;
    assert_eq!(before["devices"][0]["id"], "data");
    vm.tell("go")?;
    vm.wait_for("@limits")?;
    let after = site.status()?;
    let more = |name: &str| Ok::<_, Box<dyn Error>>(count(&after, name)? - count(&before, name)?);
    for (name, expected) in [
        ("wr_operations", 16),
        ("wr_bytes", 1 << 20),
        ("rd_operations", 16),
        ("rd_bytes", 1 << 20),
        ("failed_wr_operations", 0),
        ("invalid_operations", 0),
    ] {
        assert_eq!(more(name)?, expected, "{name}: {before} {after}");
    }
    assert!(more("flush_operations")? >= 1, "{after}");
    assert_eq!(
        (count(&after, "size")?, count(&after, "in_flight")?),
        (24 << 20, 0)
    );

    let limited = site.control(&["disk", "throttle", "test", "data", "--iops", "5"])?;
    limited.expect_code(0)?;
    assert!(
        limited.stdout.contains("at most 5 requests/s"),
        "{}",
        limited.stdout
    );
    vm.tell("go")?;
    vm.wait_for("@waits")?;
    let limited = site.status()?;
    assert_eq!(
        count(&limited, "rd_operations")? - count(&after, "rd_operations")?,
        20
    );
    let held = limited["devices"][0]["disk"]["throttle"]["held"].as_u64();
    println!("20 reads were held back {held:?} times");
    assert!((5..=20).contains(&held.unwrap_or(0)), "{limited}");

    // It has its size in another process, and can have a third there, which others gave the file.
    let ended = save(&site, vm)?;
    let mut vm = restore(&site, &["--disk", "a.raw,iops=1000"])?.patient();
    vm.wait_until("the restored VM", |_| site.status().is_ok())?;
    let grown = File::options().write(true).open(site.path("a.raw"))?;
    grown.set_len(32 << 20)?;
    let resized = site.control(&["disk", "resize", "test", "data"])?;
    resized.expect_code(0)?;
    assert_eq!(resized.stdout, "data: 32M (33554432 bytes)\n");
    let limits = &site.status()?["devices"][0]["disk"]["throttle"];
    assert_eq!((&limits["iops"], &limits["bps"]), (&1000.into(), &0.into()));
    vm.wait_for("@end")?;
    let again = vm.end()?;
    again.expect_code(0)?;
    assert!(
        again.stdout.contains("cache write through"),
        "{}",
        again.stdout
    );
    quiet(&format!("{}{}", ended.stdout, again.stdout));
    let (image, text) = (fs::read(site.path("a.raw"))?, b"hypernest\n".iter().cycle());
    for place in [16 << 20, 31 << 20] {
        let kept = image[place..place + (1 << 20)]
            .iter()
            .eq(text.clone().take(1 << 20));
        assert!(kept, "what was written at {place:#x} is not there");
    }
    Ok(())
}

/// While a VM writes to an image no other opens it; two may read one.
fn one_writer() -> TestResult {
    let site = Site::new()?;
    image(&site, "a.raw", 1)?;
    let start = |name: &str, disk: &str| {
        let mut command = site.hypernest();
        command
            .args(["run", "--name", name, "--disk", disk])
            .args(["--kernel", "guest", "--cmdline", "keep"])
            .args(["--memory", "64M", "--hv", "none"])
            .args(["--serial", "none", "--debugcon", "stdio"]);
        Vm::start(command)
    };
    let refused = |vm: Vm, what: &str| -> TestResult {
        let ended = vm.end()?;
        ended.expect_code(1)?;
        for part in ["virtio-blk0", "a.raw", what] {
            assert!(ended.stderr.contains(part), "{}", ended.stderr);
        }
        Ok(())
    };
    let mut one = start("one", "a.raw")?;
    one.wait_for("keep: ")?;
    refused(start("two", "a.raw")?, "open for writing")?;
    refused(start("two", "a.raw,readonly")?, "open for writing")?;
    // Its death frees it.
    one.signal(Signal::SIGKILL)?;
    one.end()?;
    let mut one = start("one", "a.raw,readonly")?;
    one.wait_for("keep: ")?;
    let mut two = start("two", "a.raw,readonly=on")?;
    two.wait_for("keep: ")?;
    refused(start("three", "a.raw")?, "a.raw")?;
    for vm in [one, two] {
        vm.signal(Signal::SIGKILL)?;
        vm.end()?;
    }
    Ok(())
}

/// How L1 runs its L2.
struct Nesting {
    /// Its KVM.
    module: &'static str,
    parameters: &'static str,
    /// What that KVM logs then, if anything.
    logged: &'static [&'static str],
}

const SVM: Nesting = Nesting {
    module: "kvm-amd",
    parameters: "",
    logged: &[],
};

const EVMCS: Nesting = Nesting {
    module: "kvm-intel",
    parameters: "enlightened_vmcs=1",
    logged: &["Using Hyper-V Enlightened VMCS"],
};

/// What L1 starts: a VM whose disk is L1's own.
fn l1(nesting: &Nesting) -> String {
    let Nesting {
        module, parameters, ..
    } = nesting;
    format!(
        r#"#!/busybox sh
b=/busybox
$b mkdir -p /proc /sys /run
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
export XDG_RUNTIME_DIR=/run
for m in irqbypass kvm virtio-blk; do $b insmod /$m.ko; done
$b insmod /{module}.ko {parameters}
echo @kvm
$b dmesg | $b grep -o 'Using Hyper-V Enlightened VMCS'
echo @end
exec /hypernest run --name l2 --kernel /vmlinux --initrd /l2 --hv none --memory 160M --disk /dev/vda,cache=none \
  --cmdline "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off no_timer_check cryptomgr.notests"
"#
    )
}

/// The disk of an L2 that is a disk of L1: L2's flushes reach the image through both, also while L1 moves.
fn of_l2(nesting: &Nesting) -> TestResult {
    let site = Site::new()?;
    image(&site, "a.raw", 1)?;
    let write_alone = WRITER.split_once("\ni=0").ok_or("the writer's loop")?.1;
    init(&site, &format!("i=0{write_alone}"))?;
    fs::rename(site.path("initrd"), site.path("l2"))?;
    let mut archive = Writer::new(BufWriter::new(File::create(site.path("initrd"))?));
    archive.file("init", 0o755, l1(nesting).as_bytes())?;
    archive.copy("busybox", &held("busybox")?)?;
    archive.copy("hypernest", &crate::l2probe::program("hypernest")?)?;
    archive.copy("vmlinux", &held("linux-6.12/vmlinux")?)?;
    archive.copy("l2", &site.path("l2"))?;
    for module in ["irqbypass", "kvm", nesting.module, "virtio-blk"] {
        let path = held(&format!("linux-6.12/modules/{module}.ko"))?;
        archive.copy(&format!("{module}.ko"), &path)?;
    }
    archive.character_device("dev/console", 5, 1)?;
    archive.finish()?;
    let mut command = site.hypernest();
    command
        .args(["run", "--name", "test", "--memory", "640M", "--nested"])
        .args(["--initrd", "initrd", "--disk", "a.raw", "--kernel"])
        .arg(held("linux-6.12/vmlinux")?)
        .args(["--cmdline", COMMAND_LINE]);
    let mut vm = Vm::start(command)?.patient();
    vm.wait_until("L2's blocks", |vm| flushed(&vm.said()) >= 5)?;
    let ended = save(&site, vm)?;
    let done = flushed(&ended.stdout);
    quiet(&ended.stdout);
    assert_eq!(Report::read(&ended.stdout).section("kvm"), nesting.logged);
    let mut vm = restore(&site, &["--disk", "a.raw"])?.patient();
    vm.wait_until("more of L2's blocks", |vm| flushed(&vm.said()) >= done + 3)?;
    let (ended, there) = move_on_with(&site, vm, 0, &[], &["--disk", "a.raw"])?;
    let done = flushed(&ended.stdout);
    quiet(&ended.stdout);
    let mut vm = there.patient();
    vm.wait_until("blocks after a migration", |vm| {
        flushed(&vm.said()) >= done + 3
    })?;
    vm.signal(Signal::SIGKILL)?;
    let ended = vm.end()?;
    quiet(&ended.stdout);
    expect_blocks(&site, "a.raw", flushed(&ended.stdout))
}
