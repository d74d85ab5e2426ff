//! One vCPU's thread: a state machine around KVM_RUN.
//!
//! ```text
//!            held                     told to leave
//!  Running ---------> Parked    Running, Parked ----------------------> Finished(Stopped)
//!     ^                 |       Running -- an exit nobody expects ----> Finished(Failed(report))
//!     +---- let go -----+
//! ```
//! [`crate::vm`] spawns [`Vcpu::run`] on a thread of its own and gives it orders through its [`super::seat`], each
//! followed by a [`super::kick`]. Orders are looked at only after an interrupted KVM_RUN, never on the hot path.

use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use taskvisor_devices::bus::Bus;

use super::counts::{ExitCounts, Kind};
use super::exit::{Exit, Fatal, RunPage, decode};
use super::kick::Armed;
use super::report::Snapshot;
use super::seat::{Taken, Turn};
use crate::chaos::Pauses;
use crate::debug::hub::{Concern, Event, Hub, Report};
use crate::debug::registers::VcpuRegisters;
use crate::memory::Ram;
use crate::trace::VcpuTracer;

/// Why a vCPU's thread ended.
#[derive(Debug)]
pub enum Outcome {
    /// It was told to.
    Stopped,
    /// The guest can't go on.
    Failed(Box<Failure>),
}

/// An exit that ends the VM, and the vCPU at that moment.
#[derive(Debug)]
pub struct Failure {
    /// Which vCPU.
    pub vcpu: u32,
    /// Why.
    pub reason: Fatal,
    /// Registers and code, as far as KVM gave them.
    pub snapshot: Snapshot,
}

/// The address spaces that exits reach.
#[derive(Debug)]
pub struct Buses {
    /// Ports.
    pub pio: Bus,
    /// Memory-mapped registers.
    pub mmio: Bus,
}

/// A vCPU that is ready to run.
#[derive(Debug)]
pub struct Vcpu {
    /// Its number.
    pub id: u32,
    /// Its file descriptor.
    pub fd: VcpuFd,
    /// Size of its `kvm_run` mapping (KVM_GET_VCPU_MMAP_SIZE).
    pub run_size: usize,
    /// Where I/O goes.
    pub buses: Arc<Buses>,
    /// Guest memory, for reports.
    pub ram: Ram,
    /// What it is asked to do.
    pub seat: Taken,
    /// Its exits.
    pub counts: Arc<ExitCounts>,
    /// Where its entries and exits are recorded.
    pub tracer: Option<VcpuTracer>,
    /// Who debugs the guest.
    pub debug: Option<Arc<Hub>>,
    /// Under chaos, how long it stays out of the guest when it was kicked.
    pub pauses: Option<Pauses>,
}

enum State {
    Running,
    Parked,
    Finished(Outcome),
}

impl Vcpu {
    /// Opens what the run needs. Call it on the thread that shall be the vCPU's for good, before it is confined.
    pub fn begin(&mut self) {
        self.trace(VcpuTracer::begin);
    }

    /// Runs the vCPU until it ends. Call it after [`Vcpu::begin`], on the same thread.
    pub fn run(mut self) -> Outcome {
        let _armed = Armed::new(&mut self.fd);
        self.seat.arrive();
        // A kick before this point has set no flag, but what it was about is known to the seat.
        let mut state = self.obey();
        loop {
            state = match state {
                State::Running => self.running(),
                State::Parked => self.parked(),
                State::Finished(outcome) => return outcome,
            }
        }
    }

    /// In the guest, until something else than I/O happens.
    fn running(&mut self) -> State {
        loop {
            self.trace(VcpuTracer::entry);
            let result = self.fd.run().map(|_| ()).map_err(|error| error.errno());
            self.trace(VcpuTracer::exit);
            // SAFETY: the mapping is `run_size` bytes long (KVM_GET_VCPU_MMAP_SIZE) and lives as long as `fd`; the
            // exit that borrows it is gone at the end of this turn, before the next KVM_RUN.
            let page = unsafe { RunPage::new(self.fd.get_kvm_run(), self.run_size) };
            let exit = decode(result, page);
            let concern = self.debug.as_ref().and_then(|hub| hub.concerns(&exit));
            let (kind, next) = serve(exit, &self.buses);
            self.counts.add(kind);
            self.trace(|tracer| tracer.reason(kind));
            if let Some(report) = concern.and_then(|concern| self.report(concern)) {
                self.seat.stop();
                if let Some(hub) = &self.debug {
                    hub.report(report);
                }
                return self.obey();
            }
            match next {
                Next::Continue => {}
                Next::Obey => {
                    self.fd.set_kvm_immediate_exit(0);
                    self.stay_out();
                    return self.obey();
                }
                Next::Fail(reason) => {
                    let snapshot = Snapshot::take(&mut self.fd, &self.ram);
                    return State::Finished(Outcome::Failed(Box::new(Failure { vcpu: self.id, reason, snapshot })));
                }
            }
        }
    }

