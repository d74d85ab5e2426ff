//! A virtual machine: built from a [`Guest`] and [`Options`], run once, torn down.
//!
//! The binary and the tests call [`Vm::build`], then [`Vm::run`]. Invariants: no guest instruction runs before `run`;
//! when `run` returns, every vCPU thread has ended and every byte the guest wrote has been handed on.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_CAP_X2APIC_API, kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use taskvisor_devices::bus::{Bus, BusDevice, BusError, BusKind, lock};
use taskvisor_devices::event::{GuestEvents, guest_events};
use taskvisor_devices::uart::{Buffering, Uart};
use taskvisor_devices::{debug_exit, milestone, reset, uart};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::cpuid::{CpuidError, Template, Topology};
use crate::boot::kernel::Entry;
use crate::boot::{self, BootError, BootInfo, acpi, bzimage, layout, pvh};
use crate::console::input::Input;
use crate::console::output::{Output, OutputError, StopFlag};
use crate::console::terminal::RawMode;
use crate::end::End;
use crate::event_loop::{self, Hub, LoopError};
use crate::guest::{ArchiveError, Guest};
use crate::memory::{self, MemoryError, PAGE_SIZE, Ram};
use crate::signals::SignalFd;
use crate::stats::{self, Milestones};
use crate::vcpu::counts::ExitCounts;
use crate::vcpu::kick;
use crate::vcpu::report;
use crate::vcpu::run_loop::{Buses, Command, Vcpu};
use crate::vcpu::setup::{self, SetupError, Start};

/// How long the threads have to end (issue 2: clean shutdown in under 100 ms).
const SHUTDOWN: Duration = Duration::from_millis(95);
/// A kick is repeated in this interval, for a thread that was in another system call.
const KICK_AGAIN: Duration = Duration::from_millis(5);

/// Why a machine can't be built or run.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// No /dev/kvm.
    #[error(
        "there is no /dev/kvm: load the module (modprobe kvm_intel or kvm_amd), switch virtualisation on in the \
         firmware, or, in a virtual machine or container, pass the device through; see: taskvisor doctor"
    )]
    NoKvm,
    /// Not allowed.
    #[error(
        "no permission for /dev/kvm: join its group (sudo usermod -aG kvm $USER, then log in again); see: taskvisor doctor"
    )]
    KvmDenied,
    /// A KVM call failed.
    #[error("{call} failed: {source}")]
    Kvm {
        /// Which.
        call: &'static str,
        /// The host's answer.
        source: kvm_ioctls::Error,
    },
    /// Too few or too many vCPUs.
    #[error("--vcpus {have}: this host's KVM runs 1 to {max} vCPUs")]
    Vcpus {
        /// What was asked for.
        have: u32,
        /// The most.
        max: u32,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// CPUID.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// Kernel or boot data.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The archive can't be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// vCPU set-up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// Devices don't fit together; a defect of ours.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The log or a stream.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The event loop.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// Threads, descriptors.
    #[error("{what}: {source}")]
    Host {
        /// What failed.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl Fn(io::Error) -> VmError {
    move |source| VmError::Host { what, source }
}

fn kvm_call(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { call, source }
}

/// Where the kernel's log goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LogSink {
    /// This process's stderr.
    #[default]
    Stderr,
    /// Nowhere.
    Off,
    /// A file, made anew.
    File(std::path::PathBuf),
}

/// What a machine is like, apart from its guest.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// End the VM after this time.
    pub timeout: Option<Duration>,
    /// Print statistics at the end.
    pub stats: bool,
    /// The kernel's log.
    pub log: LogSink,
    /// COM1 is stdin and stdout; otherwise the log.
    pub serial_console: bool,
    /// When the process started.
    pub start: Instant,
}

/// How a machine ended, ready to be told.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub end: End,
    /// The report of a failure, several lines.
    pub report: Option<String>,
    /// Statistics, if asked for.
    pub stats: Option<String>,
}

/// The serial ports, kept for the drain at the end.
struct Ports {
    com1: Arc<Mutex<Uart>>,
    com2: Arc<Mutex<Uart>>,
}

