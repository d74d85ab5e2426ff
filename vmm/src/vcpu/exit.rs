//! Decodes why KVM_RUN returned: from the raw `kvm_run` page to an [`Exit`].
//!
//! Called by the run loop after every return of KVM_RUN; knows no KVM file descriptor, so that each kind of exit is
//! tested with a page made by hand. Source of all layouts: Linux, Documentation/virt/kvm/api.rst, "The kvm_run structure".
//! Invariant: lengths and offsets in the page are checked, although the kernel wrote them.

use std::marker::PhantomData;

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_EXCEPTION, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT,
    kvm_run,
};

/// KVM_INTERNAL_ERROR_EMULATION (linux/kvm.h).
pub const SUBERROR_EMULATION: u32 = 1;
/// KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES (linux/kvm.h).
const FLAG_INSTRUCTION_BYTES: u64 = 1;

/// The memory that KVM shares with the owner of a vCPU: `kvm_run` and the I/O data behind it.
#[derive(Debug)]
pub struct RunPage<'a> {
    run: *mut kvm_run,
    len: usize,
    _lifetime: PhantomData<&'a mut kvm_run>,
}

impl<'a> RunPage<'a> {
    /// Wraps the mapping of a vCPU.
    ///
    /// # Safety
    /// `run` points at a mapping of at least `len` bytes, `len >= size_of::<kvm_run>()`, that stays valid and is
    /// accessed through nothing else during `'a`.
    pub unsafe fn new(run: &'a mut kvm_run, len: usize) -> Self {
        debug_assert!(len >= size_of::<kvm_run>());
        Self { run, len, _lifetime: PhantomData }
    }

    fn run(&self) -> &kvm_run {
        // SAFETY: by the contract of `new`.
        unsafe { &*self.run }
    }

    /// `len` bytes at `offset` of the page, if they lie behind `kvm_run`.
    fn data(&mut self, offset: u64, len: usize) -> Option<&'a mut [u8]> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(len)?;
        if offset < size_of::<kvm_run>() || end > self.len {
            return None;
        }
        // SAFETY: the range lies inside of the mapping that `new` was given, behind the structure itself, and `decode`
        // hands it out once.
        Some(unsafe { std::slice::from_raw_parts_mut(self.run.cast::<u8>().add(offset), len) })
    }
}

/// Why a vCPU left the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit<'a> {
    /// `in`: fill `data`, `size` bytes at a time.
    PortIn {
        /// The port.
        port: u16,
        /// Width of one access.
        size: usize,
        /// One or (for `rep ins`) more accesses.
        data: &'a mut [u8],
    },
    /// `out`.
    PortOut {
        /// The port.
        port: u16,
        /// Width of one access.
        size: usize,
        /// One or (for `rep outs`) more accesses.
        data: &'a [u8],
    },
    /// A read outside of RAM: fill `data`.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// A write outside of RAM.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// 1 to 8 bytes.
        data: &'a [u8],
    },
    /// A signal or `immediate_exit`.
    Interrupted,
    /// `hlt` without an in-kernel irqchip.
    Halted,
    /// Nothing that a guest may go on from.
    Fatal(Fatal),
}

