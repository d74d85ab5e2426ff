//! The terminal: the host's, when the VMM says that a standard stream is one.
//!
//! There is one. A kernel task takes what is typed from the console, runs it through the discipline, echoes, and sends the
//! signals of special keys; so they work while nobody reads. Invariant: `state` is never held while console or user memory
//! are touched.

mod discipline;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, Ordering};

use vcpu_sched::events::WaitReason;
use vcpu_sched::ids::Nanos;

use self::discipline::{Discipline, KeySignal, Termios, bits, cc};
use super::inode::Inode;
use super::io::IoCursor;
use super::open_file::{Events, File, Flags};
use crate::console::{self, Stream};
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::{self, Process, signal};
use crate::mm::user::{self, Plain};
use crate::sync::{SpinLock, WaitQueue};
use crate::task::{Spawn, Task, current, table};
use crate::{sched, time};

// Linux include/uapi/asm-generic/ioctls.h.
const TCGETS: u32 = 0x5401;
const TCSETS: u32 = 0x5402;
const TCSETSW: u32 = 0x5403;
const TCSETSF: u32 = 0x5404;
const TCSBRK: u32 = 0x5409;
const TCXONC: u32 = 0x540a;
const TCFLSH: u32 = 0x540b;
const TIOCSCTTY: u32 = 0x540e;
const TIOCGPGRP: u32 = 0x540f;
const TIOCSPGRP: u32 = 0x5410;
const TIOCOUTQ: u32 = 0x5411;
const TIOCGWINSZ: u32 = 0x5413;
const TIOCSWINSZ: u32 = 0x5414;
const FIONREAD: u32 = 0x541b;
const TIOCNOTTY: u32 = 0x5422;
const TCSBRKP: u32 = 0x5425;
const TIOCGSID: u32 = 0x5429;
const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
const TCSETSW2: u32 = 0x402c_542c;
const TCSETSF2: u32 = 0x402c_542d;

/// B38400 as a number, for termios2.
const SPEED: u32 = 38_400;

// SAFETY: integers and bytes without padding (4 * 4 + 1 + 19).
unsafe impl Plain for Termios {}
const _: () = assert!(size_of::<Termios>() == 36);

struct State {
    discipline: Discipline,
    /// Rows and columns, and the device's last word on them.
    size: (u16, u16),
    device_size: (u16, u16),
    /// Whose controlling terminal it is; 0: nobody's.
    session: u32,
    /// The process group that reads and gets the keys' signals.
    foreground: u32,
}

/// The terminal.
struct Tty {
    /// Guards itself only; never held over the console or user memory.
    state: SpinLock<State>,
    readers: WaitQueue,
    /// Woken when ^Q lets output go on.
    writers: WaitQueue,
    stopped: AtomicBool,
    /// The keyboard's task runs.
    started: AtomicBool,
}

static TTY: Tty = Tty {
    state: SpinLock::new(State {
        discipline: Discipline::new(),
        size: (24, 80),
        device_size: (0, 0),
        session: 0,
        foreground: 0,
    }),
    readers: WaitQueue::of(WaitReason::Io),
    writers: WaitQueue::of(WaitReason::Io),
    stopped: AtomicBool::new(false),
    started: AtomicBool::new(false),
};

/// Whether there is a terminal.
pub fn exists() -> bool {
    (0..3).any(console::is_terminal)
}

/// Makes the terminal that of a session, with a foreground group. The first program starts with it.
pub fn set_session(session: u32, foreground: u32) {
    let mut s = TTY.state.lock();
    (s.session, s.foreground) = (session, foreground);
}

/// Session and foreground group, as /proc/PID/stat shows them.
pub fn session() -> (u32, u32) {
    let s = TTY.state.lock();
    (s.session, s.foreground)
}

/// Where output goes: the first output stream that is a terminal.
fn screen() -> Stream {
    if console::is_terminal(1) || !console::is_terminal(2) { Stream::Stdout } else { Stream::Stderr }
}

