//! The line discipline: what a terminal makes of the bytes that are typed and written. Pure: no locks, no kernel types.
//!
//! Semantics are Linux's n_tty. `input` takes what is typed, `take` gives what a reader gets, `output` turns what a program writes
//! into what the screen needs.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Bits of `c_iflag`, `c_oflag`, `c_lflag`. Linux include/uapi/asm-generic/termbits.h.
pub mod bits {
    /// Drop the eighth bit.
    pub const ISTRIP: u32 = 0o40;
    /// Newline becomes carriage return.
    pub const INLCR: u32 = 0o100;
    /// Carriage return is dropped.
    pub const IGNCR: u32 = 0o200;
    /// Carriage return becomes newline.
    pub const ICRNL: u32 = 0o400;
    /// ^S and ^Q stop and start output.
    pub const IXON: u32 = 0o2000;
    /// Any key starts output.
    pub const IXANY: u32 = 0o4000;
    /// Process output.
    pub const OPOST: u32 = 0o1;
    /// Newline becomes carriage return, newline.
    pub const ONLCR: u32 = 0o4;
    /// Carriage return becomes newline.
    pub const OCRNL: u32 = 0o10;
    /// Newline stands for carriage return too.
    pub const ONLRET: u32 = 0o40;
    /// Special keys send signals.
    pub const ISIG: u32 = 0o1;
    /// Line by line.
    pub const ICANON: u32 = 0o2;
    /// Echo.
    pub const ECHO: u32 = 0o10;
    /// The erase key erases on the screen.
    pub const ECHOE: u32 = 0o20;
    /// The kill key starts a new line.
    pub const ECHOK: u32 = 0o40;
    /// Echo newline even without `ECHO`.
    pub const ECHONL: u32 = 0o100;
    /// A signal key does not flush.
    pub const NOFLSH: u32 = 0o200;
    /// Background writers get SIGTTOU.
    pub const TOSTOP: u32 = 0o400;
    /// Control characters are echoed as ^X.
    pub const ECHOCTL: u32 = 0o1000;
    /// The kill key erases the line on the screen.
    pub const ECHOKE: u32 = 0o4000;
    /// Word erase, literal next.
    pub const IEXTEN: u32 = 0o100000;
}

/// Indices in `c_cc`.
pub mod cc {
    /// Signals.
    pub const INTR: usize = 0;
    /// See `INTR`.
    pub const QUIT: usize = 1;
    /// One character back.
    pub const ERASE: usize = 2;
    /// The line back.
    pub const KILL: usize = 3;
    /// End of file.
    pub const EOF: usize = 4;
    /// Tenths of a second (raw).
    pub const TIME: usize = 5;
    /// Least bytes (raw).
    pub const MIN: usize = 6;
    /// Starts output.
    pub const START: usize = 8;
    /// Stops output.
    pub const STOP: usize = 9;
    /// Stop signal.
    pub const SUSP: usize = 10;
    /// Ends a line too.
    pub const EOL: usize = 11;
    /// Shows the line again.
    pub const REPRINT: usize = 12;
    /// One word back.
    pub const WERASE: usize = 14;
    /// The next key means itself.
    pub const LNEXT: usize = 15;
    /// Ends a line too.
    pub const EOL2: usize = 16;
}

/// Most bytes kept for readers (N_TTY_BUF_SIZE).
const BUFFER: usize = 4096;

/// `struct termios` as the kernel has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Termios {
    /// Input modes.
    pub iflag: u32,
    /// Output modes.
    pub oflag: u32,
    /// Control modes.
    pub cflag: u32,
    /// Local modes.
    pub lflag: u32,
    /// Line discipline.
    pub line: u8,
    /// Special characters.
    pub cc: [u8; 19],
}

impl Termios {
    /// What a new terminal has (Linux: tty_std_termios).
    pub const fn new() -> Self {
        Self {
            iflag: bits::ICRNL | bits::IXON,
            oflag: bits::OPOST | bits::ONLCR,
            // B38400 | CS8 | CREAD | HUPCL
            cflag: 0o17 | 0o60 | 0o200 | 0o2000,
            lflag: bits::ISIG
                | bits::ICANON
                | bits::ECHO
                | bits::ECHOE
                | bits::ECHOK
                | bits::ECHOCTL
                | bits::ECHOKE
                | bits::IEXTEN,
            line: 0,
            cc: [3, 0x1c, 0x7f, 0x15, 4, 0, 1, 0, 0x11, 0x13, 0x1a, 0, 0x12, 0x0f, 0x17, 0x16, 0, 0, 0],
        }
    }
}

