//! One client's session: commands in, answers out, over a [`Target`].
//!
//! [`super::server`] frames and carries. Invariants: every command gets exactly one answer, but for those that let the guest run,
//! whose answer is the next stop; nothing that a client sends makes this fail, an error is an answer too.

use std::fmt::Write;

use vcpu_sched::taskdebug::WATCHES;

use super::command::{Action, Command, Kind, ThreadId};
use super::registers::{REGISTERS, is_vector, number, value_of};
use super::stop::{EXPEDITED, Stop, Why, signal};
use super::target::{Machine, Target, TargetError};
use super::threads::{Thread, to_xml};
use super::{hex, monitor, target_xml};

/// The name under which the kernel's file is offered.
pub const KERNEL_FILE: &str = "/taskvisor/kernel.elf";
/// Its only handle.
const KERNEL_HANDLE: u32 = 5;
/// Errno values of the File-I/O protocol (gdb's manual, "Errno Values").
const ENOENT: u32 = 2;
const EBADF: u32 = 9;
/// For reads, where clients understand numbers only: bad address, no such thread.
const NO_MEMORY: &str = "E0e";
const NO_THREAD: &str = "E03";
/// The most that a read of memory gives.
const MAX_READ: usize = super::packet::MAX_PACKET / 2 - 16;

/// What to do after a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Send this.
    Data(Vec<u8>),
    /// Nothing until the guest stops.
    Running,
    /// Send this, without acknowledgements from now on.
    NoAck,
    /// Send this; the session is over, the guest goes on.
    Detach,
    /// The guest shall end.
    Kill,
}

/// A client and what it has selected.
#[derive(Debug)]
pub struct Session {
    /// The machine.
    pub target: Target,
    selected: u32,
    resumes: Option<u32>,
    /// Transfers come in pieces; all pieces are of the same text.
    transfer: (String, Vec<u8>),
    /// lldb, which wants more told.
    lldb: bool,
    /// The guest runs, and the client waits.
    pub running: bool,
    /// `m` and `M` mean guest-physical addresses.
    pub physical: bool,
}

fn text(text: impl Into<String>) -> Reply {
    Reply::Data(text.into().into_bytes())
}

fn ok() -> Reply {
    text("OK")
}

fn failed(error: &TargetError) -> Reply {
    log::debug!("gdb: {error}");
    text(format!("E.{error}"))
}

impl Session {
    /// With a machine that stands still, held by the target.
    pub fn new(target: Target) -> Self {
        let mut session = Self {
            target,
            selected: 1,
            resumes: None,
            transfer: Default::default(),
            lldb: false,
            running: false,
            physical: false,
        };
        let first = session.target.threads.iter().find(|thread| thread.vcpu.is_some() && thread.user);
        session.selected = first.or_else(|| session.target.thread_on(0)).map_or(1, |thread| thread.id);
        session.target.running.last = Some(Stop { thread: session.selected, signal: signal::TRAP, why: Why::Signal });
        session
    }

    /// Carries a command out; `None`: one that isn't known.
    pub fn handle(&mut self, command: Option<Command>) -> Reply {
        let Some(command) = command else { return text("") };
        if self.running {
            // Only Ctrl-C may come now, which is no command.
            return failed(&TargetError::Running);
        }
        let numbered = match command {
            Command::ReadMemory(..) | Command::ReadBinary(..) => Some(NO_MEMORY),
            Command::ReadRegisters | Command::ReadRegister(_) | Command::SelectThread(_) | Command::IsAlive(_) => {
                Some(NO_THREAD)
            }
            _ => None,
        };
        self.carry_out(command).unwrap_or_else(|error| numbered.map_or_else(|| failed(&error), text))
    }

