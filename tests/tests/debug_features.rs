//! What the debugger can beyond breakpoints and steps: watched memory, caught system calls, `monitor`. Scripts in tests/gdb, `features_*`.

use taskvisor_tests::debugged::{Client, Debugged};
use taskvisor_tests::serial;

/// What the program prints when nobody has left anything in it.
fn sum(rounds: u64) -> String {
    let one: u64 = (0..1000).map(|i| i * i).sum();
    format!("sum {} counter {rounds}", one * rounds)
}

fn with_gdb(script: &str, rounds: u64, all_vcpus: &[u32]) {
    let _beside_others = serial::shared();
    for vcpus in all_vcpus {
        let Some(guest) = Debugged::start(*vcpus, &[&rounds.to_string()]) else { return };
        guest.gdb(script, true);
        guest.end().expect_code(7).expect_stdout(&sum(rounds));
    }
}

#[test]
fn who_writes_watched_memory_is_stopped() {
    with_gdb("features_watch.py", 20, &[2]);
}

#[test]
fn system_calls_stop_on_their_way_in_and_out() {
    with_gdb("features_calls.py", 5, &[1, 2]);
}

#[test]
fn the_machine_tells_and_does_what_only_it_can() {
    with_gdb("features_monitor.py", 100, &[1, 2]);
}

#[test]
fn gdb_s_own_commands_for_tasks_work() {
    with_gdb("features_commands.py", 20, &[2]);
}

/// Lets the guest go, and gives what its next stop says.
fn go_on(client: &mut Client) -> String {
    client.send("vCont;c");
    client.packet().expect("a stop")
}

#[test]
fn what_is_watched_and_caught_is_over_with_its_client() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::start(2, &["40"]) else { return };
    let (work, counter) = (guest.symbol("work"), guest.symbol("counter"));
    let mut client = guest.client();
    assert_eq!(
        client.ask(&format!("Z2,{counter:x},8")),
        "E.only a program's memory can be watched: select one of its threads"
    );
    assert_eq!(client.ask(&format!("Z0,{work:x},1")), "OK");
    assert!(go_on(&mut client).contains("swbreak:;"));
    assert_eq!(client.ask(&format!("z0,{work:x},1")), "OK");
    assert_eq!(client.ask(&format!("Z3,{counter:x},8")), "", "reads can't be seen");
    assert_eq!(
        client.ask("Z2,ffffffff80100000,8"),
        "E.only a program's memory can be watched: select one of its threads"
    );
    assert_eq!(client.ask(&format!("Z2,{counter:x},8")), "OK");
    for _ in 0..2 {
        let stop = go_on(&mut client);
        assert!(stop.starts_with("T05thread:1;") && stop.contains(&format!("watch:{counter:x};")), "{stop}");
    }
    assert_eq!(client.ask("QCatchSyscalls:1;nonsense"), "");
    assert_eq!(client.ask("QCatchSyscalls:1;1;e7"), "OK");
    drop(client);
    guest.end().expect_code(7).expect_stdout(&sum(40));
}
