//! What the policies cost on the host, from one task to a million in a queue, beside a `BTreeMap` and a `BinaryHeap`
//! that do the same, and beside the published scheduler crate `axsched`. Run with `cargo bench -p vcpu-sched`.
//!
//! `turn` is a switch between tasks that stay: the current one is put back and the next is picked, by the one call that a kernel makes,
//! and handles are handed over, not counted. `come_and_go` adds a task to the
//! queue and takes it out again. `enqueue`, `dequeue` and `pick` are each by itself, [`BATCH`] times in a row beside so many others,
//! because a clock is too coarse for one; what they undo of each other is not timed. `RunQueue` is what a kernel calls: it
//! includes the accounting and the order of the classes; the policies alone are below it.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::hint::black_box;
use std::sync::{Arc, Mutex};

use axsched::BaseScheduler;
use divan::Bencher;
use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::entity::{Entity, SchedEntity};
use vcpu_sched::ids::{CpuId, Nanos, TaskId};
use vcpu_sched::params::SchedParams;
use vcpu_sched::placement::{CpuView, Placement, select_cpu};
use vcpu_sched::policy::fair::Fair;
use vcpu_sched::policy::ordered::{Measure, Ordered};
use vcpu_sched::policy::realtime::Realtime;
use vcpu_sched::policy::round_robin::RoundRobin;
use vcpu_sched::policy::{EnqueueReason, Policy, PutReason};
use vcpu_sched::runqueue::{PolicyKind, RunQueue};

const SIZES: [u32; 4] = [1, 100, 10_000, 1_000_000];

/// Of one operation, timed together. In the names of the benches, whose time must be divided by it.
const BATCH: usize = 16;

fn main() {
    divan::main();
}

fn spares(first: u32) -> Vec<Task> {
    (first..).take(BATCH).map(Task::new).collect()
}

#[derive(Clone)]
struct Task(Arc<(TaskId, SchedEntity)>);

impl Task {
    fn new(id: u32) -> Self {
        Self(Arc::new((TaskId(id), SchedEntity::new(SchedParams::NORMAL))))
    }
}

impl Entity for Task {
    fn id(&self) -> TaskId {
        self.0.0
    }

    fn sched(&self) -> &SchedEntity {
        &self.0.1
    }
}

/// How long a task runs before it is put back: different for each turn, so that the order changes.
fn ran(turn: u64) -> u64 {
    turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 43 // up to 2 ms
}

/// Something that keeps `n` tasks in order.
trait Queue {
    /// With `n` tasks, one of which is current.
    fn filled(n: u32) -> Self;
    /// The current task is put back after a run, the next is picked.
    fn turn(&mut self);
    /// The spare task with this number, below [`BATCH`], comes.
    fn enqueue(&mut self, spare: usize);
    /// It goes, by its handle.
    fn dequeue(&mut self, spare: usize);
    /// The next task is picked, and leaves.
    fn pick(&mut self);
    /// Those that have left come back.
    fn refill(&mut self);
    /// A timer tick.
    fn tick(&mut self);
}

/// A policy alone.
struct Alone<P> {
    policy: P,
    /// None while it changes.
    current: Option<Task>,
    spares: Vec<Task>,
    left: Vec<Task>,
    turns: u64,
}

impl<P: Policy<Task> + Fresh> Queue for Alone<P> {
    fn filled(n: u32) -> Self {
        let mut policy = P::fresh();
        for id in 0..n {
            policy.enqueue(Task::new(id), EnqueueReason::Wake, Nanos::ZERO);
        }
        let current = policy.pick_next(Nanos::ZERO);
        let mut this = Self { policy, current, spares: spares(n), left: Vec::with_capacity(BATCH), turns: 0 };
        for _ in 0..n {
            this.turn(); // until they are spread
        }
        this
    }

    fn turn(&mut self) {
        self.turns += 1;
        let prev = self.current.take().expect("filled");
        self.current = self.policy.turn(prev, Nanos(ran(self.turns)), false, Nanos::ZERO);
    }

    fn enqueue(&mut self, spare: usize) {
        self.policy.enqueue(self.spares[spare].clone(), EnqueueReason::Wake, Nanos::ZERO);
    }

    fn dequeue(&mut self, spare: usize) {
        black_box(self.policy.dequeue(&self.spares[spare]));
    }

    fn pick(&mut self) {
        let prev = self.current.take().expect("filled");
        self.policy.put_prev(&prev, Nanos(1000), PutReason::Block);
        self.current = self.policy.pick_next(Nanos::ZERO);
        self.left.push(prev);
    }

    fn refill(&mut self) {
        for task in self.left.drain(..) {
            self.policy.enqueue(task, EnqueueReason::Wake, Nanos::ZERO);
        }
    }

