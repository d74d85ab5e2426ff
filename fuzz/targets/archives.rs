//! Archives: every entry that is found lies inside of the file.

use std::io::Write;
use std::path::Path;

use taskvisor::archive::parse;

/// One input.
pub fn run(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("a file of our own");
    for entry in parse::scan(Path::new("a.cpio"), &file).into_iter().flatten() {
        assert!(entry.offset.checked_add(entry.size).is_some_and(|end| end <= bytes.len() as u64), "{entry:?}");
    }
}
