//! Breakpoints set, hit, stepped over and removed at random in a program whose threads check their own results, on 4 vCPUs.
//!
//! Afterwards the results are right and the program's text is that of its file. DEBUG_SOAK_SECONDS (10) and DEBUG_SOAK_SEED
//! (random) choose how long and what; a failure prints the seed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use taskvisor_tests::debugged::{Client, Debugged};
use taskvisor_tests::serial;

/// Sebastiano Vigna's splitmix64: what one seed gives is always the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % end as u64) as usize
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A stopped guest, and what is set in it.
struct Soak {
    client: Client,
    dice: Dice,
    places: Vec<u64>,
    set: Vec<(u8, u64)>,
    stops: u64,
    /// What was said last, for whoever looks into a failure.
    said: VecDeque<String>,
}

impl Drop for Soak {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the last packets: {:#?}", self.said);
        }
    }
}

impl Soak {
    fn note(&mut self, what: &str) {
        if self.said.len() >= 40 {
            self.said.pop_front();
        }
        self.said.push_back(what.to_owned());
    }

    fn ok(&mut self, packet: &str) {
        self.note(packet);
        assert_eq!(self.client.ask(packet), "OK", "{packet}");
    }

    /// Lets the guest go.
    fn go(&mut self, packet: &str) {
        self.note(packet);
        self.client.send(packet);
    }

    /// The guest stops, for a breakpoint, a step, or Ctrl-C: for nothing else.
    fn stopped(&mut self) {
        let stop = self.client.packet().expect("the guest is there");
        self.note(&stop);
        assert!(stop.starts_with("T05") || stop.starts_with("T02"), "the program was disturbed: {stop}");
        self.stops += 1;
    }

    /// The ids of all threads.
    fn threads(&mut self) -> Vec<String> {
        let list = self.client.ask("qfThreadInfo");
        list[1..].split(',').map(str::to_owned).collect()
    }

    /// Waits for a stop; types Ctrl-C if there is no breakpoint to be hit, and sometimes if there is.
    fn stop(&mut self) {
        if self.set.is_empty() || self.dice.below(2) == 0 {
            self.note("Ctrl-C");
            self.client.raw(b"\x03");
        }
        self.stopped();
    }

    fn act(&mut self) {
        match self.dice.below(10) {
            0 | 1 => {
                let point = (self.dice.of(b"01"), self.dice.of(&self.places));
                if !self.set.contains(&point) {
                    self.ok(&format!("Z{},{:x},1", char::from(point.0), point.1));
                    self.set.push(point);
                }
            }
            2 if !self.set.is_empty() => {
                let at = self.dice.below(self.set.len());
                let (kind, address) = self.set.swap_remove(at);
                self.ok(&format!("z{},{address:x},1", char::from(kind)));
            }
            3 => {
                let threads = self.threads();
                let who = &threads[self.dice.below(threads.len())];
                self.ok(&format!("Hg{who}"));
                assert!(self.client.ask("g").len() > 500);
            }
            // Alone, beside others, and as far as a range goes; of a thread that has a CPU.
            4..=7 => {
                let action = self.dice.of(&["s:W", "s:W;c", "r0,1:W;c"]);
                // One that is on none may wait for ever.
                if let Some(who) = self.on_a_cpu() {
                    self.go(&format!("vCont;{}", action.replace('W', &who)));
                    self.stopped();
                }
            }
            _ => {
                self.go("vCont;c");
                self.stop();
            }
        }
    }

    /// One of the program's threads that have a CPU.
    fn on_a_cpu(&mut self) -> Option<String> {
        let list = self.client.ask("qXfer:threads:read::0,fff0");
        let running = list.split("<thread id=\"").skip(1).filter(|thread| thread.contains("user task, running on"));
        let ids: Vec<&str> = running.filter_map(|thread| thread.split('"').next()).collect();
        (!ids.is_empty()).then(|| self.dice.of(&ids).to_owned())
    }
}

/// The program's text as its file has it: address and bytes. ELF-64: e_phoff at 32, e_phnum at 56, entries of 56 bytes.
fn text_of(file: &[u8]) -> (u64, &[u8]) {
    let word = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"));
    let first = word(32) as usize;
    let headers = (0..usize::from(file[56])).map(|n| first + 56 * n);
    // PT_LOAD, executable.
    let load = headers.clone().find(|at| file[*at] == 1 && file[at + 4] & 1 == 1).expect("there is text");
    let (offset, address, size) = (word(load + 8) as usize, word(load + 16), word(load + 32) as usize);
    (address, &file[offset..offset + size])
}

#[test]
fn whatever_is_done_at_random_leaves_a_program_that_is_right() {
    let _beside_others = serial::shared();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later than 1970");
    let seed = setting("DEBUG_SOAK_SEED").unwrap_or(now.as_nanos() as u64);
    println!("repeat with DEBUG_SOAK_SEED={seed}");
    let Some(guest) = Debugged::of("cases.c", 4, &["check", "6"]) else { return };
    let places = ["hit", "fib", "sum_to"].map(|name| guest.symbol(name)).to_vec();
    let marker = guest.symbol("marker");
    let mut client = guest.client();
    client.ask("qSupported:swbreak+;hwbreak+");
    let mut soak =
        Soak { client, dice: Dice(seed), places, set: vec![(b'0', marker)], stops: 0, said: VecDeque::new() };
    soak.ok(&format!("Z0,{marker:x},1"));
    soak.go("vCont;c");
    soak.stop();
    soak.ok(&format!("z0,{marker:x},1"));
    soak.set.clear();
    let until = Instant::now() + Duration::from_secs(setting("DEBUG_SOAK_SECONDS").unwrap_or(10));
    let mut acts = 0;
    while Instant::now() < until {
        soak.act();
        acts += 1;
        // Now and then the client goes without a word, and another comes.
        if soak.dice.below(200) == 0 {
            soak.note("the next client");
            soak.client.close();
            soak.client = guest.client();
            soak.client.ask("qSupported:swbreak+;hwbreak+");
            soak.set.clear();
        }
    }
    println!("{acts} acts, {} stops", soak.stops);
    for (kind, address) in std::mem::take(&mut soak.set) {
        soak.ok(&format!("z{},{address:x},1", char::from(kind)));
    }
    // A thread of the program, for its memory.
    soak.ok("Hg1");
    let file = std::fs::read(guest.program()).expect("the program is there");
    let (start, text) = text_of(&file);
    for (page, bytes) in text.chunks(4096).enumerate() {
        let wanted: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let found = soak.client.ask(&format!("m{:x},{:x}", start + 4096 * page as u64, bytes.len()));
        // What was never run isn't there.
        assert!(found == wanted || found.starts_with('E'), "page {page} of the text differs");
    }
    soak.ok(&format!("M{:x},8:0000000000000000", guest.symbol("go_on")));
    soak.ok("D");
    guest.end().expect_code(7).expect_stdout("wrong 0 lost 0");
}
