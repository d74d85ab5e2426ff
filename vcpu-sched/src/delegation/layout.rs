//! Where everything lies in the region, and the one way to get at its words.
//!
//! [`Layout`] is computed by whoever creates a region, and *read and checked once* by everybody else; after that each side
//! works with its own copy, so a header that changes later moves nothing. The invariant: every index that a method of
//! [`Region`] computes from a layout lies in its words, because [`Region::new`] has compared the two and the methods check
//! the number of the thing that they are asked for.

use core::fmt;
use core::mem::offset_of;

use super::abi::{self, Header};
use super::bell::Bell;
use crate::cpumask::CpuMask;
use crate::ids::CpuId;
use crate::sync::{AtomicU64, Ordering};

/// How many of everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// CPU numbers, 1 to [`abi::MAX_CPUS`].
    pub cpus: u32,
    /// Status words, 1 to [`abi::MAX_TASKS`].
    pub tasks: u32,
    /// Channels, 1 to [`abi::MAX_CHANNELS`].
    pub channels: u32,
    /// Messages of each, a power of two from 2.
    pub channel_len: u32,
    /// Entries of each pick-next ring, a power of two from 2.
    pub pick_len: u32,
}

impl Sizes {
    /// Those of our kernel's enclaves. Whoever gives the kernel the memory for one knows by them how much it takes, and where the
    /// agent's part begins.
    pub const fn of_kernel(cpus: u32) -> Self {
        Self { cpus, tasks: TASKS, channels: CHANNELS, channel_len: CHANNEL_LEN, pick_len: PICK_LEN }
    }
}

/// Tasks that can be in it at a time; those beyond run as ordinary ones.
const TASKS: u32 = 2048;
/// The default channel, and one that tasks can be moved to.
const CHANNELS: u32 = 2;
/// Messages of each: what may happen while the host runs something else in the agent's place.
const CHANNEL_LEN: u32 = 1024;
/// Tasks that can be left ready for a CPU.
const PICK_LEN: u32 = 16;

/// Why a region isn't used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayoutError {
    /// It doesn't start with [`abi::MAGIC`].
    Magic(u64),
    /// Another version.
    Version(u32),
    /// A number that can't be: which, and its value.
    Size(&'static str, u32),
    /// A section's offset isn't where the sizes put it.
    Offset(&'static str, u64),
    /// The memory is shorter than the layout: bytes there, bytes needed.
    Short(u64, u64),
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => {
                write!(f, "no delegation region: magic number {found:#018x}, expected {:#018x}", abi::MAGIC)
            }
            Self::Version(found) => write!(f, "delegation ABI {found}; this side knows {}", abi::VERSION),
            Self::Size(what, found) => write!(f, "a delegation region can't have {found} {what}"),
            Self::Offset(what, found) => write!(f, "section '{what}' can't be at {found:#x}"),
            Self::Short(there, needed) => write!(f, "a delegation region of {needed} bytes in {there} bytes of memory"),
        }
    }
}

impl core::error::Error for LayoutError {}

/// Section offsets in words, with the sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    sizes: Sizes,
    guest: usize,
    cpu: usize,
    task: usize,
    channel: usize,
    host: usize,
    agent: usize,
    tail: usize,
    transaction: usize,
    pick: usize,
    words: usize,
}

/// Words of a cache line, of a transaction, of a message.
const LINE: usize = 8;
const STATUS: usize = 4;
const PAGE: usize = abi::SECTION_ALIGN as usize / 8;

impl Layout {
    /// Lays out a region.
    ///
    /// # Errors
    /// [`LayoutError::Size`].
    pub fn new(sizes: Sizes) -> Result<Self, LayoutError> {
        let within =
            |what, n: u32, max| if n == 0 || n > max { Err(LayoutError::Size(what, n)) } else { Ok(n as usize) };
        let cpus = within("CPUs", sizes.cpus, abi::MAX_CPUS)?;
        let tasks = within("tasks", sizes.tasks, abi::MAX_TASKS)?;
        let channels = within("channels", sizes.channels, abi::MAX_CHANNELS)?;
        for (what, n) in [("messages in a channel", sizes.channel_len), ("entries in a ring", sizes.pick_len)] {
            within(what, n, abi::MAX_RING)?;
            if !n.is_power_of_two() || n < 2 {
                return Err(LayoutError::Size(what, n));
            }
        }
        let mut at = PAGE;
        let mut section = |words: usize| {
            let start = at;
            at += words.next_multiple_of(PAGE);
            start
        };
        Ok(Self {
            sizes,
            guest: section(PAGE),
            cpu: section(cpus * LINE),
            task: section(tasks * STATUS),
            channel: section(channels * (1 + sizes.channel_len as usize) * LINE),
            host: section(cpus * LINE),
            agent: section(PAGE),
            tail: section(channels * LINE),
            transaction: section(cpus * LINE),
            pick: section(cpus * (LINE + 2 * sizes.pick_len as usize)),
            words: at,
        })
    }

