//! What the picture of a trace is drawn from: who ran where and when, in bounded memory.
//!
//! While there are few slices, all are kept as they were. When there are too many, neighbours on a CPU that are shorter than the
//! resolution are drawn together, and the resolution is made coarser until it fits; what is longer stays exact. Fed by
//! [`super::analysis`], written by [`super::html`].

use std::collections::BTreeMap;

/// A task on a CPU, from one switch to the next; or several that are drawn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) start: u64,
    pub(super) end: u64,
    /// The task; of several, the one that ran longest.
    pub(super) serial: u32,
    /// How long it had been ready before.
    wait: u64,
    /// Who woke it, and on which CPU that was.
    waker: Option<(u32, u32)>,
    latency: u64,
    /// Its state afterwards, and whether it was made to leave.
    state: u8,
    preempted: bool,
    /// How many are drawn together, how long they ran in all, and how long the longest.
    count: u32,
    busy: u64,
    longest: u64,
}

impl Slice {
    pub(super) fn begin(serial: u32, start: u64, wait: u64, waker: Option<(u32, u32)>, latency: u64) -> Self {
        let (end, state, preempted) = (start, 0, false);
        Self { start, end, serial, wait, waker, latency, state, preempted, count: 1, busy: 0, longest: 0 }
    }

    pub(super) fn end(self, end: u64, state: u8, preempted: bool) -> Self {
        let end = end.max(self.start);
        let busy = end - self.start;
        Self { end, state, preempted, busy, longest: busy, ..self }
    }

    /// The part of it that is not before `from`: in a damaged trace time may run backwards.
    fn not_before(self, from: u64) -> Self {
        let start = self.start.max(from);
        Self { start, end: self.end.max(start), ..self }
    }

    /// Takes the next one in, if both together are no longer than `resolution`.
    fn absorb(&mut self, next: &Self, resolution: u64) -> bool {
        if next.end.saturating_sub(self.start) > resolution {
            return false;
        }
        if next.longest > self.longest {
            (self.serial, self.longest) = (next.serial, next.longest);
        }
        self.end = next.end;
        self.count = self.count.saturating_add(next.count);
        self.busy = self.busy.saturating_add(next.busy);
        (self.wait, self.waker) = (0, None);
        true
    }

    fn write(&self, after: u64, out: &mut Vec<u8>) {
        let together = self.count > 1;
        let flags = self.state & 7
            | u8::from(self.preempted) << 3
            | u8::from(together) << 4
            | u8::from(self.waker.is_some()) << 5;
        varint(self.start.saturating_sub(after), out);
        varint(self.end - self.start, out);
        varint(self.serial.into(), out);
        out.push(flags);
        varint(self.wait, out);
        if together {
            varint(self.count.into(), out);
            varint(self.busy, out);
        }
        if let Some((waker, cpu)) = self.waker {
            varint(waker.into(), out);
            varint(cpu.into(), out);
            varint(self.latency, out);
        }
    }
}

/// Seven bits a byte, low ones first, the top bit set on all but the last.
fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Slices of all CPUs.
#[derive(Debug)]
pub(super) struct Timeline {
    lanes: BTreeMap<u32, Vec<Slice>>,
    total: usize,
    limit: usize,
    resolution: u64,
}

impl Timeline {
    /// Keeps at most `limit` slices.
    pub(super) fn new(limit: usize) -> Self {
        Self { lanes: BTreeMap::new(), total: 0, limit, resolution: 0 }
    }

    /// A CPU has left a task.
    pub(super) fn add(&mut self, cpu: u32, slice: Slice) {
        let lane = self.lanes.entry(cpu).or_default();
        let slice = slice.not_before(lane.last().map_or(0, |last| last.end));
        if let Some(last) = lane.last_mut()
            && last.absorb(&slice, self.resolution)
        {
            return;
        }
        lane.push(slice);
        self.total += 1;
        // Half of them go then, so that it is rare.
        if self.total > self.limit {
            self.coarsen();
        }
    }

    fn coarsen(&mut self) {
        self.resolution = (self.resolution * 2).max(1_000);
        for lane in self.lanes.values_mut() {
            lane.dedup_by(|next, kept| kept.absorb(next, self.resolution));
        }
        self.total = self.lanes.values().map(Vec::len).sum();
        if self.total > self.limit / 2 && self.resolution < u64::MAX / 4 {
            self.coarsen();
        }
    }

    /// What is shorter may be drawn together with its neighbours; 0: everything is exact.
    pub(super) fn resolution(&self) -> u64 {
        self.resolution
    }

    /// Each CPU's slices as bytes: docs of [`super::html`].
    pub(super) fn lanes(&self, begin: u64) -> impl Iterator<Item = (u32, usize, Vec<u8>)> + '_ {
        self.lanes.iter().map(move |(&cpu, lane)| {
            let (mut out, mut after) = (Vec::with_capacity(lane.len() * 10), begin);
            for slice in lane {
                slice.write(after, &mut out);
                after = slice.end;
            }
            (cpu, lane.len(), out)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_stays_small_and_loses_no_time(spans in prop::collection::vec((0_u64..5_000, 1_u64..50_000, 0_u32..5), 1..2_000), limit in 4_usize..64) {
            let mut timeline = Timeline::new(limit);
            let mut now = 0;
            for &(gap, len, serial) in &spans {
                now += gap;
                timeline.add(0, Slice::begin(serial, now, 0, None, 0).end(now + len, 1, false));
                now += len;
            }
            let lane = &timeline.lanes[&0];
            prop_assert!(lane.len() <= limit && timeline.total == lane.len());
            prop_assert_eq!(lane.iter().map(|s| s.busy).sum::<u64>(), spans.iter().map(|s| s.1).sum::<u64>());
            prop_assert_eq!(lane.iter().map(|s| u64::from(s.count)).sum::<u64>(), spans.len() as u64);
            prop_assert!(lane.windows(2).all(|w| w[0].end <= w[1].start));
            prop_assert!(lane.iter().all(|s| s.count == 1 || s.end - s.start <= timeline.resolution));
        }

        /// Times of a damaged trace come in any order: the lane stays small, in order, and can be written.
        #[test]
        fn it_survives_time_that_runs_backwards(
            spans in prop::collection::vec((any::<u64>(), any::<u64>(), 0_u32..5), 1..200),
            limit in 4_usize..64,
        ) {
            let mut timeline = Timeline::new(limit);
            for &(start, end, serial) in &spans {
                timeline.add(0, Slice::begin(serial, start, 0, None, 0).end(end, 1, false));
            }
            let lane = &timeline.lanes[&0];
            prop_assert!(lane.len() <= limit && timeline.total == lane.len());
            prop_assert!(lane.iter().all(|s| s.start <= s.end) && lane.windows(2).all(|w| w[0].end <= w[1].start));
            prop_assert_eq!(timeline.lanes(0).count(), 1);
        }
    }
}
