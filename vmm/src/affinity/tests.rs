//! Parsers and plans without a host, and real threads on this one.

use std::sync::mpsc::channel;
use std::thread;

use proptest::prelude::*;

use super::live::{Change, LiveError, set_live};
use super::plan::Host;
use super::*;

fn set(text: &str) -> IdSet {
    text.parse().unwrap()
}

fn host(online: &str, current: &str) -> Host {
    Host { online: set(online), current: set(current) }
}

fn request(affinity: &str) -> Request {
    Request { affinity: parse::affinity(affinity).unwrap(), ..Request::default() }
}

#[test]
fn errors_point_at_the_character() {
    for (text, message) in [
        ("0", "'=' is missing at character 2"),
        ("0=0;1", "'=' is missing at character 6"),
        ("0=", "a number is missing at character 3"),
        ("0=0 ", "' ' doesn't belong here at character 4"),
        ("x=0", "a number is missing at character 1"),
    ] {
        assert_eq!(parse::affinity(text).unwrap_err().to_string(), message, "{text}");
    }
    for (text, message) in [
        ("fif:3", "unknown class 'fif' at character 1: use other, fifo:PRIO, rr:PRIO or nice:N"),
        ("fifo:0", "a real-time priority is 1 to 99 at character 6"),
        ("0-1=rr", "':' is missing at character 7"),
        ("nice:-21", "a nice value is -20 to 19 at character 6"),
    ] {
        assert_eq!(parse::classes(text).unwrap_err().to_string(), message, "{text}");
    }
}

#[test]
fn entries_name_vcpus() {
    let pins = parse::affinity("0=0;1-2=1,3;").unwrap();
    assert_eq!((pins.len(), pins[1].value.to_string()), (2, "1,3".into()));
    assert_eq!(parse::affinity("all=0-1").unwrap()[0].vcpus, None);
    let classes = parse::classes("0=fifo:10;1-2=nice:-5").unwrap();
    assert_eq!(classes[1], Entry { vcpus: Some(set("1-2")), value: Class::Nice(-5) });
    assert_eq!(parse::classes("rr:99").unwrap(), [Entry { vcpus: None, value: Class::RoundRobin(99) }]);
}

#[test]
fn impossible_plans_say_who_where_and_why() {
    let refusal = |request: &Request| Plan::new(request, 2, host("0-3", "0-2")).unwrap_err().to_string();
    for (affinity, message) in [
        ("2=0", "--affinity names vCPU 2, and there are vCPUs 0-1"),
        ("0=0;0-1=1", "--affinity names vCPU 0 twice"),
        ("1=2-5", "vCPU 1 can't run on CPUs 2-5: CPU 4-5 is offline or doesn't exist (online: 0-3)"),
    ] {
        assert_eq!(refusal(&request(affinity)), message);
    }
    let exclusive = Request { exclusive: true, ..request("0=1;1=1") };
    let message = "--exclusive: vCPU 1 finds no CPU of its own among CPUs 1, which vCPUs 0 need: \
                   give more CPUs or fewer vCPUs";
    assert_eq!(refusal(&exclusive), message);
    let apart = Request { exclusive: true, io: Some(set("0-1")), ..request("all=0-2") };
    assert!(refusal(&apart).contains("vCPU 1 finds no CPU of its own among CPUs 2"));
    let nothing_left = Request { exclusive: true, io: Some(set("0-2")), ..request("1=1-2") };
    let message =
        "--exclusive: vCPU 0 finds no CPU of its own: --io-affinity 0-2 takes all of CPUs 0-2 that it may have";
    assert_eq!(refusal(&nothing_left), message);
    let denied = AffinityError::Class {
        who: Who::Vcpu(3),
        cpus: set("0-1"),
        class: Class::Fifo(10),
        source: io::Error::from_raw_os_error(libc::EPERM),
    };
    assert!(denied.to_string().starts_with("vCPU 3 on CPUs 0-1 can't be fifo:10: no permission"), "{denied}");
}

/// Runs `f` on a thread of its own.
fn aside<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(f).join().unwrap())
}

#[test]
fn a_seat_is_taken_and_read_back() {
    let host = Host::ask().unwrap();
    let cpu = host.current.iter().next().unwrap();
    let request = Request { classes: parse::classes("nice:7").unwrap(), ..request(&format!("all={cpu}")) };
    let plan = Plan::new(&request, 1, host.clone()).unwrap();
    plan.rehearse().unwrap();
    aside(|| {
        plan.take_seat(0).unwrap();
        assert_eq!((sys::affinity(0).unwrap(), sys::class(0).unwrap()), (set(&cpu.to_string()), Class::Nice(7)));
    });
    assert_eq!(sys::affinity(0).unwrap(), host.current, "the rehearsal leaves its caller alone");
}

#[test]
fn vcpus_stay_free_when_only_the_io_threads_are_pinned() {
    let host = Host::ask().unwrap();
    let cpu = host.current.iter().next().unwrap();
    let request = Request { io: Some([cpu].into_iter().collect()), ..Request::default() };
    let plan = Plan::new(&request, 1, host.clone()).unwrap();
    aside(|| {
        plan.take_io_seat().unwrap();
        assert_eq!(sys::affinity(0).unwrap().len(), 1);
        aside(|| {
            plan.take_seat(0).unwrap();
            assert_eq!(sys::affinity(0).unwrap(), host.current);
        });
    });
}

