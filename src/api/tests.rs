use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::life::{Inbox, Request, UserRequest, channel};
use crate::machine::AfterSave;
use crate::machine::{State, Status};

struct Vm {
    server: Server,
    events: Inbox,
}

fn dirs(dir: &tempfile::TempDir) -> RunDirs {
    RunDirs::at(dir.path().join("hypernest"))
}

fn status(name: &str) -> Status {
    Status {
        name: name.to_owned(),
        pid: std::process::id(),
        version: "1".to_owned(),
        state: State::Running,
        uptime_ms: 1234,
        resets: 0,
        vcpus: 2,
        memory: 1 << 30,
        hv: vec!["hv-time".to_owned()],
        crash: None,
        tsc: crate::machine::TscStatus::default(),
        ptys: [("serial".to_owned(), "/dev/pts/9".to_owned())].into(),
        migration: None,
        ram: None,
        devices: Vec::new(),
    }
}

fn start(dirs: &RunDirs, name: &'static str) -> Vm {
    let (_, handle, events) = channel();
    let dir = dirs.claim(name).unwrap();
    let patience = Duration::from_millis(300);
    let server = Server::start_with_patience(dir, handle, move || status(name), patience).unwrap();
    Vm { server, events }
}

fn next(vm: &Vm) -> UserRequest {
    vm.events.wait();
    vm.events.next_request().unwrap()
}

/// Sends `text` as it is, and reads a line.
fn raw(dirs: &RunDirs, name: &str, text: &[u8]) -> String {
    let mut stream = UnixStream::connect(dirs.socket(name)).unwrap();
    stream.write_all(text).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn commands_arrive_and_are_answered() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let vm = start(&dirs, "a");
    let answer = call(&dirs, "a", &ControlRequest::Status {}).unwrap();
    assert_eq!(answer.as_deref(), Some(&status("a")));
    for request in [
        Request::Pause,
        Request::Resume,
        Request::Reset,
        Request::PowerButton,
    ] {
        assert!(call(&dirs, "a", &request.into()).unwrap().is_none());
        assert_eq!(next(&vm), UserRequest::Life(request));
    }
}

/// The reply to what ends the VM comes when the VM's name is free.
#[test]
fn a_kill_is_answered_when_the_vm_is_gone() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let vm = start(&dirs, "a");
    let of_client = dirs.clone();
    let waiting = std::thread::spawn(move || {
        let reply = call(&of_client, "a", &ControlRequest::Kill {});
        reply.map(|_| of_client.claim("a").unwrap())
    });
    assert_eq!(next(&vm), UserRequest::Life(Request::Kill));
    // Longer than idle clients are waited for.
    std::thread::sleep(Duration::from_millis(600));
    assert!(call(&dirs, "a", &ControlRequest::Status {}).is_ok());
    assert!(!waiting.is_finished());
    drop(vm);
    assert!(waiting.join().unwrap().is_ok());
}

#[test]
fn idle_clients_keep_no_other_waiting() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let (_, handle, _events) = channel();
    // They are let go long after this test has ended.
    let patience = Duration::from_secs(3600);
    let dir = dirs.claim("a").unwrap();
    let _server = Server::start_with_patience(dir, handle, || status("a"), patience).unwrap();
    let idle: Vec<_> = (0..64)
        .map(|_| UnixStream::connect(dirs.socket("a")).unwrap())
        .collect();
    for _ in 0..3 {
        assert!(
            call(&dirs, "a", &ControlRequest::Status {})
                .unwrap()
                .is_some()
        );
    }
    drop(idle);
}

#[test]
fn jobs_keep_no_status_waiting() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    // No machine takes these jobs up.
    let vm = start(&dirs, "a");
    let migrate = b"{\"command\":\"migrate\",\"to\":\"fd:0\"}\n";
    let mut jobs: Vec<_> = (0..16)
        .map(|_| {
            let mut stream = UnixStream::connect(dirs.socket("a")).unwrap();
            stream.write_all(migrate).unwrap();
            stream
        })
        .collect();
    assert!(
        call(&dirs, "a", &ControlRequest::Status {})
            .unwrap()
            .is_some()
    );
    let mut refused = String::new();
    let last = jobs.pop().unwrap();
    BufReader::new(last).read_line(&mut refused).unwrap();
    assert!(refused.contains("jobs are being done already"), "{refused}");
    // The machine ends before its server does.
    drop(vm.events);
    drop(vm.server);
}

