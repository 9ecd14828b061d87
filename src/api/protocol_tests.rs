//! The exact lines of all requests and replies: clients of other versions and languages rely on them.

use std::os::unix::ffi::OsStringExt;

use super::protocol::{MAX_REQUEST, REQUESTS};
use super::*;
use crate::block::DiskReport;
use crate::bus::DeviceReport;
use crate::life::Request;
use crate::machine::{
    AfterSave, Crash, DeviceStatus, Migrate, RamStatus, State, Status, TscStatus,
};
use crate::migration::MigrationReport;
use crate::migration::phase::SourcePhase;

fn save(then: AfterSave) -> ControlRequest {
    ControlRequest::Save(Save {
        dir: "/var/vm".into(),
        then,
    })
}

fn migrate() -> Migrate {
    Migrate {
        to: "tcp:host:4444".to_owned(),
        downtime_ms: 300,
        bandwidth: None,
        connections: 1,
        zstd: false,
        tls_cert: None,
        tls_key: None,
        tls_ca: None,
        plaintext: false,
    }
}

/// Each request with the line that the client sends.
fn requests() -> Vec<(ControlRequest, &'static str)> {
    let all_arguments = Migrate {
        to: "unix:/tmp/s".to_owned(),
        downtime_ms: 50,
        bandwidth: Some(1 << 20),
        connections: 4,
        zstd: true,
        tls_cert: Some("/c".into()),
        tls_key: Some("/k".into()),
        tls_ca: Some("/a".into()),
        plaintext: true,
    };
    vec![
        (ControlRequest::Status {}, r#"{"command":"status"}"#),
        (ControlRequest::Pause {}, r#"{"command":"pause"}"#),
        (ControlRequest::Resume {}, r#"{"command":"resume"}"#),
        (ControlRequest::Reset {}, r#"{"command":"reset"}"#),
        (
            ControlRequest::PowerButton {},
            r#"{"command":"power-button"}"#,
        ),
        (ControlRequest::Kill {}, r#"{"command":"kill"}"#),
        (
            save(AfterSave::AsBefore),
            r#"{"command":"save","dir":"/var/vm","then":"as-before"}"#,
        ),
        (
            save(AfterSave::Run),
            r#"{"command":"save","dir":"/var/vm","then":"run"}"#,
        ),
        (
            save(AfterSave::Pause),
            r#"{"command":"save","dir":"/var/vm","then":"pause"}"#,
        ),
        (
            save(AfterSave::Stop),
            r#"{"command":"save","dir":"/var/vm","then":"stop"}"#,
        ),
        (
            ControlRequest::Migrate(Box::new(migrate())),
            "{\"bandwidth\":null,\"command\":\"migrate\",\"connections\":1,\"downtime_ms\":300,\
             \"plaintext\":false,\"tls_ca\":null,\"tls_cert\":null,\"tls_key\":null,\
             \"to\":\"tcp:host:4444\",\"zstd\":false}",
        ),
        (
            ControlRequest::Migrate(Box::new(all_arguments)),
            "{\"bandwidth\":1048576,\"command\":\"migrate\",\"connections\":4,\"downtime_ms\":50,\
             \"plaintext\":true,\"tls_ca\":\"/a\",\"tls_cert\":\"/c\",\"tls_key\":\"/k\",\
             \"to\":\"unix:/tmp/s\",\"zstd\":true}",
        ),
        (
            ControlRequest::CancelMigration {},
            r#"{"command":"cancel-migration"}"#,
        ),
        (
            ControlRequest::DiskResize(DiskResize {
                id: "data".to_owned(),
                size: Some(1 << 30),
                shrink: true,
            }),
            r#"{"command":"disk-resize","id":"data","shrink":true,"size":1073741824}"#,
        ),
        (
            ControlRequest::DiskThrottle(DiskThrottle {
                id: "data".to_owned(),
                iops: Some(20),
                bps: Some(0),
            }),
            r#"{"bps":0,"command":"disk-throttle","id":"data","iops":20}"#,
        ),
        (
            ControlRequest::NetLink(NetLink {
                id: "lan".to_owned(),
                up: false,
            }),
            r#"{"command":"net-link","id":"lan","up":false}"#,
        ),
        (
            ControlRequest::Balloon(Balloon {
                id: "virtio-balloon0".to_owned(),
                size: 1 << 30,
            }),
            r#"{"command":"balloon","id":"virtio-balloon0","size":1073741824}"#,
        ),
    ]
}

#[test]
fn each_request_has_its_line() {
    for (request, line) in requests() {
        assert_eq!(request.write().unwrap(), format!("{line}\n"));
        assert_eq!(ControlRequest::read(line.as_bytes()), Ok(request));
    }
}

#[test]
fn optional_arguments_have_defaults() {
    for (line, request) in [
        (
            r#"{"command":"save","dir":"/var/vm"}"#,
            save(AfterSave::AsBefore),
        ),
        (
            r#"{"command":"migrate","to":"tcp:host:4444"}"#,
            ControlRequest::Migrate(Box::new(migrate())),
        ),
        (
            r#"{"command":"disk-resize","id":"data"}"#,
            ControlRequest::DiskResize(DiskResize {
                id: "data".to_owned(),
                size: None,
                shrink: false,
            }),
        ),
        (
            r#"{"command":"disk-throttle","id":"data"}"#,
            ControlRequest::DiskThrottle(DiskThrottle {
                id: "data".to_owned(),
                iops: None,
                bps: None,
            }),
        ),
    ] {
        assert_eq!(ControlRequest::read(line.as_bytes()), Ok(request));
    }
}

#[test]
fn the_named_requests_and_arguments_are_those_of_the_types() {
    let mut seen = Vec::new();
    for (request, _) in requests() {
        let json = serde_json::to_value(&request).unwrap();
        let fields = json.as_object().unwrap();
        let command = fields["command"].as_str().unwrap();
        let (name, arguments) = REQUESTS.iter().find(|(name, _)| *name == command).unwrap();
        let mut arguments: Vec<_> = arguments.to_vec();
        arguments.push("command");
        arguments.sort_unstable();
        assert_eq!(fields.keys().collect::<Vec<_>>(), arguments, "{name}");
        seen.push(*name);
    }
    for (name, _) in REQUESTS {
        assert!(seen.contains(&name), "{name}");
    }
}

#[test]
fn each_change_of_the_life_cycle_is_a_request() {
    for (request, name) in [
        (Request::Pause, "pause"),
        (Request::Resume, "resume"),
        (Request::Reset, "reset"),
        (Request::PowerButton, "power-button"),
        (Request::Kill, "kill"),
    ] {
        let line = format!("{{\"command\":\"{name}\"}}");
        assert_eq!(
            ControlRequest::read(line.as_bytes()),
            Ok(ControlRequest::from(request))
        );
    }
}

#[test]
fn a_refused_request_is_explained() {
    let example = r#"a request is a line like {"command":"status"}"#;
    let commands = "the commands are status, pause, resume, reset, power-button, kill, save, migrate, \
                    cancel-migration, disk-resize, disk-throttle, net-link, balloon";
    let migrate_arguments = "the arguments of migrate are to, downtime_ms, bandwidth, connections, zstd, \
                             tls_cert, tls_key, tls_ca, plaintext";
    for (line, begins, ends) in [
        ("", "not a request: EOF while parsing a value", example),
        ("7", "not a request: invalid type: integer", example),
        (
            r#"["status"]"#,
            "not a request: invalid type: sequence",
            example,
        ),
        ("{}", "not a request: missing field `command`", example),
        (
            r#"{"command":7}"#,
            "not a request: invalid type: integer `7`",
            example,
        ),
        (
            r#"{"command":"status","command":"kill"}"#,
            "not a request: duplicate field `command`",
            example,
        ),
        (
            r#"{"command":"status"} {"command":"kill"}"#,
            "not a request: trailing characters",
            example,
        ),
        (r#"{"command":"shutdown"}"#, "unknown command", commands),
        (
            r#"{"command":"Power_Buton"}"#,
            "unknown command",
            "did you mean \"power-button\"?",
        ),
        (
            r#"{"command":"kill","force":true}"#,
            "not a request: unknown field `force`",
            "kill has no arguments",
        ),
        (
            r#"{"command":"save","dri":"/x"}"#,
            "not a request: unknown field `dri`",
            "did you mean \"dir\"?",
        ),
        (
            r#"{"command":"save"}"#,
            "not a request: missing field `dir`",
            "the arguments of save are dir, then",
        ),
        (
            r#"{"command":"save","dir":"/x","then":"sotp"}"#,
            "not a request: unknown variant `sotp`, expected one of `as-before`, `run`, `pause`, `stop`",
            "the arguments of save are dir, then",
        ),
        (
            r#"{"command":"migrate","to":"tcp:h:1","tls-cert":"/c"}"#,
            "not a request: unknown field `tls-cert`",
            "did you mean \"tls_cert\"?",
        ),
        (
            r#"{"command":"migrate","to":"tcp:h:1","quality":1}"#,
            "not a request: unknown field `quality`",
            migrate_arguments,
        ),
    ] {
        let why = ControlRequest::read(line.as_bytes()).unwrap_err();
        assert!(why.starts_with(begins), "{line}: {why}");
        assert!(why.ends_with(ends), "{line}: {why}");
    }
}

#[test]
fn hostile_requests_are_refused_with_bounded_work() {
    let deep = format!(
        "{{\"command\":\"save\",\"dir\":{}",
        "[".repeat(MAX_REQUEST - 30)
    );
    let long_name = format!("{{\"command\":\"{}\"}}", "s".repeat(MAX_REQUEST - 20));
    let keys: Vec<_> = (0..400).map(|i| format!("\"k{i}\":0")).collect();
    let many_keys = format!("{{\"command\":\"save\",{}}}", keys.join(","));
    let long_key = format!(
        "{{\"command\":\"save\",\"{}\":0}}",
        "d".repeat(MAX_REQUEST - 30)
    );
    for line in [deep, long_name, many_keys, long_key] {
        assert!(line.len() <= MAX_REQUEST);
        let why = ControlRequest::read(line.as_bytes()).unwrap_err();
        assert!(why.len() <= MAX_REQUEST + 256, "{}", why.len());
    }
}

#[test]
fn a_path_without_a_json_form_is_an_error_of_the_client() {
    let dir = std::ffi::OsString::from_vec(b"/\xff".to_vec()).into();
    let request = ControlRequest::Save(Save {
        dir,
        then: AfterSave::Run,
    });
    let e = request.write().unwrap_err().to_string();
    assert!(e.contains("invalid UTF-8"), "{e}");
}

fn status() -> Status {
    Status {
        name: "vm".to_owned(),
        pid: 7,
        version: "1.2.3".to_owned(),
        state: State::Running,
        uptime_ms: 65_000,
        resets: 1,
        vcpus: 2,
        memory: 1 << 30,
        hv: Vec::new(),
        tsc: TscStatus::default(),
        crash: None,
        ptys: std::collections::BTreeMap::new(),
        migration: None,
        ram: None,
        devices: Vec::new(),
    }
}

#[test]
fn each_reply_has_its_line() {
    let full = Status {
        state: State::Crashed,
        hv: vec!["hv-relaxed".to_owned(), "hv-time".to_owned()],
        tsc: TscStatus {
            khz: Some(2_900_000),
            host_khz: Some(3_000_000),
            emulating: true,
            changes: 1,
        },
        crash: Some(Crash {
            by: "hyper-v".to_owned(),
            params: Some([1, 2, 3, 4, u64::MAX]),
            message: Some("a\n\"b\"".to_owned()),
        }),
        ptys: [("serial".to_owned(), "/dev/pts/3".to_owned())].into(),
        migration: Some(MigrationReport {
            to: "tcp:h:1".to_owned(),
            phase: Some(SourcePhase::HandingOver),
            rounds: 1,
            ram: 2,
            sent: 3,
            remaining: 4,
            rate: 5,
            dirty_rate: 6,
            throttle: 7,
            elapsed_ms: 8,
            estimate_ms: Some(9),
            downtime_ms: None,
            error: Some("e".to_owned()),
        }),
        ram: Some(RamStatus {
            backing: "anonymous".to_owned(),
            resident: 10,
            huge: 11,
            swapped: 12,
            locked: 13,
        }),
        devices: vec![
            DeviceStatus {
                id: "data".to_owned(),
                of: "virtio-blk".to_owned(),
                slot: 3,
                report: DeviceReport {
                    disk: Some(DiskReport {
                        size: 512,
                        ..DiskReport::default()
                    }),
                    ..DeviceReport::default()
                },
            },
            DeviceStatus {
                id: "virtio-rng0".to_owned(),
                of: "virtio-rng".to_owned(),
                slot: 4,
                report: DeviceReport::default(),
            },
        ],
        ..status()
    };
    for (reply, line) in [
        (ControlReply::Ok(None), r#"{"ok":null}"#),
        (
            ControlReply::Error("a \"b\"".to_owned()),
            r#"{"error":"a \"b\""}"#,
        ),
        (
            ControlReply::Ok(Some(Box::new(status()))),
            "{\"ok\":{\"name\":\"vm\",\"pid\":7,\"version\":\"1.2.3\",\"state\":\"running\",\
             \"uptime_ms\":65000,\"resets\":1,\"vcpus\":2,\"memory\":1073741824,\"hv\":[],\
             \"tsc\":{\"khz\":null,\"host_khz\":null,\"emulating\":false,\"changes\":0},\
             \"crash\":null,\"ptys\":{}}}",
        ),
        (
            ControlReply::Ok(Some(Box::new(full))),
            "{\"ok\":{\"name\":\"vm\",\"pid\":7,\"version\":\"1.2.3\",\"state\":\"crashed\",\
             \"uptime_ms\":65000,\"resets\":1,\"vcpus\":2,\"memory\":1073741824,\
             \"hv\":[\"hv-relaxed\",\"hv-time\"],\
             \"tsc\":{\"khz\":2900000,\"host_khz\":3000000,\"emulating\":true,\"changes\":1},\
             \"crash\":{\"by\":\"hyper-v\",\"params\":[1,2,3,4,18446744073709551615],\
             \"message\":\"a\\n\\\"b\\\"\"},\"ptys\":{\"serial\":\"/dev/pts/3\"},\
             \"migration\":{\"to\":\"tcp:h:1\",\"phase\":\"handing-over\",\"rounds\":1,\"ram\":2,\
             \"sent\":3,\"remaining\":4,\"rate\":5,\"dirty_rate\":6,\"throttle\":7,\"elapsed_ms\":8,\
             \"estimate_ms\":9,\"downtime_ms\":null,\"error\":\"e\"},\
             \"ram\":{\"backing\":\"anonymous\",\"resident\":10,\"huge\":11,\"swapped\":12,\"locked\":13},\
             \"devices\":[{\"id\":\"data\",\"type\":\"virtio-blk\",\"slot\":3,\"disk\":{\"size\":512,\
             \"rd_bytes\":0,\"rd_operations\":0,\"rd_total_time_ns\":0,\
             \"wr_bytes\":0,\"wr_operations\":0,\"wr_total_time_ns\":0,\
             \"flush_operations\":0,\"flush_total_time_ns\":0,\
             \"unmap_bytes\":0,\"unmap_operations\":0,\"zero_bytes\":0,\"zero_operations\":0,\
             \"failed_rd_operations\":0,\"failed_wr_operations\":0,\"failed_flush_operations\":0,\
             \"failed_unmap_operations\":0,\"failed_zero_operations\":0,\"invalid_operations\":0,\
             \"in_flight\":0,\"paused\":false,\"throttle\":{\"iops\":0,\"bps\":0,\"held\":0}}},\
             {\"id\":\"virtio-rng0\",\"type\":\"virtio-rng\",\"slot\":4}]}}",
        ),
    ] {
        assert_eq!(
            String::from_utf8(reply.write()).unwrap(),
            format!("{line}\n")
        );
        assert_eq!(ControlReply::read(line.as_bytes()).unwrap(), reply);
    }
    for state in [State::Running, State::Paused, State::Crashed] {
        let reply = ControlReply::Ok(Some(Box::new(Status { state, ..status() })));
        let line = String::from_utf8(reply.write()).unwrap();
        assert!(line.contains(&format!("\"state\":\"{}\"", state.name())));
    }
    for line in [
        "",
        "{}",
        "null",
        r#"{"ok":null,"error":"x"}"#,
        r#"{"done":1}"#,
        "[]",
    ] {
        assert!(ControlReply::read(line.as_bytes()).is_err(), "{line}");
    }
}
