//! The part of a task's scheduling parameters that a request changes; the rest stays as it is.

use crate::ids::Nanos;
use crate::params::{FLAG_RESET_ON_FORK, ParamError, SchedAttr, SchedParams, number};

/// New values. What is `None` stays, as far as the policy has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ParamChange {
    /// See [`number`].
    pub policy: Option<u32>,
    /// Nice value.
    pub nice: Option<i32>,
    /// Real-time priority.
    pub priority: Option<u32>,
    /// Budget of a deadline task, slice of a fair one; nanoseconds, as the two below.
    pub runtime: Option<u64>,
    /// Of a deadline task.
    pub deadline: Option<u64>,
    /// Of a deadline task.
    pub period: Option<u64>,
    /// Whether its children start as ordinary tasks.
    pub reset_on_fork: Option<bool>,
}

impl ParamChange {
    /// What the task's parameters become. Another policy starts from nothing but the nice value.
    ///
    /// # Errors
    /// [`ParamError`] if that can't be had.
    pub fn apply(&self, present: &SchedParams) -> Result<SchedParams, ParamError> {
        let old = present.to_attr(Nanos::ZERO);
        let policy = self.policy.unwrap_or(old.policy);
        let keeps = policy == old.policy;
        let kept = |value: u64| if keeps { value } else { 0 };
        let flag = self.reset_on_fork.map_or(old.flags, |on| if on { FLAG_RESET_ON_FORK } else { 0 });
        let nice = self.nice.unwrap_or_else(|| present.nice.get().into());
        SchedParams::from_attr(&SchedAttr {
            policy,
            flags: flag,
            nice,
            priority: self.priority.unwrap_or(if keeps { old.priority } else { 0 }),
            runtime: self.runtime.unwrap_or_else(|| kept(old.runtime)),
            deadline: self.deadline.unwrap_or_else(|| kept(old.deadline)),
            period: self.period.unwrap_or_else(|| kept(old.period)),
        })
    }
}

/// The policies that a task can be given, by the names that `chrt` and the API have for them.
pub const POLICIES: [(u32, &str); 7] = [
    (number::NORMAL, "other"),
    (number::BATCH, "batch"),
    (number::IDLE, "idle"),
    (number::FIFO, "fifo"),
    (number::RR, "rr"),
    (number::DEADLINE, "deadline"),
    (number::EXT, "delegated"),
];

/// Linux's other names for two of them.
pub const ALIASES: [(u32, &str); 2] = [(number::NORMAL, "normal"), (number::EXT, "ext")];

/// A policy by its name.
pub fn policy_number(name: &str) -> Option<u32> {
    POLICIES.iter().chain(&ALIASES).find(|(_, known)| *known == name).map(|(number, _)| *number)
}

/// The name of a policy.
pub fn policy_name(number: u32) -> Option<&'static str> {
    POLICIES.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{Class, Nice};

    #[test]
    fn what_is_not_named_stays() {
        let nice = ParamChange { nice: Some(5), ..ParamChange::default() };
        let fair = nice.apply(&SchedParams::NORMAL).expect("a nice value");
        assert_eq!((fair.class, fair.nice), (Class::Normal, Nice::clamped(5)));
        let fifo = ParamChange { policy: Some(number::FIFO), priority: Some(10), ..ParamChange::default() };
        let fifo = fifo.apply(&fair).expect("fifo");
        assert_eq!((fifo.policy_number(), fifo.nice), (number::FIFO, Nice::clamped(5)));
        let higher = ParamChange { priority: Some(20), ..ParamChange::default() }.apply(&fifo).expect("priority");
        assert_eq!((higher.policy_number(), higher.to_attr(Nanos::ZERO).priority), (number::FIFO, 20));
        let nothing = ParamChange::default().apply(&higher).expect("as it is");
        assert_eq!(nothing, higher);
    }

    #[test]
    fn another_policy_takes_nothing_along() {
        let deadline = ParamChange {
            policy: Some(number::DEADLINE),
            runtime: Some(1_000_000),
            deadline: Some(5_000_000),
            period: Some(10_000_000),
            ..ParamChange::default()
        };
        let deadline = deadline.apply(&SchedParams::NORMAL).expect("deadline");
        let back = ParamChange { policy: Some(number::NORMAL), ..ParamChange::default() };
        assert_eq!(back.apply(&deadline), Ok(SchedParams::NORMAL));
    }

    #[test]
    fn what_no_task_can_have_is_refused() {
        let fifo = ParamChange { policy: Some(number::FIFO), ..ParamChange::default() };
        assert!(fifo.apply(&SchedParams::NORMAL).is_err(), "without priority");
        for change in [
            ParamChange { policy: Some(number::STOP), ..ParamChange::default() },
            ParamChange { policy: Some(4), ..ParamChange::default() },
            ParamChange { priority: Some(1), ..ParamChange::default() },
            ParamChange { policy: Some(number::DEADLINE), ..ParamChange::default() },
        ] {
            assert!(change.apply(&SchedParams::NORMAL).is_err(), "{change:?}");
        }
    }

    #[test]
    fn policies_have_the_names_that_are_shown() {
        for (number, name) in POLICIES {
            assert_eq!((policy_number(name), policy_name(number)), (Some(number), Some(name)));
        }
        assert_eq!(policy_number("ext").and_then(policy_name), Some("delegated"));
        assert_eq!((policy_number("stop"), policy_name(number::STOP)), (None, None));
    }
}
