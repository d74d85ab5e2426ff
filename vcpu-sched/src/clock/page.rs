//! The clock page: the [`ClockLine`] in force, and by how much each CPU's clock is ahead for programs, under a sequence lock.
//!
//! The guest kernel owns the page, fills it at boot and lists it in its directory
//! ([`EntryKind::Clock`](crate::directory::EntryKind::Clock)); from then on only the VMM writes it, with the vCPUs out of the guest or
//! before programs run, and sends every CPU its timer interrupt afterwards. Programs have the page mapped read-only: the vDSO
//! reads it by the offsets of [`offsets`]. Under a VMM that writes nothing, what the kernel wrote stays.
//!
//! It is one page by name only: the CPUs' offsets go on in two more. All fields are 64 bits wide and little-endian. A reader takes the sequence, which is odd during a change, then what it needs
//! and the counter, then the sequence again, and starts anew if the two differ. The host reads the page as hostile:
//! [`ClockPage::checked`].

use core::sync::atomic::{AtomicU64, Ordering, fence};

use super::line::{ClockLine, scale, told_scale};
use super::rate::Rate;
use super::scale::TscScale;
use crate::ids::{Khz, Nanos};

/// First eight bytes: "TVCLOCK\0".
pub const MAGIC: u64 = u64::from_le_bytes(*b"TVCLOCK\0");
/// Version of this layout. A reader refuses any other.
pub const VERSION: u64 = 2;
/// Its alignment.
pub const ALIGN: usize = 4096;
/// Its size: three pages, in one piece of memory.
pub const BYTES: usize = 3 * ALIGN;
/// CPUs whose clocks can be ahead: every one that there can be.
pub const MAX_SKEWED: usize = crate::cpumask::MAX_CPUS as usize;
/// Bit of [`ClockPage::flags`]: some CPU's skew isn't 0, so a reader must find out where it runs.
pub const SKEWED: u64 = 1;

/// The page. See the module's text for who may call what.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct ClockPage {
    magic: AtomicU64,
    version: AtomicU64,
    sequence: AtomicU64,
    flags: AtomicU64,
    base_ticks: AtomicU64,
    base_ns: AtomicU64,
    /// Multiplier, shift and their inverses: [`TscScale::parts`].
    scale: [AtomicU64; 4],
    /// Multiplier and shift from nanoseconds to ticks of the told frequency.
    told_scale: [AtomicU64; 2],
    wall: AtomicU64,
    /// kHz in the lower half: of the counter; in the upper: told.
    khz: AtomicU64,
    rate: AtomicU64,
    reserved: AtomicU64,
    /// Nanoseconds, signed.
    skew: [AtomicU64; MAX_SKEWED],
}

const _: () = assert!(size_of::<ClockPage>() == BYTES && align_of::<ClockPage>() == ALIGN);

/// Where the vDSO finds what it reads.
pub mod offsets {
    use super::ClockPage;
    use core::mem::offset_of;

    /// The sequence.
    pub const SEQUENCE: usize = offset_of!(ClockPage, sequence);
    /// Flags.
    pub const FLAGS: usize = offset_of!(ClockPage, flags);
    /// The counter at the base.
    pub const BASE_TICKS: usize = offset_of!(ClockPage, base_ticks);
    /// The time at the base.
    pub const BASE_NS: usize = offset_of!(ClockPage, base_ns);
    /// Ticks to nanoseconds: multiplier, ...
    pub const MULT: usize = offset_of!(ClockPage, scale);
    /// ... and shift.
    pub const SHIFT: usize = MULT + 8;
    /// Nanoseconds to ticks of the virtual counter: multiplier, ...
    pub const TOLD_MULT: usize = offset_of!(ClockPage, told_scale);
    /// ... and shift.
    pub const TOLD_SHIFT: usize = TOLD_MULT + 8;
    /// The wall clock at time 0.
    pub const WALL: usize = offset_of!(ClockPage, wall);
    /// The first CPU's skew; the others follow.
    pub const SKEW: usize = offset_of!(ClockPage, skew);
}

