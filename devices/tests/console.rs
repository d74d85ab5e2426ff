//! The console's data plane against real pipes, files and sockets.

mod driver;

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use driver::*;
use taskvisor_devices::virtio::console::{ConsoleIo, Drained, Stream, WinSize};
use taskvisor_devices::virtio::stream::{InputStream, Interest, OutputStream};
use vm_memory::{Bytes, GuestAddress};

fn null() -> OwnedFd {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap().into()
}

/// A started guest with these files; what isn't given is /dev/null.
fn guest(stdin: InputStream, stdout: Option<&OwnedFd>, features: u64) -> Guest {
    let null = null();
    let io = ConsoleIo {
        stdin,
        stdout: OutputStream::new(borrow(stdout.unwrap_or(&null))).unwrap(),
        stderr: OutputStream::new(borrow(&null)).unwrap(),
    };
    let mut guest = Guest::new(io, None);
    guest.start(features);
    guest
}

const PLAIN: u64 = VERSION_1 | MULTIPORT | SIZE;

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn stdout_and_stderr_stay_apart_and_a_batch_costs_one_interrupt() {
    let (mut guest, host) = Guest::started();
    guest.interrupts();
    let heads = [guest.send(1, b"one "), guest.send(1, b""), guest.send(1, b"two")];
    guest.send(5, b"err");
    guest.kick(1);
    guest.kick(1);
    guest.turn();
    assert_eq!(guest.interrupts(), 1);
    assert_eq!(guest.used(1), heads.map(|head| (u32::from(head), 0)));
    guest.kick(5);
    guest.turn();
    assert_eq!(read_available(host.stdout.as_ref().unwrap()), b"one two");
    assert_eq!(read_available(host.stderr.as_ref().unwrap()), b"err");
}

#[test]
fn chains_of_any_alignment_across_regions_go_out_in_order() {
    let (mut guest, host) = Guest::started();
    let bytes = pattern(10_000);
    // Across the boundary between the two memory regions, at odd addresses.
    let base = (6 << 20) - 5_001;
    guest.mem.write_slice(&bytes, GuestAddress(base)).unwrap();
    let cuts = [0_usize, 1, 4, 4, 3_000, 6_500, 10_000];
    let buffers: Vec<_> = cuts.windows(2).map(|cut| (base + cut[0] as u64, (cut[1] - cut[0]) as u32)).collect();
    guest.offer(1, &buffers, false);
    guest.kick(1);
    guest.turn();
    assert_eq!(guest.used(1).len(), 1);
    assert_eq!(read_available(host.stdout.as_ref().unwrap()), bytes);
}

#[test]
fn a_full_pipe_holds_the_chain_back_until_it_is_written() {
    let (mut guest, host) = Guest::started();
    let stdout = host.stdout.unwrap();
    let bytes = pattern(300_000);
    guest.send(1, &bytes);
    guest.send(1, b"tail");
    guest.kick(1);
    guest.turn();
    assert!(guest.used(1).is_empty());
    assert!(matches!(guest.dev().output_interest(Stream::Stdout), Interest::Poll(_)));
    assert_eq!(guest.dev().output_interest(Stream::Stderr), Interest::Idle);
    let mut got = Vec::new();
    while guest.dev().output_interest(Stream::Stdout) != Interest::Idle {
        assert!(guest.used(1).is_empty() || got.len() >= 200_000);
        got.extend(read_available(&stdout));
        guest.turn();
    }
    got.extend(read_available(&stdout));
    assert_eq!(got.len(), bytes.len() + 4);
    assert!(got == [&bytes[..], b"tail"].concat());
}

#[test]
fn a_closed_pipe_discards_completes_and_remembers() {
    let (mut guest, host) = Guest::started();
    drop(host.stdout);
    for _ in 0..3 {
        guest.send(1, &[1; 100_000]);
    }
    guest.kick(1);
    guest.turn();
    assert_eq!(guest.used(1).len(), 3);
    assert_eq!(guest.dev().output_error(Stream::Stdout).unwrap().kind(), std::io::ErrorKind::BrokenPipe);
    assert!(guest.dev().output_error(Stream::Stderr).is_none());
    guest.send(5, b"still there");
    guest.kick(5);
    guest.turn();
    assert_eq!(read_available(host.stderr.as_ref().unwrap()), b"still there");
}

