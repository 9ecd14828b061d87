//! Files that `cargo lab exec --fetch` copies out of an emulated host after its command has ended.
//!
//! The host sends one gzip-compressed cpio archive over the control line. The entries of request N are `N` (a
//! file or a directory) and what is below `N/`. Nothing is unpacked before the whole archive has arrived.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::cpio::{EntryKind, Reader, Writer};

/// One `--fetch PATH[:LOCAL]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The file or directory in the host, relative to the command's directory unless absolute.
    pub path: String,
    /// The destination on this machine.
    pub local: PathBuf,
}

impl std::str::FromStr for Fetch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, local) = match text.split_once(':') {
            Some((path, local)) => (path, local),
            None => {
                let name = text.trim_end_matches('/').rsplit('/').next();
                (text, name.unwrap_or_default())
            }
        };
        if path.is_empty() || ["", ".", ".."].contains(&local) {
            return Err("expected PATH[:LOCAL], for example /root/saved:target/saved".to_owned());
        }
        Ok(Self {
            path: path.to_owned(),
            local: local.into(),
        })
    }
}

/// Writes the archive of `paths` to `out`; returns a message for each path that could not be read.
///
/// # Errors
/// If writing to `out` fails.
pub fn pack(paths: &[PathBuf], out: impl Write) -> io::Result<Vec<String>> {
    let mut archive = Writer::new(GzEncoder::new(out, Compression::fast()));
    let mut failed = Vec::new();
    for (number, path) in paths.iter().enumerate() {
        pack_one(&number.to_string(), path, &mut archive, &mut failed)?;
    }
    archive.finish()?.finish()?.flush()?;
    Ok(failed)
}

fn pack_one(
    name: &str,
    path: &Path,
    archive: &mut Writer<impl Write>,
    failed: &mut Vec<String>,
) -> io::Result<()> {
    let mut refuse = |why: String| failed.push(format!("cannot fetch {}: {why}", path.display()));
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            refuse(error.to_string());
            return Ok(());
        }
    };
    if metadata.is_dir() {
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                refuse(error.to_string());
                return Ok(());
            }
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        archive.directory(name)?;
        for entry in entries {
            let below = format!("{name}/{}", entry.file_name().to_string_lossy());
            pack_one(&below, &entry.path(), archive, failed)?;
        }
        return Ok(());
    }
    if !metadata.is_file() {
        refuse("not a regular file or a directory".to_owned());
        return Ok(());
    }
    // Opened before the entry's header is written.
    if let Err(error) = File::open(path) {
        refuse(error.to_string());
        return Ok(());
    }
    archive.copy(name, path)
}

/// Unpacks the archive in `from` to the destinations in `fetches`.
///
/// # Errors
/// If the archive is damaged, or a file cannot be written.
pub fn unpack(from: impl Read, fetches: &[Fetch]) -> io::Result<()> {
    let mut archive = Reader::new(BufReader::new(GzDecoder::new(from)));
    while let Some(entry) = archive.next_entry()? {
        let target = target(&entry.name, fetches)?;
        let failed = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", target.display()))
        };
        match entry.kind {
            EntryKind::Directory => fs::create_dir_all(&target).map_err(failed)?,
            EntryKind::File => {
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent).map_err(failed)?;
                }
                write_sparse(&target, archive.contents()).map_err(failed)?;
            }
            EntryKind::Other => return Err(failed(io::Error::other("neither file nor directory"))),
        }
    }
    Ok(())
}

/// The destination of the entry `name` on this machine.
fn target(name: &str, fetches: &[Fetch]) -> io::Result<PathBuf> {
    let wrong = || io::Error::other(format!("unexpected entry {name:?} in the fetched archive"));
    let mut parts = name.split('/');
    let number = parts.next().and_then(|number| number.parse::<usize>().ok());
    let fetch = number.and_then(|number| fetches.get(number));
    let mut target = fetch.ok_or_else(wrong)?.local.clone();
    for part in parts {
        if ["", ".", ".."].contains(&part) {
            return Err(wrong());
        }
        target.push(part);
    }
    Ok(target)
}

/// Writes a file without allocating blocks for its zeros: a VM's saved RAM is mostly zeros.
fn write_sparse(target: &Path, mut contents: impl Read) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(target)?);
    let mut block = [0; 4096];
    let mut size = 0;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match contents.read(&mut block[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 {
            break;
        }
        size += filled as u64;
        if block[..filled].iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Start(size))?;
        } else {
            file.write_all(&block[..filled])?;
        }
    }
    file.into_inner()?.set_len(size)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn requests_name_a_local_path_or_get_the_last_component() {
        for (text, path, local) in [
            ("/root/saved:out/saved", "/root/saved", "out/saved"),
            ("/root/saved", "/root/saved", "saved"),
            ("saved/", "saved/", "saved"),
        ] {
            let fetch: Fetch = text.parse().unwrap();
            assert_eq!((&*fetch.path, fetch.local), (path, local.into()), "{text}");
        }
        for text in ["", "/", ":x", "x:", ".."] {
            assert!(text.parse::<Fetch>().is_err(), "{text}");
        }
    }

    #[test]
    fn directories_and_files_arrive_unchanged_and_sparse() {
        use std::os::unix::fs::MetadataExt as _;
        let host = tempfile::tempdir().unwrap();
        let at = |name: &str| host.path().join(name);
        fs::create_dir_all(at("saved/sub/empty")).unwrap();
        let mut ram = vec![0; 1 << 20];
        ram[500_000] = 7;
        fs::write(at("saved/ram"), &ram).unwrap();
        fs::write(at("saved/sub/state"), b"state").unwrap();
        fs::write(at("log"), b"").unwrap();
        symlink("/etc/passwd", at("saved/link")).unwrap();
        let mut archive = Vec::new();
        let paths = [at("saved"), at("log"), at("nowhere")];
        let failed = pack(&paths, &mut archive).unwrap();
        assert_eq!(failed.len(), 2, "{failed:?}");
        assert!(failed[0].contains("link: not a regular file"), "{failed:?}");
        assert!(failed[1].contains("nowhere: No such file"), "{failed:?}");
        assert!(archive.len() < 10_000);

        let here = tempfile::tempdir().unwrap();
        let fetch = |name: &str| Fetch {
            path: name.to_owned(),
            local: here.path().join("new").join(name),
        };
        let fetches = ["saved", "log", "nowhere"].map(fetch);
        unpack(&archive[..], &fetches).unwrap();
        let read = |name: &str| fs::read(here.path().join("new").join(name)).unwrap();
        assert_eq!(read("saved/ram"), ram);
        assert_eq!(read("saved/sub/state"), b"state");
        assert_eq!(read("log"), b"");
        assert!(fetches[0].local.join("sub/empty").is_dir());
        assert!(!fetches[0].local.join("link").exists() && !fetches[2].local.exists());
        let blocks = fs::metadata(fetches[0].local.join("ram")).unwrap().blocks();
        assert!(blocks * 512 < 1 << 19, "{blocks} blocks");
        unpack(&archive[..archive.len() / 2], &fetches).unwrap_err();
    }

    #[test]
    fn an_archive_cannot_name_other_places() {
        let fetches = [Fetch {
            path: "x".to_owned(),
            local: "/nowhere".into(),
        }];
        for name in ["1", "x", "0/../y", "0//y", "../0", ""] {
            assert!(target(name, &fetches).is_err(), "{name}");
        }
        assert_eq!(
            target("0/a/b", &fetches).unwrap(),
            Path::new("/nowhere/a/b")
        );
    }
}
