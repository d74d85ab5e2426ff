//! Names of kinds and numbers, as JSON lines and reports spell them.

use vcpu_sched::events::{ChaosAction, Kind, MigrateReason, WaitReason};
use vcpu_sched::requests::change;

/// The name of a kind.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Clock => "clock",
        Kind::Name => "name",
        Kind::New => "new",
        Kind::Wake => "wake",
        Kind::Switch => "switch",
        Kind::Migrate => "migrate",
        Kind::Block => "block",
        Kind::Exit => "exit",
        Kind::Tick => "tick",
        Kind::Ipi => "ipi",
        Kind::Fault => "fault",
        Kind::SyscallEnter => "syscall_enter",
        Kind::SyscallExit => "syscall_exit",
        Kind::Delegation => "delegation",
        Kind::Affinity => "affinity",
        Kind::Params => "params",
        Kind::Halt => "halt",
        Kind::Steal => "steal",
        Kind::Chaos => "chaos",
        Kind::Lost => "lost",
        Kind::Online => "online",
        Kind::Process => "process",
        Kind::VcpuEntry => "vcpu_entry",
        Kind::VcpuExit => "vcpu_exit",
        Kind::VcpuPin => "vcpu_pin",
        Kind::VcpuSteal => "vcpu_steal",
        Kind::VcpuPause => "vcpu_pause",
    }
}

/// The kind of a name.
pub(super) fn kind_of(name: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind_name(*kind) == name)
}

/// The name of a policy number in a [`ClassTag`](vcpu_sched::events::ClassTag).
pub fn policy_name(policy: u8) -> &'static str {
    match policy {
        254 => "idle-task",
        255 => "stop",
        _ => change::policy_name(policy.into()).unwrap_or("unknown"),
    }
}

/// State of a task after a switch, by the number of `task::state::State`.
pub(super) fn state_name(state: u8) -> &'static str {
    use vcpu_sched::task::state::State;
    const NAMES: [(State, &str); 6] = [
        (State::New, "new"),
        (State::Ready, "ready"),
        (State::Running, "running"),
        (State::Blocking, "blocking"),
        (State::Blocked, "blocked"),
        (State::Dead, "dead"),
    ];
    NAMES.iter().find(|(known, _)| *known as u8 == state).map_or("unknown", |(_, name)| name)
}

/// Why a task was moved.
pub(super) fn migrate_reason(why: u8) -> &'static str {
    use MigrateReason::{Affinity, Balance, IdlePull, Push};
    const NAMES: [(MigrateReason, &str); 4] =
        [(Affinity, "affinity"), (IdlePull, "idle_pull"), (Balance, "balance"), (Push, "push")];
    NAMES.iter().find(|(known, _)| *known as u8 == why).map_or("unknown", |(_, name)| name)
}

/// What a task waits for.
pub(super) fn wait_reason(why: u64) -> &'static str {
    use WaitReason::{Child, Futex, Io, Memory, Mutex, Other, Poll, Signal, Sleep, Suspended};
    const NAMES: [(WaitReason, &str); 10] = [
        (Other, "other"),
        (Futex, "futex"),
        (Io, "io"),
        (Sleep, "sleep"),
        (Child, "child"),
        (Mutex, "mutex"),
        (Poll, "poll"),
        (Signal, "signal"),
        (Memory, "memory"),
        (Suspended, "suspended"),
    ];
    NAMES.iter().find(|(known, _)| *known as u64 == why).map_or("unknown", |(_, name)| name)
}

/// What a chaos point did.
pub(super) fn chaos_action(action: u8) -> &'static str {
    use ChaosAction::{DelayIpi, Migrate, Pause, Preempt, RealTimer, SpuriousWake};
    const NAMES: [(ChaosAction, &str); 6] = [
        (Preempt, "preempt"),
        (SpuriousWake, "spurious_wake"),
        (DelayIpi, "delay_ipi"),
        (Pause, "pause"),
        (Migrate, "migrate"),
        (RealTimer, "real_timer"),
    ];
    NAMES.iter().find(|(known, _)| *known as u8 == action).map_or("unknown", |(_, name)| name)
}

/// Text of a 16-byte name; what isn't UTF-8 is replaced.
pub(super) fn text_of(name: &[u8; 16]) -> String {
    let len = name.iter().position(|b| *b == 0).unwrap_or(16);
    String::from_utf8_lossy(&name[..len]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        for kind in Kind::ALL {
            assert_eq!(kind_of(kind_name(kind)), Some(kind));
        }
        assert_eq!(kind_of("nonsense"), None);
    }
}
