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
    /// As `strace -f`: a parent in vfork is cut off by its child, and its line goes on later.
    fn strace_goes_on_with_calls_that_others_cut_off(guest: Guest) {
        let outcome = guest.flag("--strace").run(&program("musl/clones"), &[] as &[&str]);
        outcome.expect_code(0);
        let lines = &outcome.stderr;
        let mut begun = std::collections::HashMap::new();
        for line in lines.lines() {
            // Without a number while there is one task.
            let numbered = line.strip_prefix("[pid").and_then(|rest| rest.split_once("] "));
            let (pid, text) = numbered.map_or(("1", line), |(pid, text)| (pid.trim(), text));
            if text.ends_with(" <unfinished ...>") {
                let name = text.split('(').next().unwrap_or_default().to_owned();
                assert!(begun.insert(pid, name).is_none(), "two at once: {line}; again: {}", outcome.typed);
            } else if let Some(name) = text.strip_prefix("<... ").and_then(|t| t.split(' ').next()) {
                assert_eq!(begun.remove(&pid).as_deref(), Some(name), "{line}; again: {}", outcome.typed);
            }
        }
        outcome.expect_stderr("vfork( <unfinished ...>").expect_stderr("<... vfork resumed>) = ");
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
    /// By name where it has one, else by number.
    fn stats_count_calls_that_are_not_there(guest: Guest) {
        for (number, name) in [(libc::SYS_uselib, "uselib"), (400, "400")] {
            let outcome = guest.clone().flag("--stats").run(&program("musl/bad"), ["call", &number.to_string()]);
            outcome.expect_code(libc::ENOSYS).expect_stderr(&format!("stats: unknown {name} 1"));
        }
    }
}
