//! Bad input: one clear line, the right exit code, nothing left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use taskvisor_tests::guest::{program, taskvisor};
use taskvisor_tests::{Guest, Outcome, Run, TempDir, prereq, serial};

/// `taskvisor run` with these arguments.
fn run<T: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = T>) -> Outcome {
    let _beside_others = serial::shared();
    Run::new(taskvisor()).arg("run").args(args).limit(Duration::from_secs(20)).run()
}

/// A program file with these bytes, executable.
fn run_file(bytes: &[u8]) -> Outcome {
    let dir = TempDir::new();
    let path = dir.write("program", bytes);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own file");
    run(["--".as_ref(), path.as_os_str()])
}

/// Our smallest program, to be spoilt.
fn good_elf() -> Vec<u8> {
    fs::read(program("musl/hello")).expect("just found")
}

/// Runs the binary as `user` in a mount namespace in which /dev was prepared by `prepare`.
fn run_with_dev(prepare: &str, user: &str) -> Option<Outcome> {
    if !(prereq::root_or_left_out() && prereq::system_program(&["unshare"]).is_some()) {
        return None;
    }
    // Copies, so that another user can reach them.
    let dir = TempDir::new();
    for (name, source) in [("taskvisor", taskvisor().to_owned()), ("hello", program("musl/hello"))] {
        fs::copy(source, dir.path().join(name)).expect("a copy in our own directory");
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("our own directory");
    let path = dir.path().display();
    let script = format!("{prepare} && exec {user} {path}/taskvisor run -- {path}/hello");
    Some(Run::new("unshare").args(["--mount", "sh", "-c", &script]).limit(Duration::from_secs(20)).run())
}

#[test]
fn no_dev_kvm() {
    let Some(outcome) = run_with_dev("mount -t tmpfs none /dev", "") else { return };
    outcome.expect_code(125).expect_one_line_error().expect_stderr("/dev/kvm");
}

#[test]
fn no_permission_for_dev_kvm() {
    let prepare = "mount -t tmpfs none /mnt && mknod -m 600 /mnt/kvm c 10 232 && mount --bind /mnt/kvm /dev/kvm";
    let Some(outcome) = run_with_dev(prepare, "setpriv --reuid=65534 --regid=65534 --clear-groups") else { return };
    outcome.expect_code(125).expect_one_line_error().expect_stderr("/dev/kvm").expect_stderr("permission");
}

#[test]
fn dev_kvm_is_something_else() {
    let Some(outcome) = run_with_dev("mount --bind /dev/null /dev/kvm", "") else { return };
    outcome.expect_code(125).expect_one_line_error().expect_stderr("/dev/kvm");
}

#[test]
fn impossible_numbers_of_vcpus() {
    let hello = program("musl/hello");
    for count in ["0", "10000", "-1", "many"] {
        let outcome = run(["--vcpus".as_ref(), count.as_ref(), "--".as_ref(), hello.as_os_str()]);
        outcome.expect_code(125).expect_stderr("vcpus").expect_stderr(count);
    }
}

/// What the host's KVM could run, but our kernel can't use.
#[test]
fn more_vcpus_than_the_kernel_brings_up() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let hello = program("musl/hello");
    let outcome = run(["--vcpus".as_ref(), "1025".as_ref(), "--".as_ref(), hello.as_os_str()]);
    outcome.expect_code(125).expect_one_line_error().expect_stderr("--vcpus 1025").expect_stderr("1024 at most");
}

#[test]
fn one_mebibyte_of_memory() {
    let hello = program("musl/hello");
    let outcome = run(["--memory".as_ref(), "1M".as_ref(), "--".as_ref(), hello.as_os_str()]);
    outcome.expect_code(125).expect_one_line_error().expect_stderr("memory");
}

#[test]
fn impossible_memory() {
    let hello = program("musl/hello");
    for size in ["0", "12Q", "", "99999999999G"] {
        let outcome = run(["--memory".as_ref(), size.as_ref(), "--".as_ref(), hello.as_os_str()]);
        outcome.expect_code(125).expect_stderr("memory");
    }
}

#[test]
fn a_text_file() {
    run_file(b"just some text\n").expect_code(126).expect_one_line_error().expect_stderr("not an ELF");
}

#[test]
fn an_empty_file() {
    run_file(b"").expect_code(126).expect_one_line_error();
}

#[test]
fn a_truncated_elf() {
    let elf = good_elf();
    for keep in [10, 64, 200, elf.len() / 2] {
        run_file(&elf[..keep]).expect_code(126).expect_one_line_error();
    }
}

#[test]
fn a_dynamic_elf() {
    let outcome = run(["--", "/bin/ls"]);
    outcome.expect_code(126).expect_one_line_error().expect_stderr("static");
}

#[test]
fn a_32_bit_elf() {
    let mut elf = good_elf();
    elf[4] = 1; // EI_CLASS: ELFCLASS32
    elf[18] = 3; // e_machine: EM_386
    run_file(&elf).expect_code(126).expect_one_line_error().expect_stderr("32-bit");
}

#[test]
fn an_arm_elf() {
    let mut elf = good_elf();
    elf[18] = 183; // e_machine: EM_AARCH64
    run_file(&elf).expect_code(126).expect_one_line_error().expect_stderr("x86-64");
}

