//! A program as a task steps through it: loops flattened to jumps.
//!
//! Made once per group when the machine is built, shared by the group's tasks. The invariant: every jump lands inside the
//! code, and its last instruction is [`Instr::Again`], so that a program counter never leaves it.

use alloc::vec::Vec;

use super::model::{ChannelRef, Op};
use super::random::Span;
use crate::cpumask::CpuMask;
use crate::ids::Nanos;
use crate::params::SchedParams;

/// One instruction. See [`Op`] for what those do that have the same name.
#[derive(Clone, Debug)]
pub(super) enum Instr {
    Run(Span),
    Sleep(Span),
    Yield,
    Take(ChannelRef, u64),
    Put(ChannelRef, u64),
    Meet(ChannelRef),
    Fork {
        group: usize,
        count: u32,
    },
    Join,
    NextPeriod {
        period: Nanos,
        deadline: Nanos,
    },
    Params(SchedParams),
    Affinity(CpuMask),
    /// Enters a loop that is to be gone through so often.
    Enter(u32),
    /// Ends a passage through a loop whose body starts there.
    Leave(usize),
    Exit,
    /// The end of the whole program.
    Again,
}

/// Flattens a checked program.
pub(super) fn compile(program: &[Op]) -> Vec<Instr> {
    let mut code = Vec::new();
    flatten(program, &mut code);
    code.push(Instr::Again);
    code
}

fn flatten(ops: &[Op], code: &mut Vec<Instr>) {
    for op in ops {
        let instr = match op {
            Op::Run(span) => Instr::Run(span.clone()),
            Op::Sleep(span) => Instr::Sleep(span.clone()),
            Op::Yield => Instr::Yield,
            Op::Take(channel, count) => Instr::Take(*channel, u64::from(*count)),
            Op::Put(channel, count) => Instr::Put(*channel, u64::from(*count)),
            Op::Meet(channel) => Instr::Meet(*channel),
            Op::Fork { group, count } => Instr::Fork { group: *group, count: *count },
            Op::Join => Instr::Join,
            Op::NextPeriod { period, deadline } => Instr::NextPeriod { period: *period, deadline: *deadline },
            Op::Params(params) => Instr::Params(*params),
            Op::Affinity(mask) => Instr::Affinity(mask.clone()),
            Op::Exit => Instr::Exit,
            Op::Repeat { times, body } => {
                code.push(Instr::Enter(*times));
                let start = code.len();
                flatten(body, code);
                Instr::Leave(start)
            }
        };
        code.push(instr);
    }
}