/// Exits that end the VM with a report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// KVM_EXIT_SHUTDOWN.
    #[error("triple fault: an exception while delivering a double fault (KVM_EXIT_SHUTDOWN)")]
    TripleFault,
    /// KVM_EXIT_INTERNAL_ERROR, suberror 1.
    #[error("KVM can't emulate an instruction (KVM_EXIT_INTERNAL_ERROR, suberror 1)")]
    Emulation {
        /// The instruction as far as KVM fetched it, may be empty.
        bytes: Vec<u8>,
    },
    /// KVM_EXIT_INTERNAL_ERROR otherwise.
    #[error("KVM internal error {suberror} ({}), data {data:x?}", suberror_name(*suberror))]
    Internal {
        /// KVM_INTERNAL_ERROR_*.
        suberror: u32,
        /// As given by KVM.
        data: Vec<u64>,
    },
    /// KVM_EXIT_FAIL_ENTRY.
    #[error("the CPU refuses to enter the guest, hardware reason {reason:#x} on host CPU {cpu} (KVM_EXIT_FAIL_ENTRY)")]
    FailEntry {
        /// Hardware's reason.
        reason: u64,
        /// Host CPU.
        cpu: u32,
    },
    /// KVM_EXIT_MEMORY_FAULT, or EFAULT from KVM_RUN.
    #[error("KVM can't reach guest memory at {address:#x} (KVM_EXIT_MEMORY_FAULT)")]
    MemoryFault {
        /// Guest-physical address.
        address: u64,
    },
    /// KVM_EXIT_SYSTEM_EVENT.
    #[error("system event {0} (KVM_EXIT_SYSTEM_EVENT)")]
    SystemEvent(u32),
    /// KVM_EXIT_DEBUG although nobody debugs.
    #[error("unexpected debug exit (KVM_EXIT_DEBUG), exception {0}")]
    Debug(u32),
    /// KVM_EXIT_EXCEPTION.
    #[error("unexpected exception exit (KVM_EXIT_EXCEPTION)")]
    Exception,
    /// A page that contradicts itself.
    #[error("KVM returned an I/O exit that can't be: port {port:#x}, {size} bytes {count} times at offset {offset:#x}")]
    Malformed {
        /// The port.
        port: u16,
        /// Width.
        size: u8,
        /// Repeats.
        count: u32,
        /// Offset of the data.
        offset: u64,
    },
    /// Any other reason.
    #[error("unknown KVM exit reason {0}")]
    Unknown(u32),
    /// KVM_RUN failed.
    #[error("KVM_RUN failed: {}", std::io::Error::from_raw_os_error(*.0))]
    Failed(i32),
}

/// Names of linux/kvm.h, KVM_INTERNAL_ERROR_*.
fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "emulation",
        2 => "simultaneous exceptions",
        3 => "exception while delivering an event",
        4 => "unexpected hardware exit reason",
        _ => "unknown",
    }
}

/// What KVM_RUN's return means. `result` is its errno, or `Ok` with the reason in the page.
pub fn decode<'a>(result: Result<(), i32>, mut page: RunPage<'a>) -> Exit<'a> {
    let reason = page.run().exit_reason;
    match result {
        Err(libc::EINTR | libc::EAGAIN) => return Exit::Interrupted,
        Err(libc::EFAULT | libc::EHWPOISON) if reason == KVM_EXIT_MEMORY_FAULT => {
            // SAFETY: the reason says which member of the union KVM has written.
            let address = unsafe { page.run().__bindgen_anon_1.memory_fault.gpa };
            return Exit::Fatal(Fatal::MemoryFault { address });
        }
        Err(errno) => return Exit::Fatal(Fatal::Failed(errno)),
        Ok(()) => {}
    }
    // The union's members are read where `reason` says that KVM has written them.
    let union = &page.run().__bindgen_anon_1;
    match reason {
        KVM_EXIT_IO => {
            // SAFETY: see above.
            let io = unsafe { union.io };
            let (size, count) = (usize::from(io.size), io.count as usize);
            let fits = matches!(size, 1 | 2 | 4) && count > 0;
            match size.checked_mul(count).filter(|_| fits).and_then(|len| page.data(io.data_offset, len)) {
                Some(data) if u32::from(io.direction) == KVM_EXIT_IO_OUT => Exit::PortOut { port: io.port, size, data },
                Some(data) => Exit::PortIn { port: io.port, size, data },
                None => Exit::Fatal(Fatal::Malformed {
                    port: io.port,
                    size: io.size,
                    count: io.count,
                    offset: io.data_offset,
                }),
            }
        }
        KVM_EXIT_MMIO => {
            // SAFETY: see above; the structure lies in the mapping, which outlives `'a` by the contract of `RunPage`,
            // and this is the only reference to it that leaves this function.
            let mmio = unsafe { &mut (*page.run).__bindgen_anon_1.mmio };
            let (address, len) = (mmio.phys_addr, (mmio.len as usize).min(mmio.data.len()));
            let write = mmio.is_write != 0;
            let data = &mut mmio.data[..len];
            if write { Exit::MmioWrite { address, data } } else { Exit::MmioRead { address, data } }
        }
        KVM_EXIT_INTR => Exit::Interrupted,
        KVM_EXIT_HLT => Exit::Halted,
        KVM_EXIT_SHUTDOWN => Exit::Fatal(Fatal::TripleFault),
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: see above.
            let internal = unsafe { union.internal };
            let data = &internal.data[..(internal.ndata as usize).min(internal.data.len())];
            Exit::Fatal(match internal.suberror {
                SUBERROR_EMULATION => Fatal::Emulation { bytes: instruction_bytes(data) },
                suberror => Fatal::Internal { suberror, data: data.to_vec() },
            })
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: see above.
            let entry = unsafe { union.fail_entry };
            Exit::Fatal(Fatal::FailEntry { reason: entry.hardware_entry_failure_reason, cpu: entry.cpu })
        }
        // SAFETY: see above.
        KVM_EXIT_SYSTEM_EVENT => Exit::Fatal(Fatal::SystemEvent(unsafe { union.system_event.type_ })),
        // SAFETY: see above.
        KVM_EXIT_DEBUG => Exit::Fatal(Fatal::Debug(unsafe { union.debug.arch.exception })),
        KVM_EXIT_EXCEPTION => Exit::Fatal(Fatal::Exception),
        other => Exit::Fatal(Fatal::Unknown(other)),
    }
}

