//! The virtio-mmio register file and status machine, driven as a driver would, and as one would not.

mod driver;

use driver::*;
use proptest::prelude::*;
use taskvisor_devices::bus::BusDevice;

const GOOD: u64 = VERSION_1 | EVENT_IDX | MULTIPORT | SIZE;

#[test]
fn identifies_itself() {
    let (mut guest, _host) = Guest::with_pipes();
    assert_eq!(guest.get(reg::MAGIC), u32::from_le_bytes(*b"virt"));
    assert_eq!((guest.get(reg::VERSION), guest.get(reg::DEVICE_ID)), (2, 3));
    let mut features = 0;
    for sel in 0..3 {
        guest.set(reg::DEVICE_FEATURES_SEL, sel);
        features |= u128::from(guest.get(reg::DEVICE_FEATURES)) << (32 * sel);
    }
    assert_eq!(features, u128::from(GOOD));
    assert_eq!(guest.get(reg::CONFIG), 80 | 24 << 16);
    assert_eq!(guest.get(reg::CONFIG + 4), 2);
    assert_eq!(guest.get(0xb0), u32::MAX);
    for queue in 0..7 {
        guest.set(reg::QUEUE_SEL, queue);
        let max = guest.get(reg::QUEUE_NUM_MAX);
        assert_eq!(max.is_power_of_two(), queue < 6, "queue {queue}: {max}");
    }
}

