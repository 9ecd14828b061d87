use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn forwards_are_as_qemus() {
    for (text, option) in [
        ("tcp::2222-:22", "-t 2222:22"),
        ("tcp:2222-:22", "-t 2222:22"),
        ("::2222-:22", "-t 2222:22"),
        ("tcp:127.0.0.1:2222-:22", "-t 127.0.0.1/2222:22"),
        ("udp:[::1]:53-:5353", "-u ::1/53:5353"),
        ("udp::53-5353", "-u 53:5353"),
    ] {
        let forward = Forward::parse(text).unwrap();
        assert_eq!(forward.option().join(" "), option, "{text}");
    }
    for wrong in [
        "",
        "2222",
        "2222-22",
        "tcp::2222",
        "sctp::1-:2",
        "tcp::0-:22",
        "tcp::2222-:65536",
        "tcp::+1-:22",
        "tcp:localhost:2222-:22",
        "tcp::2222-10.0.2.15:22",
        "tcp::2222-:22 --runas=0",
    ] {
        assert_eq!(Forward::parse(wrong), None, "{wrong}");
    }
}

fn program(dir: &tempfile::TempDir, script: &str) -> PathBuf {
    let path = dir.path().join("passt");
    let mut file = fs::File::create(&path).unwrap();
    // One that redirects to descriptors of any number.
    writeln!(file, "#!/usr/bin/env bash\n{script}").unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o755))
        .unwrap();
    path
}

#[test]
fn the_program_has_the_other_end_and_its_options() {
    let dir = tempfile::tempdir().unwrap();
    let program = program(
        &dir,
        "echo \"$*\" >&$4; read line <&$4; echo \"$line\" >&$4",
    );
    let forwards = vec![Forward::parse("tcp::2222-:22").unwrap()];
    let mut passt = Passt::new(program, forwards);
    let mut stream = passt.connect().unwrap();
    stream.write_all(b"to passt\n").unwrap();
    let mut said = String::new();
    // The end comes with the program's.
    stream.read_to_string(&mut said).unwrap();
    let said = said.replace(" --runas 65534", "");
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words[..3], ["--foreground", "--quiet", "--fd"], "{said}");
    assert!(words[3].parse::<u32>().unwrap() > 2, "{said}");
    assert_eq!(words[4..], ["-t", "2222:22", "to", "passt"], "{said}");
    let why = passt.ended().unwrap();
    assert!(why.contains("has ended (exit status: 0)"), "{why}");
}

#[test]
fn what_it_says_at_its_end_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let program = program(&dir, "echo 'No \x1b[31minterface' >&2; exit 1");
    let mut passt = Passt::new(program, Vec::new());
    let mut stream = passt.connect().unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(
        passt.ended().unwrap(),
        "passt says: No \\u{1b}[31minterface"
    );
}

#[test]
fn one_that_says_more_than_anybody_reads_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let noise = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); \
                 echo 0123456789012345678901234567890123456789 >&2; done 2>/dev/null; echo done >&$4";
    let program = program(&dir, noise);
    let mut passt = Passt::new(program, Vec::new());
    let mut stream = passt.connect().unwrap();
    let mut done = [0; 5];
    stream.read_exact(&mut done).unwrap();
    assert_eq!(&done, b"done\n");
}

#[test]
fn the_last_that_it_says_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let words = "echo first >&2; read line <&$4; i=0; while [ $i -lt 300 ]; do i=$((i+1)); \
                 echo number $i >&2; done; exit 1";
    let mut passt = Passt::new(program(&dir, words), Vec::new());
    let mut stream = passt.connect().unwrap();
    stream.write_all(b"go\n").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    passt.woken();
    let why = passt.ended().unwrap();
    assert!(why.ends_with("number 299; number 300"), "{why}");
    assert!(!why.contains("first") && why.len() < 700, "{why}");
}

#[test]
fn one_that_does_not_end_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let program = program(&dir, "exec sleep 600");
    let mut passt = Passt::new(program, Vec::new());
    let stream = passt.connect().unwrap();
    drop(stream);
    let why = passt.ended().unwrap();
    assert!(why.contains("signal"), "{why}");
}

#[test]
fn a_missing_program_is_named() {
    let mut passt = Passt::new("/nowhere/passt".into(), Vec::new());
    let error = passt.connect().unwrap_err().to_string();
    assert!(error.contains("cannot start /nowhere/passt"), "{error}");
}
