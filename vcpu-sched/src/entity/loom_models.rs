//! One CPU changes a task's parameters while another moves the task to its own queue.

use super::*;
use crate::ids::Nanos;
use crate::policy::EnqueueReason;
use crate::runqueue::{PolicyKind, RunQueue};
use loom::sync::Mutex;
use loom::thread;
// Loom's threads are coroutines of one thread. Its own Arc adds orderings, and aborts where a model is to fail.
use std::rc::Rc;

#[derive(Clone)]
struct Task(Rc<SchedEntity>);

impl Entity for Task {
    fn id(&self) -> TaskId {
        TaskId(1)
    }

    fn sched(&self) -> &SchedEntity {
        &self.0
    }
}

struct Machine {
    task: Task,
    queues: [Mutex<RunQueue<Task>>; 2],
}

impl Machine {
    /// The task sleeps; it was on CPU 0 last.
    fn new() -> Rc<Self> {
        let task = Task(Rc::new(SchedEntity::new(SchedParams::NORMAL)));
        let queue = |cpu| RunQueue::new(CpuId(cpu), PolicyKind::RoundRobin);
        let mut first = queue(0);
        first.enqueue(task.clone(), EnqueueReason::New, Nanos::ZERO);
        assert!(first.dequeue(&task).is_some());
        Rc::new(Self { task, queues: [Mutex::new(first), Mutex::new(queue(1))] })
    }

    /// The protocol of `runqueue`.
    fn change(&self, params: &SchedParams) {
        let sched = self.task.sched();
        sched.request(params);
        loop {
            let cpu = sched.queue().expect("it was queued").index();
            let mut queue = self.queues[cpu].lock().unwrap();
            if sched.queue().is_some_and(|now| now.index() == cpu) {
                queue.apply_params(&self.task, Nanos::ZERO);
                return;
            }
        }
    }
}

#[test]
fn loom_a_change_meets_a_wake_up_elsewhere_and_is_not_lost() {
    loom::model(|| {
        let machine = Machine::new();
        let wanted = SchedParams::of_class(Class::Fifo(RtPriority::MAX));
        let waker = thread::spawn({
            let machine = machine.clone();
            move || {
                let mut queue = machine.queues[1].lock().unwrap();
                queue.enqueue(machine.task.clone(), EnqueueReason::Wake, Nanos::ZERO);
            }
        });
        machine.change(&wanted);
        waker.join().unwrap();
        let sched = machine.task.sched();
        assert_eq!((sched.tag(), sched.rank()), (wanted.tag(), Rank::Realtime), "the change was lost");
        let mut queue = machine.queues[1].lock().unwrap();
        assert_eq!(queue.highest_realtime(), 99, "in the queue of another class");
        assert!(queue.pick_next(Nanos::ZERO).is_some());
    });
}

/// The model must be able to fail: looking only where the task was last misses the queue that it went to.
#[test]
#[should_panic = "the change was lost"]
fn loom_sees_a_change_that_asks_after_it_looked() {
    loom::model(|| {
        let machine = Machine::new();
        let wanted = SchedParams::of_class(Class::Fifo(RtPriority::MAX));
        let waker = thread::spawn({
            let machine = machine.clone();
            move || {
                let mut queue = machine.queues[1].lock().unwrap();
                queue.enqueue(machine.task.clone(), EnqueueReason::Wake, Nanos::ZERO);
            }
        });
        let sched = machine.task.sched();
        let cpu = sched.queue().expect("it was queued").index();
        let mut queue = machine.queues[cpu].lock().unwrap();
        sched.request(&wanted);
        queue.apply_params(&machine.task, Nanos::ZERO);
        drop(queue);
        waker.join().unwrap();
        assert_eq!(machine.task.sched().rank(), Rank::Realtime, "the change was lost");
    });
}
