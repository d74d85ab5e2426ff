//! The rings themselves (`vcpu_sched::directory::RingHeader`): memory, the writer, and what happens when one is full.
//!
//! Only [`super`] writes; boot makes the rings, or the first request for a trace. Invariants: the pointer in [`CpuTrace`] is set once,
//! to a ring that is ready, and never changes; HEAD is written by the ring's own CPU alone, with interrupts off. NMI and machine
//! check write nothing, so no reservation is needed. What the host writes (TAIL, FLAGS) can lose records, nothing else: the place
//! of a record is always masked.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use vcpu_sched::directory::{Entry, EntryKind, RingHeader};
use vcpu_sched::events::{Kind, RECORD_BYTES};
use vcpu_sched::ids::TaskId;

use super::ON;
use crate::arch::instr;
use crate::boot::cmdline;
use crate::chaos;
use crate::cpu::{self, Cpu};
use crate::directory;
use crate::mm::PhysAddr;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::{DIRECT_MAP, PAGE_SIZE};
use crate::sync::IrqGuard;
use crate::task::Task;
use crate::time;

/// Records of a ring when the command line doesn't say (`trace_records`).
const DEFAULT_RECORDS: u32 = 4096;

/// What a CPU knows of its ring; in its [`Cpu`].
pub struct CpuTrace {
    /// The header, through the direct map; [`NO_RING`] while nothing is traced here.
    ring: AtomicPtr<u8>,
    /// Capacity - 1.
    mask: AtomicU64,
}

/// The header of a ring that never has room, so that who writes needs no test whether there is a ring. Nobody writes to it.
static NO_RING: [AtomicU64; RingHeader::BYTES / 8] = [const { AtomicU64::new(0) }; RingHeader::BYTES / 8];

impl CpuTrace {
    /// No ring.
    pub const fn new() -> Self {
        Self { ring: AtomicPtr::new(NO_RING.as_ptr().cast_mut().cast()), mask: AtomicU64::new(0) }
    }

    /// The ring, if there is one.
    pub(super) fn ring(&self) -> Option<Ring> {
        let ring = self.any();
        (ring.base.cast_const() != NO_RING.as_ptr().cast()).then_some(ring)
    }

    /// The ring, or [`NO_RING`].
    #[inline(always)]
    fn any(&self) -> Ring {
        // Acquire: pairs with `install`, which has set the mask and written the header before.
        let base = self.ring.load(Ordering::Acquire);
        Ring { base, mask: self.mask.load(Ordering::Relaxed) }
    }
}

/// A ring in memory.
#[derive(Clone, Copy)]
pub(super) struct Ring {
    base: *mut u8,
    mask: u64,
}

impl Ring {
    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: the header is 192 bytes of memory that is a ring for ever, or `NO_RING`, 8-byte aligned, and `at` one of its offsets.
        unsafe { &*self.base.add(at).cast() }
    }

    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as in `word`.
        unsafe { &*self.base.add(RingHeader::FLAGS).cast() }
    }

    /// Records written so far.
    pub(super) fn head(&self) -> u64 {
        self.word(RingHeader::HEAD).load(Ordering::Relaxed)
    }

    /// The HEAD at which there is no room, as far as TAIL was known.
    #[inline(always)]
    fn limit(&self) -> &AtomicU64 {
        self.word(RingHeader::LIMIT)
    }

    /// How many of them are still there at most.
    pub(super) fn capacity(&self) -> u64 {
        self.mask + 1
    }

    fn slot(&self, number: u64) -> *mut [u64; 4] {
        // SAFETY: masked, so inside of the ring's memory.
        unsafe { self.base.add(RingHeader::BYTES + (number & self.mask) as usize * RECORD_BYTES).cast() }
    }

    /// Record `number`, torn if its CPU is just writing it.
    pub(super) fn get(&self, number: u64) -> [u64; 4] {
        // SAFETY: inside of the ring; any bits are a record.
        unsafe { self.slot(number).read_volatile() }
    }

    /// Writes a record behind `head`; there is room.
    #[inline(always)]
    fn push(&self, head: u64, record: [u64; 4]) {
        // SAFETY: inside of the ring, aligned; the host reads it only after HEAD.
        unsafe { self.slot(head).write(record) };
        // Release: the record before HEAD.
        self.word(RingHeader::HEAD).store(head.wrapping_add(1), Ordering::Release);
    }
}

