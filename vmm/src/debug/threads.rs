//! The threads that clients see: the guest's tasks, and the vCPUs that run none that is known.
//!
//! Made anew at every stop from a snapshot of the guest's lists, which it may have filled with anything. Invariants: numbers are
//! unique and above zero; thread 1 is always there, for clients lose their way without it.

use std::collections::HashSet;
use std::fmt::Write;

use super::target_xml::escape;
use crate::guestview::{Snapshot, Task, TaskState};

/// Threads for vCPUs start here: above any number that the guest gives.
pub const VCPU_BASE: u32 = 0x7000_0000;

/// A thread.
#[derive(Debug, Clone)]
pub struct Thread {
    /// Number; a task's own.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// What it does, in words.
    pub info: String,
    /// The CPU that it is or was on.
    pub cpu: Option<u32>,
    /// The vCPU that it is on.
    pub vcpu: Option<usize>,
    /// Guest-physical address of its top-level page table; 0: not known.
    pub root: u64,
    /// Its process.
    pub process: Option<u32>,
    /// The stack pointer that it goes on with; 0: not known.
    pub saved_rsp: u64,
    /// Thread pointer.
    pub fs_base: u64,
    /// It has a program.
    pub user: bool,
}

/// All threads; `apic_ids` are the vCPUs'.
pub fn list(snapshot: &Snapshot, apic_ids: &[u32]) -> Vec<Thread> {
    let mut seen = HashSet::new();
    let mut vcpu_of = vec![None; apic_ids.len()];
    for cpu in &snapshot.cpus {
        let vcpu = apic_ids.iter().position(|id| *id == cpu.apic_id);
        if let (Some(slot), Some(task)) = (vcpu.and_then(|vcpu| vcpu_of.get_mut(vcpu)), cpu.current) {
            *slot = Some(task);
        }
    }
    let mut threads = Vec::with_capacity(snapshot.tasks.len() + 1);
    for task in &snapshot.tasks {
        if task.id != 0 && seen.insert(task.id) {
            let vcpu = vcpu_of.iter().position(|id| *id == Some(task.id));
            threads.push(of_task(task, vcpu));
        }
    }
    for (vcpu, task) in vcpu_of.iter().enumerate() {
        if task.is_none_or(|id| !seen.contains(&id)) {
            // The first thread that clients see stays when tasks come.
            let id = if vcpu == 0 && !seen.contains(&1) { 1 } else { VCPU_BASE + vcpu as u32 };
            if seen.insert(id) {
                threads.push(of_vcpu(id, vcpu));
            }
        }
    }
    if seen.insert(1) {
        threads.push(of_vcpu(1, 0));
    }
    threads.sort_by_key(|thread| thread.id);
    threads
}

fn of_task(task: &Task, vcpu: Option<usize>) -> Thread {
    let mut info = format!("{} task, {}", task.kind, state(task, vcpu));
    if let Some(process) = task.process {
        // Writing to a String can't fail.
        let _ = write!(info, ", process {process}");
    }
    Thread {
        id: task.id,
        name: task.name.clone(),
        info,
        cpu: Some(task.cpu),
        vcpu,
        root: task.page_table,
        process: task.process,
        saved_rsp: if task.on_cpu { 0 } else { task.saved_rsp },
        fs_base: task.fs_base,
        user: task.kind == "user",
    }
}

fn state(task: &Task, vcpu: Option<usize>) -> String {
    match (vcpu, task.state) {
        (Some(vcpu), _) => format!("running on vCPU {vcpu}"),
        (None, TaskState::Blocked) => {
            format!("blocked on {}{}", task.waits_for.as_deref().unwrap_or("something"), so_long(task))
        }
        (None, other) => format!("{}{}", other.name(), so_long(task)),
    }
}

/// How long a task has been what it is, to follow that: " for 1.5 s"; nothing if that isn't known.
pub fn so_long(task: &Task) -> String {
    let Some(nanos) = task.state_ns else { return String::new() };
    match nanos {
        0..1_000_000 => format!(" for {} us", nanos / 1_000),
        1_000_000..1_000_000_000 => format!(" for {:.1} ms", nanos as f64 / 1e6),
        _ => format!(" for {:.1} s", nanos as f64 / 1e9),
    }
}

