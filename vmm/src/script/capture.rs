//! What a guest prints, read beside the script: kept up to a bound, and waited for.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Bytes that are kept of each stream; what comes later is read and forgotten, so that the guest isn't held up.
const MOST: usize = 8 << 20;

#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    ended: bool,
}

/// One stream.
#[derive(Debug, Clone, Default)]
pub struct Capture(Arc<(Mutex<Text>, Condvar)>);

/// What came of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It was printed.
    Yes,
    /// The stream has ended without it.
    Ended,
    /// Not in time.
    Late,
}

impl Capture {
    /// Reads a stream to its end, on a thread of its own.
    pub fn start(mut stream: impl Read + Send + 'static) -> Self {
        let capture = Self::default();
        let kept = capture.clone();
        thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            loop {
                // An error is an end: there is no more to come.
                let n = stream.read(&mut buffer).unwrap_or(0);
                let (text, changed) = &*kept.0;
                let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
                let room = MOST.saturating_sub(text.bytes.len());
                text.bytes.extend_from_slice(&buffer[..n.min(room)]);
                text.ended = n == 0;
                changed.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        capture
    }

    /// All of it so far.
    pub fn text(&self) -> String {
        let text = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text.bytes).into_owned()
    }

    /// Waits until the stream has ended, `deadline` at most.
    pub fn wait_end(&self, deadline: Instant) -> Seen {
        self.wait(deadline, |_| false)
    }

    /// Waits until it holds `wanted`.
    pub fn wait_for(&self, wanted: &[u8], deadline: Instant) -> Seen {
        let mut looked = 0;
        self.wait(deadline, |bytes| {
            // What was looked at needs no second look, but for a piece that `wanted` may have begun in.
            let from = looked;
            looked = bytes.len().saturating_sub(wanted.len());
            wanted.is_empty() || bytes[from..].windows(wanted.len()).any(|window| window == wanted)
        })
    }

    fn wait(&self, deadline: Instant, mut seen: impl FnMut(&[u8]) -> bool) -> Seen {
        let (text, changed) = &*self.0;
        let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if seen(&text.bytes) {
                return Seen::Yes;
            }
            if text.ended {
                return Seen::Ended;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Seen::Late;
            }
            (text, _) = changed.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_printed_is_found_across_pieces() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let capture = Capture::start(reader);
        let far = Instant::now() + Duration::from_secs(60);
        for piece in ["one rea", "dy two"] {
            std::io::Write::write_all(&mut writer, piece.as_bytes()).unwrap();
        }
        assert_eq!(capture.wait_for(b"ready", far), Seen::Yes);
        assert_eq!(capture.wait_for(b"three", Instant::now()), Seen::Late);
        drop(writer);
        assert_eq!(capture.wait_for(b"three", far), Seen::Ended);
        assert_eq!((capture.wait_end(far), capture.text().as_str()), (Seen::Ended, "one ready two"));
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let capture = Capture::start(Cursor::new(vec![b'x'; MOST + 5]));
        capture.wait_end(Instant::now() + Duration::from_secs(60));
        assert_eq!(capture.text().len(), MOST);
    }
}
