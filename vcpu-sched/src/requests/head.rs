//! What lies in a slot: its word, on a cache line of its own, the heads of request and answer, and the body of whichever there is.

use super::slot::SlotWord;

/// Offset of the [`SlotWord`].
pub const WORD_AT: u64 = 0;
/// Offset of the [`RequestHead`].
pub const REQUEST_AT: u64 = 64;
/// Offset of the [`AnswerHead`].
pub const ANSWER_AT: u64 = 128;
/// Offset of the request's body.
pub const BODY_AT: u64 = 192;
/// Size of each head.
pub const HEAD_BYTES: usize = 64;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct RequestHead {
    /// Which answer belongs to it. Never repeated.
    pub sequence: u64,
    /// A [`Kind`](super::message::Kind).
    pub kind: u32,
    /// Number of the task that is meant; 0 where none is.
    pub task: u32,
    /// Bytes of the body.
    pub len: u32,
    /// Zero.
    pub reserved: [u32; 11],
}

/// What has become of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct AnswerHead {
    /// The request's.
    pub sequence: u64,
    /// By kind of request; 0 if it was refused.
    pub value: u64,
    /// 0: done, else a [`Refusal`](super::message::Refusal).
    pub refusal: u32,
    /// Bytes of the answer's body, which takes the place of the request's.
    pub len: u32,
    /// Zero.
    pub reserved: [u32; 10],
}

const _: () = assert!(size_of::<RequestHead>() == HEAD_BYTES && size_of::<AnswerHead>() == HEAD_BYTES);
const _: () = assert!(size_of::<SlotWord>() == 4 || cfg!(loom));

fn words(bytes: &[u8; HEAD_BYTES]) -> [u32; HEAD_BYTES / 4] {
    let mut out = [0; HEAD_BYTES / 4];
    for (word, four) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*four);
    }
    out
}

fn bytes(words: &[u32]) -> [u8; HEAD_BYTES] {
    let mut out = [0; HEAD_BYTES];
    for (four, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *four = word.to_le_bytes();
    }
    out
}

const fn halves(n: u64) -> [u32; 2] {
    [n as u32, (n >> 32) as u32]
}

const fn whole(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

impl RequestHead {
    /// As bytes.
    pub fn to_bytes(&self) -> [u8; HEAD_BYTES] {
        let [low, high] = halves(self.sequence);
        bytes(&[low, high, self.kind, self.task, self.len])
    }

    /// From bytes; any are a head, though perhaps of a request that isn't one.
    pub fn from_bytes(from: &[u8; HEAD_BYTES]) -> Self {
        let [low, high, kind, task, len, ..] = words(from);
        Self { sequence: whole(low, high), kind, task, len, reserved: [0; 11] }
    }
}

impl AnswerHead {
    /// As bytes.
    pub fn to_bytes(&self) -> [u8; HEAD_BYTES] {
        let [[low, high], [value_low, value_high]] = [halves(self.sequence), halves(self.value)];
        bytes(&[low, high, value_low, value_high, self.refusal, self.len])
    }

    /// From bytes.
    pub fn from_bytes(from: &[u8; HEAD_BYTES]) -> Self {
        let [low, high, value_low, value_high, refusal, len, ..] = words(from);
        Self { sequence: whole(low, high), value: whole(value_low, value_high), refusal, len, reserved: [0; 10] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_were_written() {
        let request = RequestHead { sequence: 1 << 40 | 5, kind: 3, task: 7, len: 9, reserved: [0; 11] };
        assert_eq!(RequestHead::from_bytes(&request.to_bytes()), request);
        let answer = AnswerHead { sequence: u64::MAX - 1, value: 1 << 33 | 2, refusal: 4, len: 77, reserved: [0; 10] };
        assert_eq!(AnswerHead::from_bytes(&answer.to_bytes()), answer);
    }
}
