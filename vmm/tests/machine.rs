//! The binary on real KVM with kernels of a few bytes, made here: exits, reports, streams, signals, the terminal.
//!
//! Needs /dev/kvm; without it each test says that it was left out. Programs and our own kernel are tested in tests/.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const BASE: u64 = 0x10_0000;
/// Only a hang takes that long. How quick an end is, `make bench` measures.
const SOON: Duration = Duration::from_secs(30);

/// A PVH kernel: an ELF whose single segment is `code`, entered in 32-bit protected mode.
fn kernel(code: &[u8]) -> Vec<u8> {
    let mut elf = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, version 1
    put(24, &BASE.to_le_bytes());
    put(32, &64u64.to_le_bytes()); // program headers
    put(52, &[64, 0, 56, 0, 2, 0, 64, 0]); // their size and number
    for (at, kind, offset, size) in [(64, 1u32, 0x200u64, code.len() as u64), (120, 4, 0x100, 24)] {
        put(at, &kind.to_le_bytes());
        for (field, value) in [offset, BASE, BASE, size, size, 4].into_iter().enumerate() {
            put(at + 8 + 8 * field, &value.to_le_bytes());
        }
    }
    put(0x100, &[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0]); // XEN_ELFNOTE_PHYS32_ENTRY
    put(0x10c, b"Xen\0");
    put(0x110, &BASE.to_le_bytes());
    elf.extend(code);
    elf
}

/// mov dx, port; then mov al, byte; out dx, al for each byte.
fn print(port: u16, text: &str) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    let mut code = vec![0x66, 0xba, low, high];
    code.extend(text.bytes().flat_map(|byte| [0xb0, byte, 0xee]));
    code
}

/// mov eax, value; out 0xf4, eax; hlt for ever.
fn exit(value: u32) -> Vec<u8> {
    [&[0xb8][..], &value.to_le_bytes(), &[0xe7, 0xf4, 0xf4, 0xeb, 0xfd]].concat()
}

/// jmp to itself.
const SPIN: [u8; 2] = [0xeb, 0xfe];
/// Reads COM1 and writes it back until a 'q' comes.
const ECHO: [u8; 33] = [
    0x66, 0xba, 0xfd, 0x03, // 0: mov dx, 0x3fd
    0xec, // 4: in al, dx
    0xa8, 0x01, // test al, 1
    0x74, 0xfb, // jz 4
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0xee, // out dx, al
    0x3c, b'q', // cmp al, 'q'
    0x75, 0xed, // jne 0
    0x31, 0xc0, // xor eax, eax
    0xe7, 0xf4, // out 0xf4, eax
    0xf4, 0xeb, 0xfd, // hlt; jmp
    0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
];

struct Machine {
    dir: TempDir,
}

