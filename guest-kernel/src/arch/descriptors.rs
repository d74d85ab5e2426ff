//! GDT, TSS and IDT. Each CPU has its own GDT and TSS inside its `Cpu`; all share one IDT.
//!
//! Invariant: RSP0 and the IST entries are constant virtual addresses (the per-task and the per-CPU slot), so a task switch
//! never writes to a TSS.
//!
//! Sources: Intel SDM vol. 3A 3.4.5 (segment descriptors), 6.14.1 (64-bit IDT gates), 7.7 (64-bit TSS). Selector values are
//! Linux's, because programs can see them (`ucontext`).

use core::arch::asm;
use core::cell::UnsafeCell;

use super::trap_entry;
use crate::mm::layout;

/// Kernel code segment.
pub const KERNEL_CS: u16 = 0x10;
/// Kernel data segment.
pub const KERNEL_SS: u16 = 0x18;
/// User data segment with RPL 3.
pub const USER_SS: u16 = 0x2b;
/// User 64-bit code segment with RPL 3.
pub const USER_CS: u16 = 0x33;
const TSS_SELECTOR: u16 = 0x40;

/// IST index (1-based) of the double fault, which is also where a kernel stack overflow ends.
pub const IST_DOUBLE_FAULT: u8 = 1;
/// IST index of the non-maskable interrupt.
pub const IST_NMI: u8 = 2;
/// IST index of the machine check.
pub const IST_MACHINE_CHECK: u8 = 3;

/// Interrupt vectors above the 32 exceptions.
pub mod vector {
    /// Local APIC timer.
    pub const TIMER: u8 = 0x20;
    /// First I/O APIC pin; pin n has vector `GSI_BASE + n`.
    pub const GSI_BASE: u8 = 0x30;
    /// Pins that have a vector.
    pub const GSI_COUNT: u8 = 24;
    /// The VMM has posted a request.
    pub const REQUEST: u8 = vcpu_sched::requests::VECTOR;
    /// "Look at your run queue."
    pub const IPI_RESCHEDULE: u8 = 0xf0;
    /// "Flush what the address spaces' generations say."
    pub const IPI_SHOOTDOWN: u8 = 0xf1;
    /// "Stop: another CPU has panicked."
    pub const IPI_STOP: u8 = 0xf2;
    /// Local APIC spurious interrupt.
    pub const SPURIOUS: u8 = 0xff;
}

/// Task state segment.
#[repr(C, packed(4))]
pub struct Tss {
    _reserved0: u32,
    rsp: [u64; 3],
    _reserved1: u64,
    ist: [u64; 7],
    _reserved2: u64,
    _reserved3: u16,
    io_map_base: u16,
}

const _: () = assert!(size_of::<Tss>() == 104);

impl Tss {
    /// A TSS whose stacks are the constant ones of the slots.
    pub const fn new() -> Self {
        let mut ist = [0; 7];
        ist[IST_DOUBLE_FAULT as usize - 1] = layout::cpu_slot::DOUBLE_FAULT_STACK_TOP;
        ist[IST_NMI as usize - 1] = layout::cpu_slot::NMI_STACK_TOP;
        ist[IST_MACHINE_CHECK as usize - 1] = layout::cpu_slot::MACHINE_CHECK_STACK_TOP;
        Self {
            _reserved0: 0,
            rsp: [layout::task_slot::STACK_TOP, 0, 0],
            _reserved1: 0,
            ist,
            _reserved2: 0,
            _reserved3: 0,
            io_map_base: 104,
        }
    }

    /// Sets the stack on which the next entry from ring 3 starts. Only `ring3` moves it, and puts it back.
    #[inline(always)]
    pub fn set_rsp0(&mut self, top: u64) {
        self.rsp[0] = top;
    }
}

/// Global descriptor table: null, (unused), kernel code, kernel data, (user 32), user data, user code, (unused), TSS (2 entries).
#[repr(C, align(16))]
pub struct Gdt([u64; 10]);

impl Gdt {
    /// The table without its TSS.
    pub const fn new() -> Self {
        Self([
            0,
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0,
            0,
            0,
        ])
    }
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

/// Loads GDT, TSS and the shared IDT on this CPU and resets the segment registers.
///
/// # Safety
/// `gdt` and `tss` live as long as the CPU runs, and their slot addresses are mapped in every page table it will load.
pub unsafe fn load(gdt: *mut Gdt, tss: *mut Tss) {
    let base = tss as u64;
    let low = 0x0000_8900_0000_0067 | (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56;
    // SAFETY: the caller gives us both tables.
    unsafe {
        (*gdt).0[8] = low;
        (*gdt).0[9] = base >> 32;
    }
    let gdt_ptr = TablePointer { limit: (size_of::<Gdt>() - 1) as u16, base: gdt as u64 };
    let idt_ptr = TablePointer { limit: (size_of::<Idt>() - 1) as u16, base: IDT.0.get() as u64 };
    // SAFETY: both tables are valid; the far return reloads CS with the same privilege and a flat base.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "push {cs}",
            "lea {tmp}, [rip + 2f]",
            "push {tmp}",
            "retfq",
            "2:",
            "mov ss, {ss:x}",
            "mov ds, {ss:x}",
            "mov es, {ss:x}",
            "ltr {tr:x}",
            "lidt [{idt}]",
            gdt = in(reg) &gdt_ptr,
            idt = in(reg) &idt_ptr,
            cs = const KERNEL_CS as u64,
            ss = in(reg) KERNEL_SS as u64,
            tr = in(reg) TSS_SELECTOR as u64,
            tmp = out(reg) _,
        );
    }
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

#[repr(C, align(16))]
struct Idt(UnsafeCell<[Gate; 256]>);

// SAFETY: written by the boot CPU before the others start, read by hardware afterwards.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([Gate { low: 0, high: 0 }; 256]));

/// Fills the IDT. Boot CPU, once, before [`load`].
pub fn init_idt() {
    let set = |vector: u8, ist: u8, dpl: u64| {
        let handler = trap_entry::stub_address(vector);
        // Present interrupt gate (type 0xe: clears IF).
        let low = handler & 0xffff
            | u64::from(KERNEL_CS) << 16
            | u64::from(ist) << 32
            | (0x8e | dpl << 5) << 40
            | (handler >> 16 & 0xffff) << 48;
        // SAFETY: single-CPU boot; nobody reads the table yet.
        unsafe { (*IDT.0.get())[vector as usize] = Gate { low, high: handler >> 32 } };
    };
    for v in 0..22 {
        let (ist, dpl) = match v {
            2 => (IST_NMI, 0),
            8 => (IST_DOUBLE_FAULT, 0),
            18 => (IST_MACHINE_CHECK, 0),
            3 | 4 => (0, 3), // int3 and into are for programs too
            _ => (0, 0),
        };
        set(v, ist, dpl);
    }
    set(vector::TIMER, 0, 0);
    for pin in 0..vector::GSI_COUNT {
        set(vector::GSI_BASE + pin, 0, 0);
    }
    for v in [vector::REQUEST, vector::IPI_RESCHEDULE, vector::IPI_SHOOTDOWN, vector::IPI_STOP, vector::SPURIOUS] {
        set(v, 0, 0);
    }
}
