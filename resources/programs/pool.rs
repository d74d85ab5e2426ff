//! A thread pool of the standard library's parts: mutexes, condition variables, channels, atomics, scoped threads, parking.
//!
//! Usage: pool [WORKERS] [JOBS]. Prints one verdict line; exit code 0 or 1.

use std::collections::VecDeque;
use std::env;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Barrier, Condvar, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

type Job = Box<dyn FnOnce() -> u64 + Send>;

/// Jobs wait in a queue under a mutex; idle workers sleep on the condition variable.
#[derive(Default)]
struct Queue {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    changed: Condvar,
}

impl Queue {
    fn push(&self, job: Job) {
        self.jobs.lock().unwrap().0.push_back(job);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.jobs.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn pop(&self) -> Option<Job> {
        let mut state = self.jobs.lock().unwrap();
        loop {
            if let Some(job) = state.0.pop_front() {
                return Some(job);
            }
            if state.1 {
                return None;
            }
            state = self.changed.wait(state).unwrap();
        }
    }
}

fn collatz(mut n: u64) -> u64 {
    let mut steps = 0;
    while n != 1 {
        n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
        steps += 1;
    }
    steps
}

/// Jobs through the pool, results through a channel: every job exactly once.
fn pool(workers: usize, jobs: u64) -> Result<u64, String> {
    let queue = Arc::new(Queue::default());
    let (results, received) = mpsc::channel();
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let (queue, results) = (Arc::clone(&queue), results.clone());
            thread::spawn(move || {
                while let Some(job) = queue.pop() {
                    results.send(job()).expect("the receiver outlives the workers");
                }
            })
        })
        .collect();
    drop(results);
    for n in 1..=jobs {
        queue.push(Box::new(move || collatz(n)));
    }
    queue.close();
    let (count, sum) = received.iter().fold((0, 0), |(count, sum), steps| (count + 1, sum + steps));
    for thread in threads {
        thread.join().map_err(|_| "a worker panicked".to_owned())?;
    }
    let expected: u64 = (1..=jobs).map(collatz).sum();
    if (count, sum) != (jobs, expected) {
        return Err(format!("{count} results adding up to {sum}, should be {jobs} and {expected}"));
    }
    Ok(sum)
}

/// A bounded channel blocks its sender: the two sides can't run apart by more than its size.
fn back_pressure() -> Result<(), String> {
    let (sender, receiver) = mpsc::sync_channel::<usize>(2);
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let thread = thread::spawn(move || {
        for n in 0..100 {
            sender.send(n).expect("the receiver takes all");
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    for n in 0..100 {
        let ahead = sent.load(Ordering::SeqCst).saturating_sub(n);
        if ahead > 3 {
            return Err(format!("the sender ran {ahead} ahead of a channel of 2"));
        }
        if receiver.recv() != Ok(n) {
            return Err(format!("message {n} out of order"));
        }
    }
    thread.join().map_err(|_| "the sender panicked".to_owned())
}

/// All threads meet at a barrier, over and over; nobody passes early.
fn barrier(workers: usize) -> Result<(), String> {
    let barrier = Barrier::new(workers);
    let arrived = AtomicU64::new(0);
    let total = RwLock::new(0u64);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    for round in 1..=10u64 {
                        arrived.fetch_add(1, Ordering::SeqCst);
                        barrier.wait();
                        if arrived.load(Ordering::SeqCst) < round * workers as u64 {
                            return false;
                        }
                        *total.write().unwrap() += round;
                        barrier.wait();
                    }
                    true
                })
            })
            .collect();
        threads.into_iter().all(|t| t.join().unwrap_or(false))
    })
    .then_some(())
    .ok_or("a thread passed the barrier early")?;
    let total = *total.read().unwrap();
    if total != 55 * workers as u64 { Err(format!("total {total}")) } else { Ok(()) }
}

/// Timeouts are never short, and an unpark is never lost.
fn waiting() -> Result<(), String> {
    let (mutex, condvar) = (Mutex::new(()), Condvar::new());
    let wanted = Duration::from_millis(15);
    let start = Instant::now();
    let (_guard, result) =
        condvar.wait_timeout_while(mutex.lock().unwrap(), wanted, |()| true).map_err(|_| "poisoned".to_owned())?;
    if !result.timed_out() || start.elapsed() < wanted {
        return Err(format!("waited {:?} of {wanted:?}", start.elapsed()));
    }
    let parked = thread::spawn(thread::park);
    parked.thread().unpark();
    parked.join().map_err(|_| "the parked thread panicked".to_owned())
}

fn main() -> ExitCode {
    let mut args = env::args().skip(1).map(|arg| arg.parse::<u64>());
    let workers = args.next().and_then(Result::ok).unwrap_or(4) as usize;
    let jobs = args.next().and_then(Result::ok).unwrap_or(2000);
    let verdict = pool(workers, jobs).and_then(|sum| {
        back_pressure()?;
        barrier(workers)?;
        waiting()?;
        Ok(sum)
    });
    match verdict {
        Ok(sum) => {
            println!("PASS pool: {workers} workers, {jobs} jobs, {sum} steps");
            ExitCode::SUCCESS
        }
        Err(message) => {
            println!("FAIL pool: {message}");
            ExitCode::FAILURE
        }
    }
}