    /// The sizes.
    pub const fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// 64-bit words of the whole region.
    pub const fn words(&self) -> usize {
        self.words
    }

    /// 64-bit words before the agent's part, which goes from there to the end. What lies before is the guest's and the host's to write.
    pub const fn agent_words(&self) -> usize {
        self.agent
    }

    /// Section offsets in the order of [`Header`], with their names.
    fn offsets(&self) -> [(&'static str, usize, usize); 10] {
        [
            ("bytes", offset_of!(Header, bytes), self.words),
            ("guest", offset_of!(Header, guest), self.guest),
            ("cpu", offset_of!(Header, cpu), self.cpu),
            ("task", offset_of!(Header, task), self.task),
            ("channel", offset_of!(Header, channel), self.channel),
            ("host", offset_of!(Header, host), self.host),
            ("agent", offset_of!(Header, agent), self.agent),
            ("tail", offset_of!(Header, tail), self.tail),
            ("transaction", offset_of!(Header, transaction), self.transaction),
            ("pick", offset_of!(Header, pick), self.pick),
        ]
    }
}

/// Two 32-bit fields as the word that holds them.
pub(super) const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// The fields of [`pair`].
pub(super) const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// Shared memory with its layout. Cheap to copy; both sides, and every thread of them, have their own.
#[derive(Clone, Copy, Debug)]
pub struct Region<'m> {
    words: &'m [AtomicU64],
    layout: Layout,
}

impl<'m> Region<'m> {
    /// From memory that is known to be laid out so.
    ///
    /// # Errors
    /// [`LayoutError::Short`].
    pub fn new(words: &'m [AtomicU64], layout: Layout) -> Result<Self, LayoutError> {
        if words.len() < layout.words {
            return Err(LayoutError::Short(words.len() as u64 * 8, layout.words as u64 * 8));
        }
        Ok(Self { words, layout })
    }

