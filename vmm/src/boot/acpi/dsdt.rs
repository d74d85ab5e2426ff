//! DSDT: the devices that can't be found by themselves.

use acpi_tables::aml;
use acpi_tables::sdt::Sdt;

use super::{HEADER_LEN, OEM_ID, OEM_REVISION, OEM_TABLE_ID, VirtioMmio, bytes_of};
use crate::boot::layout;

/// The serial ports and the virtio devices.
pub fn dsdt(devices: &[VirtioMmio]) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", HEADER_LEN, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for (name, uid, port, gsi) in
        [("COM1", 0u8, layout::COM1, layout::COM1_GSI), ("COM2", 1, layout::COM2, layout::COM2_GSI)]
    {
        table.append_slice(&bytes_of(&aml::Device::new(
            format!("_SB_.{name}").as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
                &aml::Name::new("_UID".into(), &uid),
                &aml::Name::new("_DDN".into(), &name),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::IO::new(port, port, 0, 8),
                        &aml::Interrupt::new(true, true, false, false, gsi),
                    ]),
                ),
            ],
        )));
    }
    for (n, device) in (0u8..).zip(devices) {
        table.append_slice(&bytes_of(&aml::Device::new(
            format!("_SB_.V{n:03}").as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &"LNRO0005"),
                &aml::Name::new("_UID".into(), &n),
                &aml::Name::new("_CCA".into(), &aml::ONE),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::Memory32Fixed::new(true, device.base as u32, layout::VIRTIO_MMIO_SIZE as u32),
                        &aml::Interrupt::new(true, true, false, false, device.gsi),
                    ]),
                ),
            ],
        )));
    }
    table.as_slice().to_vec()
}
