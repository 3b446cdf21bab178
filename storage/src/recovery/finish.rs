//! Making the files say what the scan found: zeros are cut, and what follows the end goes aside.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::scan::Scan;
use super::{
    Known, Listing, OpenError, PIECE_READ, Recovered, cut_file, read_epochs, remove_if_there,
};
use crate::checkpoint;
use crate::segment::{
    Directory, INDEX, LOG, SNAPSHOT, Segment, TIME_INDEX, file_name, with_suffix,
};

impl Scan {
    /// Cuts zeros, moves aside what follows the end and puts the log together.
    pub(super) fn finish(
        mut self,
        directory: &Directory,
        path: &Path,
        listing: &Listing,
        from: usize,
        ends_at: usize,
        known: Known,
    ) -> Result<Recovered, OpenError> {
        for &(base, _) in &listing.segments[ends_at..] {
            for suffix in [LOG, INDEX, TIME_INDEX, SNAPSHOT] {
                let file = path.join(file_name(base, suffix));
                if file.exists() {
                    self.move_aside(&file)?;
                }
            }
        }
        for snapshot in std::mem::take(&mut self.damaged_snapshots) {
            // That of a segment past the end has gone with it.
            if snapshot.exists() {
                self.move_aside(&snapshot)?;
            }
        }
        // Where segments end that a truncation has cut: their files are given back in the background.
        let mut superseded = BTreeMap::new();
        for (slot, end) in (from..).zip(std::mem::take(&mut self.ends)) {
            let (base, size) = listing.segments[slot];
            let successor = listing.segments[..ends_at].get(slot + 1);
            if size > end.position && successor.is_some() && end.reason.is_none() {
                let file = File::open(path.join(file_name(base, LOG)))?;
                if !is_zero(&file, end.position, size)? {
                    self.report.superseded_bytes += size - end.position;
                    superseded.insert(slot, end.position);
                    continue;
                }
            }
            if size > end.position {
                let file = path.join(file_name(base, LOG));
                self.set_aside(&file, end.position)?;
                cut_file(&file, end.position)?;
                File::open(&file)?.sync_data()?;
            }
        }
        if !self.report.set_aside.is_empty() {
            checkpoint::sync_directory(path)?;
        }
        let kept = &listing.segments[..ends_at];
        // One that a stop took inside a segment does not go with it.
        let useful = kept[0].0..=self.expected;
        for at in listing.snapshots.iter().filter(|at| !useful.contains(at)) {
            remove_if_there(&path.join(file_name(*at, SNAPSHOT)))?;
        }
        let mut segments = Vec::with_capacity(kept.len());
        let mut unreclaimed = Vec::new();
        for (slot, &(base, size)) in kept.iter().enumerate() {
            let next = kept.get(slot + 1).map(|(next, _)| *next);
            let size = match superseded.get(&slot) {
                Some(end) => *end,
                None if slot < from => size,
                None => fs::metadata(path.join(file_name(base, LOG)))?.len(),
            };
            let segment = Arc::new(Segment::new(Arc::clone(directory), base, size, next));
            if superseded.contains_key(&slot) {
                unreclaimed.push(Arc::clone(&segment));
            }
            segments.push(segment);
        }
        self.recall_producers();
        let on_disk = read_epochs(path)?;
        self.epochs.truncate_from_end(self.expected);
        let log_start = known.log_start.max(kept[0].0);
        self.epochs.truncate_from_start(log_start);
        let first_timestamp = first_timestamp(&segments[segments.len() - 1])?;
        Ok(Recovered {
            unflushed: segments.len() - from,
            unreclaimed,
            restarted_at: None,
            log_start,
            log_end: self.expected.max(log_start),
            epochs_changed: self.epochs != on_disk,
            epochs: self.epochs,
            producers: self.producers,
            snapshot_at: self.snapshot_at,
            indexing: self.indexing,
            first_timestamp,
            segments,
            report: self.report,
        })
    }

    /// Sets all of `file` aside and removes it.
    fn move_aside(&mut self, file: &Path) -> io::Result<()> {
        self.set_aside(file, 0)?;
        fs::remove_file(file)
    }

    /// Copies what `file` has from `position` on to a `*.cut` file beside it, unless it is zeros.
    fn set_aside(&mut self, file: &Path, position: u64) -> io::Result<()> {
        let source = File::open(file)?;
        let len = source.metadata()?.len();
        let Some(last) = last_nonzero(&source, position, len)? else {
            self.report.zeros_cut += len - position;
            return Ok(());
        };
        let (target_path, mut target) = create_cut(file, position)?;
        let mut buffer = vec![0; PIECE_READ];
        let mut at = position;
        while at <= last {
            let piece = (last + 1 - at).min(PIECE_READ as u64) as usize;
            source.read_exact_at(&mut buffer[..piece], at)?;
            target.write_all(&buffer[..piece])?;
            at += piece as u64;
        }
        // The zeros after it may be a record's: they are kept as a hole.
        target.set_len(len - position)?;
        target.sync_all()?;
        self.report.set_aside.push(target_path);
        Ok(())
    }
}

fn first_timestamp(active: &Segment) -> Result<Option<i64>, OpenError> {
    if active.size() == 0 {
        return Ok(None);
    }
    let log = File::open(active.path(LOG))?;
    Ok(Some(
        active.header_at(&log, 0, active.size())?.max_timestamp,
    ))
}

fn is_zero(file: &File, from: u64, to: u64) -> io::Result<bool> {
    let mut buffer = vec![0; PIECE_READ];
    let mut at = from;
    while at < to {
        let piece = &mut buffer[..(to - at).min(PIECE_READ as u64) as usize];
        file.read_exact_at(piece, at)?;
        if piece.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += piece.len() as u64;
    }
    Ok(true)
}

fn last_nonzero(file: &File, from: u64, to: u64) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; PIECE_READ];
    let mut last = None;
    let mut at = from;
    while at < to {
        let piece = &mut buffer[..(to - at).min(PIECE_READ as u64) as usize];
        file.read_exact_at(piece, at)?;
        if let Some(offset) = piece.iter().rposition(|byte| *byte != 0) {
            last = Some(at + offset as u64);
        }
        at += piece.len() as u64;
    }
    Ok(last)
}

/// Creates `<file>.<position>.cut`, or the first such name with a number that is free.
fn create_cut(file: &Path, position: u64) -> io::Result<(PathBuf, File)> {
    let mut attempt = 0_u32;
    loop {
        let suffix = match attempt {
            0 => format!("{position}.cut"),
            n => format!("{position}-{n}.cut"),
        };
        let path = with_suffix(file, &suffix);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
            result => return result.map(|file| (path, file)),
        }
    }
}