    /// From memory that somebody else laid out: reads its header once, and believes only what adds up.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn open(words: &'m [AtomicU64]) -> Result<Self, LayoutError> {
        let header = words.get(..PAGE).ok_or(LayoutError::Short(words.len() as u64 * 8, abi::SECTION_ALIGN))?;
        // Acquire: the magic number is written last, so what was laid out is seen.
        let magic = header[0].load(Ordering::Acquire);
        if magic != abi::MAGIC {
            return Err(LayoutError::Magic(magic));
        }
        let field = |at: usize| header[at / 8].load(Ordering::Relaxed);
        let (version, _) = halves(field(offset_of!(Header, version)));
        if version != abi::VERSION {
            return Err(LayoutError::Version(version));
        }
        let (cpus, tasks) = halves(field(offset_of!(Header, cpus)));
        let (channels, channel_len) = halves(field(offset_of!(Header, channels)));
        let (pick_len, _) = halves(field(offset_of!(Header, pick_len)));
        let layout = Layout::new(Sizes { cpus, tasks, channels, channel_len, pick_len })?;
        for (what, at, expected) in layout.offsets() {
            let found = field(at);
            if found != expected as u64 * 8 {
                return Err(LayoutError::Offset(what, found));
            }
        }
        Self::new(words, layout)
    }

    /// Writes the header. The rest of the memory must be zero.
    pub fn publish_header(&self, enclave: u32, cpus: &CpuMask) {
        let sizes = &self.layout.sizes;
        let put = |at: usize, value: u64| self.words[at / 8].store(value, Ordering::Relaxed);
        put(offset_of!(Header, version), pair(abi::VERSION, enclave));
        put(offset_of!(Header, cpus), pair(sizes.cpus, sizes.tasks));
        put(offset_of!(Header, channels), pair(sizes.channels, sizes.channel_len));
        put(offset_of!(Header, pick_len), pair(sizes.pick_len, 0));
        for (_, at, words) in self.layout.offsets() {
            put(at, words as u64 * 8);
        }
        for word in 0..abi::CPU_SET_WORDS {
            let bits =
                (0..64_u32).filter(|bit| cpus.test(CpuId(word as u32 * 64 + bit))).fold(0, |set, bit| set | 1 << bit);
            put(offset_of!(Header, cpu_set) + word * 8, bits);
        }
        // Release: who finds the magic number finds the rest.
        self.words[0].store(abi::MAGIC, Ordering::Release);
    }

    /// The enclave's CPUs as the header has them, those beyond the layout left out.
    pub fn cpu_set(&self) -> CpuMask {
        let mut set = CpuMask::empty();
        for word in 0..abi::CPU_SET_WORDS {
            let bits = self.words[offset_of!(Header, cpu_set) / 8 + word].load(Ordering::Relaxed);
            let cpus = (0..64).filter(|bit| bits >> bit & 1 != 0).map(|bit| word as u32 * 64 + bit);
            cpus.filter(|&cpu| cpu < self.layout.sizes.cpus).for_each(|cpu| set.set(CpuId(cpu)));
        }
        set
    }

    /// The layout that both sides agreed on.
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The sizes.
    pub const fn sizes(&self) -> &'_ Sizes {
        &self.layout.sizes
    }

    fn slice(&self, start: usize, len: usize) -> &'m [AtomicU64] {
        &self.words[start..start + len]
    }

    fn nth(&self, section: usize, n: u32, count: u32, len: usize) -> Option<&'m [AtomicU64]> {
        (n < count).then(|| self.slice(section + n as usize * len, len))
    }

    /// [`abi::GuestPage`].
    pub fn guest_page(&self) -> &'m [AtomicU64] {
        self.slice(self.layout.guest, LINE)
    }

    /// [`abi::AgentPage`].
    pub fn agent_page(&self) -> &'m [AtomicU64] {
        self.slice(self.layout.agent, LINE)
    }

    /// The agent's doorbell.
    pub fn bell(&self) -> Bell<'m> {
        Bell::new(&self.agent_page()[offset_of!(abi::AgentPage, bell) / 8])
    }

    /// [`abi::CpuWord`] of a CPU.
    pub fn cpu_word(&self, cpu: CpuId) -> Option<&'m [AtomicU64]> {
        self.nth(self.layout.cpu, cpu.0, self.layout.sizes.cpus, LINE)
    }

    /// [`abi::HostWord`] of a CPU.
    pub fn host_word(&self, cpu: CpuId) -> Option<&'m [AtomicU64]> {
        self.nth(self.layout.host, cpu.0, self.layout.sizes.cpus, LINE)
    }

    /// [`abi::StatusWord`] number `slot`.
    pub fn status_word(&self, slot: u32) -> Option<&'m [AtomicU64]> {
        self.nth(self.layout.task, slot, self.layout.sizes.tasks, STATUS)
    }

    /// [`abi::Transaction`] of a CPU.
    pub fn transaction(&self, cpu: CpuId) -> Option<&'m [AtomicU64]> {
        self.nth(self.layout.transaction, cpu.0, self.layout.sizes.cpus, LINE)
    }

    /// The word that counts a channel's lost messages, the messages, and the consumer's tail.
    pub fn channel(&self, channel: u32) -> Option<ChannelMemory<'m>> {
        let sizes = &self.layout.sizes;
        let all = self.nth(self.layout.channel, channel, sizes.channels, (1 + sizes.channel_len as usize) * LINE)?;
        let tail = self.nth(self.layout.tail, channel, sizes.channels, LINE)?;
        let (head, slots) = all.split_at(LINE);
        Some(ChannelMemory { overflow: &head[0], tail: &tail[0], slots: slots.as_chunks().0 })
    }

    /// The head and the entries of a CPU's pick-next ring.
    pub fn pick_ring(&self, cpu: CpuId) -> Option<(&'m AtomicU64, &'m [[AtomicU64; 2]])> {
        let sizes = &self.layout.sizes;
        let all = self.nth(self.layout.pick, cpu.0, sizes.cpus, LINE + 2 * sizes.pick_len as usize)?;
        let (head, entries) = all.split_at(LINE);
        Some((&head[0], entries.as_chunks().0))
    }
}

