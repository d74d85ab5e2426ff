//! Our own programs, C with two libraries and Rust, on 1, 2 and 4 vCPUs: each checks itself, and its output must be the
//! host's, byte for byte.

use taskvisor_tests::guest::{program, taskvisor};
use taskvisor_tests::{Guest, Run, TempDir, on_1_2_and_4_vcpus, prereq, serial};

on_1_2_and_4_vcpus! {
    fn hello_musl(guest: Guest) {
        guest.same_as_host(&program("musl/hello"), &["0", "a b", "", "ü"]).expect_stdout("hello");
    }
    fn crowd_musl(guest: Guest) {
        guest.same_as_host(&program("musl/crowd"), &["60"]).expect_stdout("PASS crowd");
    }
    fn hello_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/hello"), &["3"]).expect_code(3);
    }
    fn pool_rust(guest: Guest) {
        guest.same_as_host(&program("rust/pool"), &["4", "500"]).expect_stdout("PASS");
    }
    fn primes_musl(guest: Guest) {
        guest.same_as_host(&program("musl/primes"), &["1000000", "4"]).expect_stdout("PASS");
    }
    fn primes_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/primes"), &["1000000", "4"]).expect_stdout("PASS");
    }
    fn fpu_musl(guest: Guest) {
        guest.same_as_host(&program("musl/fpu"), &["6", "20"]).expect_stdout("PASS");
    }
    fn fpu_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/fpu"), &["6", "20"]).expect_stdout("PASS");
    }
    /// Long spins: the registers must live through preemption by the tick, not only through system calls.
    fn fpu_preempted(guest: Guest) {
        guest.same_as_host(&program("musl/fpu"), &["4", "4", "3000000"]).expect_stdout("PASS");
    }
    fn forkstorm_musl(guest: Guest) {
        guest.same_as_host(&program("musl/forkstorm"), &["2", "6", "16"]).expect_stdout("PASS");
    }
    fn forkstorm_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/forkstorm"), &["2", "6", "16"]).expect_stdout("PASS");
    }
    fn signals_musl(guest: Guest) {
        guest.same_as_host(&program("musl/signals"), &[] as &[&str]).expect_stdout("PASS");
    }
    fn signals_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/signals"), &[] as &[&str]).expect_stdout("PASS");
    }
    fn descriptors_musl(guest: Guest) {
        guest.same_as_host(&program("musl/descriptors"), &[] as &[&str]).expect_stdout("PASS");
    }
    fn descriptors_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/descriptors"), &[] as &[&str]).expect_stdout("PASS");
    }
    fn mapstress_musl(guest: Guest) {
        guest.same_as_host(&program("musl/mapstress"), &["15", "3", "8"]).expect_stdout("PASS");
    }
    fn mapstress_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/mapstress"), &["15", "3", "8"]).expect_stdout("PASS");
    }
    fn timers_musl(guest: Guest) {
        guest.same_as_host(&program("musl/timers"), &["1", "4"]).expect_stdout("PASS");
    }
    fn timers_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/timers"), &["1", "4"]).expect_stdout("PASS");
    }
    fn clones_musl(guest: Guest) {
        guest.same_as_host(&program("musl/clones"), &[] as &[&str]).expect_stdout("PASS");
    }
    fn clones_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/clones"), &[] as &[&str]).expect_stdout("PASS");
    }
    fn limits_musl(guest: Guest) {
        guest.same_as_host(&program("musl/limits"), &[] as &[&str]).expect_stdout("PASS");
    }
    fn limits_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/limits"), &[] as &[&str]).expect_stdout("PASS");
    }
    fn cputime_musl(guest: Guest) {
        guest.same_as_host(&program("musl/cputime"), &["30"]).expect_stdout("PASS");
    }
    fn cputime_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/cputime"), &["30"]).expect_stdout("PASS");
    }
    fn pi_musl(guest: Guest) {
        guest.same_as_host(&program("musl/pi"), &["100"]).expect_stdout("PASS");
    }
    fn pi_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/pi"), &["100"]).expect_stdout("PASS");
    }
    fn splices_musl(guest: Guest) {
        guest.same_as_host(&program("musl/splices"), &[] as &[&str]).expect_stdout("PASS");
    }
    fn splices_glibc(guest: Guest) {
        guest.same_as_host(&program("glibc/splices"), &[] as &[&str]).expect_stdout("PASS");
    }
    fn fifos_musl(guest: Guest) {
        guest.same_as_host(&program("musl/fifos"), &["200"]).expect_stdout("PASS");
    }
}

/// PROGRAM may be a path in an archive that is given; without one, the archive's own start list says what runs.
#[test]
fn from_a_given_archive() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let dir = TempDir::new();
    let image = Run::new(taskvisor()).arg("image").arg("-o").arg(dir.path()).arg("--").arg(program("musl/hello"));
    image.arg("4").run().expect_code(0);
    let archive = dir.path().join("archive.cpio");
    let run = || Guest::new(1).flag("--initrd").flag(&archive).command();
    run().args(["--", "/bin/hello", "6"]).run().expect_code(6).expect_stdout("argv[1] = 6");
    run().run().expect_code(4).expect_stdout("argv[1] = 4");
    run().args(["--", "/bin/nobody"]).run().expect_code(127).expect_stderr("/bin/nobody");
}
