//! The names of the policies that the normal class can have: what a user may ask for.

use core::fmt;
use core::str::FromStr;

use crate::ids::Nanos;
use crate::policy::{fair, round_robin};

/// The policies that the normal class can have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum PolicyKind {
    /// [`fair`](crate::policy::fair).
    #[default]
    Fair,
    /// [`round_robin`](crate::policy::round_robin).
    RoundRobin,
    /// [`ordered`](crate::policy::ordered) by the times that a task was scheduled.
    Count,
    /// [`ordered`](crate::policy::ordered) by the CPU time that a task used.
    Runtime,
}

impl PolicyKind {
    /// All of them, in the order that help texts list them.
    pub const ALL: [Self; 4] = [Self::Fair, Self::RoundRobin, Self::Count, Self::Runtime];

    /// The name that `--policy` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fair => "fair",
            Self::RoundRobin => "rr",
            Self::Count => "count",
            Self::Runtime => "runtime",
        }
    }

    /// How long a task runs at a time, if neither it nor the run queue's owner asks for something else.
    pub const fn default_slice(self) -> Nanos {
        match self {
            Self::Fair => fair::DEFAULT_SLICE,
            Self::RoundRobin | Self::Count | Self::Runtime => round_robin::DEFAULT_SLICE,
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no [`PolicyKind`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownPolicy;

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown scheduling policy; there are")?;
        PolicyKind::ALL.iter().try_for_each(|kind| write!(f, " {kind}"))
    }
}

impl core::error::Error for UnknownPolicy {}

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or(UnknownPolicy)
    }
}
