//! Ctrl-A on a terminal: Ctrl-A x ends the guest, Ctrl-A Ctrl-A sends one Ctrl-A, anything else is sent with its Ctrl-A.
//!
//! Fed by the event loop with what the user types; pure.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// Remembers whether the last byte was a Ctrl-A.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// Appends to `out` what the guest gets of `input`. `true`: the user wants the guest to end; the rest is dropped.
    #[must_use]
    pub fn filter(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in input {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, _) | (true, ESCAPE) => out.push(byte),
                (true, b'x' | b'X') => return true,
                (true, _) => out.extend([ESCAPE, byte]),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(inputs: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut filter, mut out) = (EscapeFilter::default(), Vec::new());
        let quit = inputs.iter().any(|input| filter.filter(input, &mut out));
        (out, quit)
    }

    #[test]
    fn ordinary_keys_pass() {
        assert_eq!(run(&[b"ls\r", b"\x03"]), (b"ls\r\x03".to_vec(), false));
    }

    #[test]
    fn ctrl_a_x_quits_also_across_reads() {
        assert_eq!(run(&[b"ab\x01xcd"]), (b"ab".to_vec(), true));
        assert_eq!(run(&[b"ab\x01", b"x"]), (b"ab".to_vec(), true));
    }

    #[test]
    fn ctrl_a_twice_sends_one() {
        assert_eq!(run(&[b"\x01\x01x"]), (b"\x01x".to_vec(), false));
        assert_eq!(run(&[b"\x01\x05"]), (b"\x01\x05".to_vec(), false));
    }
}
