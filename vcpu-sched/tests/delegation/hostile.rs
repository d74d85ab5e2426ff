//! Neither side believes the other: an agent that writes anything anywhere harms no task, and a guest that does harms no agent.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::delegation::agent::Agent;
use vcpu_sched::delegation::enclave::Config;
use vcpu_sched::delegation::layout::{Region, Sizes};
use vcpu_sched::delegation::policies::Policy;
use vcpu_sched::delegation::policies::cores::Cores;
use vcpu_sched::delegation::policies::edf::Edf;
use vcpu_sched::delegation::policies::fifo::Fifo;
use vcpu_sched::delegation::policies::percpu::PerCpu;
use vcpu_sched::delegation::policies::remote::Remote;
use vcpu_sched::delegation::policies::shinjuku::Shinjuku;
use vcpu_sched::delegation::policies::steal::StealAware;
use vcpu_sched::ids::{CpuId, Nanos};
use vcpu_sched::runqueue::PolicyKind;

use super::guest::{Guest, Script, agent, memory, options};

/// What is written where: a word anywhere, often one that means something, or one with a bit turned.
#[derive(Clone, Copy, Debug)]
enum Scribble {
    Word {
        at: prop::sample::Index,
        value: u64,
    },
    Bit {
        at: prop::sample::Index,
        bit: u32,
    },
    /// A transaction or a message that looks right: the first word says READY, or a kind at a position.
    Plausible {
        at: prop::sample::Index,
        kind: u16,
        slot: u32,
        barrier: u32,
        gtid: u64,
        flags: u32,
    },
    Step,
}

fn scribble() -> impl Strategy<Value = Scribble> {
    let small = || prop_oneof![0..8_u64, Just(u64::MAX), any::<u64>(), 100..140_u64];
    prop_oneof![
        (any::<prop::sample::Index>(), small()).prop_map(|(at, value)| Scribble::Word { at, value }),
        (any::<prop::sample::Index>(), 0..64_u32).prop_map(|(at, bit)| Scribble::Bit { at, bit }),
        (any::<prop::sample::Index>(), 0..72_u16, 0..10_u32, 0..40_u32, 100..112_u64, 0..512_u32).prop_map(
            |(at, kind, slot, barrier, gtid, flags)| Scribble::Plausible { at, kind, slot, barrier, gtid, flags }
        ),
        Just(Scribble::Step),
        Just(Scribble::Step),
    ]
}

fn write(words: &[AtomicU64], scribble: Scribble) {
    let set = |at: usize, value: u64| {
        if let Some(word) = words.get(at) {
            word.store(value, Ordering::Relaxed);
        }
    };
    match scribble {
        Scribble::Word { at, value } => set(at.index(words.len()), value),
        Scribble::Bit { at, bit } => {
            words[at.index(words.len())].fetch_xor(1 << bit, Ordering::Relaxed);
        }
        Scribble::Plausible { at, kind, slot, barrier, gtid, flags } => {
            let line = at.index(words.len() / 8) * 8;
            let ready = 256 | 1 << 32;
            let message = u64::from(barrier) | u64::from(kind) << 32 | u64::from(flags) << 48;
            set(line, if kind % 2 == 0 { ready } else { message });
            set(line + 1, if kind % 2 == 0 { gtid } else { u64::from(slot) | u64::from(barrier) << 32 });
            set(line + 2, if kind % 2 == 0 { u64::from(slot) | u64::from(barrier) << 32 } else { gtid });
            set(line + 3, u64::from(slot % 4) << 32 | u64::from(kind % 5) << 48);
            set(line + 4, u64::from(flags) | u64::from(kind % 32) << 32);
        }
        Scribble::Step => {}
    }
}

fn policies() -> Vec<Box<dyn Policy>> {
    vec![
        Box::new(Fifo::default()),
        Box::new(PerCpu::default()),
        Box::new(Shinjuku::new(Nanos::from_micros(50))),
        Box::new(Edf::default()),
        Box::new(StealAware::default()),
        Box::new(Cores::new(vec![vec![CpuId(0), CpuId(1)], vec![CpuId(2)]], |gtid| gtid % 2)),
        Box::new(Remote::new(PolicyKind::Fair)),
    ]
}

