//! Sync groups, and tasks that leave or change their CPU sets while they are committed, ten thousand times each.

use std::collections::BTreeMap;

use super::*;

/// A stream of numbers, the same for the same seed (Marsaglia's xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

#[test]
fn a_sync_group_is_all_or_nothing_ten_thousand_times() {
    let mut random = Random(17);
    let words = memory();
    let (mut all, mut none) = (0, 0);
    for _ in 0..10_000 {
        let mut pair = Pair::over(words, 4, attach_flags::ONLINE, 0);
        let members = 2 + random.below(3) as u32;
        let owner = CpuId(random.below(members.into()) as u32);
        let tasks: Vec<u32> = (0..members).map(|_| pair.queued()).collect();
        let broken = (random.below(2) == 0).then(|| random.below(members.into()) as u32);
        let mut failing = S::Complete;
        for (cpu, &task) in tasks.iter().enumerate() {
            let cpu = CpuId(cpu as u32);
            let mut request = Request { sync_group_owner: Some(owner), ..pair.request(cpu, task) };
            if broken == Some(cpu.0) {
                (failing, request) = match random.below(3) {
                    0 => (S::TargetStale, Request { task_barrier: 99, ..request }),
                    1 => (S::TargetNotFound, Request { gtid: 3, ..request }),
                    _ => (S::InvalidFlags, Request { run_flags: 1 << 31, ..request }),
                };
            }
            let _ = pair.slot(cpu).submit(&request).expect("unused");
        }
        for cpu in (0..members).map(CpuId).filter(|&cpu| cpu != owner) {
            assert!(!pair.enclave.poll(cpu, Occasion::Idle, T), "only the owner commits");
        }
        assert_eq!(pair.enclave.poll(owner, Occasion::Kick, T), broken.is_none());
        for (cpu, &task) in tasks.iter().enumerate() {
            let cpu = CpuId(cpu as u32);
            let state = pair.slot(cpu).outcome().expect("each is answered").state;
            let (expected, place) = match broken {
                None => (S::Complete, Place::Latched(cpu)),
                Some(culprit) if culprit == cpu.0 => (failing, Place::Queued),
                Some(_) => (S::Poisoned, Place::Queued),
            };
            assert_eq!((state, pair.enclave.place(task)), (expected, Some(place)));
        }
        let kicked = pair.enclave.take_effects().reschedule;
        assert_eq!(kicked.count(), if broken.is_none() { members - 1 } else { 0 });
        *if broken.is_none() { &mut all } else { &mut none } += 1;
    }
    assert!(all > 1_000 && none > 1_000);
}

#[test]
fn one_task_twice_in_a_group_fails_the_group() {
    let mut pair = Pair::new(2);
    let task = pair.queued();
    for cpu in [C0, C1] {
        let request = Request { sync_group_owner: Some(C0), ..pair.request(cpu, task) };
        let _ = pair.slot(cpu).submit(&request).expect("unused");
    }
    assert!(!pair.enclave.poll(C0, Occasion::Kick, T));
    assert_eq!(pair.enclave.place(task), Some(Place::Queued));
}

/// Tasks come, run, change their CPU sets, leave and end in any order, against an agent that commits by what it has read. Of
/// each task: NEW first, numbers without a gap, nothing after the end; and no commit for one that has left succeeds.
#[test]
fn departed_and_affinity_races_keep_the_order_ten_thousand_times() {
    let mut random = Random(23);
    let words = memory();
    let mut refused = 0;
    for _ in 0..10_000 {
        let mut pair = Pair::over(words, 2, attach_flags::ONLINE, 0);
        let mut next: BTreeMap<(u32, u64), u32> = BTreeMap::new();
        let mut ended: Vec<(u32, u64)> = Vec::new();
        let arrival = [Arrival::Queued, Arrival::Blocked, Arrival::Running][random.below(3) as usize];
        let task = pair.join(arrival, C0);
        let mut seen = (0, 0);
        for _ in 0..12 {
            match random.below(8) {
                0 => drop(pair.enclave.depart(task, T)),
                1 => drop(pair.enclave.set_allowed(task, &CpuMask::full(1 + random.below(2) as u32), T)),
                2 => drop(pair.enclave.set_nice(task, 1, T)),
                3 => drop(pair.enclave.wake(task, C1, false, T)),
                4 => drop(pair.enclave.leave(task, [Leave::Blocked, Leave::Yield][random.below(2) as usize], T, T)),
                5 => {
                    let slot = pair.slot(C0);
                    if slot.submit(&Request::run(C0, seen.0, task, seen.1)).is_ok() {
                        let gone = pair.enclave.place(task) == Some(Place::Gone);
                        pair.enclave.poll(C0, Occasion::Kick, T);
                        let state = slot.outcome().expect("answered").state;
                        assert!(!(gone && state == S::Complete), "a task that has left is committed");
                        refused += u32::from(state != S::Complete);
                    }
                }
                6 => {
                    if let Pick::Task(slot) = pair.enclave.pick(C0, None, T) {
                        pair.enclave.switched_in(slot, C0, T).expect("picked");
                    }
                }
                _ => {}
            }
            assert!(pair.enclave.is_consistent());
            for message in pair.messages() {
                let key = (message.slot, message.gtid);
                assert!(!ended.contains(&key), "{message:?} after the end");
                match next.get(&key) {
                    None => assert_eq!((message.kind, message.seqnum), (M::New, 1), "NEW first"),
                    Some(&expected) => assert_eq!(message.seqnum, expected, "{message:?}"),
                }
                next.insert(key, message.seqnum + 1);
                seen = (message.gtid, message.seqnum);
                if matches!(message.kind, M::Departed | M::Dead) {
                    ended.push(key);
                }
            }
        }
    }
    assert!(refused > 1_000, "{refused}");
}
