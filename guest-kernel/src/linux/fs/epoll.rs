//! epoll.
//!
//! Each registration is a [`Watch`], which stands in the queues of its file. A wake-up puts it on its instance's ready list; whoever
//! waits takes it from there and looks at the file. Invariants:
//! - `Watch::queued` is true exactly while the watch is on the ready list, or is about to be put there by whoever set it.
//! - It is cleared before the file is looked at, so that a change after the look queues the watch again.
//! - Nothing but the ready list and the waiters is touched in `woken`, which runs under the file's queue lock: so the order is
//!   file's queue -> ready list -> instance's waiters, and an instance that watches another comes after it. There is one such
//!   level: what watches an instance is not watched itself (Linux has five).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::Nanos;

use super::inode::Inode;
use super::io::IoCursor;
use super::open_file::{Events, File, FileRef, Flags, OpenFile};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::Process;
use crate::mm::user;
use crate::sync::{Interrupted, Mutex, SpinLock, WaitQueue, Waiter, WakeTarget};
use crate::time;

// Linux include/uapi/linux/eventpoll.h.
const ADD: u64 = 1;
const DELETE: u64 = 2;
const MODIFY: u64 = 3;
const EXCLUSIVE: u32 = 1 << 28;
const WAKEUP: u32 = 1 << 29;
const ONESHOT: u32 = 1 << 30;
const EDGE: u32 = 1 << 31;
const OPTIONS: u32 = EXCLUSIVE | WAKEUP | ONESHOT | EDGE;
/// Most events of one call.
const MAX_EVENTS: i32 = i32::MAX / 12;
/// `struct epoll_event` is packed on x86-64.
const EVENT_SIZE: u64 = 12;

/// Registrations that there are, and may be (Linux: fs.epoll.max_user_watches).
static WATCHES: AtomicUsize = AtomicUsize::new(0);
const MAX_WATCHES: usize = 65_536;
/// Held while one instance is made to watch another.
static NESTING: Mutex<()> = Mutex::new(());

struct Ready {
    list: VecDeque<Arc<Watch>>,
    /// The instance is gone: nothing is queued any more.
    closed: bool,
}

/// The part of an instance that wake-ups touch.
struct Core {
    /// Guards the list only.
    ready: SpinLock<Ready>,
    waiters: WaitQueue,
}

impl Core {
    fn pop(&self) -> Option<Arc<Watch>> {
        self.ready.lock().list.pop_front()
    }

    fn queue(&self, watch: Arc<Watch>) {
        let mut ready = self.ready.lock();
        if !ready.closed {
            ready.list.push_back(watch);
        }
    }

    fn is_empty(&self) -> bool {
        self.ready.lock().list.is_empty()
    }
}

#[derive(Clone, Copy)]
struct Interest {
    events: u32,
    data: u64,
}

/// One registration.
pub struct Watch {
    this: Weak<Watch>,
    core: Arc<Core>,
    instance: Weak<Instance>,
    file: Weak<OpenFile>,
    key: Key,
    /// Guards itself only.
    interest: SpinLock<Interest>,
    queued: AtomicBool,
    /// Removed: reports nothing any more.
    dead: AtomicBool,
}

/// Descriptor and address of the open file: both together name a registration.
type Key = (i32, usize);

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHES.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WakeTarget for Watch {
    fn woken(&self) {
        if !self.dead.load(Ordering::SeqCst)
            && !self.queued.swap(true, Ordering::SeqCst)
            && let Some(me) = self.this.upgrade()
        {
            self.core.queue(me);
        }
        // Also when it was queued already: its waiter may be about to sleep.
        self.core.waiters.wake_one();
    }
}

impl Watch {
    /// What the file has that the program wants.
    fn look(&self, file: &dyn File) -> Events {
        let events = self.interest.lock().events;
        if events & !OPTIONS == 0 {
            return Events::empty(); // switched off after one shot
        }
        file.poll() & (Events::from_bits_truncate(events) | Events::ALWAYS)
    }

    fn leave<F: File + ?Sized>(&self, file: &F) {
        self.dead.store(true, Ordering::SeqCst);
        if let Some(me) = self.this.upgrade() {
            let me = Waiter::Target(me);
            file.queues(&mut |q| {
                q.remove(&me);
            });
        }
    }

