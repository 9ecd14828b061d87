//! The outputs of a result: files, the page, the plot, the table. The results are those of synthetic streams.

use serde_json::Value;

use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use super::analyse::analyse;
use super::analyse::tests::{World, fine};
use super::model::{Guest, GuestKind, Report, VERSION, Way};
use super::{page, plot, read, table, write};
use crate::report::{Environment, matches_schema};

const SCHEMA: &str = include_str!("../../schema/tsc.schema.json");

fn report(world: &World) -> Report {
    let (record, doings) = world.record();
    let meaning = analyse(&record, &doings).unwrap();
    Report {
        version: VERSION,
        made_by: "hypernest-bench test".into(),
        command_line: vec!["hypernest-bench".into(), "tsc".into()],
        started: "2026-01-02T03:04:05Z".into(),
        environment: Environment {
            cpu_model: "A CPU".into(),
            kernel: "6.12".into(),
            ..Environment::default()
        },
        guest: Guest {
            kind: GuestKind::Micro,
            vcpus: world.vcpus,
            tsc_khz: meaning.tsc_khz,
            moved_by: (world.moves > 0).then_some(Way::Save),
            reenlightenment: meaning.reenlightenment,
        },
        warnings: meaning.warnings,
        bounds: meaning.bounds,
        failures: meaning.failures,
        clocks: meaning.clocks,
        moves: meaning.moves,
        segments: meaning.segments,
        offsets: meaning.offsets,
    }
}

fn moved() -> Report {
    report(&World {
        moves: 2,
        reenlighten: Some((3_000_000.0, 400_000_000)),
        ..fine()
    })
}

#[test]
fn results_are_what_the_schema_says() {
    let backward = report(&World {
        vcpus: 2,
        behind: 20_000_000,
        ..fine()
    });
    for report in [moved(), report(&fine()), backward] {
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(matches_schema(SCHEMA, &value), Ok(()));
        assert_eq!(serde_json::from_value::<Report>(value).unwrap(), report);
    }
    for (place, name, new) in [
        ("", "version", Some(Value::from(2))),
        ("", "more", Some(Value::from(1))),
        ("/guest", "kind", Some("windows".into())),
        (
            "/clocks/0/measured",
            "backward_steps",
            Some(Value::from(-1)),
        ),
        ("/moves/0", "sequence", None),
        (
            "/moves/0/acknowledged",
            "status",
            Some(vec![1, 2, 3].into()),
        ),
        ("/segments/0/drift/tsc", "about_ppm", None),
        ("/offsets/0", "clock", Some("sundial".into())),
    ] {
        let mut value = serde_json::to_value(moved()).unwrap();
        let object = value.pointer_mut(place).and_then(Value::as_object_mut);
        let object = object.unwrap_or_else(|| panic!("no {place}"));
        match new {
            Some(new) => object.insert(name.to_owned(), new),
            None => object.remove(name),
        };
        assert!(matches_schema(SCHEMA, &value).is_err(), "{place}/{name}");
    }
}

