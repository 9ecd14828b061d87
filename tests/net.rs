//! Network cards: a stock Linux is reached, and reaches others, by virtio-net, across restores and
//! migrations.

use std::cell::RefCell;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hypernest_lab::host::Host;
use hypernest_lab::suite::{Stage, Test, TestResult};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::linux::{ASK, Report, held, initramfs_with, linux};
use crate::migration::move_on_with;
use crate::needs;
use crate::state::{restore, save};
use crate::stock_linux;
use crate::vm::{Site, Vm, is_long_run};

const AMD: Stage = Stage {
    name: "net",
    with: &["linux-6.12/vmlinux", "linux-6.12/modules", "net"],
    ..stock_linux::AMD
};

pub(crate) const TESTS: &[Test] = &[
    amd("net::a_tap_leads_both_ways", tap),
    amd("net::passt_leads_both_ways", user),
    amd("net::a_connection_outlives_moves", continues),
    amd("net::two_vms_by_a_stream", two_vms),
];

const fn amd(name: &'static str, run: fn() -> TestResult) -> Test {
    Test::new(name, run)
        .only_on(&[Host::Amd])
        .stage(AMD)
        .needs(needs::hyperv)
        .limit_seconds(400)
}

/// The guest's drivers, in the order of their loading.
const MODULES: [&str; 3] = ["failover", "net-failover", "virtio-net"];

/// The start of every init here. `serve PORT` returns what each connection sends, when that has ended.
const BEGIN: &str = r#"#!/busybox sh
b=/busybox
$b mkdir /proc /sys /tmp
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
$b mount -t tmpfs tmp /tmp
for m in failover net-failover virtio-net; do $b insmod /$m.ko; done
n=/sys/class/net
card() {
  echo "$1 $($b cat $n/$1/address) $($b cat $n/$1/mtu) $($b ls -d $n/$1/queues/rx-* | $b wc -l)"
}
$b ip link set lo up
"#;

const END: &str = r#"
echo @log
$b dmesg | $b grep -v 'module verification failed' | $b grep -iE 'bug:|warning:|call trace|oops:|virtio.*(fail|error)|NETDEV WATCHDOG|hw csum failure'
echo @end
"#;

/// What is sent in each direction.
const BYTES: usize = 8 << 20;

fn init(site: &Site, script: &str) -> TestResult {
    let modules: Vec<_> = MODULES
        .iter()
        .map(|name| {
            (
                format!("{name}.ko"),
                format!("linux-6.12/modules/{name}.ko"),
            )
        })
        .collect();
    let modules: Vec<_> = modules
        .iter()
        .map(|(name, held)| (name.as_str(), held.as_str()))
        .collect();
    initramfs_with(site, &format!("{BEGIN}{script}"), &modules)
}

/// Runs a program of the lab host until it has ended well.
fn run(program: &str, arguments: &str) -> TestResult {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments}: {}: {said}", output.status).into())
}

/// `ip` with these arguments in the lab host.
pub(crate) fn ip(arguments: &str) -> TestResult {
    let program = held("net/ip")?;
    run(&program.display().to_string(), arguments)
}

/// The lab host can have tap devices.
pub(crate) fn load_tun() -> TestResult {
    if std::path::Path::new("/dev/net/tun").exists() {
        return Ok(());
    }
    let module = held("linux-6.12/modules/tun.ko")?;
    run("/lab/busybox", &format!("insmod {}", module.display()))
}

/// Bytes that are not all the same, and differ with `seed`.
fn bytes(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(len).collect()
}

/// Takes one connection at `address`, sends `data` and ends.
fn give(address: &str, data: Vec<u8>) -> io::Result<JoinHandle<io::Result<()>>> {
    let listener = TcpListener::bind(address)?;
    Ok(std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(&data)
    }))
}

/// Takes one connection at `address`, and returns what it sends until its end.
fn take(address: &str) -> io::Result<JoinHandle<io::Result<Vec<u8>>>> {
    let listener = TcpListener::bind(address)?;
    Ok(std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut data = Vec::new();
        stream.read_to_end(&mut data)?;
        Ok(data)
    }))
}