/// The memory of one channel.
#[derive(Clone, Copy, Debug)]
pub struct ChannelMemory<'m> {
    /// Messages lost.
    pub overflow: &'m AtomicU64,
    /// Messages taken; the consumer's.
    pub tail: &'m AtomicU64,
    /// The ring; its length is a power of two.
    pub slots: &'m [[AtomicU64; LINE]],
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::vec::Vec;

    const SIZES: Sizes = Sizes { cpus: 3, tasks: 5, channels: 2, channel_len: 4, pick_len: 2 };

    fn memory(words: usize) -> Vec<AtomicU64> {
        (0..words).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn what_is_published_is_opened() {
        let layout = Layout::new(SIZES).expect("sizes");
        let words = memory(layout.words());
        assert!(matches!(Region::open(&words), Err(LayoutError::Magic(0))));
        let mut cpus = CpuMask::full(2);
        cpus.set(CpuId(700));
        Region::new(&words, layout).expect("long enough").publish_header(7, &cpus);
        let opened = Region::open(&words).expect("published");
        assert_eq!((*opened.layout(), opened.cpu_set()), (layout, CpuMask::full(2)), "CPU 700 has no place here");
        assert!(matches!(Region::open(&words[..words.len() - 1]), Err(LayoutError::Short(..))));
    }

    #[test]
    fn each_thing_has_words_of_its_own_and_what_is_not_there_has_none() {
        let layout = Layout::new(SIZES).expect("sizes");
        let words = memory(layout.words());
        let region = Region::new(&words, layout).expect("long enough");
        let mut parts = Vec::from([region.guest_page(), region.agent_page()]);
        for n in 0..3 {
            parts.extend(
                [region.cpu_word(CpuId(n)), region.host_word(CpuId(n)), region.transaction(CpuId(n))]
                    .into_iter()
                    .flatten(),
            );
        }
        parts.extend((0..5).filter_map(|slot| region.status_word(slot)));
        assert_eq!(parts.len(), 2 + 9 + 5);
        for (n, part) in parts.iter().enumerate() {
            part.iter().for_each(|word| assert_eq!(word.swap(n as u64 + 1, Ordering::Relaxed), 0, "part {n} overlaps"));
        }
        for n in 0..2 {
            let channel = region.channel(n).expect("two channels");
            assert_eq!((channel.slots.len(), channel.overflow.load(Ordering::Relaxed)), (4, 0));
        }
        assert_eq!(region.pick_ring(CpuId(2)).map(|(_, entries)| entries.len()), Some(2));
        assert!(region.cpu_word(CpuId(3)).is_none() && region.status_word(5).is_none() && region.channel(2).is_none());
        assert!(region.pick_ring(CpuId(u32::MAX)).is_none());
    }

    #[test]
    fn sizes_that_cannot_be_are_refused_with_their_name() {
        let cases = [
            (Sizes { cpus: 0, ..SIZES }, LayoutError::Size("CPUs", 0)),
            (Sizes { cpus: 1025, ..SIZES }, LayoutError::Size("CPUs", 1025)),
            (Sizes { tasks: u32::MAX, ..SIZES }, LayoutError::Size("tasks", u32::MAX)),
            (Sizes { channels: 0, ..SIZES }, LayoutError::Size("channels", 0)),
            (Sizes { channel_len: 3, ..SIZES }, LayoutError::Size("messages in a channel", 3)),
            (Sizes { pick_len: 1, ..SIZES }, LayoutError::Size("entries in a ring", 1)),
        ];
        for (sizes, expected) in cases {
            assert_eq!(Layout::new(sizes), Err(expected));
        }
        let largest = Sizes { cpus: 1024, tasks: 1 << 20, channels: 1024, channel_len: 1 << 20, pick_len: 1 << 20 };
        assert!(Layout::new(largest).is_ok(), "no overflow on the way");
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        let layout = Layout::new(SIZES).expect("sizes");
        let words = memory(layout.words());
        Region::new(&words, layout).expect("long enough").publish_header(7, &CpuMask::full(3));
        for at in 0..15 {
            let good = words[at].load(Ordering::Relaxed);
            for bit in 0..64 {
                words[at].store(good ^ 1 << bit, Ordering::Relaxed);
                if let Ok(region) = Region::open(&words) {
                    // Fewer of something, in the same sections: smaller, but nothing lies outside.
                    assert_eq!(region.layout().offsets(), layout.offsets(), "word {at}, bit {bit}");
                }
            }
            words[at].store(good, Ordering::Relaxed);
        }
    }
}
