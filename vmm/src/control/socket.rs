//! A socket file, of the control interface, a debugger or an agent: made for its owner alone, taken away at the end, never somebody else's.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Why there is no socket. Who tells it says before it which flag it is about.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("{0}: another process listens there: give another path")]
    InUse(PathBuf),
    /// Something else than a socket.
    #[error("{0}: there is a file already, and it is no socket: give another path")]
    NotASocket(PathBuf),
    /// It doesn't fit into a socket address.
    #[error("{0}: the path is too long for a Unix socket (107 bytes at most): give a shorter one")]
    TooLong(PathBuf),
    /// The system refuses.
    #[error("{path}: {what}: {source}")]
    System {
        /// The path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// A listening socket; its file goes when this goes.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of the file: only our own is removed.
    file: (u64, u64),
}

impl Socket {
    /// Listens at `path`. What a VMM that was killed left there is replaced.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let system = |what| move |source: io::Error| SocketError::System { path: path.to_owned(), what, source };
        clear(path)?;
        let address = SocketAddrUnix::new(path).map_err(|_| SocketError::TooLong(path.to_owned()))?;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|e| system("can't make a socket")(e.into()))?;
        // Before it has a name: the file is made with these permissions, so that there is no moment with others.
        fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(|e| system("can't set its permissions")(e.into()))?;
        bind(&fd, &address).map_err(|e| system("can't make it")(e.into()))?;
        listen(&fd, BACKLOG).map_err(|e| system("can't listen")(e.into()))?;
        let meta = fs::symlink_metadata(path).map_err(system("can't look at it"))?;
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true).map_err(system("can't make it non-blocking"))?;
        Ok(Self { path: path.to_owned(), listener, file: (meta.dev(), meta.ino()) })
    }

    /// Another handle of the listening end.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("can't remove {}: {error}", self.path.display());
        }
    }
}

/// Whoever waits at such a socket, with his process: this user or root, even if somebody has changed the file's mode.
///
/// # Errors
/// The system's; `PermissionDenied`: somebody else.
pub fn accept(listener: &UnixListener) -> io::Result<(UnixStream, u32)> {
    let (stream, _) = listener.accept()?;
    let peer = socket_peercred(&stream)?;
    if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
        let refused = format!("user {} has no business at this user's guest", peer.uid.as_raw());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, refused));
    }
    Ok((stream, peer.pid.as_raw_nonzero().get().unsigned_abs()))
}

/// Removes a socket on which nobody listens any more.
fn clear(path: &Path) -> Result<(), SocketError> {
    let system = |what| move |source: io::Error| SocketError::System { path: path.to_owned(), what, source };
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("can't look at it")(error)),
    };
    if !meta.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(system("can't remove what an ended process left there"))
        }
        Err(error) => Err(system("can't find out whether it is in use")(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_owner_may_connect_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));
        assert!(path.exists(), "a second one must not take the first one's file");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Socket::bind(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_was_replaced_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Socket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn impossible_paths_are_named() {
        let long = PathBuf::from("/tmp").join("x".repeat(200));
        assert!(matches!(Socket::bind(&long), Err(SocketError::TooLong(_) | SocketError::System { .. })));
        let error = Socket::bind(Path::new("/no/such/directory/s")).unwrap_err().to_string();
        assert!(error.contains("/no/such/directory/s"), "{error}");
    }
}
