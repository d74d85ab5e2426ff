//! The client's commands, parsed. Pure; [`super::session`] carries them out.
//!
//! Source: gdb's manual, "Remote Protocol", "Packets" and "General Query Packets". Invariant: any bytes give a command or
//! `None`, which is answered by the empty packet ("not supported").

use super::hex;
use super::observe::Calls;

/// Which thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadId {
    /// -1.
    All,
    /// 0.
    Any,
    /// This one.
    One(u32),
}

/// What a thread shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Go on.
    Continue,
    /// One instruction.
    Step,
    /// Steps as long as it is in this range.
    Range(u64, u64),
    /// Stop.
    Stop,
    /// Beside going on: the signal that it has stopped for is delivered, where it would be lost without.
    Deliver,
}

/// The kinds of breakpoints, by their number in Z and z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Z0.
    Software,
    /// Z1.
    Hardware,
    /// Z2.
    Write,
    /// Z3.
    Read,
    /// Z4.
    Access,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `?`.
    WhyStopped,
    /// `g`.
    ReadRegisters,
    /// `G`.
    WriteRegisters(Vec<u8>),
    /// `p`.
    ReadRegister(usize),
    /// `P`.
    WriteRegister(usize, Vec<u8>),
    /// `m`: address and length.
    ReadMemory(u64, usize),
    /// `x`: the same, answered in binary.
    ReadBinary(u64, usize),
    /// `M`, `X`.
    WriteMemory(u64, Vec<u8>),
    /// `Hg`.
    SelectThread(ThreadId),
    /// `Hc`.
    SelectForResume(ThreadId),
    /// `T`.
    IsAlive(ThreadId),
    /// `vCont`, in the order given; `c` and `s` too. A thread does what the first action that fits says.
    Resume(Vec<(Action, ThreadId)>),
    /// `vCont?`.
    ResumeSupported,
    /// `Z`: kind, address, size, condition's expressions.
    Insert(Kind, u64, u64, Vec<Vec<u8>>),
    /// `z`.
    Remove(Kind, u64, u64),
    /// `QCatchSyscalls`.
    CatchCalls(Calls),
    /// lldb's `qWatchpointSupportInfo`.
    WatchInfo,
    /// `D`.
    Detach,
    /// `k`, `vKill`.
    Kill,
    /// `qSupported`.
    Supported(String),
    /// `qXfer:object:read:annex:offset,length`.
    Transfer {
        /// Which object.
        object: String,
        /// Which of them.
        annex: String,
        /// From where.
        offset: usize,
        /// How much.
        length: usize,
    },
    /// `qfThreadInfo`.
    FirstThreads,
    /// `qsThreadInfo`.
    MoreThreads,
    /// `qThreadExtraInfo`.
    ThreadInfo(ThreadId),
    /// lldb's `qThreadStopInfo`.
    ThreadStop(ThreadId),
    /// lldb's `jThreadsInfo`.
    ThreadsJson,
    /// lldb's `qHostInfo`.
    HostInfo,
    /// lldb's `qProcessInfo`.
    ProcessInfo,
    /// `qC`.
    CurrentThread,
    /// `qOffsets`.
    Offsets,
    /// `qAttached`.
    Attached,
    /// `qRcmd`.
    Monitor(String),
    /// `QStartNoAckMode`.
    NoAck,
    /// lldb's `QThreadSuffixSupported`.
    ThreadSuffix,
    /// lldb's `QListThreadsInStopReply`.
    ListThreads,
    /// `vFile:setfs`.
    FileSystem,
    /// `vFile:open` of a path.
    FileOpen(String),
    /// `vFile:pread`: handle, count, offset.
    FileRead(u32, usize, u64),
    /// `vFile:fstat`.
    FileStat(u32),
    /// `vFile:close`.
    FileClose(u32),
}