/// A machine that hasn't run yet.
pub struct Vm {
    guest: Guest,
    options: Options,
    ram: Ram,
    // Fields are dropped in order: vCPUs before the VM, the VM before its memory can be unmapped (`_fd` last but `ram`
    // is reference-counted by every vCPU as well).
    vcpus: Vec<kvm_ioctls::VcpuFd>,
    run_size: usize,
    buses: Arc<Buses>,
    ports: Ports,
    guest_events: GuestEvents,
    stop: StopFlag,
    milestones: Milestones,
    _fd: VmFd,
}

impl Vm {
    /// Makes the machine, loads the guest, and leaves the first vCPU at the kernel's entry.
    pub fn build(guest: Guest, options: Options) -> Result<Self, VmError> {
        let mut milestones = Milestones::new(options.start);
        let kvm = open_kvm()?;
        check_vcpus(&kvm, options.vcpus)?;
        let fd = kvm.create_vm().map_err(kvm_call("KVM_CREATE_VM"))?;
        let topology = Topology { vcpus: options.vcpus };
        create_irqchip(&fd, options.vcpus, guest.is_ours())?;

        let vcpus: Vec<_> = (0..options.vcpus)
            .map(|id| fd.create_vcpu(topology.apic_id(id).into()).map_err(kvm_call("KVM_CREATE_VCPU")))
            .collect::<Result<_, _>>()?;
        let tsc_khz = vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()).filter(|khz| *khz != 0);
        let cpuid = Template::new(&kvm, topology, tsc_khz)?;
        let ram = memory::allocate(options.memory, cpuid.address_bits())?;
        register_memory(&fd, &ram)?;

        let stop = StopFlag::default();
        let (sender, guest_events) = guest_events().map_err(host("can't make an eventfd"))?;
        let ports = serial_ports(&fd, &options, &stop)?;
        let mut buses = Buses { pio: Bus::new(BusKind::Pio), mmio: Bus::new(BusKind::Mmio) };
        let clone = || sender.try_clone().map_err(host("can't make an eventfd"));
        let pio = &mut buses.pio;
        pio.insert("COM1", uart::COM1_PORT, uart::LEN, ports.com1.clone())?;
        pio.insert("COM2", uart::COM2_PORT, uart::LEN, ports.com2.clone())?;
        pio.insert("debug exit", debug_exit::PORT, debug_exit::LEN, shared(debug_exit::DebugExit::new(clone()?)))?;
        pio.insert("milestones", milestone::PORT, 1, shared(milestone::MilestonePort::new(clone()?)))?;
        pio.insert("i8042 reset", reset::I8042_PORT, 1, shared(reset::I8042Reset::new(clone()?)))?;
        pio.insert("reset control", reset::CF9_PORT, 1, shared(reset::Cf9Reset::new(clone()?)))?;

