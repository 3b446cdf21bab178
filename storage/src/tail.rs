//! The end of the active segment, in memory: what readers at the tail ask for most.

use std::collections::VecDeque;

use crate::Offset;
use crate::batch::BatchHeader;
use crate::segment::Located;
use crate::time_index::TimeEntry;

/// Batches remembered: a consumer that keeps up is within the last few.
const RECENT_MAX: usize = 32;

/// The newest batches of a log and where they end, always of one moment.
///
/// Readers bound by the log end take offset and position from here together; the segment's size
/// alone may already include batches that were appended after they looked at the log end.
#[derive(Debug)]
pub(crate) struct Tail {
    /// Base offset of the active segment.
    segment: Offset,
    end_offset: Offset,
    end_position: u64,
    recent: VecDeque<Located>,
    largest: Option<TimeEntry>,
}

impl Tail {
    /// The end of a log that is not appended to yet.
    pub(crate) fn new(
        segment: Offset,
        end_offset: Offset,
        end_position: u64,
        largest: Option<TimeEntry>,
    ) -> Self {
        Self {
            segment,
            end_offset,
            end_position,
            recent: VecDeque::new(),
            largest,
        }
    }

    /// `batches` have been appended from `position` on; `largest` is the segment's largest timestamp
    /// now.
    pub(crate) fn push(
        &mut self,
        batches: &[BatchHeader],
        mut position: u64,
        largest: Option<TimeEntry>,
    ) {
        for header in batches {
            if self.recent.len() == RECENT_MAX {
                self.recent.pop_front();
            }
            let size = header.size() as u64;
            self.recent.push_back(Located {
                base_offset: header.base_offset,
                last_offset: header.last_offset(),
                position,
                size,
            });
            self.end_offset = header.next_offset();
            position += size;
            self.end_position = position;
        }
        self.largest = largest;
    }

    /// The active segment is now the empty one at `segment`.
    pub(crate) fn rolled(&mut self, segment: Offset) {
        *self = Self::new(segment, segment, 0, None);
    }

    /// The batch that holds `offset`, if it lies in `segment` and is remembered.
    pub(crate) fn find(&self, segment: Offset, offset: Offset) -> Option<Located> {
        if segment != self.segment || offset < self.recent.front()?.base_offset {
            return None;
        }
        let slot = self
            .recent
            .partition_point(|batch| batch.last_offset < offset);
        self.recent.get(slot).copied()
    }

    /// Where the batches before `offset` end, if that is the log end or remembered.
    pub(crate) fn position_before(&self, segment: Offset, offset: Offset) -> Option<u64> {
        if segment == self.segment && offset == self.end_offset {
            return Some(self.end_position);
        }
        self.find(segment, offset).map(|batch| batch.position)
    }

    /// Largest timestamp of `segment`, if that is the active one.
    pub(crate) fn largest(&self, segment: Offset) -> Option<Option<TimeEntry>> {
        (segment == self.segment).then_some(self.largest)
    }
}
