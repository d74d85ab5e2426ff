//! Guests made by hand, good ones and hostile ones.

use std::mem::offset_of;

use proptest::prelude::*;
use vcpu_sched::directory::{self, Entry, EntryKind};
use vcpu_sched::taskview::{self, ABSENT, CHUNK_BYTES, CpuField, TaskField};
use vm_memory::{Bytes, GuestAddress};

use super::*;

const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
const SIZE: usize = 1 << 20;
const DIRECTORY: u64 = 0x1000;
const HEADER: u64 = 0x2000;
const CHUNK: u64 = 0x3000;
const SECOND_CHUNK: u64 = 0x4000;
const CPU: u64 = 0x5000;
const TASKS: u64 = 0x6000;
const TASK_BYTES: u64 = 512;

fn reader() -> Reader {
    let ram = Ram::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
    let told = Told::default();
    told.set((DIRECTORY >> 12) as u32);
    Reader::new(ram, Arc::new(told), 1_000_000)
}

/// The same memory, but the guest says that its directory is elsewhere.
fn elsewhere(reader: &Reader, address: u64) -> Result<Snapshot, GuestViewError> {
    let told = Told::default();
    told.set((address >> 12) as u32);
    Reader { told: Arc::new(told), ..reader.clone() }.snapshot()
}

fn put(reader: &Reader, at: u64, bytes: &[u8]) {
    reader.ram.write_slice(bytes, GuestAddress(at)).unwrap();
}

fn put_u64(reader: &Reader, at: u64, value: u64) {
    put(reader, at, &value.to_le_bytes());
}

/// Each field of a test guest's task lies at 8 times its number, behind the name at 0.
fn at(field: TaskField) -> u64 {
    if field == TaskField::Name { 0 } else { 16 + 8 * field as u64 }
}

fn task(number: u64) -> u64 {
    TASKS + number * TASK_BYTES
}

/// A guest with `count` tasks, numbered from 1, the first one on its only CPU.
fn guest(count: u64) -> Reader {
    let reader = reader();
    let entry = |kind, address| Entry { kind: kind as u32, index: 0, address, len: 4096, extra: 0 };
    let head = directory::Header {
        magic: directory::MAGIC,
        version: directory::VERSION,
        count: 2,
        direct_map: DIRECT_MAP,
        tsc: host_ticks(),
    };
    put(&reader, DIRECTORY, &head.to_bytes());
    put(&reader, DIRECTORY + 32, &entry(EntryKind::Tasks, HEADER).to_bytes());
    put(&reader, DIRECTORY + 64, &entry(EntryKind::Cpu, CPU).to_bytes());

    put_u64(&reader, HEADER, taskview::MAGIC);
    put(&reader, HEADER + 8, &taskview::VERSION.to_le_bytes());
    put(&reader, HEADER + offset_of!(taskview::Header, task_bytes) as u64, &(TASK_BYTES as u32).to_le_bytes());
    put(&reader, HEADER + offset_of!(taskview::Header, cpu_bytes) as u64, &256u32.to_le_bytes());
    put_u64(&reader, HEADER + offset_of!(taskview::Header, first_chunk) as u64, CHUNK);
    for (n, field) in TaskField::ALL.iter().enumerate() {
        let place = HEADER + offset_of!(taskview::Header, task_fields) as u64 + 2 * n as u64;
        put(&reader, place, &(at(*field) as u16).to_le_bytes());
    }
    for n in 0..CpuField::ALL.len() as u64 {
        let place = HEADER + offset_of!(taskview::Header, cpu_fields) as u64 + 2 * n;
        put(&reader, place, &(8 * n as u16).to_le_bytes());
    }
    for n in 0..count {
        put_u64(&reader, CHUNK + 8 + 8 * n, DIRECT_MAP + task(n));
        put(&reader, task(n), format!("task {n}").as_bytes());
        put_u64(&reader, task(n) + at(TaskField::Id), n + 1);
        put_u64(&reader, task(n) + at(TaskField::State), 4);
        put_u64(&reader, task(n) + at(TaskField::WaitReason), vcpu_sched::events::WaitReason::Poll as u64);
        put_u64(&reader, task(n) + at(TaskField::RunNanos), 100 * n);
        put_u64(&reader, task(n) + at(TaskField::Nice), 0xff);
        put_u64(&reader, task(n) + at(TaskField::Affinity), u64::MAX);
    }
    put_u64(&reader, task(0) + at(TaskField::State), 2);
    put_u64(&reader, CPU + 8 * CpuField::Current as u64, DIRECT_MAP + task(0));
    put_u64(&reader, CPU + 8 * CpuField::PickedTicks as u64, host_ticks());
    reader
}