#[test]
fn a_missing_program() {
    let outcome = run(["--", "/no/such/program"]);
    outcome.expect_code(127).expect_one_line_error().expect_stderr("/no/such/program");
}

#[test]
fn a_directory() {
    run(["--", "/tmp"]).expect_code(126).expect_one_line_error();
}

#[test]
fn an_archive_cut_short() {
    let _beside_others = serial::shared();
    let dir = TempDir::new();
    let hello = program("musl/hello");
    Run::new(taskvisor()).arg("image").arg("-o").arg(dir.path()).arg("--").arg(&hello).run().expect_code(0);
    let archive = fs::read(dir.path().join("archive.cpio")).expect("taskvisor image wrote it");
    for keep in [50, 150, archive.len() / 2] {
        let cut = dir.write("cut.cpio", &archive[..keep]);
        let outcome = Guest::new(1).flag("--initrd").flag(&cut).command().arg("--").arg("/hello").run();
        outcome.expect_code(125).expect_one_line_error().expect_stderr("cut.cpio");
    }
}

#[test]
fn a_missing_archive_file_and_kernel() {
    let hello = program("musl/hello");
    for flag in ["--initrd", "--kernel"] {
        let outcome = run([flag.as_ref(), "/no/such/file".as_ref(), "--".as_ref(), hello.as_os_str()]);
        outcome.expect_code(125).expect_one_line_error().expect_stderr("/no/such/file");
    }
}

/// The end of bad flags: names the flag, exit code of a VMM error, not of clap.
#[test]
fn an_unknown_flag() {
    run(["--no-such-flag"]).expect_code(125).expect_stderr("--no-such-flag");
}

/// A PVH kernel whose first act is an invalid opcode without any IDT: a triple fault.
fn triple_fault_kernel() -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    let mut elf = vec![0u8; 0x1000];
    let put = |elf: &mut Vec<u8>, at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(&mut elf, 0, b"\x7fELF\x02\x01\x01");
    put(&mut elf, 16, &[2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, version 1
    put(&mut elf, 24, &u64::from(BASE).to_le_bytes()); // e_entry
    put(&mut elf, 32, &64u64.to_le_bytes()); // e_phoff
    put(&mut elf, 52, &[64, 0, 56, 0, 2, 0, 64, 0]); // e_ehsize, e_phentsize, e_phnum
    let mut header = |at: usize, kind: u32, flags: u32, offset: u64, size: u64, align: u64| {
        put(&mut elf, at, &kind.to_le_bytes());
        put(&mut elf, at + 4, &flags.to_le_bytes());
        for (index, value) in [offset, u64::from(BASE), u64::from(BASE), size, size, align].into_iter().enumerate() {
            put(&mut elf, at + 8 + index * 8, &value.to_le_bytes());
        }
    };
    header(64, 1, 7, 0x200, 0x100, 0x1000); // PT_LOAD
    header(120, 4, 4, 0x400, 24, 4); // PT_NOTE
    put(&mut elf, 0x200, &[0x0f, 0x0b]); // ud2
    put(&mut elf, 0x400, &[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0]);
    put(&mut elf, 0x40c, b"Xen\0");
    put(&mut elf, 0x410, &u64::from(BASE).to_le_bytes());
    elf
}

#[test]
fn a_kernel_that_triple_faults() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let dir = TempDir::new();
    let kernel = dir.write("kernel.elf", triple_fault_kernel());
    let hello = program("musl/hello");
    let outcome = run(["--kernel".as_ref(), kernel.as_os_str(), "--".as_ref(), hello.as_os_str()]);
    // A report, not one line: vCPU, reason and place.
    outcome.expect_code(125).expect_stderr("triple fault").expect_stderr("vcpu").expect_stderr("100000");
    outcome.expect_stderr("task: not known: the guest shows no tasks");
}

#[test]
fn a_kernel_that_is_no_kernel() {
    let hello = program("musl/hello");
    for kernel in [hello.as_path(), Path::new("/bin/ls"), Path::new("/etc/passwd")] {
        let outcome = run(["--kernel".as_ref(), kernel.as_os_str(), "--".as_ref(), hello.as_os_str()]);
        outcome.expect_code(125).expect_one_line_error();
    }
}

/// No file in the temporary directory, no thread, no process outlives a run, good or bad.
#[test]
fn nothing_is_left_behind() {
    let (true, Some(_)) = (prereq::kvm_or_left_out(), prereq::system_program(&["sh"])) else { return };
    let _alone = serial::alone();
    let dir = TempDir::new();
    let ways: [&[&str]; 4] = [&["exit", "0"], &["null"], &["spin"], &["signal", "9"]];
    for way in ways {
        let guest = Guest::new(2).timeout(Duration::from_secs(1));
        guest.command().env("TMPDIR", dir.path()).arg("--").arg(program("musl/bad")).args(way).run();
        let left: Vec<_> = fs::read_dir(dir.path()).expect("our own directory").flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "left behind after {way:?}: {left:?}");
    }
    let name = taskvisor().display().to_string();
    let running = fs::read_dir("/proc").expect("Linux").flatten().filter(|entry| {
        let ours = fs::read_to_string(entry.path().join("status"))
            .is_ok_and(|status| status.contains(&format!("PPid:\t{}\n", std::process::id())));
        ours && fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe.display().to_string() == name)
    });
    assert_eq!(running.count(), 0, "processes of {name} are left");
}
