//! Devices of the configuration. Most tests use a table with two types that hypernest does not have: what a
//! row brings with it, and what is refused.

use std::path::Path;

use super::*;
use crate::config::build::tests::{HOST, files, with_file, with_flags};
use crate::config::build::{Checked, Files};
use crate::config::{ConfigError, ConfigFile, Endpoint, Flags, VmConfig};
use crate::virtio::rng::Rng;

static TYPES: &[DeviceRow] = &[
    DeviceRow {
        name: "test-disk",
        aliases: &["test-blk-pci"],
        about: "a disk",
        keys: &[
            DeviceKey {
                takes: Takes::Words(&["write-back", "none"]),
                ..DeviceKey::of("cache")
            },
            DeviceKey {
                takes: Takes::Number {
                    what: "number of queues",
                    first: 1,
                    last: 8,
                },
                ..DeviceKey::of("queues")
            },
            DeviceKey {
                takes: Takes::Name,
                local: true,
                ..DeviceKey::of("pool")
            },
        ],
        check: |_, _, _| Vec::new(),
        build: |config, site| site.virtio(config, Box::<Rng>::default()),
        releases_memory: false,
        boot_path: None,
    },
    DeviceRow {
        name: "test-net",
        aliases: &[],
        about: "a card",
        keys: &[DeviceKey {
            takes: Takes::Words(&["slow", "fast"]),
            ..DeviceKey::of("speed")
        }],
        check: |_, _, _| Vec::new(),
        build: |config, site| site.virtio(config, Box::<Rng>::default()),
        releases_memory: false,
        boot_path: None,
    },
];

/// With the types of this file, from the text of a file or, if there are any, from flags.
fn build(text: &str, flags: &[&str]) -> Result<VmConfig, Vec<String>> {
    let dir = files();
    let kernel = dir.path().join("vmlinuz").display().to_string();
    let file = ConfigFile::new(Path::new("vm.toml"), text.to_owned());
    let devices = flags.iter().map(|device| ("device", *device));
    let flags = Flags::from_pairs([("kernel", kernel.as_str())].into_iter().chain(devices));
    let draft = file.draft().overlay(flags.draft());
    let mut build = Build::new(&draft, HOST, Files::MustBeThere);
    build.types = TYPES;
    let built = build.finish().map(|Checked { config, .. }| config);
    built.map_err(|error| match error {
        ConfigError::Invalid(problems) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("{other}"),
    })
}

#[test]
fn a_row_gives_a_type_its_keys_in_flags_files_and_saved_vms() {
    let disk = DeviceConfig {
        of: DeviceType::new(&TYPES[0]),
        id: "root".to_owned(),
        slot: 4,
        values: BTreeMap::from([
            ("cache", DeviceValue::Text("none".to_owned())),
            ("pool", DeviceValue::Text("fast".to_owned())),
            ("queues", DeviceValue::Number(2)),
        ]),
    };
    let flags = [
        "test-blk-pci,pool=fast,cache=none,queues=2,id=root,slot=4",
        "test-net",
    ];
    let config = build("", &flags).unwrap();
    assert_eq!(config.devices[0], disk);
    assert_eq!(
        (&*config.devices[1].id, config.devices[1].slot),
        ("test-net0", 1)
    );
    let file = "[[device]]\nid = 'root'\nslot = 4\ntype = 'test-disk'\ncache = 'none'\nqueues = 2\n\
                pool = 'fast'\n[[device]]\ntype = 'test-net'\n";
    assert_eq!(build(file, &[]).unwrap().devices, config.devices);
    // As `hypernest config` shows it, and as it is saved.
    assert_eq!(
        build(&config.to_toml(), &[]).unwrap().devices,
        config.devices
    );
    assert_eq!(
        build(&config.to_saved(), &[]).unwrap().devices,
        config.devices
    );
    // What is of the host is listed, and removed from a saved VM; the rest stays.
    let pool = Endpoint {
        setting: "device",
        value: "root,pool=fast".to_owned(),
    };
    assert_eq!(config.endpoints(), [pool]);
    let mut disk = disk;
    let removed = disk.remove_local();
    assert_eq!(removed, [("pool", DeviceValue::Text("fast".to_owned()))]);
    assert_eq!(
        disk.values.keys().collect::<Vec<_>>(),
        [&"cache", &"queues"]
    );
}