/// What a key asks for beside its byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySignal {
    /// SIGINT.
    Interrupt,
    /// SIGQUIT.
    Quit,
    /// SIGTSTP.
    Suspend,
}

/// The state of one terminal.
pub struct Discipline {
    /// Modes.
    pub termios: Termios,
    /// The line being typed.
    edit: Vec<u8>,
    /// What readers can have.
    ready: VecDeque<u8>,
    /// Lengths of the lines in `ready`; an empty one is an end of file.
    lines: VecDeque<usize>,
    literal: bool,
    /// ^S was typed.
    pub stopped: bool,
}

impl Discipline {
    /// A new terminal.
    pub const fn new() -> Self {
        Self {
            termios: Termios::new(),
            edit: Vec::new(),
            ready: VecDeque::new(),
            lines: VecDeque::new(),
            literal: false,
            stopped: false,
        }
    }

    fn local(&self, bit: u32) -> bool {
        self.termios.lflag & bit != 0
    }

    /// Whether reading goes line by line.
    pub fn canonical(&self) -> bool {
        self.local(bits::ICANON)
    }

    fn is(&self, byte: u8, which: usize) -> bool {
        byte != 0 && self.termios.cc[which] == byte
    }

    /// Room for typed bytes; 0: leave them with the device.
    pub fn room(&self) -> usize {
        BUFFER.saturating_sub(self.ready.len())
    }

    /// A byte was typed. What the screen shall show is appended to `echo`.
    pub fn input(&mut self, byte: u8, echo: &mut Vec<u8>) -> Option<KeySignal> {
        let iflag = self.termios.iflag;
        let byte = if iflag & bits::ISTRIP != 0 { byte & 0x7f } else { byte };
        if self.literal {
            self.literal = false;
            self.keep(byte, echo);
            return None;
        }
        if iflag & bits::IXON != 0 {
            if self.is(byte, cc::START) {
                self.stopped = false;
                return None;
            }
            if self.is(byte, cc::STOP) {
                self.stopped = true;
                return None;
            }
        }
        if iflag & bits::IXANY != 0 {
            self.stopped = false;
        }
        if self.local(bits::ISIG) {
            let signal =
                [(cc::INTR, KeySignal::Interrupt), (cc::QUIT, KeySignal::Quit), (cc::SUSP, KeySignal::Suspend)];
            if let Some((_, s)) = signal.iter().find(|(c, _)| self.is(byte, *c)) {
                self.stopped = false;
                if !self.local(bits::NOFLSH) {
                    self.flush_input();
                }
                self.echo(byte, echo);
                return Some(*s);
            }
        }
        let byte = match byte {
            b'\r' if iflag & bits::IGNCR != 0 => return None,
            b'\r' if iflag & bits::ICRNL != 0 => b'\n',
            b'\n' if iflag & bits::INLCR != 0 => b'\r',
            b => b,
        };
        if self.canonical() {
            self.edit_key(byte, echo);
        } else {
            self.keep(byte, echo);
        }
        None
    }

    /// A key while lines are edited.
    fn edit_key(&mut self, byte: u8, echo: &mut Vec<u8>) {
        let extended = self.local(bits::IEXTEN);
        if self.is(byte, cc::ERASE) {
            self.erase_one(echo);
        } else if self.is(byte, cc::KILL) {
            self.kill(echo);
        } else if extended && self.is(byte, cc::WERASE) {
            self.erase_word(echo);
        } else if extended && self.is(byte, cc::LNEXT) {
            self.literal = true;
            if self.local(bits::ECHO) && self.local(bits::ECHOCTL) {
                echo.extend_from_slice(b"^\x08");
            }
        } else if extended && self.is(byte, cc::REPRINT) && self.local(bits::ECHO) {
            self.echo(byte, echo);
            self.screen(b'\n', echo);
            for b in core::mem::take(&mut self.edit) {
                self.echo(b, echo);
                self.edit.push(b);
            }
        } else if self.is(byte, cc::EOF) {
            self.end_line();
        } else if byte == b'\n' || self.is(byte, cc::EOL) || self.is(byte, cc::EOL2) {
            if self.local(bits::ECHO) || self.local(bits::ECHONL) && byte == b'\n' {
                self.screen(byte, echo);
            }
            self.edit.push(byte);
            self.end_line();
        } else {
            self.keep(byte, echo);
        }
    }

