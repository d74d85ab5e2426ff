//! Bringing the CPUs up: each gets its data, its slot of stacks, and an idle task; application processors by INIT-SIPI-SIPI.
//!
//! All are started at once, each taking a ticket for its stack; the boot CPU waits for them with a bound. Invariant: a CPU is
//! in the table (`cpu::get`) only when it is ready for IPIs.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use vcpu_sched::ids::{CpuId, Nanos};

use super::{Cpu, steal};
use crate::arch::descriptors::vector;
use crate::arch::features::{self, Features, has};
use crate::arch::{apic, fpu, instr, trap};
use crate::boot::entry::TRAMPOLINE_PHYS;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::{CPU_SLOT, PAGE_SIZE, cpu_slot, task_slot};
use crate::mm::page_table::{Entry, Flags, Table, index};
use crate::mm::{PhysAddr, kernel_map};
use crate::sched;
use crate::sync::BootCell;
use crate::task::{Task, table};
use crate::time;

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static mut ap_stack_count: u32;
    static mut ap_stacks: *const u64;
}

/// How long the boot CPU waits for all others, and how much longer for each of them: where ring 0 is interpreted and CPUs are shared, a start
/// takes milliseconds.
const PATIENCE: Nanos = Nanos(10_000_000_000);
const PATIENCE_EACH: Nanos = Nanos(200_000_000);

/// When CPUs that haven't come get a second STARTUP.
const SECOND_STARTUP: Nanos = Nanos(200_000_000);

/// A CPU on its way up.
struct Pending {
    cpu: &'static Cpu,
    idle: &'static Task,
}

static PENDING: BootCell<Vec<Pending>> = BootCell::new();
static UP: AtomicU32 = AtomicU32::new(0);
/// Who waits for the others.
static BOOT_APIC_ID: AtomicU32 = AtomicU32::new(0);

/// Makes the per-CPU slot: stacks with guard pages and what programs see; one block of tables and frames, and a frame.
fn make_slot(cpu: &Cpu) -> Result<Entry, OutOfMemory> {
    // pdpt, pd, pt, then: double fault x 2, NMI, machine check, neutral.
    let base = frame::alloc_block(3, true)?;
    let page = |i: u64| PhysAddr(base.0 + i * PAGE_SIZE);
    let rw = Flags::PRESENT | Flags::WRITE;
    // SAFETY: fresh zero frames are empty tables.
    let (pdpt, pd, pt) = unsafe { (Table::at(page(0)), Table::at(page(1)), Table::at(page(2))) };
    // Open to ring 3 as far as the last level, and as the entry says by which it comes: see `shown`.
    pdpt.set(index(cpu_slot::BASE, 3), Entry::new(page(1), rw | Flags::USER));
    pd.set(index(cpu_slot::BASE, 2), Entry::new(page(2), rw | Flags::USER));
    let tops = [
        cpu_slot::DOUBLE_FAULT_STACK_TOP - PAGE_SIZE,
        cpu_slot::DOUBLE_FAULT_STACK_TOP,
        cpu_slot::NMI_STACK_TOP,
        cpu_slot::MACHINE_CHECK_STACK_TOP,
        cpu_slot::NEUTRAL_STACK_TOP,
    ];
    for (i, top) in tops.into_iter().enumerate() {
        pt.set(index(top - PAGE_SIZE, 1), Entry::new(page(3 + i as u64), rw | Flags::NO_EXECUTE));
    }
    let shown = frame::alloc_zeroed()?;
    cpu.shown_page.store(shown.0, Ordering::Relaxed);
    let flags = Flags::PRESENT | Flags::USER | Flags::ACCESSED | Flags::NO_EXECUTE;
    pt.set(index(cpu_slot::SHOWN_PAGE, 1), Entry::new(shown, flags));
    Ok(Entry::new(page(0), rw))
}

