//! Where a vCPU's thread gets its orders: run, stay out of the guest, do something for somebody else, end.
//!
//! One [`Seat`] a vCPU, shared by its thread (which takes it, [`Seat::take`], and asks [`Taken::turn`] whenever it was
//! kicked out of the guest) and by [`crate::vm::run_control`], the only one who gives orders. [`Orders`] is the pure part.
//! Invariants: a vCPU that anybody holds doesn't run; whoever waits for a vCPU gets an answer even if its thread ends, for
//! the thread's [`Taken`] tells so when it is dropped; no lock is held while a vCPU runs or works.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use super::kick;

/// What a parked vCPU does for somebody else, in its own thread.
pub type Job = Box<dyn FnOnce(&mut VcpuFd) + Send>;

/// What the thread does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<J = Job> {
    /// Enter the guest.
    Run,
    /// Do this, then ask again.
    Work(J),
    /// Wait until the orders change, then ask again.
    Wait,
    /// End.
    Leave,
}

/// What the thread is known to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is no thread, or not any more.
    Vacant,
    /// It may be in the guest.
    Running,
    /// It is out of the guest and stays there.
    Parked,
}

/// The orders of one vCPU and what became of them.
struct Orders<J> {
    phase: Phase,
    /// How many want it to stay out of the guest.
    holds: u32,
    /// It has stopped by itself, and stays out of the guest until it is told to go on.
    stopped: bool,
    /// It shall end.
    leave: bool,
    jobs: VecDeque<J>,
    /// The host thread, once there is one.
    tid: i32,
}

impl<J> Orders<J> {
    const fn new() -> Self {
        Self { phase: Phase::Vacant, holds: 0, stopped: false, leave: false, jobs: VecDeque::new(), tid: 0 }
    }

    /// The thread asks. An end wins over everything, jobs over waiting; nobody runs while one is wanted or held.
    fn turn(&mut self) -> Turn<J> {
        let turn = if self.leave {
            Turn::Leave
        } else if let Some(job) = self.jobs.pop_front() {
            Turn::Work(job)
        } else if self.holds > 0 || self.stopped {
            Turn::Wait
        } else {
            Turn::Run
        };
        self.phase = if matches!(turn, Turn::Run) { Phase::Running } else { Phase::Parked };
        turn
    }

    /// The thread has ended; what was wanted of it can't be done.
    fn vacate(&mut self) -> VecDeque<J> {
        self.phase = Phase::Vacant;
        std::mem::take(&mut self.jobs)
    }

    /// Takes a job, if there is a parked thread that will do it.
    fn give(&mut self, job: J) -> Result<(), J> {
        if self.phase == Phase::Parked && !self.leave {
            self.jobs.push_back(job);
            Ok(())
        } else {
            Err(job)
        }
    }
}

/// One vCPU's orders.
pub struct Seat {
    orders: Mutex<Orders<Job>>,
    /// The thread waits here while it is parked.
    ordered: Condvar,
    /// Others wait here until it has parked or gone.
    obeyed: Condvar,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let orders = self.orders();
        f.debug_struct("Seat").field("phase", &orders.phase).field("holds", &orders.holds).finish_non_exhaustive()
    }
}

impl Default for Seat {
    fn default() -> Self {
        Self { orders: Mutex::new(Orders::new()), ordered: Condvar::new(), obeyed: Condvar::new() }
    }
}

impl Seat {
    /// No code that can panic runs under the lock, so its state is sound even if a thread has.
    fn orders(&self) -> MutexGuard<'_, Orders<Job>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the thread that runs the vCPU: from now on it is waited for. Call it before the thread exists and move the
    /// result into it, so that a thread that can't be made isn't waited for.
    pub fn take(self: &Arc<Self>) -> Taken {
        self.orders().phase = Phase::Running;
        Taken(self.clone())
    }

    /// One more wants the vCPU to stay out of the guest. Doesn't wait: see [`Seat::wait`].
    pub fn hold(&self) {
        let mut orders = self.orders();
        orders.holds += 1;
        kick(&orders);
    }

    /// One less does.
    pub fn release(&self) {
        let mut orders = self.orders();
        debug_assert!(orders.holds > 0);
        orders.holds = orders.holds.saturating_sub(1);
        if orders.holds == 0 {
            self.ordered.notify_all();
        }
    }

    /// As [`Seat::release`] and [`Seat::go`] in one: between the two it would run, and a stop that it makes there would be taken for the
    /// one that is over.
    pub fn release_stopped(&self) {
        let mut orders = self.orders();
        orders.stopped = false;
        debug_assert!(orders.holds > 0);
        orders.holds = orders.holds.saturating_sub(1);
        self.ordered.notify_all();
    }

    /// A vCPU that has stopped by itself may go on, unless it is held. Only for one that is known to stand still: see
    /// [`Seat::release_stopped`].
    pub fn go(&self) {
        self.orders().stopped = false;
        self.ordered.notify_all();
    }

    /// The thread shall end.
    pub fn leave(&self) {
        let mut orders = self.orders();
        orders.leave = true;
        kick(&orders);
        self.ordered.notify_all();
    }

