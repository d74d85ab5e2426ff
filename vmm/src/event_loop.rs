//! The main thread's loop: guest events, ends of vCPU threads, signals, the timeout, and console input.
//!
//! [`crate::vm`] builds a [`Hub`] and calls [`run`], which returns how the VM ended. Invariant: nothing in here blocks,
//! so that a signal or the timeout always gets through.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use taskvisor_devices::event::{GuestEvent, GuestEvents};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::console::input::{Input, InputSource};
use crate::end::End;
use crate::signals::SignalFd;
use crate::stats::Milestones;
use crate::vcpu::run_loop::Outcome;

/// Why the loop can't run.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// epoll.
    #[error("the event loop failed: {0}")]
    Epoll(event_manager::Error),
    /// timerfd.
    #[error("can't set the timeout: {0}")]
    Timer(std::io::Error),
}

/// What each file descriptor means; the event's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Source {
    Guest,
    Vcpus,
    Signals,
    Timeout,
    Input,
    InputRoom,
}

impl Source {
    const ALL: [Source; 6] =
        [Source::Guest, Source::Vcpus, Source::Signals, Source::Timeout, Source::Input, Source::InputRoom];
}

/// Everything that the loop listens to.
#[derive(Debug)]
pub struct Hub {
    /// Facts that the guest reported through ports.
    pub guest: GuestEvents,
    /// Outcomes of vCPU threads.
    pub outcomes: Receiver<Outcome>,
    /// Readable when `outcomes` may hold something.
    pub outcome_evt: EventFd,
    /// Signals to this process.
    pub signals: SignalFd,
    /// `--timeout`.
    pub timeout: Option<Duration>,
    /// What is typed or piped in, and the device that takes it.
    pub input: Option<Input>,
    /// Whether the kernel is ours; a reset means something else then.
    pub ours: bool,
    /// Where milestones are noted.
    pub milestones: Milestones,
}

/// A subscriber that ends the loop by setting `end`.
struct Dispatcher {
    hub: Hub,
    timer: Option<TimerFd>,
    end: Option<End>,
    error: Option<event_manager::Error>,
    input_watched: Option<RawFd>,
}

/// Runs until the VM has to end; gives the hub back for what remains in it.
pub fn run(hub: Hub) -> Result<(End, Hub), LoopError> {
    let timer = hub.timeout.map(start_timer).transpose()?;
    let mut manager = EventManager::new().map_err(LoopError::Epoll)?;
    let id = manager.add_subscriber(Dispatcher { hub, timer, end: None, error: None, input_watched: None });
    loop {
        match manager.run() {
            Ok(_) => {}
            // A signal that isn't in the signalfd, SIGCONT for one.
            Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EINTR => continue,
            Err(error) => return Err(LoopError::Epoll(error)),
        }
        let dispatcher = manager.subscriber_mut(id).map_err(LoopError::Epoll)?;
        if let Some(error) = dispatcher.error.take() {
            return Err(LoopError::Epoll(error));
        }
        if let Some(end) = dispatcher.end.take() {
            let dispatcher = manager.remove_subscriber(id).map_err(LoopError::Epoll)?;
            return Ok((end, dispatcher.hub));
        }
    }
}

fn start_timer(after: Duration) -> Result<TimerFd, LoopError> {
    let mut timer = TimerFd::new().map_err(|e| LoopError::Timer(e.into()))?;
    // A zero time would disarm the timer.
    timer.reset(after.max(Duration::from_nanos(1)), None).map_err(|e| LoopError::Timer(e.into()))?;
    Ok(timer)
}

impl MutEventSubscriber for Dispatcher {
    fn init(&mut self, ops: &mut EventOps) {
        let mut fds = vec![
            (self.hub.guest.evt().as_raw_fd(), Source::Guest),
            (self.hub.outcome_evt.as_raw_fd(), Source::Vcpus),
            (self.hub.signals.as_raw_fd(), Source::Signals),
        ];
        fds.extend(self.timer.as_ref().map(|timer| (timer.as_raw_fd(), Source::Timeout)));
        fds.extend(self.hub.input.as_ref().map(|input| (input.room_fd(), Source::InputRoom)));
        for (fd, source) in fds {
            self.watch(ops, fd, source);
        }
        self.watch_input(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let Some(source) = Source::ALL.into_iter().find(|s| *s as u32 == events.data()) else { return };
        let end = match source {
            Source::Guest => self.on_guest(),
            Source::Vcpus => self.on_outcome(),
            Source::Signals => self.on_signals(),
            Source::Timeout => self.hub.timeout.map(End::Timeout),
            Source::Input => self.on_input(),
            Source::InputRoom => {
                if let Some(input) = &mut self.hub.input {
                    input.on_room();
                }
                None
            }
        };
        self.watch_input(ops);
        // The first reason counts.
        if self.end.is_none() {
            self.end = end;
        }
    }
}

impl Dispatcher {
    fn watch(&mut self, ops: &mut EventOps, fd: RawFd, source: Source) {
        if let Err(error) = ops.add(Events::with_data_raw(fd, source as u32, EventSet::IN)) {
            self.error = Some(error);
        }
    }

    /// Listens to the input as long as somebody can take it.
    fn watch_input(&mut self, ops: &mut EventOps) {
        let wanted = self.hub.input.as_ref().and_then(Input::wanted_fd);
        if wanted == self.input_watched {
            return;
        }
        if let Some(fd) = self.input_watched.take() {
            let _ = ops.remove(Events::empty_raw(fd));
        }
        if let Some(fd) = wanted {
            self.watch(ops, fd, Source::Input);
            self.input_watched = Some(fd);
        }
    }

    fn on_guest(&mut self) -> Option<End> {
        let mut end = None;
        for event in self.hub.guest.drain() {
            let this = match event {
                GuestEvent::Exit(exit) => Some(End::Guest(exit)),
                GuestEvent::Reset(source) => Some(End::Reset { source, ours: self.hub.ours }),
                GuestEvent::Milestone(hit) => {
                    self.hub.milestones.hit(hit);
                    None
                }
            };
            end = end.or(this);
        }
        end
    }

    fn on_outcome(&mut self) -> Option<End> {
        let _ = self.hub.outcome_evt.read();
        self.hub.outcomes.try_iter().find_map(|outcome| match outcome {
            Outcome::Failed(failure) => Some(End::Failed(failure)),
            Outcome::Stopped => Some(End::VcpusGone),
        })
    }

    fn on_signals(&mut self) -> Option<End> {
        let mut end = None;
        while let Some(signal) = self.hub.signals.next() {
            if signal == libc::SIGWINCH {
                if let Some(input) = &mut self.hub.input {
                    input.on_resize();
                }
            } else {
                end = end.or(Some(End::Signal(signal)));
            }
        }
        end
    }

    fn on_input(&mut self) -> Option<End> {
        match self.hub.input.as_mut().map(Input::on_readable) {
            Some(InputSource::Quit) => Some(End::UserQuit),
            Some(InputSource::Open | InputSource::Ended) | None => None,
        }
    }
}
