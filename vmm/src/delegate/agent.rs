//! The VMM's own agent, in a thread of its own ([`super::thread`]).

use std::sync::Arc;
use std::time::Duration;

use vcpu_sched::delegation::agent::AgentError;
use vcpu_sched::delegation::layout::{LayoutError, Region};
use vcpu_sched::delegation::policies::named::Spec;
use vcpu_sched::ids::{CpuId, Nanos};

use super::drive::{Place, drive};
use super::memory::{Memory, RegionError};
use super::{Bell, Figures, Kicks, Watch};
use crate::clock::Clock;

/// What the agent works with.
#[derive(Debug)]
pub struct Desk {
    /// Who decides.
    pub policy: Spec,
    /// The host CPU that it has for itself, spinning.
    pub cpu: Option<u32>,
    /// The enclave's memory.
    pub memory: Memory,
    /// What the guest's clock shows.
    pub clock: Clock,
    /// How vCPUs are interrupted.
    pub kicks: Kicks,
    /// What wakes it.
    pub bell: Arc<Bell>,
    /// What the host does with the vCPUs.
    pub watch: Watch,
}

/// Why the agent ended before the guest did.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// There is nothing to be decided about.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// It was thrown out.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Waits until the guest has laid out its enclave. `None`: the machine ended before.
pub fn until_there<'m>(memory: &'m Memory, bell: &Bell) -> Result<Option<Region<'m>>, RegionError> {
    loop {
        match memory.region() {
            Ok(region) => return Ok(Some(region)),
            // The bell rings when the guest has told; a kernel of another kind never does.
            Err(RegionError::Layout(LayoutError::Magic(0))) => {}
            Err(error) => return Err(error),
        }
        if bell.wait(None) {
            return Ok(None);
        }
    }
}

impl Desk {
    /// Decides until the machine ends.
    pub fn work(self, figures: &Figures) -> Result<(), WorkError> {
        let Self { policy, cpu, memory, clock, kicks, bell, watch } = self;
        let Some(region) = until_there(&memory, &bell)? else { return Ok(()) };
        let mut thread = InVmm { clock, kicks, bell, watch };
        // Before the policy is made: it may want to know who shares a core.
        thread.look(&region, thread.now());
        Ok(drive(region, policy.make(&region), cpu.is_none(), &mut thread, figures)?)
    }
}

/// Beside the vCPUs.
struct InVmm {
    clock: Clock,
    kicks: Kicks,
    bell: Arc<Bell>,
    watch: Watch,
}

impl Place for InVmm {
    /// What the guest's clock shows.
    fn now(&self) -> Nanos {
        self.clock.now().unwrap_or(Nanos::ZERO)
    }

    fn look(&mut self, region: &Region<'_>, now: Nanos) {
        self.watch.look(region, now);
    }

    fn kick(&self, cpu: CpuId) {
        self.kicks.kick(cpu.0);
    }

    fn has_ended(&self) -> bool {
        self.bell.has_ended()
    }

    fn wait(&mut self, limit: Duration) {
        self.bell.wait(Some(limit));
    }
}
