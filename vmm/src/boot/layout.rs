//! Where the VMM puts things in guest-physical memory; the numbers of docs/abi.md, "Boot".
//!
//! Used by the boot protocols and the device set-up. Nothing here computes.

/// The GDT that the 64-bit Linux entry expects to be loaded.
pub const GDT: u64 = 0x500;
/// `hvm_start_info`.
pub const PVH_START_INFO: u64 = 0x6000;
/// `hvm_modlist_entry` array, right behind it.
pub const PVH_MODULES: u64 = 0x6040;
/// `hvm_memmap_table_entry` array.
pub const PVH_MEMORY_MAP: u64 = 0x7000;
/// Linux' `boot_params`; shares the place of the PVH memory map, as a guest gets one or the other.
pub const ZERO_PAGE: u64 = 0x7000;
/// Identity page tables for the 64-bit Linux entry: PML4, PDPT, and four page directories (0x9000 .. 0xf000).
pub const PAGE_TABLES: u64 = 0x9000;
/// Command line, at most [`COMMAND_LINE_MAX`] bytes with its NUL.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// See [`COMMAND_LINE`].
pub const COMMAND_LINE_MAX: usize = 0x1_0000;
/// PPTT, which grows fastest with the number of CPUs; ends at [`ACPI`].
pub const PPTT: u64 = 0xc_0000;
/// RSDP, then XSDT, FADT, DSDT, MADT, SRAT, SLIT.
pub const ACPI: u64 = 0xe_0000;
/// ACPI tables end here.
pub const ACPI_END: u64 = 0x10_0000;

/// The first virtio-mmio device; device n lies n * [`VIRTIO_MMIO_SIZE`] above.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Room for one virtio-mmio device.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The GSI of virtio-mmio device 0.
pub const VIRTIO_GSI: u32 = 5;

/// The memory of an enclave (docs/delegation.md): in the hole, so that it is no RAM, and far from other devices.
pub const ENCLAVE: u64 = 0xd800_0000;

/// IOAPIC of KVM's in-kernel irqchip (Linux, arch/x86/kvm/ioapic.h: IOAPIC_DEFAULT_BASE_ADDRESS).
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC (Intel SDM vol. 3A, 11.4.1).
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages that KVM uses on Intel hosts for real mode (Linux, Documentation/virt/kvm/api.rst, KVM_SET_TSS_ADDR).
pub const KVM_TSS: usize = 0xfffb_d000;
/// One page that KVM uses on Intel hosts (ibid., KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// COM1: the kernel's log, and stdio without a virtio console.
pub const COM1: u16 = 0x3f8;
/// COM1's GSI.
pub const COM1_GSI: u32 = 4;
/// COM2: reports.
pub const COM2: u16 = 0x2f8;
/// COM2's GSI.
pub const COM2_GSI: u32 = 3;
