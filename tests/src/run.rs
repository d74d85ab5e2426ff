//! One command, run with a hard limit, and what came of it.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing a test starts lives longer, whatever it does.
pub const HARD_LIMIT: Duration = Duration::from_secs(120);

/// A command with its input, environment and limit.
#[derive(Debug)]
pub struct Run {
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    stdin: Vec<u8>,
    limit: Duration,
    signal: Option<(String, i32)>,
}

impl Run {
    /// A run of `program` with nothing on its standard input.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            args: vec![program.as_ref().to_owned()],
            env: Vec::new(),
            dir: None,
            stdin: Vec::new(),
            limit: HARD_LIMIT,
            signal: None,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<T: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Where it runs, if not here.
    pub fn dir(mut self, path: &Path) -> Self {
        self.dir = Some(path.to_owned());
        self
    }

    /// What the command reads.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How long it may take.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends it a signal as soon as it has printed `text`.
    pub fn signal_at(mut self, text: &str, signal: i32) -> Self {
        self.signal = Some((text.into(), signal));
        self
    }

    /// The command as it would be typed.
    pub fn typed(&self) -> String {
        let mut text = String::new();
        if let Some(dir) = &self.dir {
            let _ = write!(text, "cd {} && ", quoted(dir.as_os_str()));
        }
        for (name, value) in &self.env {
            let _ = write!(text, "{}={} ", name.display(), quoted(value));
        }
        let words: Vec<_> = self.args.iter().map(|arg| quoted(arg)).collect();
        text.push_str(&words.join(" "));
        match self.stdin.len() {
            0 => text.push_str(" </dev/null"),
            size => {
                let _ = write!(text, "   # with {size} bytes on stdin");
            }
        }
        text
    }

    /// Runs it to its end or to its limit; at the limit the whole process group is killed.
    pub fn run(self) -> Outcome {
        let typed = self.typed();
        let start = Instant::now();
        let mut command = Command::new(&self.args[0]);
        command.current_dir(self.dir.as_deref().unwrap_or(Path::new(".")));
        command
            .args(&self.args[1..])
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        // Whoever runs the tests in the background or under nohup has these ignored, which a child inherits.
        // SAFETY: signal(2) is async-signal-safe, and SIG_DFL is a disposition of each of them.
        unsafe {
            command.pre_exec(|| {
                for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap_or_else(|e| panic!("could not start: {e}\n  {typed}"));

        let mut input = child.stdin.take().expect("piped");
        let bytes = self.stdin;
        // A program that stops reading early closes the pipe: its right.
        thread::spawn(move || drop(input.write_all(&bytes)));
        let stdout = collect(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));

        let signalled = self.signal.and_then(|(text, signal)| {
            stdout.wait_for(text.as_bytes(), self.limit).then_some(())?;
            // SAFETY: kill only takes numbers; the child is not yet waited for, so its id is its own.
            unsafe { libc::kill(i32::try_from(child.id()).ok()?, signal) };
            Some(Instant::now())
        });
        let (status, timed_out) = wait(&mut child, start + self.limit);
        let end = Instant::now();
        Outcome {
            typed,
            status,
            timed_out,
            elapsed: end - start,
            since_signal: signalled.map(|at| end - at),
            stdout: stdout.take(),
            stderr: String::from_utf8_lossy(&stderr.take()).into_owned(),
        }
    }
}

/// What a stream gave so far, and whether it has ended.
#[derive(Debug, Default)]
struct Stream {
    state: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

/// Reads a stream to its end beside everything else, so that no pipe fills up.
fn collect(mut stream: impl Read + Send + 'static) -> Arc<Stream> {
    let shared = Arc::new(Stream::default());
    let theirs = Arc::clone(&shared);
    thread::spawn(move || {
        let mut bytes = [0u8; 65536];
        loop {
            let size = stream.read(&mut bytes).unwrap_or(0);
            let mut state = theirs.lock();
            state.0.extend_from_slice(&bytes[..size]);
            state.1 = size == 0;
            theirs.changed.notify_all();
            if state.1 {
                return;
            }
        }
    });
    shared
}

impl Stream {
    fn lock(&self) -> MutexGuard<'_, (Vec<u8>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `text` has come. False: the stream ended without it, or the limit did.
    fn wait_for(&self, text: &[u8], limit: Duration) -> bool {
        let came = |bytes: &[u8]| bytes.windows(text.len()).any(|part| part == text);
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |state| !state.1 && !came(&state.0));
        came(&waited.unwrap_or_else(PoisonError::into_inner).0.0)
    }

    /// Everything, once the process has ended. A process that it left behind may hold the stream open: it is not waited for
    /// for long.
    fn take(&self) -> Vec<u8> {
        let waited = self.changed.wait_timeout_while(self.lock(), Duration::from_secs(2), |state| !state.1);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.0)
    }
}

fn wait(child: &mut Child, deadline: Instant) -> (ExitStatus, bool) {
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            return (status, false);
        }
        if Instant::now() >= deadline {
            let group = -i32::try_from(child.id()).expect("process ids are small");
            // SAFETY: kill only takes numbers; the group is the one that we made for this child, which is not yet reaped.
            unsafe { libc::kill(group, libc::SIGKILL) };
            return (child.wait().expect("our own child"), true);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+%@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The command, to be typed again.
    pub typed: String,
    /// The process's own status.
    pub status: ExitStatus,
    /// Whether it had to be killed at the limit.
    pub timed_out: bool,
    /// Wall time.
    pub elapsed: Duration,
    /// From the signal of [`Run::signal_at`], if it was sent, to the end.
    pub since_signal: Option<Duration>,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: String,
}

impl Outcome {
    /// The exit code as a shell tells it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the test with everything that is known about the run.
    #[track_caller]
    pub fn fail(&self, why: &str) -> ! {
        let ended =
            if self.timed_out { "killed at its time limit".to_owned() } else { format!("exit code {}", self.code()) };
        panic!(
            "{why}\nagain:  {}\n{ended} after {:.3} s\nstdout: {}\nstderr: {}",
            self.typed,
            self.elapsed.as_secs_f64(),
            shortened(&self.text()),
            shortened(&self.stderr)
        );
    }