        let (entry, boot_data) = load(&guest, &ram, topology)?;
        milestones.note("guest_loaded");
        for (id, vcpu) in (0u32..).zip(&vcpus) {
            let start = (id == 0).then_some(Start { entry: &entry, boot_data });
            setup::configure(vcpu, id, &cpuid, start)?;
        }
        milestones.note("vm_built");
        Ok(Self {
            guest,
            options,
            ram,
            vcpus,
            run_size: fd.run_size(),
            buses: Arc::new(buses),
            ports,
            guest_events,
            stop,
            milestones,
            _fd: fd,
        })
    }

    /// Runs the guest to its end on threads of its own, with the event loop in this one.
    pub fn run(self) -> Result<Ended, VmError> {
        // Before any thread is made: they inherit the mask.
        let signals = SignalFd::new().map_err(host("can't set up signals"))?;
        kick::install_handler().map_err(host("can't set up signals"))?;
        let input = match self.options.serial_console {
            true => Some(Input::serial(self.ports.com1.clone()).map_err(host("can't use stdin"))?),
            false => None,
        };
        let raw = match &input {
            Some(_) => RawMode::enter(stdin()).map_err(host("can't switch the terminal to raw mode"))?,
            None => None,
        };

        let outcome_evt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("can't make an eventfd"))?;
        let (sender, outcomes) = channel();
        let mut threads = Threads::default();
        for (id, fd) in (0u32..).zip(self.vcpus) {
            let (commands, receiver) = channel();
            let counts = Arc::new(ExitCounts::default());
            let vcpu = Vcpu {
                id,
                fd,
                run_size: self.run_size,
                buses: self.buses.clone(),
                ram: self.ram.clone(),
                commands: receiver,
                counts: counts.clone(),
            };
            let (sender, evt) = (sender.clone(), outcome_evt.try_clone().map_err(host("can't make an eventfd"))?);
            let thread = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .stack_size(VCPU_STACK)
                .spawn(move || {
                    // The receiver may have gone already, when the VM is being torn down.
                    let _ = sender.send(vcpu.run());
                    let _ = evt.write(1);
                })
                .map_err(host("can't start a vCPU thread"))?;
            threads.vcpus.push(VcpuThread { thread, commands, counts });
        }

        let hub = Hub {
            guest: self.guest_events,
            outcomes,
            outcome_evt,
            signals,
            timeout: self.options.timeout,
            input,
            ours: self.guest.is_ours(),
            milestones: self.milestones,
        };
        let result = event_loop::run(hub);
        self.stop.set();
        threads.stop();
        lock(&self.ports.com1).drain();
        lock(&self.ports.com2).drain();
        drop(raw);
        let (end, mut hub) = result?;

        // Milestones that the guest passed together with its end.
        for event in hub.guest.drain() {
            if let taskvisor_devices::event::GuestEvent::Milestone(hit) = event {
                hub.milestones.hit(hit);
            }
        }
        hub.milestones.note("threads_stopped");
        let report = match &end {
            End::Failed(failure) => Some(report::render(failure, Some(&self.guest.kernel))),
            _ => None,
        };
        let stats = self.options.stats.then(|| {
            let counts: Vec<_> = threads.vcpus.iter().map(|vcpu| vcpu.counts.clone()).collect();
            stats::render(&hub.milestones, &counts, memory::touched(&self.ram))
        });
        Ok(Ended { end, report, stats })
    }
}

/// A vCPU thread needs little: the run loop, devices and a report.
const VCPU_STACK: usize = 256 << 10;

struct VcpuThread {
    thread: JoinHandle<()>,
    commands: Sender<Command>,
    counts: Arc<ExitCounts>,
}

/// The vCPU threads; stopped when dropped, on every way out.
#[derive(Default)]
struct Threads {
    vcpus: Vec<VcpuThread>,
}

impl Threads {
    /// Ends all threads, kicking until they have.
    fn stop(&mut self) {
        let deadline = Instant::now() + SHUTDOWN;
        for vcpu in &self.vcpus {
            // A closed channel: the thread has ended on its own.
            let _ = vcpu.commands.send(Command::Stop);
        }
        while self.vcpus.iter().any(|vcpu| !vcpu.thread.is_finished()) {
            if Instant::now() >= deadline {
                log::warn!("a vCPU thread doesn't end; the process's end takes it along");
                return;
            }
            for vcpu in self.vcpus.iter().filter(|vcpu| !vcpu.thread.is_finished()) {
                kick::kick(&vcpu.thread);
            }
            let again = Instant::now() + KICK_AGAIN;
            while Instant::now() < again && self.vcpus.iter().any(|vcpu| !vcpu.thread.is_finished()) {
                thread::sleep(Duration::from_micros(50));
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

fn stdin() -> BorrowedFd<'static> {
    // SAFETY: descriptor 0 is never closed by this process.
    unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) }
}

fn open_kvm() -> Result<Kvm, VmError> {
    Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => VmError::NoKvm,
        libc::EACCES | libc::EPERM => VmError::KvmDenied,
        _ => VmError::Kvm { call: "opening /dev/kvm", source: error },
    })
}

fn check_vcpus(kvm: &Kvm, have: u32) -> Result<(), VmError> {
    let max = kvm.get_max_vcpus() as u32;
    if (1..=max).contains(&have) { Ok(()) } else { Err(VmError::Vcpus { have, max }) }
}

