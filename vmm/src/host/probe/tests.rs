//! The probes on the KVM of this machine. What a host answers isn't fixed here, only that the answers agree with each
//! other, come in time and leave nothing behind.

use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;

use super::code::{Snippet, slot};
use super::guest::{Config, Ring, Stop, TinyGuest};
use crate::host::{HostReport, Quirks, Status, examine, quirks};

/// `None` only where the developer has said that missing things are all right.
fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(error) if std::env::var_os("ALLOW_MISSING").is_some() => {
            eprintln!("left out: /dev/kvm: {error}");
            None
        }
        Err(error) => panic!("/dev/kvm: {error} (ALLOW_MISSING=1 leaves these tests out)"),
    }
}

fn blocked_and_pending() -> (Vec<i32>, Vec<i32>) {
    // SAFETY: the sets are locals, filled by the calls.
    unsafe {
        let (mut blocked, mut pending): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut blocked);
        libc::sigpending(&mut pending);
        let members = |set| (1..=64).filter(|signal| libc::sigismember(set, *signal) == 1).collect();
        (members(&blocked), members(&pending))
    }
}

#[test]
fn an_endless_guest_ends_at_its_deadline_and_leaves_no_signal() {
    let Some(kvm) = kvm() else { return };
    let before = blocked_and_pending();
    for ring in Ring::ALL {
        let mut guest = TinyGuest::new(&kvm, Config::default()).unwrap();
        guest.start(Snippet::Endless, ring, 0).unwrap();
        let start = Instant::now();
        assert_eq!(guest.run(Duration::from_millis(40)).unwrap(), Stop::TimedOut, "{ring}");
        assert!(start.elapsed() >= Duration::from_millis(40), "{ring}: {:?}", start.elapsed());
        // The same machine answers the next question.
        guest.complete("after a time-out", Snippet::Loop, ring, 10, Duration::from_secs(1)).unwrap();
        assert!(guest.result(slot::OUT) > 0);
    }
    assert_eq!(blocked_and_pending(), before);
}

#[test]
fn a_guest_that_halts_for_ever_ends_at_its_deadline() {
    let Some(kvm) = kvm() else { return };
    // In-kernel controllers: hlt doesn't leave the kernel.
    let mut guest = TinyGuest::new(&kvm, Config { irqchip: true }).unwrap();
    let hlt = guest.write_instruction(&[0xfa, 0xf4]);
    guest.start_at(hlt, Ring::Kernel, 0, 0, 0).unwrap();
    assert_eq!(guest.run(Duration::from_millis(30)).unwrap(), Stop::TimedOut);
}

#[test]
fn traps_triple_faults_and_ends_are_told_apart() {
    let Some(kvm) = kvm() else { return };
    let limit = Duration::from_secs(1);
    let mut guest = TinyGuest::new(&kvm, Config::default()).unwrap();
    // ud2: exception 6 at that place.
    let at = guest.write_instruction(&[0x0f, 0x0b]);
    guest.start_at(at, Ring::Kernel, 0, 0, 0).unwrap();
    let stop = guest.run(limit).unwrap();
    assert_eq!((stop, guest.vector(), guest.result(slot::RIP)), (Stop::Done, Some(6), at));
    assert!(!guest.finished(stop, Ring::Kernel));
    for ring in Ring::ALL {
        guest.complete("end", Snippet::Debug, ring, 7, limit).unwrap();
        assert_eq!(guest.result(slot::OUT), 7);
    }
    // lidt of an empty table, then ud2.
    let at = guest.write_instruction(&[0x0f, 0x01, 0x1f, 0x0f, 0x0b]);
    guest.start_at(at, Ring::Kernel, 0, 0, 0).unwrap();
    assert_eq!(guest.run(limit).unwrap(), Stop::Shutdown);
}

#[test]
fn the_report_is_complete_and_agrees_with_the_fast_probe() {
    let Some(kvm) = kvm() else { return };
    let report = examine();
    assert!(report.can_run(), "{report}");
    for line in &report.lines {
        assert_ne!(line.status, Status::Unknown, "{}: {}", line.name, line.detail);
        assert!(!line.detail.is_empty(), "{}", line.name);
    }
    assert_eq!(quirks(&report), Quirks::probe_fast(&kvm).unwrap());
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<HostReport>(&json).unwrap(), report);
}

#[test]
fn probes_run_side_by_side() {
    let Some(kvm) = kvm() else { return };
    let expected = Quirks::probe_fast(&kvm).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| Quirks::probe_fast(&kvm).unwrap())).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), expected);
        }
    });
}

#[test]
fn a_timer_that_is_not_due_does_not_fire() {
    let Some(kvm) = kvm() else { return };
    for snippet in [Snippet::Oneshot, Snippet::Deadline] {
        let mut guest = TinyGuest::new(&kvm, Config { irqchip: true }).unwrap();
        // Some seconds, in nanoseconds as in cycles.
        guest.start(snippet, Ring::Kernel, 4_000_000_000).unwrap();
        let stop = guest.run(Duration::from_millis(30)).unwrap();
        // Without the TSC-deadline timer, arming it may raise #GP.
        let refused = snippet == Snippet::Deadline && guest.vector() == Some(13);
        assert!(stop == Stop::TimedOut || refused, "{snippet:?}: {stop}");
    }
}
