//! A virtual machine: built from a [`Guest`] and [`Options`], run once, torn down.
//!
//! [`crate::launch`] and tests call [`Vm::build`], then [`Vm::run`]. Invariants: no guest instruction runs before `run`;
//! when `run` returns, every vCPU thread has ended, every byte that the guest wrote has been handed on, and the terminal
//! is as it was.

mod devices;
mod threads;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_X2APIC_API, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use taskvisor_devices::bus::BusError;
use taskvisor_devices::event::{GuestEvent, GuestEvents};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::devices::Devices;
use self::threads::{Shared, StartError, Threads};
use crate::affinity::{AffinityError, Plan};
use crate::archive::ArchiveError;
use crate::boot::acpi::{self, VirtioMmio};
use crate::boot::cpuid::model::{Model, Native};
use crate::boot::cpuid::{CpuidError, Template};
use crate::boot::kernel::Entry;
use crate::boot::{BootError, BootInfo, bzimage, layout, pvh};
use crate::chaos::{Chaos, Disturber, Target};
use crate::config::{LogLevel, LogSink};
use crate::console::output::OutputError;
use crate::console::terminal::RawMode;
use crate::control;
use crate::control::machine::{Facts, Machine};
use crate::control::server::Listening;
use crate::control::socket::SocketError;
use crate::end::End;
use crate::event_loop::{self, Hub, LoopError};
use crate::guest::Guest;
use crate::guestview::{Reader, Told};
use crate::host::Quirks;
use crate::host::probe::isa::rings_that_see_our_cpuid;
use crate::launch::kernel_cmdline;
use crate::memory::{self, MemoryError, PAGE_SIZE, Ram};
use crate::signals::SignalFd;
use crate::stats::{self, Milestones};
use crate::topology::Topology;
use crate::trace::{self, Recorder, TraceError};
use crate::vcpu::kick;
use crate::vcpu::report::{self, Tasks};
use crate::vcpu::run_loop::Buses;
use crate::vcpu::setup::{self, SetupError, Start};

/// The last id of an 8-bit APIC; 255 is the broadcast (Intel SDM vol. 3A, 11.6.1).
const MAX_XAPIC_ID: u32 = 254;

/// Why a machine can't be built or run.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// No /dev/kvm.
    #[error(
        "there is no /dev/kvm: load its module (modprobe kvm_intel or kvm_amd), switch virtualisation on in the \
         firmware, or pass the device into this container or virtual machine; see: taskvisor doctor"
    )]
    NoKvm,
    /// Not allowed.
    #[error(
        "no permission to open /dev/kvm: join its group (sudo usermod -aG kvm $USER, log in again); see: taskvisor doctor"
    )]
    KvmDenied,
    /// Something else under that name, or a KVM of 2007.
    #[error("/dev/kvm doesn't answer as KVM does (API version {0}, expected {KVM_API_VERSION})")]
    NotKvm(i32),
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
    /// The kernel can't use so many.
    #[error(
        "--vcpus {have}: the guest kernel brings up {max} at most; give --vcpus {max} or less, or another kernel \
         (--kernel)"
    )]
    KernelVcpus {
        /// What was asked for.
        have: u32,
        /// The most.
        max: u32,
    },
    /// Gaps in the numbering of a tree.
    #[error(
        "--topology needs APIC id {id}: this host's KVM takes ids below {limit}; use counts that are powers of two"
    )]
    ApicIds {
        /// The largest id.
        id: u32,
        /// KVM's bound.
        limit: u32,
    },
    /// Where the threads run.
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    /// The vCPU threads.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] SocketError),
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
    /// The trace's file.
    #[error("can't record a trace: {0}")]
    Trace(#[from] TraceError),
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

/// What a machine is like, apart from its guest.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// How they are arranged.
    pub topology: Topology,
    /// What they can do.
    pub cpu: Model,
    /// Where their threads run.
    pub placement: Plan,
    /// Bytes of memory.
    pub memory: u64,
    /// End the VM after this time.
    pub timeout: Option<Duration>,
    /// Print statistics at the end.
    pub stats: bool,
    /// Have system calls printed.
    pub strace: bool,
    /// The kernel's log.
    pub log: LogSink,
    /// How much of it.
    pub log_level: LogLevel,
    /// Where to record what the guest does.
    pub trace: Option<PathBuf>,
    /// What disturbs it.
    pub chaos: Option<Chaos>,
    /// When the process started.
    pub start: Instant,
    /// Where the control socket shall be.
    pub control: Option<PathBuf>,
    /// The program and its arguments, to be told there.
    pub program: Vec<String>,
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
    /// What is wrong with the trace.
    pub trace: Option<String>,
}

