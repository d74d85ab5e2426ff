//! What passes between a VMM and a process that wants to be the agent: the records that come with the descriptors.
//!
//! The VMM sends a [`Welcome`], with three descriptors if the process is welcome: the region's first part, which can't be written, its
//! second part, and the doorbell, an event descriptor that the guest rings. Then [`Kicks`], each with its event descriptors, until there is
//! one for each CPU. The process sends nothing. The VMM ends the connection when the guest ends; the process ends it when it leaves,
//! however it ends. Little-endian, like the region itself; the invariant: nothing here moves without another [`VERSION`].

use super::abi::VERSION;

/// First eight bytes of a [`Welcome`]: "TVDOOR\0\0".
pub const DOOR_MAGIC: u64 = u64::from_le_bytes(*b"TVDOOR\0\0");
/// Most descriptors that come with one [`Kicks`].
pub const MAX_KICKS: usize = 64;
/// A [`Welcome::state`]: it may decide.
pub const DOOR_WELCOME: u32 = 0;
/// A [`Welcome::state`]: another process does.
pub const DOOR_OCCUPIED: u32 = 1;

/// What a process gets first that connects.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// [`DOOR_MAGIC`].
    pub magic: u64,
    /// The region's version.
    pub version: u32,
    /// [`DOOR_WELCOME`] or [`DOOR_OCCUPIED`].
    pub state: u32,
    /// If welcome: CPUs, for each of which an event descriptor follows ([`Kicks`]).
    pub cpus: u32,
    /// If not: the process that decides.
    pub occupant: u32,
    /// Bytes of the region's first part: all that the guest and the host write.
    pub guest_bytes: u64,
    /// Bytes of its second part, from the agent's page to the end.
    pub agent_bytes: u64,
    /// 0.
    pub reserved: [u64; 3],
}

/// What follows until there is one for each CPU. With it come `count` event descriptors, in the order of the CPUs; writing to one (eight
/// bytes, a 1) kicks its CPU.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kicks {
    /// The CPU of the first one.
    pub first: u32,
    /// At most [`MAX_KICKS`].
    pub count: u32,
}

impl Welcome {
    /// Bytes of one.
    pub const BYTES: usize = size_of::<Self>();

    /// To a process that may decide.
    pub const fn to(cpus: u32, guest_bytes: u64, agent_bytes: u64) -> Self {
        let (state, occupant) = (DOOR_WELCOME, 0);
        Self { magic: DOOR_MAGIC, version: VERSION, state, cpus, occupant, guest_bytes, agent_bytes, reserved: [0; 3] }
    }

    /// To one that may not, as this process does.
    pub const fn occupied(occupant: u32) -> Self {
        Self { state: DOOR_OCCUPIED, occupant, ..Self::to(0, 0, 0) }
    }

    /// As it is sent.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let words = [
            self.magic,
            u64::from(self.version) | u64::from(self.state) << 32,
            u64::from(self.cpus) | u64::from(self.occupant) << 32,
            self.guest_bytes,
            self.agent_bytes,
        ];
        let mut bytes = [0; Self::BYTES];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    /// What was sent; `None`: by somebody else, or in another version.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        let (magic, [version_state, cpus_occupant]) = (next(), [next(), next()]);
        let welcome = Self {
            magic,
            version: version_state as u32,
            state: (version_state >> 32) as u32,
            cpus: cpus_occupant as u32,
            occupant: (cpus_occupant >> 32) as u32,
            guest_bytes: next(),
            agent_bytes: next(),
            reserved: [next(), next(), next()],
        };
        (magic == DOOR_MAGIC && welcome.version == VERSION).then_some(welcome)
    }
}

impl Kicks {
    /// Bytes of one.
    pub const BYTES: usize = size_of::<Self>();

    /// As it is sent.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        (u64::from(self.first) | u64::from(self.count) << 32).to_le_bytes()
    }

    /// What was sent.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let word = u64::from_le_bytes(bytes);
        Self { first: word as u32, count: (word >> 32) as u32 }
    }
}

const _: () = assert!(Welcome::BYTES == 64 && Kicks::BYTES == 8);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_is_read() {
        for sent in [Welcome::to(1024, 4096, 8192), Welcome::occupied(77)] {
            assert_eq!(Welcome::from_bytes(&sent.to_bytes()), Some(sent));
        }
        let kicks = Kicks { first: 64, count: 3 };
        assert_eq!(Kicks::from_bytes(kicks.to_bytes()), kicks);
    }

    #[test]
    fn somebody_else_s_words_are_none() {
        let mut bytes = Welcome::to(1, 2, 3).to_bytes();
        assert_eq!(bytes[..8], *b"TVDOOR\0\0");
        bytes[8] ^= 1;
        assert_eq!(Welcome::from_bytes(&bytes), None, "another version");
        assert_eq!(Welcome::from_bytes(&[0; Welcome::BYTES]), None);
    }
}
