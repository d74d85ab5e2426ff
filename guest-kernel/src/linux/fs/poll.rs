//! Waiting for several files: poll, select and their variants.
//!
//! A call registers one [`Sleeper`] with the queues of all its files, looks, and sleeps until one of them wakes the sleeper; so
//! looking may sleep, which a wait queue's own condition must not.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::Nanos;

use super::open_file::{Events, FileRef};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::{Process, signal, thread_of};
use crate::mm::user;
use crate::sync::{Interrupted, WaitQueue, Waiter, WakeTarget};
use crate::task::current;
use crate::time;

const NANOS: u64 = 1_000_000_000;

/// What a file's queue wakes on behalf of a call.
struct Sleeper {
    woken: AtomicBool,
    queue: WaitQueue,
}

impl WakeTarget for Sleeper {
    fn woken(&self) {
        // SeqCst: the flag is set before the queue is looked at, see `wait_queue`.
        if !self.woken.swap(true, Ordering::SeqCst) {
            self.queue.wake_one();
        }
    }
}

/// The queues that a call has joined; left when it ends.
struct Registration<'a> {
    sleeper: Arc<Sleeper>,
    files: Vec<&'a FileRef>,
}

impl<'a> Registration<'a> {
    fn new() -> Self {
        let sleeper = Arc::new(Sleeper { woken: AtomicBool::new(false), queue: WaitQueue::of(WaitReason::Poll) });
        Self { sleeper, files: Vec::new() }
    }

    fn join(&mut self, file: &'a FileRef) {
        file.file.queues(&mut |q| q.add(Waiter::Target(self.sleeper.clone()), 0));
        self.files.push(file);
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let me = Waiter::Target(self.sleeper.clone());
        for file in &self.files {
            file.file.queues(&mut |q| {
                q.remove(&me);
            });
        }
    }
}

/// Waits until `look` gives a number above 0, the deadline passes (0) or a signal comes.
fn wait(files: &[Option<FileRef>], deadline: Option<Nanos>, mut look: impl FnMut() -> u64) -> SysResult {
    let n = look();
    if n > 0 || deadline.is_some_and(|d| time::now() >= d) {
        return Ok(n);
    }
    let mut registration = Registration::new();
    files.iter().flatten().filter(|f| f.file.can_wait()).for_each(|f| registration.join(f));
    let sleeper = registration.sleeper.clone();
    loop {
        // What changed before the flag is cleared is seen by this look; what changes after it sets the flag again.
        sleeper.woken.store(false, Ordering::SeqCst);
        let n = look();
        if n > 0 {
            return Ok(n);
        }
        match sleeper.queue.wait_interruptible(deadline, || sleeper.woken.load(Ordering::SeqCst).then_some(())) {
            Ok(()) => {}
            Err(Interrupted::TimedOut) => return Ok(look()),
            Err(Interrupted::Signal) => return Err(Errno::ERESTARTNOHAND),
        }
    }
}

/// Runs a call under another signal mask (ppoll, pselect, epoll_pwait). A mask at 0 changes nothing.
///
/// # Errors
/// EINVAL: not a signal set's size; EFAULT; what the call gives.
pub fn with_mask(mask: u64, size: u64, call: impl FnOnce() -> SysResult) -> SysResult {
    if mask == 0 {
        return call();
    }
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    signal::set_temporary_mask(user::read::<u64>(mask)?);
    let result = call();
    // After a signal the mask stays until its handler has run.
    let interrupted = matches!(result, Err(Errno::EINTR | Errno::ERESTARTNOHAND));
    if !interrupted && let Some(thread) = thread_of(&current()) {
        signal::restore_mask(thread);
    }
    result
}

/// A relative time as a deadline.
///
/// # Errors
/// EINVAL: negative or not normalised.
pub fn deadline_after(seconds: i64, nanos: i64) -> Result<Nanos, Errno> {
    let seconds = u64::try_from(seconds).map_err(|_| Errno::EINVAL)?;
    let nanos = u64::try_from(nanos).ok().filter(|n| *n < NANOS).ok_or(Errno::EINVAL)?;
    Ok(Nanos(time::now().0.saturating_add(seconds.saturating_mul(NANOS)).saturating_add(nanos)))
}

/// A deadline from a timespec in user memory; none at 0.
///
/// # Errors
/// EINVAL, EFAULT.
pub fn deadline_from(timespec: u64) -> Result<Option<Nanos>, Errno> {
    if timespec == 0 {
        return Ok(None);
    }
    let [seconds, nanos]: [i64; 2] = user::read(timespec)?;
    deadline_after(seconds, nanos).map(Some)
}

/// Tells the program how much of its time is left (ppoll, pselect6; select in microseconds).
fn write_rest(address: u64, deadline: Option<Nanos>, unit: u64) {
    if let (true, Some(d)) = (address != 0, deadline) {
        let left = d.0.saturating_sub(time::now().0);
        // As on Linux, a failure here doesn't fail the call.
        let _ = user::write(address, &[left / NANOS, left % NANOS / unit]);
    }
}

