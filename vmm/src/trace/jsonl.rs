//! JSON lines: a header, then one object a record. docs/tracing.md has the fields.
//!
//! The raw fields (`tsc`, `task`, `seq`, `flags`, `a`, `b`) are all of a record; what follows them in a line is decoded for
//! people and scripts, and not read back.

use std::borrow::Cow;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use vcpu_sched::events::{ClassTag, Event, Kind, Record, flag};

use super::clock::ClockMap;
use super::{Header, Malformed, Stamped, Stream, names};
use crate::vcpu::counts;

/// The first line.
#[derive(Serialize, Deserialize)]
struct HeaderLine {
    taskvisor_trace: Header,
}

/// A record's line, as far as it is read back.
#[derive(Deserialize)]
struct Line<'a> {
    ns: u64,
    cpu: u32,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    task: u32,
    seq: u16,
    flags: u8,
    tsc: u64,
    a: u64,
    b: u64,
}

/// Kinds from here on are the VMM's (`vcpu_sched::events::Kind`).
const VMM_KINDS: u8 = 64;

/// An unknown kind is spelled by its number.
const NUMBER: &str = "kind_";

fn number_of(kind: &str) -> Option<u8> {
    match kind.strip_prefix(NUMBER) {
        Some(digits) => digits.parse().ok(),
        None => names::kind_of(kind).map(|kind| kind as u8),
    }
}

fn syntax(error: &serde_json::Error) -> Malformed {
    Malformed::Syntax(error.to_string())
}

pub(super) fn parse_header(line: &[u8]) -> Result<Header, Malformed> {
    serde_json::from_slice::<HeaderLine>(line).map(|h| h.taskvisor_trace).map_err(|_| Malformed::NotOurs)
}

pub(super) fn parse(line: &[u8]) -> Result<(Stream, Stamped), Malformed> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| syntax(&error))?;
    let kind = number_of(&line.kind).ok_or_else(|| Malformed::Syntax(format!("unknown kind {:?}", line.kind)))?;
    let Line { ns, cpu, task, seq, flags, tsc, a, b, .. } = line;
    let record = Record { tsc, task, seq, kind, flags, a, b };
    Ok((Stream { cpu, vmm: kind >= VMM_KINDS }, Stamped { cpu, time_ns: ns, record }))
}

pub(super) fn stream_of(line: &[u8]) -> Result<Stream, Malformed> {
    parse(line).map(|(stream, _)| stream)
}

pub(super) fn write_header(out: &mut impl Write, header: &Header) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &HeaderLine { taskvisor_trace: header.clone() })?;
    out.write_all(b"\n")
}

/// Writes the lines of one stream's records.
pub(super) fn write(out: &mut impl Write, stream: Stream, map: &ClockMap, records: &[Record]) -> io::Result<()> {
    for r in records {
        write!(out, "{{\"ns\":{},\"cpu\":{},\"kind\":\"", map.time_ns(r.tsc), stream.cpu)?;
        match Kind::from_u8(r.kind) {
            Some(kind) => write!(out, "{}", names::kind_name(kind))?,
            None => write!(out, "{NUMBER}{}", r.kind)?,
        }
        let Record { tsc, task, seq, flags, a, b, .. } = *r;
        write!(out, "\",\"task\":{task},\"seq\":{seq},\"flags\":{flags},\"tsc\":{tsc},\"a\":{a},\"b\":{b}")?;
        decoded(out, r)?;
        out.write_all(b"}\n")?;
    }
    Ok(())
}

fn class(out: &mut impl Write, prefix: &str, class: ClassTag) -> io::Result<()> {
    let policy = names::policy_name(class.policy);
    write!(out, ",\"{prefix}prio\":{},\"{prefix}policy\":\"{policy}\"", class.prio)
}

