//! The machine's devices: made, put on the buses, wired to KVM's irqchip, and drained at the end.
//!
//! Only [`super`] uses this. Addresses and interrupts are those of docs/abi.md.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use taskvisor_devices::bus::{Bus, BusDevice, BusKind, lock};
use taskvisor_devices::event::{EventSender, GuestEvents, guest_events};
use taskvisor_devices::uart::{Buffering, Uart};
use taskvisor_devices::virtio::console::Drained;
use taskvisor_devices::virtio::mmio::MmioTransport;
use taskvisor_devices::word_port::{self, WordPort};
use taskvisor_devices::{debug_exit, milestone, reset, uart};
use vcpu_sched::delegation::DOORBELL;
use vcpu_sched::directory::{PORT as DIRECTORY, RingHeader};
use vcpu_sched::requests::DOORBELL as REQUESTS_DOORBELL;
use vmm_sys_util::eventfd::EventFd;

use super::Options;
use super::error::{VmError, host, kvm_call};
use crate::boot::acpi::VirtioMmio;
use crate::boot::layout;
use crate::config::LogSink;
use crate::console::output::{Output, StopFlag};
use crate::console::serial::SerialConsole;
use crate::console::terminal::Lines;
use crate::console::virtio::VirtioConsole;
use crate::console::{Console, virtio};
use crate::end::End;
use crate::guestview::Told;
use crate::memory::Ram;
use crate::requests::Bell;
use crate::signals::SignalFd;
use crate::trace::Recorder;
use crate::vcpu::run_loop::Buses;

/// How long output may take to drain after an end that the user has forced.
const FORCED_DRAIN: Duration = Duration::from_millis(20);

/// The devices that the VMM keeps a hand on; the rest lives on the buses alone.
pub struct Devices {
    com1: Arc<Mutex<Uart>>,
    com2: Arc<Mutex<Uart>>,
    console: Option<Arc<Mutex<virtio::Device>>>,
    stop: StopFlag,
}

/// What [`build`] makes.
pub struct Built {
    /// For the event loop and the end.
    pub devices: Devices,
    /// For the vCPUs.
    pub buses: Buses,
    /// What the guest reports.
    pub events: GuestEvents,
    /// Where the guest says that its directory is.
    pub told: Arc<Told>,
    /// Rings when the guest has answered a request.
    pub bell: Bell,
    /// For the DSDT.
    pub virtio: Vec<VirtioMmio>,
}

/// Makes all devices; COM1 carries the streams if `serial_console`, else the log.
pub fn build(
    fd: &VmFd,
    ram: &Ram,
    options: &Options,
    serial_console: bool,
    recorder: Option<&Recorder>,
    clock: impl Fn(u32) + Send + 'static,
) -> Result<Built, VmError> {
    let stop = StopFlag::default();
    let (sender, events) = guest_events().map_err(host("can't make an eventfd"))?;
    let mut buses = Buses { pio: Bus::new(BusKind::Pio), mmio: Bus::new(BusKind::Mmio) };

    let (sink, buffering): (Box<dyn Write + Send>, _) = match (&options.log, serial_console) {
        (_, true) => (Box::new(Output::stdout(&stop)?), Buffering::None),
        (LogSink::Stderr, false) => (Box::new(Lines(Output::stderr(&stop)?)), Buffering::Line),
        (LogSink::File(path), false) => (Box::new(Output::create(path, &stop)?), Buffering::Line),
        (LogSink::Off, false) => (Box::new(io::sink()), Buffering::Line),
    };
    let com1 = serial_port(fd, sink, buffering, uart::COM1_IRQ)?;
    let com2 = serial_port(fd, Box::new(Lines(Output::stderr(&stop)?)), Buffering::Line, uart::COM2_IRQ)?;
    buses.pio.insert("COM1", uart::COM1_PORT, uart::LEN, com1.clone())?;
    buses.pio.insert("COM2", uart::COM2_PORT, uart::LEN, com2.clone())?;
    add_exit_ports(&mut buses.pio, &sender)?;
    let recorded = recorder.map(Recorder::directory_listener);
    let told = Arc::new(Told::default());
    let heard = told.clone();
    let port = WordPort::new(move |page| {
        heard.set(page);
        clock(page);
        if let Some(recorded) = &recorded {
            recorded(page);
        }
    });
    buses.pio.insert("directory", DIRECTORY.into(), word_port::LEN, shared(port))?;
    if let Some(recorder) = recorder {
        let bell = WordPort::new(recorder.doorbell_listener());
        buses.pio.insert("trace doorbell", RingHeader::DOORBELL.into(), word_port::LEN, shared(bell))?;
    }

    let bell = Bell::default();
    let answers = WordPort::new(bell.listener());
    buses.pio.insert("requests doorbell", REQUESTS_DOORBELL.into(), word_port::LEN, shared(answers))?;

    let (mut console, mut virtio) = (None, Vec::new());
    if !serial_console {
        console = Some(add_virtio_console(fd, ram, &mut buses.mmio)?);
        virtio.push(VirtioMmio { base: layout::VIRTIO_MMIO, gsi: layout::VIRTIO_GSI });
    }
    Ok(Built { devices: Devices { com1, com2, console, stop }, buses, events, told, bell, virtio })
}