    fn keep(&mut self, byte: u8, echo: &mut Vec<u8>) {
        // One place stays free for the end of the line.
        if self.ready.len() + self.edit.len() + 1 >= BUFFER {
            if self.canonical() {
                echo.push(7);
            }
            return;
        }
        if self.local(bits::ECHO) {
            self.echo(byte, echo);
        }
        if self.canonical() {
            self.edit.push(byte);
        } else {
            self.ready.push_back(byte);
        }
    }

    fn end_line(&mut self) {
        self.lines.push_back(self.edit.len());
        self.ready.extend(self.edit.drain(..));
    }

    fn erase_one(&mut self, echo: &mut Vec<u8>) {
        // A character of UTF-8 is one key.
        while let Some(b) = self.edit.pop() {
            if b & 0xc0 != 0x80 {
                self.erase_on_screen(b, echo);
                break;
            }
        }
    }

    fn erase_word(&mut self, echo: &mut Vec<u8>) {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
        let mut seen = false;
        while let Some(&b) = self.edit.last() {
            if seen && !is_word(b) {
                break;
            }
            seen |= is_word(b);
            self.erase_one(echo);
        }
    }

    fn kill(&mut self, echo: &mut Vec<u8>) {
        if self.local(bits::ECHOKE) && self.local(bits::ECHOE) {
            while !self.edit.is_empty() {
                self.erase_one(echo);
            }
        } else {
            self.edit.clear();
            let kill = self.termios.cc[cc::KILL];
            if self.local(bits::ECHO) {
                self.echo(kill, echo);
                if self.local(bits::ECHOK) {
                    self.screen(b'\n', echo);
                }
            }
        }
    }

    fn erase_on_screen(&self, byte: u8, echo: &mut Vec<u8>) {
        if !self.local(bits::ECHO) {
            return;
        }
        if !self.local(bits::ECHOE) {
            self.echo(self.termios.cc[cc::ERASE], echo);
            return;
        }
        let wide = self.local(bits::ECHOCTL) && (byte < 0x20 && byte != b'\t' || byte == 0x7f);
        for _ in 0..if wide { 2 } else { 1 } {
            echo.extend_from_slice(b"\x08 \x08");
        }
    }

    /// Shows a typed byte.
    fn echo(&self, byte: u8, echo: &mut Vec<u8>) {
        if !self.local(bits::ECHO) {
            return;
        }
        if self.local(bits::ECHOCTL) && (byte < 0x20 && byte != b'\t' && byte != b'\n' || byte == 0x7f) {
            echo.extend_from_slice(&[b'^', byte ^ 0x40]);
        } else {
            self.screen(byte, echo);
        }
    }

    fn screen(&self, byte: u8, out: &mut Vec<u8>) {
        self.output(&[byte], out);
    }

    /// Appends to `out` what the screen needs for bytes that a program writes.
    pub fn output(&self, bytes: &[u8], out: &mut Vec<u8>) {
        let oflag = self.termios.oflag;
        if oflag & bits::OPOST == 0 {
            return out.extend_from_slice(bytes);
        }
        for &b in bytes {
            match b {
                b'\n' if oflag & bits::ONLCR != 0 => out.extend_from_slice(b"\r\n"),
                b'\r' if oflag & bits::OCRNL != 0 => out.push(b'\n'),
                b'\r' if oflag & bits::ONLRET != 0 => {}
                b => out.push(b),
            }
        }
    }

    /// Bytes that a reader could have (FIONREAD).
    pub fn available(&self) -> usize {
        if self.canonical() { self.lines.front().copied().unwrap_or(0) } else { self.ready.len() }
    }

    /// Whether a reader that wants at least `least` raw bytes has something, be it the end of file.
    pub fn readable(&self, least: usize) -> bool {
        if self.canonical() { !self.lines.is_empty() } else { self.ready.len() >= least.max(1) }
    }

