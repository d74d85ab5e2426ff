//! Taskvisor's guest kernel.
//!
//! Where to start reading: [`boot`] (from PVH entry to the first task), [`task`] and [`sched`] (what runs and when), [`mm`]
//! (who sees which memory), [`arch`] (traps and switches), [`linux`] (the ABI that programs see).
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]
// What only the ABI layer or the start list uses is not dead, just not in these builds.
#![cfg_attr(any(feature = "selftest", not(feature = "linux")), allow(dead_code, unused_imports))]

extern crate alloc;

mod arch;
mod boot;
mod chaos;
mod console;
mod cpu;
mod crash;
mod directory;
#[cfg(feature = "linux")]
mod linux;
mod log;
mod mm;
// What no service of the kernel needs yet is there for those that will, and for the tests.
#[allow(dead_code, unused_imports)]
mod rcu;
mod requests;
// As `rcu`.
#[allow(dead_code, unused_imports)]
mod runtime;
mod sched;
#[cfg(feature = "selftest")]
mod selftest;
mod symbols;
mod sync;
mod task;
mod time;
mod trace;

use sync::BootCell;

static BOOT: BootCell<boot::BootInfo> = BootCell::new();

/// First Rust code of the boot CPU, on the boot stack and the boot page tables.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(start_info: u64) -> ! {
    // SAFETY: once, before anything uses per-CPU data.
    unsafe { cpu::init_boot() };
    arch::descriptors::init_idt();
    let info = boot::init_memory(start_info);
    if let Some(level) = boot::cmdline::get("log_level")
        && !log::set_level(level)
    {
        warn!("log_level={level}: unknown level, keeping info");
    }
    arch::features::detect(boot::cmdline::get("quirks").unwrap_or(""));
    if let Err(e) = kernel_map_protect() {
        panic!("no memory for page tables: {e:?}");
    }
    BOOT.set(info);
    match cpu::bring_up::become_first_task(second_stage) {
        Ok(never) => match never {},
        Err(e) => panic!("no memory for the first task: {e:?}"),
    }
}

fn kernel_map_protect() -> Result<(), mm::frame::OutOfMemory> {
    mm::kernel_map::protect_image()
}

/// The rest of boot, as the boot CPU's idle task.
extern "C" fn second_stage() -> ! {
    let Some(info) = BOOT.get() else { panic!("boot information lost") };
    arch::fpu::init_this_cpu();
    let madt = boot::acpi::madt(info.rsdp).unwrap_or_default();
    chaos::init(madt.apic_ids.len() <= 1);
    time::init();
    rcu::init(madt.apic_ids.len());
    task::table::init();
    #[cfg(feature = "linux")]
    linux::init_tables();
    sched::init();
    time::wall::init();
    cpu::topology::init(info.rsdp, &madt.apic_ids);
    if let Some(base) = madt.io_apic {
        arch::ioapic::set_base(base);
    }
    if let Err(e) = cpu::bring_up::start_others(&madt.apic_ids) {
        // Not with fewer: whoever asked for so many shall know.
        panic!("no memory for {} CPUs (some 80 KiB each): {e:?}", madt.apic_ids.len());
    }
    cpu::shown::fill();
    let (free, total) = mm::frame::usage();
    info!(
        "{} CPU(s), {} of {} MiB free, features {:?}",
        cpu::count(),
        free >> 8,
        total >> 8,
        arch::features::features()
    );
    console::init();
    trace::init();
    task::listing::show();
    cpu::view::show();
    arch::debug_port::show();
    requests::init();
    sched::delegated::init();
    time::show();
    directory::publish();
    chaos::start();
    #[cfg(feature = "selftest")]
    selftest::start();
    #[cfg(all(feature = "linux", not(feature = "selftest")))]
    linux::start(info.archive);
    #[cfg(not(any(feature = "linux", feature = "selftest")))]
    info!("no ABI layer in this build: idle");
    sched::idle::run()
}