/// poll(2): milliseconds, negative: no limit.
///
/// # Errors
/// EFAULT, EINVAL, EINTR.
pub fn poll(process: &Process, array: u64, count: u64, timeout: i32) -> SysResult {
    let deadline = u64::try_from(timeout).ok().map(|ms| Nanos(time::now().0.saturating_add(ms * 1_000_000)));
    poll_until(process, array, count, deadline)
}

/// ppoll(2).
///
/// # Errors
/// As [`poll`].
pub fn ppoll(process: &Process, array: u64, count: u64, timeout: u64, mask: u64, size: u64) -> SysResult {
    let deadline = deadline_from(timeout)?;
    let result = with_mask(mask, size, || poll_until(process, array, count, deadline));
    write_rest(timeout, deadline, 1);
    result
}

fn poll_until(process: &Process, array: u64, count: u64, deadline: Option<Nanos>) -> SysResult {
    if count > super::context::descriptor_limit() as u64 {
        return Err(Errno::EINVAL);
    }
    // struct pollfd { int fd; short events; short revents; }
    let mut entries: Vec<u64> = user::read_array(array, count as usize)?;
    let files: Vec<Option<FileRef>> = entries.iter().map(|e| process.fs.file(*e as i32).ok()).collect();
    let result = wait(&files, deadline, || {
        let mut ready = 0;
        for (e, file) in entries.iter_mut().zip(&files) {
            let wanted = Events::from_bits_truncate((*e >> 32) as u32 & 0xffff) | Events::ALWAYS;
            let found = match file {
                Some(f) => f.file.poll() & wanted,
                None if (*e as i32) < 0 => Events::empty(),
                None => Events::NVAL,
            };
            *e = *e & 0xffff_ffff_ffff | u64::from(found.bits()) << 48;
            ready += u64::from(!found.is_empty());
        }
        ready
    })?;
    for (i, e) in entries.iter().enumerate() {
        user::write(array + i as u64 * 8 + 6, &((*e >> 48) as u16))?;
    }
    Ok(result)
}

/// select(2): the time is a timeval.
///
/// # Errors
/// EBADF, EINVAL, EFAULT, EINTR.
pub fn select(process: &Process, count: u64, sets: [u64; 3], timeout: u64) -> SysResult {
    let deadline = match timeout {
        0 => None,
        t => {
            let [seconds, micros]: [i64; 2] = user::read(t)?;
            let micros = u64::try_from(micros).map_err(|_| Errno::EINVAL)?;
            let seconds = seconds.checked_add((micros / 1_000_000) as i64).ok_or(Errno::EINVAL)?;
            Some(deadline_after(seconds, (micros % 1_000_000 * 1000) as i64)?)
        }
    };
    let result = select_until(process, count, sets, deadline);
    write_rest(timeout, deadline, 1000);
    result
}

/// pselect6(2): the time is a timespec, the mask argument points to { address, size }.
///
/// # Errors
/// As [`select`].
pub fn pselect6(process: &Process, count: u64, sets: [u64; 3], timeout: u64, mask: u64) -> SysResult {
    let deadline = deadline_from(timeout)?;
    let [mask, size] = if mask == 0 { [0, 0] } else { user::read(mask)? };
    let result = with_mask(mask, size, || select_until(process, count, sets, deadline));
    write_rest(timeout, deadline, 1);
    result
}

fn select_until(process: &Process, count: u64, sets: [u64; 3], deadline: Option<Nanos>) -> SysResult {
    if (count as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    // Descriptors beyond the table can't be open; Linux cuts there too.
    let count = (count as u32 as usize).min(super::context::MAX_DESCRIPTORS);
    let words = count.div_ceil(64);
    let read_set = |a: u64| if a == 0 { Ok(alloc::vec![0; words]) } else { user::read_array::<u64>(a, words) };
    let wanted = [read_set(sets[0])?, read_set(sets[1])?, read_set(sets[2])?];
    let mut files = Vec::new();
    let mut fds = Vec::new();
    for fd in 0..count {
        if wanted.iter().any(|set| set[fd / 64] >> (fd % 64) & 1 != 0) {
            files.push(Some(process.fs.file(fd as i32)?));
            fds.push(fd);
        }
    }
    // Linux fs/select.c: POLLIN_SET, POLLOUT_SET, POLLEX_SET.
    let meaning = [Events::READ | Events::HUP | Events::ERR, Events::WRITE | Events::ERR, Events::PRI];
    let mut found = [alloc::vec![0u64; words], alloc::vec![0u64; words], alloc::vec![0u64; words]];
    let result = wait(&files, deadline, || {
        let mut ready = 0;
        for (fd, file) in fds.iter().zip(&files) {
            let events = file.as_ref().map_or(Events::empty(), |f| f.file.poll());
            for kind in 0..3 {
                let bit = 1u64 << (fd % 64);
                if wanted[kind][fd / 64] & bit != 0 && events.intersects(meaning[kind]) {
                    found[kind][fd / 64] |= bit;
                    ready += 1;
                }
            }
        }
        ready
    })?;
    for (set, words) in sets.iter().zip(&found) {
        if *set != 0 {
            for (i, w) in words.iter().enumerate() {
                user::write(*set + i as u64 * 8, w)?;
            }
        }
    }
    Ok(result)
}