fn of_vcpu(id: u32, vcpu: usize) -> Thread {
    Thread {
        id,
        name: format!("vcpu{vcpu}"),
        info: "no task is known".to_owned(),
        cpu: Some(vcpu as u32),
        vcpu: Some(vcpu),
        root: 0,
        process: None,
        saved_rsp: 0,
        fs_base: 0,
        user: false,
    }
}

/// For `qXfer:threads`.
pub fn to_xml(threads: &[Thread]) -> String {
    let mut out = String::from("<?xml version=\"1.0\"?><threads>");
    for thread in threads {
        let core = thread.cpu.map_or_else(String::new, |cpu| format!(" core=\"{cpu}\""));
        let (name, info) = (escape(&thread.name), escape(&thread.info));
        let _ = write!(out, "<thread id=\"{:x}\"{core} name=\"{name}\">{info}</thread>", thread.id);
    }
    out.push_str("</threads>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn task(id: u32, name: &str, state: &str) -> serde_json::Value {
        serde_json::json!({
            "id": id, "name": name, "kind": "user", "process": 5, "state": state, "on_cpu": false, "cpu": 1,
            "waits_for": "poll", "run_ns": 0, "voluntary_switches": 0, "involuntary_switches": 0, "migrations": 0,
            "faults": 0, "address": "0x0", "page_table": "0x1000", "saved_rsp": "0x2000", "fs_base": "0x0",
        })
    }

    fn cpu(index: u32, apic_id: u32, current: Option<u32>) -> serde_json::Value {
        serde_json::json!({
            "index": index, "apic_id": apic_id, "current": current, "nr_running": 1, "switches": 0, "syscalls": 0,
            "faults": 0, "timer_interrupts": 0, "reschedule_ipis": 0,
        })
    }

    fn snapshot(cpus: Vec<serde_json::Value>, tasks: Vec<serde_json::Value>) -> Snapshot {
        let all = serde_json::json!({ "cpus": cpus, "tasks": tasks, "torn": false, "left_out": 0 });
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn tasks_are_threads_and_vcpus_without_one_too() {
        let mut waits = task(9, "w", "blocked");
        waits["state_ns"] = 2_500_000_000_u64.into();
        let snapshot = snapshot(vec![cpu(0, 0, Some(7)), cpu(1, 2, None)], vec![task(7, "a<b", "running"), waits]);
        let threads = list(&snapshot, &[0, 2]);
        let ids: Vec<_> = threads.iter().map(|thread| (thread.id, thread.vcpu)).collect();
        assert_eq!(ids, [(1, Some(0)), (7, Some(0)), (9, None), (VCPU_BASE + 1, Some(1))]);
        assert_eq!(threads[1].info, "user task, running on vCPU 0, process 5");
        assert_eq!(threads[2].info, "user task, blocked on poll for 2.5 s, process 5");
        let xml = to_xml(&threads);
        assert!(xml.contains("<thread id=\"7\" core=\"1\" name=\"a&lt;b\">user task, running on vCPU 0"), "{xml}");
    }

    #[test]
    fn a_guest_that_shows_nothing_has_its_vcpus() {
        let ids: Vec<_> = list(&Snapshot::default(), &[0, 1]).iter().map(|thread| thread.id).collect();
        assert_eq!(ids, [1, VCPU_BASE + 1]);
    }

    proptest! {
        #[test]
        fn numbers_are_unique_whatever_the_guest_says(ids in prop::collection::vec(prop_oneof![0..4u32, any::<u32>(), Just(VCPU_BASE)], 0..20)) {
            let snapshot = snapshot(vec![cpu(0, 0, ids.first().copied())], ids.iter().map(|id| task(*id, "t", "ready")).collect());
            let threads = list(&snapshot, &[0]);
            let unique: HashSet<_> = threads.iter().map(|thread| thread.id).collect();
            prop_assert_eq!(unique.len(), threads.len());
            prop_assert!(unique.contains(&1) && !unique.contains(&0));
        }
    }
}
