//! Breakpoint conditions as gdb's agent bytecode: a bounded interpreter.
//!
//! Source: gdb's manual, "The GDB Agent Expression Mechanism", and gdb/ax.def for the numbers. Invariants: any bytes end in a value or
//! an error, after [`MAX_STEPS`] operations at most and with [`MAX_STACK`] values at most; nothing is changed.

/// Operations before an expression is given up.
const MAX_STEPS: usize = 10_000;
/// Values on the stack.
const MAX_STACK: usize = 256;

/// What an expression may look at.
pub trait Scene {
    /// A register's value.
    fn register(&mut self, number: usize) -> Option<u64>;
    /// Fills `bytes` from memory.
    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> Option<()>;
}

/// Why there is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExprError {
    /// Bytes that are no expression, or one that takes more from the stack than there is.
    #[error("the condition is damaged")]
    Damaged,
    /// It doesn't end, or is too deep.
    #[error("the condition takes too long")]
    TooLong,
    /// A register or memory that can't be read.
    #[error("the condition reads what isn't there")]
    Unreadable,
    /// By zero.
    #[error("the condition divides by zero")]
    Division,
    /// An operation of tracepoints.
    #[error("the condition uses operation {0:#x}, which isn't supported")]
    Unsupported(u8),
}

/// Whether a condition is true.
pub fn holds(code: &[u8], scene: &mut impl Scene) -> Result<bool, ExprError> {
    let mut machine = Machine { code, at: 0, stack: Vec::new() };
    for _ in 0..MAX_STEPS {
        let operation = machine.byte()?;
        if operation == 0x27 {
            return machine.pop().map(|value| value != 0);
        }
        machine.step(operation, scene)?;
        if machine.stack.len() > MAX_STACK {
            return Err(ExprError::TooLong);
        }
    }
    Err(ExprError::TooLong)
}

struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    stack: Vec<u64>,
}

