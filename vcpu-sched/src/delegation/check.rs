//! May this be committed? The checks in their order; the first that fails is the transaction's end state.
//!
//! Pure. The guest gathers the facts from its private tables under the enclave's lock; nothing of them comes from the region.

use super::abi::{GTID_AGENT, GTID_IDLE, GTID_NONE, VERSION, commit_flags, run_flags};
use super::txn::{Request, TxnState};
use crate::ids::CpuId;

/// What is true of the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuFacts {
    /// The CPU whose transaction it is.
    pub cpu: CpuId,
    /// Belongs to the enclave.
    pub in_enclave: bool,
    /// Is online.
    pub online: bool,
    /// An agent is accepted that may commit.
    pub agent: bool,
    /// There is an agent task that can be run there.
    pub agent_task: bool,
    /// What runs or is latched there must not be preempted.
    pub do_not_preempt: bool,
    /// A higher class runs or waits there.
    pub higher_class: bool,
    /// The agent barrier.
    pub agent_barrier: u32,
}

/// What is true of the task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TargetFacts {
    /// Its NEW is still to come.
    pub gated: bool,
    /// It has gone.
    pub gone: bool,
    /// The task barrier.
    pub barrier: u32,
    /// It may run.
    pub runnable: bool,
    /// It runs there, or is latched there.
    pub on_cpu: Option<CpuId>,
    /// It runs (and isn't merely latched).
    pub running: bool,
    /// Belongs to this enclave.
    pub in_enclave: bool,
    /// Its CPU set has this CPU.
    pub allowed: bool,
}

/// Who commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// The CPU itself for an agent elsewhere, or an agent in the guest for another CPU.
    Remote,
    /// An agent in the guest gives up its own CPU.
    LocalBlocking,
}

/// Are the flags possible?
const fn flags_exist(request: &Request) -> bool {
    let both = commit_flags::AT_SCHEDULE | commit_flags::AT_TXN_COMMIT;
    let idle_only = request.run_flags & run_flags::NEED_CPU_NOT_IDLE != 0 && request.gtid != GTID_IDLE;
    request.commit_flags & !commit_flags::ALL == 0
        && request.run_flags & !run_flags::ALL == 0
        && request.commit_flags & both != both
        && !idle_only
}

