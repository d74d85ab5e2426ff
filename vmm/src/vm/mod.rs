//! A virtual machine: built from a [`Guest`] and [`Options`], run once, torn down.
//!
//! [`crate::launch`] and tests call [`Vm::build`], then [`Vm::run`]. Invariants: no guest instruction runs before `run`;
//! when `run` returns, every vCPU thread has ended, every byte that the guest wrote has been handed on, and the terminal
//! is as it was.

mod devices;
mod error;
mod load;
mod make;
pub mod run_control;
mod threads;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuFd, VmFd};
use taskvisor_devices::event::{GuestEvent, GuestEvents};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::devices::Devices;
pub use self::error::VmError;
use self::error::host;
use self::run_control::RunControl;
use self::threads::{Shared, Threads};
use crate::affinity::Plan;
use crate::boot::cpuid::Template;
use crate::boot::cpuid::model::Model;
use crate::chaos::{Chaos, Disturber, Target};
use crate::clock::plan::GuestKind;
use crate::clock::settings::ClockSettings;
use crate::clock::{self, Clock};
use crate::config::{LogLevel, LogSink};
use crate::console::terminal::RawMode;
use crate::control;
use crate::control::machine::{Facts, Machine};
use crate::control::programs::Streams;
use crate::control::runs::Runs;
use crate::control::server::Listening;
use crate::debug;
use crate::debug::address::{GdbAddress, Listener};
use crate::delegate::{self, Delegate, Delegation};
use crate::end::End;
use crate::event_loop::{self, Hub};
use crate::footprint;
use crate::guest::Guest;
use crate::guestview::{Reader, Told};
use crate::launch::kernel_cmdline;
use crate::memory::{self, Ram};
use crate::requests::{self, Bell, Mailbox};
use crate::sandbox::{self, Kind};
use crate::signals::SignalFd;
use crate::stats::{self, Milestones};
use crate::topology::Topology;
use crate::trace::{self, Recorder};
use crate::vcpu::kick;
use crate::vcpu::report::{self, Tasks};
use crate::vcpu::run_loop::Buses;
use crate::vcpu::setup::{self, Start};

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
    /// What becomes of system calls that a thread has no business with.
    pub seccomp: sandbox::Mode,
    /// What disturbs it.
    pub chaos: Option<Chaos>,
    /// Who schedules its tasks, if not its kernel.
    pub delegate: Option<Delegate>,
    /// What its clock is like.
    pub clock: ClockSettings,
    /// When the process started.
    pub start: Instant,
    /// Where the control socket shall be.
    pub control: Option<PathBuf>,
    /// Where debuggers connect.
    pub gdb: Option<Gdb>,
    /// The program and its arguments, to be told there.
    pub program: Vec<String>,
}

impl Options {
    /// Whether anything may ask something of the guest's kernel.
    pub fn takes_requests(&self) -> bool {
        self.control.is_some() || self.gdb.is_some()
    }
}

/// Where debuggers connect, and when the guest starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gdb {
    /// Where.
    pub address: GdbAddress,
    /// Also where other machines can reach it.
    pub allow_remote: bool,
    /// The guest waits for the first one.
    pub wait: bool,
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
    trace_header: trace::Header,
    told: Arc<Told>,
    bell: Bell,
    delegation: Option<Delegation>,
    fd: Arc<VmFd>,
    run_control: RunControl,
    clock: Clock,
    gdb: Option<Listener>,
    signals: SignalFd,
}

