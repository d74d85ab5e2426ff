//! Bodies of requests, written and read in little pieces. Private to [`super`]; reading never goes beyond the bytes.

use alloc::vec::Vec;

/// The bytes end too early, or say something that can't be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Short;

/// Puts pieces at the end.
#[derive(Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u32(&mut self, n: u32) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    pub fn u64(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    /// Length and content. What is longer than a slot can't be sent anyway.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(bytes);
    }

    pub fn list(&mut self, list: &[Vec<u8>]) {
        self.u32(u32::try_from(list.len()).unwrap_or(u32::MAX));
        list.iter().for_each(|item| self.bytes(item));
    }
}

/// Takes pieces from the front.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Short> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Short)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn u32(&mut self) -> Result<u32, Short> {
        let four = self.take(4)?.first_chunk().ok_or(Short)?;
        Ok(u32::from_le_bytes(*four))
    }

    pub fn u64(&mut self) -> Result<u64, Short> {
        let eight = self.take(8)?.first_chunk().ok_or(Short)?;
        Ok(u64::from_le_bytes(*eight))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Short> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    /// Each item takes four bytes at least, which bounds the list by what there is.
    pub fn list(&mut self) -> Result<Vec<Vec<u8>>, Short> {
        let count = self.u32()? as usize;
        if count > self.0.len() / 4 {
            return Err(Short);
        }
        (0..count).map(|_| self.bytes().map(<[u8]>::to_vec)).collect()
    }

    /// All of it must have been read.
    pub fn end(self) -> Result<(), Short> {
        if self.0.is_empty() { Ok(()) } else { Err(Short) }
    }
}
