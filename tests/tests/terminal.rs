//! On a terminal the program has a terminal: its size, Ctrl-C for the guest, Ctrl-A x for the VMM, modes put back at the end.

use std::process::Command;

use taskvisor_tests::guest::taskvisor;
use taskvisor_tests::pty::Terminal;
use taskvisor_tests::{prereq, serial};

/// A shell command in the guest's busybox, on a terminal of 91 columns and 37 rows.
fn shell(script: &str) -> Option<Terminal> {
    let (true, Some(busybox)) = (prereq::kvm_or_left_out(), prereq::busybox()) else { return None };
    let mut command = Command::new(taskvisor());
    command.args(["run", "--vcpus", "2", "--timeout", "15s", "--"]).arg(busybox).args(["sh", "-c", script]);
    Some(Terminal::start(command, 91, 37))
}

#[test]
fn is_one_and_has_its_size() {
    let _beside_others = serial::shared();
    let Some(terminal) = shell("test -t 0 && test -t 1 && test -t 2 && echo all three; stty size; exit 5") else {
        return;
    };
    let (code, screen) = terminal.end();
    assert_eq!(code, 5, "on the screen:\n{screen}");
    assert!(screen.contains("all three\r\n") && screen.contains("37 91"), "on the screen:\n{screen}");
}

#[test]
fn lines_are_edited_and_echoed() {
    let _beside_others = serial::shared();
    let Some(mut terminal) = shell("echo ready; read -r line; echo \"<$line>\"") else { return };
    terminal.expect("ready");
    terminal.press(b"wrong\x7f\x7f\x7f\x7f\x7fright\r");
    terminal.expect("<right>");
    assert_eq!(terminal.end().0, 0);
}

#[test]
fn ctrl_d_ends_the_input() {
    let _beside_others = serial::shared();
    let Some(mut terminal) = shell("echo ready; cat; echo after") else { return };
    terminal.expect("ready");
    terminal.press(b"\x04");
    terminal.expect("after");
    assert_eq!(terminal.end().0, 0);
}

#[test]
fn ctrl_c_goes_to_the_guest() {
    let _beside_others = serial::shared();
    let Some(mut terminal) = shell("trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done") else {
        return;
    };
    terminal.expect("ready");
    terminal.press(b"\x03");
    terminal.expect("caught");
    assert_eq!(terminal.end().0, 7);
}

#[test]
fn ctrl_c_ends_a_program_without_a_handler() {
    let _beside_others = serial::shared();
    let Some(mut terminal) = shell("echo ready; exec sleep 30") else { return };
    terminal.expect("ready");
    terminal.press(b"\x03");
    assert_eq!(terminal.end().0, 130);
}

#[test]
fn ctrl_a_x_ends_the_guest() {
    let _beside_others = serial::shared();
    let Some(mut terminal) = shell("echo ready; while :; do :; done") else { return };
    terminal.expect("ready");
    terminal.press(b"\x01x");
    assert_eq!(terminal.end().0, 125);
}