/// Prepares a CPU's memory: slot, ring-3 engine, idle task.
fn prepare(cpu: &'static Cpu) -> Result<&'static Task, OutOfMemory> {
    let slot = make_slot(cpu)?;
    cpu.slot_entry.store(slot.0, Ordering::Relaxed);
    if has(Features::SLOW_RING0) || has(Features::USER_XSAVE) {
        let root = frame::alloc_zeroed()?;
        // SAFETY: fresh zero frame.
        let top = unsafe { Table::at(root) };
        kernel_map::install_kernel_half(top);
        kernel_map::install_identity_for_ring3(top)?;
        top.set(CPU_SLOT, slot);
        cpu.ring3_list.store(frame::alloc()?.0, Ordering::Relaxed);
        cpu.ring3_root.store(root.0, Ordering::Release);
    }
    let mut name = arrayvec::ArrayString::<16>::new();
    let _ = core::fmt::Write::write_fmt(&mut name, format_args!("idle/{}", cpu.id.0));
    let idle = Task::new_idle(table::allocate_kernel_id(), &name, cpu.id)?;
    idle.block.top().set(CPU_SLOT, slot);
    table::insert(&idle);
    // The idle task never ends; its reference stays in `Cpu::idle` and `Cpu::current`.
    // SAFETY: so it lives for ever.
    let idle: &'static Task = unsafe { &*alloc::sync::Arc::into_raw(idle) };
    cpu.idle.store(core::ptr::from_ref(idle).cast_mut(), Ordering::Relaxed);
    cpu.current.store(core::ptr::from_ref(idle).cast_mut(), Ordering::Relaxed);
    Ok(idle)
}

/// What every CPU does for itself once its memory is there. Interrupts are off, on whatever stack.
fn init_this_cpu(cpu: &'static Cpu) {
    features::enable_on_this_cpu();
    apic::init_this_cpu();
    trap::init_syscall();
    time::start_this_cpu(cpu);
    steal::start_this_cpu(cpu);
    let tsc = time::tsc();
    cpu.picked_at.store(tsc, Ordering::Relaxed);
    cpu.picked_time.store(cpu.clock.at(tsc).0, Ordering::Relaxed);
}

/// Turns the boot path of the first CPU into its idle task's context. The root must be left only by way of the idle task's
/// own stack, so the rest of boot runs as `then` on it.
/// `then` must begin with `fpu::init_this_cpu`, which may need that stack.
///
/// # Errors
/// [`OutOfMemory`].
pub fn become_first_task(then: extern "C" fn() -> !) -> Result<core::convert::Infallible, OutOfMemory> {
    let cpu = super::this();
    let idle = prepare(cpu)?;
    init_this_cpu(cpu);
    sched::set_online(cpu.id);
    // SAFETY: the idle task's root maps kernel half, slot and its stack; nothing on the old stack is needed again.
    unsafe {
        cpu.load_tables();
        enter(idle, then)
    }
}

/// Loads a task's root and runs `then` on its stack.
///
/// # Safety
/// Interrupts are off; nothing on the present stack is needed any more.
unsafe fn enter(task: &'static Task, then: extern "C" fn() -> !) -> ! {
    // SAFETY: the caller's promise; the root is loaded first, since the present root lacks the slots: the code and the present
    // stack (image or direct map) are mapped by both.
    unsafe {
        core::arch::asm!(
            "mov cr3, {root}",
            "mov rsp, {top}",
            "xor ebp, ebp",
            "push 0",
            "jmp {then}",
            root = in(reg) task.block.root().0,
            top = in(reg) task_slot::STACK_TOP,
            then = in(reg) then,
            options(noreturn)
        )
    }
}

/// Starts all other CPUs. Runs on the boot CPU's idle task, before there are programs.
///
/// # Errors
/// [`OutOfMemory`]; no CPU has been started then.
pub fn start_others(apic_ids: &[u32]) -> Result<(), OutOfMemory> {
    let mut pending = Vec::new();
    let mut stacks = Vec::new();
    let me = super::this().apic_id();
    for &apic_id in apic_ids.iter().filter(|id| **id != me) {
        let cpu = super::allocate(CpuId(1 + pending.len() as u32), apic_id);
        let idle = prepare(cpu)?;
        // Which CPU takes which ticket is chance, so none can start on its own stack; it moves there as soon as it knows itself.
        stacks.push(frame::alloc()?.to_virt() + PAGE_SIZE);
        pending.push(Pending { cpu, idle });
    }
    let count = pending.len() as u32;
    if count == 0 {
        return Ok(());
    }
    PENDING.set(pending);
    BOOT_APIC_ID.store(me, Ordering::Relaxed);
    // SAFETY: the trampoline page is below 1 MiB, which nobody else uses; the APs read the rest after they are started.
    unsafe {
        let len = &raw const ap_trampoline_end as usize - &raw const ap_trampoline as usize;
        instr::copy_quads(PhysAddr(TRAMPOLINE_PHYS).as_ptr(), (&raw const ap_trampoline).cast(), len.div_ceil(8));
        ap_stacks = stacks.as_ptr();
        ap_stack_count = count;
    }
    core::sync::atomic::fence(Ordering::SeqCst);
    let targets: Vec<u32> = apic_ids.iter().copied().filter(|id| *id != me).collect();
    for id in &targets {
        apic::send_init(*id);
    }
    for id in &targets {
        apic::send_startup(*id, (TRAMPOLINE_PHYS >> 12) as u8);
    }
    let start = time::now();
    let patience = Nanos(PATIENCE.0 + PATIENCE_EACH.0 * u64::from(count));
    let boot = super::this();
    let mut second = false;
    while UP.load(Ordering::Acquire) < count {
        let waited = Nanos(time::now().0 - start.0);
        // A second STARTUP for CPUs that missed the first (SDM vol. 3A 9.4.4.1 sends it unasked; here only to who needs it).
        if !second && waited > SECOND_STARTUP {
            second = true;
            for id in &targets {
                apic::send_startup(*id, (TRAMPOLINE_PHYS >> 12) as u8);
            }
        }
        if waited > patience {
            crate::error!("only {} of {count} further CPUs came up", UP.load(Ordering::Acquire));
            // The late ones may still use their stacks.
            core::mem::forget(stacks);
            super::set_count(1 + count);
            return Ok(());
        }
        // Each CPU that is up sends an interrupt; the timer ends the wait for one that isn't.
        instr::cli();
        if UP.load(Ordering::Acquire) < count {
            let tsc = instr::rdtsc();
            boot.timers.arm_slice(tsc.wrapping_add(time::ticks(SECOND_STARTUP)), tsc);
            instr::sti_hlt();
        }
        instr::sti();
    }
    instr::cli();
    super::set_count(1 + count);
    for top in stacks {
        frame::put(PhysAddr::from_direct(top - PAGE_SIZE));
    }
    Ok(())
}

/// First Rust code of an application processor, on a stack that it leaves for good.
#[unsafe(no_mangle)]
extern "C" fn ap_main() -> ! {
    let id = apic::initial_id();
    let Some(p) = PENDING.get().and_then(|p| p.iter().find(|p| p.cpu.apic_id() == id)) else { instr::halt_forever() };
    /// The rest, on the idle task's own stack and root.
    extern "C" fn go_on() -> ! {
        let me = super::this();
        init_this_cpu(me);
        fpu::init_this_cpu();
        sched::set_online(me.id);
        UP.fetch_add(1, Ordering::AcqRel);
        apic::send_ipi(BOOT_APIC_ID.load(Ordering::Relaxed), vector::IPI_RESCHEDULE);
        sched::idle::run()
    }
    // SAFETY: first code on this CPU; its data is prepared.
    unsafe {
        super::install(p.cpu);
        p.cpu.load_tables();
        enter(p.idle, go_on)
    }
}