#[test]
fn a_pipe_closed_before_the_device_exists_is_closed_too() {
    let (read, write) = pipe();
    drop(read);
    let mut guest = guest(InputStream::Empty, Some(&write), PLAIN);
    guest.send(1, b"x");
    guest.kick(1);
    guest.turn();
    assert_eq!(guest.used(1).len(), 1);
    assert!(guest.dev().output_error(Stream::Stdout).is_some());
}

#[test]
fn inherited_descriptions_keep_their_flags_and_never_block() {
    let (read, write) = pipe();
    let mut guest = guest(InputStream::Empty, Some(&write), PLAIN);
    guest.send(1, &[7; 1 << 20]);
    guest.kick(1);
    let start = Instant::now();
    guest.turn();
    assert!(start.elapsed() < Duration::from_secs(2), "the loop blocked");
    assert_eq!(fcntl_flags(&write) & libc::O_NONBLOCK, 0);
    assert_eq!(read_available(&read).len(), 65536);
}

#[test]
fn sockets_and_regular_files_work_as_stdout() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let ours: OwnedFd = ours.into();
    let theirs: OwnedFd = theirs.into();
    let mut on_socket = guest(InputStream::Empty, Some(&ours), PLAIN);
    let bytes = pattern(1 << 20);
    on_socket.send(1, &bytes);
    on_socket.kick(1);
    on_socket.turn();
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        got.extend(read_available(&theirs));
        on_socket.turn();
    }
    assert!(got == bytes);

    let mut file = tempfile();
    file.write_all(b"kept ").unwrap();
    let fd: OwnedFd = file.try_clone().unwrap().into();
    let mut on_file = guest(InputStream::Empty, Some(&fd), PLAIN);
    on_file.send(1, &bytes);
    on_file.kick(1);
    on_file.turn();
    // The inherited description's own position is used, as `>> file` and `{ a; b; } > file` expect.
    let mut all = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut all).unwrap();
    assert!(all == [b"kept ", &bytes[..]].concat());
}

fn tempfile() -> std::fs::File {
    // SAFETY: a constant C string; the descriptor is owned at once.
    unsafe {
        let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
        std::os::fd::FromRawFd::from_raw_fd(fd)
    }
}

#[test]
fn stdin_is_polled_only_while_the_guest_has_buffers() {
    let (mut guest, host) = Guest::started();
    let stdin = host.stdin.unwrap();
    write_fd(&stdin, b"hello world");
    assert_eq!(guest.dev().stdin_interest(), Interest::Idle);
    guest.turn();
    guest.interrupts();
    let first = guest.give(0, 5);
    guest.kick(0);
    guest.turn();
    assert_eq!(guest.used(0), [(0, 5)]);
    assert_eq!(guest.read_mem(first, 5), b"hello");
    assert_eq!(guest.dev().stdin_interest(), Interest::Idle);
    assert_eq!(guest.interrupts(), 1);
    // Two buffers, of which the second is filled in part and the third waits.
    let second = guest.give(0, 4);
    let third = guest.give(0, 100);
    guest.give(0, 100);
    guest.kick(0);
    guest.turn();
    assert_eq!(guest.used(0), [(1, 4), (2, 2)]);
    assert_eq!((guest.read_mem(second, 4), guest.read_mem(third, 2)), (b" wor".to_vec(), b"ld".to_vec()));
    assert!(matches!(guest.dev().stdin_interest(), Interest::Poll(_)));
    write_fd(&stdin, b"!");
    guest.turn();
    assert_eq!(guest.used(0), [(3, 1)]);
}

