//! Giving back what truncations cut off: the kept batches of a segment are copied to a new file, which
//! takes the place of the old one. Slices of the old file keep it until they are sent.
//!
//! Until that is durable the segment holds back the recovery point, so that a start looks at it and
//! sees where it ends: *below the recovery point no file goes on after its segment's last batch*.

use std::io;
use std::sync::Arc;

use crate::Offset;
use crate::flush::FlushError;
use crate::log::Log;
use crate::segment::{Segment, SegmentError};

/// Why nothing was given back.
#[derive(Debug, thiserror::Error)]
enum ReclaimError {
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Flush(#[from] FlushError),
}

impl Log {
    /// From where on the next start has to look at the log; at most [`Log::flushed_offset`].
    pub(crate) fn recovery_point(&self) -> Offset {
        let unreclaimed = self.unreclaimed.lock();
        let held = unreclaimed.iter().filter_map(|segment| segment.next_base());
        held.fold(self.flushed_offset(), Offset::min)
    }

    /// Gives back all there is to give back. Copies up to a segment each, so in the background, or at
    /// the close. What fails is tried again with the next flush of sealed segments.
    pub(crate) fn reclaim(&self) {
        let _reclaiming = self.reclaiming.lock();
        let unreclaimed = self.unreclaimed.lock().clone();
        for segment in unreclaimed {
            // Nothing is lost: the old file is whole and in place until the new one is.
            if let Err(error) = self.reclaim_one(&segment)
                && !self.is_abandoned()
            {
                tracing::warn!(partition = %self.partition, base = %segment.base(), %error, "cannot give back what a truncation cut off");
            }
        }
    }

    fn reclaim_one(&self, segment: &Arc<Segment>) -> Result<(), ReclaimError> {
        if let Some(bytes) = segment.shrink(&self.disk)? {
            // Rebuilds the indexes, which went with the cut.
            segment.files(&self.disk)?;
            segment.times()?;
            self.flush_replaced(segment)?;
            self.disk.step();
            tracing::info!(partition = %self.partition, base = %segment.base(), bytes, "gave back what a truncation cut off");
        }
        self.unreclaimed
            .lock()
            .retain(|other| !Arc::ptr_eq(other, segment));
        Ok(())
    }
}
