//! A stock Linux kernel, as a distribution ships it, starts under the VMM.
//!
//! Where KVM interprets ring 0, a kernel that unpacks itself is silent for minutes. What is tested there is the same kernel unpacked,
//! by its PVH entry (its first lines come after some 8 s there); the packed one must load and run without an error until its time is over.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use taskvisor_tests::guest::taskvisor;
use taskvisor_tests::{Run, TempDir, prereq, serial};

/// `make setup` unpacks one under target/; a machine of its own has one in /boot.
fn stock_kernel() -> Option<PathBuf> {
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/stock-kernel");
    let found = [unpacked, "/boot"].iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten().find(|entry| {
        entry.file_name().to_string_lossy().starts_with("vmlinuz-") && fs::File::open(entry.path()).is_ok()
    });
    prereq::there_or_left_out(found.is_some(), "a stock kernel (vmlinuz-*)").then_some(found?.path())
}

fn boot(kernel: &std::path::Path, seconds: u64) -> Run {
    Run::new(taskvisor())
        .args(["run", "--memory", "512M", "--timeout", &format!("{seconds}s"), "--kernel"])
        .arg(kernel)
        .args(["--cmdline", "earlyprintk=serial,ttyS0,115200 console=ttyS0 panic=-1"])
        .limit(Duration::from_secs(seconds + 15))
}

#[test]
fn packed() {
    let (true, Some(kernel)) = (prereq::kvm_or_left_out(), stock_kernel()) else { return };
    let _beside_others = serial::shared();
    let outcome = boot(&kernel, 5).run();
    // Either it got as far as a panic (there is no root file system), or its time was over while it unpacked itself.
    if outcome.code() == 124 || outcome.text().contains("Linux version") {
        return;
    }
    outcome.fail("a stock kernel should start");
}

#[test]
fn unpacked_prints_its_first_lines() {
    let (true, Some(kernel)) = (prereq::kvm_or_left_out(), stock_kernel()) else { return };
    let image = fs::read(&kernel).expect("just found");
    let Some(elf) = unpack_lz4(&image) else {
        prereq::there_or_left_out(false, "a stock kernel packed by LZ4");
        return;
    };
    let _beside_others = serial::shared();
    let dir = TempDir::new();
    let map = "BIOS-provided physical RAM map";
    // Some seconds if nothing else runs; it is ended as soon as it has got there.
    let outcome = boot(&dir.write("vmlinux", elf), 120).signal_at(map, libc::SIGTERM).run();
    outcome.expect_stdout("Linux version").expect_stdout(map);
}

/// The ELF file in a bzImage's payload, if that is LZ4 in the "legacy" frame that Linux uses: magic, then blocks with their size.
fn unpack_lz4(image: &[u8]) -> Option<Vec<u8>> {
    const MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
    /// Every block but the last unpacks to this (Linux, lib/decompress_unlz4.c, LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE).
    const BLOCK: usize = 8 << 20;
    let mut rest = &image[image.windows(4).position(|four| four == MAGIC)? + 4..];
    let mut elf = Vec::new();
    loop {
        let (size, after) = rest.split_first_chunk::<4>()?;
        let (block, after) = after.split_at_checked(u32::from_le_bytes(*size) as usize)?;
        let before = elf.len();
        unpack_block(block, &mut elf)?;
        rest = after;
        if elf.len() - before < BLOCK {
            return elf.starts_with(b"\x7fELF").then_some(elf);
        }
    }
}

/// One LZ4 block: token, literals, then a match of what was already written in this block.
fn unpack_block(mut block: &[u8], out: &mut Vec<u8>) -> Option<()> {
    fn length(nibble: u8, block: &mut &[u8]) -> Option<usize> {
        let mut length = usize::from(nibble);
        if nibble == 15 {
            loop {
                let (more, rest) = block.split_first()?;
                *block = rest;
                length += usize::from(*more);
                if *more != 255 {
                    break;
                }
            }
        }
        Some(length)
    }
    while let Some((token, rest)) = block.split_first() {
        block = rest;
        let literals = length(token >> 4, &mut block)?;
        let (literals, rest) = block.split_at_checked(literals)?;
        out.extend_from_slice(literals);
        let Some((offset, rest)) = rest.split_first_chunk::<2>() else { break };
        block = rest;
        let size = length(token & 15, &mut block)? + 4;
        let start = out.len().checked_sub(usize::from(u16::from_le_bytes(*offset)))?;
        for at in start..start + size {
            out.push(*out.get(at)?);
        }
    }
    Some(())
}