/// Writes a record into this CPU's ring: `word` is task, seq, kind and flags as they lie in memory.
///
/// The common case by itself, so that it saves no registers: room in the ring, and no virtual time.
#[inline(never)]
pub(super) fn put(word: u64, a: u64, b: u64) {
    if chaos::clock::on() {
        return put_with_care(word, a, b);
    }
    let were_on = instr::interrupts_enabled();
    if were_on {
        instr::cli();
    }
    let cpu = cpu::this();
    let ring = cpu.trace.any();
    let head = ring.head();
    let room = head != ring.limit().load(Ordering::Relaxed);
    if room {
        ring.push(head, [instr::rdtsc(), word, a, b]);
    }
    if were_on {
        instr::sti();
    }
    if !room {
        put_with_care(word, a, b);
    }
}

/// [`put`] for who has read the time, and written nothing since, on `cpu`, its own, with interrupts off.
#[inline(always)]
pub(super) fn put_at(cpu: &Cpu, tsc: u64, word: u64, a: u64, b: u64) {
    let ring = cpu.trace.any();
    let head = ring.head();
    if head != ring.limit().load(Ordering::Relaxed) {
        return ring.push(head, [tsc, word, a, b]);
    }
    put_with_care(word, a, b);
}

/// [`put`] in all other cases.
#[cold]
#[inline(never)]
fn put_with_care(word: u64, a: u64, b: u64) {
    let _irq = IrqGuard::new();
    let cpu = cpu::this();
    let Some(ring) = cpu.trace.ring() else { return };
    let head = ring.head();
    if head == ring.limit().load(Ordering::Relaxed) && !make_room(cpu, ring, head) {
        return;
    }
    ring.push(head, [time::tsc(), word, a, b]);
}

/// Writes a clock record into this CPU's ring, if it has one and there is room.
pub fn clock() {
    let _irq = IrqGuard::new();
    let cpu = cpu::this();
    let Some(ring) = cpu.trace.ring() else { return };
    let head = ring.head();
    if head != ring.limit().load(Ordering::Relaxed) || make_room(cpu, ring, head) {
        ring.push(head, clock_record(time::tsc()));
    }
}

/// What stamps mean, at one of them.
fn clock_record(tsc: u64) -> [u64; 4] {
    [tsc, (Kind::Clock as u64) << 48, time::at_tsc(tsc).0, u64::from(time::counter_khz().0)]
}

/// The ring is full as far as we know. Has it emptied by the host, or counts the record as lost. Interrupts are off.
#[cold]
#[inline(never)]
fn make_room(cpu: &Cpu, ring: Ring, head: u64) -> bool {
    let flags = ring.flags().load(Ordering::Relaxed);
    if flags & RingHeader::OVERWRITES == 0 {
        let full = |tail: u64| head.wrapping_sub(tail) >= ring.capacity();
        // Acquire: the host has read the records before it says so.
        let mut tail = ring.word(RingHeader::TAIL).load(Ordering::Acquire);
        if full(tail) && flags & RingHeader::DRAINED != 0 {
            // SAFETY: the doorbell; DRAINED says that somebody listens.
            unsafe { instr::outl(RingHeader::DOORBELL, cpu.id.0) };
            tail = ring.word(RingHeader::TAIL).load(Ordering::Acquire);
        }
        if full(tail) {
            let lost = ring.word(RingHeader::LOST);
            lost.store(lost.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
            return false;
        }
        ring.limit().store(tail.wrapping_add(ring.capacity()), Ordering::Relaxed);
    } else {
        // Nobody waits for anybody: the oldest go.
        ring.limit().store(head.wrapping_add(u64::MAX >> 1), Ordering::Relaxed);
    }
    true
}

/// How rings are used, from the command line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Off,
    /// The last records, for whoever looks.
    Ring,
    /// All records, for a host that drains.
    Drain,
}

