//! Starting a program in a process: execve, execveat, and the start list's first steps.
//!
//! In two halves. Up to the point of no return everything can fail and the caller goes on: file found, headers checked, new
//! address space mapped, arguments copied into the kernel. After it the old memory and the other threads are gone, and a
//! failure ends the process.

mod arguments;
mod elf;

pub use arguments::Arguments;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::signal::{self, SIGSEGV};
use super::{Image, Process, Thread, exit, thread};
use crate::arch::trap_entry::TrapFrame;
use crate::arch::{debug_port, fpu};
use crate::cpu;
use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs::{self, Inode};
use crate::linux::vdso;
use crate::mm::address_space::AddressSpace;
use crate::mm::layout::{PAGE_SIZE, USER_END};
use crate::mm::page_up;
use crate::mm::user;
use crate::mm::vma::{Backing, Prot};
use crate::sync::IrqGuard;
use crate::task::{current, work};

/// Highest address of the stack.
const STACK_TOP: u64 = USER_END;
/// Its largest size, whatever RLIMIT_STACK says. It is mapped lazily, as a whole; below it a gap stays free, and then comes
/// mmap's area.
const MAX_STACK: u64 = 56 << 20;
/// Its smallest size, beside the arguments.
const MIN_STACK: u64 = 128 << 10;
/// Scripts that name scripts as their interpreters (Linux: BINPRM_MAX_RECURSION).
const MAX_SCRIPTS: usize = 4;
/// Bytes of a file that decide what it is (Linux: BINPRM_BUF_SIZE).
const HEAD: usize = 256;
/// `st_mode`: type mask, regular file, any execute bit.
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IXANY: u32 = 0o111;
const PATH_MAX: usize = 4096;
const AT_FDCWD: i32 = -100;
const AT_EMPTY_PATH: u64 = 0x1000;
const AT_SYMLINK_NOFOLLOW: u64 = 0x100;

/// A program that is ready to run: nothing of the process has changed yet.
pub struct Prepared {
    space: Arc<AddressSpace>,
    program: elf::Program,
    /// AT_SYSINFO_EHDR.
    vdso: Option<u64>,
    arguments: Arguments,
    /// As given, for AT_EXECFN.
    name: Vec<u8>,
    file: Arc<dyn Inode>,
}

/// Everything up to the point of no return.
///
/// # Errors
/// As execve(2); what is wrong with a program file is in the log.
pub fn prepare(
    process: &Process,
    file: Arc<dyn Inode>,
    name: Vec<u8>,
    mut arguments: Arguments,
) -> Result<Prepared, Errno> {
    let mut file = file;
    let mut path = name.clone();
    for _ in 0..=MAX_SCRIPTS {
        if file.mode() & S_IFMT != S_IFREG || file.mode() & S_IXANY == 0 {
            return Err(Errno::EACCES);
        }
        let mut head = [0; HEAD];
        let n = file.read_at(0, &mut head)?;
        let head = &head[..n];
        if elf::is_elf(head) {
            let space = AddressSpace::new()?;
            let shown = core::str::from_utf8(&path).unwrap_or("program");
            let program = elf::load(&space, &*file, head, shown)?;
            let mut prot = Prot::READ | Prot::WRITE;
            prot.set(Prot::EXEC, program.executable_stack);
            let size = stack_size(process.limits.lock().stack(), &arguments);
            space.map(STACK_TOP - size, size, prot, Backing::Anonymous, 0, true, "[stack]")?;
            if let Some(end) = page_up(program.end) {
                space.lock().start_heap(end);
            }
            let vdso = vdso::map(&space)?;
            return Ok(Prepared { space, program, vdso, arguments, name, file });
        }
        let (interpreter, option) = parse_script(head)?;
        let interpreter = interpreter.to_vec();
        match option {
            Some(o) => arguments.replace_first(&[interpreter.as_slice(), o, path.as_slice()]),
            None => arguments.replace_first(&[interpreter.as_slice(), path.as_slice()]),
        }
        file = fs::lookup(process, AT_FDCWD, &interpreter, true)?;
        path = interpreter;
    }
    Err(Errno::ELOOP)
}

/// Bytes of the stack under a limit.
fn stack_size(limit: u64, arguments: &Arguments) -> u64 {
    let needed = MIN_STACK + arguments.size_on_stack();
    page_up(limit.min(MAX_STACK)).map_or(MAX_STACK, |size| size.max(needed.next_multiple_of(PAGE_SIZE)))
}

/// The interpreter and its one argument of a `#!` line.
fn parse_script(head: &[u8]) -> Result<(&[u8], Option<&[u8]>), Errno> {
    let line = head.strip_prefix(b"#!").ok_or(Errno::ENOEXEC)?;
    let end = match line.iter().position(|b| *b == b'\n') {
        Some(n) => n,
        // Cut off: only an argument may be cut, not the interpreter's name.
        None if head.len() < HEAD || line.trim_ascii_start().iter().any(|b| matches!(b, b' ' | b'\t')) => line.len(),
        None => return Err(Errno::ENOEXEC),
    };
    let line = line[..end].trim_ascii();
    if line.is_empty() {
        return Err(Errno::ENOEXEC);
    }
    match line.iter().position(|b| matches!(b, b' ' | b'\t')) {
        Some(n) => Ok((&line[..n], Some(line[n..].trim_ascii_start()))),
        None => Ok((line, None)),
    }
}

