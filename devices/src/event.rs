//! What a guest tells the VMM through ports: a channel with an `EventFd` beside it.
//!
//! [`crate::debug_exit`], [`crate::reset`] and [`crate::milestone`] report here from vCPU threads; the event loop polls
//! the `EventFd` and then calls [`GuestEvents::drain`]. Invariant: the number of events in flight is bounded by the
//! devices (each reports a given fact once), so a guest that writes a port in a loop can't grow the queue.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::debug_exit::GuestExit;
use crate::milestone::MilestoneHit;
use crate::reset::ResetSource;

/// A fact a guest reported by a port write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEvent {
    /// Port 0xf4: the guest is done.
    Exit(GuestExit),
    /// Port 0x64 or 0xcf9: the guest wants a reset, which ends the VM.
    Reset(ResetSource),
    /// Port 0x80: a boot milestone was reached for the first time.
    Milestone(MilestoneHit),
}

/// The devices' end: cheap to clone, usable from any vCPU thread.
#[derive(Debug)]
pub struct EventSender {
    queue: Sender<GuestEvent>,
    evt: EventFd,
}

impl EventSender {
    /// A second sender to the same receiver.
    pub fn try_clone(&self) -> io::Result<EventSender> {
        Ok(EventSender { queue: self.queue.clone(), evt: self.evt.try_clone()? })
    }

    /// Queues `event` and wakes the loop. A receiver that has gone away means that the VM is being torn down.
    pub(crate) fn send(&self, event: GuestEvent) {
        if self.queue.send(event).is_ok()
            && let Err(error) = self.evt.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            log::error!("guest event {event:?}: can't wake the event loop: {error}");
        }
    }
}

/// The event loop's end.
#[derive(Debug)]
pub struct GuestEvents {
    queue: Receiver<GuestEvent>,
    evt: EventFd,
}

impl GuestEvents {
    /// Readable (POLLIN) when events may be queued.
    pub fn evt(&self) -> &EventFd {
        &self.evt
    }

    /// Resets the `EventFd`, then yields everything queued. An event that arrives meanwhile sets the fd again.
    pub fn drain(&self) -> impl Iterator<Item = GuestEvent> + '_ {
        // Non-blocking; "nothing there" is fine, the queue decides.
        let _ = self.evt.read();
        self.queue.try_iter()
    }
}

/// A connected pair. Fails only when the process is out of file descriptors.
pub fn guest_events() -> io::Result<(EventSender, GuestEvents)> {
    let evt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let (queue, events) = channel();
    Ok((EventSender { queue, evt: evt.try_clone()? }, GuestEvents { queue: events, evt }))
}