fn mode() -> Mode {
    match cmdline::get("trace") {
        None | Some("off") => Mode::Off,
        Some("ring") => Mode::Ring,
        Some("drain") => Mode::Drain,
        Some(other) => {
            crate::warn!("trace={other}: off, ring or drain");
            Mode::Off
        }
    }
}

fn records() -> u32 {
    let Some(text) = cmdline::get("trace_records") else { return DEFAULT_RECORDS };
    match text.parse::<u32>() {
        Ok(n) if n.is_power_of_two() && RingHeader::CAPACITIES.contains(&n) => n,
        _ => {
            let (least, most) = (RingHeader::CAPACITIES.start(), RingHeader::CAPACITIES.end());
            crate::warn!("trace_records={text}: a power of two from {least} to {most}");
            DEFAULT_RECORDS
        }
    }
}

/// Makes the rings that the command line asks for, and lists them in the directory. Boot CPU, once all CPUs are up and before
/// any other task runs.
pub fn init() {
    let mode = mode();
    if mode == Mode::Off {
        return;
    }
    let records = records();
    for cpu in cpu::all() {
        let Ok((memory, bytes)) = install(cpu, records, mode) else {
            crate::error!("no memory for the trace ring of CPU {}", cpu.id.0);
            return;
        };
        let idle = idle_of(cpu).id.0;
        let kind = EntryKind::TraceRing as u32;
        directory::add(Entry { kind, index: cpu.id.0, address: memory.0, len: bytes, extra: idle.into() });
    }
    // Relaxed: see `ON`.
    ON.store(true, Ordering::Relaxed);
}

/// The ring of a CPU, made if it has none. By the one task that serves requests, so that no two make it.
///
/// # Errors
/// [`OutOfMemory`].
pub fn have(cpu: &'static Cpu, records: u32) -> Result<PhysAddr, OutOfMemory> {
    match cpu.trace.ring() {
        Some(ring) => Ok(PhysAddr(ring.base as u64 - DIRECT_MAP)),
        None => install(cpu, records, Mode::Drain).map(|(memory, _)| memory),
    }
}

fn idle_of(cpu: &Cpu) -> &'static Task {
    // SAFETY: set at bring-up; idle tasks live for ever.
    unsafe { &*cpu.idle.load(Ordering::Acquire) }
}

/// Gives a CPU its ring, with the records that each ring begins with. Returns its place and size.
fn install(cpu: &'static Cpu, records: u32, mode: Mode) -> Result<(PhysAddr, u64), OutOfMemory> {
    let bytes = RingHeader::BYTES as u64 + u64::from(records) * RECORD_BYTES as u64;
    // Frames are lent in powers of two; those behind the records are never touched, so they cost the host nothing.
    let order = bytes.div_ceil(PAGE_SIZE).next_power_of_two().trailing_zeros() as usize;
    let memory = frame::alloc_block(order, false)?;
    let ring = Ring { base: memory.as_ptr(), mask: u64::from(records) - 1 };
    for at in (0..RingHeader::BYTES).step_by(8) {
        ring.word(at).store(0, Ordering::Relaxed);
    }
    ring.word(RingHeader::MAGIC_AT).store(RingHeader::MAGIC, Ordering::Relaxed);
    let flags = if mode == Mode::Ring { RingHeader::OVERWRITES } else { 0 };
    ring.word(RingHeader::CAPACITY).store(u64::from(records) | u64::from(flags) << 32, Ordering::Relaxed);

    let tsc = time::tsc();
    let head = |kind: Kind, task: TaskId, flags: u8| u64::from(task.0) | (kind as u64) << 48 | u64::from(flags) << 56;
    let idle = idle_of(cpu);
    let [name_a, name_b] = super::name_words(&idle.name());
    ring.push(0, clock_record(tsc));
    ring.push(1, [tsc, head(Kind::Name, idle.id, 0), name_a, name_b]);
    ring.push(2, [tsc, head(Kind::Online, idle.id, 1), 0, 0]);
    cpu.trace.mask.store(ring.mask, Ordering::Relaxed);
    ring.limit().store(u64::from(records), Ordering::Relaxed);
    // Release: whoever finds the ring finds it ready.
    cpu.trace.ring.store(ring.base, Ordering::Release);
    Ok((memory, bytes))
}