/// Connects as soon as somebody listens.
fn connect(vm: &mut Vm, address: &str) -> Result<TcpStream, Box<dyn Error>> {
    let address: SocketAddr = address.parse()?;
    let found = RefCell::new(None);
    vm.wait_until("a connection to the guest", |_| {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1));
        found.replace(stream.ok());
        found.borrow().is_some()
    })?;
    let stream = found.into_inner();
    stream.ok_or_else(|| format!("nobody listens at {address}").into())
}

/// The guest has got what was sent to it and has returned it, and its log has no complaints.
fn quiet(said: &str) {
    let report = Report::read(said);
    assert_eq!(report.section("log"), [""; 0], "the guest complains");
}

/// By an interface that hypernest makes, with checksums and segmentation left to the host.
fn tap() -> TestResult {
    load_tun()?;
    let site = Site::new()?;
    let mut command = linux(&site, "linux-6.12/vmlinux", "")?;
    init(
        &site,
        &format!(
            "echo @card
card eth0
$b ip addr add 10.9.0.2/24 dev eth0
$b ip link set eth0 up
echo ready
i=0
while [ $i -lt 100 ] && ! $b ping -c 1 -W 1 10.9.0.1 >/dev/null; do i=$((i+1)); done
$b nc 10.9.0.1 5000 </dev/null >/tmp/data
$b wc -c </tmp/data
$b nc 10.9.0.1 5001 </tmp/data
{END}exec $b {ASK}
"
        ),
    )?;
    command.args(["--net", "tap,ifname=tap7,mac=52:54:00:00:00:07,mtu=1400"]);
    command.args(["--cpus", "2"]);
    let mut vm = Vm::start(command.stdin(Stdio::piped()))?.patient();
    vm.wait_for("ready")?;
    ip("addr add 10.9.0.1/24 dev tap7")?;
    let sent = bytes(1, BYTES);
    let give = give("10.9.0.1:5000", sent.clone())?;
    let take = take("10.9.0.1:5001")?;
    vm.wait_for("@end")?;
    println!("{}", vm.said());
    give.join().map_err(|_| "a panic")??;
    let taken = take.join().map_err(|_| "a panic")??;
    assert_eq!(taken.len(), sent.len());
    assert!(taken == sent, "the data has changed");
    let said = vm.said();
    let report = Report::read(&said);
    assert_eq!(report.section("card")[0], "eth0 52:54:00:00:00:07 1400 1");
    quiet(&said);
    vm.tell("poweroff")?;
    vm.end()?.expect_code(0)?;
    assert!(ip("link show tap7").is_err(), "the interface stays");
    Ok(())
}

/// By passt: the guest's address by DHCP, the host by the router's address, and the guest by a port of the
/// host.
fn user() -> TestResult {
    ip("link set lo up")?;
    let site = Site::new()?;
    let mut command = linux(&site, "linux-6.12/vmlinux", "")?;
    init(
        &site,
        &format!(
            r#"echo @card
card eth0
$b ip link set eth0 up
$b cat > /tmp/lease <<'EOF'
#!/busybox sh
[ "$1" = bound ] || exit 0
/busybox ip addr add $ip/${{mask:-24}} dev $interface
/busybox ip route add default via $router dev $interface onlink
echo $router > /tmp/router
EOF
$b chmod 755 /tmp/lease
$b udhcpc -i eth0 -s /tmp/lease -n -q -t 10
echo "router $($b cat /tmp/router)"
$b nc $($b cat /tmp/router) 5000 </dev/null >/tmp/data
$b wc -c </tmp/data
$b nc $($b cat /tmp/router) 5001 </tmp/data
{END}echo serving
while :; do $b nc -l -p 22 -e /busybox cat; done
"#
        ),
    )?;
    let path = std::env::var("PATH")?;
    command.env("PATH", format!("{}:{path}", held("net")?.display()));
    command.args(["--net", "user,hostfwd=tcp:127.0.0.1:2222-:22"]);
    let sent = bytes(2, BYTES);
    let give = give("127.0.0.1:5000", sent.clone())?;
    let take = take("127.0.0.1:5001")?;
    let mut vm = Vm::start(command)?.patient();
    vm.wait_for("serving")?;
    println!("{}\n{}", vm.said(), vm.complained());
    give.join().map_err(|_| "a panic")??;
    let taken = take.join().map_err(|_| "a panic")??;
    assert!(taken == sent, "the data has changed");
    quiet(&vm.said());
    // passt takes connections also while nobody listens in the guest.
    let exchange = || -> io::Result<[u8; 21]> {
        let mut stream = TcpStream::connect("127.0.0.1:2222")?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(b"by a port of the host")?;
        let mut back = [0; 21];
        stream.read_exact(&mut back)?;
        Ok(back)
    };
    let answers = |_: &Vm| exchange().is_ok_and(|back| &back == b"by a port of the host");
    vm.wait_until("an answer of the guest", answers)?;
    // The VM goes on without passt, and has another soon.
    let passt = child(&vm)?;
    kill(passt, Signal::SIGKILL)?;
    vm.wait_until("a message", |vm| {
        vm.complained()
            .contains("the network of virtio-net0 was closed")
    })?;
    vm.wait_until("another answer of the guest", answers)?;
    assert_ne!(child(&vm)?, passt);
    site.control(&["kill", "test"])?.expect_code(0)?;
    Ok(())
}

