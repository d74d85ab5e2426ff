//! `--strace` and `--stats`: on stderr, beside an untouched program.

use taskvisor_tests::guest::program;
use taskvisor_tests::on_1_2_and_4_vcpus;

on_1_2_and_4_vcpus! {
    fn strace_prints_calls_as_strace_does(guest: Guest) {
        let outcome = guest.flag("--strace").run(&program("glibc/bad"), ["exit", "7"]);
        outcome.expect_code(7);
        assert_eq!(outcome.text(), "about to: exit\n", "again: {}", outcome.typed);
        outcome.expect_stderr(r#"write(1, "about to: exit\n", 15"#).expect_stderr("exit_group(7)");
    }
    fn stats_tell_milestones_exits_and_memory(guest: Guest) {
        let last = guest.vcpus() - 1;
        let outcome = guest.flag("--stats").run(&program("musl/hello"), ["0"]);
        outcome.expect_code(0);
        for part in ["kernel_entry ms=", "first_user_instruction ms=", "last_program_ended ms=", "beside_guest_kib="] {
            outcome.expect_stderr(part);
        }
        outcome.expect_stderr(&format!("exits vcpu={last} total="));
    }
}