    /// Gives a reader what it gets: at most one line, or what there is. An end of file is 0 bytes.
    pub fn take(&mut self, buf: &mut [u8]) -> usize {
        let n = self.available().min(buf.len());
        for (slot, b) in buf.iter_mut().zip(self.ready.drain(..n)) {
            *slot = b;
        }
        if self.canonical() {
            match self.lines.front_mut() {
                Some(left) if *left > n => *left -= n,
                _ => {
                    self.lines.pop_front();
                }
            }
        }
        n
    }

    /// Replaces the modes.
    pub fn set_termios(&mut self, new: Termios) {
        let was = self.canonical();
        self.termios = new;
        if was && !self.canonical() {
            self.ready.extend(self.edit.drain(..));
            self.lines.clear();
        } else if !was && self.canonical() && !self.ready.is_empty() {
            self.lines.push_back(self.ready.len());
        }
    }

    /// Forgets what was typed and not read.
    pub fn flush_input(&mut self) {
        self.edit.clear();
        self.ready.clear();
        self.lines.clear();
        self.literal = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(d: &mut Discipline, keys: &[u8]) -> (Vec<u8>, Vec<KeySignal>) {
        let mut echo = Vec::new();
        let signals = keys.iter().filter_map(|k| d.input(*k, &mut echo)).collect();
        (echo, signals)
    }

    fn read(d: &mut Discipline, n: usize) -> Vec<u8> {
        let mut buf = vec![0; n];
        let n = d.take(&mut buf);
        buf.truncate(n);
        buf
    }

    #[test]
    fn a_line_comes_with_its_end() {
        let mut d = Discipline::new();
        let (echo, _) = typed(&mut d, b"ab");
        assert_eq!(echo, b"ab");
        assert!(!d.readable(1));
        let (echo, _) = typed(&mut d, b"\r");
        assert_eq!(echo, b"\r\n");
        assert_eq!(read(&mut d, 2), b"ab");
        assert_eq!(read(&mut d, 9), b"\n");
        assert!(!d.readable(1));
    }

    #[test]
    fn keys_edit_the_line() {
        let mut d = Discipline::new();
        let (echo, _) = typed(&mut d, b"one twx\x7fo\x17three\n");
        assert_eq!(echo, b"one twx\x08 \x08o\x08 \x08\x08 \x08\x08 \x08three\r\n");
        assert_eq!(read(&mut d, 99), b"one three\n");
        typed(&mut d, b"gone\x15kept\n");
        assert_eq!(read(&mut d, 99), b"kept\n");
    }

    #[test]
    fn end_of_file_is_an_empty_read() {
        let mut d = Discipline::new();
        typed(&mut d, b"ab\x04\x04");
        assert_eq!(read(&mut d, 99), b"ab");
        assert!(d.readable(1));
        assert_eq!(read(&mut d, 99), b"");
        assert!(!d.readable(1));
    }

    #[test]
    fn signal_keys_flush() {
        let mut d = Discipline::new();
        let (echo, signals) = typed(&mut d, b"abc\x03");
        assert_eq!((echo.as_slice(), signals.as_slice()), (&b"abc^C"[..], &[KeySignal::Interrupt][..]));
        typed(&mut d, b"d\n");
        assert_eq!(read(&mut d, 9), b"d\n");
    }

    #[test]
    fn raw_mode_gives_bytes_at_once() {
        let mut d = Discipline::new();
        typed(&mut d, b"x");
        let mut t = d.termios;
        t.lflag &= !(bits::ICANON | bits::ECHO | bits::ISIG);
        d.set_termios(t);
        let (echo, signals) = typed(&mut d, b"\x03y");
        assert!(echo.is_empty() && signals.is_empty());
        assert!(d.readable(3) && !d.readable(4));
        assert_eq!(read(&mut d, 9), b"x\x03y");
    }

    #[test]
    fn output_gets_carriage_returns() {
        let mut out = Vec::new();
        Discipline::new().output(b"a\nb", &mut out);
        assert_eq!(out, b"a\r\nb");
    }

    #[test]
    fn a_full_buffer_drops_and_rings() {
        let mut d = Discipline::new();
        let mut echo = Vec::new();
        for _ in 0..5000 {
            d.input(b'x', &mut echo);
        }
        d.input(b'\n', &mut echo);
        assert!(echo.contains(&7));
        assert_eq!(read(&mut d, 9999).len(), BUFFER);
    }
}
