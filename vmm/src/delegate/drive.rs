//! An agent's loop, wherever it runs: in a thread of the VMM, or in a process of its own.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use vcpu_sched::delegation::agent::{Agent, AgentError, Options};
use vcpu_sched::delegation::layout::Region;
use vcpu_sched::delegation::policies::Policy;
use vcpu_sched::ids::{CpuId, Nanos};

use super::Figures;

/// Turns without anything to do before an agent that may sleep does: some microseconds.
const TURNS_BEFORE_SLEEP: u32 = 200;
/// A sleeping agent looks again after this time even if nobody rings: a policy may want to act by time alone, and the guest's word
/// about the bell is the guest's.
const NAP: Duration = Duration::from_millis(5);
/// How often the clock is read: the agent's time may be so many turns old.
const TURNS_A_CLOCK: u32 = 16;

/// What the loop needs of the place where it runs.
pub trait Place {
    /// The time, by any clock that never goes back.
    fn now(&self) -> Nanos;

    /// Looks around now and then, at what else is to be done there.
    fn look(&mut self, region: &Region<'_>, now: Nanos);

    /// Interrupts a CPU.
    fn kick(&self, cpu: CpuId);

    /// Is there nothing to be decided any more?
    fn has_ended(&self) -> bool;

    /// Waits until the doorbell rings, or it has ended, for so long at most.
    fn wait(&mut self, limit: Duration);
}

/// Decides until the place says that it has ended. `sleeps`: not all the time, but when there is something to be done.
///
/// # Errors
/// [`AgentError`].
pub fn drive<P: Policy>(
    region: Region<'_>,
    policy: P,
    sleeps: bool,
    place: &mut impl Place,
    figures: &Figures,
) -> Result<(), AgentError> {
    let options = Options { nonce: nonce(), sleeps, tunables: 0, runnable_timeout: 0 };
    let mut agent = Agent::attach(region, options, policy)?;
    // Any CPU of the enclave sees it.
    if let Some(cpu) = region.cpu_set().first() {
        place.kick(cpu);
    }
    let (mut idle, mut naps, mut turn, mut now) = (0, 0, 0_u32, place.now());
    let ended = loop {
        if turn.is_multiple_of(TURNS_A_CLOCK) {
            now = place.now();
            place.look(&region, now);
        }
        if place.has_ended() {
            break Ok(());
        }
        turn = turn.wrapping_add(1);
        match agent.step(now, &mut |cpu| place.kick(cpu)) {
            Ok(true) => idle = 0,
            Ok(false) => idle += 1,
            Err(error) => break Err(error),
        }
        if idle < TURNS_BEFORE_SLEEP {
            std::hint::spin_loop();
            continue;
        }
        idle = 0;
        figures.note(agent.counters(), naps);
        if sleeps {
            if agent.may_sleep() || !agent.is_accepted() {
                naps += 1;
                place.wait(NAP);
            }
            agent.woke();
            turn = 0;
        }
    };
    figures.note(agent.counters(), naps);
    // A machine that ends needs no hand-off.
    ended
}

/// A number for this agent.
fn nonce() -> u32 {
    // Only to differ from the agent before: any number but 0 is right.
    (RandomState::new().build_hasher().finish() as u32).max(1)
}
