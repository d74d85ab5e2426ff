//! Which steps are under way, and what a trap means to them. Pure.
//!
//! ```text
//!                 the client's step                over a breakpoint that isn't meant
//!  nothing ------- begin -------> stepping    any --- begin_over ---> the same, and over
//!  stepping --- its trap -------> nothing     over --- its trap ----> what was before; the client's step of the
//!  any ------- call off --------> nothing                              same thread is done with it
//!                                            over --- put off -----> what was before
//! ```
//! A thread on its way over a breakpoint of its program may meet one of the kernel, which is gone over first: at most one of each is
//! under way, of one thread.
//!
//! Invariants: a trap is one step's or nobody's, by the thread whose flag was set or the vCPU that KVM stepped; a step that was called off
//! is forgotten: its trap, if it has happened already, is the guest's kernel's to drop (`vcpu_sched::taskdebug`). Called by
//! [`super::run`] and [`super::judge`].

use vcpu_sched::taskdebug::STEPPED;

/// How a step is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// KVM steps this vCPU.
    Vcpu(usize),
    /// The trap flag is set in the program's registers.
    Flag,
    /// The thread goes on at this address when it gets a CPU; that ends the step.
    Arrive(u64),
}

/// A step under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Whose.
    pub thread: u32,
    /// How.
    pub how: How,
    /// It goes on in this range.
    pub range: Option<(u64, u64)>,
}

/// What a debug exception may be the end of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// KVM has stepped this vCPU.
    Vcpu(usize),
    /// This thread has trapped with its flag set.
    Flag(u32),
    /// This thread has got a CPU.
    Arrived(u32),
}

/// Whose it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// No step's.
    Nothing,
    /// Only the breakpoint is behind it.
    Over,
    /// The client's step, which is still there: its range decides.
    Client,
}

impl Step {
    fn ends_by(&self, trap: Trap) -> bool {
        match (self.how, trap) {
            (How::Vcpu(stepped), Trap::Vcpu(vcpu)) => stepped == vcpu,
            (How::Flag, Trap::Flag(thread)) | (How::Arrive(_), Trap::Arrived(thread)) => self.thread == thread,
            _ => false,
        }
    }
}

/// All steps.
#[derive(Debug, Default)]
pub struct Steps {
    client: Option<Step>,
    /// Over a breakpoint, by the trap flag, with where it is.
    over_program: Option<(Step, u64)>,
    /// By KVM, in the kernel, before that.
    over_kernel: Option<(Step, u64)>,
}

impl Steps {
    /// The client wants one, or none.
    pub fn begin(&mut self, step: Option<Step>) {
        self.client = step;
    }

    /// A thread goes over this address, the only one that does.
    pub fn begin_over(&mut self, thread: u32, how: How, address: u64) {
        let over = Some((Step { thread, how, range: None }, address));
        match how {
            How::Vcpu(_) => self.over_kernel = over,
            How::Flag | How::Arrive(_) => (self.over_program, self.over_kernel) = (over, None),
        }
    }

    /// What is stepped first: over comes before anything else.
    pub fn first(&self) -> Option<Step> {
        self.over().or(self.client)
    }

    /// The client's.
    pub fn client(&self) -> Option<Step> {
        self.client
    }

    /// Where no breakpoint may stand meanwhile.
    pub fn except(&self) -> Vec<u64> {
        self.overs().map(|(_, address)| address).collect()
    }

    /// Which vCPUs KVM steps.
    pub fn vcpu_is_stepped(&self, vcpu: usize) -> bool {
        self.all().any(|step| step.how == How::Vcpu(vcpu))
    }

    /// Whose trap flag is ours.
    pub fn flagged(&self) -> [u32; STEPPED] {
        let one = |step: Option<Step>| step.filter(|step| step.how == How::Flag).map_or(0, |step| step.thread);
        [one(self.over_program.map(|(step, _)| step)), one(self.client)]
    }

    /// Something has trapped.
    pub fn ended(&mut self, trap: Trap) -> Ended {
        let ends = |step: &Step| step.ends_by(trap);
        let over = [&mut self.over_kernel, &mut self.over_program]
            .into_iter()
            .find(|over| over.is_some_and(|(step, _)| ends(&step)));
        match over.and_then(Option::take) {
            // One instruction of its thread, whoever wanted it. An instruction of the kernel is none of its program.
            Some((over, _)) => match self.client {
                Some(step) if step.thread == over.thread && step.how.by_kvm() == over.how.by_kvm() => Ended::Client,
                _ => Ended::Over,
            },
            None if self.client.as_ref().is_some_and(ends) => Ended::Client,
            None => Ended::Nothing,
        }
    }

    /// The step over a breakpoint that comes first.
    pub fn over(&self) -> Option<Step> {
        self.overs().map(|(step, _)| step).next()
    }

    /// No breakpoint is gone over any more; those steps that were under way.
    pub fn put_off(&mut self) -> impl Iterator<Item = Step> + use<> {
        let overs = [self.over_kernel.take(), self.over_program.take()];
        overs.into_iter().flatten().map(|(step, _)| step)
    }