/// What is wrong with a guest's page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageError {
    /// It doesn't start with [`MAGIC`].
    Magic(u64),
    /// Another version.
    Version(u64),
    /// Parts that no clock has.
    Content,
    /// It changes all the time.
    Busy,
}

impl core::fmt::Display for PageError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "no clock page there: magic number {found:#018x}, expected {MAGIC:#018x}"),
            Self::Version(found) => write!(f, "clock page version {found}, this VMM knows {VERSION}"),
            Self::Content => f.write_str("the guest's clock page holds what no clock is"),
            Self::Busy => f.write_str("the guest's clock page is being changed"),
        }
    }
}

impl core::error::Error for PageError {}

// Relaxed, as all single accesses here: the sequence orders them.
fn get(from: &AtomicU64) -> u64 {
    from.load(Ordering::Relaxed)
}

fn put(to: &AtomicU64, value: u64) {
    to.store(value, Ordering::Relaxed);
}

impl ClockPage {
    /// All zero: no clock. [`now`](ClockPage::now) is 0.
    pub const fn new() -> Self {
        Self {
            magic: AtomicU64::new(0),
            version: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            flags: AtomicU64::new(0),
            base_ticks: AtomicU64::new(0),
            base_ns: AtomicU64::new(0),
            scale: [const { AtomicU64::new(0) }; 4],
            told_scale: [const { AtomicU64::new(0) }; 2],
            wall: AtomicU64::new(0),
            khz: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            skew: [const { AtomicU64::new(0) }; MAX_SKEWED],
        }
    }

    /// Runs `f` on a page that doesn't change meanwhile; `f` may run several times.
    #[inline(always)]
    fn steady<R>(&self, f: impl Fn(&Self) -> R) -> R {
        loop {
            // Acquire: what is read next is no older. The fence: and it is read before the second look.
            let before = self.sequence.load(Ordering::Acquire);
            let result = f(self);
            fence(Ordering::Acquire);
            if get(&self.sequence) == before && before.is_multiple_of(2) {
                return result;
            }
            core::hint::spin_loop();
        }
    }

    #[inline(always)]
    fn scale_now(&self) -> TscScale {
        TscScale::from_trusted_parts([0, 1, 2, 3].map(|i| get(&self.scale[i])))
    }

    /// The sequence: another one means that something has changed.
    #[inline(always)]
    pub fn sequence(&self) -> u64 {
        get(&self.sequence)
    }

    /// The time. `counter` reads the counter.
    #[inline]
    pub fn now(&self, counter: impl Fn() -> u64) -> Nanos {
        self.steady(|page| {
            let span = counter().saturating_sub(get(&page.base_ticks));
            // One half of the scale is enough: the loads of the other would not be optimised away.
            let there = TscScale::from_trusted_parts([get(&page.scale[0]), get(&page.scale[1]), 0, 0]);
            Nanos(get(&page.base_ns)) + there.to_ns(span)
        })
    }

    /// The tick at which the clock shows `time`, as things are now.
    #[inline]
    pub fn ticks_at(&self, time: Nanos) -> u64 {
        self.steady(|page| {
            let span = time - Nanos(get(&page.base_ns));
            let back = TscScale::from_trusted_parts([0, 0, get(&page.scale[2]), get(&page.scale[3])]);
            get(&page.base_ticks).saturating_add(back.to_ticks(span))
        })
    }

    /// Ticks to nanoseconds, as things are now.
    pub fn scale(&self) -> TscScale {
        self.steady(Self::scale_now)
    }

    /// The line and the sequence that it was read at, of a page that is the reader's own or its VMM's; `None` before there is one.
    pub fn line(&self) -> Option<(ClockLine, u64)> {
        self.steady(|page| Some((page.line_now(page.scale_now())?, get(&page.sequence))))
    }

