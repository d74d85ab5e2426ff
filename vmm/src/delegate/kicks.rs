//! How an agent interrupts vCPUs: by a call of the VMM's, or by an event descriptor that KVM listens to.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1 as Route, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::owned;

/// The vector of our kernel that makes a CPU look (docs/abi.md).
const LOOK_VECTOR: u32 = 0xf0;
/// Intel SDM vol. 3A 11.11.1: the address of a message to a local APIC, bits 7:0 of its id from bit 12 on. With
/// KVM_CAP_X2APIC_API the upper word has bits 31:8 where they stand in the id.
const MSI_ADDRESS: u32 = 0xfee0_0000;
/// Lines of KVM's own chips (Linux, arch/x86/kvm/irq.c: default_routing): as many as the IOAPIC has pins, the first ones of them also the PICs'.
const IOAPIC_PINS: u32 = 24;
/// Lines of both PICs, and of one.
const PIC_PINS: u32 = 16;
const PINS_OF_ONE: u32 = 8;

/// Interrupts vCPUs, by number.
#[derive(Debug, Clone)]
pub struct Kicks {
    vm: Arc<VmFd>,
    apic_ids: Arc<[u32]>,
}

/// Address and upper address of the message to this APIC.
const fn address_of(id: u32) -> (u32, u32) {
    (MSI_ADDRESS | (id & 0xff) << 12, id & !0xff)
}

impl Kicks {
    /// Of a machine's vCPUs, in their order.
    pub fn new(vm: Arc<VmFd>, apic_ids: impl Iterator<Item = u32>) -> Self {
        Self { vm, apic_ids: apic_ids.collect() }
    }

    /// Has a vCPU look at its transaction. One that isn't there is the guest's word, and nothing happens.
    pub fn kick(&self, vcpu: u32) {
        let Some(&id) = self.apic_ids.get(vcpu as usize) else { return };
        let (address_lo, address_hi) = address_of(id);
        let message = kvm_msi { address_lo, address_hi, data: LOOK_VECTOR, ..kvm_msi::default() };
        if let Err(error) = self.vm.signal_msi(message) {
            log::debug!("delegate: KVM_SIGNAL_MSI to {id}: {error}");
        }
    }

    /// The same as descriptors, one for each vCPU: who has one can kick that vCPU and do nothing else. Before the guest runs.
    ///
    /// # Errors
    /// KVM's.
    pub fn events(&self) -> Result<Vec<OwnedFd>, kvm_ioctls::Error> {
        let messages = (IOAPIC_PINS..).zip(self.apic_ids.iter()).map(|(line, &id)| message(line, id));
        // What is set replaces what was there, so KVM's own lines go with it.
        let entries: Vec<_> = chip_lines().chain(messages).collect();
        let too_many = |_| kvm_ioctls::Error::new(libc::E2BIG);
        self.vm.set_gsi_routing(&KvmIrqRouting::from_entries(&entries).map_err(too_many)?)?;
        (IOAPIC_PINS..)
            .zip(self.apic_ids.iter())
            .map(|(line, _)| {
                let evt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
                self.vm.register_irqfd(&evt, line)?;
                Ok(owned(evt))
            })
            .collect()
    }
}

fn entry(gsi: u32, type_: u32, u: Route) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry { gsi, type_, u, ..Default::default() }
}

/// As KVM has its own chips' lines by itself.
fn chip_lines() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let line = |gsi, irqchip, pin| {
        entry(gsi, KVM_IRQ_ROUTING_IRQCHIP, Route { irqchip: kvm_irq_routing_irqchip { irqchip, pin } })
    };
    let pic = move |gsi: u32| {
        let chip = if gsi < PINS_OF_ONE { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        line(gsi, chip, gsi % PINS_OF_ONE)
    };
    (0..IOAPIC_PINS).map(move |gsi| line(gsi, KVM_IRQCHIP_IOAPIC, gsi)).chain((0..PIC_PINS).map(pic))
}

fn message(gsi: u32, id: u32) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = address_of(id);
    let unused = kvm_irq_routing_msi__bindgen_ty_1::default();
    let msi = kvm_irq_routing_msi { address_lo, address_hi, data: LOOK_VECTOR, __bindgen_anon_1: unused };
    entry(gsi, KVM_IRQ_ROUTING_MSI, Route { msi })
}
