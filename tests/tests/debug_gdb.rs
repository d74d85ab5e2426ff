//! Real gdb in batch mode: each test is a guest, each script of tests/gdb a row of cases that it counts failures of.
//!
//! The programs are modes of `tests/gdb/cases.c`; what they print at the end says whether the debugger has left anything behind.

use taskvisor_tests::debugged::Debugged;
use taskvisor_tests::serial;

/// One guest: a mode of cases.c, a script, and what the program prints in the end.
struct Scene<'a> {
    mode: &'a [&'a str],
    script: &'a str,
    symbols: bool,
    known: &'a [(&'a str, &'a str)],
    code: i32,
    prints: &'a str,
}

impl<'a> Scene<'a> {
    fn new(mode: &'a [&'a str], script: &'a str, prints: &'a str) -> Self {
        Self { mode, script, symbols: true, known: &[], code: 7, prints }
    }

    fn on(&self, vcpus: &[u32]) {
        let _beside_others = serial::shared();
        for vcpus in vcpus {
            let Some(guest) = Debugged::of("cases.c", *vcpus, self.mode) else { return };
            guest.gdb_knowing(self.script, self.symbols, self.known);
            guest.end().expect_code(self.code).expect_stdout(self.prints);
        }
    }
}

#[test]
fn breakpoints_of_every_kind_lose_nothing() {
    let scene = Scene::new(&["hits", "4", "5"], "breakpoints.py", "total 20");
    Scene { known: &[("TASKVISOR_ROUNDS", "5")], ..scene }.on(&[1, 4]);
}

#[test]
fn conditions_read_registers_and_memory() {
    Scene::new(&["hits", "4", "150"], "conditions_many.py", "total 600").on(&[2]);
}

#[test]
fn a_breakpoint_waits_for_its_page() {
    Scene::new(&["late", "4"], "pages.py", "late 27").on(&[1, 2]);
}

#[test]
fn memory_is_read_and_written_through_the_task() {
    Scene::new(&["calls", "6"], "memory.py", "outer 49 Changed by the debugger").on(&[2]);
}

#[test]
fn calls_and_recursions_are_stepped() {
    Scene::new(&["calls", "6"], "calls.py", "outer 49 as it was").on(&[1, 2]);
}

#[test]
fn what_spins_is_stopped_stepped_and_ended() {
    Scene::new(&["spin", "2"], "spin.py", "spun").on(&[1, 2, 4]);
}

#[test]
fn registers_are_read_and_written() {
    Scene::new(&["float"], "registers.py", "product 6.750").on(&[2]);
}

#[test]
fn a_child_passes_its_parent_s_breakpoints() {
    Scene::new(&["fork"], "processes.py", "mine 6 child's 6").on(&[1, 2]);
}

#[test]
fn a_breakpoint_from_before_all_processes_is_for_any() {
    Scene::new(&["exec"], "exec.py", "total 4\nchild 7 mine 1").on(&[2]);
}

#[test]
fn a_program_s_own_int3_is_its_own() {
    Scene::new(&["int3", "5"], "own_traps.py", "traps 5").on(&[1]);
}

#[test]
fn faults_that_a_program_handles_are_handled() {
    Scene::new(&["handled", "3"], "handled.py", "faults 3").on(&[2]);
}

#[test]
fn the_first_thread_may_end() {
    Scene::new(&["leader"], "leader.py", "hits 3").on(&[1, 2]);
}

#[test]
fn threads_come_and_go() {
    Scene { known: &[("TASKVISOR_ROUNDS", "3")], ..Scene::new(&["churn", "6", "3"], "churn.py", "total 54") }.on(&[2]);
}

#[test]
fn a_guest_is_left_and_met_again() {
    let scene = Scene::new(&["hits", "8", "2000000000"], "coming_and_going.py", "");
    Scene { code: 143, ..scene }.on(&[2]);
}

#[test]
fn the_kernel_is_debugged_from_its_first_instruction() {
    Scene { symbols: false, ..Scene::new(&["hits", "2", "3"], "kernel_boot.py", "total 6") }.on(&[1, 2]);
}

#[test]
fn tasks_on_no_cpu_are_seen_unwound_and_stepped() {
    Scene { symbols: false, ..Scene::new(&["float"], "idle.py", "product 6.750") }.on(&[2]);
}

#[test]
fn the_kernel_s_breakpoints_on_the_way_over_the_program_s() {
    Scene { symbols: false, ..Scene::new(&["hits", "4", "20"], "on_the_way.py", "total 80") }.on(&[1, 2]);
}

#[test]
fn nobody_passes_while_gdb_steps_over() {
    Scene::new(&["hits", "4", "150"], "ignored.py", "total 600").on(&[1, 2, 4]);
}

/// A section of docs/debugging.md with a program of resources/programs. `until`: what so many threads must say of themselves first.
fn walk(section: &str, source: &str, arguments: &[&str], until: &str, code: i32) {
    let _beside_others = serial::shared();
    let source = format!("../../resources/programs/{source}");
    let Some(guest) = Debugged::of(&source, 2, arguments) else { return };
    guest.gdb_knowing("walk.py", true, &[("TASKVISOR_SECTION", section), ("TASKVISOR_UNTIL", until)]);
    guest.end().expect_code(code);
}

#[test]
fn the_book_s_deadlock_is_found_as_it_says() {
    walk("A deadlock", "deadlock.c", &[], "blocked on*4", 143);
}

#[test]
fn the_book_s_crash_is_found_as_it_says() {
    walk("A crash", "bad.c", &["null"], "", 139);
}
