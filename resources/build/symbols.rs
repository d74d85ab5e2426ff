//! Puts the linked kernel's function symbols into its own `KSYMS` table, so that its backtraces have names under any VMM.
//!
//! The table's format is told in guest-kernel/src/symbols.rs.

/// Where the kernel is linked (guest-kernel/src/mm/layout.rs: `KERNEL_BASE`).
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// ELF constants (System V ABI, chapter 4): section type, symbol type.
const SHT_SYMTAB: u32 = 2;
const STT_FUNC: u8 = 2;
const SECTION_HEADER_SIZE: usize = 64;
const SYMBOL_SIZE: usize = 24;

struct Section {
    kind: u32,
    address: u64,
    offset: usize,
    size: usize,
    link: usize,
}

fn bytes<const N: usize>(elf: &[u8], at: usize) -> Option<[u8; N]> {
    elf.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn sections(elf: &[u8]) -> Option<Vec<Section>> {
    let table = u64::from_le_bytes(bytes(elf, 0x28)?) as usize;
    let count = usize::from(u16::from_le_bytes(bytes(elf, 0x3c)?));
    (0..count)
        .map(|i| {
            let at = table + i * SECTION_HEADER_SIZE;
            Some(Section {
                kind: u32::from_le_bytes(bytes(elf, at + 4)?),
                address: u64::from_le_bytes(bytes(elf, at + 16)?),
                offset: u64::from_le_bytes(bytes(elf, at + 24)?) as usize,
                size: u64::from_le_bytes(bytes(elf, at + 32)?) as usize,
                link: u32::from_le_bytes(bytes(elf, at + 40)?) as usize,
            })
        })
        .collect()
}

fn name(elf: &[u8], strings: &Section, at: usize) -> Option<Vec<u8>> {
    let start = strings.offset.checked_add(at)?;
    let rest = elf.get(start..strings.offset + strings.size)?;
    Some(rest.iter().copied().take_while(|b| *b != 0).collect())
}

/// Fills the table in the ELF file's bytes.
pub fn fill(elf: &mut [u8]) -> Result<(), String> {
    let broken = || "the linked kernel is no ELF file that can be read".to_owned();
    let sections = sections(elf).ok_or_else(broken)?;
    let symtab = sections.iter().find(|s| s.kind == SHT_SYMTAB).ok_or("the linked kernel has no symbol table")?;
    let strings = sections.get(symtab.link).ok_or_else(broken)?;

    let mut functions = Vec::new();
    let mut table = None;
    for i in 0..symtab.size / SYMBOL_SIZE {
        let at = symtab.offset + i * SYMBOL_SIZE;
        let name_at = u32::from_le_bytes(bytes(elf, at).ok_or_else(broken)?) as usize;
        let info = bytes::<1>(elf, at + 4).ok_or_else(broken)?[0];
        let value = u64::from_le_bytes(bytes(elf, at + 8).ok_or_else(broken)?);
        let size = u64::from_le_bytes(bytes(elf, at + 16).ok_or_else(broken)?) as usize;
        let name = name(elf, strings, name_at).ok_or_else(broken)?;
        if name == b"KSYMS" {
            table = Some((value, size));
        } else if info & 15 == STT_FUNC && value >= KERNEL_BASE {
            functions.push(((value - KERNEL_BASE) as u32, name));
        }
    }
    let (address, size) = table.ok_or("the linked kernel has no KSYMS table")?;
    functions.sort();
    functions.dedup_by_key(|f| f.0);

    let mut out = (functions.len() as u32).to_le_bytes().to_vec();
    let mut names = Vec::new();
    let names_start = 4 + functions.len() * 8;
    for (offset, name) in functions {
        out.extend(offset.to_le_bytes());
        out.extend(((names_start + names.len()) as u32).to_le_bytes());
        names.extend(name);
        names.push(0);
    }
    out.extend(names);
    if out.len() > size {
        return Err(format!(
            "the kernel's symbols need {} bytes, KSYMS has {size}: raise SIZE in guest-kernel/src/symbols.rs",
            out.len()
        ));
    }
    let home = sections
        .iter()
        .find(|s| s.address != 0 && (s.address..s.address + s.size as u64).contains(&address))
        .ok_or("KSYMS is in no section")?;
    let at = home.offset + (address - home.address) as usize;
    elf.get_mut(at..at + out.len()).ok_or_else(broken)?.copy_from_slice(&out);
    Ok(())
}
