//! `--gdb`: where clients connect.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::control::socket::{self, Socket, SocketError};

/// What `--gdb` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GdbAddress {
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl FromStr for GdbAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("there is no path behind unix:".into()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => match text.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(Self::Tcp(text.into())),
                _ => Err(format!("{text:?} is neither unix:PATH nor HOST:PORT, such as 127.0.0.1:1234")),
            },
        }
    }
}

impl fmt::Display for GdbAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(text) => f.write_str(text),
        }
    }
}

impl GdbAddress {
    /// The file that a Unix socket makes.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) => None,
        }
    }
}

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The Unix socket.
    #[error("--gdb unix:{0}")]
    Unix(#[from] SocketError),
    /// A TCP port.
    #[error("--gdb {address}: {source}")]
    Tcp {
        /// What was asked for.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Whoever reaches the port owns the guest.
    #[error(
        "--gdb {0}: other machines could reach it, and whoever connects can read and change the guest: give 127.0.0.1, a unix: path, or --gdb-allow-remote"
    )]
    Remote(SocketAddr),
}

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// And its file.
    Unix(UnixListener, Socket),
    /// A port.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens; at an address that others can reach only if that is allowed.
    pub fn bind(address: &GdbAddress, allow_remote: bool) -> Result<Self, ListenError> {
        match address {
            GdbAddress::Unix(path) => {
                let socket = Socket::bind(path)?;
                let failed = |source| ListenError::Tcp { address: path.display().to_string(), source };
                Ok(Self::Unix(socket.listener().map_err(failed)?, socket))
            }
            GdbAddress::Tcp(text) => {
                let failed = |source| ListenError::Tcp { address: text.clone(), source };
                let addresses: Vec<SocketAddr> = text.to_socket_addrs().map_err(failed)?.collect();
                if let Some(remote) = addresses.iter().find(|address| !address.ip().is_loopback()) {
                    if !allow_remote {
                        return Err(ListenError::Remote(*remote));
                    }
                    log::warn!("--gdb {remote}: whoever reaches this port can read and change the guest");
                }
                let listener = TcpListener::bind(addresses.as_slice()).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self::Tcp(listener))
            }
        }
    }

    /// Whoever waits. At a file that is this user or root, even if somebody has changed the file's mode.
    pub fn accept(&self) -> io::Result<Client> {
        match self {
            Self::Unix(listener, _) => Ok(Client::Unix(socket::accept(listener)?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                // Packets are small, and each is waited for.
                stream.set_nodelay(true)?;
                Ok(Client::Tcp(stream))
            }
        }
    }

    /// For poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener, _) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub enum Client {
    /// Through a file.
    Unix(UnixStream),
    /// Through a port.
    Tcp(TcpStream),
}

impl Client {
    /// Writes block no longer than this.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(false).and_then(|()| stream.set_write_timeout(Some(patience))),
            Self::Tcp(stream) => stream.set_nonblocking(false).and_then(|()| stream.set_write_timeout(Some(patience))),
        }
    }

    /// For poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl io::Read for Client {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl io::Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_ports() {
        assert_eq!("unix:/run/x".parse(), Ok(GdbAddress::Unix("/run/x".into())));
        assert_eq!("localhost:1234".parse(), Ok(GdbAddress::Tcp("localhost:1234".into())));
        for wrong in ["unix:", "1234", ":1234", "host:", "host:70000"] {
            assert!(wrong.parse::<GdbAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn other_machines_are_kept_out_unless_allowed() {
        let everywhere = GdbAddress::Tcp("0.0.0.0:0".into());
        assert!(matches!(Listener::bind(&everywhere, false), Err(ListenError::Remote(_))));
        assert!(Listener::bind(&everywhere, true).is_ok());
        assert!(Listener::bind(&GdbAddress::Tcp("127.0.0.1:0".into()), false).is_ok());
    }
}
