//! Balloons: the memory of a stock Linux goes back to the host, and returns, across restores and migrations.

use std::error::Error;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hypernest_lab::suite::{Test, TestResult};

use crate::linux::{initramfs_with, linux};
use crate::migration::move_on;
use crate::state::{restore, save};
use crate::virtio::amd;
use crate::vm::{Site, Vm, patience};

pub(crate) const TESTS: &[Test] = &[amd("balloon::memory_goes_and_returns", goes_and_returns)];

const MODULE: (&str, &str) = ("virtio-balloon.ko", "linux-6.12/modules/virtio-balloon.ko");

/// The second balloon has no driver at first. `fill` writes a file in memory, `empty` removes it; `sum` is of
/// another one that stays.
const INIT: &str = r#"#!/busybox sh
b=/busybox
$b mkdir /proc /sys /tmp /keep
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
$b mount -t tmpfs -o size=90% tmp /tmp
$b mount -t tmpfs tmp /keep
$b insmod /virtio-balloon.ko
d=/sys/bus/virtio/drivers/virtio_balloon
second=$($b ls $d | $b grep '^virtio[0-9]' | $b tail -n 1)
echo $second > $d/unbind
$b dd if=/dev/urandom of=/keep/x bs=1M count=4 2>/dev/null
echo @ready
while read line; do
  case $line in
    fill*)
      $b dd if=/dev/zero of=/tmp/x bs=1M count=${line#fill } 2>/dev/null
      $b tr '\0' x < /tmp/x > /tmp/y
      $b rm /tmp/x /tmp/y ;;
    sum) $b md5sum /keep/x ;;
    bind) echo $second > $d/bind ;;
    log) $b dmesg | $b grep -v 'module verification failed' | $b grep -iE 'bug:|warning:|call trace|oops:|out of memory|virtio.*(fail|error)' ;;
  esac
  echo "@done $line"
done
"#;

const MIB: u64 = 1 << 20;

/// A running guest, and what it was told.
struct Guest {
    site: Site,
    vm: Option<Vm>,
    name: &'static str,
    told: usize,
}

impl Guest {
    fn vm(&mut self) -> &mut Vm {
        self.vm.as_mut().expect("it runs")
    }

    /// What the guest prints until it has done what the line says.
    fn told(&mut self, line: &str) -> Result<String, Box<dyn Error>> {
        self.told += 1;
        let before = self.vm().said().len();
        self.vm().tell(line)?;
        let end = format!("@done {line}");
        self.vm()
            .wait_until(line, |vm| vm.said()[before..].contains(&end))?;
        let said = self.vm().said();
        let said = said[before..].replace(&end, "");
        Ok(said.replace(line, "").trim().to_owned())
    }

    fn status(&self) -> Result<serde_json::Value, Box<dyn Error>> {
        let ended = self.site.control(&["status", self.name, "--json"])?;
        ended.expect_code(0)?;
        Ok(serde_json::from_str(&ended.stdout)?)
    }

    fn resident(&self) -> Result<u64, Box<dyn Error>> {
        let resident = self.status()?["ram"]["resident"].as_u64();
        Ok(resident.ok_or("no ram.resident")?)
    }

    fn balloon(&self) -> Result<serde_json::Value, Box<dyn Error>> {
        Ok(self.status()?["devices"][0]["balloon"].clone())
    }

    /// Waits until `is` of the status holds.
    fn wait(&self, what: &str, is: impl Fn(&Self) -> Result<bool, Box<dyn Error>>) -> TestResult {
        let deadline = Instant::now() + 4 * patience();
        while !is(self)? {
            if Instant::now() > deadline {
                return Err(format!("not {what}: {}", self.status()?).into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The guest is to have so many MiB, and has them.
    fn size(&self, mib: u64) -> TestResult {
        let size = format!("{mib}M");
        let command = ["balloon", self.name, &size, "--id", "first"];
        self.site.control(&command)?.expect_code(0)?;
        self.wait(&size, |guest| {
            Ok(guest.balloon()?["actual"].as_u64() == Some(mib * MIB))
        })
    }
}

fn goes_and_returns() -> TestResult {
    let site = Site::new()?;
    let mut command = linux(&site, "linux-6.12/vmlinux", "")?;
    initramfs_with(&site, INIT, &[MODULE])?;
    command.args(["--device", "virtio-balloon,id=first,stats-interval=1"]);
    command.args([
        "--device",
        "virtio-balloon,id=second,free-page-reporting=on",
    ]);
    let mut vm = Vm::start(command.stdin(Stdio::piped()))?.patient();
    vm.wait_for("@ready")?;
    let mut guest = Guest {
        site,
        vm: Some(vm),
        name: "test",
        told: 0,
    };
    // What was used once stays with the VM.
    guest.told("fill 60")?;
    let full = guest.resident()?;
    assert!(full > 120 * MIB, "{full}");
    let sum = guest.told("sum")?;
    guest.size(100)?;
    let inflated = guest.resident()?;
    println!(
        "{} MiB resident, {} when inflated",
        full / MIB,
        inflated / MIB
    );
    assert!(inflated + 50 * MIB < full, "{inflated} of {full}");
    guest.wait("statistics", |guest| {
        let stats = &guest.balloon()?["stats"];
        let total = stats["stat-total-memory"].as_u64().unwrap_or(0);
        Ok(stats["stat-free-memory"].is_u64() && (1..100 * MIB).contains(&total))
    })?;

    // It goes on elsewhere, with what is in the balloon.
    let vm = guest.vm.take().ok_or("it runs")?;
    save(&guest.site, vm)?;
    let mut vm = restore(&guest.site, &["--clock", "pause"])?.patient();
    vm.wait_until("its control socket", |_| guest.site.status().is_ok())?;
    guest.vm = Some(vm);
    assert_eq!(guest.balloon()?["actual"], 100 * MIB);
    assert_eq!(guest.told("sum")?, sum);
    guest.size(80)?;
    guest.size(90)?;
    assert_eq!(guest.told("sum")?, sum);
    let vm = guest.vm.take().ok_or("it runs")?;
    let (_, vm) = move_on(&guest.site, vm, 0, &[])?;
    (guest.vm, guest.name) = (Some(vm.patient()), "other");
    assert_eq!(guest.balloon()?["actual"], 90 * MIB);
    assert_eq!(guest.told("sum")?, sum);
    let inflated = guest.resident()?;

    // All of it returns.
    guest.size(256)?;
    guest.told("fill 60")?;
    let full = guest.resident()?;
    println!(
        "{} MiB resident after a move, {} when deflated and filled",
        inflated / MIB,
        full / MIB
    );
    assert!(full > inflated + 50 * MIB, "{full} after {inflated}");
    guest.told("bind")?;
    guest.wait(
        "given back",
        |guest| Ok(guest.resident()? + 50 * MIB < full),
    )?;
    println!("{} MiB resident with reports", guest.resident()? / MIB);
    assert_eq!(guest.told("sum")?, sum);
    assert_eq!(guest.told("log")?, "");

    let refused = guest
        .site
        .control(&["balloon", "other", "300M", "--id", "first"])?;
    refused.expect_error(1, &["256 MiB"])?;
    guest.site.control(&["stop", "other"])?.expect_code(0)?;
    guest.vm.take().ok_or("it runs")?.end()?.expect_code(0)?;
    Ok(())
}
