//! /dev/kvm itself: there, permitted, of the right version, with what the VMM needs, and how many vCPUs it takes.

use std::io;

use kvm_ioctls::{Cap, Kvm};

use super::report::{Line, Status};

/// The only version there has been since 2007; anything else is to be refused (Linux, Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;

/// What the VMM can't do without.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "user memory"),
    (Cap::Irqchip, "in-kernel irqchip"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::ExtCpuid, "CPUID"),
    (Cap::SetTssAddr, "TSS address"),
    (Cap::MpState, "MP state"),
    (Cap::SetGuestDebug, "guest debugging"),
];

/// The lines, and the opened device if guests can be made with it.
pub fn examine() -> (Vec<Line>, Option<Kvm>) {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return (vec![refused(&io::Error::from_raw_os_error(error.errno()))], None),
    };
    let version = kvm.get_api_version();
    let mut lines = vec![
        Line::new("/dev/kvm", Status::Ok, "opened for reading and writing").needed(),
        Line::new(
            "API version",
            if version == API_VERSION { Status::Ok } else { Status::No },
            format!("{version} (expected {API_VERSION})"),
        )
        .needed(),
    ];
    if version != API_VERSION {
        return (lines, None);
    }
    let missing: Vec<_> = NEEDED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
    lines.push(if missing.is_empty() {
        let names: Vec<_> = NEEDED.iter().map(|(_, name)| *name).collect();
        Line::new("capabilities", Status::Ok, names.join(", ")).needed()
    } else {
        Line::new("capabilities", Status::No, format!("missing: {}", missing.join(", ")))
            .needed()
            .remedy("use a newer kernel, or one whose KVM was built with these")
    });
    let (recommended, max) = (kvm.get_nr_vcpus(), kvm.get_max_vcpus());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    lines.push(Line::new(
        "vCPUs",
        Status::Ok,
        format!("at most {max} a guest, {recommended} recommended; this process may use {cpus} host CPUs"),
    ));
    (lines, Some(kvm))
}

/// Why /dev/kvm can't be opened, and what to do.
fn refused(error: &io::Error) -> Line {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => {
            "load KVM (modprobe kvm_intel or kvm_amd; enable virtualisation in the firmware), \
             or pass the device into this container (--device /dev/kvm)"
        }
        io::ErrorKind::PermissionDenied => {
            "join the device's group (sudo usermod -aG kvm $USER, then log in again), or run as root"
        }
        // The module is there, and refuses: ENODEV, ENXIO, EBUSY.
        _ => "another hypervisor may hold the CPU's virtualisation, or KVM found none: see dmesg",
    };
    Line::new("/dev/kvm", Status::No, error.to_string()).needed().remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cant_be_opened_comes_with_the_remedy() {
        for (errno, word) in [(libc::ENOENT, "modprobe"), (libc::EACCES, "usermod"), (libc::EBUSY, "dmesg")] {
            let line = refused(&io::Error::from_raw_os_error(errno));
            assert_eq!((line.status, line.needed), (Status::No, true));
            assert!(line.remedy.unwrap().contains(word));
        }
    }
}