/// A machine that hasn't run yet.
pub struct Vm {
    guest: Guest,
    options: Options,
    ram: Ram,
    vcpus: Vec<VcpuFd>,
    buses: Arc<Buses>,
    devices: Devices,
    events: GuestEvents,
    milestones: Milestones,
    reader: Reader,
    control: Option<Listening>,
    topology: Topology,
    recorder: Option<Recorder>,
    told: Arc<Told>,
    fd: Arc<VmFd>,
}

impl Vm {
    /// Makes the machine, loads the guest, and leaves the first vCPU at the kernel's entry.
    pub fn build(guest: Guest, options: Options) -> Result<Self, VmError> {
        let mut milestones = Milestones::new(options.start);
        milestones.note("guest_checked");
        if let Some(max) = guest.kernel.max_vcpus().filter(|max| options.vcpus > *max) {
            return Err(VmError::KernelVcpus { have: options.vcpus, max });
        }
        let control = options.control.as_deref().map(Listening::bind).transpose()?;
        let kvm = open_kvm()?;
        check_vcpus(&kvm, options.vcpus)?;
        check_ids(&kvm, &options.topology)?;
        let topology = options.topology.clone();
        options.placement.take_io_seat()?;
        let native = native(&kvm, &options.cpu);
        // The probe is a guest of its own and takes some milliseconds, most of them in its vCPU: beside the rest.
        let (fd, ram, vcpus, mut cpuid, quirks) = thread::scope(|scope| {
            let probe = scope.spawn(|| probe(&kvm));
            let cpuid = Template::new(&kvm, &topology, &options.cpu, native.as_ref())?;
            let (fd, ram, vcpus) = make_machine(&kvm, &guest, &options, cpuid.address_bits())?;
            Ok::<_, VmError>((fd, ram, vcpus, cpuid, probe.join().unwrap_or_default()))
        })?;
        let tsc_khz = vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()).unwrap_or(0);
        if let Some(khz) = vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()).filter(|khz| *khz != 0) {
            cpuid.set_tsc_khz(khz);
        }
        let cmdline = kernel_cmdline(&guest, &options, &quirks.to_string());
        let recorder = record(&options, &ram, &vcpus, &cmdline)?;
        let built = devices::build(&fd, &ram, &options, guest.serial_console, recorder.as_ref())?;
        milestones.note("machine_made");

        if quirks.slow_ring0 && !guest.is_ours() {
            cpuid.hide_cmpxchg16b();
        }
        let (entry, boot_data) = load(&guest, &cmdline, &ram, (&topology, &cpuid), &built.virtio)?;
        for (id, vcpu) in (0u32..).zip(&vcpus) {
            let start = (id == 0).then_some(Start { entry: &entry, boot_data });
            setup::configure(vcpu, id, &cpuid, start)?;
        }
        milestones.note("guest_loaded");
        Ok(Self {
            guest,
            options,
            vcpus,
            buses: Arc::new(built.buses),
            devices: built.devices,
            events: built.events,
            milestones,
            reader: Reader::new(ram.clone(), built.told.clone(), tsc_khz),
            told: built.told,
            control,
            topology,
            ram,
            recorder,
            fd: Arc::new(fd),
        })
    }

    /// The chaos that is the VMM's part: none with one vCPU, where the run shall be repeatable, and none for other kernels.
    fn disturbed(&self) -> Option<Chaos> {
        self.options.chaos.filter(|_| self.guest.is_ours() && self.options.vcpus > 1)
    }

    /// Starts it.
    fn disturb(&self, threads: &Threads) -> io::Result<Option<Disturber>> {
        let Some(chaos) = self.disturbed() else { return Ok(None) };
        let targets = (0..).zip(threads.tids()).map(|(vcpu, tid)| Target { tid, apic_id: self.topology.apic_id(vcpu) });
        Disturber::start(chaos, self.fd.clone(), targets.collect(), self.told.clone()).map(Some)
    }

    /// Runs the guest to its end on threads of its own, with the event loop in this one.
    pub fn run(mut self) -> Result<Ended, VmError> {
        // Before any thread is made: they inherit the mask.
        let signals = SignalFd::new().map_err(host("can't set up signals"))?;
        kick::install_handler().map_err(host("can't set up signals"))?;
        let console = self.devices.console()?;
        let raw = RawMode::enter(stdin()).map_err(host("can't switch the terminal to raw mode"))?;

        let outcome_evt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("can't make an eventfd"))?;
        let (sender, outcomes) = channel();
        let shared = Shared {
            run_size: self.fd.run_size(),
            buses: self.buses.clone(),
            ram: self.ram.clone(),
            placement: Arc::new(self.options.placement.clone()),
            outcomes: sender,
            outcome_evt: outcome_evt.try_clone().map_err(host("can't make an eventfd"))?,
            recorder: self.recorder.as_ref(),
            chaos: self.disturbed(),
        };
        self.milestones.note("vcpus_started");
        let mut threads = Threads::start(std::mem::take(&mut self.vcpus), &shared)?;
        let control = self.control.take().map(|listening| listening.serve(self.machine(&threads)));
        let control = control.transpose().map_err(host("can't start the control thread"))?;
        let disturber = self.disturb(&threads).map_err(host("can't start the chaos thread"))?;
        let deadline = self.options.timeout.map(|timeout| Instant::now() + timeout);
        let result = event_loop::run(Hub {
            guest: self.events,
            outcomes,
            outcome_evt,
            signals,
            timeout: self.options.timeout,
            console,
            ours: self.guest.is_ours(),
            milestones: self.milestones,
        });

        drop(disturber);
        self.devices.interrupt();
        threads.stop();
        drop(control);
        let (end, mut hub) = result?;
        hub.milestones.note("vcpus_stopped");
        self.devices.drain_console(&end, &mut hub.signals, deadline);
        drop(raw);
        // From here on a signal has its ordinary effect, so that a reader that doesn't read can't hold us.
        drop(hub.signals);
        self.devices.drain_serial(&end);

        // Milestones that the guest passed together with its end.
        for event in hub.guest.drain() {
            if let GuestEvent::Milestone(hit) = event {
                hub.milestones.hit(hit);
            }
        }
        hub.milestones.note("drained");
        let report = match &end {
            End::Failed(failure) => {
                let tasks = Tasks { snapshot: self.reader.snapshot(), apic_id: self.topology.apic_id(failure.vcpu) };
                Some(report::render(failure, Some(&self.guest.kernel), &tasks))
            }
            // A foreign kernel shows nothing, which is no news at a timeout.
            End::Timeout(_) => self.reader.snapshot().ok().map(|snapshot| report::running(&snapshot)),
            _ => None,
        };
        let stats =
            self.options.stats.then(|| stats::render(&hub.milestones, &threads.counts(), memory::touched(&self.ram)));
        let trace = self.recorder.take().and_then(Recorder::end);
        Ok(Ended { end, report, stats, trace })
    }
}

