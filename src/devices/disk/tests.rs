use super::super::table::{DeviceType, DeviceValue};
use super::*;

fn faults(values: &[(&'static str, u64)], file: Option<&str>) -> Vec<String> {
    let mut disk = DeviceConfig {
        of: DeviceType::find("virtio-blk").unwrap(),
        id: "disk0".to_owned(),
        slot: 1,
        values: values
            .iter()
            .map(|(key, value)| (*key, DeviceValue::Size(*value)))
            .collect(),
    };
    if let Some(file) = file {
        disk.values
            .insert(FILE_KEY, DeviceValue::Text(file.to_owned()));
    }
    let faults = check(&mut disk, "vm", true);
    faults.into_iter().map(|fault| fault.what).collect()
}

#[test]
fn sizes_of_blocks_are_checked_together() {
    for values in [
        &[][..],
        &[(LOGICAL, 4096)],
        &[(LOGICAL, 2 << 20), (PHYSICAL, 2 << 20), (MIN_IO, 2 << 20)],
        &[(PHYSICAL, 4096), (MIN_IO, 65535 * 512), (OPT_IO, 3 << 20)],
        &[(LOGICAL, 1024), (PHYSICAL, 1024), (GRANULARITY, 3 * 1024)],
    ] {
        let wrong = faults(values, None);
        assert!(wrong.is_empty(), "{values:?}: {wrong:?}");
    }
    for (values, words) in [
        (
            &[(LOGICAL, 0)][..],
            &["logical_block_size=0 is no size"][..],
        ),
        (&[(LOGICAL, 256)], &["logical_block_size=256 is no size"]),
        (&[(LOGICAL, 4 << 20)], &["is no size of a block"]),
        (
            &[(PHYSICAL, 1000)],
            &["physical_block_size=1000 is no size"],
        ),
        (
            &[(LOGICAL, 4096), (PHYSICAL, 512)],
            &["is less than logical_block_size=4096"],
        ),
        (
            &[
                (LOGICAL, 4096),
                (MIN_IO, 512),
                (OPT_IO, 512),
                (GRANULARITY, 4097),
            ],
            &[
                "min_io_size=512 does not go with logical_block_size=4096",
                "opt_io_size=512 does not go",
                "discard_granularity=4097 does not go",
            ],
        ),
        (&[(MIN_IO, 65536 * 512)], &["min_io_size"]),
        (&[(OPT_IO, 1 << 32)], &["opt_io_size"]),
    ] {
        let wrong = faults(values, None);
        assert_eq!(wrong.len(), words.len(), "{wrong:?}");
        for (wrong, words) in wrong.iter().zip(words) {
            assert!(wrong.contains(words), "{wrong}");
        }
    }
}

#[test]
fn an_image_has_whole_blocks() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(3 << 10).unwrap();
    let path = file.path().to_str();
    assert_eq!(faults(&[(LOGICAL, 1024)], path), [""; 0]);
    let wrong = faults(&[(LOGICAL, 4096), (OPT_IO, 1)], path);
    assert_eq!(wrong.len(), 2);
    for words in ["3072 bytes", "no multiple of 4096", "truncate -s %4096"] {
        assert!(wrong[1].contains(words), "{wrong:?}");
    }
}
