//! Virtio console (virtio 1.2, 5.3; docs/abi.md "Console"): the guest programs' stdin, stdout and stderr.
//!
//! Port 0 is stdin (receiveq 0) and stdout (transmitq 1), port 1 is stderr (transmitq 5); queues 2 and 3 are the control
//! queues; queue 4 is unused. Bytes go from guest memory to the file and back without a copy in between.
//!
//! # Driving it
//! One event loop owns the data plane. It holds the device as `Arc<Mutex<ConsoleDevice<_>>>`, shared with the
//! [`super::mmio::MmioTransport`], and after *every* call looks again at what the device is interested in:
//! ```text
//! link().queue_evt(i) readable      -> process_queue(i)              (also registered as ioeventfd, datamatch i)
//! stdin_interest()   Poll(fd)       -> register POLLIN;  when ready: stdin_ready()
//! output_interest(s) Poll(fd)       -> register POLLOUT; when ready: output_ready(s)
//!                    Ready          -> call once this turn, without waiting in epoll
//!                    Idle           -> unregister (POLLHUP would spin otherwise)
//! SIGWINCH                          -> resize(cols, rows)
//! the guest has ended, vCPUs stopped-> drain(..)
//! ```
//! A terminal's bytes, which the VMM must see first for its escape key, come by [`ConsoleDevice::push_input`].
//! No call blocks (except `drain`, which says for how long), and each does a bounded amount of work: at most
//! [`TURN_BUDGET`] bytes; a queue with more left kicks itself.
//!
//! # Back-pressure
//! A transmit chain is returned only when its last byte has gone out; on EAGAIN the position inside of the chain is
//! kept and the loop is asked for POLLOUT. Stdin is polled only while the guest has given receive buffers.
//! A file that takes no more (EPIPE) discards what follows; [`ConsoleDevice::output_error`] says so.
//!
//! # Hostile guests
//! Any malformed ring, chain or message fails the device ([`super::link::Link::fail`]): one logged line, no further work
//! until the driver resets it. One notification per batch, as EVENT_IDX or NO_INTERRUPT ask.

mod control;
mod port;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_queue::Queue;
use vm_memory::GuestMemoryBackend;

use self::control::Control;
use self::port::{Input, Output, Turn};
use super::chain::{ChainError, Direction};
use super::link::Link;
use super::ring::Ring;
use super::stream::{InputStream, Interest, OutputStream, wait};
use super::{F_EVENT_IDX, F_VERSION_1, VirtioDevice};

/// Virtio 1.2, 5.3.3: cols and rows are valid.
pub const F_SIZE: u64 = 1 << 0;
/// Virtio 1.2, 5.3.3: several ports, control queues.
pub const F_MULTIPORT: u64 = 1 << 1;

/// Number of ports (docs/abi.md).
pub const PORTS: u32 = 2;
/// Bytes that one call moves at most, before it lets the loop look at other things.
pub const TURN_BUDGET: usize = 1 << 20;

/// Virtio 1.2, 5.3.2 "Virtqueues": the queues' numbers with two ports.
mod queue {
    pub const STDIN: usize = 0;
    pub const STDOUT: usize = 1;
    pub const CONTROL_RX: usize = 2;
    pub const CONTROL_TX: usize = 3;
    pub const UNUSED_RX: usize = 4;
    pub const STDERR: usize = 5;
}

/// Deep enough for 1 MiB of user pages in one chain; control messages are few.
const QUEUE_SIZES: [u16; 6] = [256, 256, 64, 64, 256, 256];

/// An output of the guest's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Port 0's transmit queue.
    Stdout,
    /// Port 1's transmit queue.
    Stderr,
}

impl Stream {
    /// Both.
    pub const ALL: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    fn queue(self) -> usize {
        match self {
            Stream::Stdout => queue::STDOUT,
            Stream::Stderr => queue::STDERR,
        }
    }
}

/// Terminal size in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WinSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// The host side of the ports.
#[derive(Debug)]
pub struct ConsoleIo {
    /// Port 0, to the guest.
    pub stdin: InputStream,
    /// Port 0, from the guest.
    pub stdout: OutputStream,
    /// Port 1, from the guest.
    pub stderr: OutputStream,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Everything that the guest had queued is out (or was discarded, because its file is closed).
    Complete,
    /// The deadline passed, or the caller cancelled; so many bytes were not written.
    GaveUp {
        /// Bytes left in chains that were already taken from the rings.
        bytes: u64,
    },
}

/// See the module's description.
#[derive(Debug)]
pub struct ConsoleDevice<M> {
    mem: Arc<M>,
    link: Arc<Link>,
    size: Option<WinSize>,
    active: bool,
    control: Control,
    input: Input,
    outputs: [Output; 2],
}