/// Point of no return and what follows. On success `frame` enters the program.
///
/// # Errors
/// Only before the point of no return: another thread ends the process or runs exec. After it a failure ends the process on
/// the way to ring 3.
pub fn commit(thread: &Thread, prepared: Prepared, frame: &mut TrapFrame) -> Result<(), Errno> {
    let process = &thread.process;
    let Prepared { space, program, vdso, arguments, name, file } = prepared;
    become_only_thread(thread)?;
    let me = current();
    exit::release_memory(thread, false, me.space().is_some_and(|s| s.threads.load(Ordering::Relaxed) > 1));
    me.replace_space(Some(space.clone()));
    drop(process.set_space(Some(space)));
    process.fs.unshare(fs::Share { files: true, place: false });
    process.fs.close_on_exec();
    process.did_exec.store(true, Ordering::Relaxed);
    {
        let mut signals = process.signals.lock();
        signals.unshare_actions();
        signals.reset_handlers();
    }
    process.timers.lock().forget_posix();
    *thread.alt_stack.lock() = thread::AltStack::default();
    *thread.restart.lock() = None;
    thread.robust_list.store(0, Ordering::Relaxed);
    me.set_fs_base(0);
    if let Some(area) = &me.fpu {
        area.reset();
        let _irq = IrqGuard::new();
        fpu::load_current_from(cpu::this(), &me, area);
    }
    me.set_name(&command_name(&name));
    match finish(&program, vdso, &arguments, &name) {
        Ok((sp, auxv)) => {
            process.set_image(Arc::new(Image {
                path: file.path(),
                cmdline: arguments.cmdline().to_vec(),
                environ: arguments.environ().to_vec(),
                auxv,
                file: Some(file),
                bias: program.bias,
                stack_top: sp,
            }));
            let stepped = debug_port::debuggers_flag(frame.rflags);
            *frame = thread::fresh_frame(program.entry, sp);
            frame.rflags |= stepped;
        }
        Err(_) => {
            signal::start_group_exit(process, SIGSEGV);
            me.work.fetch_or(work::USER, Ordering::SeqCst);
        }
    }
    Ok(())
}

fn finish(
    program: &elf::Program,
    vdso: Option<u64>,
    arguments: &Arguments,
    name: &[u8],
) -> Result<(u64, Vec<u64>), user::Fault> {
    if let Some((at, len)) = program.clear {
        user::zero(at, len as usize)?;
    }
    arguments.write(STACK_TOP, program, vdso, name)
}

/// Last component of a path, cut to the 15 bytes that Linux keeps.
fn command_name(path: &[u8]) -> alloc::string::String {
    let last = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
    alloc::string::String::from_utf8_lossy(&last[..last.len().min(15)]).into_owned()
}

/// Ends the other threads and waits for them.
fn become_only_thread(thread: &Thread) -> Result<(), Errno> {
    let process = &thread.process;
    let me = current();
    {
        let s = process.signals.lock();
        if process.is_exiting() || process.exec_by.load(Ordering::Relaxed) != 0 {
            return Err(Errno::ERESTARTNOHAND); // we end before we see ring 3 again
        }
        if s.threads.len() == 1 {
            return Ok(());
        }
        process.exec_by.store(thread.tid(), Ordering::Relaxed);
        for t in s.threads.iter().filter(|t| !core::ptr::eq(Arc::as_ptr(t), &*me)) {
            t.work.fetch_or(work::USER, Ordering::SeqCst);
            crate::sched::lift(t);
            if !crate::sched::wake(t) {
                crate::sched::nudge(t);
            }
        }
    }
    process
        .thread_gone
        .wait_until(|| (process.signals.lock().threads.len() == 1 || process.is_exiting()).then_some(()));
    process.exec_by.store(0, Ordering::Relaxed);
    if process.is_exiting() {
        return Err(Errno::ERESTARTNOHAND);
    }
    // The first thread is gone, and its number is the process's.
    thread.tid.store(process.pid, Ordering::Relaxed);
    Ok(())
}

/// execve(2).
pub fn execve(thread: &Thread, frame: &mut TrapFrame, path: u64, argv: u64, envp: u64) -> SysResult {
    execveat(thread, frame, AT_FDCWD, path, argv, envp, 0)
}

/// execveat(2).
pub fn execveat(
    thread: &Thread,
    frame: &mut TrapFrame,
    dirfd: i32,
    path: u64,
    argv: u64,
    envp: u64,
    flags: u64,
) -> SysResult {
    if flags & !(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let process = &thread.process;
    let name = user::read_cstr(path, PATH_MAX).map_err(|e| e.map_or(Errno::ENAMETOOLONG, Errno::from))?;
    let (file, name) = if name.is_empty() && flags & AT_EMPTY_PATH != 0 {
        let file = fs::inode_of_fd(process, dirfd)?;
        (file, alloc::format!("/dev/fd/{dirfd}").into_bytes())
    } else {
        (fs::lookup(process, dirfd, &name, flags & AT_SYMLINK_NOFOLLOW == 0)?, name)
    };
    let prepared = prepare(process, file, name, Arguments::from_user(argv, envp)?).map_err(|e| match e {
        // What Linux answers when the dynamic loader that the program names isn't there.
        Errno::ELIBBAD => Errno::ENOENT,
        e => e,
    })?;
    commit(thread, prepared, frame)?;
    Ok(0)
}