#[test]
fn the_end_of_stdin_comes_after_the_last_byte() {
    let (mut guest, host) = Guest::started();
    for _ in 0..4 {
        guest.give(2, 64);
    }
    write_fd(host.stdin.as_ref().unwrap(), b"last");
    drop(host.stdin);
    guest.turn();
    assert!(guest.control_received().is_empty());
    guest.give(0, 64);
    guest.give(0, 64);
    guest.kick(0);
    guest.turn();
    assert_eq!(guest.used(0), [(0, 4)]);
    assert_eq!(guest.control_received(), [(0, 6, 0, vec![])]);
    assert_eq!(guest.dev().stdin_interest(), Interest::Idle);
}

#[test]
fn a_pipe_whose_writer_has_gone_before_we_look_still_ends() {
    let (read, write) = pipe();
    write_fd(&write, b"hi\n");
    drop(write);
    let mut guest = guest(InputStream::new(borrow(&read)).unwrap(), None, PLAIN);
    guest.give(2, 64);
    let at = guest.give(0, 64);
    guest.kick(0);
    guest.turn();
    assert_eq!(guest.read_mem(at, 3), b"hi\n");
    guest.give(0, 64);
    guest.kick(0);
    guest.turn();
    assert_eq!(guest.control_received(), [(0, 6, 0, vec![])]);
}

#[test]
fn stdin_may_be_a_regular_file_or_dev_null() {
    let mut file = tempfile();
    file.write_all(b"contents").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    for (input, expected) in [(OwnedFd::from(file), &b"contents"[..]), (null(), b"")] {
        let mut guest = guest(InputStream::new(input.as_fd()).unwrap(), None, PLAIN);
        guest.give(2, 64);
        let at = guest.give(0, 64);
        guest.give(0, 64);
        guest.kick(0);
        assert_eq!(guest.dev().stdin_interest(), Interest::Idle);
        guest.turn();
        assert_eq!(guest.read_mem(at, expected.len()), expected);
        assert_eq!(guest.control_received(), [(0, 6, 0, vec![])]);
    }
}

#[test]
fn injected_input_is_kept_until_the_guest_reads() {
    let mut guest = guest(InputStream::injected(), None, PLAIN);
    guest.give(2, 64);
    assert_eq!(guest.dev().push_input(b"typed"), 5);
    assert_eq!(guest.dev().push_input(&[b'x'; 1 << 20]), (64 << 10) - 5);
    assert_eq!(guest.dev().stdin_interest(), Interest::Idle);
    guest.dev().close_input();
    assert_eq!(guest.dev().push_input(b"late"), 0);
    let mut got = Vec::new();
    for _ in 0..4 {
        let at = guest.give(0, 40_000);
        guest.kick(0);
        guest.turn();
        got.extend(guest.used(0).iter().flat_map(|(_, len)| guest.read_mem(at, *len as usize)));
    }
    assert_eq!((got.len(), &got[..6]), (64 << 10, &b"typedx"[..]));
    assert_eq!(guest.control_received(), [(0, 6, 0, vec![])]);
}

#[test]
fn the_control_hand_shake_names_both_ports_and_the_size() {
    let (read, _write) = pipe();
    let io = ConsoleIo {
        stdin: InputStream::new(borrow(&read)).unwrap(),
        stdout: OutputStream::new(borrow(&null())).unwrap(),
        stderr: OutputStream::new(borrow(&null())).unwrap(),
    };
    let mut guest = Guest::new(io, Some(WinSize { cols: 100, rows: 30 }));
    guest.start(PLAIN);
    for _ in 0..20 {
        guest.give(2, 32);
    }
    guest.control(u32::MAX, 0, 1);
    assert_eq!(guest.control_received(), [(0, 1, 1, vec![]), (1, 1, 1, vec![])]);
    guest.control(0, 3, 1);
    guest.control(1, 3, 1);
    let size = vec![100, 0, 30, 0];
    assert_eq!(guest.control_received(), [(0, 4, 1, vec![]), (0, 6, 1, vec![]), (0, 5, 0, size), (1, 6, 1, vec![])]);
    guest.dev().resize(WinSize { cols: 101, rows: 31 });
    guest.turn();
    assert_eq!(guest.control_received(), [(0, 5, 0, vec![101, 0, 31, 0])]);
    assert!(!guest.needs_reset());
}

