//! Tells the guest's CPUs that their clock has changed: by their timer's interrupt, which may come at any time (docs/abi.md).

use std::fmt;
use std::sync::Arc;

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;

/// The kernel's timer (docs/abi.md, "Command line of our kernel").
const TIMER_VECTOR: u32 = 0x20;
/// Intel SDM vol. 3A 11.11.1: the address of a message to a local APIC, bits 7:0 of its id from bit 12 on. With
/// KVM_CAP_X2APIC_API the upper word has bits 31:8 where they stand in the id.
const MSI_ADDRESS: u32 = 0xfee0_0000;

/// Interrupts all vCPUs of a machine.
pub struct Interrupts(Box<dyn Fn() + Send + Sync>);

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupts")
    }
}

impl Interrupts {
    /// By other means.
    pub fn by(send: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Box::new(send))
    }

    /// Through KVM's interrupt controller, to the vCPUs with these local APICs. One that can't be reached notices at its next
    /// timer interrupt.
    pub fn through(vm: Arc<VmFd>, apic_ids: Vec<u32>) -> Self {
        Self::by(move || {
            for id in &apic_ids {
                let message = kvm_msi {
                    address_lo: MSI_ADDRESS | (id & 0xff) << 12,
                    address_hi: id & !0xff,
                    data: TIMER_VECTOR,
                    ..kvm_msi::default()
                };
                if let Err(error) = vm.signal_msi(message) {
                    log::debug!("clock: KVM_SIGNAL_MSI to {id}: {error}");
                }
            }
        })
    }

    /// Sends them.
    pub fn send(&self) {
        (self.0)();
    }
}