impl Machine<'_> {
    fn byte(&mut self) -> Result<u8, ExprError> {
        let byte = self.code.get(self.at).copied().ok_or(ExprError::Damaged)?;
        self.at += 1;
        Ok(byte)
    }

    /// A big-endian constant.
    fn constant(&mut self, bytes: usize) -> Result<u64, ExprError> {
        (0..bytes).try_fold(0, |value, _| Ok(value << 8 | u64::from(self.byte()?)))
    }

    fn pop(&mut self) -> Result<u64, ExprError> {
        self.stack.pop().ok_or(ExprError::Damaged)
    }

    fn unary(&mut self, f: impl FnOnce(u64) -> u64) -> Result<(), ExprError> {
        let value = self.pop()?;
        self.stack.push(f(value));
        Ok(())
    }

    fn binary(&mut self, f: impl FnOnce(u64, u64) -> Option<u64>) -> Result<(), ExprError> {
        let (b, a) = (self.pop()?, self.pop()?);
        self.stack.push(f(a, b).ok_or(ExprError::Division)?);
        Ok(())
    }

    fn jump(&mut self, to: u64) {
        // A place behind the end is found out at the next byte.
        self.at = to as usize;
    }

    fn step(&mut self, operation: u8, scene: &mut impl Scene) -> Result<(), ExprError> {
        let truth = |value: bool| Some(u64::from(value));
        match operation {
            0x02 => self.binary(|a, b| Some(a.wrapping_add(b))),
            0x03 => self.binary(|a, b| Some(a.wrapping_sub(b))),
            0x04 => self.binary(|a, b| Some(a.wrapping_mul(b))),
            0x05 => self.binary(|a, b| (b != 0).then(|| (a as i64).wrapping_div(b as i64) as u64)),
            0x06 => self.binary(u64::checked_div),
            0x07 => self.binary(|a, b| (b != 0).then(|| (a as i64).wrapping_rem(b as i64) as u64)),
            0x08 => self.binary(u64::checked_rem),
            0x09 => self.binary(|a, b| Some(if b < 64 { a << b } else { 0 })),
            0x0a => self.binary(|a, b| Some((a as i64 >> b.min(63)) as u64)),
            0x0b => self.binary(|a, b| Some(if b < 64 { a >> b } else { 0 })),
            0x0e => self.unary(|a| u64::from(a == 0)),
            0x0f => self.binary(|a, b| Some(a & b)),
            0x10 => self.binary(|a, b| Some(a | b)),
            0x11 => self.binary(|a, b| Some(a ^ b)),
            0x12 => self.unary(|a| !a),
            0x13 => self.binary(|a, b| truth(a == b)),
            0x14 => self.binary(|a, b| truth((a as i64) < b as i64)),
            0x15 => self.binary(|a, b| truth(a < b)),
            0x16 => {
                let bits = self.byte()?;
                // The sign bit to the top and back.
                let away = if (1..64).contains(&bits) { 64 - bits } else { 0 };
                self.unary(|a| ((a << away) as i64 >> away) as u64)
            }
            0x2a => {
                let bits = self.byte()?;
                self.unary(|a| if bits < 64 { a & ((1 << bits) - 1) } else { a })
            }
            0x17..=0x1a => {
                let mut bytes = [0; 8];
                let wanted = bytes.get_mut(..1 << (operation - 0x17)).ok_or(ExprError::Damaged)?;
                let address = self.pop()?;
                scene.memory(address, wanted).ok_or(ExprError::Unreadable)?;
                self.stack.push(u64::from_le_bytes(bytes));
                Ok(())
            }
            0x20 => {
                let to = self.constant(2)?;
                if self.pop()? != 0 {
                    self.jump(to);
                }
                Ok(())
            }
            0x21 => {
                let to = self.constant(2)?;
                self.jump(to);
                Ok(())
            }
            0x22..=0x25 => {
                let value = self.constant(1 << (operation - 0x22))?;
                self.stack.push(value);
                Ok(())
            }
            0x26 => {
                let number = self.constant(2)? as usize;
                self.stack.push(scene.register(number).ok_or(ExprError::Unreadable)?);
                Ok(())
            }
            0x28 => {
                let top = *self.stack.last().ok_or(ExprError::Damaged)?;
                self.stack.push(top);
                Ok(())
            }
            0x29 => self.pop().map(drop),
            0x2b => {
                let (b, a) = (self.pop()?, self.pop()?);
                self.stack.extend([b, a]);
                Ok(())
            }
            0x32 => {
                let depth = usize::from(self.byte()?);
                let index = self.stack.len().checked_sub(1 + depth).ok_or(ExprError::Damaged)?;
                self.stack.push(self.stack[index]);
                Ok(())
            }
            0x33 => {
                let (c, b, a) = (self.pop()?, self.pop()?, self.pop()?);
                self.stack.extend([c, a, b]);
                Ok(())
            }
            other => Err(ExprError::Unsupported(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Nothing;

    impl Scene for Nothing {
        fn register(&mut self, number: usize) -> Option<u64> {
            (number == 81).then_some(7)
        }

        fn memory(&mut self, address: u64, bytes: &mut [u8]) -> Option<()> {
            (address == 0x1000).then(|| bytes.fill(0xff))
        }
    }

    #[test]
    fn what_gdb_sends_is_evaluated() {
        // `$task_id == 7`: reg 81, zero_ext 32, const8 7, equal, end.
        assert_eq!(holds(&[0x26, 0, 81, 0x2a, 32, 0x22, 7, 0x13, 0x27], &mut Nothing), Ok(true));
        assert_eq!(holds(&[0x26, 0, 81, 0x22, 8, 0x13, 0x27], &mut Nothing), Ok(false));
        // `*(char *) 0x1000 < 0`: const16, ref8, ext 8, const8 0, less_signed.
        assert_eq!(holds(&[0x23, 0x10, 0, 0x17, 0x16, 8, 0x22, 0, 0x14, 0x27], &mut Nothing), Ok(true));
        // `1 && 0` as gdb compiles it: const 1, if_goto 8, const 0, goto 10...
        assert_eq!(holds(&[0x22, 1, 0x20, 0, 8, 0x22, 0, 0x27, 0x22, 9, 0x27], &mut Nothing), Ok(true));
    }

    #[test]
    fn what_can_not_be_is_an_error() {
        let cases: [(&[u8], ExprError); 7] = [
            (&[], ExprError::Damaged),
            (&[0x27], ExprError::Damaged),
            (&[0x02, 0x27], ExprError::Damaged),
            (&[0x22, 1, 0x22, 0, 0x05, 0x27], ExprError::Division),
            (&[0x26, 0, 0, 0x27], ExprError::Unreadable),
            (&[0x21, 0, 0], ExprError::TooLong),
            (&[0x22, 1, 0x21, 0, 0], ExprError::TooLong),
        ];
        for (code, error) in cases {
            assert_eq!(holds(code, &mut Nothing), Err(error), "{code:x?}");
        }
    }

    proptest! {
        #[test]
        fn noise_ends(code in prop::collection::vec(prop_oneof![any::<u8>(), 0..0x34u8], 0..200)) {
            let _ = holds(&code, &mut Nothing);
        }
    }
}
