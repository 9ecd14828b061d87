use std::collections::BTreeMap;

use super::super::table::DeviceType;
use super::*;

fn card(values: &[(&'static str, &str)]) -> DeviceConfig {
    let of = DeviceType::find("virtio-net").unwrap();
    let values = values.iter().map(|&(key, value)| {
        let key_of = VIRTIO_NET_KEYS.iter().find(|k| k.name == key).unwrap();
        let value = match key_of.takes {
            Takes::Number { .. } => DeviceValue::Number(value.parse().unwrap()),
            Takes::Switch => DeviceValue::Switch(value == "on"),
            _ => DeviceValue::Text(value.to_owned()),
        };
        (key, value)
    });
    DeviceConfig {
        of,
        id: "net0".to_owned(),
        slot: 1,
        values: values.collect::<BTreeMap<_, _>>(),
    }
}

fn faults(values: &[(&'static str, &str)]) -> Vec<String> {
    let faults = check(&mut card(values), "vm", false);
    faults.into_iter().map(|fault| fault.what).collect()
}

#[test]
fn what_is_not_given_depends_on_the_rest() {
    for (values, expected) in [
        (&[][..], ["net0", "false", "1"]),
        (&[("net", "tap")], ["net0", "true", "1"]),
        (&[("net", "tap"), ("fd", "3:4")], ["net0", "true", "2"]),
        (
            &[("net", "tap"), ("offload", "off")],
            ["net0", "false", "1"],
        ),
        (&[("net", "user"), ("queues", "1")], ["net0", "false", "1"]),
    ] {
        let mut card = card(values);
        assert_eq!(check(&mut card, "vm", false), []);
        let shown = [
            card.id.clone(),
            card.values[OFFLOAD].to_string(),
            card.values[QUEUES].to_string(),
        ];
        assert_eq!(shown, expected, "{values:?}");
        assert_eq!(
            card.text(MAC).and_then(parse_mac),
            Some(mac_of("vm", "net0"))
        );
        // What was set stays, whatever the network is then: the guest has seen it.
        let before = card.clone();
        card.remove_local();
        assert_eq!(check(&mut card, "other", false), []);
        assert_eq!(card.values[OFFLOAD], before.values[OFFLOAD]);
        assert_eq!(card.values[MAC], before.values[MAC]);
        assert_eq!(card.values[QUEUES], before.values[QUEUES]);
    }
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    for (values, problem) in [
        (
            &[("net", "user"), ("ifname", "tap0")][..],
            "ifname is of net=tap",
        ),
        (
            &[("hostfwd", "tcp::1-:2")],
            "hostfwd is of net=user, and this is none",
        ),
        (
            &[("net", "tap"), ("fd", "3"), ("ifname", "tap0")],
            "both fd and ifname",
        ),
        (&[("net", "stream")], "has no socket"),
        (
            &[("net", "stream"), ("fd", "3"), ("path", "/x")],
            "both fd and path",
        ),
        (&[("net", "stream"), ("fd", "3:4")], "one pair of queues"),
        (
            &[("net", "stream"), ("path", "/x"), ("queues", "2")],
            "one pair of queues",
        ),
        (
            &[("net", "user"), ("offload", "on")],
            "net=user has no offload",
        ),
        (
            &[("net", "user"), ("hostfwd", "tcp::1-:2 22")],
            "\"22\" forwards no port",
        ),
        (
            &[("mac", "01:00:00:00:00:00")],
            "cannot be a card's hardware address",
        ),
        (&[("net", "tap"), ("fd", "3:")], "names no descriptors"),
        (&[("net", "tap"), ("fd", "-3")], "names no descriptors"),
        (
            &[("net", "tap"), ("fd", "3:4"), ("queues", "3")],
            "2 descriptors for 3",
        ),
        (
            &[
                ("net", "tap"),
                ("fd", "1:2:3:4:5:6:7:8:9:10:11:12:13:14:15:16:17"),
            ],
            "17 descriptors",
        ),
    ] {
        let faults = faults(values);
        assert!(
            faults.len() == 1 && faults[0].contains(problem),
            "{values:?}: {faults:?}"
        );
    }
    assert_eq!(faults(&[("net", "stream"), ("fd", "3")]), [""; 0]);
    assert_eq!(
        faults(&[("net", "stream"), ("path", "/x"), ("server", "on")]),
        [""; 0]
    );
}