/// Parses a packet's data.
pub fn parse(data: &[u8]) -> Option<Command> {
    let (&first, rest) = data.split_first()?;
    if first == b'X' {
        let colon = rest.iter().position(|byte| *byte == b':')?;
        let (address, length) = pair(std::str::from_utf8(&rest[..colon]).ok()?)?;
        let bytes = &rest[colon + 1..];
        return (bytes.len() as u64 == length).then(|| Command::WriteMemory(address, bytes.to_vec()));
    }
    let text = std::str::from_utf8(data).ok()?;
    let rest = text.get(1..)?;
    Some(match first {
        b'?' => Command::WhyStopped,
        b'g' => Command::ReadRegisters,
        b'G' => Command::WriteRegisters(hex::decode(rest)?),
        b'p' => Command::ReadRegister(usize::from_str_radix(thread_suffix(rest).0, 16).ok()?),
        b'P' => {
            let (number, value) = thread_suffix(rest).0.split_once('=')?;
            Command::WriteRegister(usize::from_str_radix(number, 16).ok()?, hex::decode(value)?)
        }
        b'm' => pair(rest).and_then(|(at, len)| Some(Command::ReadMemory(at, usize::try_from(len).ok()?)))?,
        b'x' => pair(rest).and_then(|(at, len)| Some(Command::ReadBinary(at, usize::try_from(len).ok()?)))?,
        b'M' => {
            let (place, bytes) = rest.split_once(':')?;
            let ((address, length), bytes) = (pair(place)?, hex::decode(bytes)?);
            (bytes.len() as u64 == length).then_some(Command::WriteMemory(address, bytes))?
        }
        b'H' if rest.starts_with('g') => Command::SelectThread(thread(&rest[1..])?),
        b'H' if rest.starts_with('c') => Command::SelectForResume(thread(&rest[1..])?),
        b'T' => Command::IsAlive(thread(rest)?),
        b'c' if rest.is_empty() => Command::Resume(vec![(Action::Continue, ThreadId::All)]),
        b's' if rest.is_empty() => Command::Resume(vec![(Action::Step, ThreadId::Any)]),
        b'C' | b'S' if rest.len() == 2 => {
            let (action, who) =
                if first == b'C' { (Action::Continue, ThreadId::All) } else { (Action::Step, ThreadId::Any) };
            Command::Resume(vec![(action, who), (Action::Deliver, ThreadId::Any)])
        }
        b'D' => Command::Detach,
        b'k' => Command::Kill,
        b'Z' => insert(rest)?,
        b'z' => {
            let (kind, address, size) = point(rest)?;
            Command::Remove(kind, address, size)
        }
        b'q' | b'Q' | b'j' => query(text)?,
        b'v' => verbose(text)?,
        _ => return None,
    })
}

fn query(text: &str) -> Option<Command> {
    let (name, rest) = text.split_at(text.find([':', ',']).unwrap_or(text.len()));
    let rest = rest.get(1..).unwrap_or_default();
    Some(match name {
        "qSupported" => Command::Supported(rest.to_owned()),
        "qXfer" => {
            let mut parts = rest.splitn(3, ':');
            let (object, "read") = (parts.next()?, parts.next()?) else { return None };
            let (annex, place) = parts.next()?.rsplit_once(':')?;
            let (offset, length) = pair(place)?;
            Command::Transfer {
                object: object.to_owned(),
                annex: annex.to_owned(),
                offset: usize::try_from(offset).ok()?,
                length: usize::try_from(length).ok()?,
            }
        }
        "qfThreadInfo" => Command::FirstThreads,
        "qsThreadInfo" => Command::MoreThreads,
        "qThreadExtraInfo" => Command::ThreadInfo(thread(rest)?),
        "qC" => Command::CurrentThread,
        "qOffsets" => Command::Offsets,
        "qAttached" => Command::Attached,
        "qRcmd" => Command::Monitor(String::from_utf8(hex::decode(rest)?).ok()?),
        "qHostInfo" => Command::HostInfo,
        "qProcessInfo" => Command::ProcessInfo,
        "jThreadsInfo" => Command::ThreadsJson,
        "QCatchSyscalls" => Command::CatchCalls(calls(rest)?),
        "qWatchpointSupportInfo" => Command::WatchInfo,
        "QStartNoAckMode" => Command::NoAck,
        "QThreadSuffixSupported" => Command::ThreadSuffix,
        "QListThreadsInStopReply" => Command::ListThreads,
        _ => Command::ThreadStop(thread(name.strip_prefix("qThreadStopInfo")?)?),
    })
}

