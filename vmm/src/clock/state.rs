//! What changes of a machine's clock, under its lock.

use vcpu_sched::clock::Rate;
use vcpu_sched::ids::{Khz, Nanos};

use super::counter::Counter;
use super::page::GuestPage;
use super::{ClockError, ClockLine, Step};

/// The guest's page and its counter, once they are known.
#[derive(Debug)]
pub(super) struct Guest {
    page: GuestPage,
    counter: Counter,
    /// What was written last. The page itself is the guest's to spoil.
    line: ClockLine,
}

/// The CPUs are told of a pause at once if they have run for so long since they were last told, or have stood still for [`STOOD_MS`].
/// Until then each one's scheduler counts as running time what it stood still, and a timer that fires too early is armed again. Being
/// told is an interrupt: with one after each pause, a debugger that stops the guest in the handler for a moment, over and over, would
/// have it do nothing else.
const RAN_MS: u64 = 20;
/// See [`RAN_MS`]. Many times as long as a debugger's stop, of which there may be several in one handler.
const STOOD_MS: u64 = 200;

/// See the module's text.
#[derive(Debug)]
pub(super) struct State {
    pub rate: Rate,
    /// By vCPU.
    pub offsets: Vec<i64>,
    pub guest: Option<Guest>,
    /// The guest's counter when virtual time came to stand still.
    pub stopped_at: Option<u64>,
    /// How many pauses there are.
    stops: u32,
    /// Ticks that it has stood still.
    stood: u64,
    /// When the CPUs were told last: the counter without what it stood still, and that.
    told: Option<(u64, u64)>,
    pub changes: u64,
    /// The counters themselves have the offsets.
    native: bool,
}

impl State {
    pub(super) fn new(rate: Rate, offsets: Vec<i64>, native: bool) -> Self {
        Self { rate, offsets, guest: None, stopped_at: None, stops: 0, stood: 0, told: None, changes: 0, native }
    }

    /// The guest shows its page: what was asked for comes into force.
    pub(super) fn begin(&mut self, page: GuestPage, counter: Counter, told_khz: u32) -> Result<(), ClockError> {
        let now = counter.now();
        let mut line = page.get().checked()?.with_rate(now, self.rate)?;
        if told_khz != 0 {
            line.told = Khz(told_khz);
        }
        // No vCPU's clock may be before 0.
        let behind = self.offsets.iter().map(|offset| offset.min(&0).unsigned_abs()).max().unwrap_or(0);
        line = line.with_step(now, Step::Forward(Nanos(if self.native { 0 } else { behind })))?;
        page.get().set_line(&line);
        let guest = self.guest.insert(Guest { page, counter, line });
        if !self.native {
            guest.page.get().set_skews(&self.offsets);
        }
        Ok(())
    }

    /// What the clock shows.
    pub(super) fn now(&self) -> Option<Nanos> {
        let guest = self.guest.as_ref()?;
        Some(guest.line.at(self.stopped_at.unwrap_or_else(|| guest.counter.now())))
    }

    /// Puts another line in force. No vCPU is in the guest.
    pub(super) fn change_line(
        &mut self,
        f: impl FnOnce(ClockLine, u64) -> Result<ClockLine, ClockError>,
    ) -> Result<(), ClockError> {
        let guest = self.guest.as_mut().ok_or(ClockError::NoPage)?;
        let now = guest.counter.now();
        let standing = self.stopped_at.map_or(guest.line, |stopped| guest.line.without(stopped, now));
        let line = f(standing, now)?;
        guest.page.get().set_line(&line);
        guest.line = line;
        if let Some(stopped) = &mut self.stopped_at {
            self.stood = self.stood.wrapping_add(now.wrapping_sub(*stopped));
            *stopped = now;
        }
        Ok(())
    }

    /// Sets offsets. No vCPU is in the guest.
    pub(super) fn set_offset(&mut self, vcpu: Option<u32>, nanos: i64, backward: bool) -> Result<(), ClockError> {
        let mut offsets = self.offsets.clone();
        let vcpus = offsets.len() as u32;
        match vcpu {
            None => offsets.fill(nanos),
            Some(vcpu) => *offsets.get_mut(vcpu as usize).ok_or(ClockError::NoVcpu { vcpu, vcpus })? = nanos,
        }
        for (vcpu, (old, new)) in (0..).zip(self.offsets.iter().zip(&offsets)) {
            if new < old && !backward {
                return Err(ClockError::Backward { vcpu, nanos: new.abs_diff(*old) });
            }
        }
        let guest = self.guest.as_ref().ok_or(ClockError::NoPage)?;
        guest.page.get().set_skews(&offsets);
        self.offsets = offsets;
        Ok(())
    }

    /// One more pause has begun.
    pub(super) fn stop(&mut self) {
        self.stops += 1;
        if let (1, Some(guest)) = (self.stops, &self.guest) {
            self.stopped_at = Some(guest.counter.now());
        }
    }

    /// One pause ends. Returns whether the CPUs shall be told now that virtual time goes on with another line.
    pub(super) fn go_on(&mut self) -> bool {
        self.stops = self.stops.saturating_sub(1);
        if self.stops > 0 || self.stopped_at.is_none() {
            return false;
        }
        // The line is always one that was in force: nothing can fail.
        let changed = self.change_line(|line, _| Ok(line)).is_ok();
        let stopped_at = self.stopped_at.take();
        let Some((now, guest)) = stopped_at.zip(self.guest.as_ref()) else { return false };
        let ran = now.wrapping_sub(self.stood);
        // Kilohertz are ticks a millisecond.
        let ms = u64::from(guest.line.counter.0);
        let due = self.told.is_none_or(|(told, stood)| {
            ran.wrapping_sub(told) >= RAN_MS * ms || self.stood.wrapping_sub(stood) >= STOOD_MS * ms
        });
        if changed && due {
            self.told = Some((ran, self.stood));
        }
        changed && due
    }
}