impl Vm {
    /// Makes the machine, loads the guest, and leaves the first vCPU at the kernel's entry.
    pub fn build(guest: Guest, options: Options) -> Result<Self, VmError> {
        let mut milestones = Milestones::new(options.start);
        milestones.note("guest_checked");
        if let Some(max) = guest.kernel.max_vcpus().filter(|max| options.vcpus > *max) {
            return Err(VmError::KernelVcpus { have: options.vcpus, max });
        }
        // Before any thread is made: they inherit the mask, and a signal that finds a thread without it ends the process as it is.
        let signals = SignalFd::new().map_err(host("can't set up signals"))?;
        let control = options.control.as_deref().map(Listening::bind).transpose()?;
        let gdb = options.gdb.as_ref().map(|gdb| Listener::bind(&gdb.address, gdb.allow_remote)).transpose()?;
        let files =
            options.gdb.as_ref().and_then(|gdb| gdb.address.file()).into_iter().chain(options.control.as_deref());
        let files = files.chain(options.delegate.as_ref().and_then(Delegate::socket));
        sandbox::arm(options.seccomp, files)?;
        let kvm = make::open_kvm()?;
        make::check_vcpus(&kvm, options.vcpus)?;
        make::check_ids(&kvm, &options.topology)?;
        let topology = options.topology.clone();
        options.placement.take_io_seat()?;
        let native = make::native(&kvm, &options.cpu);
        // The probe is a guest of its own and takes some milliseconds, most of them in its vCPU: beside the rest.
        let (fd, ram, enclave, vcpus, mut cpuid, quirks) = thread::scope(|scope| {
            let probe = scope.spawn(|| make::probe(&kvm));
            let cpuid = Template::new(&kvm, &topology, &options.cpu, native.as_ref())?;
            let (fd, ram, enclave, vcpus) = make::machine(&kvm, &guest, &options, cpuid.address_bits())?;
            Ok::<_, VmError>((fd, ram, enclave, vcpus, cpuid, probe.join().unwrap_or_default()))
        })?;
        let (fd, run_control) = (Arc::new(fd), RunControl::new(vcpus.len()));
        let kind = GuestKind { ours: guest.is_ours(), chaos_time: options.chaos.is_some() && options.vcpus == 1 };
        let plan = clock::plan::Plan::make(&kvm, &options.clock, &vcpus, kind)?;
        let tsc_khz = plan.counter_khz();
        if plan.told_khz() != 0 {
            cpuid.set_tsc_khz(plan.told_khz());
        }
        let mut cmdline = kernel_cmdline(&guest, &options, &quirks.to_string());
        if let Some(key) = plan.kernel_key().filter(|_| guest.is_ours()) {
            cmdline = format!("{key} {cmdline}");
        }
        let clock = plan.start(ram.clone(), &run_control, fd.clone(), &topology);
        let trace_header = trace_header(&options, &vcpus, &cmdline);
        let recorder = record(&options, &ram, &trace_header)?;
        let kicks = delegate::Kicks::new(fd.clone(), (0..options.vcpus).map(|vcpu| topology.apic_id(vcpu)));
        let delegation = options.delegate.as_ref().zip(enclave);
        let delegation = delegation.map(|(wanted, memory)| Delegation::new(wanted, memory, &kicks)).transpose()?;
        let listener = listener(clock.directory_listener(), delegation.as_ref().map(Delegation::bell));
        let built = devices::build(&fd, &ram, &options, guest.serial_console, recorder.as_ref(), listener)?;
        if let Some(delegation) = &delegation {
            devices::connect_doorbell(&fd, delegation.doorbell())?;
        }
        milestones.note("machine_made");
        footprint::forget_start();

        if quirks.slow_ring0 && !guest.is_ours() {
            cpuid.hide_cmpxchg16b();
        }
        let (entry, boot_data) = load::load(&guest, &cmdline, &ram, (&topology, &cpuid), &built.virtio)?;
        for (id, vcpu) in (0u32..).zip(&vcpus) {
            let start = (id == 0).then_some(Start { entry: &entry, boot_data });
            setup::configure(vcpu, id, &cpuid, start)?;
        }
        milestones.note("guest_loaded");
        Ok(Self {
            guest,
            options,
            run_control,
            clock,
            vcpus,
            buses: Arc::new(built.buses),
            devices: built.devices,
            events: built.events,
            milestones,
            reader: Reader::new(ram.clone(), built.told.clone(), tsc_khz),
            told: built.told,
            bell: built.bell,
            delegation,
            control,
            topology,
            ram,
            recorder,
            trace_header,
            fd,
            gdb,
            signals,
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

    /// Starts who schedules the guest's tasks, or who lets him in.
    fn delegate(&mut self, threads: &Threads) -> io::Result<Option<delegate::Thread>> {
        let Some(delegation) = self.delegation.take() else { return Ok(None) };
        let apic_ids = (0..self.options.vcpus).map(|vcpu| self.topology.apic_id(vcpu));
        let kicks = delegate::Kicks::new(self.fd.clone(), apic_ids);
        let core = |vcpu| self.topology.apic_id(vcpu) >> self.topology.thread_bits();
        let watch = delegate::Watch::new((0..).zip(threads.tids()).map(|(vcpu, tid)| (tid, core(vcpu))));
        delegation.start(delegate::Surroundings { clock: self.clock.clone(), kicks, watch }).map(Some)
    }

    /// Runs the guest to its end on threads of its own, with the event loop in this one.
    pub fn run(mut self) -> Result<Ended, VmError> {
        kick::install_handler().map_err(host("can't set up signals"))?;
        let console = self.devices.console()?;
        let raw = RawMode::enter(stdin()).map_err(host("can't switch the terminal to raw mode"))?;

        let outcome_evt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("can't make an eventfd"))?;
        let (sender, outcomes) = channel();
        let shared = Shared {
            control: self.run_control.clone(),
            run_size: self.fd.run_size(),
            buses: self.buses.clone(),
            ram: self.ram.clone(),
            placement: Arc::new(self.options.placement.clone()),
            outcomes: sender,
            outcome_evt: outcome_evt.try_clone().map_err(host("can't make an eventfd"))?,
            recorder: self.recorder.as_ref(),
            debug: None,
            chaos: self.disturbed(),
        };
        let debugger = self.debugger().map_err(host("can't set up the debugger"))?;
        let shared = Shared { debug: debugger.as_ref().map(|machine| machine.hub.clone()), ..shared };
        // Held before their first instruction.
        let held = self.options.gdb.as_ref().filter(|gdb| gdb.wait).map(|_| self.run_control.pause()).transpose()?;
        self.milestones.note("vcpus_started");
        let mut threads = Threads::start(std::mem::take(&mut self.vcpus), &shared)?;
        let control = self.control.take().map(|listening| listening.serve(self.machine(&threads)));
        let control = control.transpose().map_err(host("can't start the control thread"))?;
        let debugger = match (self.gdb.take(), debugger) {
            (Some(listener), Some(machine)) => Some(debug::server::Server::start(listener, machine, held)),
            _ => None,
        };
        let debugger = debugger.transpose().map_err(host("can't start the debugger's thread"))?;
        let disturber = self.disturb(&threads).map_err(host("can't start the chaos thread"))?;
        let agent = self.delegate(&threads).map_err(host("can't start the agent's thread"))?;
        let deadline = self.options.timeout.map(|timeout| Instant::now() + timeout);
        // Loading the guest and starting the threads brought back much that is not needed again.
        footprint::forget_start();
        // The last one: from here on nothing is opened any more.
        sandbox::enter(Kind::Main)?;
        let result = event_loop::run(Hub {
            guest: self.events,
            outcomes,
            outcome_evt,
            signals: self.signals,
            timeout: self.options.timeout,
            console,
            ours: self.guest.is_ours(),
            milestones: self.milestones,
        });

        drop(disturber);
        let told = agent.as_ref().map(delegate::Thread::told);
        drop(agent);
        self.devices.interrupt();
        self.bell.end();
        threads.stop();
        drop(control);
        let (end, mut hub) = result?;
        if let Some(debugger) = debugger {
            debugger.end(end.exit_code());
        }
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
        let agent_stats = told.map(|told| told.render());
        let stats = stats.map(|text| text + agent_stats.as_deref().unwrap_or_default());
        let trace = self.recorder.take().and_then(Recorder::end);
        Ok(Ended { end, report, stats, trace })
    }
}

impl Vm {
    /// What the guest's kernel is asked through.
    fn mailbox(&self) -> Mailbox {
        let interrupt = requests::interrupt_through(self.fd.clone());
        Mailbox::new(self.bell.clone(), self.reader.clone(), self.ram.clone(), interrupt)
    }

    /// What a debugger is shown.
    fn debugger(&self) -> io::Result<Option<debug::target::Machine>> {
        if self.gdb.is_none() {
            return Ok(None);
        }
        let kernel = debug::kernel_file::read(&self.guest.kernel)?;
        Ok(Some(debug::target::Machine {
            control: self.run_control.clone(),
            reader: self.reader.clone(),
            ram: self.ram.clone(),
            hub: Arc::new(debug::hub::Hub::new()?),
            apic_ids: (0..self.options.vcpus).map(|vcpu| self.topology.apic_id(vcpu)).collect(),
            segments: debug::kernel_file::segments(&kernel),
            kernel,
            clerk: debug::wishes::Clerk::start(self.mailbox())?,
            program: (self.options.program.first())
                .map(|name| std::path::absolute(name).unwrap_or_else(|_| name.into())),
        }))
    }

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
            ram: self.ram.clone(),
            mailbox: self.mailbox(),
            run: Runs::new(self.run_control.clone()),
            streams: Streams::default(),
            clock: self.clock.clone(),
            trace: self.recorder.as_ref().map(|r| r.live(self.options.vcpus, self.trace_header.clone())),
        }
    }
}