#[test]
fn control_messages_wait_for_buffers_and_stay_bounded() {
    // Both notification schemes: a kick that is never asked for would leave the messages waiting for ever.
    for features in [PLAIN, PLAIN | EVENT_IDX] {
        let mut guest = guest(InputStream::Empty, None, features);
        for _ in 0..200 {
            guest.control(0, 0, 1);
            guest.control(0, 3, 1);
            guest.dev().resize(WinSize { cols: 1, rows: 2 });
            guest.used(3);
        }
        for _ in 0..10 {
            guest.give(2, 32);
        }
        guest.kick(2);
        guest.turn();
        let got = guest.control_received();
        assert!((5..=6).contains(&got.len()), "{got:?}");
        assert!(!guest.needs_reset());
    }
}

#[test]
fn an_end_before_the_hand_shake_is_repeated_in_it() {
    let mut guest = guest(InputStream::Empty, None, PLAIN);
    for _ in 0..10 {
        guest.give(2, 32);
    }
    guest.give(0, 10);
    guest.kick(0);
    guest.turn();
    guest.control(0, 0, 1);
    guest.control(0, 3, 1);
    let got = guest.control_received();
    assert_eq!(got.first(), Some(&(0, 6, 0, vec![])));
    assert_eq!(&got[3..], [(0, 4, 1, vec![]), (0, 6, 1, vec![]), (0, 6, 0, vec![])]);
}

#[test]
fn no_interrupt_and_event_idx_are_honoured() {
    let (mut guest, _host) = Guest::started();
    guest.interrupts();
    let flags = GuestAddress(guest.queues[1].avail);
    guest.mem.write_obj(1_u16, flags).unwrap();
    guest.send(1, b"quiet");
    guest.kick(1);
    guest.turn();
    assert_eq!((guest.used(1).len(), guest.interrupts()), (1, 0));

    let (mut guest, _host) = Guest::with_pipes();
    guest.start(PLAIN | EVENT_IDX);
    guest.interrupts();
    // used_event: interrupt when the third chain is done.
    let vq = guest.queues[1];
    guest.mem.write_obj(2_u16, GuestAddress(vq.avail + 4 + 2 * u64::from(vq.size))).unwrap();
    for expected in [0, 0, 1, 0] {
        guest.send(1, b"x");
        guest.kick(1);
        guest.turn();
        assert_eq!(guest.interrupts(), expected);
    }
    // avail_event: we ask for a kick at the next chain.
    let avail_event: u16 = guest.mem.read_obj(GuestAddress(vq.used + 4 + 8 * u64::from(vq.size))).unwrap();
    assert_eq!(avail_event, 4);
}

#[test]
fn drain_writes_what_was_queued_and_never_kicked() {
    let (mut guest, host) = Guest::started();
    let bytes = pattern(200_000);
    guest.send(1, &bytes);
    guest.send(5, b"err");
    let stdout = host.stdout.unwrap();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        std::fs::File::from(stdout).take(200_000).read_to_end(&mut got).unwrap();
        got
    });
    assert_eq!(guest.dev().drain(None, None), Drained::Complete);
    assert!(reader.join().unwrap() == bytes);
    assert_eq!(read_available(host.stderr.as_ref().unwrap()), b"err");
    assert_eq!(guest.used(1).len() + guest.used(5).len(), 2);
}

#[test]
fn drain_gives_up_at_its_deadline_or_when_cancelled() {
    let (mut guest, _host) = Guest::started();
    guest.send(1, &[1; 100_000]);
    let start = Instant::now();
    let drained = guest.dev().drain(Some(start + Duration::from_millis(30)), None);
    assert_eq!(drained, Drained::GaveUp { bytes: 100_000 - 65_536 });
    assert!((30..1_000).contains(&start.elapsed().as_millis()));
    let (read, write) = pipe();
    write_fd(&write, b"x");
    assert!(matches!(guest.dev().drain(None, Some(borrow(&read))), Drained::GaveUp { .. }));
}