    /// Removed, or about to be.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// The watched file is going away.
    pub fn file_closed<F: File + ?Sized>(&self, file: &F) {
        self.leave(file);
        if let Some(instance) = self.instance.upgrade() {
            let gone = instance.watches.lock().remove(&self.key);
            drop(gone); // after the lock
        }
    }
}

/// An epoll instance.
pub struct Instance {
    this: Weak<Instance>,
    core: Arc<Core>,
    watches: Mutex<BTreeMap<Key, Arc<Watch>>>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        let list = {
            let mut ready = self.core.ready.lock();
            ready.closed = true;
            core::mem::take(&mut ready.list)
        };
        drop(list);
        for watch in core::mem::take(self.watches.get_mut()).into_values() {
            if let Some(file) = watch.file.upgrade() {
                watch.leave(&file.file);
            }
        }
    }
}

impl Instance {
    fn new() -> Arc<Self> {
        let ready = SpinLock::new(Ready { list: VecDeque::new(), closed: false });
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            core: Arc::new(Core { ready, waiters: WaitQueue::of(WaitReason::Poll) }),
            watches: Mutex::new(BTreeMap::new()),
        })
    }

    /// Whether it watches another instance.
    fn watches_instance(&self) -> bool {
        let files: Vec<_> = self.watches.lock().values().filter_map(|w| w.file.upgrade()).collect();
        files.iter().any(|f| f.file.as_any().is::<EpollFile>())
    }

    fn add(&self, key: Key, file: &FileRef, interest: Interest) -> SysResult {
        if WATCHES.fetch_add(1, Ordering::Relaxed) >= MAX_WATCHES {
            WATCHES.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::ENOSPC);
        }
        let watch = Arc::new_cyclic(|this: &Weak<Watch>| Watch {
            this: this.clone(),
            core: self.core.clone(),
            instance: self.this.clone(),
            file: Arc::downgrade(file),
            key,
            interest: SpinLock::new(interest),
            queued: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        });
        {
            let mut watches = self.watches.lock();
            if watches.contains_key(&key) {
                return Err(Errno::EEXIST);
            }
            watches.insert(key, watch.clone());
        }
        file.add_watch(Arc::downgrade(&watch));
        file.file.queues(&mut |q| q.add(Waiter::Target(watch.clone()), 0));
        self.look_now(&watch, file);
        Ok(0)
    }

    /// After a change of interest: what is there already counts.
    fn look_now(&self, watch: &Arc<Watch>, file: &FileRef) {
        if !watch.look(&file.file).is_empty() {
            watch.woken();
        }
    }

    /// Takes ready watches off the list and gives their events to `emit`, until that has enough.
    fn collect(&self, max: usize, emit: &mut dyn FnMut(u32, u64) -> Result<(), Errno>) -> Result<usize, Errno> {
        let mut again = Vec::new();
        let mut count = 0;
        let mut result = Ok(());
        while count < max {
            let Some(watch) = self.core.pop() else { break };
            watch.queued.store(false, Ordering::SeqCst);
            if watch.dead.load(Ordering::SeqCst) {
                continue;
            }
            let Some(file) = watch.file.upgrade() else { continue };
            let events = watch.look(&file.file);
            if events.is_empty() {
                continue;
            }
            let interest = *watch.interest.lock();
            result = emit(events.bits(), interest.data);
            if result.is_err() {
                again.push(watch);
                break;
            }
            count += 1;
            if interest.events & ONESHOT != 0 {
                watch.interest.lock().events &= OPTIONS;
            } else if interest.events & EDGE == 0 {
                again.push(watch);
            }
        }
        // Level-triggered ones are looked at again next time.
        for watch in again {
            if !watch.queued.swap(true, Ordering::SeqCst) {
                self.core.queue(watch);
            }
        }
        // A wake-up was spent on us; what we leave may be for another waiter.
        if count > 0 && !self.core.is_empty() {
            self.core.waiters.wake_one();
        }
        if count == 0 { result.map(|()| 0) } else { Ok(count) }
    }
}

/// An open epoll instance.
struct EpollFile(Arc<Instance>);

