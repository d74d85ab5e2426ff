//! The private directory in which a script's guests have their sockets.
//!
//! It is locked as long as its script lives, and the lock is the kernel's: whatever ends the process ends it. So the next script
//! knows directories that a killed one has left, and removes them. A new one may be taken for such between its making and its
//! locking; who finds it gone makes another.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// What all of them are called, with a number behind.
const PREFIX: &str = "taskvisor-script-";
/// Names that are tried.
const TRIES: u32 = 100;

/// See the module's text. Removed with all that is in it when dropped.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    _lock: File,
}

impl Place {
    /// A new one, in XDG_RUNTIME_DIR or the directory for temporary files; removes those that nobody has any more.
    pub fn new() -> io::Result<Self> {
        let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        Self::new_in(&base)
    }

    fn new_in(base: &Path) -> io::Result<Self> {
        sweep(base);
        for number in 0..TRIES {
            let path = base.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            if let Some(lock) = locked(&path)? {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{}: no name is free", base.display())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("{}: {error}", self.path.display());
        }
    }
}

/// Locks a directory; none if somebody else has it, or has removed it meanwhile.
fn locked(path: &Path) -> io::Result<Option<File>> {
    let dir = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    let same = fs::symlink_metadata(path).is_ok_and(|at| dir.metadata().is_ok_and(|ours| ours.ino() == at.ino()));
    Ok(same.then_some(dir))
}

/// Removes what killed scripts of this user have left. What can't be looked at or removed stays.
fn sweep(base: &Path) {
    let ours = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let left = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
            && entry.metadata().is_ok_and(|data| data.is_dir() && data.uid() == ours);
        if left && let Ok(Some(_lock)) = locked(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_is_removed_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let [left, other] = [format!("{PREFIX}1-0"), "other".to_owned()].map(|name| base.path().join(name));
        for dir in [&left, &other] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("1"), "").unwrap();
        }
        let first = Place::new_in(base.path()).unwrap();
        let second = Place::new_in(base.path()).unwrap();
        assert!(!left.exists() && other.exists() && first.path().exists());
        assert_ne!(first.path(), second.path());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists() && second.path().exists());
    }
}
