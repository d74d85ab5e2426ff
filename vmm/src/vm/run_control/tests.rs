//! Real vCPUs that count in guest memory, stopped and let go over and over.

use std::thread::{self, JoinHandle};

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use taskvisor_devices::bus::{Bus, BusKind};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::*;
use crate::debug::hub::Hub;
use crate::memory::Ram;
use crate::vcpu::counts::ExitCounts;
use crate::vcpu::kick;
use crate::vcpu::run_loop::{Buses, Outcome, Vcpu};

const RAM: usize = 1 << 20;
const COUNTERS: u64 = 0x2000;
/// `l: inc dword [bx]; jmp l`: 16-bit code that counts forever, with interrupts off.
const COUNT: [u8; 5] = [0x66, 0xff, 0x07, 0xeb, 0xfb];
/// `l: inc dword [bx]; mov dx, 0x5cc; out dx, eax; jmp l`: counts, and tells a debugger each time.
const RING: [u8; 10] = [0x66, 0xff, 0x07, 0xba, 0xcc, 0x05, 0x66, 0xef, 0xeb, 0xf6];
/// `l: hlt; jmp l`, with interrupts off: nothing of the guest's wakes it.
const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];

struct Machine {
    control: RunControl,
    ram: Ram,
    threads: Vec<JoinHandle<Outcome>>,
    _vm: VmFd,
}

/// `vcpus` vCPUs that run `code`. The irqchip in the kernel makes a halted vCPU wait there, as in a real machine.
fn machine(vcpus: usize, code: &[u8]) -> Machine {
    debugged(vcpus, code, None)
}

/// The same, with somebody to whom vCPUs report.
fn debugged(vcpus: usize, code: &[u8], debug: Option<Arc<Hub>>) -> Machine {
    kick::install_handler().unwrap();
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let ram = Ram::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    let region = ram.iter().next().unwrap();
    let userspace_addr = region.get_host_address(MemoryRegionAddress(0)).unwrap() as u64;
    let region = kvm_userspace_memory_region { memory_size: RAM as u64, userspace_addr, ..Default::default() };
    // SAFETY: the memory belongs to `ram`, which the machine keeps.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    ram.write_slice(code, GuestAddress(0x1000)).unwrap();

    let control = RunControl::new(vcpus);
    let run_size = vm.run_size();
    let buses = Arc::new(Buses { pio: Bus::new(BusKind::Pio), mmio: Bus::new(BusKind::Mmio) });
    let threads = (0..vcpus).map(|index| {
        let fd = vm.create_vcpu(index as u64).unwrap();
        let mut sregs = fd.get_sregs().unwrap();
        for segment in [&mut sregs.cs, &mut sregs.ds] {
            (segment.base, segment.selector) = (0, 0);
        }
        fd.set_sregs(&sregs).unwrap();
        let mut regs = fd.get_regs().unwrap();
        (regs.rip, regs.rbx, regs.rflags) = (0x1000, COUNTERS + 8 * index as u64, 2);
        fd.set_regs(&regs).unwrap();
        fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
        let vcpu = Vcpu {
            id: index as u32,
            fd,
            run_size,
            buses: buses.clone(),
            ram: ram.clone(),
            seat: control.take_seat(index).unwrap(),
            counts: Arc::new(ExitCounts::default()),
            tracer: None,
            debug: debug.clone(),
            pauses: None,
        };
        thread::spawn(move || vcpu.run())
    });
    let threads = threads.collect();
    Machine { control, ram, threads, _vm: vm }
}

impl Machine {
    fn counters(&self) -> Vec<u32> {
        let counter = |index| self.ram.read_obj(GuestAddress(COUNTERS + 8 * index)).unwrap();
        (0..self.control.vcpus() as u64).map(counter).collect()
    }

    /// Until every vCPU has counted on.
    fn wait_for_more_than(&self, old: &[u32]) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.counters().iter().zip(old).any(|(new, old)| new == old) {
            assert!(Instant::now() < deadline, "a vCPU stands still: {old:?}, {:?}", self.counters());
            thread::yield_now();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.control.leave();
        for thread in self.threads.drain(..) {
            let outcome = thread.join().unwrap();
            assert!(matches!(outcome, Outcome::Stopped), "{outcome:?}");
        }
    }
}

fn registers(paused: &Paused, vcpu: usize) -> kvm_bindings::kvm_regs {
    paused.with_vcpu(vcpu, |fd| fd.get_regs()).unwrap().unwrap()
}

