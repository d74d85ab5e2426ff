//! What waits, and above all what goes while it waits. Futures are polled by hand, so that each order is tried on
//! purpose.

use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use core::task::{Context, Poll, Waker};
use std::boxed::Box;
use std::collections::VecDeque;
use std::sync::Arc;
use std::vec::Vec;

use proptest::prelude::*;

use super::{Closed, Event, Mutex, Notify, Semaphore, TrySendError, channel};
use crate::ids::{CpuId, Nanos};
use crate::runtime::combine::{Either, join, select};
use crate::runtime::lock::Spin;
use crate::runtime::testing::{machine, on_cpu};
use crate::runtime::time::{Clock, Elapsed, Timers};

/// Counts wake-ups.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A future that is polled by hand.
struct Hand<F: Future>(Pin<Box<F>>, Arc<Wakes>);

impl<F: Future> Hand<F> {
    fn new(future: F) -> Self {
        Self(Box::pin(future), Arc::default())
    }

    /// One that has been polled and waits.
    fn waiting(future: F) -> Self {
        let mut hand = Self::new(future);
        assert!(hand.poll().is_pending());
        hand
    }

    fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(self.1.clone());
        self.0.as_mut().poll(&mut Context::from_waker(&waker))
    }

    fn wakes(&self) -> usize {
        self.1.0.load(Ordering::Relaxed)
    }
}

#[test]
fn permits_are_served_in_order_and_not_past_one_who_wants_more() {
    let semaphore: Semaphore = Semaphore::new(1);
    let mut large = Hand::waiting(semaphore.acquire(3));
    let mut small = Hand::waiting(semaphore.acquire(1));
    assert_eq!(semaphore.try_acquire(1).map(|permits| permits.is_some()), Ok(false), "nobody overtakes");
    semaphore.give(1);
    assert_eq!((large.wakes(), small.wakes()), (0, 0));
    semaphore.give(2);
    assert_eq!((large.wakes(), small.wakes()), (1, 1));
    let (Poll::Ready(Ok(three)), Poll::Ready(Ok(one))) = (large.poll(), small.poll()) else { panic!() };
    assert_eq!(semaphore.available(), 0);
    drop(three);
    one.forget();
    assert_eq!(semaphore.available(), 3);
}

#[test]
fn a_permit_that_was_granted_to_one_who_goes_is_the_next_ones() {
    let semaphore: Semaphore = Semaphore::new(0);
    let first = Hand::waiting(semaphore.acquire(1));
    let mut second = Hand::waiting(semaphore.acquire(1));
    semaphore.give(1);
    assert_eq!((first.wakes(), second.wakes()), (1, 0));
    drop(first);
    assert_eq!(second.wakes(), 1, "the permit was lost with the first");
    assert!(second.poll().is_ready());
    assert_eq!(semaphore.available(), 1);
}

#[test]
fn one_who_wanted_too_much_and_goes_lets_the_next_pass() {
    let semaphore: Semaphore = Semaphore::new(1);
    let large = Hand::waiting(semaphore.acquire(2));
    let mut small = Hand::waiting(semaphore.acquire(1));
    drop(large);
    assert_eq!(small.wakes(), 1);
    assert!(small.poll().is_ready());
}

#[test]
fn a_closed_semaphore_refuses_those_who_wait_and_those_who_come() {
    let semaphore: Semaphore = Semaphore::new(0);
    // More than are woken at once.
    let mut waiting: Vec<_> = (0..40).map(|_| Hand::waiting(semaphore.acquire(1))).collect();
    semaphore.close();
    for waiter in &mut waiting {
        assert_eq!(waiter.wakes(), 1);
        assert!(matches!(waiter.poll(), Poll::Ready(Err(Closed))));
    }
    assert!(matches!(Hand::new(semaphore.acquire(1)).poll(), Poll::Ready(Err(Closed))));
    assert!(semaphore.try_acquire(1).is_err());
}

#[test]
fn many_permits_wake_more_than_one_batch() {
    let semaphore: Semaphore = Semaphore::new(0);
    let mut waiting: Vec<_> = (0..40).map(|_| Hand::waiting(semaphore.acquire(1))).collect();
    semaphore.give(39);
    let ready = waiting.iter_mut().map(|waiter| waiter.wakes()).sum::<usize>();
    assert_eq!((ready, waiting[39].wakes()), (39, 0));
}

