//! The clock's state machine on a page in memory that a test plays the guest of.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use vcpu_sched::clock::page::BYTES;
use vcpu_sched::directory::EntryKind;
use vcpu_sched::ids::{Khz, Nanos};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::counter::Counter;
use super::state::State;
use super::*;
use crate::memory;

const KHZ: u32 = 2_000_000;
const PAGE: u64 = 0x20_0000;

/// A guest's memory with a clock page in it that shows 0 now.
fn guest() -> Ram {
    let ram = memory::allocate(16 << 20, 46).unwrap();
    let line = ClockLine::new(Khz(KHZ), Khz(KHZ), host_ticks(), Nanos::ZERO).unwrap();
    open(&ram).get().set_line(&line);
    ram
}

fn open(ram: &Ram) -> GuestPage {
    let entry = Entry { kind: EntryKind::Clock as u32, index: 0, address: PAGE, len: BYTES as u64, extra: 0 };
    GuestPage::open(ram, &entry).unwrap()
}

/// A clock that is in force, whose counter is the host's.
fn begun(ram: &Ram, rate: Rate, offsets: Vec<i64>) -> State {
    let mut state = State::new(rate, offsets, false);
    state.begin(open(ram), Counter::settle(KHZ, KHZ, Some(0), 0, 0), 1_000_000).unwrap();
    state
}

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

#[test]
fn what_was_asked_for_is_in_the_page_once_the_guest_shows_it() {
    let ram = guest();
    begun(&ram, rate("0.5"), vec![0, -3_000, 4_000]);
    let page = open(&ram);
    let line = page.get().checked().unwrap();
    assert_eq!((line.rate, line.counter, line.told), (rate("0.5"), Khz(KHZ), Khz(1_000_000)));
    assert!(line.base_ns >= Nanos(3_000), "no vCPU's clock may be before 0");
    assert_eq!([0, 1, 2, 3].map(|cpu| page.get().skew(cpu)), [0, -3_000, 4_000, 0]);
}

#[test]
fn a_page_that_is_no_clock_is_told_and_left_alone() {
    let ram = memory::allocate(16 << 20, 46).unwrap();
    let mut state = State::new(Rate::REAL, vec![0], false);
    let begun = state.begin(open(&ram), Counter::settle(KHZ, KHZ, Some(0), 0, 0), KHZ);
    assert_eq!(begun, Err(ClockError::Page(PageError::Magic(0))));
    assert_eq!(state.change_line(|line, _| Ok(line)), Err(ClockError::NoPage));
    assert_eq!(state.set_offset(None, 1, false), Err(ClockError::NoPage));
    let mut page = [1; BYTES];
    vm_memory::Bytes::read_slice(&ram, &mut page, GuestAddress(PAGE)).unwrap();
    assert_eq!(page, [0; BYTES]);
}

#[test]
fn an_offset_that_sets_a_clock_back_must_be_asked_for_by_name() {
    let ram = guest();
    let mut state = begun(&ram, Rate::REAL, vec![0, 0]);
    state.set_offset(Some(1), 500, false).unwrap();
    assert_eq!(state.set_offset(None, 100, false), Err(ClockError::Backward { vcpu: 1, nanos: 400 }));
    assert_eq!(state.offsets, [0, 500]);
    state.set_offset(None, 100, true).unwrap();
    assert_eq!(state.offsets, [100, 100]);
    assert_eq!(state.set_offset(Some(2), 0, true), Err(ClockError::NoVcpu { vcpu: 2, vcpus: 2 }));
}

#[test]
fn a_clock_that_stands_still_shows_one_time_and_goes_on_from_there() {
    let ram = guest();
    let mut state = begun(&ram, rate("100"), vec![0]);
    state.stop();
    let stopped = state.now();
    // A second pause inside of the first changes nothing, nor does a change of the rate.
    state.stop();
    state.change_line(|line, now| Ok(line.with_rate(now, Rate::MIN)?)).unwrap();
    assert!(!state.go_on());
    assert_eq!(state.now(), stopped);
    assert!(state.go_on());
    let line = open(&ram).get().checked().unwrap();
    assert_eq!((Some(line.base_ns), state.stopped_at), (stopped, None));
    assert!(!state.go_on(), "nothing left to end");
}

#[test]
fn cpus_are_not_told_of_every_short_pause() {
    let ram = guest();
    let mut state = begun(&ram, Rate::REAL, vec![0]);
    let mut pause = |length: Duration| {
        state.stop();
        std::thread::sleep(length);
        state.go_on()
    };
    assert!(pause(Duration::ZERO), "the first");
    let begin = Instant::now();
    let told = (0..100).filter(|_| pause(Duration::from_micros(100))).count();
    // However slow the host is.
    assert!(told as u128 <= begin.elapsed().as_millis() / 20, "told {told} times in {:?}", begin.elapsed());
    assert!(pause(Duration::from_millis(250)), "a long one");
    std::thread::sleep(Duration::from_millis(25));
    assert!(pause(Duration::ZERO), "they have run meanwhile");
}

proptest! {
    /// Whatever is changed, a vCPU that reads its page before and after sees no time run backwards.
    #[test]
    fn no_sequence_of_changes_runs_backwards(changes in prop::collection::vec((0..5u8, 0..u64::MAX), 1..40)) {
        let ram = guest();
        let mut state = begun(&ram, Rate::REAL, vec![0]);
        let page = open(&ram);
        let mut last = page.get().now(host_ticks);
        for (what, value) in changes {
            match what {
                0 => {
                    let rate = Rate::from_nanos(Rate::MIN.nanos() + value % (Rate::MAX.nanos() - Rate::MIN.nanos())).unwrap();
                    state.change_line(|line, now| Ok(line.with_rate(now, rate)?)).unwrap();
                }
                1 => {
                    let step = Step::Forward(Nanos(value % 1_000_000_000));
                    state.change_line(|line, now| Ok(line.with_step(now, step)?)).unwrap();
                }
                2 => state.stop(),
                3 => drop(state.go_on()),
                _ => {}
            }
            if state.stopped_at.is_none() {
                let now = page.get().now(host_ticks);
                prop_assert!(now >= last, "{now:?} after {last:?}");
                last = now;
            }
        }
    }
}

#[test]
fn the_whole_page_lies_where_the_entry_says() {
    let ram = guest();
    assert_eq!(open(&ram).get() as *const _ as usize, ram.get_host_address(GuestAddress(PAGE)).unwrap() as usize);
}