#[test]
fn a_guest_may_claim_to_have_lost_any_number_of_messages() {
    let mut guest = Guest::new(1);
    let mut agent = agent(&mut guest, Fifo::default());
    let overflow = guest.region.channel(0).expect("two channels").overflow;
    for claim in [u64::MAX, 5, u64::MAX - 1, 0] {
        overflow.store(claim, Ordering::Relaxed);
        agent.step(Nanos::ZERO, &mut |_| {}).expect("nobody ejects it");
    }
    assert_eq!(agent.counters().lost, u64::MAX);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// The agent writes anything anywhere, in the guest's own sections, too. No task is lost, and when it is thrown out, or
    /// gives up, every task comes to its end.
    #[test]
    fn an_agent_that_scribbles_harms_no_task(
        scribbles in prop::collection::vec(scribble(), 50..400),
        which in 0..7_usize,
    ) {
        let mut guest = Guest::with(Config::new(1, CpuMask::full(3)), 3, 16);
        for n in 0..9 {
            guest.spawn(Script { run: 2 + n % 5, wait: n % 4, rounds: 6, nice: 0 });
        }
        let policy = policies().swap_remove(which);
        let mut agent = agent(&mut guest, policy);
        for scribble in scribbles {
            write(guest.words, scribble);
            let mut kicks = Vec::new();
            let _ = agent.step(guest.now(), &mut |cpu| kicks.push(cpu));
            kicks.into_iter().filter(|cpu| cpu.0 < 3).for_each(|cpu| guest.kick(cpu));
            guest.advance();
            guest.check();
        }
        drop(agent);
        guest.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let mut steps = 0;
        while !guest.all_ended() {
            guest.advance();
            if steps % 64 == 0 {
                guest.check();
            }
            steps += 1;
            prop_assert!(steps < 250_000, "some task never runs again");
        }
    }

    /// A guest's region that changes in any way: the agent neither panics nor runs without end, and kicks only CPUs that
    /// there are.
    #[test]
    fn a_guest_that_scribbles_harms_no_agent(
        scribbles in prop::collection::vec(scribble(), 50..400),
        which in 0..7_usize,
    ) {
        let mut guest = Guest::with(Config::new(1, CpuMask::full(3)), 3, 16);
        for _ in 0..9 {
            guest.spawn(Script { run: 3, wait: 2, rounds: 50, nice: 0 });
        }
        let policy = policies().swap_remove(which);
        let mut agent = agent(&mut guest, policy);
        for (n, scribble) in scribbles.into_iter().enumerate() {
            write(guest.words, scribble);
            let mut kicks = Vec::new();
            for _ in 0..3 {
                let _ = agent.step(Nanos(n as u64 * 1_000), &mut |cpu| kicks.push(cpu));
            }
            prop_assert!(kicks.iter().all(|cpu| cpu.0 < 3));
            prop_assert!(kicks.len() <= 9);
            prop_assert!(agent.tasks().len() <= 256);
            if n % 3 == 0 {
                guest.advance();
            }
        }
    }

    /// A region from anywhere: refused, or used without going beyond it.
    #[test]
    fn a_region_of_noise_is_refused_or_bounded(
        noise in prop::collection::vec(any::<u64>(), 0..40),
        keep in any::<bool>(),
        cut in 0..30_000_usize,
    ) {
        let (words, layout) = memory(Sizes { cpus: 2, tasks: 4, channels: 1, channel_len: 4, pick_len: 2 });
        Region::new(words, layout).expect("long enough").publish_header(1, &CpuMask::full(2));
        for (word, noise) in words.iter().zip(&noise).skip(usize::from(keep)) {
            word.store(*noise, Ordering::Relaxed);
        }
        if let Ok(region) = Region::open(&words[..cut.min(words.len())])
            && let Ok(mut agent) = Agent::attach(region, options(1), Fifo::default())
        {
            let _ = agent.step(Nanos::ZERO, &mut |_| {});
        }
    }
}
