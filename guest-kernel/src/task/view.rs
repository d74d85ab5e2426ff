//! Which fields of a [`Task`] the VMM may read, and where they lie (`vcpu_sched::taskview`). Nothing here runs.

use core::mem::offset_of;

use vcpu_sched::entity::offsets;
use vcpu_sched::taskview::{ABSENT, MAX_FIELDS, TaskField};

use super::Task;
use crate::mm::task_block::TaskBlock;

/// Offsets by field number.
pub const FIELDS: [u16; MAX_FIELDS] = {
    let mut at = [ABSENT; MAX_FIELDS];
    at[TaskField::Id as usize] = offset_of!(Task, id) as u16;
    at[TaskField::State as usize] = offset_of!(Task, state) as u16;
    at[TaskField::OnCpu as usize] = offset_of!(Task, on_cpu) as u16;
    at[TaskField::Cpu as usize] = offset_of!(Task, cpu) as u16;
    at[TaskField::Kind as usize] = offset_of!(Task, kind) as u16;
    at[TaskField::WaitReason as usize] = offset_of!(Task, wait_reason) as u16;
    at[TaskField::Name as usize] = offset_of!(Task, name) as u16;
    at[TaskField::Process as usize] = offset_of!(Task, process) as u16;
    at[TaskField::SavedRsp as usize] = offset_of!(Task, saved_rsp) as u16;
    at[TaskField::Root as usize] = (offset_of!(Task, block) + TaskBlock::ROOT_AT) as u16;
    at[TaskField::FsBase as usize] = offset_of!(Task, fs_base) as u16;
    at[TaskField::RunNanos as usize] = (offset_of!(Task, sched) + offsets::RUN) as u16;
    at[TaskField::Voluntary as usize] = (offset_of!(Task, sched) + offsets::VOLUNTARY) as u16;
    at[TaskField::Involuntary as usize] = (offset_of!(Task, sched) + offsets::INVOLUNTARY) as u16;
    at[TaskField::Migrations as usize] = offset_of!(Task, stats.migrations) as u16;
    at[TaskField::Faults as usize] = offset_of!(Task, stats.faults) as u16;
    at[TaskField::Policy as usize] = (offset_of!(Task, sched) + offsets::POLICY) as u16;
    at[TaskField::Priority as usize] = (offset_of!(Task, sched) + offsets::RT_PRIORITY) as u16;
    at[TaskField::Nice as usize] = (offset_of!(Task, sched) + offsets::NICE) as u16;
    at[TaskField::WaitNanos as usize] = (offset_of!(Task, sched) + offsets::WAIT) as u16;
    at[TaskField::SleepNanos as usize] = (offset_of!(Task, sched) + offsets::SLEEP) as u16;
    at[TaskField::Since as usize] = (offset_of!(Task, sched) + offsets::SINCE) as u16;
    at[TaskField::Suspension as usize] = offset_of!(Task, suspension) as u16;
    at[TaskField::Affinity as usize] = offset_of!(Task, may_run) as u16;
    at[TaskField::AffinityRest as usize] = offset_of!(Task, may_run) as u16 + 8;
    at
};

const _: () = assert!(size_of::<Task>() < ABSENT as usize, "offsets are 16 bits wide");
