//! The remote protocol, packet by packet: exact sequences that gdb and lldb send, and such as no good client does.

use taskvisor_tests::debugged::{Client, Debugged};
use taskvisor_tests::serial;

/// The thread that a stop reply names.
#[track_caller]
fn thread_of(stop: &str) -> u32 {
    let id = stop.split(';').find_map(|part| part.split("thread:").nth(1));
    u32::from_str_radix(id.unwrap_or_else(|| panic!("a stop names its thread: {stop}")), 16).expect("a number")
}

/// A register's value; both byte orders of the protocol are the target's.
fn register(client: &mut Client, number: u32) -> Option<u64> {
    let digits = client.ask(&format!("p{number:x}"));
    let byte = |at: usize| u64::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok();
    (0..digits.len() / 2).rev().try_fold(0, |value, at| Some(value << 8 | byte(at)?))
}

/// To the first hit of a function of the program.
fn at(guest: &Debugged, client: &mut Client, symbol: &str) -> u64 {
    let address = guest.symbol(symbol);
    assert_eq!(client.ask(&format!("Z0,{address:x},1")), "OK");
    client.send("vCont;c");
    let stop = client.packet().expect("a stop");
    assert!(stop.starts_with("T05") && stop.contains("swbreak:;"), "{stop}");
    assert_eq!(client.ask(&format!("z0,{address:x},1")), "OK");
    address
}

const PC: u32 = 16;

#[test]
fn a_session_begins_as_gdb_begins_it() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::of("cases.c", 2, &["float"]) else { return };
    let mut client = guest.client();
    let supported = client.ask("qSupported:multiprocess+;swbreak+;hwbreak+;qRelocInsn+;vContSupported+;no-resumed+");
    for feature in
        ["PacketSize=", "qXfer:threads:read+", "qXfer:features:read+", "ConditionalBreakpoints+", "vContSupported+"]
    {
        assert!(supported.contains(feature), "{feature}: {supported}");
    }
    assert!(!supported.contains("multiprocess+"), "one process id: {supported}");
    let actions = client.ask("vCont?");
    assert!(actions.starts_with("vCont;c;C;s;S") && actions.contains(";r"), "{actions}");
    assert_eq!(client.ask("vMustReplyEmpty"), "");
    assert_eq!(client.ask("Hg0"), "OK");
    let xml = client.ask("qXfer:features:read:target.xml:0,ffb");
    assert!(xml.starts_with("m<?xml") && xml.len() == 0xffc, "a piece as long as was asked for: {}", xml.len());
    let mut whole = xml[1..].to_owned();
    loop {
        let piece = client.ask(&format!("qXfer:features:read:target.xml:{:x},ffb", whole.len()));
        whole.push_str(&piece[1..]);
        if piece.starts_with('l') {
            break;
        }
    }
    assert!(whole.ends_with("</target>") && whole.contains("org.taskvisor.task"));
    assert_eq!(client.ask("qTStatus"), "");
    assert!(client.ask("?").starts_with("T05thread:1;"));
    assert!(client.ask("qXfer:threads:read::0,1000").contains("<thread id=\"1\" core=\"0\""));
    at(&guest, &mut client, "marker");
    let list = client.ask("qXfer:threads:read::0,fff0");
    assert!(
        list.contains("name=\"target\"") && list.contains("blocked on futex") && list.contains("idle task"),
        "{list}"
    );
    assert!(client.ask("qXfer:threads:read::fff0,100") == "l", "past its end there is nothing");
    assert_eq!(client.ask("D"), "OK");
    guest.end().expect_code(7).expect_stdout("product 6.750");
}

#[test]
fn steps_name_their_thread_with_and_without_a_default_action() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::of("cases.c", 2, &["spin", "2"]) else { return };
    let mut client = guest.client();
    client.ask("qSupported:swbreak+");
    at(&guest, &mut client, "marker");
    // gdb over a breakpoint; lldb; gdb with others running; a step without a thread.
    for action in ["vCont;s:1", "vCont;s:p1.1", "vCont;s:0001", "vCont;s:1;c", "vCont;s:p1.1;c:p1.-1"] {
        let before = register(&mut client, PC);
        client.send(action);
        let stop = client.packet().expect("a stop");
        assert!(stop.starts_with("T05") && thread_of(&stop) == 1, "{action}: {stop}");
        assert_ne!(register(&mut client, PC), before, "{action} moves");
    }
    assert_eq!(client.ask("Hc1"), "OK");
    client.send("s");
    assert_eq!(thread_of(&client.packet().expect("a stop")), 1);
    assert_eq!(client.ask("Hc-1"), "OK");
    // Ranges: to the end of a range, however many instructions that are.
    let pc = register(&mut client, PC).expect("there is a pc");
    client.send(&format!("vCont;r{pc:x},{:x}:1;c", pc + 1));
    assert_eq!(thread_of(&client.packet().expect("a stop")), 1);
    let flags = register(&mut client, 17).expect("there are flags");
    assert_eq!(flags & 0x100, 0, "no trap flag is shown");
    let go_on = guest.symbol("go_on");
    assert_eq!(client.ask(&format!("M{go_on:x},8:0000000000000000")), "OK");
    assert_eq!(client.ask("D"), "OK");
    guest.end().expect_code(7).expect_stdout("spun");
}