#[test]
fn tasks_and_cpus_are_read() {
    let snapshot = guest(3).snapshot().unwrap();
    assert_eq!((snapshot.tasks.len(), snapshot.cpus.len(), snapshot.torn, snapshot.left_out), (3, 1, false, 0));
    let second = &snapshot.tasks[1];
    assert_eq!((second.id, second.name.as_str(), second.state), (2, "task 1", TaskState::Blocked));
    assert_eq!((second.waits_for.as_deref(), second.run_ns, second.nice), (Some("poll"), 100, Some(-1)));
    assert_eq!(second.address, task(1));
    assert_eq!(second.affinity.as_deref(), Some("0"), "CPUs that there are");
    assert_eq!(snapshot.current(0).map(|task| task.id), Some(1));
}

#[test]
fn the_running_task_s_time_goes_on() {
    let reader = guest(1);
    put_u64(&reader, CPU + 8 * CpuField::PickedTicks as u64, host_ticks() - 5_000_000_000);
    let snapshot = reader.snapshot().unwrap();
    assert!(snapshot.tasks[0].run_ns >= 5_000_000_000, "{}", snapshot.tasks[0].run_ns);
}

#[test]
fn who_waits_has_waited_since_then() {
    let reader = guest(4);
    // A switch a second ago, when the kernel's clock was at 10 s. The clocks of guest and host are the same here, 1 GHz.
    put_u64(&reader, CPU + 8 * CpuField::PickedTicks as u64, host_ticks() - 1_000_000_000);
    put_u64(&reader, CPU + 8 * CpuField::PickedNanos as u64, 10_000_000_000);
    for (number, since) in [(0, 3_000_000_000), (1, 3_000_000_000), (2, 0), (3, u64::MAX)] {
        put_u64(&reader, task(number) + at(TaskField::Since), since);
    }
    let waited: Vec<_> = reader.snapshot().unwrap().tasks.iter().map(|task| task.state_ns).collect();
    assert_eq!((waited[0], waited[2], waited[3]), (None, None, Some(0)), "it runs; not told; told in the future");
    assert!(waited[1].is_some_and(|nanos| nanos >= 8_000_000_000), "{waited:?}");
}

#[test]
fn a_task_that_left_the_list_is_still_its_cpu_s() {
    let reader = guest(3);
    put_u64(&reader, CHUNK + 8, 0);
    let snapshot = reader.snapshot().unwrap();
    assert_eq!(snapshot.current(0).map(|task| task.name.as_str()), Some("task 0"));
}

#[test]
fn a_chain_of_chunks_may_be_long_but_not_round() {
    let reader = guest(3);
    put_u64(&reader, CHUNK, SECOND_CHUNK);
    put_u64(&reader, SECOND_CHUNK + 8 * 511, DIRECT_MAP + task(7));
    put_u64(&reader, task(7) + at(TaskField::Id), 77);
    let snapshot = reader.snapshot().unwrap();
    assert_eq!((snapshot.tasks.len(), snapshot.left_out), (4, 0));
    put_u64(&reader, SECOND_CHUNK, CHUNK);
    let snapshot = reader.snapshot().unwrap();
    assert_eq!((snapshot.tasks.len(), snapshot.left_out), (4, 1));
}

