//! What runs inside: the guest kernel and the example programs, built by `build.rs` and embedded here.
//!
//! `GUEST_KERNEL_ELF=path` at build time embeds a kernel built elsewhere. The kernel with its in-guest tests is not
//! embedded: `resources/build-kernel.sh selftest` builds it for those who run them.

/// The guest kernel: a static ELF for x86-64 with a PVH entry.
pub const KERNEL_ELF: &[u8] = include_bytes!(env!("TASKVISOR_KERNEL_ELF"));

/// The example programs by name: static Linux x86-64 ELF files, those of C built with musl where it is there.
pub const PROGRAMS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/programs.rs"));

/// Where the build left every variant of the examples: `musl/NAME`, `glibc/NAME` and `rust/NAME`. Only good on the machine
/// that built them: for tests and benches.
pub const PROGRAMS_DIR: &str = env!("TASKVISOR_PROGRAMS_DIR");

/// Looks an embedded example program up.
pub fn program(name: &str) -> Option<&'static [u8]> {
    PROGRAMS.iter().find(|(known, _)| *known == name).map(|(_, elf)| *elf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_an_elf_file_for_this_machine() {
        assert_eq!(&KERNEL_ELF[..4], b"\x7fELF");
        assert_eq!(u16::from_le_bytes([KERNEL_ELF[18], KERNEL_ELF[19]]), 62, "EM_X86_64");
    }

    #[test]
    fn programs_are_found_by_name() {
        for (name, elf) in PROGRAMS {
            assert_eq!(&elf[..4], b"\x7fELF", "{name}");
            assert_eq!(program(name), Some(*elf));
        }
        assert_eq!(program("no such program"), None);
    }
}