#[test]
fn what_is_damaged_cut_or_too_long_is_survived() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::of("cases.c", 1, &["late", "4"]) else { return };
    let mut client = guest.client();
    assert!(client.ask("qSupported").contains("PacketSize=10000"));
    // A wrong checksum is asked for again, and then answered.
    client.raw(b"$qC#00");
    assert_eq!(client.byte(), Some(b'-'));
    assert!(client.ask("qC").starts_with("QC"));
    // `-` has the last answer sent again, as often as it is wanted.
    for _ in 0..3 {
        client.raw(b"-");
        assert!(client.packet().expect("again").starts_with("QC"));
    }
    // A packet that never ends, and a new one.
    client.raw(b"$m401000,4");
    assert!(client.ask("qC").starts_with("QC"));
    // Longer than was agreed upon.
    client.raw(b"$");
    client.raw(&vec![b'a'; 70_000]);
    client.raw(b"#00");
    while client.byte() != Some(b'-') {}
    // In the smallest pieces.
    for byte in b"$qAttached#8f" {
        client.raw(&[*byte]);
    }
    assert_eq!(client.packet().as_deref(), Some("1"));
    // Noise between packets, and many packets at once.
    client.raw(b"\0\xff noise ++++$qC#b4+$qC#b4+$qC#b4");
    for _ in 0..3 {
        assert!(client.packet().expect("an answer each").starts_with("QC"));
    }
    // Ctrl-C while nothing runs is nothing.
    client.raw(b"\x03\x03\x03");
    assert!(client.ask("qC").starts_with("QC"));
    // Escapes, binary, and lengths that aren't true.
    let pattern = guest.symbol("message");
    let first = at(&guest, &mut client, "marker");
    assert!(first > 0);
    client.raw(b"$");
    let data = [format!("X{pattern:x},3:").as_bytes(), b"}\x03}\x04}]"].concat();
    client.raw(&data);
    let sum = data.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    client.raw(format!("#{sum:02x}").as_bytes());
    assert_eq!(client.packet().as_deref(), Some("OK"));
    assert_eq!(client.ask(&format!("m{pattern:x},3")), "23247d");
    for senseless in [
        "X10,5:ab",
        "M10,5:ab",
        "m",
        "m,",
        "mzz,1",
        "mffffffffffffffff,ffffffffffffffff",
        "Z0",
        "Z0,,",
        "Z0,1,1;Xff,00",
        "Z7,1,1",
        "z0",
        "vCont",
        "vCont;",
        "vCont;x",
        "vCont;s:7fffffff",
        "vCont;r5:1",
        "qXfer",
        "qXfer:features:read",
        "qXfer:features:read:target.xml:zz,1",
        "qXfer:threads:write::0,1",
        "qRcmd",
        "qRcmd,6",
        "qRcmd,ff",
        "vFile:open:",
        "vFile:pread:9,9,9",
        "vFile:pread:5,ffffffffffffffff,ffffffffffffffff",
        "Hx1",
        "Hgp",
        "Tp1",
        "P=",
        "P10",
        "Pffff=00",
        "G00",
        "qThreadExtraInfo,",
        "jThreadsInfo1",
        "qThreadStopInfo",
        "_",
        "\u{7f}",
    ] {
        let answer = client.ask(senseless);
        assert!(
            answer != "OK" || senseless.starts_with('H') || senseless == "G00" || senseless == "Tp1",
            "{senseless}: {answer}"
        );
    }
    assert!(client.ask("qC").starts_with("QC"), "and on");
    assert_eq!(client.ask("D"), "OK");
    guest.end().expect_code(7);
}

