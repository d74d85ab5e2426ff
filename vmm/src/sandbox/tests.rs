use std::process::{Command, Output};
use std::thread;

use super::*;

/// The name of the test below that plays the confined process.
const CONFINED: &str = "sandbox::tests::confined";
/// Says which kind of thread shall make which call.
const SCENE: &str = "TASKVISOR_SANDBOX_SCENE";

/// Filters last as long as their process: each scene has one of its own.
fn scene(name: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", CONFINED, "--nocapture"]).env(SCENE, name).output().unwrap()
}

fn forbidden(name: &str, kind: &str, call: &str) {
    let output = scene(name);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(EXIT_FORBIDDEN.into()), "{name}: {stderr}");
    let wanted = format!("a {kind} thread was stopped at the system call {call} (");
    assert!(stderr.contains(&wanted), "{name}: {stderr}");
}

#[test]
fn a_forbidden_call_ends_the_process_and_is_told() {
    forbidden("vcpu socket", "vCPU", "socket");
    forbidden("vcpu open", "vCPU", "openat");
    forbidden("control exec", "control", "execve");
    forbidden("main socket", "main", "socket");
    forbidden("trace ioctl", "trace", "ioctl");
}

#[test]
fn arguments_count() {
    forbidden("vcpu executable memory", "vCPU", "mmap");
    forbidden("main types", "main", "ioctl");
    forbidden("gdb signals others", "gdb", "kill");
}

#[test]
fn what_is_left_behind_is_removed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = scene(&format!("vcpu socket:{}", file.path().display()));
    assert_eq!(output.status.code(), Some(EXIT_FORBIDDEN.into()));
    assert!(!file.path().exists());
}

#[test]
fn what_is_allowed_works() {
    let output = scene("allowed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_log_lets_everything_through() {
    let output = scene("log");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_kind_has_its_place_and_every_call_its_reason() {
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, index);
        assert!(filter::program(kind, Mode::On).is_ok());
        for call in calls::ALL.iter().chain(calls::of(kind)) {
            assert!(!call.why.is_empty(), "{kind:?}: {}", call.number);
            assert!(![libc::SYS_execve, libc::SYS_execveat, libc::SYS_ptrace].contains(&call.number));
        }
    }
}

/// The process that the others start; without a scene it starts itself with one, so that it asserts something alone too.
#[test]
fn confined() {
    let Ok(scene) = std::env::var(SCENE) else {
        assert!(scene("allowed").status.success());
        return;
    };
    let (scene, left) = scene.split_once(':').unwrap_or((&scene, ""));
    arm(if scene == "log" { Mode::Log } else { Mode::On }, [Path::new(left)]).unwrap();
    let on = |kind, act: fn()| {
        let thread = thread::spawn(move || {
            enter(kind).unwrap();
            act();
        });
        thread.join().unwrap();
    };
    // SAFETY: plain numbers and constant strings; what they would do doesn't happen, or happens to this process only.
    unsafe {
        match scene {
            "vcpu socket" => on(Kind::Vcpu, || {
                let _ = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
            }),
            "vcpu open" => on(Kind::Vcpu, || drop(std::fs::File::open("/dev/null"))),
            "control exec" => on(Kind::Control, || {
                let _ = libc::execve(c"/bin/true".as_ptr(), std::ptr::null(), std::ptr::null());
            }),
            "trace ioctl" => on(Kind::Trace, || {
                let _ = libc::ioctl(0, libc::TIOCGWINSZ, 0);
            }),
            "vcpu executable memory" => on(Kind::Vcpu, || {
                let (prot, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0);
            }),
            "gdb signals others" => on(Kind::Gdb, || {
                let _ = libc::kill(1, 0);
            }),
            "main types" => {
                enter(Kind::Main).unwrap();
                libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr());
            }
            "main socket" => {
                enter(Kind::Main).unwrap();
                libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
            }
            "log" => on(Kind::Vcpu, || assert!(libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) >= 0)),
            "allowed" => {
                on(Kind::Vcpu, || drop(vec![1u8; 8 << 20]));
                on(Kind::Control, || {
                    let read = thread::spawn(|| std::fs::read_to_string("/proc/thread-self/status").unwrap());
                    let status = read.join().unwrap();
                    assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
                });
            }
            _ => panic!("there is no scene {scene}"),
        }
    }
}