    fn carry_out(&mut self, command: Command) -> Result<Reply, TargetError> {
        let selected = self.selected;
        Ok(match command {
            Command::Supported(_) => text(format!(
                "PacketSize={:x};qXfer:features:read+;qXfer:threads:read+;qXfer:exec-file:read+;vContSupported+;\
                 QStartNoAckMode+;QCatchSyscalls+;binary-upload+;swbreak+;hwbreak+;ConditionalBreakpoints+",
                super::packet::MAX_PACKET
            )),
            Command::WhyStopped => match self.target.running.last {
                Some(stop) => text(self.stop_reply(stop)),
                None => text("S05"),
            },
            Command::ReadRegisters => {
                self.target.want_vectors(selected)?;
                text(self.target.registers(selected)?.packet())
            }
            Command::ReadRegister(number) if number < REGISTERS.len() => {
                if is_vector(number) {
                    self.target.want_vectors(selected)?;
                }
                let values = self.target.registers(selected)?;
                let mut out = String::new();
                values.put(number, &mut out);
                // lldb takes `xx` for digits, but knows what to do with an error.
                text(if self.lldb && values.get(number).is_none() { "E00".to_owned() } else { out })
            }
            Command::ReadRegister(_) => text("E00"),
            Command::WriteRegister(number, bytes) => match value_of(number, &bytes) {
                Some(value) => self.target.set_register(selected, number, value).map(|()| ok())?,
                None => text("E00"),
            },
            Command::WriteRegisters(bytes) => self.write_registers(&bytes)?,
            Command::ReadMemory(address, length) => match self.read(address, length)? {
                bytes if bytes.is_empty() && length > 0 => text(NO_MEMORY),
                bytes => text(hex::encode(&bytes)),
            },
            Command::ReadBinary(address, length) => match self.read(address, length)? {
                bytes if bytes.is_empty() && length > 0 => text(NO_MEMORY),
                bytes => Reply::Data([b"b", bytes.as_slice()].concat()),
            },
            Command::WriteMemory(address, bytes) => {
                if self.physical {
                    super::memory::Space::physical(&self.target.machine.ram).write(address, &bytes)?;
                } else {
                    self.target.space(selected)?.write(address, &bytes)?;
                }
                ok()
            }
            Command::SelectThread(who) => {
                if let ThreadId::One(id) = who {
                    self.target.thread(id)?;
                    self.selected = id;
                }
                ok()
            }
            Command::SelectForResume(who) => {
                self.resumes = if let ThreadId::One(id) = who { Some(id) } else { None };
                ok()
            }
            Command::IsAlive(ThreadId::One(id)) => self.target.thread(id).map(|_| ok())?,
            Command::IsAlive(_) => ok(),
            Command::ResumeSupported => text("vCont;c;C;s;S;t;r"),
            Command::Resume(actions) => self.resume(&actions)?,
            Command::Insert(kind @ (Kind::Software | Kind::Hardware), address, _, conditions) => {
                let process = self.target.thread(self.program_thread()).ok().and_then(|thread| thread.process);
                let room = self.target.points.insert(kind, address, process, conditions);
                if room { ok() } else { text("E.no debug register is free (a CPU has 4)") }
            }
            Command::Remove(kind @ (Kind::Software | Kind::Hardware), address, _) => {
                self.target.points.remove(kind, address);
                ok()
            }
            Command::Insert(Kind::Write, address, length, _) => match self.target.watch(selected, address, length) {
                Ok(()) => ok(),
                Err(error) => text(format!("E.{error}")),
            },
            Command::Remove(Kind::Write, address, length) => {
                self.target.watches.remove(address, length);
                ok()
            }
            // A read changes nothing that could be compared.
            Command::Insert(..) | Command::Remove(..) => text(""),
            Command::CatchCalls(calls) => {
                self.target.running.calls = calls;
                ok()
            }
            Command::WatchInfo => text(format!("num:{WATCHES};")),
            Command::Detach => Reply::Detach,
            Command::Kill => Reply::Kill,
            Command::Transfer { object, annex, offset, length } => self.transfer(&object, &annex, offset, length),
            Command::FirstThreads => {
                let _ = self.target.show();
                let ids: Vec<String> = self.target.threads.iter().map(|thread| format!("{:x}", thread.id)).collect();
                text(format!("m{}", ids.join(",")))
            }
            Command::MoreThreads => text("l"),
            Command::ThreadInfo(ThreadId::One(id)) => {
                let _ = self.target.show();
                text(hex::encode(self.target.thread(id)?.info.as_bytes()))
            }
            Command::ThreadStop(ThreadId::One(id)) => {
                self.target.thread(id)?;
                text(self.stop_reply(self.stop_of(id)))
            }
            Command::ThreadInfo(_) | Command::ThreadStop(_) => text("E00"),
            Command::ThreadsJson => text(self.threads_json()),
            // No triple: lldb keeps that of the file that it was given, and with it the file's symbols.
            Command::HostInfo => text("ptrsize:8;endian:little;"),
            Command::ProcessInfo => text("pid:1;ptrsize:8;endian:little;"),
            Command::CurrentThread => text(format!("QC{selected:x}")),
            // Programs lie where their file says; lldb asks before it believes its symbols.
            Command::Offsets => text("Text=0;Data=0;Bss=0"),
            Command::Attached => text("1"),
            Command::Monitor(line) => {
                let out = monitor::run(self, selected, &line);
                if out.is_empty() { ok() } else { text(hex::encode(out.as_bytes())) }
            }
            Command::NoAck => Reply::NoAck,
            Command::ListThreads => {
                self.lldb = true;
                ok()
            }
            Command::ThreadSuffix => text(""),
            Command::FileSystem => text("F0"),
            Command::FileOpen(path) if path == KERNEL_FILE => text(format!("F{KERNEL_HANDLE:x}")),
            Command::FileOpen(_) => text(format!("F-1,{ENOENT:x}")),
            Command::FileRead(KERNEL_HANDLE, count, offset) => {
                let kernel = &self.target.machine.kernel;
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(kernel.len());
                let piece = &kernel[start..start.saturating_add(count.min(MAX_READ)).min(kernel.len())];
                Reply::Data([format!("F{:x};", piece.len()).as_bytes(), piece].concat())
            }
            Command::FileStat(KERNEL_HANDLE) => self.file_stat(),
            Command::FileClose(KERNEL_HANDLE) => text("F0"),
            Command::FileRead(..) | Command::FileStat(_) | Command::FileClose(_) => text(format!("F-1,{EBADF:x}")),
        })
    }