impl File for EpollFile {
    fn read(&self, _io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn write(&self, _io: &mut IoCursor<'_>, _flags: Flags) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn poll(&self) -> Events {
        let list: Vec<_> = self.0.core.ready.lock().list.iter().cloned().collect();
        let has = |w: &Arc<Watch>| w.file.upgrade().is_some_and(|f| !w.look(&f.file).is_empty());
        if list.iter().any(has) { Events::READ } else { Events::empty() }
    }

    fn can_wait(&self) -> bool {
        true
    }

    fn queues(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.0.core.waiters);
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        None
    }

    fn path(&self) -> Vec<u8> {
        b"anon_inode:[eventpoll]".to_vec()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// epoll_create1(2).
///
/// # Errors
/// EINVAL, EMFILE.
pub fn create(process: &Process, flags: u64) -> SysResult {
    let flags = Flags::from_bits_retain(flags as u32);
    if !Flags::CLOEXEC.contains(flags) {
        return Err(Errno::EINVAL);
    }
    process.fs.install(OpenFile::new(EpollFile(Instance::new()), Flags::RDWR), flags.contains(Flags::CLOEXEC))
}

fn instance(file: &FileRef) -> Result<Arc<Instance>, Errno> {
    let EpollFile(instance) = file.file.as_any().downcast_ref().ok_or(Errno::EINVAL)?;
    Ok(instance.clone())
}

/// epoll_ctl(2).
///
/// # Errors
/// As the manual page says.
pub fn control(process: &Process, epfd: u64, operation: u64, fd: u64, event: u64) -> SysResult {
    let interest = if operation == DELETE {
        Interest { events: 0, data: 0 }
    } else {
        let [events, low, high]: [u32; 3] = user::read(event)?;
        Interest { events, data: u64::from(low) | u64::from(high) << 32 }
    };
    let file = process.fs.file(fd as i32)?;
    let own = process.fs.file(epfd as i32)?;
    let instance = instance(&own)?;
    if !file.file.can_wait() {
        return Err(Errno::EPERM);
    }
    let key = (fd as i32, Arc::as_ptr(&file).cast::<u8>() as usize);
    match operation {
        ADD => {
            if let Some(EpollFile(inner)) = file.file.as_any().downcast_ref() {
                if interest.events & EXCLUSIVE != 0 {
                    return Err(Errno::EINVAL);
                }
                if Arc::ptr_eq(&instance, inner) {
                    return Err(Errno::EINVAL);
                }
                // One level: a longer chain would be as deep a recursion in `woken`.
                let _one = NESTING.lock();
                if inner.watches_instance() || own.is_watched() {
                    return Err(Errno::ELOOP);
                }
                return instance.add(key, &file, interest);
            }
            instance.add(key, &file, interest)
        }
        DELETE => {
            let watch = instance.watches.lock().remove(&key).ok_or(Errno::ENOENT)?;
            watch.leave(&file.file);
            Ok(0)
        }
        MODIFY => {
            let watch = instance.watches.lock().get(&key).cloned().ok_or(Errno::ENOENT)?;
            *watch.interest.lock() = interest;
            instance.look_now(&watch, &file);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// epoll_wait(2) and its variants, with a deadline.
///
/// # Errors
/// EINVAL, EFAULT, EINTR.
pub fn wait(process: &Process, epfd: u64, events: u64, max: u64, deadline: Option<Nanos>) -> SysResult {
    let max = max as i32;
    if max <= 0 || max > MAX_EVENTS {
        return Err(Errno::EINVAL);
    }
    let instance = instance(&process.fs.file(epfd as i32)?)?;
    let mut at = events;
    loop {
        let n = instance.collect(max as usize, &mut |events, data| {
            user::write(at, &[events, data as u32, (data >> 32) as u32])?;
            at += EVENT_SIZE;
            Ok(())
        })?;
        if n > 0 || deadline.is_some_and(|d| time::now() >= d) {
            return Ok(n as u64);
        }
        let ready = || (!instance.core.is_empty()).then_some(());
        match instance.core.waiters.wait_interruptible(deadline, ready) {
            Ok(()) => {}
            Err(Interrupted::TimedOut) => return Ok(0),
            Err(Interrupted::Signal) => return Err(Errno::EINTR),
        }
    }
}

/// epoll_wait's time: milliseconds, negative: no limit.
pub fn deadline_ms(timeout: u64) -> Option<Nanos> {
    u64::try_from(timeout as i32).ok().map(|ms| Nanos(time::now().0.saturating_add(ms * 1_000_000)))
}
