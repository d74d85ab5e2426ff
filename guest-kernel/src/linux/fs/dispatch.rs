//! From system call numbers to the calls. Linux arch/x86/entry/syscalls/syscall_64.tbl.

use alloc::sync::Arc;

use super::calls::{at, descriptor, info, name, open, socket, transfer};
use super::open_file::Flags;
use super::path::AT_FDCWD;
use super::{epoll, eventfd, locks, pidfd, pipe, poll, signalfd};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::Process;

/// Carries out a file system call. `None`: the number isn't one.
#[inline]
pub fn dispatch(p: &Arc<Process>, nr: u64, a: &[u64; 6]) -> Option<SysResult> {
    // The most frequent first; the others in one jump table.
    Some(match nr {
        0 => transfer::read(p, a[0], a[1], a[2]),
        1 => transfer::write(p, a[0], a[1], a[2]),
        3 => p.fs.close(a[0] as i32),
        _ => return rest(p, nr, a),
    })
}

fn rest(p: &Arc<Process>, nr: u64, a: &[u64; 6]) -> Option<SysResult> {
    let dir = a[0] as i32;
    let cwd = AT_FDCWD;
    let nofollow = at::SYMLINK_NOFOLLOW;
    Some(match nr {
        // open
        2 => open::open(p, cwd, a[0], a[1], a[2]),
        85 => open::open(p, cwd, a[0], u64::from((Flags::CREAT | Flags::WRONLY | Flags::TRUNC).bits()), a[1]),
        257 => open::open(p, dir, a[1], a[2], a[3]),
        437 => open::openat2(p, dir, a[1], a[2], a[3]),
        22 => open::pipe(p, a[0], 0),
        293 => open::pipe(p, a[0], a[1]),
        319 => open::memfd_create(p, a[0], a[1]),
        78 => open::getdents(p, a[0], a[1], a[2], true),
        217 => open::getdents(p, a[0], a[1], a[2], false),
        // move bytes
        8 => transfer::lseek(p, a[0], a[1], a[2]),
        17 => transfer::pread(p, a[0], a[1], a[2], a[3]),
        18 => transfer::pwrite(p, a[0], a[1], a[2], a[3]),
        19 => transfer::readv(p, a[0], a[1], a[2]),
        20 => transfer::writev(p, a[0], a[1], a[2]),
        295 if a[3] != u64::MAX => transfer::preadv(p, a[0], a[1], a[2], a[3], 0),
        296 if a[3] != u64::MAX => transfer::pwritev(p, a[0], a[1], a[2], a[3], 0),
        295 | 296 => Err(Errno::EINVAL),
        327 => transfer::preadv(p, a[0], a[1], a[2], a[3], a[5]),
        328 => transfer::pwritev(p, a[0], a[1], a[2], a[3], a[5]),
        40 => transfer::sendfile(p, a[0], a[1], a[2], a[3]),
        326 => transfer::copy_file_range(p, a),
        275 => pipe::splice(p, a),
        276 => pipe::tee(p, a[0], a[1], a[2], a[3]),
        278 => pipe::vmsplice(p, a[0], a[1], a[2], a[3]),
        76 => transfer::truncate(p, a[0], a[1]),
        77 => transfer::ftruncate(p, a[0], a[1]),
        285 => transfer::fallocate(p, a[0], a[1], a[2], a[3]),
        73 => locks::flock(p, a[0], a[1]),
        // fsync, fdatasync, readahead, fadvise64, sync_file_range, syncfs: nothing to do but check the descriptor
        74 | 75 | 187 | 221 | 277 | 306 => p.fs.file(a[0] as i32).map(|_| 0),
        162 => Ok(0),
        // descriptors
        16 => descriptor::ioctl(p, a[0], a[1], a[2]),
        32 => descriptor::dup(p, a[0]),
        33 => descriptor::dup2(p, a[0], a[1]),
        292 => descriptor::dup3(p, a[0], a[1], a[2]),
        72 => descriptor::fcntl(p, a[0], a[1], a[2]),
        436 => descriptor::close_range(p, a[0], a[1], a[2]),
        // information
        4 => info::stat(p, a[0], a[1], true),
        5 => info::fstat(p, a[0], a[1]),
        6 => info::stat(p, a[0], a[1], false),
        262 => info::fstatat(p, dir, a[1], a[2], a[3]),
        332 => info::statx(p, dir, a[1], a[2], a[4]),
        21 => info::access(p, cwd, a[0], a[1], 0),
        269 => info::access(p, dir, a[1], a[2], 0),
        439 => info::access(p, dir, a[1], a[2], a[3]),
        90 => info::chmod(p, cwd, a[0], a[1], 0),
        91 => info::fchmod(p, a[0], a[1]),
        268 => info::chmod(p, dir, a[1], a[2], 0),
        452 => info::chmod(p, dir, a[1], a[2], a[3]),
        92 => info::chown(p, cwd, a[0], a[1], a[2], 0),
        93 => info::fchown(p, a[0], a[1], a[2]),
        94 => info::chown(p, cwd, a[0], a[1], a[2], nofollow),
        260 => info::chown(p, dir, a[1], a[2], a[3], a[4]),
        280 => info::utimensat(p, dir, a[1], a[2], a[3]),
        132 => info::utimes(p, cwd, a[0], a[1], true),
        235 => info::utimes(p, cwd, a[0], a[1], false),
        261 => info::utimes(p, dir, a[1], a[2], false),
        137 => info::statfs(p, a[0], a[1]),
        138 => info::fstatfs(p, a[0], a[1]),
        // names
        79 => name::getcwd(p, a[0], a[1]),
        80 => name::chdir(p, a[0]),
        81 => name::fchdir(p, a[0]),
        82 => name::rename(p, cwd, a[0], cwd, a[1], 0),
        264 => name::rename(p, dir, a[1], a[2] as i32, a[3], 0),
        316 => name::rename(p, dir, a[1], a[2] as i32, a[3], a[4]),
        83 => name::mkdir(p, cwd, a[0], a[1]),
        258 => name::mkdir(p, dir, a[1], a[2]),
        84 => name::unlink(p, cwd, a[0], at::REMOVEDIR),
        87 => name::unlink(p, cwd, a[0], 0),
        263 => name::unlink(p, dir, a[1], a[2]),
        86 => name::link(p, cwd, a[0], cwd, a[1], 0),
        265 => name::link(p, dir, a[1], a[2] as i32, a[3], a[4]),
        88 => name::symlink(p, a[0], cwd, a[1]),
        266 => name::symlink(p, a[0], a[1] as i32, a[2]),
        89 => name::readlink(p, cwd, a[0], a[1], a[2]),
        267 => name::readlink(p, dir, a[1], a[2], a[3]),
        133 => name::mknod(p, cwd, a[0], a[1], a[2]),
        259 => name::mknod(p, dir, a[1], a[2], a[3]),
        95 => Ok(u64::from(p.fs.set_umask(a[0] as u32))),
        // waiting
        7 => poll::poll(p, a[0], a[1], a[2] as i32),
        271 => poll::ppoll(p, a[0], a[1], a[2], a[3], a[4]),
        23 => poll::select(p, a[0], [a[1], a[2], a[3]], a[4]),
        270 => poll::pselect6(p, a[0], [a[1], a[2], a[3]], a[4], a[5]),
        213 if (a[0] as i32) <= 0 => Err(Errno::EINVAL),
        213 => epoll::create(p, 0),
        291 => epoll::create(p, a[0]),
        233 => epoll::control(p, a[0], a[1], a[2], a[3]),
        232 => epoll::wait(p, a[0], a[1], a[2], epoll::deadline_ms(a[3])),
        281 => poll::with_mask(a[4], a[5], || epoll::wait(p, a[0], a[1], a[2], epoll::deadline_ms(a[3]))),
        441 => {
            poll::deadline_from(a[3]).and_then(|d| poll::with_mask(a[4], a[5], || epoll::wait(p, a[0], a[1], a[2], d)))
        }
        284 => eventfd::create_event(p, a[0], 0),
        290 => eventfd::create_event(p, a[0], a[1]),
        283 => eventfd::create_timer(p, a[0], a[1]),
        286 => eventfd::set_timer(p, a[0], a[1], a[2], a[3]),
        287 => eventfd::get_timer(p, a[0], a[1]),
        282 => signalfd::signalfd(p, a[0], a[1], a[2], 0),
        289 => signalfd::signalfd(p, a[0], a[1], a[2], a[3]),
        424 => pidfd::send_signal(p, a[0], a[1], a[2], a[3]),
        434 => pidfd::open(p, a[0], a[1]),
        // sockets
        41 => socket::socket(),
        53 => socket::socketpair(p, a[0], a[1], a[3]),
        44 => socket::send_or_receive(p, a, true),
        45 => socket::send_or_receive(p, a, false),
        46 => socket::message(p, a[0], a[1], a[2], true),
        47 => socket::message(p, a[0], a[1], a[2], false),
        48 => socket::shutdown(p, a[0], a[1]),
        54 => socket::set_option(p, a[0]),
        42 | 43 | 49 | 50 | 51 | 52 | 55 | 288 | 299 | 307 => socket::not_here(p, a[0]),
        // chroot, mount, umount2, pivot_root, swapon, swapoff
        155 | 161 | 165 | 166 | 167 | 168 => Err(Errno::EPERM),
        // extended attributes: no file system here has them
        188..=199 => Err(Errno::EOPNOTSUPP),
        _ => return None,
    })
}