#[test]
fn cpus_that_are_left_out_silently_are_found() {
    let mut host = Host::ask().unwrap();
    // As if the host had one more: the kernel takes the mask, but leaves that one out.
    let beyond = host.online.iter().next_back().unwrap() + 1;
    let wanted: IdSet = host.current.iter().chain([beyond]).collect();
    host.online.insert(beyond);
    let plan = Plan::new(&request(&format!("0={wanted}")), 1, host).unwrap();
    let error = plan.rehearse().unwrap_err();
    assert!(
        matches!(&error, AffinityError::OutsideCpuset { cpus, .. } if *cpus == set(&beyond.to_string())),
        "{error}"
    );
}

/// Threads that wait until the test ends; their ids.
fn sleepers<'s>(scope: &'s thread::Scope<'s, '_>, n: usize) -> (Vec<i32>, Vec<std::sync::mpsc::Sender<()>>) {
    (0..n)
        .map(|_| {
            let (tell, tid) = channel();
            let (end, ended) = channel::<()>();
            scope.spawn(move || {
                tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
                let _ = ended.recv();
            });
            (tid.recv().unwrap(), end)
        })
        .unzip()
}

#[test]
fn several_threads_move_together_or_not_at_all() {
    let all = sys::affinity(0).unwrap();
    let first: IdSet = all.iter().take(1).collect();
    thread::scope(|scope| {
        let (tids, ends) = sleepers(scope, 3);
        let change = |vcpu: usize, cpus: &IdSet| Change { vcpu: vcpu as u32, tid: tids[vcpu], to: cpus.clone() };
        let done = set_live(&[change(0, &first), change(1, &first)]).unwrap();
        assert_eq!(done, [(0, first.clone()), (1, first.clone())]);
        assert_eq!(sys::affinity(tids[1]).unwrap(), first);

        let impossible: IdSet = all.iter().chain([4000]).collect();
        let error = set_live(&[change(0, &all), change(1, &all), change(2, &impossible)]).unwrap_err();
        assert!(matches!(error, LiveError::RolledBack(AffinityError::Offline { who: Who::Vcpu(2), .. })), "{error}");
        let now: Vec<_> = tids.iter().map(|tid| sys::affinity(*tid).unwrap()).collect();
        assert_eq!(now, [first.clone(), first.clone(), all.clone()], "all as before");
        drop(ends);
    });
}

#[test]
fn several_threads_change_class_together_or_not_at_all() {
    thread::scope(|scope| {
        let (tids, ends) = sleepers(scope, 2);
        let change = |vcpu: u32, tid: i32, class| Change { vcpu, tid, to: class };
        let done = set_live(&[change(0, tids[0], Class::Nice(3))]).unwrap();
        assert_eq!((done, sys::class(tids[0]).unwrap()), (vec![(0, Class::Nice(3))], Class::Nice(3)));

        let nobody = i32::MAX;
        let error = set_live(&[change(1, tids[1], Class::Nice(5)), change(2, nobody, Class::Nice(5))]).unwrap_err();
        match error {
            LiveError::RolledBack(AffinityError::Class { who: Who::Vcpu(2), .. }) => {
                assert_eq!(sys::class(tids[1]).unwrap(), Class::Other, "as before");
            }
            // A nice value can be lowered again with CAP_SYS_NICE only.
            LiveError::Stuck { vcpu: 1, ref source, .. } => {
                assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
            }
            other => panic!("{other}"),
        }
        drop(ends);
    });
}

#[test]
fn core_scheduling_works_or_says_why_not() {
    let request = Request { core_scheduling: CoreScheduling::Vcpu, ..Request::default() };
    let plan = Plan::new(&request, 1, Host::ask().unwrap()).unwrap();
    match plan.rehearse() {
        Ok(()) => {}
        Err(AffinityError::Core { who: Who::Vcpu(0), source }) => {
            assert!(matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::EPERM)), "{source}");
        }
        Err(other) => panic!("{other}"),
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "[a-z0-9=;:,ü -]{0,40}") {
        let errors = [parse::affinity(&text).err(), parse::classes(&text).err(), parse::cpus(&text).err()];
        for error in errors.into_iter().flatten() {
            prop_assert!((1..=text.chars().count() + 1).contains(&error.at));
        }
    }

    /// With --exclusive no CPU is given twice, each is one that was asked for, and a plan is found whenever there is one
    /// (Hall's condition, by trying all subsets).
    #[test]
    fn exclusive_seats_are_a_matching(wanted in proptest::collection::vec(1u8..32, 1..6)) {
        let cpus = |mask: u8| (0..5).filter(|bit| mask >> bit & 1 != 0).collect::<IdSet>();
        let affinity = wanted.iter().zip(0u32..).map(|(mask, vcpu)| Entry {
            vcpus: Some([vcpu].into_iter().collect()),
            value: cpus(*mask),
        });
        let request = Request { affinity: affinity.collect(), exclusive: true, ..Request::default() };
        let vcpus = wanted.len() as u32;
        let possible = (1u32..1 << vcpus).all(|subset| {
            let members = wanted.iter().zip(0..).filter(|(_, n)| subset >> n & 1 != 0);
            members.fold(0, |mask, (cpus, _)| mask | cpus).count_ones() >= subset.count_ones()
        });
        match Plan::new(&request, vcpus, host("0-4", "0-4")) {
            Ok(plan) => {
                prop_assert!(possible);
                let mut used = IdSet::default();
                for (vcpu, mask) in (0..vcpus).zip(&wanted) {
                    let seat = plan.cpus_of(vcpu).unwrap();
                    prop_assert_eq!(seat.len(), 1);
                    prop_assert!(seat.difference(&cpus(*mask)).is_empty());
                    prop_assert!(used.insert(seat.iter().next().unwrap()));
                }
            }
            Err(error) => {
                prop_assert!(!possible, "{}", error);
                let too_few = matches!(error, AffinityError::TooFew { .. });
                prop_assert!(too_few);
            }
        }
    }
}