/// The fields that depend on the kind.
fn decoded(out: &mut impl Write, r: &Record) -> io::Result<()> {
    let (a, b) = (r.a, r.b);
    match Event::decode(r) {
        Some(Event::Queued { waker, target, class: tag, queued, kicked, .. }) => {
            let interrupt = r.flags & flag::FROM_INTERRUPT != 0;
            write!(out, ",\"waker\":{},\"target_cpu\":{},\"queued\":{queued}", waker.0, target.0)?;
            write!(out, ",\"kicked\":{kicked},\"from_interrupt\":{interrupt}")?;
            class(out, "", tag)
        }
        Some(Event::Switch { prev_state, preempted, prev_class, next, queued }) => {
            let state = names::state_name(prev_state);
            write!(out, ",\"state\":\"{state}\",\"preempted\":{preempted},\"next\":{}", next.task.0)?;
            write!(out, ",\"next_seq\":{},\"queued\":{queued}", next.seq)?;
            class(out, "prev_", prev_class)?;
            class(out, "next_", next.class)
        }
        Some(Event::Migrate { from, to, why, queued, kicked }) => {
            let why = names::migrate_reason(why);
            write!(out, ",\"from_cpu\":{},\"to_cpu\":{},\"why\":\"{why}\"", from.0, to.0)?;
            write!(out, ",\"queued\":{queued},\"kicked\":{kicked}")
        }
        Some(Event::Name(name)) => {
            out.write_all(b",\"name\":")?;
            serde_json::to_writer(out, &names::text_of(&name)).map_err(io::Error::from)
        }
        Some(Event::Plain(kind)) => plain(out, kind, r.flags, a, b),
        None => Ok(()),
    }
}

fn plain(out: &mut impl Write, kind: Kind, flags: u8, a: u64, b: u64) -> io::Result<()> {
    match kind {
        Kind::Clock => write!(out, ",\"monotonic_ns\":{a},\"tsc_khz\":{b}"),
        Kind::Process => write!(out, ",\"process\":{a}"),
        Kind::Block => write!(out, ",\"why\":\"{}\",\"which\":{b}", names::wait_reason(a)),
        Kind::Exit => write!(out, ",\"status\":{a}"),
        Kind::Tick => write!(out, ",\"slice_over\":{}", flags & flag::SLICE_OVER != 0),
        Kind::Ipi if flags & flag::RECEIVED != 0 => write!(out, ",\"received\":true,\"vector\":{a}"),
        Kind::Ipi => write!(out, ",\"received\":false,\"target_cpu\":{},\"vector\":{}", a as u32, a >> 32 & 0xff),
        Kind::Fault => write!(out, ",\"address\":\"{a:#x}\",\"rip\":\"{b:#x}\",\"error\":{flags}"),
        Kind::SyscallEnter => write!(out, ",\"number\":{a},\"first\":\"{b:#x}\""),
        Kind::SyscallExit => write!(out, ",\"number\":{a},\"result\":{}", b.cast_signed()),
        Kind::Affinity => write!(out, ",\"mask\":\"{a:#x}\",\"word\":{},\"words\":{}", b as u32, b >> 32),
        Kind::Params => {
            class(out, "", ClassTag { policy: a as u8, prio: (a >> 8) as u8 })?;
            write!(out, ",\"nice\":{},\"slice_ns\":{b}", ((a >> 16) as u8).cast_signed())
        }
        Kind::Halt => write!(out, ",\"resumed\":{},\"queued\":{a}", flags & 1 != 0),
        Kind::Steal | Kind::VcpuSteal => write!(out, ",\"stolen_ns\":{a}"),
        Kind::Chaos => {
            let action = names::chaos_action((a >> 32) as u8);
            write!(out, ",\"point\":{},\"action\":\"{action}\",\"random\":{b}", a as u32)
        }
        Kind::Lost => write!(out, ",\"lost\":{a}"),
        Kind::Online => write!(out, ",\"online\":{}", flags & 1 != 0),
        Kind::VcpuExit => write!(out, ",\"reason\":\"{}\"", counts::Kind::name_of(a)),
        Kind::VcpuPin => write!(out, ",\"mask\":\"{a:#x}\""),
        Kind::VcpuPause => write!(out, ",\"paused\":{}", flags & 1 != 0),
        Kind::New | Kind::Wake | Kind::Switch | Kind::Migrate | Kind::Name | Kind::Delegation | Kind::VcpuEntry => {
            Ok(())
        }
    }
}
