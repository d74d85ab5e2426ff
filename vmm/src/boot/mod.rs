//! From a kernel file to a guest that is ready to run: loading, boot protocols, ACPI, CPUID, entry registers.
//!
//! [`crate::vm`] is the caller. Everything here writes guest memory or builds values; only [`regs`] and [`cpuid`] know
//! KVM's structures, and nothing here holds a KVM file descriptor.

pub mod acpi;
pub mod builtin;
pub mod bzimage;
pub mod cpuid;
pub mod kernel;
pub mod layout;
pub mod pvh;
pub mod regs;

use vm_memory::{Bytes, GuestAddress};

use crate::memory::Ram;

/// Why a guest can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel file is no kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::KernelError),
    /// The command line doesn't fit.
    #[error("the kernel command line has {have} bytes, at most {max} fit: shorten --cmdline")]
    CommandLine {
        /// Its length.
        have: usize,
        /// The most that this kernel takes.
        max: usize,
    },
    /// The archive and the kernel don't fit into guest memory together.
    #[error(
        "the archive ({archive} bytes) and the kernel (up to address {kernel_end:#x}) don't fit into guest memory, \
         of which the kernel can use the part below {limit:#x} for it: give more --memory"
    )]
    NoRoom {
        /// Archive length.
        archive: u64,
        /// End of the loaded kernel.
        kernel_end: u64,
        /// End of low RAM, or of what the kernel can reach.
        limit: u64,
    },
    /// The ACPI tables outgrew their place.
    #[error("{vcpus} vCPUs need more ACPI table space than there is")]
    Acpi {
        /// Number of vCPUs.
        vcpus: u32,
    },
    /// A write to guest memory failed.
    #[error("can't write boot data to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// linux-loader refuses the boot parameters.
    #[error("can't write boot parameters: {0}")]
    Params(#[from] linux_loader::configurator::Error),
}

/// What a boot protocol passes to the guest, whichever protocol it is.
#[derive(Debug, Clone, Copy)]
pub struct BootInfo<'a> {
    /// Kernel command line without NUL.
    pub cmdline: &'a str,
    /// Where the archive lies and how long it is.
    pub archive: Option<(u64, u64)>,
    /// Address of the RSDP.
    pub rsdp: u64,
}

/// Writes the command line with its NUL.
fn write_cmdline(ram: &Ram, cmdline: &str, max: usize) -> Result<(), BootError> {
    if cmdline.len() >= max {
        return Err(BootError::CommandLine { have: cmdline.len(), max: max - 1 });
    }
    ram.write_slice(cmdline.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    ram.write_obj(0u8, GuestAddress(layout::COMMAND_LINE + cmdline.len() as u64))?;
    Ok(())
}
