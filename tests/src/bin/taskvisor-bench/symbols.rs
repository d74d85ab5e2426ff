//! Function names of the kernel's ELF file, for telling where instructions go.

use std::path::Path;

/// Functions by address.
#[derive(Debug, Default)]
pub struct Symbols {
    /// (address, size, name), sorted.
    functions: Vec<(u64, u64, String)>,
    /// e_entry.
    pub entry: u64,
}

impl Symbols {
    /// Reads .symtab of a 64-bit little-endian ELF file. Our own build wrote it: anything odd is just no symbols.
    pub fn read(path: &Path) -> Self {
        std::fs::read(path).ok().and_then(|elf| Self::parse(&elf)).unwrap_or_default()
    }

    fn parse(elf: &[u8]) -> Option<Self> {
        let word = |at: u64, size: usize| -> Option<u64> {
            let at = usize::try_from(at).ok()?;
            let bytes = elf.get(at..at.checked_add(size)?)?;
            Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        };
        let (table, size, count) = (word(40, 8)?, word(58, 2)?, word(60, 2)?);
        let mut functions = Vec::new();
        for header in (0..count).map(|index| table + index * size) {
            // sh_type: SHT_SYMTAB is 2; sh_link is the section of its names.
            if word(header + 4, 4)? != 2 {
                continue;
            }
            let names = word(table + word(header + 40, 4)? * size + 24, 8)?;
            let (start, length) = (word(header + 24, 8)?, word(header + 32, 8)?);
            for symbol in (start..start + length).step_by(24) {
                // st_info's low nibble: 0 no type (assembly), 2 function.
                if !matches!(word(symbol + 4, 1)? & 15, 0 | 2) || word(symbol + 6, 2)? == 0 {
                    continue;
                }
                let name = usize::try_from(names + word(symbol, 4)?).ok()?;
                let name: String =
                    elf.get(name..)?.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect();
                functions.push((word(symbol + 8, 8)?, word(symbol + 16, 8)?, name));
            }
        }
        functions.sort();
        Some(Self { functions, entry: word(24, 8)? })
    }

    /// The address of the function whose name, without crate and hash, is `name`.
    pub fn address(&self, name: &str) -> Option<u64> {
        let is_it = |mangled: &str| {
            let demangled = format!("{:#}", rustc_demangle::demangle(mangled));
            demangled == name || demangled.strip_suffix(name).is_some_and(|head| head.ends_with("::"))
        };
        self.functions.iter().find(|(.., mangled)| is_it(mangled)).map(|(start, ..)| *start)
    }

    /// The function that holds an address.
    pub fn name(&self, address: u64) -> String {
        let after = self.functions.partition_point(|(start, ..)| *start <= address);
        match after.checked_sub(1).and_then(|index| self.functions.get(index)) {
            Some((start, size, name)) if *size == 0 || address < start + size => {
                format!("{:#}", rustc_demangle::demangle(name))
            }
            _ => format!("{address:#x}"),
        }
    }
}
