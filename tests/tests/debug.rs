//! The debugger: real gdb with scripts that check what they see (tests/gdb), and packets as they are. One guest and one port a test.

use taskvisor_tests::debugged::Debugged;
use taskvisor_tests::serial;

/// What the program prints when nobody has left anything in it.
fn sum(rounds: u64) -> String {
    let one: u64 = (0..1000).map(|i| i * i).sum();
    format!("sum {} counter {rounds}", one * rounds)
}

fn with_gdb(script: &str, symbols: bool) {
    let _beside_others = serial::shared();
    for vcpus in [1, 2, 4] {
        let Some(guest) = Debugged::start(vcpus, &["200"]) else { return };
        guest.gdb(script, symbols);
        guest.end().expect_code(7).expect_stdout(&sum(200));
    }
}

#[test]
fn tasks_are_threads_with_registers_and_memory() {
    with_gdb("seeing.py", true);
}

#[test]
fn steps_stay_with_their_thread() {
    with_gdb("stepping.py", true);
}

#[test]
fn conditions_are_evaluated_without_the_client() {
    with_gdb("conditions.py", true);
}

#[test]
fn the_kernel_s_symbols_come_by_themselves() {
    with_gdb("kernel.py", false);
}

#[test]
fn a_fault_stops_before_the_program_is_told() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::start(2, &["3", "crash"]) else { return };
    guest.gdb("fault.py", true);
    guest.end().expect_code(139);
}

#[test]
fn ctrl_c_stops_what_computes_and_what_waits() {
    let _beside_others = serial::shared();
    for vcpus in [1, 2, 4] {
        let Some(guest) = Debugged::start(vcpus, &["20000"]) else { return };
        let mut client = guest.client();
        assert!(client.ask("qSupported:swbreak+").contains("qXfer:threads:read+"));
        for _ in 0..20 {
            client.send("vCont;c");
            client.raw(b"\x03");
            let stop = client.packet().expect("a stop");
            assert!(stop.starts_with("T02thread:"), "{stop}");
            let threads = client.ask("qfThreadInfo");
            assert!(threads.split([',', 'm']).any(|id| id == "1"), "{threads}");
            assert!(client.ask("g").len() > 500);
        }
        assert_eq!(client.ask("D"), "OK");
        assert_eq!(client.packet(), None, "a client that has left is let go");
        guest.end().expect_code(7).expect_stdout(&sum(20000));
    }
}

#[test]
fn a_client_that_vanishes_leaves_nothing_and_another_may_come() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::start(2, &["5000000"]) else { return };
    // Long enough to be met again by the third.
    let work = guest.symbol("work");
    for _ in 0..3 {
        let mut client = guest.client();
        client.ask("?");
        assert_eq!(client.ask(&format!("Z0,{work:x},1")), "OK");
        client.send("vCont;c");
        let stop = client.packet().expect("a stop");
        assert!(stop.starts_with("T05thread:1;") && stop.contains("swbreak:;"), "{stop}");
        // What is in memory is the program's own, not our breakpoint.
        assert_ne!(&client.ask(&format!("m{work:x},1")), "cc");
        client.send("vCont;c");
    }
    guest.end().expect_code(7).expect_stdout(&sum(5_000_000));
}

#[test]
fn a_second_client_is_refused_and_the_first_goes_on() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::start(1, &["1"]) else { return };
    let mut first = guest.client();
    assert!(first.ask("?").starts_with("T05"));
    let mut second = guest.client();
    assert_eq!(second.packet().as_deref(), Some("E.another debugger is attached"));
    assert_eq!(second.packet(), None);
    assert!(first.ask("qC").starts_with("QC"));
    first.send("vCont;c");
    assert_eq!(first.packet().as_deref(), Some("W07"), "the guest's end is told");
    guest.end().expect_code(7);
}

#[test]
fn damaged_and_senseless_packets_are_answered() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::start(1, &["1"]) else { return };
    let mut client = guest.client();
    client.raw(b"$?#00");
    assert_eq!(client.byte(), Some(b'-'));
    for (packet, answer) in [
        ("vNoSuch", ""),
        ("Hg7fffffff", "E03"),
        ("T7fffffff", "E03"),
        ("M10,1:", ""),
        ("m10,fffffffff", ""),
        ("pffff", "E00"),
        ("P10=00", "E00"),
        ("qXfer:features:read:nothing.xml:0,100", "E00"),
        ("Z2,401000,8", "E.only a program's memory can be watched: select one of its threads"),
        ("Z3,401000,8", ""),
        ("T1", "OK"),
        ("qAttached", "1"),
    ] {
        let found = client.ask(packet);
        // Physical address 16 is memory before the guest has switched paging on.
        assert!(found == answer || packet.starts_with('m') && found.len() > 100, "{packet}: {found}");
    }
    assert_eq!(client.ask("QStartNoAckMode"), "OK");
    client.send("?");
    let mut first = client.byte();
    // The acknowledgement of the packet before may still come.
    while first == Some(b'+') {
        first = client.byte();
    }
    assert_eq!(first, Some(b'$'), "no acknowledgement any more");
    client.send("k");
    guest.end().expect_code(143);
}
