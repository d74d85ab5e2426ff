//! Guests that lie: malformed rings and chains fail the device with bounded work, and random ones never break it.

mod driver;

use std::time::{Duration, Instant};

use driver::*;
use proptest::prelude::*;
use taskvisor_devices::bus::BusDevice;
use taskvisor_devices::virtio::console::{ConsoleIo, Drained, WinSize};
use taskvisor_devices::virtio::stream::{InputStream, OutputStream};
use vm_memory::{Bytes, GuestAddress};

const PLAIN: u64 = VERSION_1 | MULTIPORT | SIZE;

/// Runs `break_it` on a fresh device: it must fail, quickly, tell the driver, do no more, and work again after a reset.
fn must_fail(name: &str, break_it: impl FnOnce(&mut Guest)) {
    let (mut guest, host) = Guest::started();
    write_fd(host.stdin.as_ref().unwrap(), b"input");
    guest.interrupts();
    break_it(&mut guest);
    let start = Instant::now();
    (0..6).for_each(|queue| guest.kick(queue));
    guest.turn();
    assert!(start.elapsed() < Duration::from_secs(1), "{name}: took {:?}", start.elapsed());
    assert!(guest.needs_reset(), "{name}: not noticed");
    assert!(guest.interrupts() > 0, "{name}: the driver was not told");
    assert_eq!(guest.get(reg::INTERRUPT_STATUS) & 2, 2, "{name}");
    assert_eq!(guest.dev().shared_link().failures(), 1, "{name}");
    guest.send(1, b"ignored");
    guest.kick(1);
    guest.turn();
    assert_eq!(guest.dev().drain(None, None), Drained::Complete, "{name}");
    read_available(host.stdout.as_ref().unwrap());
    guest.start(PLAIN);
    guest.send(1, b"well");
    guest.kick(1);
    guest.turn();
    assert_eq!(read_available(host.stdout.as_ref().unwrap()), b"well", "{name}: after the reset");
}

#[test]
fn malformed_chains_fail_the_device() {
    must_fail("a descriptor that is its own successor", |guest| {
        guest.write_desc(1, 0, DATA, 1, F_NEXT, 0);
        guest.make_available(1, 0);
    });
    must_fail("a loop of three", |guest| {
        for i in 0..3 {
            guest.write_desc(1, i, DATA, 1, F_NEXT, (i + 1) % 3);
        }
        guest.make_available(1, 1);
    });
    must_fail("a successor out of range", |guest| {
        guest.write_desc(1, 0, DATA, 1, F_NEXT, 64);
        guest.make_available(1, 0);
    });
    must_fail("a head out of range", |guest| guest.make_available(1, 0xffff));
    must_fail("a buffer outside of RAM", |guest| {
        guest.offer(1, &[(RAM, 1)], false);
    });
    must_fail("a buffer that ends outside of RAM", |guest| {
        guest.offer(1, &[(DATA, 16), (RAM - 8, 9)], false);
    });
    must_fail("a buffer that wraps around", |guest| {
        guest.offer(1, &[(u64::MAX, 2)], false);
    });
    must_fail("a buffer of 4 GiB", |guest| {
        guest.offer(5, &[(DATA, u32::MAX)], false);
    });
    must_fail("an indirect descriptor", |guest| {
        guest.write_desc(1, 0, DATA, 16, F_INDIRECT, 0);
        guest.make_available(1, 0);
    });
    must_fail("a writable buffer to transmit", |guest| {
        guest.offer(1, &[(DATA, 1)], true);
    });
    must_fail("a readable buffer to receive", |guest| {
        guest.offer(0, &[(DATA, 1)], false);
    });
    must_fail("an empty receive buffer", |guest| {
        guest.offer(0, &[(DATA, 0)], true);
    });
    must_fail("a good chain before a bad one", |guest| {
        guest.send(1, b"good");
        guest.make_available(1, 77);
    });
    must_fail("a short control message", |guest| {
        guest.send(3, &[0; 7]);
    });
    must_fail("a control receive buffer that is too small", |guest| {
        guest.offer(2, &[(DATA, 7)], true);
        guest.send(3, &[0, 0, 0, 0, 0, 0, 1, 0]);
    });
}