    /// What an exit that concerns the debugger is, if it is his.
    #[cold]
    fn report(&mut self, concern: Concern) -> Option<Report> {
        if let Concern::Rang(_) | Concern::Published = concern {
            // The write is complete, RIP behind it, only after the next KVM_RUN.
            self.fd.set_kvm_immediate_exit(1);
            let _ = self.fd.run();
            self.fd.set_kvm_immediate_exit(0);
        }
        let registers = Box::new(VcpuRegisters::read(&self.fd).ok()?);
        let regs = &registers.regs;
        let event = match concern {
            Concern::Rang(event) => Event::Rang { event, frame: regs.rdi, about: regs.rsi },
            Concern::Published => Event::Published,
            Concern::Debug { exception } => Event::Debug { exception, rip: regs.rip },
            Concern::Emulation => {
                let ours = self.debug.as_ref().is_some_and(|hub| hub.is_planted(regs.rip));
                ours.then_some(Event::Planted { rip: regs.rip })?
            }
        };
        Some(Report { vcpu: self.id as usize, event, registers })
    }

    #[inline]
    fn trace(&mut self, record: impl FnOnce(&mut VcpuTracer)) {
        if let Some(tracer) = &mut self.tracer {
            record(tracer);
        }
    }

    /// Under chaos a kick may cost some time.
    fn stay_out(&mut self) {
        if let Some(pause) = self.pauses.as_mut().and_then(Pauses::next_pause) {
            self.trace(|tracer| tracer.pause(true));
            std::thread::sleep(pause);
            self.trace(|tracer| tracer.pause(false));
        }
    }

    /// Out of the guest until there are other orders.
    fn parked(&mut self) -> State {
        self.trace(|tracer| tracer.pause(true));
        self.seat.wait();
        self.trace(|tracer| tracer.pause(false));
        self.obey()
    }

    /// Does what others want of this vCPU, until it may go on or has to wait.
    fn obey(&mut self) -> State {
        loop {
            match self.seat.turn() {
                Turn::Run => return State::Running,
                Turn::Wait => return State::Parked,
                Turn::Leave => return State::Finished(Outcome::Stopped),
                Turn::Work(job) => job(&mut self.fd),
            }
        }
    }
}

/// What the loop does after an exit.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Continue,
    Obey,
    Fail(Fatal),
}

/// Carries I/O out. Addresses that nobody claims read as all ones and swallow writes, as on real machines.
fn serve(exit: Exit<'_>, buses: &Buses) -> (Kind, Next) {
    match exit {
        Exit::PortIn { port, size, data } => {
            for item in data.chunks_exact_mut(size) {
                buses.pio.read(port.into(), item);
            }
            (Kind::PortIn, Next::Continue)
        }
        Exit::PortOut { port, size, data } => {
            for item in data.chunks_exact(size) {
                buses.pio.write(port.into(), item);
            }
            (Kind::PortOut, Next::Continue)
        }
        Exit::MmioRead { address, data } => {
            buses.mmio.read(address, data);
            (Kind::MmioRead, Next::Continue)
        }
        Exit::MmioWrite { address, data } => {
            buses.mmio.write(address, data);
            (Kind::MmioWrite, Next::Continue)
        }
        Exit::Interrupted => (Kind::Interrupted, Next::Obey),
        // With KVM's irqchip a halted vCPU waits in the kernel, so this doesn't happen; if it does, waiting again is right.
        Exit::Halted => (Kind::Halted, Next::Obey),
        Exit::Fatal(fatal) => (Kind::Fatal, Next::Fail(fatal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use taskvisor_devices::bus::{BusDevice, BusKind};

    /// Answers its own offset, remembers writes.
    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8 + 1);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn buses() -> (Buses, Arc<Mutex<Recorder>>) {
        let recorder = Arc::new(Mutex::new(Recorder::default()));
        let mut buses = Buses { pio: Bus::new(BusKind::Pio), mmio: Bus::new(BusKind::Mmio) };
        buses.pio.insert("recorder", 0x10, 8, recorder.clone()).unwrap();
        buses.mmio.insert("recorder", 0xd000_0000, 8, recorder.clone()).unwrap();
        (buses, recorder)
    }

    #[test]
    fn string_output_is_one_write_per_item() {
        let (buses, recorder) = buses();
        let exit = Exit::PortOut { port: 0x11, size: 2, data: b"abcd" };
        assert_eq!(serve(exit, &buses), (Kind::PortOut, Next::Continue));
        assert_eq!(recorder.lock().unwrap().0, [(1, b"ab".to_vec()), (1, b"cd".to_vec())]);
    }

    #[test]
    fn unclaimed_addresses_read_as_ones() {
        let (buses, _) = buses();
        let mut data = [0; 4];
        serve(Exit::PortIn { port: 0x70, size: 4, data: &mut data }, &buses);
        assert_eq!(data, [0xff; 4]);
        serve(Exit::MmioRead { address: 0xd000_0003, data: &mut data[..1] }, &buses);
        assert_eq!(data, [4, 0xff, 0xff, 0xff]);
    }
}