/// PIC, IOAPIC and local APICs in the kernel; a PIT only for foreign kernels, which may calibrate with it.
fn create_irqchip(fd: &VmFd, vcpus: u32, ours: bool) -> Result<(), VmError> {
    fd.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm_call("KVM_SET_IDENTITY_MAP_ADDR"))?;
    fd.set_tss_address(layout::KVM_TSS).map_err(kvm_call("KVM_SET_TSS_ADDR"))?;
    fd.create_irq_chip().map_err(kvm_call("KVM_CREATE_IRQCHIP"))?;
    if !ours {
        fd.create_pit2(kvm_pit_config { flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY, ..Default::default() })
            .map_err(kvm_call("KVM_CREATE_PIT2"))?;
    }
    if vcpus > 255 {
        // 32-bit ids in MSIs and IPIs, no broadcast at 255 (Linux, Documentation/virt/kvm/api.rst, 7.8).
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
        cap.args[0] = 0b11;
        fd.enable_cap(&cap).map_err(kvm_call("KVM_CAP_X2APIC_API"))?;
    }
    Ok(())
}

fn register_memory(fd: &VmFd, ram: &Ram) -> Result<(), VmError> {
    for (slot, region) in (0u32..).zip(ram.iter()) {
        let userspace_addr =
            region.get_host_address(vm_memory::MemoryRegionAddress(0)).map_err(BootError::from)? as u64;
        let memory = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr,
        };
        // SAFETY: the range is a live mapping of exactly this length, kept by `ram`, of which the machine and each
        // vCPU hold a reference; slots don't overlap.
        unsafe { fd.set_user_memory_region(memory) }.map_err(kvm_call("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

fn shared<D: BusDevice + 'static>(device: D) -> Arc<Mutex<D>> {
    Arc::new(Mutex::new(device))
}

/// COM1 carries the log, or stdio; COM2 reports.
fn serial_ports(fd: &VmFd, options: &Options, stop: &StopFlag) -> Result<Ports, VmError> {
    let port = |sink: Box<dyn Write + Send>, buffering, gsi| -> Result<Arc<Mutex<Uart>>, VmError> {
        let uart = Uart::new(sink, buffering).map_err(host("can't make a serial port"))?;
        fd.register_irqfd(uart.interrupt_evt(), gsi).map_err(kvm_call("KVM_IRQFD"))?;
        Ok(Arc::new(Mutex::new(uart)))
    };
    let (sink, buffering): (Box<dyn Write + Send>, _) = match (&options.log, options.serial_console) {
        (_, true) => (Box::new(Output::stdout(stop)?), Buffering::None),
        (LogSink::Stderr, false) => (Box::new(Output::stderr(stop)?), Buffering::Line),
        (LogSink::File(path), false) => (Box::new(Output::create(path, stop)?), Buffering::Line),
        (LogSink::Off, false) => (Box::new(io::sink()), Buffering::Line),
    };
    Ok(Ports {
        com1: port(sink, buffering, uart::COM1_IRQ)?,
        com2: port(Box::new(Output::stderr(stop)?), Buffering::Line, uart::COM2_IRQ)?,
    })
}

/// Kernel, archive, ACPI and boot data into memory.
fn load(guest: &Guest, ram: &Ram, topology: Topology) -> Result<(Entry, u64), VmError> {
    let loaded = guest.kernel.load(ram).map_err(BootError::from)?;
    let archive = match &guest.archive {
        Some(archive) => {
            let address = place_archive(ram, archive.len(), loaded.end)?;
            archive.load(ram, GuestAddress(address))?;
            Some((address, archive.len()))
        }
        None => None,
    };
    let ids: Vec<u32> = (0..topology.vcpus).map(|vcpu| topology.apic_id(vcpu)).collect();
    let rsdp = acpi::write(ram, &ids, &[])?;
    let info = BootInfo { cmdline: &guest.cmdline, archive, rsdp };
    let boot_data = match &loaded.entry {
        Entry::Pvh { .. } => pvh::write(ram, &info)?,
        Entry::Linux64 { header, .. } => bzimage::write(ram, &info, header)?,
    };
    Ok((loaded.entry, boot_data))
}

/// The archive ends at the top of low RAM, page aligned downwards.
fn place_archive(ram: &Ram, len: u64, kernel_end: u64) -> Result<u64, boot::BootError> {
    let low_end = memory::low_end(ram);
    low_end
        .checked_sub(len)
        .map(|start| start & !(PAGE_SIZE - 1))
        .filter(|start| *start >= kernel_end)
        .ok_or(BootError::NoRoom { archive: len, kernel_end, low_end })
}
