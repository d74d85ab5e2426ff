//! The scheduling calls of programs, under each policy of ordinary tasks: `resources/programs/sched.c` checks what they set, show
//! and refuse, and that real-time threads come by priority. Not compared with the host, where they need privileges.

use taskvisor_tests::guest::{Guest, program};
use taskvisor_tests::{on_1_2_and_4_vcpus, prereq};

const OUTPUT: &str = "policies ok\nnice ok\nattributes ok\ndeadlines ok\nchildren ok\norder ok\n";

on_1_2_and_4_vcpus! {
    fn calls_musl(guest: Guest) {
        guest.run(&program("musl/sched"), &[] as &[&str]).expect_code(0).expect_stdout(OUTPUT);
    }
    fn calls_glibc(guest: Guest) {
        guest.run(&program("glibc/sched"), &[] as &[&str]).expect_code(0).expect_stdout(OUTPUT);
    }
}

#[test]
fn every_policy_schedules_programs() {
    for policy in ["fair", "rr", "count", "runtime"] {
        let guest = Guest::new(2).flag("--policy").flag(policy);
        guest.run(&program("musl/sched"), &[] as &[&str]).expect_code(0).expect_stdout(OUTPUT);
        guest.run(&program("musl/primes"), ["100000", "4"]).expect_code(0).expect_stdout("PASS");
    }
}

/// What the program set is what /proc shows of it.
#[test]
fn proc_shows_how_a_task_is_scheduled() {
    let Some(busybox) = prereq::busybox() else { return };
    let script = "/bin/busybox renice -n 5 -p $$ && exec /bin/busybox cat /proc/self/sched /proc/schedstat";
    let outcome = Guest::new(1).run(&busybox, ["sh", "-c", script]);
    let text = outcome.expect_code(0).text();
    let field = |name: &str| {
        let line = text.lines().find(|l| l.split(':').next().is_some_and(|n| n.trim() == name));
        line.and_then(|l| l.rsplit(':').next()).map(str::trim).unwrap_or_default().to_owned()
    };
    assert_eq!((field("prio"), field("policy")), ("125".to_owned(), "0".to_owned()), "{text}");
    assert_eq!(field("se.load.weight"), "335", "{text}");
    assert!(text.contains("version 15"), "{text}");
}
