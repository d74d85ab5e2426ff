//! Which source file of ours an instruction comes from, for telling where instructions go in code that is inlined into one function.
//! binutils' addr2line knows; it comes with gcc.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::symbols::Symbols;

/// Where our sources lie, and what their crate is called in the table.
const ROOTS: [(&str, &str); 2] = [("/guest-kernel/src/", ""), ("/vcpu-sched/src/", "vcpu-sched ")];

/// Instructions by source file, most first. What has no source file of ours (assembly) goes by its function.
pub fn by_file(kernel: &Path, places: &[(u64, u64)], symbols: &Symbols) -> Result<String, String> {
    let mut child = Command::new("addr2line")
        .args(["-a", "-i", "-f", "-e"])
        .arg(kernel)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("addr2line: {e}"))?;
    let addresses: String = places.iter().map(|(address, _)| format!("{address:#x}\n")).collect();
    let mut stdin = child.stdin.take().ok_or("addr2line's stdin")?;
    let writer = std::thread::spawn(move || stdin.write_all(addresses.as_bytes()));
    let output = child.wait_with_output().map_err(|e| format!("addr2line: {e}"))?;
    writer.join().map_err(|_| "addr2line's input")?.map_err(|e| format!("addr2line: {e}"))?;
    let files = files(&String::from_utf8_lossy(&output.stdout));

    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (address, count) in places {
        let origin = files.get(address).cloned().unwrap_or_else(|| symbols.name(*address));
        *counts.entry(origin).or_default() += count;
    }
    let mut sorted: Vec<_> = counts.into_iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let texts: Vec<_> = sorted.iter().map(|(name, count)| format!("{name} {count}")).collect();
    Ok(texts.join(", "))
}

/// From `addr2line -aif`: an address, then function and place of each inlined frame, innermost first. The first frame of ours counts,
/// so that what `core` does for us is ours.
fn files(text: &str) -> BTreeMap<u64, String> {
    let mut files = BTreeMap::new();
    let mut address = None;
    for line in text.lines() {
        if let Some(number) = line.strip_prefix("0x") {
            address = u64::from_str_radix(number, 16).ok();
        } else if let (Some(address), Some(file)) = (address, our_file(line)) {
            files.entry(address).or_insert(file);
        }
    }
    files
}

fn our_file(line: &str) -> Option<String> {
    ROOTS.iter().find_map(|(root, name)| {
        let (_, file) = line.split_once(root)?;
        Some(format!("{name}{}", file.split(':').next()?))
    })
}
