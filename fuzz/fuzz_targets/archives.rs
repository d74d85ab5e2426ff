//! Archives: every entry that is found lies inside of the file.
#![no_main]

use std::io::Write;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use taskvisor::archive::parse;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("a file of our own");
    for entry in parse::scan(Path::new("a.cpio"), &file).into_iter().flatten() {
        assert!(entry.offset.checked_add(entry.size).is_some_and(|end| end <= bytes.len() as u64), "{entry:?}");
    }
});