#[test]
fn a_mutex_is_one_tasks_at_a_time_and_survives_those_who_give_up() {
    let mutex: Mutex<u32> = Mutex::new(0);
    let Some(mut held) = mutex.try_lock() else { panic!("nobody has it") };
    assert!(mutex.try_lock().is_none());
    let impatient = Hand::waiting(mutex.lock());
    let mut patient = Hand::waiting(mutex.lock());
    *held += 1;
    drop(held);
    drop(impatient);
    let Poll::Ready(mut guard) = patient.poll() else { panic!("the lock was lost") };
    *guard += 1;
    assert_eq!(*guard, 2);
}

#[test]
fn one_notification_is_seen_by_one_who_lives() {
    let notify: Notify = Notify::new();
    let gone = Hand::waiting(notify.notified());
    let mut next = Hand::waiting(notify.notified());
    notify.notify_one();
    drop(gone);
    assert!(next.poll().is_ready(), "the notification was lost with the first");
    let gone = Hand::waiting(notify.notified());
    notify.notify_one();
    drop(gone);
    assert!(Hand::new(notify.notified()).poll().is_ready(), "nobody was left: it is kept for who comes");
    assert!(Hand::new(notify.notified()).poll().is_pending(), "once");
}

#[test]
fn a_notification_of_all_is_for_those_who_are_there() {
    let notify: Notify = Notify::new();
    let mut before: Vec<_> = (0..40).map(|_| Hand::waiting(notify.notified())).collect();
    let mut unpolled = Hand::new(notify.notified());
    notify.notify_all();
    assert!(before.iter_mut().all(|waiter| waiter.wakes() == 1 && waiter.poll().is_ready()));
    assert!(unpolled.poll().is_ready(), "it counts from where it was made");
    assert!(Hand::new(notify.notified()).poll().is_pending());
}

#[test]
fn one_who_was_told_with_all_still_passes_on_what_was_his_alone() {
    let notify: Notify = Notify::new();
    let gone = Hand::waiting(notify.notified());
    notify.notify_one();
    notify.notify_all();
    drop(gone);
    assert!(Hand::new(notify.notified()).poll().is_ready(), "the one notification was lost");
    let gone = Hand::waiting(notify.notified());
    notify.notify_all();
    drop(gone);
    assert!(Hand::new(notify.notified()).poll().is_pending(), "what all were told is nobody's to pass on");
}

#[test]
fn an_event_stays() {
    let event: Event = Event::new();
    let mut waiting = Hand::waiting(event.wait());
    event.set();
    assert_eq!(waiting.wakes(), 1);
    assert!(waiting.poll().is_ready());
    assert!(Hand::new(event.wait()).poll().is_ready());
    event.clear();
    assert!(!event.is_set() && Hand::new(event.wait()).poll().is_pending());
}

#[test]
fn a_channel_keeps_order_and_bound() {
    let (sender, receiver) = channel::<u32, Spin>(2);
    sender.try_send(1).unwrap();
    sender.try_send(2).unwrap();
    assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
    let mut third = Hand::waiting(sender.send(3));
    assert_eq!(receiver.try_receive(), Some(1));
    assert_eq!(third.wakes(), 1);
    assert_eq!(third.poll(), Poll::Ready(Ok(())));
    assert_eq!([receiver.try_receive(), receiver.try_receive(), receiver.try_receive()], [Some(2), Some(3), None]);
}

#[test]
fn a_value_for_a_receiver_that_goes_is_the_next_ones() {
    let (sender, receiver) = channel::<u32, Spin>(2);
    let gone = Hand::waiting(receiver.receive());
    let mut next = Hand::waiting(receiver.receive());
    sender.try_send(1).unwrap();
    assert_eq!((gone.wakes(), next.wakes()), (1, 0));
    drop(gone);
    assert_eq!(next.wakes(), 1, "the wake-up was lost with the first");
    assert_eq!(next.poll(), Poll::Ready(Some(1)));
}

#[test]
fn a_place_for_a_sender_that_goes_is_the_next_ones() {
    let (sender, receiver) = channel::<u32, Spin>(1);
    sender.try_send(0).unwrap();
    let gone = Hand::waiting(sender.send(1));
    let mut next = Hand::waiting(sender.send(2));
    assert_eq!(receiver.try_receive(), Some(0));
    drop(gone);
    assert_eq!(next.wakes(), 1, "the wake-up was lost with the first");
    assert_eq!(next.poll(), Poll::Ready(Ok(())));
    assert_eq!(receiver.try_receive(), Some(2), "what was not sent is not there");
}

