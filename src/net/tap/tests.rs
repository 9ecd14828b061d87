use super::*;

fn refused(errno: i32, interface: &str, pairs: u16) -> String {
    not_attached(interface, pairs, &io::Error::from_raw_os_error(errno)).to_string()
}

#[test]
fn a_refusal_says_what_to_do() {
    for (text, parts) in [
        (
            refused(libc::EPERM, "tap7", 1),
            &[
                "cannot use the tap interface tap7",
                "ip tuntap add tap7 mode tap user",
                "CAP_NET_ADMIN",
                "net=user",
            ][..],
        ),
        (
            refused(libc::EPERM, "", 4),
            &["cannot make a tap", "add tap0 mode tap multi_queue user"],
        ),
        (
            refused(libc::EBUSY, "tap7", 1),
            &["another program uses it"],
        ),
        (
            refused(libc::EINVAL, "tap7", 1),
            &["made with `multi_queue`", "queues=1 does not need"],
        ),
        (
            refused(libc::EINVAL, "tap7", 4),
            &["made without `multi_queue`", "queues=4 does need"],
        ),
    ] {
        for part in parts {
            assert!(text.contains(part), "{text}");
        }
    }
    let text = no_device(&io::ErrorKind::NotFound.into()).to_string();
    assert!(text.contains("modprobe tun"), "{text}");
}

#[test]
fn a_descriptor_of_something_else_is_refused() {
    let null = File::open("/dev/null").unwrap();
    let source = TapSource::Given(vec![null.into()]);
    let mut tap = Tap::new("net0", source, 1).unwrap();
    let error = tap.acquire().unwrap_err().to_string();
    assert!(error.contains("no queue of a tap interface"), "{error}");
    assert!(!tap.link());
    assert_eq!(tap.receive(0, &mut [0; 64]), None);
}

#[test]
fn offloads_are_as_the_kernel_takes_them() {
    let all = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };
    assert_eq!(flags(all), 0xf);
    for (offloads, expected) in [
        (Offloads::default(), 0),
        (
            Offloads {
                checksum: false,
                ..all
            },
            0,
        ),
        (Offloads { tso4: false, ..all }, 0xd),
        (
            Offloads {
                tso4: false,
                tso6: false,
                ..all
            },
            1,
        ),
    ] {
        assert_eq!(flags(offloads), expected, "{offloads:?}");
    }
}
