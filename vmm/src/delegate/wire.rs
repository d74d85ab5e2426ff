//! Bytes and descriptors over a Unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use vcpu_sched::delegation::door::MAX_KICKS;

/// Room for the descriptors of one message.
const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_KICKS));

/// Sends a record with its descriptors, all or nothing: records are small, and a peer that doesn't read is an error.
pub fn send(to: BorrowedFd<'_>, record: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // A peer that has gone is an error, no signal.
    let sent = sendmsg(to, &[IoSlice::new(record)], &mut rights, SendFlags::NOSIGNAL)?;
    if sent == record.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives a record whole, with the descriptors that came with it. They aren't inherited by other programs.
pub fn receive<const N: usize>(from: BorrowedFd<'_>) -> io::Result<([u8; N], Vec<OwnedFd>)> {
    let (mut record, mut filled, mut descriptors) = ([0; N], 0, Vec::new());
    while let Some(rest) = record.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        match recvmsg(from, &mut [IoSliceMut::new(rest)], &mut rights, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) if message.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(message) => filled += message.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        for message in rights.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
    }
    Ok((record, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn records_come_whole_with_their_descriptors() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(here.as_fd(), b"first", &[null.as_fd(), null.as_fd()]).unwrap();
        here.write_all(b"sec").unwrap();
        here.write_all(b"ond").unwrap();
        drop(here);
        let (record, descriptors) = receive::<5>(there.as_fd()).unwrap();
        assert_eq!((&record, descriptors.len()), (b"first", 2));
        assert_eq!(receive::<6>(there.as_fd()).unwrap().0, *b"second");
        let end = receive::<1>(there.as_fd()).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }
}