#[test]
fn what_a_type_does_not_have_is_refused_with_what_it_has() {
    for (device, what, expected) in [
        (
            "test-dsk",
            "did you mean test-disk",
            "test-disk, test-blk-pci or test-net",
        ),
        (
            "nvme",
            "\"nvme\" is unknown",
            "test-disk, test-blk-pci or test-net",
        ),
        (
            "test-disk,cahce=none",
            "did you mean cache",
            "type, id, slot, cache, queues, pool",
        ),
        (
            "test-disk,speed=slow",
            "unknown part \"speed\"",
            "type, id, slot, cache, queues, pool",
        ),
        (
            "test-net,cache=none",
            "unknown part \"cache\"",
            "type, id, slot, speed",
        ),
        (
            "test-net,slto=3",
            "did you mean slot",
            "type, id, slot, speed",
        ),
        ("test-net,speed=fsat", "did you mean fast", "slow or fast"),
        (
            "test-disk,queues=9",
            "\"9\" is out of range",
            "a number of queues from 1 to 8",
        ),
        (
            "test-disk,queues=0x100000001",
            "is out of range",
            "a number of queues from 1 to 8",
        ),
        (
            "test-disk,pool=",
            "\"\" cannot name a device's pool",
            "1 to 64 of",
        ),
        ("test-disk,cache", "cache has no value", "cache=VALUE"),
    ] {
        let problems = build("", &[device]).unwrap_err();
        let right = problems.len() == 1 && problems[0].contains(what);
        assert!(
            right && problems[0].contains(expected),
            "{device}: {problems:#?}"
        );
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let devices = [
        "test-dsk,id=a,slot=3,queues=99,colour=red",
        "test-disk,id=a,slot=3,queues=99,speed=slow",
        "id=b,slot=31",
        "test-net,id=b",
    ];
    let mut devices = devices.to_vec();
    devices.extend(["test-net"; 27]);
    let problems = build("", &devices).unwrap_err();
    let expected = [
        "no more than 30 devices",
        "\"test-dsk\" is unknown (did you mean test-disk?)",
        // Not queues=99: only a type says what its keys take.
        "unknown part \"colour\"",
        "unknown part \"speed\"",
        "\"99\" is out of range",
        "the device has no type",
        "\"31\" is out of range",
        "two devices have the id a",
        "two devices have slot 3",
        "two devices have the id b",
    ];
    let found = problems.iter().zip(expected);
    let right = found
        .clone()
        .all(|(problem, expected)| problem.contains(expected));
    assert!(right && problems.len() == expected.len(), "{problems:#?}");

    let problems = build("[[device]]\ntyp = 'test-net'\n", &[]).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].contains("unknown part \"typ\" (did you mean type?)"));

    let file = "[[device]]\ntype = 'test-net'\nslot = 1\n[[device]]\ntype = 'test-net'\nslot = 1\n\
                sped = 'fast'\n";
    let problems = build(file, &[]).unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems[0].starts_with("vm.toml:4:1: device: two devices have slot 1"));
    assert!(
        problems[1].starts_with("vm.toml:7:1: device: unknown part \"sped\" (did you mean speed?)")
    );
}