/// `emulation_failure`: data[0] flags, then one byte of length and up to 15 of the instruction.
fn instruction_bytes(data: &[u64]) -> Vec<u8> {
    let Some((flags, rest)) = data.split_first() else { return Vec::new() };
    let bytes: Vec<u8> = rest.iter().flat_map(|word| word.to_le_bytes()).take(16).collect();
    match bytes.split_first() {
        Some((&len, bytes)) if flags & FLAG_INSTRUCTION_BYTES != 0 => {
            bytes[..usize::from(len).min(bytes.len())].to_vec()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::KVM_EXIT_IO_IN;

    const LEN: usize = 0x3000;
    const DATA: u64 = 0x1000;

    /// A page as KVM maps it, aligned like one.
    #[repr(C, align(4096))]
    struct Page([u8; LEN]);

    fn with(fill: impl Fn(&mut kvm_run), result: Result<(), i32>, check: impl FnOnce(Exit<'_>)) {
        let mut page = Box::new(Page([0; LEN]));
        page.0[DATA as usize..][..4].copy_from_slice(b"abcd");
        // SAFETY: the page is large and aligned enough for a `kvm_run`, for which all-zero is a value.
        let run = unsafe { &mut *page.0.as_mut_ptr().cast::<kvm_run>() };
        fill(run);
        // SAFETY: `run` is the start of LEN bytes that live until the end of this function.
        check(decode(result, unsafe { RunPage::new(run, LEN) }));
    }

    fn io(run: &mut kvm_run, direction: u32, size: u8, count: u32, data_offset: u64) {
        run.exit_reason = KVM_EXIT_IO;
        run.__bindgen_anon_1.io.direction = direction as u8;
        run.__bindgen_anon_1.io.size = size;
        run.__bindgen_anon_1.io.count = count;
        run.__bindgen_anon_1.io.port = 0x3f8;
        run.__bindgen_anon_1.io.data_offset = data_offset;
    }

    #[test]
    fn port_io_keeps_width_and_repeats() {
        with(
            |run| io(run, KVM_EXIT_IO_OUT, 2, 2, DATA),
            Ok(()),
            |exit| {
                assert_eq!(exit, Exit::PortOut { port: 0x3f8, size: 2, data: b"abcd" });
            },
        );
        with(
            |run| io(run, KVM_EXIT_IO_IN, 1, 1, DATA),
            Ok(()),
            |exit| {
                assert_eq!(exit, Exit::PortIn { port: 0x3f8, size: 1, data: &mut [b'a'] });
            },
        );
    }

    #[test]
    fn port_io_outside_of_the_page_is_refused() {
        for (size, count, offset) in
            [(4, 1, LEN as u64 - 2), (1, 1, 0), (1, 1, u64::MAX), (3, 1, DATA), (1, 0, DATA), (4, u32::MAX, DATA)]
        {
            with(
                |run| io(run, KVM_EXIT_IO_OUT, size, count, offset),
                Ok(()),
                |exit| {
                    assert!(matches!(exit, Exit::Fatal(Fatal::Malformed { .. })), "{exit:?}");
                },
            );
        }
    }

    #[test]
    fn mmio_is_clipped_to_its_buffer() {
        let fill = |run: &mut kvm_run| {
            run.exit_reason = KVM_EXIT_MMIO;
            run.__bindgen_anon_1.mmio.phys_addr = 0xd000_0000;
            run.__bindgen_anon_1.mmio.len = 4000;
            run.__bindgen_anon_1.mmio.is_write = 1;
        };
        with(fill, Ok(()), |exit| assert_eq!(exit, Exit::MmioWrite { address: 0xd000_0000, data: &[0; 8] }));
    }

    #[test]
    fn emulation_failures_carry_the_instruction() {
        let fill = |run: &mut kvm_run| {
            run.exit_reason = KVM_EXIT_INTERNAL_ERROR;
            run.__bindgen_anon_1.internal.suberror = SUBERROR_EMULATION;
            run.__bindgen_anon_1.internal.ndata = 3;
            // 3 bytes: f3 0f b8 (popcnt).
            let mut data = [0; 16];
            data[0] = 1;
            data[1] = u64::from_le_bytes([3, 0xf3, 0x0f, 0xb8, 0, 0, 0, 0]);
            run.__bindgen_anon_1.internal.data = data;
        };
        with(fill, Ok(()), |exit| {
            assert_eq!(exit, Exit::Fatal(Fatal::Emulation { bytes: vec![0xf3, 0x0f, 0xb8] }));
        });
        let other = |run: &mut kvm_run| {
            run.exit_reason = KVM_EXIT_INTERNAL_ERROR;
            run.__bindgen_anon_1.internal.suberror = 3;
            run.__bindgen_anon_1.internal.ndata = 99;
        };
        with(other, Ok(()), |exit| {
            assert_eq!(exit, Exit::Fatal(Fatal::Internal { suberror: 3, data: vec![0; 16] }));
        });
    }

    #[test]
    fn errors_of_kvm_run() {
        with(|_| (), Err(libc::EINTR), |exit| assert_eq!(exit, Exit::Interrupted));
        with(|_| (), Err(libc::EINVAL), |exit| assert_eq!(exit, Exit::Fatal(Fatal::Failed(libc::EINVAL))));
        with(
            |run| {
                run.exit_reason = KVM_EXIT_MEMORY_FAULT;
                run.__bindgen_anon_1.memory_fault.gpa = 0x42;
            },
            Err(libc::EFAULT),
            |exit| assert_eq!(exit, Exit::Fatal(Fatal::MemoryFault { address: 0x42 })),
        );
    }

    #[test]
    fn the_rest() {
        for (reason, fatal) in [
            (KVM_EXIT_SHUTDOWN, Fatal::TripleFault),
            (KVM_EXIT_EXCEPTION, Fatal::Exception),
            (4711, Fatal::Unknown(4711)),
        ] {
            with(|run| run.exit_reason = reason, Ok(()), |exit| assert_eq!(exit, Exit::Fatal(fatal.clone())));
        }
    }
}
