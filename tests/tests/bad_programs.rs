//! Programs that end badly: the program ends with the right signal, the guest and the VMM don't.

use taskvisor_tests::guest::program;
use taskvisor_tests::on_1_2_and_4_vcpus;

on_1_2_and_4_vcpus! {
    fn null_dereference(guest: Guest) { guest.same_as_host(&program("musl/bad"), &["null"]).expect_code(139); }
    fn division_by_zero(guest: Guest) { guest.same_as_host(&program("musl/bad"), &["divide"]).expect_code(136); }
    fn privileged_instruction(guest: Guest) { guest.same_as_host(&program("musl/bad"), &["hlt"]).expect_code(139); }
    fn undefined_instruction(guest: Guest) { guest.same_as_host(&program("musl/bad"), &["ud2"]).expect_code(132); }
    fn stack_overflow(guest: Guest) { guest.same_as_host(&program("musl/bad"), &["overflow"]).expect_code(139); }
    fn abort(guest: Guest) { guest.same_as_host(&program("glibc/bad"), &["abort"]).expect_code(134); }
    fn jump_into_nowhere(guest: Guest) { guest.same_as_host(&program("musl/bad"), &["jump"]).expect_code(139); }
    fn code_on_the_stack(guest: Guest) { guest.same_as_host(&program("musl/bad"), &["stack-exec"]).expect_code(139); }
    /// The largest user of memory is ended by SIGKILL; the guest itself goes on to its orderly end.
    fn all_memory(guest: Guest) {
        let outcome = guest.memory("64M").run(&program("musl/bad"), ["memory"]);
        outcome.expect_code(137).expect_stdout("about to: memory");
    }
    fn never_ends(guest: Guest) {
        for way in ["forever", "spin"] {
            let outcome = guest.run_into_timeout(&program("musl/bad"), &[way], "about to");
            outcome.expect_code(124).expect_stdout("about to");
        }
    }
    /// A crash of one process leaves its parent alone.
    fn a_child_crashes(guest: Guest) {
        let Some(busybox) = taskvisor_tests::prereq::busybox() else { return };
        let bad = program("musl/bad");
        let outcome = guest.file(&bad, "/bin/bad").run(&busybox, ["sh", "-c", "/bin/bad null; echo $?; /bin/bad divide; echo $?"]);
        outcome.expect_code(0);
        assert_eq!(outcome.text(), "about to: null\n139\nabout to: divide\n136\n", "again: {}", outcome.typed);
    }
}