/// Who else hears of the guest's directory.
fn listener(clock: impl Fn(u32) + Send + 'static, bell: Option<Arc<delegate::Bell>>) -> impl Fn(u32) + Send + 'static {
    move |page| {
        clock(page);
        if let Some(bell) = &bell {
            bell.ring();
        }
    }
}

fn stdin() -> BorrowedFd<'static> {
    // SAFETY: descriptor 0 is never closed by this process.
    unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) }
}

/// What a trace says of the machine.
fn trace_header(options: &Options, vcpus: &[VcpuFd], cmdline: &str) -> trace::Header {
    let policy = cmdline.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix("policy="));
    trace::Header {
        version: trace::VERSION,
        cpus: options.vcpus,
        tsc_khz: vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()).unwrap_or(0),
        policy: policy.unwrap_or_default().to_owned(),
        command_line: cmdline.to_owned(),
        program: options.program.clone(),
        realtime_ns: 0,
    }
}

/// Starts what `--trace` asks for, and makes ready for what may be asked through the control socket.
fn record(options: &Options, ram: &Ram, header: &trace::Header) -> Result<Option<Recorder>, VmError> {
    let (vcpus, khz) = (options.vcpus, header.tsc_khz);
    Ok(match &options.trace {
        Some(path) => Some(Recorder::start(path, ram.clone(), vcpus, khz, header.clone())?),
        None => options.control.is_some().then(|| Recorder::idle(ram.clone(), vcpus, khz)),
    })
}
