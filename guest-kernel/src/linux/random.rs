//! Random bytes: ChaCha20 with fast key erasure (D. J. Bernstein's construction), seeded once.
//!
//! Quality of the seed: RDRAND where ring 0 may execute it; else the jitter of TSC readings around instructions that leave
//! the guest, the wall clock and the TSC itself, which are unguessable in practice but carry no proof. Where the programs
//! need more than that, they bring their own. In a repeatable run (`chaos`) the seed is that of the run.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::features::{Features, has};
use crate::arch::instr;
use crate::chaos;
use crate::sync::SpinLock;
use crate::time;

/// "expand 32-byte k": RFC 8439 2.3.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

struct Generator {
    key: [u32; 8],
    counter: u64,
    /// Unused output; bytes below `used` are given out and erased.
    block: [u8; 64],
    used: usize,
}

/// Guards the generator.
static GENERATOR: SpinLock<Generator> = SpinLock::new(Generator { key: [0; 8], counter: 0, block: [0; 64], used: 64 });
static SEEDED: AtomicBool = AtomicBool::new(false);

/// Fills a buffer. From any context that may spin.
pub fn fill(out: &mut [u8]) {
    let mut g = GENERATOR.lock();
    if !SEEDED.load(Ordering::Relaxed) {
        g.key = seed();
        SEEDED.store(true, Ordering::Relaxed);
    }
    let mut at = 0;
    while at < out.len() {
        if g.used == 64 {
            g.refill();
        }
        let n = (64 - g.used).min(out.len() - at);
        let from = g.used;
        out[at..at + n].copy_from_slice(&g.block[from..from + n]);
        g.block[from..from + n].fill(0);
        g.used += n;
        at += n;
    }
}

impl Generator {
    /// The next block. Its first half becomes the next key, so that what was given out can't be computed from what is here.
    fn refill(&mut self) {
        let block = chacha20(&self.key, self.counter);
        self.counter += 1;
        self.key.copy_from_slice(&block[..8]);
        for (out, w) in self.block[32..].chunks_exact_mut(4).zip(&block[8..]) {
            out.copy_from_slice(&w.to_le_bytes());
        }
        self.used = 32;
    }
}

/// One ChaCha20 block (RFC 8439 2.3) with a 64-bit counter and a zero nonce.
fn chacha20(key: &[u32; 8], counter: u64) -> [u32; 16] {
    let mut input = [0; 16];
    input[..4].copy_from_slice(&CONSTANTS);
    input[4..12].copy_from_slice(key);
    (input[12], input[13]) = (counter as u32, (counter >> 32) as u32);
    let mut s = input;
    for _ in 0..10 {
        for [a, b, c, d] in [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]] {
            quarter(&mut s, a, b, c, d);
        }
        for [a, b, c, d] in [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]] {
            quarter(&mut s, a, b, c, d);
        }
    }
    for (w, i) in s.iter_mut().zip(input) {
        *w = w.wrapping_add(i);
    }
    s
}

#[inline(always)]
fn quarter(s: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    for (x, y, z, turn) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        s[x] = s[x].wrapping_add(s[y]);
        s[z] = (s[z] ^ s[x]).rotate_left(turn);
    }
}

/// Readings that make the seed.
const ROUNDS: usize = 16;

/// 32 bits of the hardware's generator, 0 if it has none ready. The CPU has RDRAND.
fn rdrand() -> u32 {
    let mut v = 0;
    // SAFETY: the caller has looked at CPUID.
    unsafe { core::arch::x86_64::_rdrand32_step(&mut v) };
    v
}

fn seed() -> [u32; 8] {
    let mut key = [0; 8];
    if chaos::clock::on() {
        // A run that can be repeated: no secrets there.
        let seed = chaos::seed();
        (key[0], key[1]) = (seed as u32, (seed >> 32) as u32);
        return key;
    }
    let wall = time::wall::now().0;
    (key[0], key[1]) = (wall as u32, (wall >> 32) as u32);
    let hardware = instr::cpuid(1, 0).2 & 1 << 30 != 0 && !has(Features::SLOW_RING0);
    for round in 0..ROUNDS {
        if hardware {
            key[round % 8] ^= rdrand();
        } else {
            instr::cpuid(0, 0); // leaves the guest: how long that takes varies
        }
        let t = instr::rdtsc();
        key[round % 8] = (key[round % 8] ^ t as u32).rotate_left(11).wrapping_mul(0x9e37_79b1);
    }
    // Mixed once more, so that every bit of the key depends on every reading.
    let mut mixed = [0; 8];
    mixed.copy_from_slice(&chacha20(&key, wall)[..8]);
    mixed
}

/// getrandom(2).
pub fn getrandom(out: u64, len: u64, flags: u64) -> crate::linux::errno::SysResult {
    /// GRND_NONBLOCK, GRND_RANDOM, GRND_INSECURE.
    const KNOWN: u64 = 7;
    if flags & !KNOWN != 0 {
        return Err(crate::linux::errno::Errno::EINVAL);
    }
    // Linux gives at most this much at a time.
    let len = len.min((32 << 20) - 1);
    let mut done = 0;
    while done < len {
        let mut chunk = [0; 256];
        let n = (len - done).min(256) as usize;
        fill(&mut chunk[..n]);
        match crate::mm::user::write_bytes(out.wrapping_add(done), &chunk[..n]) {
            Ok(()) => done += n as u64,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e.into()),
        }
        if crate::task::current().is_interrupted() {
            break; // a signal cuts a long request short
        }
    }
    Ok(done)
}