#[test]
fn files_hold_everything_and_can_be_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let report = moved();
    let written = write(&report, directory.path()).unwrap();
    let names: Vec<_> = written
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(names, ["tsc.json", "tsc.hlog", "tsc.html", "tsc.svg"]);
    // serde_json may change the last bit of a number.
    assert_eq!(table(&read(&written[0]).unwrap()), table(&report));
    let log = std::fs::read(&written[1]).unwrap();
    let tags: Vec<_> = IntervalLogIterator::new(&log)
        .filter_map(|entry| match entry.unwrap() {
            LogEntry::Interval(interval) => Some(interval.tag().unwrap().as_str().to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(tags, ["tsc.quiet-gap", "reference-page.quiet-gap"]);
    for path in &written[1..] {
        assert!(!super::is_ours(path));
    }
    assert!(super::is_ours(&written[0]));
}

#[test]
fn the_table_says_what_happened() {
    let text = table(&moved());
    for part in [
        "guest: micro, vCPUs: 1, TSC at 2400000 kHz, 2 moves by save, it requested notification",
        "reference-counter  not offered",
        "acknowledgement 1",
        "1 to 2",
        "No clock stepped back, was more than 10 ms off after a move or a step, or drifted by more than 500 \
         ppm",
        "Checked: tsc, reference-page: the guest had no reference-counter.",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let text = table(&report(&World {
        step: Some((hypernest_nested::tsc::Clock::Tsc, 300_000_000, 7_000_000)),
        ..fine()
    }));
    assert!(text.contains("FAILED: tsc stepped back"), "{text}");
    assert!(!text.contains("No clock stepped back"));
}

#[test]
fn the_verdict_says_which_clocks_it_covers() {
    let verdict = |kind, clocks: &[&str]| {
        let mut report = moved();
        report.guest.kind = kind;
        let figures = report.clocks[0].measured.clone();
        for clock in &mut report.clocks {
            let offered = clocks.contains(&clock.clock.as_str());
            clock.measured = figures.clone().filter(|_| offered);
        }
        (table(&report), page::page(&report))
    };
    for (kind, clocks, wanted) in [
        (
            GuestKind::Micro,
            &["tsc"][..],
            "Only the TSC was checked: the guest had no reference-page and no reference-counter.",
        ),
        (
            GuestKind::Micro,
            &["tsc", "reference-page", "reference-counter"],
            "Checked: tsc, reference-page, reference-counter.",
        ),
        (
            GuestKind::Linux,
            &["tsc", "monotonic", "monotonic-raw"],
            "Checked: tsc, monotonic, monotonic-raw.",
        ),
    ] {
        let (text, page) = verdict(kind, clocks);
        assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
        assert!(page.contains(wanted), "{wanted:?} is not in\n{page}");
    }
}

#[test]
fn moves_and_acknowledgements_are_marked_in_the_plot() {
    let svg = plot::plot(&moved()).unwrap();
    for part in [
        "<title>move 1</title>",
        "<title>move 2</title>",
        "acknowledgement after move 1",
        "<title>tsc</title>",
    ] {
        assert!(svg.contains(part), "{part:?} is not in\n{svg}");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
    let nothing = Report {
        offsets: Vec::new(),
        ..moved()
    };
    assert_eq!(plot::plot(&nothing), None);
    assert!(!page::page(&nothing).contains("<figure"));
}

#[test]
fn hostile_text_stays_text() {
    let hostile = "</text><script>alert(1)</script><img src=x onerror='alert(2)'>\u{0}\"&\u{202e}";
    let mut report = moved();
    report.environment.cpu_model = hostile.into();
    report.warnings = vec![hostile.into()];
    report.failures = vec![hostile.into()];
    report.made_by = hostile.into();
    report.command_line = vec![hostile.into()];
    for clock in &mut report.clocks {
        clock.clock = hostile.into();
    }
    for series in &mut report.offsets {
        series.clock = hostile.into();
        series.points.push((f64::NAN, f64::INFINITY));
    }
    let page = page::page(&report);
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains('\0'));
    assert!(!table(&report).contains(['\0', '\u{202e}']));
    let directory = tempfile::tempdir().unwrap();
    write(&report, directory.path()).unwrap();
}

#[test]
fn what_was_captured_by_hand_is_understood() {
    let directory = tempfile::tempdir().unwrap();
    let world = World {
        moves: 1,
        reenlighten: Some((3_000_000.0, 400_000_000)),
        ..fine()
    };
    let files: Vec<_> = (0..2)
        .map(|run| directory.path().join(run.to_string()))
        .collect();
    for (file, bytes) in files.iter().zip(world.streams()) {
        std::fs::write(file, bytes).unwrap();
    }
    let measured = super::by_hand::captured(&files, None).unwrap();
    let meaning = analyse(&measured.record, &measured.doings).unwrap();
    let of_move = &meaning.moves[0];
    assert!((of_move.clocks["reference-page"].gap_ms - 130.5).abs() < 0.01);
    assert_eq!(of_move.acknowledged.unwrap().frequency_khz[1], 3_000_000.0);
    assert_eq!((of_move.downtime_ms, meaning.failures.len()), (None, 0));
    let missing = directory.path().join("missing");
    assert!(super::by_hand::captured(&[missing], None).is_err());
}

#[test]
fn a_guest_that_is_moved_by_hand_is_explained() {
    use crate::usage::Line;
    use clap::Parser as _;
    let directory = tempfile::tempdir().unwrap();
    let args =
        Line::<super::Args>::parse_from(["tsc", "--vcpus", "2", "--ack-after-us", "4000"]).args;
    let text = super::by_hand::commands(&args, directory.path()).unwrap();
    assert!(
        text.contains("--cpus 2") && text.contains("ack-after=10000000"),
        "{text}"
    );
    assert!(
        std::fs::metadata(directory.path().join("guest"))
            .unwrap()
            .len()
            > 10_000
    );
}
