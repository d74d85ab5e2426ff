//! Stamps to nanoseconds: one linear map a stream, told with the records so that a file explains itself.

/// Which time a stamp tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockMap {
    /// A stamp ...
    pub tsc: u64,
    /// ... at which the trace's clock shows this.
    pub ns: u64,
    /// Ticks in a millisecond.
    pub khz: u32,
}

impl ClockMap {
    /// Stamps that are nanoseconds already.
    pub const NANOS: Self = Self { tsc: 0, ns: 0, khz: 1_000_000 };

    /// The trace's time at a stamp; stamps before time 0 are time 0.
    pub fn time_ns(&self, stamp: u64) -> u64 {
        let ticks = i128::from(stamp) - i128::from(self.tsc);
        let ns = i128::from(self.ns) + ticks * 1_000_000 / i128::from(self.khz.max(1));
        u64::try_from(ns.max(0)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_map_that_never_wraps() {
        let map = ClockMap { tsc: 1000, ns: 50, khz: 2_000_000 };
        assert_eq!(map.time_ns(1000), 50);
        assert_eq!(map.time_ns(3000), 1050);
        assert_eq!(map.time_ns(980), 40);
        assert_eq!(map.time_ns(0), 0);
        assert_eq!(ClockMap { khz: 0, ..map }.time_ns(u64::MAX), u64::MAX);
        assert_eq!(ClockMap::NANOS.time_ns(7), 7);
    }
}
