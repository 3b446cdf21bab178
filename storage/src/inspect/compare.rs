//! Replicas of one partition against each other: up to the smallest end they must hold the same batches.

use std::path::PathBuf;

use super::{FoundBatch, InspectError, PartitionDir, SegmentReader, Step, file_name};
use crate::Offset;

/// Where a replica parts from the first one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Difference {
    /// The first replica, which the others are held against.
    pub reference: PathBuf,
    /// The one that differs.
    pub replica: PathBuf,
    /// Offset of the first batch that is not the same.
    pub offset: Offset,
    /// What differs.
    pub what: String,
}

/// Compares replicas with the first, from where all of them have begun to where the first of them ends: base offsets,
/// epochs, CRCs and every other field of the headers. The CRCs stand for the records, so [`verify()`](super::verify()) each too.
pub fn compare(replicas: &[PartitionDir]) -> Result<Vec<Difference>, InspectError> {
    let Some((reference, others)) = replicas.split_first() else {
        return Ok(Vec::new());
    };
    let mut differences = Vec::new();
    for replica in others {
        differences.extend(compare_pair(reference, replica)?);
    }
    Ok(differences)
}

fn compare_pair(
    reference: &PartitionDir,
    replica: &PartitionDir,
) -> Result<Option<Difference>, InspectError> {
    let from = reference.segments()[0].max(replica.segments()[0]);
    let mut ours = Batches::new(reference, from);
    let mut theirs = Batches::new(replica, from);
    while let (Some(our), Some(their)) = (ours.next()?, theirs.next()?) {
        if our.header != their.header {
            return Ok(Some(Difference {
                reference: reference.path().to_owned(),
                replica: replica.path().to_owned(),
                offset: our.header.base_offset.min(their.header.base_offset),
                what: format!("{:?} against {:?}", our.header, their.header),
            }));
        }
    }
    Ok(None)
}

/// The batches of a log from an offset on, over all segments.
struct Batches<'a> {
    dir: &'a PartitionDir,
    from: Offset,
    segment: usize,
    reader: Option<SegmentReader>,
}

impl<'a> Batches<'a> {
    fn new(dir: &'a PartitionDir, from: Offset) -> Self {
        let first = dir.segment_of(from);
        Self {
            dir,
            from,
            segment: dir.segments().partition_point(|&base| base < first),
            reader: None,
        }
    }

    fn next(&mut self) -> Result<Option<FoundBatch>, InspectError> {
        while let Some(&base) = self.dir.segments().get(self.segment) {
            let reader = match &mut self.reader {
                Some(reader) => reader,
                none => none.insert(self.dir.segment(base)?),
            };
            let path = self.dir.path().join(file_name(base, "log"));
            match reader.step().map_err(InspectError::at(&path))? {
                Step::Batch(batch) if batch.header.base_offset < self.from => {}
                Step::Batch(batch) => return Ok(Some(batch)),
                Step::End(..) => {
                    self.segment += 1;
                    self.reader = None;
                }
            }
        }
        Ok(None)
    }
}