impl Vm {
    /// What the control socket shows.
    fn machine(&self, threads: &Threads) -> Machine {
        let vcpus = (0u32..).zip(threads.published()).map(|(index, (tid, counts))| control::machine::VcpuThread {
            index,
            apic_id: self.topology.apic_id(index),
            tid,
            counts,
        });
        Machine {
            facts: Facts {
                memory: self.options.memory,
                kernel: self.guest.kernel.path().display().to_string(),
                program: self.options.program.clone(),
            },
            start: Instant::now(),
            vcpus: vcpus.collect(),
            reader: self.reader.clone(),
        }
    }
}

fn stdin() -> BorrowedFd<'static> {
    // SAFETY: descriptor 0 is never closed by this process.
    unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) }
}

/// VM, memory, irqchip, vCPUs. Memory comes first: a slot that is added once vCPUs or an irqchip exist waits for a
/// grace period of the kernel's SRCU, some 6 ms, instead of 0.1 ms.
fn make_machine(
    kvm: &Kvm,
    guest: &Guest,
    options: &Options,
    address_bits: u32,
) -> Result<(VmFd, Ram, Vec<VcpuFd>), VmError> {
    let ram = memory::allocate(options.memory, address_bits)?;
    let fd = kvm.create_vm().map_err(kvm_call("KVM_CREATE_VM"))?;
    register_memory(&fd, &ram)?;
    create_irqchip(&fd, &options.topology, guest.is_ours())?;
    let vcpus = (0..options.vcpus)
        .map(|id| fd.create_vcpu(options.topology.apic_id(id).into()).map_err(kvm_call("KVM_CREATE_VCPU")))
        .collect::<Result<_, _>>()?;
    Ok((fd, ram, vcpus))
}

