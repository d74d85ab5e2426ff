//! The kernel command line: `key=value` words (docs/abi.md). Copied at boot, read-only afterwards.

use crate::sync::BootCell;

use super::read;

/// Longest command line (Linux: COMMAND_LINE_SIZE 2048; ours may carry many virtio devices).
const MAX: usize = 4096;

struct Line {
    bytes: [u8; MAX],
    len: usize,
}

static LINE: BootCell<Line> = BootCell::new();

/// Copies the line from where the loader put it.
pub fn init(at: u64) {
    let mut line = Line { bytes: [0; MAX], len: 0 };
    if at != 0 {
        while line.len < MAX {
            let b: u8 = read(at + line.len as u64);
            if b == 0 {
                break;
            }
            line.bytes[line.len] = b;
            line.len += 1;
        }
    }
    LINE.set(line);
}

/// All words.
pub fn words() -> impl Iterator<Item = &'static str> {
    let text = LINE.get().map_or("", |l| core::str::from_utf8(&l.bytes[..l.len]).unwrap_or(""));
    text.split_ascii_whitespace()
}

/// The last value of a key.
pub fn get(key: &str) -> Option<&'static str> {
    values(key).last()
}

/// All values of a key.
pub fn values<'k>(key: &'k str) -> impl Iterator<Item = &'static str> + use<'k> {
    words().filter_map(move |w| w.split_once('=').filter(|(k, _)| *k == key).map(|(_, v)| v))
}

/// Whether a switch is on.
pub fn flag(key: &str) -> bool {
    matches!(get(key), Some("1" | "on" | "yes"))
}