impl<M: GuestMemoryBackend> ConsoleDevice<M> {
    /// A console over `io`. `size` is the terminal's, `None` if there is none (80x24 in the configuration space).
    pub fn new(mem: Arc<M>, io: ConsoleIo, size: Option<WinSize>) -> io::Result<ConsoleDevice<M>> {
        Ok(ConsoleDevice {
            mem,
            link: Arc::new(Link::new("virtio-console", QUEUE_SIZES.len())?),
            size,
            active: false,
            control: Control::default(),
            input: Input::new(io.stdin),
            outputs: [Output::new(io.stdout), Output::new(io.stderr)],
        })
    }

    /// Eventfds and failure state; the same object as the transport's.
    pub fn shared_link(&self) -> Arc<Link> {
        self.link.clone()
    }

    fn working(&self) -> bool {
        self.active && !self.link.failed()
    }

    /// Runs a piece of the data plane: not on a failed device, and an error fails it.
    fn run(&mut self, part: impl FnOnce(&mut Self) -> Result<(), (usize, ChainError)>) {
        if !self.working() {
            return;
        }
        if let Err((queue, error)) = part(self) {
            self.link.fail(format_args!("queue {queue}: {error}"));
        }
    }

    /// Queue `index` was kicked. Takes the kick off its eventfd, and works on what is there.
    pub fn process_queue(&mut self, index: usize) {
        if let Some(evt) = self.link.queue_evt(index) {
            // Non-blocking; spurious calls are fine.
            let _ = evt.read();
        }
        match index {
            queue::STDIN => self.run(|this| {
                let result = this.input.refresh(&*this.mem);
                result.map_err(|error| (queue::STDIN, error))
            }),
            queue::STDOUT => self.transmit(Stream::Stdout),
            queue::STDERR => self.transmit(Stream::Stderr),
            queue::CONTROL_RX => self.send_control(),
            queue::CONTROL_TX => self.run(Self::receive_control),
            _ => {}
        }
    }

    /// Whether stdin should be polled, read at once, or left alone.
    pub fn stdin_interest(&self) -> Interest {
        if self.working() { self.input.interest() } else { Interest::Idle }
    }

    /// Stdin is readable: one read, straight into the guest's buffers.
    pub fn stdin_ready(&mut self) {
        let had_ended = self.input.ended();
        self.run(|this| {
            let signal = this.input.receive(&*this.mem).map_err(|error| (queue::STDIN, error))?;
            if signal {
                this.link.signal_used();
            }
            Ok(())
        });
        if self.input.ended() && !had_ended {
            self.control.input_ended();
            self.send_control();
        }
    }

    /// Hands over terminal input ([`InputStream::injected`]); how many bytes were taken (all but in a flood that the
    /// guest doesn't read).
    pub fn push_input(&mut self, bytes: &[u8]) -> usize {
        self.input.stream().push(bytes)
    }

    /// The input is at its end, whatever it was. What was pushed before still arrives.
    pub fn close_input(&mut self) {
        self.input.stream().close();
    }

    /// Whether the stream waits to become writable.
    pub fn output_interest(&self, stream: Stream) -> Interest {
        if self.working() { self.output(stream).interest() } else { Interest::Idle }
    }

    /// The stream is writable.
    pub fn output_ready(&mut self, stream: Stream) {
        self.transmit(stream);
    }

    /// The error that closed the stream, if one did.
    pub fn output_error(&self, stream: Stream) -> Option<&io::Error> {
        self.output(stream).error()
    }

    /// The terminal has a new size.
    pub fn resize(&mut self, size: WinSize) {
        if self.size.replace(size) == Some(size) {
            return;
        }
        self.link.signal_config();
        self.control.resized(size);
        self.send_control();
    }

    /// Writes out everything that the guest has queued. For the end of the guest: the vCPUs have stopped, nobody kicks
    /// any more. Blocks until all is out, `deadline` passes (`None`: no limit, as a program's own write would wait), or
    /// `cancel` becomes readable. Always-ready files are written however late it is.
    pub fn drain(&mut self, deadline: Option<Instant>, cancel: Option<BorrowedFd<'_>>) -> Drained {
        loop {
            let mut fds = Vec::with_capacity(3);
            let mut more = false;
            for stream in Stream::ALL {
                self.transmit(stream);
                match self.output_interest(stream) {
                    Interest::Poll(fd) => fds.push(libc::pollfd { fd, events: libc::POLLOUT, revents: 0 }),
                    Interest::Ready => more = true,
                    Interest::Idle => more |= self.working() && self.output(stream).has_work(&*self.mem),
                }
            }
            if fds.is_empty() && !more {
                return Drained::Complete;
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                break;
            }
            let timeout = match deadline {
                _ if more => 0,
                // Round up: a poll of 0 ms in a loop would spin.
                Some(deadline) => {
                    i32::try_from((deadline - now + Duration::from_millis(1)).as_millis()).unwrap_or(i32::MAX)
                }
                None => -1,
            };
            let outputs = fds.len();
            if let Some(cancel) = cancel {
                fds.push(libc::pollfd { fd: cancel.as_raw_fd(), events: libc::POLLIN, revents: 0 });
            }
            if let Err(error) = wait(&mut fds, timeout) {
                log::error!("console drain: poll: {error}");
                break;
            }
            if fds.iter().skip(outputs).any(|fd| fd.revents != 0) {
                break;
            }
        }
        Drained::GaveUp { bytes: self.outputs.iter().map(Output::bytes_left).sum() }
    }

