//! Breakpoint conditions: any bytes end in a value or an error.

use taskvisor::debug::agent_expr::{Scene, holds};

/// Half of the registers and of memory can be read.
struct Half;

impl Scene for Half {
    fn register(&mut self, number: usize) -> Option<u64> {
        number.is_multiple_of(2).then_some(number as u64)
    }
    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> Option<()> {
        bytes.fill(address as u8);
        address.is_multiple_of(2).then_some(())
    }
}

/// One input.
pub fn run(code: &[u8]) {
    // True, false or refused.
    let _ = holds(code, &mut Half);
}
