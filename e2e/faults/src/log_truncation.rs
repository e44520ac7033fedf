//! Truncates a partition's log, as a power failure does on a lone broker whose disk had not flushed
//! it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use launcher::Stack;

/// A batch begins with its first offset, in eight bytes, and the length of the rest, in four.
const BATCH_HEADER_BYTES: usize = 12;

/// Cuts the last batches off a partition's newest segment, and returns the number of removed bytes.
/// Kafka must be stopped; it recovers the log at its next start.
///
/// # Errors
/// If the partition has no more batches than that, or its files cannot be changed.
pub fn truncate(stack: &Stack, topic: &str, partition: i32, batches: usize) -> Result<u64> {
    let directory = stack.directory().join("kafka/data").join(format!("{topic}-{partition}"));
    let files = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let files: Vec<_> = files.flatten().map(|file| file.path()).collect();
    let has = |path: &Path, kind: &str| path.extension() == Some(OsStr::new(kind));
    let newest = files.iter().filter(|path| has(path, "log")).max();
    let newest = newest.context("the partition has no segment")?;
    let bytes = fs::read(newest)?;
    let begins = batch_starts(&bytes)?;
    ensure!(begins.len() > batches, "{} has {} batches", newest.display(), begins.len());
    let end = begins[begins.len() - batches] as u64;
    File::options().write(true).open(newest)?.set_len(end)?;
    for path in files
        .iter()
        .filter(|path| ["index", "timeindex", "snapshot"].iter().any(|kind| has(path, kind)))
    {
        fs::remove_file(path)?;
    }
    Ok(bytes.len() as u64 - end)
}

/// The position of each batch in a segment.
fn batch_starts(bytes: &[u8]) -> Result<Vec<usize>> {
    let (mut begins, mut at) = (Vec::new(), 0);
    while let Some(length) = bytes.get(at + 8..at + BATCH_HEADER_BYTES) {
        let length = i32::from_be_bytes(length.try_into()?);
        // Preallocated space without a batch.
        if length <= 0 {
            break;
        }
        begins.push(at);
        at += BATCH_HEADER_BYTES + usize::try_from(length)?;
    }
    Ok(begins)
}

#[test]
fn batches_are_found_by_their_lengths() {
    let batch = |length: u8| [&[0; 11][..], &[length], &vec![7; length.into()]].concat();
    let segment = [batch(3), batch(60), batch(1), vec![0; 30]].concat();
    assert_eq!(batch_starts(&segment).unwrap(), [0, 15, 87]);
}