    /// The selected thread, if it has a program, else the one that has stopped: a client that has listed all threads leaves the last one
    /// selected, which is some CPU's idle task.
    pub fn program_thread(&self) -> u32 {
        let has = |id: &u32| self.target.thread(*id).is_ok_and(|thread| thread.process.is_some());
        let stopped = self.target.running.last.map(|stop| stop.thread).filter(has);
        Some(self.selected).filter(has).or(stopped).unwrap_or(self.selected)
    }

    fn read(&mut self, address: u64, length: usize) -> Result<Vec<u8>, TargetError> {
        let length = length.min(MAX_READ);
        if self.physical {
            return Ok(super::memory::Space::physical(&self.target.machine.ram).read(address, length));
        }
        let selected = self.selected;
        Ok(self.target.space(selected)?.read(address, length))
    }

    fn write_registers(&mut self, bytes: &[u8]) -> Result<Reply, TargetError> {
        let (selected, mut at) = (self.selected, 0);
        for (number, register) in REGISTERS.iter().enumerate() {
            let end = at + register.bits as usize / 8;
            let Some(value) = bytes.get(at..end).and_then(|bytes| value_of(number, bytes)) else { break };
            at = end;
            self.target.set_register(selected, number, value)?;
        }
        Ok(ok())
    }

    fn resume(&mut self, actions: &[(Action, ThreadId)]) -> Result<Reply, TargetError> {
        let selected = self.resumes.unwrap_or(self.selected);
        self.target.resume(actions, selected)?;
        self.running = true;
        Ok(Reply::Running)
    }

    /// The guest has stopped: what the client is told.
    pub fn stopped(&mut self, stop: Stop) -> Vec<u8> {
        self.running = false;
        self.selected = stop.thread;
        self.transfer = Default::default();
        self.stop_reply(stop).into_bytes()
    }

    /// Why a thread isn't running: its own stop, or that all stopped.
    fn stop_of(&self, id: u32) -> Stop {
        let last = self.target.running.last.filter(|stop| stop.thread == id);
        last.unwrap_or(Stop { thread: id, signal: 0, why: Why::Signal })
    }