#[test]
fn an_available_index_that_jumps_fails_the_device() {
    for queue in [0, 1, 3, 5] {
        must_fail(&format!("queue {queue}"), |guest| {
            let idx = GuestAddress(guest.queues[queue].avail + 2);
            guest.mem.write_obj(65_u16, idx).unwrap();
        });
    }
}

#[test]
fn a_flood_is_served_in_turns() {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap().into();
    let output = || OutputStream::new(borrow(&null)).unwrap();
    let io = ConsoleIo { stdin: InputStream::Empty, stdout: output(), stderr: output() };
    let mut guest = Guest::new(io, None);
    guest.start(PLAIN);
    // A full ring of chains that all use the same large buffer: 64 * 4 MiB, far more than one turn's budget.
    for _ in 0..64 {
        guest.offer(1, &[(DATA, 4 << 20)], false);
    }
    let link = guest.dev().shared_link();
    guest.dev().process_queue(1);
    assert!(guest.used(1).is_empty());
    assert_eq!(link.queue_evt(1).unwrap().read().unwrap(), 1, "the device calls itself back");
    link.kick(1);
    guest.turn();
    assert_eq!(guest.used(1).len(), 64);
}

/// One step of a random guest.
#[derive(Debug, Clone)]
enum Step {
    Desc { queue: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16 },
    Available { queue: usize, head: u16 },
    Poke { queue: usize, area: u8, offset: u64, value: u16 },
    Register { offset: u64, value: u32 },
    Kick { queue: usize },
    Input { count: usize },
    Output,
    Resize { cols: u16 },
    Turn,
    Restart { event_idx: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let queue = || 0_usize..6;
    // Mostly plausible values: what is refused at once tests little.
    let addr = prop_oneof![8 => DATA..DATA + 0x1000, 1 => RAM - 64..RAM + 64, 1 => any::<u64>()];
    let len = prop_oneof![8 => 0_u32..2048, 1 => 0_u32..0x40_0000, 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0_u16..4, 1 => any::<u16>()];
    let index = || prop_oneof![8 => 0_u16..64, 1 => any::<u16>()];
    prop_oneof![
        6 => (queue(), 0_u16..64, addr, len, flags, index())
            .prop_map(|(queue, index, addr, len, flags, next)| Step::Desc { queue, index, addr, len, flags, next }),
        6 => (queue(), index()).prop_map(|(queue, head)| Step::Available { queue, head }),
        1 => (queue(), 0_u8..3, 0_u64..0x300, any::<u16>())
            .prop_map(|(queue, area, offset, value)| Step::Poke { queue, area, offset, value }),
        1 => (0_u64..0x44, any::<u32>()).prop_map(|(word, value)| Step::Register { offset: word * 4, value: value % 64 }),
        4 => queue().prop_map(|queue| Step::Kick { queue }),
        1 => (0_usize..3000).prop_map(|count| Step::Input { count }),
        1 => Just(Step::Output),
        1 => (0_u16..100).prop_map(|cols| Step::Resize { cols }),
        4 => Just(Step::Turn),
        1 => any::<bool>().prop_map(|event_idx| Step::Restart { event_idx }),
    ]
}

fn run(guest: &mut Guest, host: &HostIo, step: Step) {
    match step {
        Step::Desc { queue, index, addr, len, flags, next } => guest.write_desc(queue, index, addr, len, flags, next),
        Step::Available { queue, head } => guest.make_available(queue, head),
        Step::Poke { queue, area, offset, value } => {
            let vq = guest.queues[queue];
            let base = [vq.desc, vq.avail, vq.used][usize::from(area)];
            guest.mem.write_obj(value, GuestAddress(base + (offset & !1))).unwrap();
        }
        Step::Register { offset, value } => guest.set(offset, value),
        Step::Kick { queue } => guest.kick(queue),
        // A pipe holds 64 KiB, and the guest may never read: keep below.
        Step::Input { count } if count < 1000 => write_fd(host.stdin.as_ref().unwrap(), &vec![b'i'; count / 50]),
        Step::Input { .. } => {}
        Step::Output => {
            read_available(host.stdout.as_ref().unwrap());
            read_available(host.stderr.as_ref().unwrap());
        }
        Step::Resize { cols } => guest.dev().resize(WinSize { cols, rows: 1 }),
        Step::Turn => guest.turn(),
        Step::Restart { event_idx } => guest.start(PLAIN | if event_idx { EVENT_IDX } else { 0 }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// No panic, no hang (the driver's loop has a limit), and always mendable by a reset.
    #[test]
    fn any_guest_leaves_a_device_that_a_reset_mends(steps in prop::collection::vec(step(), 1..300)) {
        let (mut guest, host) = Guest::started();
        for step in steps {
            run(&mut guest, &host, step);
        }
        guest.turn();
        read_available(host.stdout.as_ref().unwrap());
        guest.set(reg::STATUS, 0);
        guest.turn();
        read_available(host.stdout.as_ref().unwrap());
        guest.start(PLAIN);
        guest.send(1, b"alive");
        guest.kick(1);
        guest.turn();
        prop_assert_eq!(read_available(host.stdout.as_ref().unwrap()), b"alive");
    }
}

/// A fuzzer's loop with a fixed seed: raw noise into rings and registers while another thread scribbles over the rings,
/// which no single-threaded test does. `TASKVISOR_FUZZ_SECONDS` makes it run longer.
#[test]
fn noise_from_two_threads_never_breaks_the_device() {
    let seconds = std::env::var("TASKVISOR_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut guest, host) = Guest::started();
    let mem = guest.mem.clone();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = XorShift(0x9e37_79b9_7f4a_7c15);
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let at = RINGS + random.next() % 0x6_0000;
                let value = (random.next() % 70) as u16;
                mem.write_obj(value, GuestAddress(at & !1)).unwrap();
            }
        });
        let mut random = XorShift(42);
        let (mut rounds, mut failures) = (0_u64, 0);
        while Instant::now() < end {
            rounds += 1;
            for _ in 0..50 {
                let queue = (random.next() % 6) as usize;
                match random.next() % 8 {
                    0..4 => {
                        let flags = if queue.is_multiple_of(2) { F_WRITE } else { 0 } | (random.next() % 2) as u16;
                        let (addr, len) = (DATA + random.next() % 0x1000, (random.next() % 512) as u32);
                        let (index, next) = ((random.next() % 64) as u16, (random.next() % 64) as u16);
                        guest.write_desc(queue, index, addr, len, flags, next);
                        guest.make_available(queue, index);
                    }
                    4 => guest.set(random.next() % 0x40 * 4, random.next() as u32 % 32),
                    5 => guest.regs.read(random.next() % 0x200, &mut [0; 8]),
                    _ => guest.kick(queue),
                }
                let dev = guest.console.clone();
                let mut dev = taskvisor_devices::bus::lock(&dev);
                dev.process_queue(queue);
                dev.stdin_ready();
                drop(dev);
            }
            read_available(host.stdout.as_ref().unwrap());
            read_available(host.stderr.as_ref().unwrap());
            if guest.needs_reset() || rounds % 16 == 0 {
                failures += u64::from(guest.needs_reset());
                // The scribbler may break the start as well; then the next round tries again.
                guest.set(reg::STATUS, 0);
                if guest.negotiate(PLAIN | EVENT_IDX) {
                    (0..6).for_each(|index| guest.program_queue(Vq::at(index, 64)));
                    guest.set(reg::STATUS, 15);
                }
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(failures > 0 && rounds > 10, "the noise reaches the device: {failures} failures in {rounds} rounds");
    });
    guest.start(PLAIN);
    guest.send(1, b"alive");
    guest.kick(1);
    guest.turn();
    assert!(read_available(host.stdout.as_ref().unwrap()).ends_with(b"alive"));
}

/// Marsaglia's xorshift64: enough for noise, and the same noise every time.
struct XorShift(u64);

impl XorShift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