#[test]
fn one_connection_takes_many_requests() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let vm = start(&dirs, "a");
    let mut stream = UnixStream::connect(dirs.socket("a")).unwrap();
    stream
        .write_all(b"{\"command\":\"pause\"}\n{\"command\":\"resume\"}\n{\"command\":\"sta")
        .unwrap();
    stream.write_all(b"tus\"}\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "{\"ok\":null}");
    assert_eq!(lines.next().unwrap().unwrap(), "{\"ok\":null}");
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .starts_with("{\"ok\":{\"name\":\"a\"")
    );
    assert_eq!(next(&vm), UserRequest::Life(Request::Pause));
    assert_eq!(next(&vm), UserRequest::Life(Request::Resume));
}

#[test]
fn what_is_no_request_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let vm = start(&dirs, "a");
    // A request of one byte too many, whole and otherwise valid.
    let too_long = format!("{{\"command\":\"kill\"{}}}\n", " ".repeat(4097 - 18)).into_bytes();
    assert_eq!(too_long.len(), 4097 + 1);
    for (text, says) in [
        (&b"\n"[..], "not a request"),
        (b"{}\n", "not a request"),
        (b"[1]\n", "not a request"),
        (b"\xff\n", "not a request"),
        (b"{\"command\":\"reset\",\"force\":true}\n", "not a request"),
        (
            b"{\"command\":\"stauts\"}\n",
            "did you mean \\\"status\\\"?",
        ),
        (b"{\"command\":\"x\"}\n", "the commands are status, pause"),
        (
            b"{\"command\":\"save\",\"dir\":\"saved\"}\n",
            "`dir` is the relative path",
        ),
        (
            b"{\"command\":\"migrate\",\"to\":\"unix:socket\"}\n",
            "`to` is the relative path",
        ),
        (
            b"{\"command\":\"migrate\",\"to\":\"tcp:h:1\",\"tls_key\":\"./key\"}\n",
            "`tls_key` is the relative path",
        ),
        (&[b'['; 4095], ""),
        (&too_long, "longer than 4096 bytes"),
        (&[b'x'; 5000], "longer than 4096 bytes"),
    ] {
        let line = raw(&dirs, "a", text);
        // A line that never ends and is not too long is given up after a while, without an answer.
        assert_eq!(
            line.starts_with("{\"error\":\""),
            !says.is_empty(),
            "{line}"
        );
        assert!(line.contains(says), "{line}");
    }
    assert!(vm.events.next_request().is_none());
    assert!(call(&dirs, "a", &ControlRequest::Status {}).is_ok());
}

#[test]
fn a_job_is_answered_when_it_is_done_and_holds_up_nobody() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let vm = start(&dirs, "a");
    let save = |dir: &Path| {
        ControlRequest::Save(Save {
            dir: dir.to_owned(),
            then: AfterSave::Stop,
        })
    };
    let place = tmp.path().join("saved");
    let (dirs_of_job, job) = (dirs.clone(), save(&place));
    let waiting = std::thread::spawn(move || call(&dirs_of_job, "a", &job));
    let UserRequest::Job(job) = next(&vm) else {
        panic!("the machine was not asked");
    };
    // Longer than clients are waited for.
    std::thread::sleep(Duration::from_millis(600));
    assert!(call(&dirs, "a", &ControlRequest::Status {}).is_ok());
    assert!(!waiting.is_finished());
    // The machine ends without having done it.
    drop(job);
    let refused = waiting.join().unwrap().unwrap_err().to_string();
    assert!(refused.contains("the VM has ended"), "{refused}");
    assert!(!place.exists());
    // What is refused at once does not reach the machine.
    let refused = call(&dirs, "a", &save("/dev/null/saved".as_ref())).unwrap_err();
    assert!(refused.to_string().contains("/dev/null"), "{refused}");
    for arguments in [
        "",
        ",\"dir\":7",
        ",\"dir\":\"/x\",\"then\":\"rest\"",
        ",\"dir\":\"/x\",\"x\":1",
    ] {
        let line = raw(
            &dirs,
            "a",
            format!("{{\"command\":\"save\"{arguments}}}\n").as_bytes(),
        );
        assert!(line.contains("not a request"), "{line}");
    }
    assert!(vm.events.next_request().is_none());
}

#[test]
fn idle_clients_cannot_keep_others_out() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let _vm = start(&dirs, "a");
    let mut idle: Vec<_> = (0..40)
        .map(|_| UnixStream::connect(dirs.socket("a")).unwrap())
        .collect();
    idle[0].write_all(b"{").unwrap();
    assert!(call(&dirs, "a", &ControlRequest::Status {}).is_ok());
    // The first ones were let go for that.
    assert_eq!(idle[0].read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_client_that_takes_no_answers_is_let_go() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let _vm = start(&dirs, "a");
    let mut greedy = UnixStream::connect(dirs.socket("a")).unwrap();
    greedy
        .set_write_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // It asks and asks, until the server no longer reads, and then closes.
    let e = loop {
        if let Err(e) = greedy.write_all(b"{\"command\":\"status\"}\n") {
            break e;
        }
    };
    assert!(
        matches!(
            e.kind(),
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
        ),
        "{e}"
    );
    assert!(call(&dirs, "a", &ControlRequest::Status {}).is_ok());
}