/// What this host's KVM does differently, found by trying.
fn probe(kvm: &Kvm) -> Quirks {
    Quirks::probe_fast(kvm).unwrap_or_else(|error| {
        log::warn!("can't find out how this host's KVM differs, taken as ordinary: {error}");
        Quirks::default()
    })
}

/// Starts what `--trace` asks for.
fn record(options: &Options, ram: &Ram, vcpus: &[VcpuFd], cmdline: &str) -> Result<Option<Recorder>, VmError> {
    let Some(path) = &options.trace else { return Ok(None) };
    let khz = vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()).unwrap_or(0);
    let policy = cmdline.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix("policy="));
    let header = trace::Header {
        version: trace::VERSION,
        cpus: options.vcpus,
        tsc_khz: khz,
        policy: policy.unwrap_or_default().to_owned(),
        command_line: cmdline.to_owned(),
        program: options.program.clone(),
        realtime_ns: 0,
    };
    Ok(Some(Recorder::start(path, ram.clone(), options.vcpus, khz, header)?))
}

fn open_kvm() -> Result<Kvm, VmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => VmError::NoKvm,
        libc::EACCES | libc::EPERM => VmError::KvmDenied,
        _ => VmError::Kvm { call: "opening /dev/kvm", source: error },
    })?;
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION as i32 => Ok(kvm),
        version => Err(VmError::NotKvm(version)),
    }
}

/// APIC ids are KVM's vCPU ids, and those have a bound of their own: a tree with gaps may exceed it.
fn check_ids(kvm: &Kvm, topology: &Topology) -> Result<(), VmError> {
    let (id, limit) = (topology.max_apic_id(), kvm.get_max_vcpu_id() as u32);
    if id < limit { Ok(()) } else { Err(VmError::ApicIds { id, limit }) }
}

/// What programs see of the host's own CPUID, which matters only to a CPU model other than the host's.
fn native(kvm: &Kvm, model: &Model) -> Option<Native> {
    if *model == Model::default() {
        return None;
    }
    match rings_that_see_our_cpuid(kvm) {
        Ok([_, ring3]) => (!ring3).then(Native::read),
        Err(error) => {
            log::warn!("can't find out whether programs see the CPUID that is set, taken as yes: {error}");
            None
        }
    }
}