    fn tick(&mut self) {
        if let Some(current) = &self.current {
            black_box(self.policy.tick(current, Nanos(1000)));
        }
    }
}

trait Fresh {
    fn fresh() -> Self;
}
impl Fresh for Fair<Task> {
    fn fresh() -> Self {
        Self::new(CpuId(0))
    }
}
impl Fresh for RoundRobin<Task> {
    fn fresh() -> Self {
        Self::new()
    }
}
impl Fresh for Realtime<Task> {
    fn fresh() -> Self {
        Self::new()
    }
}
impl Fresh for Ordered<Task> {
    fn fresh() -> Self {
        Self::new(Measure::Runtime)
    }
}

/// The whole run queue of a CPU, with the fair policy.
struct Whole {
    queue: RunQueue<Task>,
    /// None while it changes.
    current: Option<Task>,
    spares: Vec<Task>,
    left: Vec<Task>,
    turns: u64,
    now: Nanos,
}

impl Queue for Whole {
    fn filled(n: u32) -> Self {
        let mut queue = RunQueue::new(CpuId(0), PolicyKind::Fair);
        for id in 0..n {
            queue.enqueue(Task::new(id), EnqueueReason::Wake, Nanos::ZERO);
        }
        let current = queue.pick_next(Nanos::ZERO);
        let left = Vec::with_capacity(BATCH);
        let mut this = Self { queue, current, spares: spares(n), left, turns: 0, now: Nanos::ZERO };
        for _ in 0..n {
            this.turn();
        }
        this
    }

    fn turn(&mut self) {
        self.turns += 1;
        self.now += Nanos(ran(self.turns));
        let prev = self.current.take().expect("filled");
        let turn = if self.queue.is_ordinary(&prev) {
            self.queue.turn_ordinary(prev, false, self.now)
        } else {
            self.queue.turn(prev, false, self.now)
        };
        self.current = turn.map(|turn| turn.next);
    }

    fn enqueue(&mut self, spare: usize) {
        self.queue.enqueue(self.spares[spare].clone(), EnqueueReason::Wake, self.now);
    }

    fn dequeue(&mut self, spare: usize) {
        black_box(self.queue.dequeue(&self.spares[spare]));
    }

    fn pick(&mut self) {
        self.now += Nanos(1000);
        let prev = self.current.take().expect("filled");
        self.queue.put_prev(&prev, PutReason::Block, self.now);
        self.current = self.queue.pick_next(self.now);
        self.left.push(prev);
    }

    fn refill(&mut self) {
        for task in self.left.drain(..) {
            self.queue.enqueue(task, EnqueueReason::Wake, self.now);
        }
    }

    fn tick(&mut self) {
        if let Some(current) = &self.current {
            black_box(self.queue.tick(current, self.now));
        }
    }
}

/// By virtual runtime in a tree of the standard library.
struct Tree {
    tree: BTreeMap<(u64, u32), Task>,
    /// No task while it changes.
    current: (u64, Option<Task>),
    spares: Vec<Task>,
    left: Vec<(u64, Task)>,
    turns: u64,
}

impl Queue for Tree {
    fn filled(n: u32) -> Self {
        let tree = (1..n).map(|id| ((0, id), Task::new(id))).collect();
        let left = Vec::with_capacity(BATCH);
        let mut this = Self { tree, current: (0, Some(Task::new(0))), spares: spares(n), left, turns: 0 };
        for _ in 0..n {
            this.turn();
        }
        this
    }

    fn turn(&mut self) {
        self.turns += 1;
        let (vruntime, task) = (self.current.0 + ran(self.turns), self.current.1.take().expect("filled"));
        self.tree.insert((vruntime, task.id().0), task);
        let ((vruntime, _), task) = self.tree.pop_first().expect("one was put back");
        self.current = (vruntime, Some(task));
    }

    fn enqueue(&mut self, spare: usize) {
        let task = &self.spares[spare];
        self.tree.insert((self.current.0, task.id().0), task.clone());
    }

    fn dequeue(&mut self, spare: usize) {
        black_box(self.tree.remove(&(self.current.0, self.spares[spare].id().0)));
    }

    fn pick(&mut self) {
        let ((vruntime, _), task) = self.tree.pop_first().expect("there are more than are picked");
        let (before, prev) = std::mem::replace(&mut self.current, (vruntime, Some(task)));
        self.left.push((before, prev.expect("filled")));
    }

    fn refill(&mut self) {
        for (vruntime, task) in self.left.drain(..) {
            self.tree.insert((vruntime, task.id().0), task);
        }
    }

    fn tick(&mut self) {
        self.current.0 += 1000;
        black_box(self.tree.first_key_value().is_some_and(|(key, _)| key.0 < self.current.0));
    }
}

