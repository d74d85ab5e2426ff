//! Moving the vCPU threads of a running machine: all of the changes, or none.
//!
//! Called by the control socket. Each change is read back; when one fails, those before it are taken back in reverse order,
//! and read back as well.

use std::io;

use super::plan::{pin, spread};
use super::{AffinityError, Entry, Who, sys};
use crate::config::text::IdSet;

/// A vCPU's thread and where it shall run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Number of the vCPU.
    pub vcpu: u32,
    /// Its thread.
    pub tid: i32,
    /// Where it shall run.
    pub cpus: IdSet,
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
    #[error("{cause}; and vCPU {vcpu} could not be put back to CPUs {cpus}: {source}")]
    Stuck {
        /// The first failure.
        cause: AffinityError,
        /// Who stays where it is now.
        vcpu: u32,
        /// Where it was before.
        cpus: IdSet,
        /// Why.
        source: io::Error,
    },
}

/// The changes that `entries` ask of these threads, given in order of their vCPUs.
pub fn changes(entries: &[Entry<IdSet>], tids: &[i32]) -> Result<Vec<Change>, AffinityError> {
    let pins = spread("the request", entries, tids.len() as u32)?;
    let threads = (0u32..).zip(tids).zip(pins);
    Ok(threads.filter_map(|((vcpu, &tid), cpus)| Some(Change { vcpu, tid, cpus: cpus? })).collect())
}

/// Carries out all of `changes`. Returns what the host reads back, in the same order.
pub fn set_live(changes: &[Change]) -> Result<Vec<(u32, IdSet)>, LiveError> {
    let online = sys::online();
    let mut before: Vec<(&Change, IdSet)> = Vec::with_capacity(changes.len());
    for change in changes {
        let who = Who::Vcpu(change.vcpu);
        let old = sys::affinity(change.tid);
        let done =
            old.map_err(|source| AffinityError::Refused { who, wanted: change.cpus.clone(), source }).and_then(|old| {
                // Noted first: a mask that isn't the one asked for must be taken back too.
                before.push((change, old));
                pin(change.tid, who, &change.cpus, &online)
            });
        if let Err(cause) = done {
            return Err(roll_back(cause, &before));
        }
    }
    Ok(changes.iter().map(|change| (change.vcpu, change.cpus.clone())).collect())
}

fn roll_back(cause: AffinityError, before: &[(&Change, IdSet)]) -> LiveError {
    for (change, old) in before.iter().rev() {
        let back = sys::set_affinity(change.tid, old).and_then(|()| sys::affinity(change.tid));
        let failed = match back {
            Ok(got) if got == *old => continue,
            Ok(got) => io::Error::other(format!("the host reads back CPUs {got}")),
            Err(error) => error,
        };
        return LiveError::Stuck { cause, vcpu: change.vcpu, cpus: old.clone(), source: failed };
    }
    LiveError::RolledBack(cause)
}
