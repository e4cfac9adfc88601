//! Owns the files on disk: which ones belong to a path, and what they hold now. Nothing but regular files of a bounded
//! size is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

/// Largest file that is read: ten thousand pools of a kilobyte each, and no core image by mistake.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Largest certificate or key that is read: what goes into a Secret.
const CREDENTIAL_BYTES_MAX: u64 = 1024 * 1024;

/// What every file holds, or why it cannot be read.
pub(super) type Texts = BTreeMap<Arc<Path>, Result<Arc<str>, String>>;

/// The same of certificates and keys.
pub(super) type Credentials = BTreeMap<PathBuf, Result<Arc<[u8]>, Arc<str>>>;

/// Reads the file `path`, or the YAML and JSON files in the folder `path`. What stands in a folder under the name of
/// such a file and cannot be read is an error of its own: a pool may be lost there.
pub(super) fn read(path: &Path) -> io::Result<Texts> {
    if !path.is_dir() {
        fs::metadata(path)?;
        return Ok(Texts::from([(path.into(), text(path))]));
    }
    let files = manifests(path)?.into_iter().filter_map(|file| {
        let text = text(&file);
        // Removed since the folder was listed.
        let is_gone = text.is_err() && fs::symlink_metadata(&file).is_err_and(is_missing);
        (!is_gone).then(|| (file.into(), text))
    });
    Ok(files.collect())
}

fn manifests(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| is_manifest(path)).collect())
}

/// Whether this is the visible name of a manifest. Hidden ones are left out: ConfigMap volumes and editors keep their
/// own copies there.
pub(super) fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|it| it.to_str()).unwrap_or_default();
    let is_hidden = path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(b"."));
    matches!(extension, "yaml" | "yml" | "json") && !is_hidden
}

/// What a file holds, or why not and what to do about it.
fn text(path: &Path) -> Result<Arc<str>, String> {
    let advice = |error: io::Error| match error.raw_os_error() {
        // Told by ourselves, with what to do.
        None => error.to_string(),
        Some(_) if error.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
            "it is a link that leads to no file; correct or remove it".into()
        }
        Some(_) => format!("{error}; make it readable or remove it"),
    };
    read_text(path).map(Arc::from).map_err(advice)
}

fn is_missing(error: io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Reads the certificates and keys at these paths.
pub(super) fn read_credentials(paths: BTreeSet<PathBuf>) -> Credentials {
    let entry = |path: PathBuf| {
        let bytes = read_bytes(&path, CREDENTIAL_BYTES_MAX, "larger than 1 MiB; name the right file");
        let bytes = bytes.map(Arc::from).map_err(|error| error.to_string().into());
        (path, bytes)
    };
    paths.into_iter().map(entry).collect()
}

fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read_bytes(path, FILE_BYTES_MAX, "larger than 16 MiB; split it")?;
    let no_text = || io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8; save it as UTF-8");
    String::from_utf8(bytes).map_err(|_| no_text())
}

fn read_bytes(path: &Path, most: u64, too_large: &'static str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if read as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, too_large));
    }
    Ok(bytes)
}

/// Opens a regular file and nothing else: to open a pipe waits for somebody at its other end, and a device may do
/// anything. Links are followed.
fn open(path: &Path) -> io::Result<File> {
    irregular(fs::metadata(path)?.file_type())?;
    // It may have been replaced by now; opened like this, not even a pipe keeps us.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    irregular(file.metadata()?.file_type())?;
    Ok(file)
}

fn irregular(kind: FileType) -> io::Result<()> {
    let what = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a folder",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}; use a regular file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_holds_its_visible_manifests() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.yml", "a.yaml", "c.json", ".hidden.yaml", "notes.txt", "a.yaml~"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        fs::create_dir(folder.path().join("d")).unwrap();
        let texts = read(folder.path()).unwrap();
        let names: Vec<_> = texts.keys().map(|it| it.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.yaml", "b.yml", "c.json"]);
    }

    #[test]
    fn what_has_the_name_of_a_manifest_and_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        std::os::unix::fs::symlink("nowhere", path("a.yaml")).unwrap();
        std::os::unix::fs::symlink("b.yml", path("b.yml")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("c.json"), rustix::fs::Mode::RUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("d.yaml")).unwrap();
        fs::create_dir(path("e.yaml")).unwrap();
        std::os::unix::fs::symlink("f", path("f.yaml")).unwrap();
        fs::write(path("f"), "x").unwrap();
        let told: Vec<_> = read(folder.path()).unwrap().into_values().collect();
        assert_eq!(
            told,
            [
                Err("it is a link that leads to no file; correct or remove it".into()),
                Err("Too many levels of symbolic links (os error 40); make it readable or remove it".into()),
                Err("it is a pipe; use a regular file".into()),
                Err("it is a socket; use a regular file".into()),
                Err("it is a folder; use a regular file".into()),
                Ok("x".into()),
            ]
        );
    }

    #[test]
    fn nothing_but_regular_files_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.yaml");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        let check = |path: &Path, what: &str| {
            let told = open(path).unwrap_err().to_string();
            assert_eq!(told, format!("it is {what}; use a regular file"), "{}", path.display());
        };
        check(&pipe, "a pipe");
        check(&link, "a pipe");
        check(&folder.path().join("socket"), "a socket");
        check(folder.path(), "a folder");
        check(Path::new("/dev/zero"), "a device");
        let texts = read(&pipe).unwrap();
        assert_eq!(texts.into_values().collect::<Vec<_>>(), [Err("it is a pipe; use a regular file".into())]);
    }

    #[test]
    fn a_file_that_is_no_text_or_too_large_is_told_apart_from_the_others() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("bytes.yaml"), [0xff, 0xfe, 0x00]).unwrap();
        fs::write(folder.path().join("good.yaml"), "x").unwrap();
        let large = File::create(folder.path().join("large.yaml")).unwrap();
        large.set_len(FILE_BYTES_MAX + 1).unwrap();
        let results: Vec<_> = read(folder.path()).unwrap().into_values().collect();
        assert_eq!(results[0].as_deref(), Err(&"it is not UTF-8; save it as UTF-8".to_string()));
        assert_eq!(results[1].as_deref(), Ok("x"));
        assert_eq!(results[2].as_deref(), Err(&"larger than 16 MiB; split it".to_string()));
    }
}
