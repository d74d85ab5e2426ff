//! A guest with a debugger's port: gdb in batch mode, whose exit code counts failed checks, and a client that sends packets as
//! they are.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::guest::taskvisor;
use crate::{Outcome, Run, TempDir, prereq};

/// Nothing waits longer than this for the guest or a client.
const LIMIT: Duration = Duration::from_secs(100);
/// Where the scripts are.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/gdb");
/// What users load into gdb.
const COMMANDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/gdb/taskvisor.py");

/// A guest that waits for its debugger.
#[derive(Debug)]
pub struct Debugged {
    dir: TempDir,
    program: PathBuf,
    vcpus: u32,
    guest: Option<JoinHandle<Outcome>>,
}

impl Debugged {
    /// Starts `tests/gdb/target.c` with these arguments. `None`: a tool is missing, and tests that need it are left out.
    pub fn start(vcpus: u32, arguments: &[&str]) -> Option<Self> {
        Self::of("target.c", vcpus, arguments)
    }

    /// Starts another program of `tests/gdb`.
    pub fn of(source: &str, vcpus: u32, arguments: &[&str]) -> Option<Self> {
        if !prereq::kvm_or_left_out() {
            return None;
        }
        let compiler = prereq::system_program(&["cc"])?;
        let dir = TempDir::new();
        let program = dir.path().join("target");
        let compiled = Command::new(compiler)
            .args(["-g", "-O1", "-static", "-pthread", "-o"])
            .arg(&program)
            .arg(Path::new(SCRIPTS).join(source))
            .status();
        assert!(compiled.expect("cc runs").success(), "{source} compiles");
        let socket = dir.path().join("gdb");
        let mut address = OsString::from("unix:");
        address.push(&socket);
        let run = Run::new(taskvisor())
            .args(["run", "--wait-gdb", "--vcpus", &vcpus.to_string(), "--gdb"])
            .arg(address)
            .args(["--", "./target"])
            .args(arguments)
            // As users name their programs: not from the root.
            .dir(dir.path())
            .limit(LIMIT);
        let guest = std::thread::spawn(move || run.run());
        let deadline = Instant::now() + LIMIT;
        while !listens(&socket) && !guest.is_finished() {
            assert!(Instant::now() < deadline, "no debugger's port");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Self { dir, program, vcpus, guest: Some(guest) })
    }

    /// Runs a script of tests/gdb in gdb, with the program's symbols or, without `symbols`, those that the guest offers.
    pub fn gdb(&self, script: &str, symbols: bool) {
        self.gdb_knowing(script, symbols, &[]);
    }

    /// The same, with variables of the environment for the script.
    pub fn gdb_knowing(&self, script: &str, symbols: bool, known: &[(&str, &str)]) {
        let Some(gdb) = prereq::system_program(&["gdb"]) else { return };
        let script_at = |name: &str| Path::new(SCRIPTS).join(name);
        let mut run = Run::new(gdb)
            .args(["-q", "-nx", "-batch", "-x"])
            .arg(script_at("common.py"))
            .arg("-x")
            .arg(script_at(script))
            .env("TASKVISOR_GDB", self.socket())
            .env("TASKVISOR_PROGRAM", &self.program)
            .env("TASKVISOR_VCPUS", self.vcpus.to_string())
            .env("TASKVISOR_COMMANDS", COMMANDS)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .limit(LIMIT);
        for (name, value) in known {
            run = run.env(name, value);
        }
        if symbols {
            run = run.arg(&self.program);
        }
        let outcome = run.run();
        println!("{}", outcome.text());
        outcome.expect_code(0);
    }

    /// A client of its own.
    pub fn client(&self) -> Client {
        Client::connect(&self.socket())
    }

    /// An address of the program, by symbol.
    pub fn symbol(&self, name: &str) -> u64 {
        let listed = Command::new("nm").arg(&self.program).output().expect("nm runs");
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let line = text.lines().find(|line| line.split(' ').nth(2) == Some(name)).expect("the symbol is there");
        u64::from_str_radix(&line[..16], 16).expect("an address")
    }

    /// The program's file.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The port.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("gdb")
    }

    /// Waits for the guest's end.
    pub fn end(mut self) -> Outcome {
        self.guest.take().expect("waited for once").join().expect("the guest's thread ends")
    }
}

/// Whether somebody waits for connections there: the flag __SO_ACCEPTCON in Linux's list of sockets. Connecting would be a debugger.
fn listens(socket: &Path) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = socket.to_string_lossy();
    sockets.lines().any(|line| line.ends_with(&*path) && line.split_whitespace().nth(3) == Some("00010000"))
}

/// A debugger that says exactly what it is told to.
#[derive(Debug)]
pub struct Client(UnixStream);

impl Client {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the port answers");
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
        Self(stream)
    }

    /// Says that nothing more will come, and still reads.
    pub fn close_half(&mut self) {
        self.0.shutdown(std::net::Shutdown::Write).expect("a socket can be half closed");
    }

    /// Goes, without a word.
    pub fn close(&mut self) {
        self.0.shutdown(std::net::Shutdown::Both).expect("a socket can be closed");
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the port takes bytes");
    }

    /// Sends a packet.
    pub fn send(&mut self, data: &str) {
        let sum = data.bytes().fold(0u8, u8::wrapping_add);
        self.raw(format!("${data}#{sum:02x}").as_bytes());
    }

    /// One byte; `None`: the other side has closed.
    pub fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        match self.0.read(&mut byte) {
            Ok(read) => (read == 1).then_some(byte[0]),
            // It was closed with our last acknowledgement unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("the port doesn't answer: {error}"),
        }
    }

    /// The next packet's data, acknowledged; acknowledgements before it are skipped. `None`: the other side has closed.
    pub fn packet(&mut self) -> Option<String> {
        while self.byte()? != b'$' {}
        let mut data = Vec::new();
        loop {
            match self.byte()? {
                b'#' => break,
                byte => data.push(byte),
            }
        }
        self.byte()?;
        self.byte()?;
        // It may be gone already, after a last packet.
        let _ = self.0.write_all(b"+");
        Some(String::from_utf8_lossy(&data).into_owned())
    }

    /// Sends a packet and gives its answer.
    pub fn ask(&mut self, data: &str) -> String {
        self.send(data);
        self.packet().expect("an answer")
    }
}