    /// No step is under way any more; those that were.
    pub fn call_off(&mut self) -> impl Iterator<Item = Step> + use<> {
        self.put_off().chain(self.client.take())
    }

    fn overs(&self) -> impl Iterator<Item = (Step, u64)> {
        self.over_kernel.into_iter().chain(self.over_program)
    }

    fn all(&self) -> impl Iterator<Item = Step> {
        self.overs().map(|(step, _)| step).chain(self.client)
    }
}

impl How {
    fn by_kvm(self) -> bool {
        matches!(self, Self::Vcpu(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAG: Step = Step { thread: 7, how: How::Flag, range: None };

    #[test]
    fn a_trap_is_the_step_s_that_it_was_made_for() {
        for (how, own) in
            [(How::Vcpu(2), Trap::Vcpu(2)), (How::Flag, Trap::Flag(7)), (How::Arrive(0x10), Trap::Arrived(7))]
        {
            for trap in [Trap::Vcpu(2), Trap::Vcpu(1), Trap::Flag(7), Trap::Flag(8), Trap::Arrived(7), Trap::Arrived(8)]
            {
                let mut steps = Steps::default();
                assert_eq!(steps.ended(trap), Ended::Nothing);
                steps.begin(Some(Step { how, ..FLAG }));
                assert_eq!(
                    steps.ended(trap),
                    if trap == own { Ended::Client } else { Ended::Nothing },
                    "{how:?} {trap:?}"
                );
            }
        }
    }

    #[test]
    fn going_over_a_breakpoint_leaves_the_client_s_step_of_another() {
        let mut steps = Steps::default();
        steps.begin(Some(FLAG));
        steps.begin_over(9, How::Flag, 0x40);
        assert_eq!((steps.first().map(|step| step.thread), steps.except()), (Some(9), vec![0x40]));
        assert_eq!(steps.flagged(), [9, 7]);
        assert_eq!(steps.ended(Trap::Flag(9)), Ended::Over);
        assert_eq!((steps.first(), steps.except()), (Some(FLAG), vec![]));
        assert_eq!(steps.ended(Trap::Flag(9)), Ended::Nothing);
        assert_eq!(steps.ended(Trap::Flag(7)), Ended::Client);
    }

    #[test]
    fn going_over_is_the_client_s_step_too_if_it_is_the_same_thread() {
        let mut steps = Steps::default();
        steps.begin(Some(FLAG));
        steps.begin_over(7, How::Flag, 0x40);
        assert_eq!(steps.ended(Trap::Flag(7)), Ended::Client);
        assert!(steps.except().is_empty());
    }

    #[test]
    fn the_kernel_s_breakpoint_on_the_way_is_gone_over_first() {
        let mut steps = Steps::default();
        steps.begin(Some(FLAG));
        steps.begin_over(7, How::Flag, 0x40);
        steps.begin_over(7, How::Vcpu(1), 0x8000);
        assert_eq!((steps.first().map(|step| step.how), steps.except()), (Some(How::Vcpu(1)), vec![0x8000, 0x40]));
        assert_eq!(steps.ended(Trap::Vcpu(1)), Ended::Over, "the client steps the program");
        assert_eq!((steps.except(), steps.flagged()), (vec![0x40], [7, 7]));
        assert_eq!(steps.ended(Trap::Flag(7)), Ended::Client);
        // A signal on the way: its handler begins at another breakpoint.
        steps.begin_over(7, How::Flag, 0x40);
        steps.begin_over(7, How::Flag, 0x80);
        assert_eq!(steps.except(), [0x80]);
    }

    #[test]
    fn going_over_is_put_off_and_the_client_s_step_stays() {
        let mut steps = Steps::default();
        assert_eq!(steps.put_off().count(), 0);
        steps.begin(Some(FLAG));
        steps.begin_over(9, How::Flag, 0x40);
        assert_eq!(steps.put_off().map(|step| step.thread).collect::<Vec<_>>(), [9]);
        assert_eq!((steps.over(), steps.except(), steps.client()), (None, vec![], Some(FLAG)));
        assert_eq!(steps.ended(Trap::Flag(9)), Ended::Nothing);
    }

    #[test]
    fn what_was_called_off_is_nobody_s() {
        let mut steps = Steps::default();
        steps.begin(Some(FLAG));
        steps.begin_over(9, How::Vcpu(1), 0x40);
        assert!(steps.vcpu_is_stepped(1) && !steps.vcpu_is_stepped(0));
        assert_eq!(steps.call_off().map(|step| step.thread).collect::<Vec<_>>(), [9, 7]);
        assert_eq!((steps.ended(Trap::Flag(7)), steps.ended(Trap::Vcpu(1))), (Ended::Nothing, Ended::Nothing));
        assert_eq!((steps.first(), steps.except(), steps.flagged()), (None, vec![], [0, 0]));
    }
}
