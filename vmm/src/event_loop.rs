//! The main thread's loop: guest events, ends of vCPU threads, signals, the timeout, and the console.
//!
//! [`crate::vm`] builds a [`Hub`] and calls [`run`], which returns how the VM ended. Invariant: nothing in here blocks,
//! so that a signal or the timeout always gets through.

use std::os::fd::AsRawFd;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use taskvisor_devices::event::{GuestEvent, GuestEvents};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::console::{Console, Watch, Wish};
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

const GUEST: u32 = 0;
const VCPUS: u32 = 1;
const SIGNALS: u32 = 2;
const TIMEOUT: u32 = 3;
/// The console's token n is CONSOLE + n.
const CONSOLE: u32 = 16;

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
    /// The programs' streams.
    pub console: Console,
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
    /// What epoll has of the console now.
    watched: Vec<Watch>,
    /// Scratch space for what it shall have.
    wanted: Vec<Watch>,
}

/// Runs until the VM has to end; gives the hub back for what remains in it.
pub fn run(hub: Hub) -> Result<(End, Hub), LoopError> {
    let timer = hub.timeout.map(start_timer).transpose()?;
    let dispatcher = Dispatcher { hub, timer, end: None, error: None, watched: Vec::new(), wanted: Vec::new() };
    let mut manager = EventManager::new().map_err(LoopError::Epoll)?;
    let id = manager.add_subscriber(dispatcher);
    loop {
        let dispatcher = manager.subscriber_mut(id).map_err(LoopError::Epoll)?;
        if let Some(error) = dispatcher.error.take() {
            return Err(LoopError::Epoll(error));
        }
        if let Some(end) = dispatcher.end.take() {
            let dispatcher = manager.remove_subscriber(id).map_err(LoopError::Epoll)?;
            return Ok((end, dispatcher.hub));
        }
        match manager.run() {
            Ok(_) => {}
            // A signal that isn't in the signalfd, SIGCONT for one.
            Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EINTR => {}
            Err(error) => return Err(LoopError::Epoll(error)),
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
        let fixed = [
            (self.hub.guest.evt().as_raw_fd(), GUEST),
            (self.hub.outcome_evt.as_raw_fd(), VCPUS),
            (self.hub.signals.as_raw_fd(), SIGNALS),
        ];
        let timer = self.timer.as_ref().map(|timer| (timer.as_raw_fd(), TIMEOUT));
        for (fd, token) in fixed.into_iter().chain(timer) {
            self.add(ops, Watch { fd, events: EventSet::IN, token });
        }
        self.watch_console(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let end = match events.data() {
            GUEST => self.on_guest(),
            VCPUS => self.on_outcome(),
            SIGNALS => self.on_signals(),
            TIMEOUT => self.hub.timeout.map(End::Timeout),
            token => match self.hub.console.on_ready(token.saturating_sub(CONSOLE)) {
                Wish::Quit => Some(End::UserQuit),
                Wish::Continue => None,
            },
        };
        self.watch_console(ops);
        // The first reason counts.
        if self.end.is_none() {
            self.end = end;
        }
    }
}

impl Dispatcher {
    fn add(&mut self, ops: &mut EventOps, watch: Watch) {
        if let Err(error) = ops.add(Events::with_data_raw(watch.fd, watch.token, watch.events)) {
            self.error = Some(error);
        }
    }

    /// Makes epoll wait for exactly what the console wants now; most of the time nothing has changed.
    fn watch_console(&mut self, ops: &mut EventOps) {
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.clear();
        self.hub.console.watches(&mut wanted);
        for watch in &mut wanted {
            watch.token += CONSOLE;
        }
        let mut watched = std::mem::take(&mut self.watched);
        for old in watched.iter().filter(|old| !wanted.contains(old)) {
            if let Err(error) = ops.remove(Events::empty_raw(old.fd)) {
                self.error = Some(error);
            }
        }
        for new in wanted.iter().filter(|new| !watched.contains(new)) {
            self.add(ops, *new);
        }
        std::mem::swap(&mut watched, &mut wanted);
        (self.watched, self.wanted) = (watched, wanted);
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
        self.hub.outcomes.try_recv().ok().map(|outcome| match outcome {
            Outcome::Failed(failure) => End::Failed(failure),
            Outcome::Stopped => End::VcpusGone,
        })
    }

    fn on_signals(&mut self) -> Option<End> {
        let mut end = None;
        while let Some(signal) = self.hub.signals.take() {
            if signal == libc::SIGWINCH {
                self.hub.console.on_resize();
            } else {
                end = end.or(Some(End::Signal(signal)));
            }
        }
        end
    }
}