#[test]
fn without_acknowledgements_none_is_sent() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::of("cases.c", 1, &["late", "4"]) else { return };
    let mut client = guest.client();
    client.send("QStartNoAckMode");
    assert_eq!(client.byte(), Some(b'+'));
    assert_eq!(client.packet().as_deref(), Some("OK"));
    for _ in 0..20 {
        client.send("qC");
        assert_eq!(client.byte(), Some(b'$'), "the answer, and nothing before it");
        while client.byte() != Some(b'#') {}
        client.byte();
        client.byte();
    }
    // Damage has no answer now; what comes after has.
    client.raw(b"$qC#00");
    client.send("qAttached");
    assert_eq!(client.packet().as_deref(), Some("1"));
    // Nobody acknowledges any more: the guest's end comes by itself.
    client.send("vCont;c");
    assert_eq!(client.packet().as_deref(), Some("W07"));
    guest.end().expect_code(7);
}

#[test]
fn while_the_guest_runs_there_is_ctrl_c_only() {
    let _beside_others = serial::shared();
    for vcpus in [1, 4] {
        let Some(guest) = Debugged::of("cases.c", vcpus, &["spin", "4"]) else { return };
        let mut client = guest.client();
        client.ask("qSupported:swbreak+");
        at(&guest, &mut client, "marker");
        client.send("vCont;c");
        assert!(client.ask("g").starts_with('E'), "the guest is running");
        client.raw(b"\x03");
        let stop = client.packet().expect("a stop");
        assert!(stop.starts_with("T02"), "{stop}");
        // A packet that Ctrl-C cuts in two is data up to its end.
        client.send("vCont;c");
        client.raw(b"\x03");
        assert!(client.packet().expect("a stop").starts_with("T02"));
        let go_on = guest.symbol("go_on");
        assert_eq!(client.ask(&format!("M{go_on:x},8:0000000000000000")), "OK");
        assert_eq!(client.ask("D"), "OK");
        guest.end().expect_code(7).expect_stdout("spun");
    }
}

#[test]
fn a_client_that_dies_in_the_middle_of_anything_leaves_a_clean_guest() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::of("cases.c", 2, &["spin", "2"]) else { return };
    let spinner = guest.symbol("spinner");
    let begin = |guest: &Debugged| {
        let mut client = guest.client();
        client.ask("qSupported:swbreak+");
        client
    };
    let mut first = begin(&guest);
    at(&guest, &mut first, "marker");
    let text = first.ask(&format!("m{spinner:x},40"));
    // Half a packet; half closed; a step under way; a breakpoint that others are running into; an answer that nobody reads.
    first.raw(b"$m4010");
    drop(first);
    for end in 0..4 {
        let mut client = begin(&guest);
        assert_eq!(client.ask(&format!("m{spinner:x},40")), text, "the program's text is its own");
        match end {
            0 => client.close_half(),
            1 => client.send("vCont;s:2;c"),
            2 => {
                let inside = spinner + 8;
                client.send(&format!("Z0,{inside:x},1"));
                client.send("vCont;c");
            }
            _ => (0..200).for_each(|_| client.send("qXfer:features:read:target.xml:0,ffb")),
        }
        drop(client);
    }
    let mut last = begin(&guest);
    assert_eq!(last.ask(&format!("m{spinner:x},40")), text);
    let go_on = guest.symbol("go_on");
    assert_eq!(last.ask(&format!("M{go_on:x},8:0000000000000000")), "OK");
    assert_eq!(last.ask("D"), "OK");
    guest.end().expect_code(7).expect_stdout("spun");
}

#[test]
fn clients_that_come_together_are_refused_one_by_one() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::of("cases.c", 1, &["late", "4"]) else { return };
    let mut first = guest.client();
    assert!(first.ask("?").starts_with("T05"));
    for _ in 0..20 {
        let mut other = guest.client();
        assert_eq!(other.packet().as_deref(), Some("E.another debugger is attached"));
        assert_eq!(other.packet(), None);
        assert!(first.ask("qC").starts_with("QC"));
    }
    assert_eq!(first.ask("D"), "OK");
    guest.end().expect_code(7);
}

#[test]
fn every_prefix_of_a_session_may_be_its_end() {
    let _beside_others = serial::shared();
    let Some(guest) = Debugged::of("cases.c", 2, &["hits", "2", "2000000000"]) else { return };
    let hit = guest.symbol("hit");
    let packets = [
        "qSupported:swbreak+;hwbreak+".to_owned(),
        "?".to_owned(),
        format!("Z0,{hit:x},1"),
        "vCont;c".to_owned(),
        "g".to_owned(),
        "vCont;s:1;c".to_owned(),
    ];
    for length in 0..packets.len() {
        let mut client = guest.client();
        for packet in &packets[..length] {
            client.send(packet);
            if packet.starts_with("vCont") {
                client.packet().expect("a stop");
            }
        }
    }
    let mut last = guest.client();
    assert_ne!(last.ask(&format!("m{hit:x},1")), "cc");
    last.send("k");
    guest.end().expect_code(143);
}