    /// Fails unless the run ended by itself with this code.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        if self.timed_out || self.code() != code {
            self.fail(&format!("the exit code should be {code}"));
        }
        self
    }

    /// Fails unless `part` is in standard error, letter case aside.
    #[track_caller]
    pub fn expect_stderr(&self, part: &str) -> &Self {
        if !self.stderr.to_lowercase().contains(&part.to_lowercase()) {
            self.fail(&format!("stderr should tell '{part}'"));
        }
        self
    }

    /// Fails unless `part` is in standard output.
    #[track_caller]
    pub fn expect_stdout(&self, part: &str) -> &Self {
        if !self.text().contains(part) {
            self.fail(&format!("stdout should tell '{part}'"));
        }
        self
    }

    /// Fails unless standard error is one short line: what a user should see of a mistake of his.
    #[track_caller]
    pub fn expect_one_line_error(&self) -> &Self {
        let lines = self.stderr.trim_end().lines().count();
        if lines != 1 || self.stderr.len() > 400 {
            self.fail(&format!("the error should be one line, it is {lines}"));
        }
        self
    }

    /// Fails unless standard output is the other run's, byte for byte.
    #[track_caller]
    pub fn expect_same_output(&self, other: &Self) -> &Self {
        if self.stdout != other.stdout {
            let at = self.stdout.iter().zip(&other.stdout).take_while(|(a, b)| a == b).count();
            let line = self.stdout[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            self.fail(&format!(
                "stdout differs from the reference from line {line} (byte {at}) on\nreference: {}\n{}",
                other.typed,
                shortened(&other.text())
            ));
        }
        self
    }
}

/// Long output is told by its beginning and its end.
fn shortened(text: &str) -> String {
    const KEEP: usize = 3000;
    if text.len() <= 2 * KEEP {
        return text.to_owned();
    }
    let head: String = text.chars().take(KEEP).collect();
    let skip = text.chars().count().saturating_sub(KEEP);
    let tail: String = text.chars().skip(skip).collect();
    format!("{head}\n[... {} bytes in all ...]\n{tail}", text.len())
}