#[test]
fn odd_accesses_read_zero_and_do_nothing() {
    let (mut guest, _host) = Guest::with_pipes();
    for (offset, len) in [(0, 1), (0, 2), (1, 4), (2, 4), (0, 8), (0x70, 2), (0xffc, 4), (0xfff, 1)] {
        let mut data = vec![0xaa; len];
        guest.regs.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{offset:#x}/{len}");
        guest.regs.write(offset, &vec![0xff; len]);
    }
    assert_eq!(guest.get(reg::STATUS), 0);
    // Configuration may be read in any width.
    let mut data = [0; 2];
    guest.regs.read(reg::CONFIG + 2, &mut data);
    assert_eq!(u16::from_le_bytes(data), 24);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    let (mut guest, _host) = Guest::with_pipes();
    assert!(!guest.negotiate(MULTIPORT));
    assert_eq!(guest.get(reg::STATUS), 3);
    assert!(!guest.negotiate(GOOD | 1 << 28));
    assert!(!guest.negotiate(GOOD | 1 << 34));
    guest.set(reg::STATUS, 0);
    guest.set(reg::STATUS, 3);
    guest.set(reg::DRIVER_FEATURES_SEL, 1);
    guest.set(reg::DRIVER_FEATURES, 1);
    guest.set(reg::DRIVER_FEATURES_SEL, 2);
    guest.set(reg::DRIVER_FEATURES, 1);
    guest.set(reg::STATUS, 11);
    assert_eq!(guest.get(reg::STATUS), 3, "bit 64 was never offered");
    assert!(guest.negotiate(GOOD));
    assert!(guest.negotiate(VERSION_1));
}

#[test]
fn the_status_machine_keeps_its_order() {
    let (mut guest, _host) = Guest::with_pipes();
    // No step without the one before it.
    guest.set(reg::STATUS, 4);
    assert_eq!(guest.get(reg::STATUS), 0);
    guest.set(reg::STATUS, 2);
    assert_eq!(guest.get(reg::STATUS), 0);
    // Features before DRIVER, and after FEATURES_OK, are ignored.
    guest.set(reg::STATUS, 1);
    guest.set(reg::DRIVER_FEATURES_SEL, 1);
    guest.set(reg::DRIVER_FEATURES, 1);
    guest.set(reg::STATUS, 3);
    guest.set(reg::STATUS, 11);
    assert_eq!(guest.get(reg::STATUS), 3);
    guest.set(reg::DRIVER_FEATURES, 1);
    guest.set(reg::STATUS, 11);
    assert_eq!(guest.get(reg::STATUS), 11);
    // A bit can't be cleared, only all of them.
    guest.set(reg::STATUS, 3);
    assert_eq!(guest.get(reg::STATUS), 11);
    guest.set(reg::STATUS, 15);
    assert_eq!(guest.get(reg::STATUS), 15);
    guest.set(reg::STATUS, 0);
    assert_eq!(guest.get(reg::STATUS), 0);
    // A driver that gave up stays where it is.
    guest.set(reg::STATUS, 0x81);
    guest.set(reg::STATUS, 0x83);
    assert_eq!(guest.get(reg::STATUS), 0x80);
}

#[test]
fn queues_can_be_set_up_only_between_features_ok_and_driver_ok() {
    let (mut guest, _host) = Guest::with_pipes();
    guest.program_queue(Vq::at(0, 64));
    assert_eq!(guest.get(reg::QUEUE_READY), 0);
    assert!(guest.negotiate(GOOD));
    guest.program_queue(Vq::at(0, 64));
    assert_eq!(guest.get(reg::QUEUE_READY), 1);
    guest.program_queue(Vq::at(6, 64));
    assert!(!guest.needs_reset());
    guest.set(reg::STATUS, 15);
    guest.program_queue(Vq::at(1, 64));
    assert_eq!(guest.get(reg::QUEUE_READY), 0);
    // An active queue can be stopped, and reads back as stopped.
    guest.set(reg::QUEUE_SEL, 0);
    guest.set(reg::QUEUE_READY, 0);
    assert_eq!(guest.get(reg::QUEUE_READY), 0);
    assert!(!guest.needs_reset());
}

#[test]
fn bad_queues_fail_the_device_and_a_reset_mends_it() {
    let good = Vq::at(0, 64);
    for (name, bad) in [
        ("size 0", Vq { size: 0, ..good }),
        ("size not a power of two", Vq { size: 48, ..good }),
        ("size above the maximum", Vq { size: 512, ..good }),
        ("misaligned table", Vq { desc: good.desc + 8, ..good }),
        ("misaligned avail", Vq { avail: good.avail + 1, ..good }),
        ("misaligned used", Vq { used: good.used + 2, ..good }),
        ("table outside of RAM", Vq { desc: RAM - 16, ..good }),
        ("used ring at the end of the address space", Vq { used: u64::MAX - 3, ..good }),
        ("avail ring at 0", Vq { avail: 0, ..good }),
    ] {
        let (mut guest, _host) = Guest::with_pipes();
        assert!(guest.negotiate(GOOD));
        guest.program_queue(bad);
        assert_eq!((guest.get(reg::STATUS), guest.get(reg::QUEUE_READY)), (0x4b, 0), "{name}");
        guest.program_queue(good);
        guest.set(reg::STATUS, 0x4f);
        assert_eq!((guest.get(reg::STATUS), guest.get(reg::QUEUE_READY)), (0x4b, 0), "{name}: obeyed while failed");
        assert_eq!(guest.interrupts(), 0, "{name}: no notification before DRIVER_OK");
        guest.start(GOOD);
    }
}

#[test]
fn changing_a_ready_queue_fails_the_device() {
    for offset in [reg::QUEUE_NUM, reg::QUEUE_DESC, reg::QUEUE_DESC + 4, reg::QUEUE_AVAIL, reg::QUEUE_USED] {
        let (mut guest, _host) = Guest::with_pipes();
        guest.start(GOOD);
        guest.interrupts();
        guest.set(reg::QUEUE_SEL, 1);
        guest.set(offset, 0x10);
        assert_eq!(guest.get(reg::STATUS), 0x4f);
        assert_eq!((guest.interrupts(), guest.get(reg::INTERRUPT_STATUS)), (1, 2));
        guest.set(reg::INTERRUPT_ACK, 2);
        assert_eq!(guest.get(reg::INTERRUPT_STATUS), 0);
        guest.set(reg::STATUS, 0);
        assert_eq!(guest.get(reg::STATUS), 0);
    }
}

#[test]
fn ioevents_cover_every_queue() {
    let (guest, _host) = Guest::with_pipes();
    let matches: Vec<_> = guest.regs.ioevents().map(|(offset, value, _)| (offset, value)).collect();
    assert_eq!(matches, (0..6).map(|i| (0x50, i)).collect::<Vec<_>>());
}

#[test]
fn a_resize_is_a_new_generation() {
    use taskvisor_devices::virtio::console::WinSize;
    let (mut guest, _host) = Guest::started();
    guest.interrupts();
    let before = guest.get(reg::CONFIG_GENERATION);
    guest.dev().resize(WinSize { cols: 132, rows: 50 });
    guest.dev().resize(WinSize { cols: 132, rows: 50 });
    assert_eq!(guest.get(reg::CONFIG_GENERATION), before + 1);
    assert_eq!(guest.get(reg::CONFIG), 132 | 50 << 16);
    assert_eq!((guest.interrupts(), guest.get(reg::INTERRUPT_STATUS)), (1, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any sequence of accesses of any width: no panic, and a reset always leads back to a device that works.
    #[test]
    fn any_register_access_leaves_a_device_that_a_reset_mends(
        accesses in prop::collection::vec((0_u64..0x120, 1_usize..9, any::<u64>(), any::<bool>()), 0..200)
    ) {
        let (mut guest, host) = Guest::with_pipes();
        for (offset, len, value, write) in accesses {
            // Mostly small aligned values, so that the state machine is walked and not only refused.
            let (offset, len) = if value % 8 < 6 { (offset & !3, 4) } else { (offset, len) };
            let value = if value % 4 == 0 { value } else { value % 0x20 };
            if write {
                guest.regs.write(offset, &value.to_le_bytes()[..len]);
            } else {
                guest.regs.read(offset, &mut vec![0; len]);
            }
            guest.turn();
        }
        guest.start(GOOD);
        guest.send(1, b"alive");
        guest.kick(1);
        guest.turn();
        prop_assert_eq!(read_available(host.stdout.as_ref().unwrap()), b"alive");
    }
}