    fn stop_reply(&mut self, stop: Stop) -> String {
        let mut out = format!("T{:02x}thread:{:x};", stop.signal, stop.thread);
        let thread = self.target.thread(stop.thread).ok().cloned();
        // Writing to a String can't fail, here and below.
        if let Some(cpu) = thread.as_ref().and_then(|thread| thread.cpu) {
            let _ = write!(out, "core:{cpu:x};");
        }
        match stop.why {
            Why::Software => out.push_str("swbreak:;"),
            Why::Hardware => out.push_str("hwbreak:;"),
            Why::Signal => {}
            Why::Watch(address) => {
                let _ = write!(out, "watch:{address:x};");
            }
            Why::Call { number, over } => {
                let _ = write!(out, "syscall_{}:{number:x};", if over { "return" } else { "entry" });
            }
        }
        if self.lldb {
            let name = thread.map(|thread| thread.name).unwrap_or_default();
            let _ = write!(out, "hexname:{};", hex::encode(name.as_bytes()));
            // A watchpoint's is made from its address.
            if !matches!(stop.why, Why::Watch(_)) {
                let _ = write!(out, "reason:{};", reason(stop));
            }
            let ids: Vec<String> = self.target.threads.iter().map(|thread| format!("{:x}", thread.id)).collect();
            let _ = write!(out, "threads:{};", ids.join(","));
        }
        if let Ok(values) = self.target.registers(stop.thread) {
            for number in EXPEDITED {
                let _ = write!(out, "{number:02x}:");
                values.put(number, &mut out);
                out.push(';');
            }
        }
        out
    }

    fn threads_json(&mut self) -> String {
        let _ = self.target.show();
        let threads: Vec<Thread> = self.target.threads.clone();
        let list = threads.into_iter().map(|thread| {
            let stop = self.stop_of(thread.id);
            let registers = self.target.registers(thread.id).unwrap_or_default();
            let shown = EXPEDITED.into_iter().filter(|number| registers.get(*number).is_some()).map(|number| {
                let mut digits = String::new();
                registers.put(number, &mut digits);
                (number.to_string(), serde_json::Value::from(digits))
            });
            serde_json::json!({
                "tid": thread.id, "name": format!("{} ({})", thread.name, thread.info), "reason": reason(stop),
                "signal": stop.signal, "registers": shown.collect::<serde_json::Map<_, _>>(),
            })
        });
        serde_json::Value::from_iter(list).to_string()
    }

    fn transfer(&mut self, object: &str, annex: &str, offset: usize, length: usize) -> Reply {
        let name = format!("{object}:{annex}");
        if offset == 0 || self.transfer.0 != name {
            let _ = self.target.show();
            let whole = match (object, annex) {
                ("features", "target.xml") => target_xml::target(),
                ("threads", "") => to_xml(&self.target.threads),
                ("exec-file", _) if self.target.machine.kernel.starts_with(b"\x7fELF") => KERNEL_FILE.to_owned(),
                _ => return text("E00"),
            };
            self.transfer = (name, whole.into_bytes());
        }
        let whole = &self.transfer.1;
        let start = offset.min(whole.len());
        let end = start.saturating_add(length.min(MAX_READ)).min(whole.len());
        let more = if end < whole.len() { b"m" } else { b"l" };
        Reply::Data([more.as_slice(), &whole[start..end]].concat())
    }

    /// `struct stat` of the File-I/O protocol, big-endian (gdb's manual, "struct stat").
    fn file_stat(&self) -> Reply {
        let mut stat = [0; 64];
        // A regular file that anybody may read; its size.
        stat[8..12].copy_from_slice(&0o100_444u32.to_be_bytes());
        stat[28..36].copy_from_slice(&(self.target.machine.kernel.len() as u64).to_be_bytes());
        Reply::Data([b"F40;", stat.as_slice()].concat())
    }
}

/// lldb's word for a stop.
fn reason(stop: Stop) -> &'static str {
    match (stop.why, stop.signal) {
        (Why::Software | Why::Hardware, _) => "breakpoint",
        (Why::Watch(_), _) => "watchpoint",
        (Why::Signal | Why::Call { .. }, signal::TRAP) => "trace",
        (Why::Signal, 0) => "none",
        (Why::Signal | Why::Call { .. }, _) => "signal",
    }
}

/// A target for a client that has just come: stops the guest.
pub fn begin(machine: &Machine, held: Option<crate::vm::run_control::Paused>) -> Result<Session, TargetError> {
    let mut target = Target::new(machine.clone());
    target.paused = held;
    target.seize()?;
    Ok(Session::new(target))
}

/// The CPU's part of a program counter, for messages.
pub fn pc_of(session: &mut Session, id: u32) -> Option<u64> {
    session.target.registers(id).ok()?.word(number::RIP)
}