/// Has the guest ring an agent's doorbell, without an exit to us.
pub fn connect_doorbell(fd: &VmFd, evt: &EventFd) -> Result<(), VmError> {
    fd.register_ioevent(evt, &IoEventAddress::Pio(DOORBELL.into()), NoDatamatch).map_err(kvm_call("KVM_IOEVENTFD"))
}

fn serial_port(
    fd: &VmFd,
    sink: Box<dyn Write + Send>,
    buffering: Buffering,
    gsi: u32,
) -> Result<Arc<Mutex<Uart>>, VmError> {
    let uart = Uart::new(sink, buffering).map_err(host("can't make a serial port"))?;
    fd.register_irqfd(uart.interrupt_evt(), gsi).map_err(kvm_call("KVM_IRQFD"))?;
    Ok(Arc::new(Mutex::new(uart)))
}

fn add_exit_ports(pio: &mut Bus, sender: &EventSender) -> Result<(), VmError> {
    let sender = || sender.try_clone().map_err(host("can't make an eventfd"));
    pio.insert("debug exit", debug_exit::PORT, debug_exit::LEN, shared(debug_exit::DebugExit::new(sender()?)))?;
    pio.insert("milestones", milestone::PORT, 1, shared(milestone::MilestonePort::new(sender()?)))?;
    pio.insert("i8042 reset", reset::I8042_PORT, 1, shared(reset::I8042Reset::new(sender()?)))?;
    pio.insert("reset control", reset::CF9_PORT, 1, shared(reset::Cf9Reset::new(sender()?)))?;
    Ok(())
}

fn shared<D: BusDevice + 'static>(device: D) -> Arc<Mutex<D>> {
    Arc::new(Mutex::new(device))
}

/// The console with its registers on the bus, its notifications as ioeventfds, its interrupt as an irqfd.
fn add_virtio_console(fd: &VmFd, ram: &Ram, mmio: &mut Bus) -> Result<Arc<Mutex<virtio::Device>>, VmError> {
    let device = virtio::device(ram).map_err(host("can't use the standard streams"))?;
    let device = Arc::new(Mutex::new(device));
    let transport = MmioTransport::new(device.clone(), Arc::new(ram.clone()));
    for (offset, queue, evt) in transport.ioevents() {
        fd.register_ioevent(evt, &IoEventAddress::Mmio(layout::VIRTIO_MMIO + offset), queue)
            .map_err(kvm_call("KVM_IOEVENTFD"))?;
    }
    fd.register_irqfd(transport.interrupt_evt(), layout::VIRTIO_GSI).map_err(kvm_call("KVM_IRQFD"))?;
    mmio.insert("virtio console", layout::VIRTIO_MMIO, layout::VIRTIO_MMIO_SIZE, shared(transport))?;
    Ok(device)
}

impl Devices {
    /// The console that the event loop drives.
    pub fn console(&self) -> Result<Console, VmError> {
        let console = match &self.console {
            Some(device) => VirtioConsole::new(device.clone()).map(Console::Virtio),
            None => SerialConsole::new(self.com1.clone()).map(Console::Serial),
        };
        console.map_err(host("can't use stdin"))
    }

    /// Gets vCPU threads out of writes that wait; call before they are stopped.
    pub fn interrupt(&self) {
        self.stop.set();
    }

    /// Writes out what the guest has left in the console's queues. The vCPUs have stopped. After an ordinary end this
    /// waits as long as the reader needs, as a program's own write would; a signal ends that.
    pub fn drain_console(&self, end: &End, signals: &mut SignalFd, timeout: Option<Instant>) {
        let Some(console) = &self.console else { return };
        let deadline = match end {
            End::Guest(_) | End::Reset { .. } => timeout,
            _ => Some(Instant::now() + FORCED_DRAIN),
        };
        loop {
            match virtio::drain(console, deadline, signals.as_fd()) {
                Drained::Complete => return,
                Drained::GaveUp { bytes } => {
                    // A new window size is no reason to give up.
                    if signals.take() == Some(libc::SIGWINCH) {
                        continue;
                    }
                    log::debug!("{bytes} bytes of the programs' output were not written");
                    return;
                }
            }
        }
    }

    /// Writes out the serial ports' partial lines.
    pub fn drain_serial(&self, end: &End) {
        if let End::Guest(_) | End::Reset { .. } = end {
            self.stop.clear();
        }
        lock(&self.com1).drain();
        lock(&self.com2).drain();
    }
}
