//! The trace ring's reader against a model of an honest guest, and against guests that write anything.

use proptest::prelude::*;
use taskvisor_devices::trace_ring::{Drained, RingError, TraceRing};
use vcpu_sched::directory::{Entry, EntryKind, RingHeader};
use vcpu_sched::events::{RECORD_BYTES, Record};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RAM: usize = 1 << 20;
const BASE: u64 = 0x1_0000;
const CAPACITY: u32 = 64;

fn ram() -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap()
}

fn entry(address: u64, len: u64) -> Entry {
    Entry { kind: EntryKind::TraceRing as u32, index: 0, address, len, extra: 0 }
}

fn whole() -> Entry {
    entry(BASE, (RingHeader::BYTES + CAPACITY as usize * RECORD_BYTES) as u64)
}

fn put(ram: &GuestMemoryMmap<()>, offset: usize, value: u64) {
    ram.write_obj(value, GuestAddress(BASE + offset as u64)).unwrap();
}

fn get(ram: &GuestMemoryMmap<()>, offset: usize) -> u64 {
    ram.read_obj(GuestAddress(BASE + offset as u64)).unwrap()
}

fn make(flags: u32, capacity: u32) -> GuestMemoryMmap<()> {
    let ram = ram();
    put(&ram, RingHeader::MAGIC_AT, RingHeader::MAGIC);
    put(&ram, RingHeader::CAPACITY, u64::from(capacity) | u64::from(flags) << 32);
    ram
}

/// What the guest does: writes a record, unless there is no room. Returns whether there was.
fn produce(ram: &GuestMemoryMmap<()>, number: u64, overwrite: bool) -> bool {
    let head = get(ram, RingHeader::HEAD);
    if !overwrite && head - get(ram, RingHeader::TAIL) >= u64::from(CAPACITY) {
        put(ram, RingHeader::LOST, get(ram, RingHeader::LOST) + 1);
        return false;
    }
    let at = RingHeader::BYTES + (head % u64::from(CAPACITY)) as usize * RECORD_BYTES;
    let record = Record { tsc: number, ..Record::default() };
    ram.write_slice(&record.to_bytes(), GuestAddress(BASE + at as u64)).unwrap();
    put(ram, RingHeader::HEAD, head + 1);
    true
}

proptest! {
    #[test]
    fn every_record_is_read_once_in_order_and_every_loss_is_counted(bursts in prop::collection::vec(0_u64..150, 1..20)) {
        let ram = make(0, CAPACITY);
        let mut ring = TraceRing::open(&ram, &whole()).unwrap();
        prop_assert_eq!(get(&ram, RingHeader::CAPACITY) >> 32, u64::from(RingHeader::DRAINED));
        let mut number = 0;
        for burst in bursts {
            let range = number..number + burst;
            number += burst;
            let written: Vec<_> = range.filter(|n| produce(&ram, *n, false)).collect();
            let mut read = Vec::new();
            let drained = ring.drain(&ram, &mut read).unwrap();
            prop_assert_eq!(drained, Drained { lost: burst - written.len() as u64 });
            prop_assert_eq!(read.iter().map(|r| r.tsc).collect::<Vec<_>>(), written);
        }
    }

    #[test]
    fn whatever_a_guest_writes_is_an_error_or_bounded(
        header in prop::collection::vec(any::<u64>(), RingHeader::BYTES / 8),
        honest in prop::collection::vec(any::<bool>(), 3),
        address in prop_oneof![Just(BASE), 0_u64..2 << 20, any::<u64>()],
        len in prop_oneof![Just(whole().len), any::<u64>()],
        heads in prop::collection::vec(prop_oneof![0_u64..200, any::<u64>()], 0..6),
    ) {
        let ram = ram();
        for (i, word) in header.iter().enumerate() {
            put(&ram, i * 8, *word);
        }
        if honest[0] { put(&ram, RingHeader::MAGIC_AT, RingHeader::MAGIC) }
        if honest[1] { put(&ram, RingHeader::CAPACITY, u64::from(CAPACITY)) }
        if honest[2] { put(&ram, RingHeader::TAIL, 0) }
        let Ok(mut ring) = TraceRing::open(&ram, &entry(address, len)) else { return Ok(()) };
        for head in heads {
            put(&ram, RingHeader::HEAD, head);
            let mut read = Vec::new();
            let result = ring.drain(&ram, &mut read);
            prop_assert!(read.len() <= 1 << 20);
            if let Err(error) = result {
                let told = matches!(error, RingError::Head { ahead, capacity, .. } if ahead > u64::from(capacity));
                prop_assert!(told, "{}", error);
            }
        }
    }
}

#[test]
fn a_ring_that_overwrites_gives_its_last_records() {
    let ram = make(RingHeader::OVERWRITES, CAPACITY);
    let mut ring = TraceRing::open(&ram, &whole()).unwrap();
    assert!(ring.overwrites());
    assert_eq!(get(&ram, RingHeader::CAPACITY) >> 32, u64::from(RingHeader::OVERWRITES), "not drained");
    (0..100).for_each(|n| assert!(produce(&ram, n, true)));
    let mut read = Vec::new();
    ring.drain(&ram, &mut read).unwrap();
    assert!(read.is_empty());
    ring.last(&ram, &mut read).unwrap();
    assert_eq!(read.iter().map(|r| r.tsc).collect::<Vec<_>>(), (36..100).collect::<Vec<_>>());
}

#[test]
fn rings_that_cannot_be_are_refused_with_their_reason() {
    let len = whole().len;
    let open = |ram: &GuestMemoryMmap<()>, entry| TraceRing::open(ram, &entry).unwrap_err();
    assert!(matches!(open(&ram(), whole()), RingError::Magic { found: 0, .. }));
    for capacity in [0, 1, 32, 65, 1 << 21, u32::MAX] {
        assert!(matches!(open(&make(0, capacity), whole()), RingError::Capacity(c) if c == capacity));
    }
    let good = make(0, CAPACITY);
    assert!(matches!(open(&good, entry(BASE, len - 1)), RingError::Place { .. }), "longer than listed");
    assert!(matches!(open(&good, entry(BASE + 4, len)), RingError::Place { .. }), "not aligned");
    assert!(matches!(open(&good, entry(RAM as u64 - 8, len)), RingError::Place { .. }), "beyond RAM");
    assert!(matches!(open(&good, entry(u64::MAX - 7, len)), RingError::Place { .. }), "wraps");
    assert!(matches!(open(&make(0, 1 << 20), entry(BASE, 64 << 20)), RingError::Place { .. }), "records beyond RAM");
}

#[test]
fn a_head_that_runs_away_breaks_the_ring() {
    let ram = make(0, CAPACITY);
    let mut ring = TraceRing::open(&ram, &whole()).unwrap();
    for head in [65, u64::MAX, 1 << 63] {
        put(&ram, RingHeader::HEAD, head);
        let mut read = Vec::new();
        assert!(matches!(ring.drain(&ram, &mut read), Err(RingError::Head { .. })));
        assert!(read.is_empty());
    }
}