#[test]
fn a_name_is_taken_once() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let vm = start(&dirs, "a");
    let e = dirs.claim("a").unwrap_err().to_string();
    let pid = std::process::id();
    assert_eq!(
        e,
        format!("a VM named a is already running (process {pid})")
    );
    assert!(call(&dirs, "a", &ControlRequest::Status {}).is_ok());
    drop(vm);
    assert!(dirs.claim("a").is_ok());
}

#[test]
fn nothing_is_left_behind() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let vm = start(&dirs, "a");
    let path = vm.server.dir().path().to_owned();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    drop(vm);
    assert!(!path.exists());
}

#[test]
fn the_remains_of_a_dead_vm_are_taken_over_and_not_listed() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    drop(dirs.claim("x"));
    let path = tmp.path().join("hypernest/a");
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(path.join("pid"), "1\n").unwrap();
    // A socket that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(path.join("control.sock")).unwrap());
    assert!(list(&dirs).unwrap().is_empty());
    assert!(matches!(
        call(&dirs, "a", &ControlRequest::Status {}),
        Err(ApiError::NoSuchVm { .. })
    ));
    let _vm = start(&dirs, "a");
    assert!(call(&dirs, "a", &ControlRequest::Status {}).is_ok());
}

#[test]
fn the_list_is_of_all_that_run() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    assert!(list(&dirs).unwrap().is_empty());
    let _vms = (start(&dirs, "b"), start(&dirs, "a"));
    let found = list(&dirs).unwrap();
    let names: Vec<_> = found.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(**found[0].status.as_ref().unwrap(), status("a"));
}

#[test]
fn a_vm_that_is_not_there_is_told_with_what_was_meant() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let _vm = start(&dirs, "windows");
    let says = |name: &str| {
        call(&dirs, name, &ControlRequest::Status {})
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        says("widnows"),
        "there is no running VM named \"widnows\"; did you mean windows?"
    );
    assert_eq!(
        says("../x\u{1b}"),
        "there is no running VM named \"../x\\u{1b}\"; windows is running"
    );
}

#[test]
fn a_directory_that_others_can_enter_is_not_used() {
    let tmp = tempfile::tempdir().unwrap();
    let dirs = dirs(&tmp);
    let base = tmp.path().join("hypernest");
    std::fs::create_dir(&base).unwrap();
    std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o755)).unwrap();
    let e = dirs.claim("a").unwrap_err().to_string();
    assert!(e.contains("other users have access"), "{e}");
    assert!(list(&dirs).is_err());
    std::fs::remove_dir(&base).unwrap();
    std::os::unix::fs::symlink("/", &base).unwrap();
    let e = dirs.claim("a").unwrap_err().to_string();
    assert!(e.contains("not a directory"), "{e}");
}

#[test]
fn a_path_too_long_for_a_socket_is_told() {
    let dirs = RunDirs::at(Path::new("/tmp").join("x".repeat(90)));
    let e = dirs.claim("vm").unwrap_err().to_string();
    assert!(e.contains("a socket's can have 107"), "{e}");
}

#[test]
fn a_runtime_directory_that_is_not_there_is_told() {
    let e = RunDirs::at("/nonexistent/hypernest".into())
        .claim("vm")
        .unwrap_err();
    assert!(matches!(e, ApiError::Directory { .. }), "{e}");
}

#[test]
fn the_documented_answer_is_one() {
    let book = include_str!("../../docs/control-socket.md");
    let mut blocks = book.split("```json\n");
    let block = blocks.find(|b| b.starts_with("{\"ok\":")).unwrap();
    let text = block.split("```").next().unwrap();
    let json: serde_json::Value = serde_json::from_str(text).unwrap();
    let read: Status = serde_json::from_value(json["ok"].clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), json["ok"]);
}

#[test]
fn an_unknown_name_is_answered_with_those_that_run() {
    let of = |names: &[&str], meant: Option<&str>| {
        let error = ApiError::NoSuchVm {
            name: "x".to_owned(),
            meant: meant.map(str::to_owned),
            running: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        error.to_string()
    };
    let none = "there is no running VM named \"x\"";
    assert_eq!(of(&[], None), none);
    assert_eq!(of(&["xy"], Some("xy")), format!("{none}; did you mean xy?"));
    assert_eq!(of(&["a"], None), format!("{none}; a is running"));
    assert_eq!(of(&["a", "b"], None), format!("{none}; a, b are running"));
    let many = of(&["a"; 10], None);
    assert!(many.ends_with("a, a and 2 more are running"), "{many}");
}