impl Machine {
    /// `None` without KVM.
    fn new(code: &[u8]) -> Option<Self> {
        if File::options().read(true).write(true).open("/dev/kvm").is_err() {
            eprintln!("left out: no access to /dev/kvm");
            return None;
        }
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("kernel.elf"), kernel(code)).unwrap();
        Some(Self { dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("kernel.elf")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskvisor"));
        command.arg("run").arg("--kernel").arg(self.path()).args(args).stdin(Stdio::null());
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
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code().unwrap_or_else(|| -status.signal().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[test]
fn serial_ports_and_debug_exit() {
    for (value, code) in [(0, 0), (7, 7), (0x10b, 139), (0x200, 123), (0x302, 1), (0x47f, 127), (0x999, 125)] {
        let code_bytes = [print(0x3f8, "out\n"), print(0x2f8, "report\npartial"), exit(value)].concat();
        let Some(machine) = Machine::new(&code_bytes) else { return };
        let output = machine.run(&[]);
        assert_eq!(output.status.code(), Some(code), "{value:#x}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "out\n");
        assert!(text(&output.stderr).starts_with("report\npartial"));
    }
}

#[test]
fn string_output_keeps_every_byte() {
    // mov esi, BASE + 0x20; mov ecx, 5; mov dx, 0x3f8; cld; rep outsb
    let mut code = vec![0xbe, 0x20, 0, 0x10, 0, 0xb9, 5, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xfc, 0xf3, 0x6e];
    code.extend(exit(0));
    code.resize(0x20, 0x90);
    code.extend(b"hello");
    let Some(machine) = Machine::new(&code) else { return };
    assert_eq!(text(&machine.run(&[]).stdout), "hello");
}

#[test]
fn the_start_info_holds_what_was_asked_for() {
    // mov esi, [ebx + 24] (command line); mov ecx, 9; mov dx, 0x3f8; cld; rep outsb
    let mut code = vec![0x8b, 0x73, 0x18, 0xb9, 9, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xfc, 0xf3, 0x6e];
    // al = number of memory map entries; out 0xf4
    code.extend([0x8b, 0x43, 0x30, 0xe7, 0xf4, 0xf4, 0xeb, 0xfd]);
    let Some(machine) = Machine::new(&code) else { return };
    let output = machine.run(&["--cmdline", "key=value", "--memory", "5G"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("key=value".into(), Some(4)));
}

#[test]
fn resets_end_a_foreign_kernel_in_peace() {
    // mov al, 0xfe; out 0x64, al
    let Some(machine) = Machine::new(&[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd]) else { return };
    assert_eq!(machine.run(&["--timeout", "5s"]).status.code(), Some(0));
    // mov dx, 0xcf9; mov al, 6; out dx, al
    let Some(machine) = Machine::new(&[0x66, 0xba, 0xf9, 0x0c, 0xb0, 6, 0xee, 0xf4, 0xeb, 0xfd]) else { return };
    assert_eq!(machine.run(&["--timeout", "5s"]).status.code(), Some(0));
}

#[test]
fn a_triple_fault_ends_in_a_report() {
    let Some(machine) = Machine::new(&[0x90, 0x90, 0x0f, 0x0b]) else { return };
    let output = machine.run(&["--vcpus", "2", "--timeout", "5s"]);
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125));
    for part in ["vCPU 0", "triple fault", "RIP 0x0000000000100002", "0f 0b", "cr0 00000011", "rbx 0000000000006000"] {
        assert!(report.contains(part), "{part} is missing in:\n{report}");
    }
}

#[test]
fn an_instruction_that_kvm_refuses_ends_in_a_report() {
    // popcnt eax, eax; then an ordinary end for hosts that know it.
    let Some(machine) = Machine::new(&[&[0xf3, 0x0f, 0xb8, 0xc0][..], &exit(0)].concat()) else { return };
    let output = machine.run(&["--timeout", "5s"]);
    let report = text(&output.stderr);
    match output.status.code() {
        Some(0) => eprintln!("left out: ring 0 is not interpreted here"),
        code => {
            assert_eq!(code, Some(125));
            assert!(report.contains("suberror 1") && report.contains("f3 0f b8 c0"), "{report}");
            assert!(report.contains("taskvisor doctor"), "{report}");
        }
    }
}

#[test]
fn unclaimed_addresses_do_no_harm() {
    // mov dword [0xd0800000], eax; mov eax, [0xd0800000]; in al, 0x70; cmp eax, -1; jne +7; exit 0 | exit 1
    let access = [0xa3, 0, 0, 0x80, 0xd0, 0xa1, 0, 0, 0x80, 0xd0, 0xe4, 0x70, 0x83, 0xf8, 0xff, 0x75, 0x0a];
    let Some(machine) = Machine::new(&[&access[..], &exit(0), &exit(1)].concat()) else { return };
    assert_eq!(machine.run(&["--timeout", "5s"]).status.code(), Some(0));
}

#[test]
fn the_timeout_is_kept_and_told() {
    for code in [&SPIN[..], &[0xf4, 0xeb, 0xfd]] {
        let Some(machine) = Machine::new(code) else { return };
        let output = machine.run(&["--timeout", "300ms", "--vcpus", "4"]);
        assert_eq!(output.status.code(), Some(124));
        assert!(text(&output.stderr).contains("--timeout"));
    }
}

#[test]
fn signals_end_the_machine() {
    let Some(machine) = Machine::new(&[&print(0x3f8, "up")[..], &SPIN].concat()) else { return };
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let mut child = machine.command(&["--timeout", "20s"]).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
        // SAFETY: the child has not been waited for, so its id is its own.
        unsafe { libc::kill(child.id() as i32, signal) };
        assert_eq!(wait(&mut child, SOON), Some(128 + signal));
    }
}

#[test]
fn a_reader_that_does_not_read_holds_nothing_up() {
    // mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp back
    let Some(machine) = Machine::new(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd]) else { return };
    let start = Instant::now();
    let mut child = machine.command(&["--timeout", "1500ms"]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(wait(&mut child, SOON), Some(124));
    assert!(start.elapsed() >= Duration::from_millis(1500));
}

#[test]
fn input_comes_from_pipes_and_files() {
    let Some(machine) = Machine::new(&ECHO) else { return };
    let long = "0123456789abcdef".repeat(300) + "q";
    let file = machine.dir.path().join("input");
    std::fs::write(&file, &long).unwrap();
    let output = machine.command(&["--timeout", "20s"]).stdin(File::open(&file).unwrap()).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), long.clone()));

    let mut child =
        machine.command(&["--timeout", "20s"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(long.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), long));
}

#[test]
fn statistics_are_lines_on_stderr() {
    let Some(machine) = Machine::new(&[&[0xb0, 1, 0xe6, 0x80][..], &exit(3)].concat()) else { return };
    let output = machine.run(&["--stats", "--vcpus", "2"]);
    let stats = text(&output.stderr);
    for part in ["stats: kernel_entry ms=", "stats: exits vcpu=0 total=", "stats: exits vcpu=1 ", "guest_touched_kib="]
    {
        assert!(stats.contains(part), "{part} is missing in:\n{stats}");
    }
}

/// A terminal and its settings.
struct Terminal {
    master: File,
    slave: File,
}