fn verbose(text: &str) -> Option<Command> {
    if text == "vCont?" {
        return Some(Command::ResumeSupported);
    }
    if let Some(actions) = text.strip_prefix("vCont;") {
        let mut all = Vec::new();
        for text in actions.split(';') {
            let (action, who) = action(text)?;
            all.push((action, who));
            if text.starts_with(['C', 'S']) {
                all.push((Action::Deliver, who));
            }
        }
        return Some(Command::Resume(all));
    }
    if text.starts_with("vKill") {
        return Some(Command::Kill);
    }
    let (operation, arguments) = text.strip_prefix("vFile:")?.split_once(':')?;
    let mut numbers = arguments.split(',').map(|number| u64::from_str_radix(number, 16).ok());
    let mut next = || numbers.next().flatten();
    Some(match operation {
        "setfs" => Command::FileSystem,
        "open" => Command::FileOpen(String::from_utf8(hex::decode(arguments.split(',').next()?)?).ok()?),
        "pread" => Command::FileRead(next()? as u32, usize::try_from(next()?).ok()?, next()?),
        "fstat" => Command::FileStat(next()? as u32),
        "close" => Command::FileClose(next()? as u32),
        _ => return None,
    })
}

fn action(text: &str) -> Option<(Action, ThreadId)> {
    let (what, who) = text.split_once(':').map_or((text, None), |(what, who)| (what, Some(who)));
    let who = who.map_or(Some(ThreadId::All), thread)?;
    let action = match what.split_at_checked(1)? {
        ("c" | "C", _) => Action::Continue,
        ("s" | "S", _) => Action::Step,
        ("t", "") => Action::Stop,
        ("r", range) => pair(range).map(|(start, end)| Action::Range(start, end))?,
        _ => return None,
    };
    Some((action, who))
}

/// `0`, `-1`, a number, or `pPID.TID`: there is one process only.
fn thread(text: &str) -> Option<ThreadId> {
    let text = match text.strip_prefix('p') {
        Some(both) => both.split_once('.').map_or("-1", |(_, thread)| thread),
        None => text,
    };
    match text {
        "-1" => Some(ThreadId::All),
        _ => u32::from_str_radix(text, 16).ok().map(|id| if id == 0 { ThreadId::Any } else { ThreadId::One(id) }),
    }
}

/// `0`, `1`, or `1;NUMBER;NUMBER...`.
fn calls(text: &str) -> Option<Calls> {
    match text.split_once(';') {
        None if text == "0" => Some(Calls::None),
        None if text == "1" => Some(Calls::All),
        Some(("1", list)) => {
            list.split(';').map(|number| u64::from_str_radix(number, 16).ok()).collect::<Option<_>>().map(Calls::These)
        }
        _ => None,
    }
}

/// lldb may add `;thread:ID;`.
fn thread_suffix(text: &str) -> (&str, Option<ThreadId>) {
    text.split_once(";thread:").map_or((text, None), |(text, id)| (text, thread(id.trim_end_matches(';'))))
}

/// `ADDRESS,LENGTH`.
fn pair(text: &str) -> Option<(u64, u64)> {
    let (first, second) = text.split_once(',')?;
    Some((u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(second, 16).ok()?))
}

