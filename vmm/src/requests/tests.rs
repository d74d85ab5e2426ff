//! The mailbox against guests that answer, don't answer, and lie.

use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use vcpu_sched::directory::{self, Entry, EntryKind};
use vcpu_sched::requests::head::{ANSWER_AT, AnswerHead, BODY_AT, HEAD_BYTES, REQUEST_AT, RequestHead};
use vcpu_sched::requests::message::{Outcome, Refusal, Request, answer};
use vcpu_sched::requests::slot::{SlotState, SlotWord};
use vcpu_sched::requests::{Header, MAGIC, VERSION};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::guestview::Told;

const DIRECTORY: u64 = 0x1000;
const REGION: u64 = 0x4000;
const SLOTS: u32 = 2;
const SLOT_BYTES: u32 = 4096;

/// What a kernel sees of its mailbox.
struct Guest {
    ram: Ram,
    bell: Bell,
    interrupts: Receiver<u32>,
}

fn header() -> Header {
    Header { magic: MAGIC, version: VERSION, slots: SLOTS, slot_bytes: SLOT_BYTES, apic_id: 3, reserved: [0; 5] }
}

fn machine(header: &Header, region: u64) -> (Mailbox, Guest) {
    let ram = Ram::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
    let entry = Entry { kind: EntryKind::Mailbox as u32, index: 0, address: region, len: 0, extra: 0 };
    let head = directory::Header { magic: directory::MAGIC, version: 1, count: 1, direct_map: 0, tsc: 0 };
    ram.write_slice(&head.to_bytes(), GuestAddress(DIRECTORY)).unwrap();
    ram.write_slice(&entry.to_bytes(), GuestAddress(DIRECTORY + 32)).unwrap();
    let _ = ram.write_slice(&header.to_bytes(), GuestAddress(region));
    let told = Arc::new(Told::default());
    told.set((DIRECTORY >> 12) as u32);
    let (sender, interrupts) = channel();
    let sender = Mutex::new(sender);
    let interrupt = Box::new(move |apic_id| {
        // The guest may be gone in a test that asks for nothing more.
        let _ = sender.lock().unwrap().send(apic_id);
        Ok(())
    });
    let bell = Bell::default();
    let mailbox = Mailbox::new(bell.clone(), Reader::new(ram.clone(), told, 0), ram.clone(), interrupt);
    (mailbox, Guest { ram, bell, interrupts })
}

impl Guest {
    fn at(slot: u32, offset: u64) -> GuestAddress {
        GuestAddress(REGION + header().slot_at(slot) + offset)
    }

    fn word<T>(&self, slot: u32, act: impl FnOnce(&SlotWord) -> T) -> T {
        let found = Region::find_at(REGION, header());
        found.with_word(&self.ram, slot, act).unwrap()
    }

    /// Takes a posted request.
    fn take(&self) -> Option<(u32, u64, Request)> {
        let slot = (0..SLOTS).find(|slot| self.word(*slot, SlotWord::take))?;
        let mut bytes = [0; HEAD_BYTES];
        self.ram.read_slice(&mut bytes, Self::at(slot, REQUEST_AT)).unwrap();
        let head = RequestHead::from_bytes(&bytes);
        let mut body = vec![0; head.len as usize];
        self.ram.read_slice(&mut body, Self::at(slot, BODY_AT)).unwrap();
        Some((slot, head.sequence, Request::decode(&head, &body).unwrap()))
    }

    fn answer(&self, slot: u32, head: &AnswerHead) {
        self.ram.write_slice(&head.to_bytes(), Self::at(slot, ANSWER_AT)).unwrap();
        assert!(self.word(slot, SlotWord::answer));
        self.bell.ring();
    }

    /// Serves so many requests.
    fn serve(self, count: usize, outcome: impl Fn(&Request) -> Outcome) -> Self {
        for _ in 0..count {
            assert_eq!(self.interrupts.recv(), Ok(3));
            let (slot, sequence, request) = self.take().expect("a request was posted before the interrupt");
            self.answer(slot, &answer(sequence, outcome(&request)));
        }
        self
    }
}

const SHORT: Duration = Duration::from_millis(20);

