//! Changing where the vCPU threads of a running machine run, and how urgently: all of the changes, or none.
//!
//! Called by the control socket. Each change is read back; when one fails, those before it are taken back in reverse order,
//! and read back as well.

use std::io;

use super::plan::{pin, spread, urge};
use super::{AffinityError, Class, Entry, Who, sys};
use crate::config::text::IdSet;

/// What can be changed of a thread while it runs.
pub trait Setting: Clone + PartialEq {
    /// What a thread has now.
    fn read(tid: i32) -> io::Result<Self>;
    /// Gives it to a thread.
    fn write(&self, tid: i32) -> io::Result<()>;
    /// Gives it to a vCPU's thread and reads it back.
    fn apply(&self, tid: i32, who: Who) -> Result<(), AffinityError>;
    /// The host doesn't tell what a thread has that shall get this.
    fn unread(&self, who: Who, source: io::Error) -> AffinityError;
    /// For people.
    fn describe(&self) -> String;
}

impl Setting for IdSet {
    fn read(tid: i32) -> io::Result<Self> {
        sys::affinity(tid)
    }

    fn write(&self, tid: i32) -> io::Result<()> {
        sys::set_affinity(tid, self)
    }

    fn apply(&self, tid: i32, who: Who) -> Result<(), AffinityError> {
        pin(tid, who, self, &sys::online())
    }

    fn unread(&self, who: Who, source: io::Error) -> AffinityError {
        AffinityError::Refused { who, wanted: self.clone(), source }
    }

    fn describe(&self) -> String {
        format!("CPUs {self}")
    }
}

impl Setting for Class {
    fn read(tid: i32) -> io::Result<Self> {
        sys::class(tid)
    }

    fn write(&self, tid: i32) -> io::Result<()> {
        sys::set_class(tid, self.explicit())
    }

    fn apply(&self, tid: i32, who: Who) -> Result<(), AffinityError> {
        urge(tid, who, self.explicit(), &sys::affinity(tid).unwrap_or_default())
    }

    fn unread(&self, who: Who, source: io::Error) -> AffinityError {
        AffinityError::Class { who, cpus: IdSet::default(), class: *self, source }
    }

    fn describe(&self) -> String {
        self.to_string()
    }
}

impl Class {
    /// At the start, `other` leaves the nice value that the process has; in a change it means none.
    fn explicit(self) -> Self {
        if self == Self::Other { Self::Nice(0) } else { self }
    }
}

/// A vCPU's thread and what it shall get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change<T> {
    /// Number of the vCPU.
    pub vcpu: u32,
    /// Its thread.
    pub tid: i32,
    /// Where it shall run, or how urgently.
    pub to: T,
}

/// Why nothing was changed, or what could not be taken back.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The request names vCPUs wrongly.
    #[error(transparent)]
    Request(#[from] AffinityError),
    /// A change failed; all is as before.
    #[error("{0}; nothing was changed")]
    RolledBack(AffinityError),
    /// A change failed, and so did taking another one back.
    #[error("{cause}; and vCPU {vcpu} could not be put back to {was}: {source}")]
    Stuck {
        /// The first failure.
        cause: AffinityError,
        /// Who stays as it is now.
        vcpu: u32,
        /// How it was before.
        was: String,
        /// Why.
        source: io::Error,
    },
}

/// The changes that `entries` ask of these threads, given in order of their vCPUs.
pub fn changes<T: Clone>(entries: &[Entry<T>], tids: &[i32]) -> Result<Vec<Change<T>>, AffinityError> {
    let wanted = spread("the request", entries, tids.len() as u32)?;
    let threads = (0u32..).zip(tids).zip(wanted);
    Ok(threads.filter_map(|((vcpu, &tid), to)| Some(Change { vcpu, tid, to: to? })).collect())
}

/// Carries out all of `changes`. Returns what the host reads back, in the same order.
pub fn set_live<T: Setting>(changes: &[Change<T>]) -> Result<Vec<(u32, T)>, LiveError> {
    let mut before: Vec<(&Change<T>, T)> = Vec::with_capacity(changes.len());
    for change in changes {
        let who = Who::Vcpu(change.vcpu);
        let done = T::read(change.tid).map_err(|source| change.to.unread(who, source)).and_then(|old| {
            // Noted first: one that isn't what was asked for must be taken back too.
            before.push((change, old));
            change.to.apply(change.tid, who)
        });
        if let Err(cause) = done {
            return Err(roll_back(cause, &before));
        }
    }
    Ok(changes.iter().map(|change| (change.vcpu, change.to.clone())).collect())
}

fn roll_back<T: Setting>(cause: AffinityError, before: &[(&Change<T>, T)]) -> LiveError {
    for (change, old) in before.iter().rev() {
        let back = old.write(change.tid).and_then(|()| T::read(change.tid));
        let failed = match back {
            Ok(got) if got == *old => continue,
            Ok(got) => io::Error::other(format!("the host reads back {}", got.describe())),
            Err(error) => error,
        };
        return LiveError::Stuck { cause, vcpu: change.vcpu, was: old.describe(), source: failed };
    }
    LiveError::RolledBack(cause)
}