/// `TYPE,ADDRESS,SIZE`.
fn point(text: &str) -> Option<(Kind, u64, u64)> {
    let (kind, place) = text.split_once(',')?;
    let kind = match kind {
        "0" => Kind::Software,
        "1" => Kind::Hardware,
        "2" => Kind::Write,
        "3" => Kind::Read,
        "4" => Kind::Access,
        _ => return None,
    };
    pair(place).map(|(address, size)| (kind, address, size))
}

/// `TYPE,ADDRESS,SIZE[;X LENGTH,BYTES...]`.
fn insert(text: &str) -> Option<Command> {
    let (place, conditions) = text.split_once(';').unwrap_or((text, ""));
    let (kind, address, size) = point(place)?;
    let mut expressions = Vec::new();
    for condition in conditions.split(';').flat_map(|list| list.split('X')).filter(|condition| !condition.is_empty()) {
        let (length, bytes) = condition.split_once(',')?;
        let (length, bytes) = (usize::from_str_radix(length, 16).ok()?, hex::decode(bytes)?);
        (bytes.len() == length).then(|| expressions.push(bytes))?;
    }
    Some(Command::Insert(kind, address, size, expressions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_are_understood() {
        use Command::*;
        let cases: [(&[u8], Command); 15] = [
            (b"m1f,20", ReadMemory(0x1f, 0x20)),
            (b"M10,2:abcd", WriteMemory(0x10, vec![0xab, 0xcd])),
            (b"X10,2:\x00#", WriteMemory(0x10, vec![0, b'#'])),
            (b"Hgp1.1a", SelectThread(ThreadId::One(0x1a))),
            (b"Hc-1", SelectForResume(ThreadId::All)),
            (b"vCont;s:7;c", Resume(vec![(Action::Step, ThreadId::One(7)), (Action::Continue, ThreadId::All)])),
            (b"vCont;C0b:7", Resume(vec![(Action::Continue, ThreadId::One(7)), (Action::Deliver, ThreadId::One(7))])),
            (b"vCont;r10,20:p1.7", Resume(vec![(Action::Range(0x10, 0x20), ThreadId::One(7))])),
            (b"Z0,401000,1;X3,010203X1,27", Insert(Kind::Software, 0x401000, 1, vec![vec![1, 2, 3], vec![0x27]])),
            (b"z1,401000,1", Remove(Kind::Hardware, 0x401000, 1)),
            (b"P10=00ff", WriteRegister(0x10, vec![0, 0xff])),
            (b"qRcmd,68656c70", Monitor("help".into())),
            (
                b"qXfer:features:read:target.xml:0,ffb",
                Transfer { object: "features".into(), annex: "target.xml".into(), offset: 0, length: 0xffb },
            ),
            (b"qThreadStopInfo7", ThreadStop(ThreadId::One(7))),
            (b"vFile:pread:5,1000,40", FileRead(5, 0x1000, 0x40)),
        ];
        for (data, command) in cases {
            assert_eq!(parse(data), Some(command), "{}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn what_contradicts_itself_is_no_command() {
        for data in [&b"M10,3:abcd"[..], b"X10,3:ab", b"m1f", b"Z9,0,1", b"Z0,0,1;X4,00", b"vCont;q", b"", b"\xff\xff"]
        {
            assert_eq!(parse(data), None, "{}", String::from_utf8_lossy(data));
        }
    }

    proptest! {
        #[test]
        fn noise_does_no_harm(head in "[?gGpPmxMXHTcsCSDkZzqQvj]|vCont;|vFile:|qXfer:", noise in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&[head.as_bytes(), &noise].concat());
        }

        #[test]
        fn text_does_no_harm(head in "[?gGpPmxMXHTcsCSDkZzqQvj]|vCont;|vFile:open:|qXfer:", noise in "[0-9a-f,:;XpP=.-]{0,40}") {
            let _ = parse(format!("{head}{noise}").as_bytes());
        }
    }
}