#[test]
fn devices_get_what_is_not_said() {
    let device = |id: &str, slot| DeviceConfig {
        of: DeviceType::find("virtio-rng").unwrap(),
        id: id.to_owned(),
        slot,
        values: BTreeMap::new(),
    };
    assert_eq!(with_file("").unwrap().devices, []);
    let flags = with_flags(&[
        ("device", "virtio-rng"),
        ("device", "virtio-rng-pci,slot=1"),
        ("device", "virtio-rng,id=virtio-rng0"),
        ("device", "virtio-rng,slot=0x1e,id=last"),
    ]);
    assert_eq!(
        flags.unwrap().devices,
        [
            device("virtio-rng1", 2),
            device("virtio-rng2", 1),
            device("virtio-rng0", 3),
            device("last", 30)
        ]
    );
    let file = "kernel = 'vmlinuz'\n[[device]]\ntype = 'virtio-rng'\n[[device]]\n\
                type = 'virtio-rng-pci'\nslot = 7\nid = 'seven'\n";
    let config = with_file(file).unwrap();
    assert_eq!(
        config.devices,
        [device("virtio-rng0", 1), device("seven", 7)]
    );
    assert_eq!(VmConfig::from_saved(config.to_saved()).unwrap(), config);
    let none = with_file("").unwrap();
    assert!(
        !none.to_saved().contains("device"),
        "as of earlier versions"
    );
}

#[test]
fn devices_that_cannot_be() {
    for (devices, problem) in [
        (&["virtio-rgn"][..], "did you mean virtio-rng"),
        (&["nvme"], "virtio-rng"),
        (&["slot=3"], "the device has no type"),
        (
            &["virtio-rng,slto=3"],
            "unknown part \"slto\" (did you mean slot?)",
        ),
        (&["virtio-rng,3"], "\"3\" has no name"),
        (&["virtio-rng,slot=3,slot=4"], "slot is given twice"),
        (&["virtio-rng,slot=0"], "\"0\" is out of range"),
        (&["virtio-rng,slot=31"], "expected a slot from 1 to 30"),
        (&["virtio-rng,id="], "\"\" cannot name a device"),
        (
            &["virtio-rng,id"],
            "id has no value\n      expected a value after it, as in id=VALUE",
        ),
        (&["virtio-rng,"], "is empty: remove the comma"),
        (
            &["virtio-rng,addr=0x5"],
            "unknown part \"addr\" (did you mean slot?)",
        ),
        (
            &["virtio-rng,id=a", "virtio-rng,id=a"],
            "two devices have the id a: virtio-rng (device 1) and virtio-rng (device 2)",
        ),
        (
            &["virtio-rng,slot=3,id=a", "virtio-rng,slot=3"],
            "two devices have slot 3: a and virtio-rng (device 2)",
        ),
        (
            &["typ=virtio-rng"],
            "unknown part \"typ\" (did you mean type?)",
        ),
        (&["virtio-rng"; 31], "no more than 30 devices"),
    ] {
        let flags: Vec<_> = devices.iter().map(|device| ("device", *device)).collect();
        let problems = with_flags(&flags).unwrap_err();
        assert!(
            problems.len() == 1 && problems[0].contains(problem),
            "{devices:?}: {problems:#?}"
        );
    }
    assert_eq!(
        with_flags(&[("device", "virtio-rng"); 30])
            .unwrap()
            .devices
            .len(),
        30
    );
}

#[test]
fn two_disks_cannot_write_to_one_image() {
    let dir = files();
    let link = dir.path().join("link.raw");
    std::os::unix::fs::symlink("disk.raw", &link).unwrap();
    let disk = |name: &str, more: &str| format!("{}{more}", dir.path().join(name).display());
    for (disks, works) in [
        ([disk("disk.raw", ""), disk("link.raw", "")], false),
        ([disk("disk.raw", ",readonly"), disk("link.raw", "")], false),
        (
            [
                disk("disk.raw", ",readonly"),
                disk("link.raw", ",readonly=on"),
            ],
            true,
        ),
        ([disk("disk.raw", ""), disk("initrd.img", "")], true),
    ] {
        let flags = disks.each_ref().map(|disk| ("disk", disk.as_str()));
        let built = with_flags(&flags);
        assert_eq!(built.is_ok(), works, "{disks:?}: {built:?}");
        if let Err(problems) = built {
            assert!(
                problems[0].contains("two disks have the image"),
                "{problems:?}"
            );
        }
    }
}