#[test]
fn a_reset_forgets_what_was_in_flight_and_the_next_driver_starts_clean() {
    let (mut guest, host) = Guest::started();
    let stdout = host.stdout.unwrap();
    guest.send(1, &[1; 100_000]);
    guest.kick(1);
    guest.turn();
    guest.set(reg::STATUS, 0);
    guest.turn();
    assert_eq!(guest.dev().output_interest(Stream::Stdout), Interest::Idle);
    assert_eq!(read_available(&stdout).len(), 65_536);
    guest.start(PLAIN);
    guest.send(1, b"again");
    guest.kick(1);
    guest.turn();
    assert_eq!(read_available(&stdout), b"again");
}

#[test]
fn a_hundred_megabytes_pass_without_loss() {
    let (in_read, in_write) = pipe();
    let (out_read, out_write) = pipe();
    let mut guest = guest(InputStream::new(borrow(&in_read)).unwrap(), Some(&out_write), PLAIN | EVENT_IDX);
    drop((in_read, out_write));
    const TOTAL: usize = 100 << 20;
    let block = pattern(1 << 20);
    let source = block.clone();
    let writer = std::thread::spawn(move || {
        let mut file = std::fs::File::from(in_write);
        (0..TOTAL / source.len()).for_each(|_| file.write_all(&source).unwrap());
    });
    let reader = std::thread::spawn(move || {
        let mut file = std::fs::File::from(out_read);
        let mut got = vec![0; block.len()];
        for i in 0..TOTAL / block.len() {
            file.read_exact(&mut got).unwrap();
            assert!(got == block, "block {i}");
        }
    });
    // The guest echoes: a receive buffer that came back is sent as it is, and given again when it was sent.
    let buffers: Vec<u64> = (0..8).map(|_| guest.alloc(65_536)).collect();
    let mut received_in = std::collections::HashMap::new();
    for buffer in buffers {
        received_in.insert(u32::from(guest.offer(0, &[(buffer, 65_536)], true)), buffer);
    }
    let mut sent_from = std::collections::HashMap::new();
    let mut echoed = 0;
    guest.kick(0);
    while echoed < TOTAL {
        guest.turn();
        for (head, len) in guest.used(0) {
            let buffer = received_in.remove(&head).unwrap();
            let head = guest.offer(1, &[(buffer, len)], false);
            sent_from.insert(u32::from(head), buffer);
            echoed += len as usize;
            guest.kick(1);
        }
        for (head, _) in guest.used(1) {
            let buffer = sent_from.remove(&head).unwrap();
            received_in.insert(u32::from(guest.offer(0, &[(buffer, 65_536)], true)), buffer);
            guest.kick(0);
        }
    }
    assert_eq!(guest.dev().drain(None, None), Drained::Complete);
    writer.join().unwrap();
    reader.join().unwrap();
}

#[test]
fn a_pseudo_terminal_is_used_without_blocking_and_keeps_its_flags() {
    let (mut master, mut slave) = (0, 0);
    // SAFETY: openpty fills the two descriptors; name and settings are not asked for.
    let (master, slave) = unsafe {
        let none = std::ptr::null_mut();
        assert_eq!(libc::openpty(&mut master, &mut slave, none, none.cast(), none.cast()), 0);
        use std::os::fd::FromRawFd;
        (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    };
    let mut guest = guest(InputStream::new(borrow(&slave)).unwrap(), Some(&slave), PLAIN);
    guest.give(0, 64);
    guest.kick(0);
    write_fd(&master, b"line\n");
    guest.turn();
    assert_eq!(guest.used(0), [(0, 5)]);
    read_available(&master);
    // More than a terminal holds: the device waits instead of blocking.
    guest.send(1, &[b'z'; 200_000]);
    guest.kick(1);
    guest.turn();
    assert!(matches!(guest.dev().output_interest(Stream::Stdout), Interest::Poll(_)));
    let mut got = 0;
    while guest.used(1).is_empty() {
        got += read_available(&master).len();
        guest.turn();
    }
    got += read_available(&master).len();
    assert_eq!(got, 200_000);
    assert_eq!(fcntl_flags(&slave) & libc::O_NONBLOCK, 0);
}
