//! A task's name: written by the task itself or through /proc, read by anybody without a lock, the crash report and the VMM included.

use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayString;
use vcpu_sched::taskview::NAME_BYTES;

/// At most 16 bytes of UTF-8, padded with zeroes. A reader beside a writer may see half of each name, never anything else.
pub struct TaskName([AtomicU64; 2]);

impl TaskName {
    /// The first 16 bytes of `name`, cut between characters.
    pub fn new(name: &str) -> Self {
        let this = Self([AtomicU64::new(0), AtomicU64::new(0)]);
        this.set(name);
        this
    }

    /// Another name.
    pub fn set(&self, name: &str) {
        let mut bytes = [0; NAME_BYTES];
        let len = name.floor_char_boundary(NAME_BYTES);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        let (words, _) = bytes.as_chunks::<8>();
        for (cell, word) in self.0.iter().zip(words) {
            // Relaxed: the words are shown, never acted upon.
            cell.store(u64::from_le_bytes(*word), Ordering::Relaxed);
        }
    }

    /// The name.
    pub fn get(&self) -> ArrayString<NAME_BYTES> {
        let mut bytes = [0; NAME_BYTES];
        for (chunk, cell) in bytes.chunks_exact_mut(8).zip(&self.0) {
            chunk.copy_from_slice(&cell.load(Ordering::Relaxed).to_le_bytes());
        }
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(NAME_BYTES);
        let valid = match core::str::from_utf8(&bytes[..end]) {
            Ok(name) => name,
            // Two halves of different names: what fits together.
            Err(e) => core::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(),
        };
        ArrayString::from(valid).unwrap_or_default()
    }
}