#[test]
fn counters_stand_still_while_the_guest_is_paused_and_go_on_after() {
    for vcpus in [1, 2, 4] {
        let machine = machine(vcpus, &COUNT);
        for _ in 0..200 {
            let paused = machine.control.pause().unwrap();
            let (counters, rip) = (machine.counters(), registers(&paused, vcpus - 1).rip);
            for vcpu in 0..vcpus {
                assert_eq!(registers(&paused, vcpu).rbx, COUNTERS + 8 * vcpu as u64);
            }
            thread::yield_now();
            assert_eq!((machine.counters(), registers(&paused, vcpus - 1).rip), (counters.clone(), rip));
            paused.resume();
            machine.wait_for_more_than(&counters);
        }
        assert!(!machine.control.paused());
    }
}

#[test]
fn the_last_holder_lets_the_guest_go() {
    let machine = machine(2, &COUNT);
    let first = machine.control.pause().unwrap();
    let second = machine.control.pause().unwrap();
    let counters = machine.counters();
    first.resume();
    assert!(machine.control.paused());
    registers(&second, 0);
    assert_eq!(machine.counters(), counters);
    second.resume();
    machine.wait_for_more_than(&counters);
}

#[test]
fn one_vcpu_may_go_on_alone() {
    let machine = machine(2, &COUNT);
    let mut paused = machine.control.pause().unwrap();
    let before = machine.counters();
    paused.release(1).unwrap();
    assert_eq!(paused.with_vcpu(1, |_| ()), Err(RunControlError::Running { vcpu: 1 }));
    let deadline = Instant::now() + Duration::from_secs(60);
    while machine.counters()[1] == before[1] && Instant::now() < deadline {
        thread::yield_now();
    }
    paused.hold(1).unwrap();
    let after = machine.counters();
    assert_eq!(after[0], before[0]);
    assert_ne!(after[1], before[1]);
    registers(&paused, 1);
    assert_eq!(machine.counters(), after);
}

#[test]
fn halted_vcpus_can_be_stopped_and_moved() {
    let machine = machine(2, &HALT);
    for _ in 0..50 {
        let paused = machine.control.pause().unwrap();
        assert!((0x1000..0x1003).contains(&registers(&paused, 0).rip));
    }
    machine.ram.write_slice(&COUNT, GuestAddress(0x1100)).unwrap();
    let paused = machine.control.pause().unwrap();
    for vcpu in 0..2 {
        let moved = paused.with_vcpu(vcpu, |fd| {
            let mut regs = fd.get_regs()?;
            regs.rip = 0x1100;
            fd.set_regs(&regs)?;
            fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
        });
        moved.unwrap().unwrap();
    }
    paused.resume();
    machine.wait_for_more_than(&[0, 0]);
}

#[test]
fn many_threads_pause_while_the_machine_ends() {
    for _ in 0..20 {
        let machine = machine(2, &COUNT);
        let (done, all_done) = channel();
        for _ in 0..3 {
            let (control, done) = (machine.control.clone(), done.clone());
            thread::spawn(move || {
                let ask = || control.pause().unwrap().with_vcpu(1, |fd| fd.get_regs().map(drop));
                done.send(ask().is_ok()).unwrap();
                // Until the vCPU has gone: each question before must be answered too.
                while ask() != Err(RunControlError::Gone { vcpu: 1 }) {}
                done.send(true).unwrap();
            });
        }
        drop(done);
        for _ in 0..3 {
            assert_eq!(all_done.recv(), Ok(true));
        }
        drop(machine);
        assert_eq!(all_done.iter().count(), 3);
    }
}

#[test]
fn a_guest_that_is_held_from_the_start_begins_when_it_is_let_go() {
    let control = RunControl::new(1);
    let paused = control.pause().unwrap();
    assert_eq!(paused.with_vcpu(0, |_| ()), Err(RunControlError::Gone { vcpu: 0 }));
    assert_eq!(paused.with_vcpu(1, |_| ()), Err(RunControlError::NoVcpu { vcpu: 1 }));
    let taken = control.take_seat(0).unwrap();
    assert!(matches!(taken.turn(), crate::vcpu::seat::Turn::Wait));
    paused.resume();
    assert!(matches!(taken.turn(), crate::vcpu::seat::Turn::Run));
}

#[test]
fn a_vcpu_that_stops_again_as_soon_as_it_runs_stays_stopped() {
    let hub = Arc::new(Hub::new().unwrap());
    hub.attach(true);
    let machine = debugged(1, &RING, Some(hub.clone()));
    let reported = || {
        let deadline = Instant::now() + Duration::from_secs(60);
        while hub.take().is_empty() {
            assert!(Instant::now() < deadline, "nothing is reported");
            thread::yield_now();
        }
    };
    reported();
    let mut paused = machine.control.pause().unwrap();
    let start = machine.counters()[0];
    for turn in 1..=5_000 {
        paused.release_stopped(0).unwrap();
        reported();
        paused.hold(0).unwrap();
        assert_eq!(machine.counters()[0], start + turn, "it went on although nobody has answered it");
    }
}