    /// `None`: no rate.
    fn line_now(&self, scale: TscScale) -> Option<ClockLine> {
        Some(ClockLine {
            base_ticks: get(&self.base_ticks),
            base_ns: Nanos(get(&self.base_ns)),
            scale,
            rate: Rate::from_nanos(get(&self.rate)).ok()?,
            counter: self.counter(),
            told: self.told(),
            wall: self.wall(),
        })
    }

    /// The line, read by a host: checked, and after a bounded number of tries.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn checked(&self) -> Result<ClockLine, PageError> {
        const TRIES: u32 = 100;
        match (get(&self.magic), get(&self.version)) {
            (MAGIC, VERSION) => {}
            (MAGIC, version) => return Err(PageError::Version(version)),
            (magic, _) => return Err(PageError::Magic(magic)),
        }
        for _ in 0..TRIES {
            let before = self.sequence.load(Ordering::Acquire);
            let parts = [0, 1, 2, 3].map(|i| get(&self.scale[i]));
            let line = TscScale::from_parts(parts).and_then(|scale| self.line_now(scale));
            fence(Ordering::Acquire);
            if get(&self.sequence) == before && before.is_multiple_of(2) {
                let sound = |line: &ClockLine| scale(line.counter, line.rate) == Ok(line.scale);
                return line.filter(sound).ok_or(PageError::Content);
            }
        }
        Err(PageError::Busy)
    }

    /// Frequency of the counter.
    pub fn counter(&self) -> Khz {
        Khz(get(&self.khz) as u32)
    }

    /// Frequency that the guest is told.
    pub fn told(&self) -> Khz {
        Khz((get(&self.khz) >> 32) as u32)
    }

    /// The wall clock's value at time 0.
    #[inline]
    pub fn wall(&self) -> Nanos {
        Nanos(get(&self.wall))
    }

    /// By how much the clock that programs see on a CPU is ahead, in nanoseconds.
    #[inline]
    pub fn skew(&self, cpu: usize) -> i64 {
        if get(&self.flags) & SKEWED == 0 {
            return 0;
        }
        self.skew.get(cpu).map_or(0, |skew| get(skew) as i64)
    }

    /// Changes it. One writer at a time.
    fn change(&self, f: impl FnOnce(&Self)) {
        // Odd even if a guest has made it so.
        let odd = get(&self.sequence) | 1;
        put(&self.sequence, odd);
        // Release: whoever sees anything of what follows sees the odd number.
        fence(Ordering::Release);
        f(self);
        // Release: whoever sees the even number sees the change.
        self.sequence.store(odd.wrapping_add(1), Ordering::Release);
    }

    /// Puts a line in force. One writer at a time; no CPU may have read the counter behind the line's base by the old one.
    pub fn set_line(&self, line: &ClockLine) {
        self.change(|page| {
            put(&page.magic, MAGIC);
            put(&page.version, VERSION);
            put(&page.base_ticks, line.base_ticks);
            put(&page.base_ns, line.base_ns.0);
            for (to, part) in page.scale.iter().zip(line.scale.parts()) {
                put(to, part);
            }
            let told = told_scale(line.told).map_or([0, 0, 0, 0], TscScale::parts);
            for (to, part) in page.told_scale.iter().zip(told) {
                put(to, part);
            }
            put(&page.wall, line.wall.0);
            put(&page.khz, u64::from(line.told.0) << 32 | u64::from(line.counter.0));
            put(&page.rate, line.rate.nanos());
        });
    }

    /// Sets the CPUs' skews, in order; CPUs beyond them have none. One writer at a time.
    pub fn set_skews(&self, skews: &[i64]) {
        self.change(|page| {
            for (i, to) in page.skew.iter().enumerate() {
                put(to, skews.get(i).map_or(0, |skew| *skew as u64));
            }
            put(&page.flags, if skews.iter().any(|skew| *skew != 0) { SKEWED } else { 0 });
        });
    }
}

impl Default for ClockPage {
    fn default() -> Self {
        Self::new()
    }
}
