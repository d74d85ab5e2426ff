//! The kernel's own symbols, for backtraces. The build fills [`TABLE`] after linking (resources/build): a count, then per symbol, in
//! order of address, `(offset from KERNEL_BASE: u32, start of its name: u32)`, then the names, each ended by a zero.

use crate::mm::layout::KERNEL_BASE;

/// Space for the table; an empty one (count 0) makes backtraces print bare addresses.
const SIZE: usize = 192 << 10;

#[unsafe(link_section = ".rodata.ksyms")]
#[unsafe(no_mangle)]
#[used]
static KSYMS: [u8; SIZE] = [0; SIZE];

fn word(at: usize) -> Option<u32> {
    let bytes = KSYMS.get(at..at + 4)?;
    // Volatile: the compiler must not take the zeroes it sees for the contents.
    let b = [0, 1, 2, 3].map(|i| {
        // SAFETY: in bounds by the slice above.
        unsafe { core::ptr::read_volatile(&raw const bytes[i]) }
    });
    Some(u32::from_le_bytes(b))
}

/// The function that contains `addr`, and how far in.
pub fn lookup(addr: u64) -> Option<(&'static str, u64)> {
    let offset = u32::try_from(addr.checked_sub(KERNEL_BASE)?).ok()?;
    let count = word(0)? as usize;
    let (mut low, mut high) = (0, count);
    while low < high {
        let mid = (low + high) / 2;
        if word(4 + mid * 8)? <= offset { low = mid + 1 } else { high = mid }
    }
    let i = low.checked_sub(1)?;
    let name_at = word(4 + i * 8 + 4)? as usize;
    let mut end = name_at;
    while word_byte(end)? != 0 {
        end += 1;
    }
    let name = core::str::from_utf8(KSYMS.get(name_at..end)?).ok()?;
    Some((name, u64::from(offset - word(4 + i * 8)?)))
}

fn word_byte(at: usize) -> Option<u8> {
    // SAFETY: in bounds.
    KSYMS.get(at).map(|b| unsafe { core::ptr::read_volatile(b) })
}