#[test]
fn one_who_was_overtaken_waits_again() {
    let (sender, receiver) = channel::<u32, Spin>(1);
    let mut slow = Hand::waiting(receiver.receive());
    sender.try_send(1).unwrap();
    assert_eq!(receiver.try_receive(), Some(1));
    assert!(slow.poll().is_pending());
    sender.try_send(2).unwrap();
    assert_eq!(slow.poll(), Poll::Ready(Some(2)));
}

#[test]
fn a_channel_ends_when_one_side_has_gone() {
    let (sender, receiver) = channel::<Arc<()>, Spin>(1);
    let value = Arc::new(());
    sender.try_send(value.clone()).unwrap();
    let mut stuck = Hand::waiting(sender.send(value.clone()));
    let second = receiver.clone();
    drop(receiver);
    assert_eq!(stuck.wakes(), 0, "somebody still receives");
    drop(second);
    assert!(matches!(stuck.poll(), Poll::Ready(Err(_))));
    drop(stuck);
    assert_eq!(Arc::strong_count(&value), 1, "what nobody receives is dropped");

    let (sender, receiver) = channel::<u32, Spin>(4);
    let second = sender.clone();
    sender.try_send(1).unwrap();
    drop((sender, second));
    let mut rest = Hand::new(receiver.receive());
    assert_eq!(rest.poll(), Poll::Ready(Some(1)));
    assert_eq!(Hand::new(receiver.receive()).poll(), Poll::Ready(None));
}

proptest! {
    /// Whatever is sent, received and given up in whatever order: nothing is lost, doubled or out of order, and nobody
    /// waits beside what he waits for.
    #[test]
    fn a_channel_loses_nothing(steps in proptest::collection::vec((0..6u8, 0..4usize), 1..200)) {
        let (sender, receiver) = channel::<u32, Spin>(2);
        let (mut sending, mut receiving) = (Vec::new(), Vec::new());
        let (mut next, mut expected, mut got) = (0, VecDeque::new(), VecDeque::new());
        for (step, which) in steps {
            match step {
                0 => {
                    let mut hand = Hand::new(sender.send(next));
                    match hand.poll() {
                        Poll::Ready(_) => expected.push_back(next),
                        Poll::Pending => sending.push((next, hand)),
                    }
                    next += 1;
                }
                1 => {
                    let mut hand = Hand::new(receiver.receive());
                    match hand.poll() {
                        Poll::Ready(value) => got.extend(value),
                        Poll::Pending => receiving.push(hand),
                    }
                }
                2 if which < sending.len() => drop(sending.remove(which)),
                3 if which < receiving.len() => drop(receiving.remove(which)),
                4 => if let Some(place) = sending.iter().position(|(_, hand)| hand.wakes() != 0) {
                    let (value, mut hand) = sending.remove(place);
                    match hand.poll() {
                        Poll::Ready(_) => expected.push_back(value),
                        Poll::Pending => { hand.1 = Arc::default(); let _ = hand.poll(); sending.push((value, hand)) }
                    }
                },
                5 => if let Some(place) = receiving.iter().position(|hand| hand.wakes() != 0) {
                    let mut hand = receiving.remove(place);
                    match hand.poll() {
                        Poll::Ready(value) => got.extend(value),
                        Poll::Pending => { hand.1 = Arc::default(); let _ = hand.poll(); receiving.push(hand) }
                    }
                },
                _ => {}
            }
            let queued = expected.len() - got.len();
            prop_assert!(queued <= 2);
            if queued > 0 && !receiving.is_empty() {
                prop_assert!(receiving.iter().any(|hand| hand.wakes() != 0), "a value, and none of the receivers was told");
            }
            if queued < 2 && !sending.is_empty() {
                prop_assert!(sending.iter().any(|(_, hand)| hand.wakes() != 0), "room, and none of the senders was told");
            }
        }
        drop((sending, receiving));
        got.extend(core::iter::from_fn(|| receiver.try_receive()));
        prop_assert_eq!(got, expected);
    }

    /// Permits are neither made nor lost by those who give up.
    #[test]
    fn a_semaphore_keeps_its_books(steps in proptest::collection::vec((0..4u8, 0..5usize), 1..200)) {
        let semaphore: Semaphore = Semaphore::new(4);
        let (mut waiting, mut held) = (Vec::new(), Vec::new());
        for (step, which) in steps {
            match step {
                0 => {
                    let mut hand = Hand::new(semaphore.acquire(which));
                    match hand.poll() {
                        Poll::Ready(permits) => held.push(permits.unwrap()),
                        Poll::Pending => waiting.push(hand),
                    }
                }
                1 if which < held.len() => drop(held.remove(which)),
                2 if which < waiting.len() => drop(waiting.remove(which)),
                3 => if let Some(place) = waiting.iter().position(|hand| hand.wakes() != 0) {
                    let Poll::Ready(Ok(permits)) = waiting.remove(place).poll() else { panic!("woken for nothing") };
                    held.push(permits);
                },
                _ => {}
            }
        }
        drop(held);
        while let Some(place) = waiting.iter().position(|hand| hand.wakes() != 0) {
            prop_assert!(waiting.remove(place).poll().is_ready());
        }
        prop_assert_eq!(waiting.len(), 0, "all permits are back, and somebody waits");
        prop_assert_eq!(semaphore.available(), 4);
    }
}

