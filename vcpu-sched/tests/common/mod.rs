//! A task for tests of the scheduler, without a kernel.

pub mod machine;

use std::fmt;

use vcpu_sched::entity::{Entity, SchedEntity};
use vcpu_sched::ids::TaskId;
use vcpu_sched::params::SchedParams;

/// A handle. Its scheduling data is leaked: tests are short, and handles that can be copied keep them readable.
#[derive(Clone, Copy)]
pub struct Task {
    id: u32,
    sched: &'static SchedEntity,
}

#[allow(dead_code)] // each test uses its part
impl Task {
    pub fn new(id: u32) -> Self {
        Self::with_params(id, SchedParams::NORMAL)
    }

    pub fn with_params(id: u32, params: SchedParams) -> Self {
        Self { id, sched: Box::leak(Box::new(SchedEntity::new(params))) }
    }

    pub fn number(self) -> u32 {
        self.id
    }

    pub fn index(self) -> usize {
        self.id as usize
    }
}

impl PartialEq for Task {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Task {}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}", self.id)
    }
}

impl Entity for Task {
    fn id(&self) -> TaskId {
        TaskId(self.id)
    }

    fn sched(&self) -> &SchedEntity {
        self.sched
    }
}
