//! The start list, `taskvisor.toml` (docs/abi.md): the part of TOML that it needs, and no more.
//!
//! Understood: `[[program]]`, `key = value` with basic ("...") and literal ('...') strings on one line and arrays of them over
//! any number of lines, comments. Everything else is an error that names its line. Pure: no kernel types.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// One `[[program]]`.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path in the archive.
    pub path: String,
    /// Arguments, the first one included.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: Option<String>,
}

/// Line and reason.
pub struct SyntaxError(pub usize, pub String);

struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Reader<'a> {
    fn fail<T>(&self, why: &str) -> Result<T, SyntaxError> {
        Err(SyntaxError(self.line, why.into()))
    }

    fn take(&mut self, n: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(n);
        self.rest = rest;
        taken
    }

    /// Skips blanks; with `lines` comments and line ends too.
    fn skip(&mut self, lines: bool) {
        loop {
            match self.rest.as_bytes().first() {
                Some(b' ' | b'\t' | b'\r') => {}
                Some(b'\n') if lines => self.line += 1,
                Some(b'#') if lines => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.take(end);
                    continue;
                }
                _ => return,
            }
            self.take(1);
        }
    }

    fn accept(&mut self, token: &str) -> bool {
        let found = self.rest.starts_with(token);
        if found {
            self.take(token.len());
        }
        found
    }

    /// Nothing but a comment may follow on the line.
    fn end_of_line(&mut self) -> Result<(), SyntaxError> {
        self.skip(false);
        match self.rest.as_bytes().first() {
            None | Some(b'\n' | b'#') => Ok(()),
            _ => self.fail("unexpected text at the end of the line"),
        }
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        if self.rest.starts_with("\"\"\"") || self.rest.starts_with("'''") {
            return self.fail("strings over several lines are not supported here");
        }
        if self.accept("'") {
            let end = self.rest.find(['\'', '\n']).unwrap_or(self.rest.len());
            let text = self.take(end);
            return if self.accept("'") { Ok(text.into()) } else { self.fail("string without its end") };
        }
        if !self.accept("\"") {
            return self.fail("expected a string");
        }
        let mut out = String::new();
        loop {
            let end = self.rest.find(['"', '\\', '\n']).unwrap_or(self.rest.len());
            out.push_str(self.take(end));
            if self.accept("\"") {
                return Ok(out);
            }
            if !self.accept("\\") {
                return self.fail("string without its end");
            }
            out.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Result<char, SyntaxError> {
        let Some(c) = self.rest.chars().next() else { return self.fail("string without its end") };
        self.take(c.len_utf8());
        let digits = match c {
            'b' => return Ok('\u{8}'),
            't' => return Ok('\t'),
            'n' => return Ok('\n'),
            'f' => return Ok('\u{c}'),
            'r' => return Ok('\r'),
            'e' => return Ok('\u{1b}'),
            '"' | '\\' => return Ok(c),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return self.fail("unknown escape in a string"),
        };
        let value = self.rest.get(..digits).and_then(|d| u32::from_str_radix(d, 16).ok()).and_then(char::from_u32);
        let Some(value) = value else { return self.fail("bad character number in a string") };
        self.take(digits);
        Ok(value)
    }

    fn strings(&mut self) -> Result<Vec<String>, SyntaxError> {
        if !self.accept("[") {
            return self.fail("expected an array of strings");
        }
        let mut out = Vec::new();
        loop {
            self.skip(true);
            if self.accept("]") {
                return Ok(out);
            }
            out.push(self.string()?);
            self.skip(true);
            if !self.accept(",") && !self.rest.starts_with(']') {
                return self.fail("expected `,` or `]`");
            }
        }
    }
}

/// Reads a start list.
///
/// # Errors
/// The first thing that isn't understood.
pub fn parse(text: &str) -> Result<Vec<Entry>, SyntaxError> {
    let mut r = Reader { rest: text, line: 1 };
    let mut list: Vec<Entry> = Vec::new();
    loop {
        r.skip(true);
        if r.rest.is_empty() {
            break;
        }
        if r.accept("[[program]]") {
            list.push(Entry::default());
            r.end_of_line()?;
            continue;
        }
        let end = r.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').unwrap_or(r.rest.len());
        let key = r.take(end);
        r.skip(false);
        if key.is_empty() || !r.accept("=") {
            return r.fail("expected [[program]] or `key = value`");
        }
        r.skip(false);
        let Some(entry) = list.last_mut() else { return r.fail("a key before the first [[program]]") };
        match key {
            "path" => entry.path = r.string()?,
            "args" => entry.args = r.strings()?,
            "env" => entry.env = r.strings()?,
            "cwd" => entry.cwd = Some(r.string()?),
            other => return r.fail(&format!("unknown key `{other}` (known: path, args, env, cwd)")),
        }
        r.end_of_line()?;
    }
    if let Some(e) = list.iter_mut().find(|e| e.path.is_empty()) {
        return r.fail(&format!("a [[program]] without path (args {:?})", e.args));
    }
    if list.is_empty() {
        return r.fail("no [[program]]");
    }
    Ok(list)
}