/// Starts the task that takes what is typed, once.
fn start_keyboard() {
    if TTY.started.swap(true, Ordering::SeqCst) {
        return;
    }
    let columns_rows = console::window_size();
    {
        let mut s = TTY.state.lock();
        s.device_size = (columns_rows.1, columns_rows.0);
        s.size = s.device_size;
    }
    let spawn = Spawn { name: "tty", affinity: None, entry: keyboard, argument: 0, user: None };
    match Task::new(table::allocate_kernel_id(), spawn) {
        Ok(task) => sched::start(task),
        Err(_) => {
            crate::error!("no memory for the terminal's task: nothing can be typed");
            TTY.started.store(false, Ordering::SeqCst);
        }
    }
}

enum Happened {
    Typed,
    Resized((u16, u16)),
    Ended,
}

extern "C" fn keyboard(_: usize) -> ! {
    let mut ended = false;
    loop {
        let happened = console::read_queue().wait_until(|| {
            let (columns, rows) = console::window_size();
            let s = TTY.state.lock();
            if s.device_size != (rows, columns) {
                return Some(Happened::Resized((rows, columns)));
            }
            // With a full buffer the bytes stay where they are; a reader wakes us.
            if s.discipline.room() > 0 && console::readable() {
                return Some(Happened::Typed);
            }
            (!ended && console::at_eof() && !console::readable()).then_some(Happened::Ended)
        });
        match happened {
            Happened::Typed => typed(),
            Happened::Resized(size) => {
                let mut s = TTY.state.lock();
                s.device_size = size;
                drop(s);
                set_size(size);
            }
            Happened::Ended => {
                ended = true;
                TTY.readers.wake_all();
            }
        }
    }
}

fn typed() {
    let mut buf = [0; 128];
    let room = TTY.state.lock().discipline.room().min(buf.len());
    let n = console::read_available(&mut buf[..room]);
    let mut echo = Vec::new();
    for &byte in &buf[..n] {
        let (signal, group) = {
            let mut s = TTY.state.lock();
            let signal = s.discipline.input(byte, &mut echo);
            let stopped = s.discipline.stopped;
            if TTY.stopped.swap(stopped, Ordering::SeqCst) && !stopped {
                TTY.writers.wake_all();
            }
            (signal, s.foreground)
        };
        if let Some(signal) = signal
            && group != 0
        {
            signal::send_to_group(group, signal_number(signal));
        }
    }
    if !echo.is_empty() {
        console::write_kernel(screen(), &echo);
    }
    TTY.readers.wake_all();
}

fn signal_number(key: KeySignal) -> u32 {
    match key {
        KeySignal::Interrupt => signal::SIGINT,
        KeySignal::Quit => signal::SIGQUIT,
        KeySignal::Suspend => signal::SIGTSTP,
    }
}

fn set_size(size: (u16, u16)) {
    let mut s = TTY.state.lock();
    if s.size != size {
        s.size = size;
        let group = s.foreground;
        drop(s);
        if group != 0 {
            signal::send_to_group(group, signal::SIGWINCH);
        }
    }
}

/// Job control: may the caller read, write or control? A background process gets `sig` instead.
fn check_foreground(sig: u32) -> Result<(), Errno> {
    let me = process::current();
    let (session, foreground) = session();
    if session == 0 || me.sid() != session || me.pgid() == foreground {
        return Ok(());
    }
    let blocked = process::thread_of(&current()).map_or(0, process::Thread::blocked);
    let ignored = me.signals.lock().ignored();
    if (blocked | ignored) & signal::bit(sig) != 0 {
        return if sig == signal::SIGTTIN { Err(Errno::EIO) } else { Ok(()) };
    }
    signal::send_to_group(me.pgid(), sig);
    Err(Errno::ERESTARTSYS)
}

/// The open terminal.
pub struct TtyFile {
    /// The device node it was opened by.
    node: Arc<dyn Inode>,
}

impl TtyFile {
    /// Opens the terminal.
    pub fn new(node: Arc<dyn Inode>) -> Self {
        start_keyboard();
        Self { node }
    }
}

/// open(2) of /dev/tty: only for those whose controlling terminal it is.
///
/// # Errors
/// ENXIO.
pub fn check_controlling(caller: &Process) -> Result<(), Errno> {
    let (session, _) = session();
    if exists() && session != 0 && caller.sid() == session { Ok(()) } else { Err(Errno::ENXIO) }
}

