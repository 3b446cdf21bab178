//! Giving back what truncations cut off: the kept batches of a segment are copied to a new file, which
//! takes the place of the old one. Slices of the old file keep it until they are sent.
//!
//! Until that is durable the segment holds back the recovery point, so that a start looks at it and
//! sees where it ends: *below the recovery point no file goes on after its segment's last batch*.

use std::sync::Arc;

use crate::Offset;
use crate::append_file::is_full;
use crate::flush::is_out_of_files;
use crate::log::Log;
use crate::segment::{Segment, SegmentError};

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
            match self.reclaim_one(&segment) {
                Ok(()) => {}
                Err(SegmentError::Io(error)) if !is_full(&error) && !is_out_of_files(&error) => {
                    self.disk.take_offline(&self.directory.read(), &error);
                    return;
                }
                Err(error) => {
                    tracing::warn!(partition = %self.partition, base = %segment.base(), %error, "cannot give back what a truncation cut off");
                }
            }
        }
    }

    fn reclaim_one(&self, segment: &Arc<Segment>) -> Result<(), SegmentError> {
        if let Some(bytes) = segment.shrink(&self.disk)? {
            // Rebuilds the indexes, which went with the cut.
            segment.files(&self.disk)?;
            segment.times()?;
            segment.sync()?;
            self.sync_directory()?;
            self.disk.step();
            tracing::info!(partition = %self.partition, base = %segment.base(), bytes, "gave back what a truncation cut off");
        }
        self.unreclaimed
            .lock()
            .retain(|other| !Arc::ptr_eq(other, segment));
        Ok(())
    }
}