/// By virtual runtime in a heap of the standard library, which can't take out one by its handle but by looking at all.
struct StdHeap {
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    tasks: Vec<Task>,
    current: (u64, u32),
    left: Vec<(u64, u32)>,
    turns: u64,
}

impl Queue for StdHeap {
    fn filled(n: u32) -> Self {
        let heap = (1..n).map(|id| Reverse((0, id))).collect();
        let tasks = (0..n + BATCH as u32).map(Task::new).collect();
        let mut this = Self { heap, tasks, current: (0, 0), left: Vec::with_capacity(BATCH), turns: 0 };
        for _ in 0..n {
            this.turn();
        }
        this
    }

    fn turn(&mut self) {
        self.turns += 1;
        self.heap.push(Reverse((self.current.0 + ran(self.turns), self.current.1)));
        self.current = self.heap.pop().expect("one was put back").0;
        black_box(&self.tasks[self.current.1 as usize]);
    }

    fn enqueue(&mut self, spare: usize) {
        let number = self.tasks.len() - BATCH + spare;
        self.heap.push(Reverse((self.current.0, number as u32)));
    }

    fn dequeue(&mut self, spare: usize) {
        let number = (self.tasks.len() - BATCH + spare) as u32;
        self.heap.retain(|entry| entry.0.1 != number);
    }

    fn pick(&mut self) {
        let next = self.heap.pop().expect("there are more than are picked").0;
        self.left.push(std::mem::replace(&mut self.current, next));
        black_box(self.tasks[self.current.1 as usize].clone());
    }

    fn refill(&mut self) {
        self.heap.extend(self.left.drain(..).map(Reverse));
    }

    fn tick(&mut self) {
        self.current.0 += 1000;
        black_box(self.heap.peek().is_some_and(|first| first.0.0 < self.current.0));
    }
}

/// The "completely fair" scheduler of axsched: a tree; time is what its ticks count.
struct Axsched {
    queue: axsched::CFScheduler<u32>,
    /// None while it changes.
    current: Option<Arc<axsched::CFSTask<u32>>>,
    spares: Vec<Arc<axsched::CFSTask<u32>>>,
    left: Vec<Arc<axsched::CFSTask<u32>>>,
    turns: u64,
}

impl Queue for Axsched {
    fn filled(n: u32) -> Self {
        let mut queue = axsched::CFScheduler::new();
        for id in 0..n {
            queue.add_task(Arc::new(axsched::CFSTask::new(id)));
        }
        let current = queue.pick_next_task();
        let spares = (n..).take(BATCH).map(|id| Arc::new(axsched::CFSTask::new(id))).collect();
        let mut this = Self { queue, current, spares, left: Vec::with_capacity(BATCH), turns: 0 };
        for _ in 0..n {
            this.turn();
        }
        this
    }

    fn turn(&mut self) {
        self.turns += 1;
        let prev = self.current.take().expect("filled");
        for _ in 0..=ran(self.turns) % 4 {
            self.queue.task_tick(&prev);
        }
        self.queue.put_prev_task(prev, true);
        self.current = self.queue.pick_next_task();
    }

    fn enqueue(&mut self, spare: usize) {
        self.queue.add_task(self.spares[spare].clone());
    }

    fn dequeue(&mut self, spare: usize) {
        black_box(self.queue.remove_task(&self.spares[spare]));
    }

    fn pick(&mut self) {
        let next = self.queue.pick_next_task();
        self.left.extend(std::mem::replace(&mut self.current, next));
    }

    fn refill(&mut self) {
        for task in self.left.drain(..) {
            self.queue.add_task(task);
        }
    }

    fn tick(&mut self) {
        if let Some(current) = &self.current {
            black_box(self.queue.task_tick(current));
        }
    }
}

#[divan::bench(types = [Whole, Alone<Fair<Task>>, Alone<RoundRobin<Task>>, Alone<Realtime<Task>>, Alone<Ordered<Task>>, Tree, StdHeap, Axsched], args = SIZES)]
fn turn<Q: Queue>(bencher: Bencher, n: u32) {
    let mut queue = Q::filled(n);
    bencher.bench_local(|| queue.turn());
}

#[divan::bench(types = [Whole, Alone<Fair<Task>>, Alone<RoundRobin<Task>>, Alone<Realtime<Task>>, Alone<Ordered<Task>>, Tree, Axsched], args = SIZES)]
fn come_and_go<Q: Queue>(bencher: Bencher, n: u32) {
    let mut queue = Q::filled(n);
    bencher.bench_local(|| {
        queue.enqueue(0);
        queue.dequeue(0);
    });
}