impl File for TtyFile {
    fn read(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        if io.left() == 0 {
            return Ok(0);
        }
        check_foreground(signal::SIGTTIN)?;
        wait_readable(io.left(), flags)?;
        let mut buf = [0; 256];
        let mut done = 0;
        loop {
            let room = io.left().min(buf.len());
            let (n, more) = {
                let mut s = TTY.state.lock();
                let whole = s.discipline.available();
                let n = s.discipline.take(&mut buf[..room]);
                // The rest of this line, not the next one.
                (n, whole > n)
            };
            done += io.put(&buf[..n])?;
            if !more || io.left() == 0 {
                break;
            }
        }
        // There may be room again for what the device holds.
        console::read_queue().wake_all();
        Ok(done)
    }

    fn write(&self, io: &mut IoCursor<'_>, flags: Flags) -> Result<usize, Errno> {
        let (oflag, lflag) = {
            let s = TTY.state.lock();
            (s.discipline.termios.oflag, s.discipline.termios.lflag)
        };
        if lflag & bits::TOSTOP != 0 {
            check_foreground(signal::SIGTTOU)?;
        }
        if TTY.stopped.load(Ordering::SeqCst) {
            if flags.nonblock() {
                return Err(Errno::EAGAIN);
            }
            let go = || (!TTY.stopped.load(Ordering::SeqCst)).then_some(());
            TTY.writers.wait_interruptible(None, go).map_err(|_| Errno::ERESTARTSYS)?;
        }
        if oflag & bits::OPOST == 0 {
            return super::console_file::write(screen(), io, flags);
        }
        let mut raw = [0; 256];
        let mut cooked = Vec::with_capacity(2 * raw.len());
        let mut done = 0;
        while io.left() > 0 {
            if flags.nonblock() && !console::writable(screen()) {
                return if done > 0 { Ok(done) } else { Err(Errno::EAGAIN) };
            }
            let n = match io.take(&mut raw) {
                Ok(n) => n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            };
            cooked.clear();
            TTY.state.lock().discipline.output(&raw[..n], &mut cooked);
            console::write_kernel(screen(), &cooked);
            done += n;
        }
        Ok(done)
    }

    fn poll(&self) -> Events {
        let mut e = Events::empty();
        let typed = {
            let s = TTY.state.lock();
            s.discipline.readable(s.discipline.termios.cc[cc::MIN].into())
        };
        if typed || console::at_eof() {
            e |= Events::READ;
        }
        if !TTY.stopped.load(Ordering::SeqCst) && console::writable(screen()) {
            e |= Events::WRITE;
        }
        e
    }

    fn can_wait(&self) -> bool {
        true
    }