#[test]
fn a_list_that_never_holds_still_is_told() {
    let reader = guest(2);
    put_u64(&reader, HEADER + taskview::GENERATION_AT as u64, 3);
    assert!(reader.snapshot().unwrap().torn);
}

#[test]
fn bad_pointers_are_counted_and_passed_over() {
    let reader = guest(3);
    for (slot, pointer) in [(1, 1), (2, DIRECT_MAP + SIZE as u64), (4, u64::MAX), (5, DIRECT_MAP + task(0) + 1)] {
        put_u64(&reader, CHUNK + 8 + 8 * slot, pointer);
    }
    let snapshot = reader.snapshot().unwrap();
    assert_eq!((snapshot.tasks.len(), snapshot.left_out), (1, 4));
}

#[test]
fn what_is_not_there_is_an_error_that_says_so() {
    let silent = Reader { told: Arc::default(), ..guest(1) };
    assert_eq!(silent.snapshot(), Err(GuestViewError::NoDirectory));
    assert!(matches!(elsewhere(&guest(1), SIZE as u64), Err(GuestViewError::Outside { what: "directory", .. })));
    let reader = guest(1);
    put_u64(&reader, HEADER + offset_of!(taskview::Header, first_chunk) as u64, u64::MAX - 7);
    assert!(matches!(reader.snapshot(), Err(GuestViewError::Outside { what: "list of tasks", .. })));
    assert!(matches!(elsewhere(&guest(1), HEADER), Err(GuestViewError::Directory(_))));
}

#[test]
fn a_kernel_without_numbers_shows_nothing() {
    let reader = guest(2);
    put(&reader, HEADER + offset_of!(taskview::Header, task_fields) as u64, &ABSENT.to_le_bytes());
    let snapshot = reader.snapshot().unwrap();
    assert_eq!((snapshot.tasks.len(), snapshot.left_out), (0, 2));
}

#[test]
fn a_directory_that_leads_to_itself_ends() {
    let reader = guest(2);
    let more = Entry { kind: EntryKind::More as u32, index: 0, address: DIRECTORY, len: 4096, extra: 0 };
    put(&reader, DIRECTORY + 64, &more.to_bytes());
    assert_eq!(reader.snapshot().unwrap().tasks.len(), 2);
}

/// Places in a guest's tables, where a wrong number does most.
fn spot() -> impl Strategy<Value = u64> {
    prop_oneof![DIRECTORY..DIRECTORY + 128, HEADER..HEADER + 320, CHUNK..CHUNK + 64, CPU..CPU + 128, TASKS..TASKS + 512]
}

fn number() -> impl Strategy<Value = u64> {
    let near = prop_oneof![Just(0), Just(DIRECTORY), Just(HEADER), Just(CHUNK), Just(CPU), Just(SIZE as u64 - 8)];
    prop_oneof![any::<u64>(), near.clone(), near.prop_map(|a| a + DIRECT_MAP), 0..64u64, Just(u64::MAX)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a guest writes into its tables, reading them ends, and gives no more than the bounds.
    #[test]
    fn a_spoilt_guest_does_no_harm(writes in prop::collection::vec((spot(), number()), 1..12)) {
        let reader = guest(8);
        for (place, value) in writes {
            put_u64(&reader, place, value);
        }
        if let Ok(snapshot) = reader.snapshot() {
            prop_assert!(snapshot.tasks.len() <= MAX_TASKS + 2 * MAX_CPUS);
            for task in &snapshot.tasks {
                prop_assert!(!task.name.chars().any(char::is_control));
            }
            serde_json::to_string(&snapshot).unwrap();
        }
    }

    /// A page of noise is no directory; noise behind a good head is read without harm.
    #[test]
    fn noise_does_no_harm(noise in prop::collection::vec(any::<u8>(), CHUNK_BYTES), at in 0..4u64, place: u64) {
        let reader = guest(8);
        put(&reader, [DIRECTORY + 32, HEADER + 64, CHUNK, CPU][at as usize], &noise);
        let _ = reader.snapshot();
        let _ = elsewhere(&reader, place);
    }
}