/// Times `timed` after `before`, which is not timed. One batch a sample: the next one begins where `before` puts it.
fn batches<Q: Queue>(bencher: Bencher, queue: Q, before: impl Fn(&mut Q), timed: impl Fn(&mut Q)) {
    let queue = RefCell::new(queue);
    bencher.with_inputs(|| before(&mut queue.borrow_mut())).bench_local_values(|()| timed(&mut queue.borrow_mut()));
}

fn every<Q: Queue>(operation: impl Fn(&mut Q, usize)) -> impl Fn(&mut Q) {
    move |queue| (0..BATCH).for_each(|spare| operation(queue, spare))
}

#[divan::bench(types = [Whole, Alone<Fair<Task>>, Alone<RoundRobin<Task>>, Alone<Realtime<Task>>, Alone<Ordered<Task>>, Tree, StdHeap, Axsched], args = SIZES, sample_size = 1, sample_count = 400)]
fn enqueue_x16<Q: Queue>(bencher: Bencher, n: u32) {
    let mut queue = Q::filled(n);
    every(Q::enqueue)(&mut queue);
    batches(bencher, queue, every(Q::dequeue), every(Q::enqueue));
}

#[divan::bench(types = [Whole, Alone<Fair<Task>>, Alone<RoundRobin<Task>>, Alone<Realtime<Task>>, Alone<Ordered<Task>>, Tree, Axsched], args = SIZES, sample_size = 1, sample_count = 400)]
fn dequeue_x16<Q: Queue>(bencher: Bencher, n: u32) {
    batches(bencher, Q::filled(n), every(Q::enqueue), every(Q::dequeue));
}

/// What runs blocks, the next is picked.
#[divan::bench(types = [Whole, Alone<Fair<Task>>, Alone<RoundRobin<Task>>, Alone<Realtime<Task>>, Alone<Ordered<Task>>, Tree, StdHeap, Axsched], args = SIZES, sample_size = 1, sample_count = 400)]
fn pick_x16<Q: Queue>(bencher: Bencher, n: u32) {
    let mut queue = Q::filled(n);
    every(Q::enqueue)(&mut queue);
    batches(bencher, queue, Q::refill, every(|queue: &mut Q, _| queue.pick()));
}

/// Of a heap, only up to 10,000: it looks at all of them.
#[divan::bench(args = [1, 100, 10_000], sample_size = 1, sample_count = 400)]
fn dequeue_x16_std_heap(bencher: Bencher, n: u32) {
    batches(bencher, StdHeap::filled(n), every(StdHeap::enqueue), every(StdHeap::dequeue));
}

#[divan::bench(types = [Whole, Alone<Fair<Task>>, Alone<RoundRobin<Task>>, Alone<Realtime<Task>>, Alone<Ordered<Task>>, Tree, StdHeap, Axsched], args = SIZES)]
fn tick<Q: Queue>(bencher: Bencher, n: u32) {
    let mut queue = Q::filled(n);
    bencher.bench_local(|| queue.tick());
}

/// A machine on which every CPU but the last is busy.
struct View {
    online: CpuMask,
    last: CpuId,
}

impl CpuView for View {
    fn online(&self) -> &CpuMask {
        &self.online
    }

    fn is_idle(&self, cpu: CpuId) -> bool {
        cpu == self.last
    }

    fn nr_running(&self, cpu: CpuId) -> u32 {
        u32::from(cpu != self.last)
    }
}

/// The worst case of a choice: all CPUs are looked at until an idle one is found.
#[divan::bench(args = [1, 4, 64, 1024])]
fn wake_placement(bencher: Bencher, cpus: u32) {
    let view = View { online: CpuMask::full(cpus), last: CpuId(cpus - 1) };
    let task = Placement { last_cpu: CpuId(0), allowed: &view.online };
    bencher.bench_local(|| select_cpu(black_box(&task), CpuId(0), &view));
}

/// Two threads wake tasks on each other's queue and run what they find on their own.
#[divan::bench(threads = [1, 2])]
fn wake_across(bencher: Bencher) {
    let queues = [0, 1].map(|cpu| Mutex::new(RunQueue::new(CpuId(cpu), PolicyKind::Fair)));
    for (id, queue) in (0..20).zip(queues.iter().cycle()) {
        queue.lock().expect("no panic").enqueue(Task::new(id), EnqueueReason::New, Nanos::ZERO);
    }
    bencher.bench(|| {
        for (from, to) in [(0, 1), (1, 0)] {
            let task = {
                let mut queue = queues[from].lock().expect("no panic");
                let task = queue.pick_next(Nanos::ZERO);
                if let Some(task) = &task {
                    queue.put_prev(task, PutReason::Block, Nanos(1000));
                }
                task
            };
            if let Some(task) = task {
                queues[to].lock().expect("no panic").enqueue(task, EnqueueReason::Wake, Nanos(1000));
            }
        }
    });
}