impl Terminal {
    fn new() -> Self {
        let (mut master, mut slave) = (0, 0);
        // SAFETY: two descriptors are returned; name, settings and size are not wanted.
        let result =
            unsafe { libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), std::ptr::null()) };
        assert_eq!(result, 0);
        // SAFETY: both are new and owned by nobody else.
        unsafe { Self { master: File::from_raw_fd(master), slave: File::from_raw_fd(slave) } }
    }

    fn flags(&self) -> (u32, u32, u32, u32) {
        use std::os::fd::AsRawFd;
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the call fills the structure, which its result is checked for.
        let settings = unsafe {
            assert_eq!(libc::tcgetattr(self.slave.as_raw_fd(), settings.as_mut_ptr()), 0);
            settings.assume_init()
        };
        (settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag)
    }

    /// Starts the command with this as its controlling terminal.
    fn start(&self, mut command: Command) -> Child {
        let stream = || OwnedFd::from(self.slave.try_clone().unwrap());
        command.stdin(stream()).stdout(stream()).stderr(stream());
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            })
        };
        command.spawn().unwrap()
    }

    fn raw(&self, before: (u32, u32, u32, u32)) {
        let end = Instant::now() + SOON;
        while self.flags() == before {
            assert!(Instant::now() < end, "the terminal isn't switched to raw mode");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn the_terminal_is_restored_on_every_way_out() {
    let ways: [(&str, &[u8], Option<i32>, i32); 6] = [
        ("an ordinary end", b"\x03q", None, 0),
        ("Ctrl-A x", b"a\x01x", None, 125),
        ("SIGTERM", b"", Some(libc::SIGTERM), 143),
        ("SIGHUP", b"", Some(libc::SIGHUP), 129),
        ("SIGINT", b"", Some(libc::SIGINT), 130),
        ("the timeout", b"", None, 124),
    ];
    for (name, keys, signal, code) in ways {
        let Some(machine) = Machine::new(&ECHO) else { return };
        let mut terminal = Terminal::new();
        let before = terminal.flags();
        let mut child = terminal.start(machine.command(&["--timeout", if code == 124 { "500ms" } else { "20s" }]));
        terminal.raw(before);
        terminal.master.write_all(keys).unwrap();
        if let Some(signal) = signal {
            // SAFETY: the child has not been waited for, so its id is its own.
            unsafe { libc::kill(child.id() as i32, signal) };
        }
        assert_eq!(wait(&mut child, SOON), Some(code), "{name}");
        assert_eq!(terminal.flags(), before, "{name}");
    }
}

#[test]
fn a_kernel_that_dies_at_once_leaves_the_terminal_alone() {
    let Some(machine) = Machine::new(&[0x0f, 0x0b]) else { return };
    let terminal = Terminal::new();
    let before = terminal.flags();
    let mut child = terminal.start(machine.command(&[]));
    assert_eq!(wait(&mut child, SOON), Some(125));
    assert_eq!(terminal.flags(), before);
}

#[test]
fn refusals_are_one_line_with_the_right_code() {
    let Some(machine) = Machine::new(&exit(0)) else { return };
    let kernel = machine.path();
    let cut = machine.dir.path().join("cut.elf");
    std::fs::write(&cut, &std::fs::read(&kernel).unwrap()[..0x180]).unwrap();
    let text_file = machine.dir.path().join("text");
    std::fs::write(&text_file, "just text\n").unwrap();
    let run = |args: &[&std::ffi::OsStr]| {
        Command::new(env!("CARGO_BIN_EXE_taskvisor")).arg("run").args(args).stdin(Stdio::null()).output().unwrap()
    };
    let os = |path: &'static str| Path::new(path).as_os_str();
    let kernel = kernel.as_os_str();
    let cases: [(&[&std::ffi::OsStr], i32, &str); 12] = [
        (&[os("--kernel"), kernel, os("--vcpus"), os("0")], 125, "0 vCPUs"),
        (&[os("--kernel"), kernel, os("--vcpus"), os("10000")], 125, "10000"),
        (&[os("--kernel"), kernel, os("--memory"), os("1M")], 125, "--memory"),
        (&[os("--kernel"), kernel, os("--memory"), os("100000T")], 125, "--memory"),
        (&[os("--kernel"), kernel, os("--memory"), os("12Q")], 125, "character 3"),
        (&[os("--kernel"), text_file.as_os_str()], 125, "text file"),
        (&[os("--kernel"), cut.as_os_str()], 125, "cut short"),
        (&[os("--kernel"), os("/no/such/kernel")], 125, "/no/such/kernel"),
        (&[os("--kernel"), kernel, os("--initrd"), os("/no/such/archive")], 125, "/no/such/archive"),
        (&[os("--kernel"), kernel, os("--"), os("/no/such/program")], 127, "not found"),
        (&[os("--kernel"), kernel, os("--"), os("/tmp")], 126, "directory"),
        (
            &[os("--kernel"), kernel, os("--log"), os("/no/such/dir/log"), os("--console"), os("virtio")],
            125,
            "log file",
        ),
    ];
    for (args, code, part) in cases {
        let output = run(args);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{args:?}: {message}");
        assert!(message.contains(part), "{args:?}: {message}");
        assert!(output.stdout.is_empty());
    }
}