/// The process that `vm` has started: its passt, whatever program starts that.
fn child(vm: &Vm) -> Result<Pid, Box<dyn Error>> {
    let parent = format!("PPid:\t{}", vm.pid());
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        // Others may end meanwhile.
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        if status.lines().any(|line| line == parent) {
            let pid = entry.file_name().into_string();
            return Ok(Pid::from_raw(pid.map_err(|_| "a name")?.parse()?));
        }
    }
    Err("hypernest runs no process".into())
}

/// One connection to the guest by a tap that stays and packed rings: what the guest returns is what it was
/// sent, across saves, restores and live migrations.
fn continues() -> TestResult {
    let rounds = if is_long_run() { 25 } else { 2 };
    load_tun()?;
    let site = Site::new()?;
    let mut command = linux(&site, "linux-6.12/vmlinux", "")?;
    init(
        &site,
        "$b ip addr add 10.9.1.2/24 dev eth0
$b ip link set eth0 up
echo packed=$($b cut -c 35 /sys/bus/virtio/devices/virtio0/features)
echo ready
while :; do $b nc -l -p 7 -e /busybox cat; done
",
    )?;
    ip("tuntap add tap8 mode tap")?;
    ip("addr add 10.9.1.1/24 dev tap8")?;
    let card = "tap,ifname=tap8";
    command.args(["--net", &format!("{card},packed=on")]);
    let mut vm = Vm::start(command)?.patient();
    vm.wait_for("ready")?;
    assert!(vm.said().contains("packed=1"), "{}", vm.said());
    let echo = Echo::start(connect(&mut vm, "10.9.1.2:7")?);
    let mut turn = 0;
    for _ in 0..rounds {
        echo.wait()?;
        save(&site, vm)?;
        vm = restore(&site, &["--net", card])?.patient();
        echo.wait()?;
        for _ in 0..2 {
            let (_, moved) = move_on_with(&site, vm, turn, &[], &["--net", card])?;
            vm = moved.patient();
            turn += 1;
            echo.wait()?;
        }
    }
    let count = echo.end()?;
    println!("{count} bytes were returned");
    let name = ["test", "other"][turn % 2];
    site.control(&["kill", name])?.expect_code(0)?;
    drop(vm);
    ip("link delete tap8")
}