    fn queues(&self, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&TTY.readers);
        visit(&TTY.writers);
        visit(console::write_queue(screen()));
    }

    fn ioctl(&self, process: &Arc<Process>, command: u32, argument: u64) -> SysResult {
        control(process, command, argument)
    }

    fn inode(&self) -> Option<Arc<dyn Inode>> {
        Some(self.node.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Waits as the modes say: for a line, or for MIN bytes, at most TIME between them (termios(3)).
fn wait_readable(want: usize, flags: Flags) -> Result<(), Errno> {
    let (canonical, min, tenths) = {
        let s = TTY.state.lock();
        let t = &s.discipline.termios;
        (s.discipline.canonical(), usize::from(t.cc[cc::MIN]), u64::from(t.cc[cc::TIME]))
    };
    let has = |n: usize| TTY.state.lock().discipline.readable(n) || console::at_eof() && !console::readable();
    let least = if canonical { 1 } else { min.min(want) };
    if has(least.max(1)) || !canonical && min == 0 && tenths == 0 {
        return Ok(());
    }
    if flags.nonblock() {
        return if has(1) && !canonical { Ok(()) } else { Err(Errno::EAGAIN) };
    }
    let timer = !canonical && tenths > 0;
    let deadline = || Nanos(time::now().0.saturating_add(tenths * 100_000_000));
    if timer && min == 0 {
        return match TTY.readers.wait_interruptible(Some(deadline()), || has(1).then_some(())) {
            Err(crate::sync::Interrupted::Signal) => Err(Errno::ERESTARTSYS),
            _ => Ok(()),
        };
    }
    let mut have = 0;
    loop {
        // The timer starts with the first byte and again with each further one.
        let until = (timer && have > 0).then(&deadline);
        let next = if timer { have + 1 } else { least };
        match TTY.readers.wait_interruptible(until, || has(next.max(1)).then_some(())) {
            Ok(()) => have = TTY.state.lock().discipline.available().max(next),
            Err(crate::sync::Interrupted::TimedOut) => return Ok(()),
            Err(crate::sync::Interrupted::Signal) if have > 0 => return Ok(()),
            Err(crate::sync::Interrupted::Signal) => return Err(Errno::ERESTARTSYS),
        }
        if have >= least {
            return Ok(());
        }
    }
}

fn control(process: &Arc<Process>, command: u32, argument: u64) -> SysResult {
    match command {
        TCGETS | TCGETS2 => {
            let t = TTY.state.lock().discipline.termios;
            user::write(argument, &t)?;
            if command == TCGETS2 {
                user::write(argument.saturating_add(size_of::<Termios>() as u64), &[SPEED, SPEED])?;
            }
        }
        TCSETS | TCSETSW | TCSETSF | TCSETS2 | TCSETSW2 | TCSETSF2 => {
            check_foreground(signal::SIGTTOU)?;
            let t: Termios = user::read(argument)?;
            let mut s = TTY.state.lock();
            if matches!(command, TCSETSF | TCSETSF2) {
                s.discipline.flush_input();
            }
            s.discipline.set_termios(t);
            drop(s);
            TTY.readers.wake_all();
        }
        TIOCGWINSZ => {
            let (rows, columns) = TTY.state.lock().size;
            user::write(argument, &[rows, columns, 0u16, 0u16])?;
        }
        TIOCSWINSZ => {
            let [rows, columns, ..]: [u16; 4] = user::read(argument)?;
            set_size((rows, columns));
        }
        TIOCGPGRP | TIOCGSID => {
            let (session, foreground) = session();
            if session == 0 || process.sid() != session {
                return Err(Errno::ENOTTY);
            }
            user::write(argument, &if command == TIOCGSID { session } else { foreground })?;
        }
        TIOCSPGRP => return set_foreground(process, argument),
        TIOCSCTTY => {
            let mut s = TTY.state.lock();
            if s.session == process.sid() {
                return Ok(0);
            }
            if process.sid() != process.pid || s.session != 0 && argument != 1 {
                return Err(Errno::EPERM);
            }
            (s.session, s.foreground) = (process.sid(), process.pgid());
        }
        TIOCNOTTY => {
            let mut s = TTY.state.lock();
            if s.session == 0 || s.session != process.sid() {
                return Err(Errno::ENOTTY);
            }
            if process.sid() == process.pid {
                let group = s.foreground;
                (s.session, s.foreground) = (0, 0);
                drop(s);
                signal::send_to_group(group, signal::SIGHUP);
                signal::send_to_group(group, signal::SIGCONT);
            }
        }
        FIONREAD => {
            let n = TTY.state.lock().discipline.available();
            user::write(argument, &(n as i32))?;
        }
        TIOCOUTQ => user::write(argument, &0i32)?,
        TCFLSH if argument != 1 => TTY.state.lock().discipline.flush_input(),
        // Breaks, flow control and draining have nothing to act on: output is handed over at once.
        TCSBRK | TCSBRKP | TCXONC | TCFLSH => {}
        _ => return Err(Errno::ENOTTY),
    }
    Ok(0)
}

fn set_foreground(process: &Arc<Process>, argument: u64) -> SysResult {
    let group: i32 = user::read(argument)?;
    let group = u32::try_from(group).map_err(|_| Errno::EINVAL)?;
    let (session, _) = session();
    if session == 0 || process.sid() != session {
        return Err(Errno::ENOTTY);
    }
    check_foreground(signal::SIGTTOU)?;
    let mut found = None;
    process::for_each(|p| {
        if p.pgid() == group {
            found = Some(p.sid());
        }
    });
    match found {
        None => Err(Errno::ESRCH),
        Some(sid) if sid != session => Err(Errno::EPERM),
        Some(_) => {
            TTY.state.lock().foreground = group;
            Ok(0)
        }
    }
}