    /// Waits until a vCPU that is held is out of the guest, or has no thread; `false` if that took longer than until
    /// `deadline`.
    pub fn wait(&self, deadline: Instant) -> bool {
        let mut orders = self.orders();
        while orders.phase == Phase::Running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            orders = self.obeyed.wait_timeout(orders, left).map_or_else(|e| e.into_inner().0, |(guard, _)| guard);
        }
        true
    }

    /// Gives a parked vCPU something to do. A thread that ends instead drops the job.
    pub fn give(&self, job: Job) -> Result<(), Job> {
        self.orders().give(job)?;
        self.ordered.notify_all();
        Ok(())
    }
}

/// Gets a thread that may be in the guest out of it.
fn kick<J>(orders: &Orders<J>) {
    // A thread that has no number yet asks for its turn before it enters the guest.
    if orders.phase == Phase::Running && orders.tid != 0 {
        kick::kick_thread(orders.tid);
    }
}

/// A vCPU thread's own end of its seat; dropping it tells everybody that the thread has ended.
#[derive(Debug)]
pub struct Taken(Arc<Seat>);

impl Taken {
    /// The thread is this one. Kicks reach it once its [`super::kick::Armed`] exists.
    pub fn arrive(&self) {
        self.0.orders().tid = rustix::thread::gettid().as_raw_nonzero().get();
    }

    /// The thread wants to stay out of the guest until it is told to go on ([`Seat::go`]): its next turn is to wait.
    pub fn stop(&self) {
        self.0.orders().stopped = true;
    }

    /// What to do. Asked before the guest is entered for the first time, and after every kick.
    pub fn turn(&self) -> Turn {
        let mut orders = self.0.orders();
        let before = orders.phase;
        let turn = orders.turn();
        if before != orders.phase {
            self.0.obeyed.notify_all();
        }
        turn
    }

    /// After [`Turn::Wait`]: returns when the orders may have changed.
    pub fn wait(&self) {
        let orders = self.0.orders();
        let idle =
            |orders: &mut Orders<Job>| (orders.holds > 0 || orders.stopped) && !orders.leave && orders.jobs.is_empty();
        // A poisoned lock ends the wait early, and the next turn waits again.
        drop(self.0.ordered.wait_while(orders, idle));
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Jobs are dropped outside of the lock: whoever waits for one is woken by that.
        let jobs = self.0.orders().vacate();
        drop(jobs);
        self.0.obeyed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread;

    fn seated() -> Orders<u32> {
        let mut orders = Orders::new();
        orders.phase = Phase::Running;
        orders
    }

    #[test]
    fn a_held_vcpu_waits_works_and_runs_only_when_all_have_let_go() {
        let mut orders = seated();
        assert_eq!(orders.turn(), Turn::Run);
        orders.holds = 2;
        assert_eq!(orders.give(7), Err(7), "a vCPU that may be in the guest takes no job");
        assert_eq!((orders.turn(), orders.phase), (Turn::Wait, Phase::Parked));
        orders.give(8).unwrap();
        orders.holds = 1;
        assert_eq!((orders.turn(), orders.turn()), (Turn::Work(8), Turn::Wait));
        orders.holds = 0;
        assert_eq!((orders.turn(), orders.phase), (Turn::Run, Phase::Running));
    }

    #[test]
    fn a_vcpu_that_has_stopped_by_itself_waits_for_nobody_else() {
        let mut orders = seated();
        orders.stopped = true;
        assert_eq!(orders.turn(), Turn::Wait);
        orders.give(3).unwrap();
        assert_eq!((orders.turn(), orders.turn()), (Turn::Work(3), Turn::Wait));
        orders.stopped = false;
        assert_eq!(orders.turn(), Turn::Run);
    }

    #[test]
    fn a_job_is_done_even_if_nobody_holds_any_more() {
        let mut orders = seated();
        orders.holds = 1;
        orders.turn();
        orders.give(1).unwrap();
        orders.holds = 0;
        assert_eq!((orders.turn(), orders.turn()), (Turn::Work(1), Turn::Run));
    }

    #[test]
    fn the_end_wins_and_leaves_no_job_behind() {
        let mut orders = seated();
        orders.holds = 1;
        orders.turn();
        orders.give(1).unwrap();
        orders.leave = true;
        assert_eq!(orders.give(2), Err(2));
        assert_eq!(orders.turn(), Turn::Leave);
        assert_eq!(orders.vacate(), [1]);
        assert_eq!(orders.phase, Phase::Vacant);
    }

    #[test]
    fn who_waits_for_a_thread_that_ends_is_told() {
        let seat = Arc::new(Seat::default());
        let taken = seat.take();
        seat.hold();
        let (sender, receiver) = channel::<()>();
        let thread = thread::spawn(move || {
            taken.arrive();
            assert!(matches!(taken.turn(), Turn::Wait));
            taken.wait();
            // Instead of doing it.
            drop(taken);
        });
        assert!(seat.wait(Instant::now() + Duration::from_secs(60)));
        let _ = seat.give(Box::new(move |_| sender.send(()).unwrap_or(())));
        assert!(receiver.recv().is_err());
        thread.join().unwrap();
        assert!(seat.give(Box::new(|_| ())).is_err());
        assert!(seat.wait(Instant::now()), "nobody is waited for");
    }
}
