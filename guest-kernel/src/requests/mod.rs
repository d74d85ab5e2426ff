//! The mailbox (`vcpu_sched::requests`): what the VMM asks of this kernel.
//!
//! `mailbox=1` on the command line makes one; without it, nothing of this exists. An interrupt wakes a task of the stop class, which
//! takes requests out of their slots one by one and has [`act`] carry them out; so requests are served whatever the programs do,
//! and never in an interrupt. A slot that was taken is a [`Ticket`], which can't be lost without an answer.

mod act;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use vcpu_sched::directory::{Entry, EntryKind};
use vcpu_sched::params::{Class, SchedParams};
use vcpu_sched::requests::head::{ANSWER_AT, AnswerHead, BODY_AT, HEAD_BYTES, REQUEST_AT, RequestHead, WORD_AT};
use vcpu_sched::requests::message::{self, Outcome, Refusal, Request};
use vcpu_sched::requests::slot::SlotWord;
use vcpu_sched::requests::{DOORBELL, Header, MAGIC, VERSION};

use crate::arch::{apic, instr};
use crate::boot::cmdline;
use crate::directory;
use crate::mm::PhysAddr;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::PAGE_SIZE;
use crate::sched;
use crate::sync::{BootCell, WaitQueue};
use crate::task::{Spawn, Task, current, table};

/// Requests under way at a time.
const SLOTS: u32 = 4;
/// The region is a block of 16 pages: header and slots.
const ORDER: usize = 4;
/// Room for arguments and environment of a program. A multiple of 64, and four of them and the header fit the block.
const SLOT_BYTES: u32 = 16_320;
const _: () = assert!(64 + SLOTS as u64 * SLOT_BYTES as u64 <= PAGE_SIZE << ORDER);

/// Where the region is. Set at boot.
static REGION: BootCell<PhysAddr> = BootCell::new();
/// The task that serves them waits here.
static WAITING: WaitQueue = WaitQueue::new();
/// A request was posted, and not all slots have been looked at since.
static POSTED: AtomicBool = AtomicBool::new(false);

/// Makes the mailbox, if one is wanted. Boot CPU, before the directory is published.
pub fn init() {
    if !cmdline::flag("mailbox") {
        return;
    }
    if let Err(OutOfMemory) = make() {
        crate::error!("no memory for the mailbox: the VMM can ask nothing of this kernel");
    }
}

fn make() -> Result<(), OutOfMemory> {
    let region = frame::alloc_block(ORDER, false)?;
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        slots: SLOTS,
        slot_bytes: SLOT_BYTES,
        apic_id: apic::initial_id(),
        reserved: [0; 5],
    };
    // SAFETY: ours alone until it is listed.
    unsafe { region.as_ptr::<[u8; 64]>().write(header.to_bytes()) };
    for slot in 0..SLOTS {
        let word = PhysAddr(region.0 + header.slot_at(slot) + WORD_AT);
        // SAFETY: within the block; ours alone until it is listed.
        unsafe { word.as_ptr::<SlotWord>().write(SlotWord::new()) };
    }
    let spawn = Spawn { name: "requests", affinity: None, entry: serve, argument: 0, user: None };
    let task = Task::new(table::allocate_kernel_id(), spawn)?;
    REGION.set(region);
    sched::start(task);
    directory::add(Entry {
        kind: EntryKind::Mailbox as u32,
        index: 0,
        address: region.0,
        len: header.region_bytes(),
        extra: 0,
    });
    Ok(())
}

/// The VMM's interrupt has come.
pub fn posted() {
    // Release: whoever finds it set looks at all slots afterwards.
    POSTED.store(true, Ordering::Release);
    WAITING.wake_one();
}

/// The task that serves requests.
extern "C" fn serve(_: usize) -> ! {
    // A task of the stop class has no budget that could be refused.
    let _ = sched::set_params(&current().to_arc(), &SchedParams::of_class(Class::Stop));
    loop {
        WAITING.wait_until(|| POSTED.swap(false, Ordering::AcqRel).then_some(()));
        for slot in 0..SLOTS {
            if let Some((ticket, request)) = take(slot) {
                match request {
                    Ok(request) => act::carry_out(request, ticket),
                    Err(refusal) => ticket.answer(Err(refusal)),
                }
            }
        }
    }
}

fn slot_at(slot: u32) -> Option<PhysAddr> {
    let region = REGION.get()?;
    Some(PhysAddr(region.0 + 64 + u64::from(slot) * u64::from(SLOT_BYTES)))
}

/// Takes a slot that holds a request, and the request out of it.
fn take(slot: u32) -> Option<(Ticket, Result<Request, Refusal>)> {
    let at = slot_at(slot)?;
    // SAFETY: a word of the region, which is never given back; the VMM changes it by the same rules.
    let word: &'static SlotWord = unsafe { &*PhysAddr(at.0 + WORD_AT).as_ptr() };
    if !word.take() {
        return None;
    }
    // SAFETY: taken, so nobody else writes it; within the slot.
    let bytes: [u8; HEAD_BYTES] = unsafe { PhysAddr(at.0 + REQUEST_AT).as_ptr::<[u8; HEAD_BYTES]>().read() };
    let head = RequestHead::from_bytes(&bytes);
    let request = match u64::from(head.len) <= u64::from(SLOT_BYTES) - BODY_AT {
        // SAFETY: as above; the length was checked.
        true => Request::decode(&head, &unsafe { copy(PhysAddr(at.0 + BODY_AT), head.len as usize) }),
        false => Err(Refusal::Malformed),
    };
    Some((Ticket { slot, at, word, sequence: head.sequence, answered: false }, request))
}

/// # Safety
/// So many bytes are there and nobody writes them.
unsafe fn copy(from: PhysAddr, len: usize) -> Vec<u8> {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(from.as_ptr::<u8>(), len) }.to_vec()
}

/// A request that was taken and must be answered. Whoever has it may do so from any task.
#[must_use = "the VMM waits for the answer"]
pub struct Ticket {
    slot: u32,
    at: PhysAddr,
    word: &'static SlotWord,
    sequence: u64,
    answered: bool,
}

impl Ticket {
    /// Answers.
    pub fn answer(mut self, outcome: Outcome) {
        self.put(outcome);
    }

    /// Room for an answer's body.
    pub fn body(&mut self) -> &mut [u8] {
        let room = (u64::from(SLOT_BYTES) - BODY_AT) as usize;
        // SAFETY: the slot is taken, by us, who are borrowed; within it.
        unsafe { core::slice::from_raw_parts_mut(PhysAddr(self.at.0 + BODY_AT).as_ptr::<u8>(), room) }
    }

    /// Answers with the first `len` bytes of the body.
    pub fn answer_with_body(mut self, value: u64, len: usize) {
        let len = len.min(self.body().len()) as u32;
        self.put_head(AnswerHead { len, ..message::answer(self.sequence, Ok(value)) });
    }

    fn put(&mut self, outcome: Outcome) {
        self.put_head(message::answer(self.sequence, outcome));
    }

    fn put_head(&mut self, head: AnswerHead) {
        if core::mem::replace(&mut self.answered, true) {
            return;
        }
        let head = head.to_bytes();
        // SAFETY: the slot is taken, by us; within it.
        unsafe { PhysAddr(self.at.0 + ANSWER_AT).as_ptr::<[u8; HEAD_BYTES]>().write(head) };
        if self.word.answer() {
            // SAFETY: the doorbell port (docs/abi.md); without such a device the write goes nowhere.
            unsafe { instr::outl(DOORBELL, self.slot) };
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Whoever had it gave up on the way.
        self.put(Err(Refusal::NoMemory));
    }
}