/// See the module's text. `target` is `None` if no such task exists; it isn't looked at for the special numbers.
///
/// # Errors
/// The end state.
pub const fn check(request: &Request, cpu: &CpuFacts, target: Option<&TargetFacts>, how: How) -> Result<(), TxnState> {
    use TxnState as S;
    if request.version as u32 != VERSION {
        return Err(S::UnsupportedVersion);
    }
    if request.cpu.0 != cpu.cpu.0 {
        return Err(S::InvalidCpu);
    }
    if !flags_exist(request) {
        return Err(S::InvalidFlags);
    }
    if !cpu.online {
        return Err(S::CpuOffline);
    }
    let special = matches!(request.gtid, GTID_NONE | GTID_AGENT | GTID_IDLE);
    if !special {
        let Some(target) = target else { return Err(S::TargetNotFound) };
        if target.gated || target.gone || target.barrier != request.task_barrier {
            return Err(S::TargetStale);
        }
        if !target.runnable {
            return Err(S::TargetNotRunnable);
        }
        if let Some(on) = target.on_cpu {
            let allowed = request.commit_flags & commit_flags::ALLOW_TASK_ONCPU != 0;
            if !(allowed && target.running && on.0 == cpu.cpu.0) {
                return Err(S::TargetOncpu);
            }
        }
    }
    if !cpu.agent || request.gtid == GTID_AGENT && !cpu.agent_task {
        return Err(S::NoAgent);
    }
    if !cpu.in_enclave {
        return Err(S::InvalidCpu);
    }
    if !special && let Some(target) = target {
        if !target.in_enclave {
            return Err(S::InvalidTarget);
        }
        if !target.allowed {
            return Err(S::NotPermitted);
        }
    }
    if cpu.do_not_preempt || cpu.higher_class {
        return Err(S::CpuUnavail);
    }
    // Only here: a remote agent would be stale again with each message, and might never succeed.
    if matches!(how, How::LocalBlocking) && request.agent_barrier != cpu.agent_barrier {
        return Err(S::AgentStale);
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const REQUEST: Request = Request { agent_barrier: 3, ..Request::run(CpuId(2), 9, 0, 7) };
    const CPU: CpuFacts = CpuFacts {
        cpu: CpuId(2),
        in_enclave: true,
        online: true,
        agent: true,
        agent_task: true,
        do_not_preempt: false,
        higher_class: false,
        agent_barrier: 3,
    };
    const TARGET: TargetFacts = TargetFacts {
        gated: false,
        gone: false,
        barrier: 7,
        runnable: true,
        on_cpu: None,
        running: false,
        in_enclave: true,
        allowed: true,
    };

    type Break = fn(&mut Request, &mut CpuFacts, &mut Option<TargetFacts>);

    /// One way to fail each check, in the order of the checks.
    const FAILURES: &[(TxnState, Break)] = &[
        (TxnState::UnsupportedVersion, |r, _, _| r.version = 2),
        (TxnState::InvalidCpu, |_, c, _| c.cpu = CpuId(5)),
        (TxnState::InvalidFlags, |r, _, _| r.run_flags |= 1 << 20),
        (TxnState::CpuOffline, |_, c, _| c.online = false),
        (TxnState::TargetNotFound, |_, _, t| *t = None),
        (TxnState::TargetStale, |_, _, t| t.iter_mut().for_each(|t| t.gated = true)),
        (TxnState::TargetStale, |_, _, t| t.iter_mut().for_each(|t| t.gone = true)),
        (TxnState::TargetStale, |_, _, t| t.iter_mut().for_each(|t| t.barrier = 8)),
        (TxnState::TargetNotRunnable, |_, _, t| t.iter_mut().for_each(|t| t.runnable = false)),
        (TxnState::TargetOncpu, |_, _, t| t.iter_mut().for_each(|t| t.on_cpu = Some(CpuId(1)))),
        (TxnState::NoAgent, |_, c, _| c.agent = false),
        (TxnState::InvalidCpu, |_, c, _| c.in_enclave = false),
        (TxnState::InvalidTarget, |_, _, t| t.iter_mut().for_each(|t| t.in_enclave = false)),
        (TxnState::NotPermitted, |_, _, t| t.iter_mut().for_each(|t| t.allowed = false)),
        (TxnState::CpuUnavail, |_, c, _| c.do_not_preempt = true),
        (TxnState::CpuUnavail, |_, c, _| c.higher_class = true),
        (TxnState::AgentStale, |_, c, _| c.agent_barrier = 4),
    ];

    fn checked(breaks: &[&Break], how: How) -> Result<(), TxnState> {
        let (mut request, mut cpu, mut target) = (REQUEST, CPU, Some(TARGET));
        breaks.iter().for_each(|each| each(&mut request, &mut cpu, &mut target));
        check(&request, &cpu, target.as_ref(), how)
    }

    #[test]
    fn of_any_two_failures_the_earlier_one_is_told() {
        assert_eq!(checked(&[], How::LocalBlocking), Ok(()));
        for (n, (first, break_first)) in FAILURES.iter().enumerate() {
            assert_eq!(checked(&[break_first], How::LocalBlocking), Err(*first), "failure {n}");
            for (_, break_second) in &FAILURES[n..] {
                assert_eq!(checked(&[break_second, break_first], How::LocalBlocking), Err(*first), "failure {n}");
            }
        }
    }

    #[test]
    fn a_remote_commit_does_not_look_at_the_agent_barrier() {
        let (_, stale) = FAILURES[FAILURES.len() - 1];
        assert_eq!(checked(&[&stale], How::Remote), Ok(()));
    }

    #[test]
    fn special_numbers_need_no_target() {
        for gtid in [GTID_NONE, GTID_AGENT, GTID_IDLE] {
            let request = Request { gtid, ..REQUEST };
            assert_eq!(check(&request, &CPU, None, How::Remote), Ok(()));
            let no_agent_task = CpuFacts { agent_task: false, ..CPU };
            let expected = if gtid == GTID_AGENT { Err(TxnState::NoAgent) } else { Ok(()) };
            assert_eq!(check(&request, &no_agent_task, None, How::Remote), expected);
        }
    }

    #[test]
    fn a_task_that_runs_here_already_may_be_allowed() {
        let here = TargetFacts { on_cpu: Some(CpuId(2)), running: true, ..TARGET };
        let request = Request { commit_flags: commit_flags::ALLOW_TASK_ONCPU, ..REQUEST };
        assert_eq!(check(&request, &CPU, Some(&here), How::Remote), Ok(()));
        for other in [TargetFacts { running: false, ..here }, TargetFacts { on_cpu: Some(CpuId(0)), ..here }] {
            assert_eq!(check(&request, &CPU, Some(&other), How::Remote), Err(TxnState::TargetOncpu));
        }
    }
}