/// A clock that is set by hand.
#[derive(Default)]
struct HandClock {
    now: AtomicU64,
    armed: AtomicU64,
}

impl Clock for HandClock {
    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::Relaxed))
    }

    fn arm(&self, deadline: Nanos) {
        self.armed.store(deadline.0, Ordering::Relaxed);
    }
}

fn advance(timers: &Timers<HandClock>, to: u64) {
    timers.clock().now.store(to, Ordering::Relaxed);
    timers.expire();
}

#[test]
fn sleepers_are_woken_when_their_time_has_come() {
    let timers: Timers<HandClock> = Timers::new(HandClock::default());
    let mut late = Hand::waiting(timers.sleep(Nanos(20)));
    assert_eq!(timers.clock().armed.load(Ordering::Relaxed), 20);
    let mut early = Hand::waiting(timers.sleep_until(Nanos(10)));
    assert_eq!(timers.clock().armed.load(Ordering::Relaxed), 10, "armed for the earliest");
    assert!(late.poll().is_pending(), "polled again for another reason");
    advance(&timers, 10);
    assert_eq!((early.wakes(), late.wakes()), (1, 0));
    assert!(early.poll().is_ready());
    assert_eq!(timers.clock().armed.load(Ordering::Relaxed), 20);
    drop(late);
    assert_eq!(timers.sleepers(), 0, "a sleeper that goes takes its timer with it");
    let mut many: Vec<_> = (0..40).map(|_| Hand::waiting(timers.sleep(Nanos(5)))).collect();
    advance(&timers, 15);
    assert!(many.iter_mut().all(|sleeper| sleeper.wakes() == 1 && sleeper.poll().is_ready()));
}

#[test]
fn a_timeout_ends_the_wait_and_leaves_nothing_behind() {
    let timers: Timers<HandClock> = Timers::new(HandClock::default());
    let semaphore: Semaphore = Semaphore::new(0);
    let mut waits = Hand::waiting(timers.timeout_at(Nanos(10), semaphore.acquire(1)));
    advance(&timers, 10);
    assert!(matches!(waits.poll(), Poll::Ready(Err(Elapsed))));
    drop(waits);
    semaphore.give(1);
    assert_eq!(semaphore.available(), 1, "nobody waits any more");
    // Both at once: the permit is had, not lost.
    let taken = semaphore.try_acquire(1);
    let mut waits = Hand::waiting(timers.timeout_at(Nanos(20), semaphore.acquire(1)));
    drop(taken);
    advance(&timers, 20);
    assert!(matches!(waits.poll(), Poll::Ready(Ok(Ok(_)))));
    assert_eq!(timers.sleepers(), 0);
}

#[test]
fn the_first_of_two_and_both_of_two() {
    let semaphore: Semaphore = Semaphore::new(0);
    let event: Event = Event::new();
    let mut either = Hand::waiting(select(semaphore.acquire(1), event.wait()));
    event.set();
    assert!(matches!(either.poll(), Poll::Ready(Either::Second(()))));
    drop(either);
    let mut both = Hand::waiting(join(event.wait(), semaphore.acquire(1)));
    semaphore.give(1);
    assert!(matches!(both.poll(), Poll::Ready(((), Ok(_)))));
}

#[test]
fn one_who_always_finds_something_lets_others_run() {
    let runtime = machine(1);
    on_cpu(0, || {
        let mut worker = runtime.worker(CpuId(0)).unwrap();
        let (sender, receiver) = channel::<u32, Spin>(4096);
        for value in 0..4096 {
            sender.try_send(value).unwrap();
        }
        drop(sender);
        let busy = runtime.spawn(async move {
            let mut received = 0;
            while receiver.receive().await.is_some() {
                received += 1;
            }
            received
        });
        let other = runtime.spawn(async {});
        assert!(worker.run_one() && worker.run_one());
        assert!(other.is_finished() && !busy.is_finished());
        assert_eq!(worker.block_on(busy), Ok(4096));
    });
}