fn check_vcpus(kvm: &Kvm, have: u32) -> Result<(), VmError> {
    let max = kvm.get_max_vcpus() as u32;
    if (1..=max).contains(&have) { Ok(()) } else { Err(VmError::Vcpus { have, max }) }
}

/// PIC, IOAPIC and local APICs in the kernel; a PIT only for foreign kernels, which may calibrate with it.
fn create_irqchip(fd: &VmFd, topology: &Topology, ours: bool) -> Result<(), VmError> {
    fd.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm_call("KVM_SET_IDENTITY_MAP_ADDR"))?;
    fd.set_tss_address(layout::KVM_TSS).map_err(kvm_call("KVM_SET_TSS_ADDR"))?;
    fd.create_irq_chip().map_err(kvm_call("KVM_CREATE_IRQCHIP"))?;
    if !ours {
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(config).map_err(kvm_call("KVM_CREATE_PIT2"))?;
    }
    if topology.max_apic_id() > MAX_XAPIC_ID {
        // 32-bit ids in MSIs and IPIs, no broadcast at 255 (Linux, Documentation/virt/kvm/api.rst, 7.8).
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
        cap.args[0] = 0b11;
        fd.enable_cap(&cap).map_err(kvm_call("KVM_CAP_X2APIC_API"))?;
    }
    Ok(())
}

fn register_memory(fd: &VmFd, ram: &Ram) -> Result<(), VmError> {
    for (slot, region) in (0u32..).zip(ram.iter()) {
        let address = region.get_host_address(MemoryRegionAddress(0)).map_err(BootError::from)?;
        let memory = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: address as u64,
        };
        // SAFETY: the range is a live mapping of exactly this length, kept by `ram`, of which the machine and each
        // vCPU hold a reference; slots don't overlap.
        unsafe { fd.set_user_memory_region(memory) }.map_err(kvm_call("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// Kernel, archive, ACPI and boot data into memory.
fn load(
    guest: &Guest,
    cmdline: &str,
    ram: &Ram,
    (topology, cpuid): (&Topology, &Template),
    virtio: &[VirtioMmio],
) -> Result<(Entry, u64), VmError> {
    let loaded = guest.kernel.load(ram).map_err(BootError::from)?;
    let archive = match &guest.archive {
        Some(archive) => {
            let limit = memory::low_end(ram).min(loaded.entry.archive_limit());
            let address = place_archive(archive.len(), loaded.end, limit)?;
            archive.load(ram, GuestAddress(address))?;
            Some((address, archive.len()))
        }
        None => None,
    };
    let rsdp = acpi::write(ram, topology, &cpuid.caches(), virtio)?;
    let info = BootInfo { cmdline, archive, rsdp };
    let boot_data = match &loaded.entry {
        Entry::Pvh { .. } => pvh::write(ram, &info)?,
        Entry::Linux64 { header, .. } => bzimage::write(ram, &info, header)?,
    };
    Ok((loaded.entry, boot_data))
}

/// The archive ends at `limit`, page aligned downwards: the top of low RAM, or the most that the kernel can reach.
fn place_archive(len: u64, kernel_end: u64, limit: u64) -> Result<u64, BootError> {
    limit
        .checked_sub(len)
        .map(|start| start & !(PAGE_SIZE - 1))
        .filter(|start| *start >= kernel_end)
        .ok_or(BootError::NoRoom { archive: len, kernel_end, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_page_aligned_below_the_limit_and_behind_the_kernel() {
        assert_eq!(place_archive(5000, 0x20_0000, 0x100_0000).unwrap(), 0xff_e000);
        assert_eq!(place_archive(0x1000, 0xff_f000, 0x100_0000).unwrap(), 0xff_f000);
        assert!(matches!(place_archive(0x1001, 0xff_f000, 0x100_0000), Err(BootError::NoRoom { .. })));
        assert!(place_archive(u64::MAX, 0, 0x100_0000).is_err());
    }
}
