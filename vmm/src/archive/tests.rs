//! Archives that are built, written out, and read back by our parser.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::build::{Builder, clean};
use super::parse::{Entry, find, scan};
use super::{ALIGN, Archive, ArchiveError};
use crate::memory::allocate;

fn write(dir: &TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// Writes an archive to a file and reads it back.
fn read_back(archive: &Archive) -> (Vec<u8>, Vec<Entry>) {
    let mut file = tempfile::tempfile().unwrap();
    archive.write_to(&mut file).unwrap();
    let entries = scan(Path::new("x"), &file).unwrap();
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, archive.len());
    (bytes, entries)
}

fn data<'a>(bytes: &'a [u8], entry: &Entry) -> &'a [u8] {
    &bytes[entry.offset as usize..][..entry.size as usize]
}

#[test]
fn files_of_a_page_or_more_start_at_a_page() {
    let dir = TempDir::new().unwrap();
    let mut builder = Builder::new();
    // Sizes that leave every remainder behind, names of many lengths.
    for n in 0..200usize {
        let content = vec![n as u8; 4096 + n * 37];
        let path = write(&dir, &format!("f{n}"), &content);
        builder.host(&path, &format!("/bin/{}", "n".repeat(n + 1))).unwrap();
    }
    let (bytes, entries) = read_back(&builder.finish().unwrap());
    for n in 0..200usize {
        let entry = find(&entries, &format!("/bin/{}", "n".repeat(n + 1))).unwrap();
        assert_eq!(entry.offset % ALIGN, 0, "file {n}");
        assert!(data(&bytes, entry).iter().all(|byte| *byte == n as u8));
    }
}

#[test]
fn parents_are_made_once_and_before() {
    let mut builder = Builder::new();
    builder.bytes("/a/b/c", 0o644, b"1".to_vec()).unwrap();
    builder.bytes("a/b/d", 0o600, b"22".to_vec()).unwrap();
    let (_, entries) = read_back(&builder.finish().unwrap());
    let names: Vec<_> = entries.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["a", "a/b", "a/b/c", "a/b/d"]);
    assert_eq!(entries[3].mode, 0o100_600);
}

#[test]
fn directories_are_packed_with_what_is_in_them() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    write(&dir, "sub/x", b"xx");
    symlink("sub/x", dir.path().join("link")).unwrap();
    let mut builder = Builder::new();
    builder.host(dir.path(), "/t").unwrap();
    let (bytes, entries) = read_back(&builder.finish().unwrap());
    let names: Vec<_> = entries.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["t", "t/link", "t/sub", "t/sub/x"]);
    assert!(entries[1].is_symlink());
    assert_eq!(data(&bytes, &entries[1]), b"sub/x");
}

#[test]
fn archives_are_concatenated_and_the_last_file_wins() {
    let mut first = Builder::new();
    first.bytes("/a", 0o644, b"old".to_vec()).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    first.finish().unwrap().write_to(&mut file).unwrap();
    let mut both = Builder::new();
    both.concatenate(Path::new("first"), file).unwrap();
    both.bytes("/a", 0o644, b"new!".to_vec()).unwrap();
    let (bytes, entries) = read_back(&both.finish().unwrap());
    assert_eq!(entries.len(), 2);
    assert_eq!(data(&bytes, find(&entries, "a").unwrap()), b"new!");
}

#[test]
fn loading_gives_the_same_bytes_as_writing() {
    let dir = TempDir::new().unwrap();
    let mut builder = Builder::new();
    builder.host(&write(&dir, "big", &[7; 10_000]), "/bin/big").unwrap();
    builder.bytes("taskvisor.toml", 0o644, b"x = 1\n".to_vec()).unwrap();
    let archive = builder.finish().unwrap();
    let ram = allocate(16 << 20, 46).unwrap();
    archive.load(&ram, GuestAddress(0x20_0000)).unwrap();
    let mut loaded = vec![0; archive.len() as usize];
    ram.read_slice(&mut loaded, GuestAddress(0x20_0000)).unwrap();
    assert_eq!(loaded, read_back(&archive).0);
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = write(&dir, "f", &[1; 5000]);
    let mut builder = Builder::new();
    builder.host(&path, "/f").unwrap();
    let archive = builder.finish().unwrap();
    File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
    assert!(matches!(archive.write_to(&mut std::io::sink()), Err(ArchiveError::Changed { .. })));
    let ram = allocate(16 << 20, 46).unwrap();
    assert!(matches!(archive.load(&ram, GuestAddress(0x10_0000)), Err(ArchiveError::Changed { .. })));
}

#[test]
fn an_archive_cut_anywhere_is_an_error() {
    let mut builder = Builder::new();
    builder.bytes("/a", 0o644, vec![1; 300]).unwrap();
    builder.bytes("/b", 0o644, vec![2; 5]).unwrap();
    let (bytes, _) = read_back(&builder.finish().unwrap());
    for keep in 0..bytes.len() - 4 {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes[..keep]).unwrap();
        assert!(scan(Path::new("cut.cpio"), &file).is_err(), "{keep} of {} bytes pass", bytes.len());
    }
}

#[test]
fn other_formats_are_named() {
    for (magic, part) in
        [(&b"\x1f\x8b\x08aaaaaa"[..], "gzip"), (b"070707aaa", "odc"), (b"hello, world", "070701"), (b"07", "shorter")]
    {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(magic).unwrap();
        let error = scan(Path::new("x.img"), &file).unwrap_err().to_string();
        assert!(error.contains("x.img") && error.contains(part), "{error}");
    }
}

#[test]
fn paths_are_cleaned() {
    for (path, cleaned) in [("/a/b", "a/b"), ("./a//b/", "a/b"), ("../../a", "a"), ("a/../b", "b"), ("/", ""), ("", "")]
    {
        assert_eq!(clean(path), cleaned);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a damaged archive says, reading it ends, without a panic, and entries lie inside of the file.
    #[test]
    fn damaged_archives_are_harmless(at in 0usize..700, byte: u8, cut in 0usize..700) {
        let mut builder = Builder::new();
        builder.bytes("/a", 0o644, vec![1; 300]).unwrap();
        let mut bytes = Vec::new();
        builder.finish().unwrap().write_to(&mut bytes).unwrap();
        let len = bytes.len();
        bytes[at % len] = byte;
        bytes.truncate(len - cut % len);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        if let Ok(entries) = scan(Path::new("x"), &file) {
            for entry in entries {
                prop_assert!(entry.offset + entry.size <= bytes.len() as u64);
            }
        }
    }
}