#[test]
fn a_request_gets_its_own_answer() {
    let (mailbox, guest) = machine(&header(), REGION);
    let guest = thread::spawn(move || {
        guest.serve(40, |request| match request {
            Request::Signal { task, .. } if task % 2 == 0 => Ok(u64::from(*task)),
            _ => Err(Refusal::NoSuchTask),
        })
    });
    thread::scope(|scope| {
        // More askers than slots.
        for asker in 0..4 {
            let mailbox = &mailbox;
            scope.spawn(move || {
                for n in 0..10 {
                    let task = asker * 100 + n;
                    let answer = mailbox.ask(&Request::Signal { task, signal: 1, thread_only: false });
                    match answer {
                        Ok(value) => assert_eq!((value, task % 2), (task.into(), 0)),
                        Err(RequestError::Refused(Refusal::NoSuchTask)) => assert_eq!(task % 2, 1),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    guest.join().unwrap();
}

#[test]
fn a_guest_that_does_not_look_gets_the_request_taken_back() {
    let (mailbox, guest) = machine(&header(), REGION);
    for _ in 0..2 * SLOTS {
        assert!(matches!(mailbox.ask_within(&Request::Ping, SHORT), Err(RequestError::Unseen(_))));
    }
    assert!(guest.take().is_none());
}

#[test]
fn a_guest_that_does_not_answer_keeps_its_slots_until_it_does() {
    let (mailbox, guest) = machine(&header(), REGION);
    let mut taken = Vec::new();
    for _ in 0..SLOTS {
        thread::scope(|scope| {
            let asked = scope.spawn(|| mailbox.ask_within(&Request::Ping, SHORT));
            guest.interrupts.recv().unwrap();
            taken.extend(guest.take());
            assert!(matches!(asked.join().unwrap(), Err(RequestError::Silent(_) | RequestError::Unseen(_))));
        });
    }
    if taken.len() as u32 == SLOTS {
        assert!(matches!(mailbox.ask_within(&Request::Ping, SHORT), Err(RequestError::Busy(_))));
    }
    for (slot, sequence, _) in taken {
        guest.answer(slot, &answer(sequence, Ok(0)));
    }
    let guest = thread::spawn(move || guest.serve(1, |_| Ok(7)));
    assert_eq!(mailbox.ask(&Request::Ping).unwrap(), 7);
    guest.join().unwrap();
}

#[test]
fn lies_are_errors() {
    let odd: [fn(u64) -> AnswerHead; 2] =
        [|sequence| answer(sequence + 1, Ok(0)), |sequence| AnswerHead { refusal: 999, ..answer(sequence, Ok(0)) }];
    for lie in odd {
        let (mailbox, guest) = machine(&header(), REGION);
        let guest = thread::spawn(move || {
            guest.interrupts.recv().unwrap();
            let (slot, sequence, _) = guest.take().unwrap();
            guest.answer(slot, &lie(sequence));
            guest
        });
        assert!(matches!(mailbox.ask(&Request::Ping), Err(RequestError::Broken(_))));
        guest.join().unwrap();
    }
    // A slot that was never posted says that it is answered.
    let (mailbox, guest) = machine(&header(), REGION);
    for slot in 0..SLOTS {
        guest.ram.write_obj(SlotState::Answered as u32, Guest::at(slot, 0)).unwrap();
    }
    assert!(matches!(mailbox.ask_within(&Request::Ping, SHORT), Err(RequestError::Broken(_))));
}

#[test]
fn a_mailbox_that_can_not_be_is_an_error() {
    for (header, region) in [
        (header(), 0x10_0000),
        (header(), u64::MAX - 63),
        (header(), REGION + 4),
        (Header { slots: 9999, ..header() }, REGION),
        (Header { magic: 0, ..header() }, REGION),
        (Header { slots: 64, slot_bytes: 65536, ..header() }, REGION),
    ] {
        let (mailbox, guest) = machine(&header, region);
        let whole = header.slots == 64;
        let first = mailbox.ask_within(&Request::Ping, SHORT);
        if whole {
            // The first slots lie in memory, so only the later ones are found out.
            assert!(matches!(first, Err(RequestError::Broken(_) | RequestError::Unseen(_))), "{first:?}");
        } else {
            assert!(matches!(first, Err(RequestError::Broken(_) | RequestError::Header(_))), "{header:?}: {first:?}");
        }
        drop(guest);
    }
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_sent() {
    let (mailbox, _guest) = machine(&header(), REGION);
    let spawn = message::Spawn { path: b"/bin/x".to_vec(), args: vec![vec![b'a'; 5000]], ..Default::default() };
    assert!(matches!(mailbox.ask(&Request::Spawn(spawn)), Err(RequestError::TooLong { .. })));
}

#[test]
fn the_end_of_the_machine_ends_waiting() {
    let (mailbox, guest) = machine(&header(), REGION);
    thread::scope(|scope| {
        let asked = scope.spawn(|| mailbox.ask_within(&Request::Ping, Duration::from_secs(600)));
        guest.interrupts.recv().unwrap();
        guest.bell.end();
        assert!(matches!(asked.join().unwrap(), Err(RequestError::Ended)));
    });
    assert!(matches!(mailbox.ask(&Request::Ping), Err(RequestError::Ended)));
}

#[test]
fn an_answer_has_its_own_bytes_and_no_more_than_a_slot_has() {
    let (mailbox, guest) = machine(&header(), REGION);
    let room = header().slot_bytes - BODY_AT as u32;
    let asks: Vec<(u32, Option<usize>)> =
        vec![(0, Some(0)), (5, Some(5)), (room, Some(room as usize)), (room + 1, None), (u32::MAX, None)];
    let lengths: Vec<u32> = asks.iter().map(|(len, _)| *len).collect();
    let guest = thread::spawn(move || {
        for len in lengths {
            assert_eq!(guest.interrupts.recv(), Ok(3));
            let (slot, sequence, _) = guest.take().expect("a request was posted before the interrupt");
            guest.ram.write_slice(b"bytes", Guest::at(slot, BODY_AT)).unwrap();
            guest.answer(slot, &AnswerHead { len, ..answer(sequence, Ok(7)) });
        }
    });
    for (len, expected) in asks {
        match (mailbox.ask_for_bytes(&Request::Ping), expected) {
            (Ok((7, bytes)), Some(expected)) => {
                assert_eq!(bytes.len(), expected);
                assert!(expected < 5 || bytes.starts_with(b"bytes"));
            }
            (Err(RequestError::Broken(_)), None) => {}
            (other, _) => panic!("{len}: {other:?}"),
        }
    }
    guest.join().unwrap();
}

#[test]
fn news_of_programs_are_told_apart_from_answers() {
    let (mailbox, guest) = machine(&header(), REGION);
    let (ready, mut ring) = (mailbox.ready(), guest.bell.listener());
    ring(2);
    assert!(!ready.has_changed().unwrap());
    ring(READY);
    assert!(ready.has_changed().unwrap());
}