/// A VM that listens and one that connects: data from one to the other, and the first one's view of its link.
fn two_vms() -> TestResult {
    let [site, there] = [Site::new()?, Site::new()?];
    let socket = site.path("cable").display().to_string();
    let mut command = linux(&site, "linux-6.12/vmlinux", "")?;
    init(
        &site,
        "$b ip addr add 10.9.2.1/24 dev eth0
$b ip link set eth0 up
watch() {
  last=
  while :; do
    c=$($b cat $n/eth0/carrier)
    [ \"$c\" = \"$last\" ] || echo \"carrier $c\"
    last=$c
    $b usleep 50000
  done
}
watch &
$b nc -l -p 7 >/tmp/got
echo \"hash $($b sha256sum </tmp/got)\"
wait
",
    )?;
    command.args(["--net", &format!("stream,path={socket},server=on,id=lan")]);
    let mut vm = Vm::start(command)?.patient();
    vm.wait_for("carrier 0\r\n")?;
    let mut command = linux(&there, "linux-6.12/vmlinux", "")?;
    init(
        &there,
        "$b ip addr add 10.9.2.2/24 dev eth0
$b ip link set eth0 up
i=0
while [ $i -lt 100 ] && ! $b ping -c 1 -W 1 10.9.2.1 >/dev/null; do i=$((i+1)); done
$b dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null
echo \"hash $($b sha256sum </tmp/data)\"
$b nc 10.9.2.1 7 </tmp/data
while :; do $b sleep 1000; done
",
    )?;
    command.args(["--net", &format!("stream,path={socket}")]);
    let mut other = Vm::start(command)?.patient();
    let changes = |vm: &Vm| {
        let said = vm.said();
        let lines = said.lines().filter_map(|l| l.strip_prefix("carrier "));
        lines.map(|l| l.trim().to_owned()).collect::<Vec<_>>()
    };
    let follows =
        |vm: &mut Vm, expected: &[&str]| vm.wait_until("its carrier", |vm| changes(vm) == expected);
    follows(&mut vm, &["0", "1"])?;
    let hash = |vm: &Vm| {
        let said = vm.said();
        let hash = |line: &str| {
            line.strip_prefix("hash ")?
                .trim_end()
                .strip_suffix("  -")
                .map(str::to_owned)
        };
        said.lines().find_map(hash)
    };
    vm.wait_until("the data", |vm| hash(vm).is_some())?;
    other.wait_until("the data", |vm| hash(vm).is_some())?;
    assert_eq!(hash(&vm), hash(&other));
    let card = || -> Result<serde_json::Value, Box<dyn Error>> {
        let ended = site.control(&["net", "list", "test", "--json"])?;
        ended.expect_code(0)?;
        let cards: serde_json::Value = serde_json::from_str(&ended.stdout)?;
        assert_eq!(cards[0]["id"], "lan");
        Ok(cards[0]["net"].clone())
    };
    let shown = card()?;
    println!("{shown}");
    assert!(shown["rx_bytes"].as_u64() > Some(4 << 20), "{shown}");
    for (state, expected) in [
        ("down", &["0", "1", "0"][..]),
        ("up", &["0", "1", "0", "1"]),
    ] {
        site.control(&["net", "link", "test", "lan", state])?
            .expect_code(0)?;
        follows(&mut vm, expected)?;
        assert_eq!(card()?["plugged"], state == "up");
    }
    there.control(&["kill", "test"])?.expect_code(0)?;
    follows(&mut vm, &["0", "1", "0", "1", "0"])?;
    assert_eq!(card()?["link"], false);
    let complaint = vm.complained();
    assert!(
        complaint.contains("the network of lan was closed by its peer"),
        "{complaint}"
    );
    let refused = site.control(&["net", "link", "test", "wan", "up"])?;
    refused.expect_error(1, &["no device \"wan\"; it has lan"])?;
    site.control(&["kill", "test"])?.expect_code(0)?;
    drop(other);
    drop(vm);
    assert!(!std::path::Path::new(&socket).exists());
    Ok(())
}

/// Sends bytes, and checks those that come back.
struct Echo {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

impl Echo {
    fn start(mut stream: TcpStream) -> Self {
        let (done, stop) = <(Arc<AtomicU64>, Arc<AtomicBool>)>::default();
        let thread = std::thread::spawn({
            let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
            move || {
                stream.set_read_timeout(Some(Duration::from_secs(120)))?;
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    let sent = bytes(round, 16 << 10);
                    stream.write_all(&sent)?;
                    let mut back = vec![0; sent.len()];
                    stream.read_exact(&mut back)?;
                    if back != sent {
                        return Err(io::Error::other(format!("block {round} has changed")));
                    }
                    round += 1;
                    done.fetch_add(sent.len() as u64, Ordering::Relaxed);
                }
                Ok(())
            }
        });
        Self { done, stop, thread }
    }

    /// Waits until more has come back.
    fn wait(&self) -> TestResult {
        let before = self.done.load(Ordering::Relaxed);
        while self.done.load(Ordering::Relaxed) < before + (64 << 10) {
            if self.thread.is_finished() {
                return Err("the connection has ended".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn end(self) -> Result<u64, Box<dyn Error>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "a panic")??;
        Ok(self.done.load(Ordering::Relaxed))
    }
}