    fn output(&self, stream: Stream) -> &Output {
        match stream {
            Stream::Stdout => &self.outputs[0],
            Stream::Stderr => &self.outputs[1],
        }
    }

    fn transmit(&mut self, stream: Stream) {
        self.run(|this| {
            let [stdout, stderr] = &mut this.outputs;
            let output = if stream == Stream::Stdout { stdout } else { stderr };
            let turn = output.transmit(&*this.mem).map_err(|error| (stream.queue(), error))?;
            this.finish(turn, stream.queue());
            Ok(())
        });
    }

    fn receive_control(&mut self) -> Result<(), (usize, ChainError)> {
        let turn = self.control.receive(&*self.mem, self.size).map_err(|error| (queue::CONTROL_TX, error))?;
        self.finish(turn, queue::CONTROL_TX);
        self.send_control_messages()
    }

    /// What a turn on queue `index` asks for: an interrupt, another turn.
    fn finish(&self, turn: Turn, index: usize) {
        if turn.signal {
            self.link.signal_used();
        }
        if turn.more {
            self.link.kick(index);
        }
    }

    fn send_control_messages(&mut self) -> Result<(), (usize, ChainError)> {
        let turn = self.control.send(&*self.mem).map_err(|error| (queue::CONTROL_RX, error))?;
        self.finish(turn, queue::CONTROL_RX);
        Ok(())
    }

    fn send_control(&mut self) {
        self.run(Self::send_control_messages);
    }
}

impl<M: GuestMemoryBackend + Send + Sync> VirtioDevice for ConsoleDevice<M> {
    fn link(&self) -> &Arc<Link> {
        &self.link
    }

    fn device_id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE
    }

    fn offered_features(&self) -> u64 {
        F_VERSION_1 | F_EVENT_IDX | F_MULTIPORT | F_SIZE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // Virtio 1.2, 5.3.4: le16 cols, le16 rows, le32 max_nr_ports, le32 emerg_wr.
        let size = self.size.unwrap_or(WinSize { cols: 80, rows: 24 });
        let mut config = [0_u8; 12];
        config[0..2].copy_from_slice(&size.cols.to_le_bytes());
        config[2..4].copy_from_slice(&size.rows.to_le_bytes());
        config[4..8].copy_from_slice(&PORTS.to_le_bytes());
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
        let count = data.len().min(config.len() - from);
        data[..count].copy_from_slice(&config[from..from + count]);
    }

    fn activate(&mut self, _features: u64, queues: Vec<Option<Queue>>) {
        let mut queues = queues.into_iter();
        let mut ring = |direction| queues.next().flatten().map(|queue| Ring::new(queue, direction));
        // In the order of the queues' numbers.
        self.input.set_ring(ring(Direction::ToDriver));
        self.outputs[0].set_ring(ring(Direction::ToDevice));
        self.control.set_rings(ring(Direction::ToDriver), ring(Direction::ToDevice));
        let _unused = ring(Direction::ToDriver);
        self.outputs[1].set_ring(ring(Direction::ToDevice));
        if self.input.ended() {
            self.control.input_ended();
        }
        self.active = true;
    }

    fn stop_queue(&mut self, index: usize) {
        match index {
            queue::STDIN => self.input.set_ring(None),
            queue::STDOUT => self.outputs[0].set_ring(None),
            queue::STDERR => self.outputs[1].set_ring(None),
            queue::CONTROL_RX => self.control.stop_sending(),
            queue::CONTROL_TX => self.control.stop_receiving(),
            queue::UNUSED_RX => {}
            _ => {}
        }
        self.link.kick_all();
    }

    fn reset(&mut self) {
        self.active = false;
        self.input.set_ring(None);
        self.outputs.iter_mut().for_each(|output| output.set_ring(None));
        self.control = Control::default();
    }
}
