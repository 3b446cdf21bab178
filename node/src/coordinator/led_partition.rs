//! A partition of this node as the coordinator uses it.

use std::io;
use std::sync::Arc;

use kittiwake_storage::{AppendError, BatchError, BatchOrigin, LeaderEpoch, Offset, validate};

use super::error::GroupError;
use super::offsets_partition::{Committed, OffsetsPartition};
use crate::cluster::ControllerLease;
use crate::partition::{Acks, AppendRefused, Partition};

/// Bytes of one read while loading.
const LOAD_BYTES: u32 = 1024 * 1024;

/// A partition of `__consumer_offsets` in one epoch of this node's leadership.
pub(crate) struct LedPartition {
    partition: Arc<Partition>,
    epoch: LeaderEpoch,
    lease: Arc<ControllerLease>,
}

impl LedPartition {
    pub(crate) fn new(
        partition: Arc<Partition>,
        epoch: LeaderEpoch,
        lease: Arc<ControllerLease>,
    ) -> Self {
        Self {
            partition,
            epoch,
            lease,
        }
    }
}

impl OffsetsPartition for LedPartition {
    fn index(&self) -> i32 {
        self.partition.index()
    }

    fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    fn is_leased(&self) -> bool {
        self.lease.is_valid()
    }

    fn start(&self) -> Offset {
        self.partition.log_start_offset()
    }

    fn end(&self) -> Offset {
        self.partition.log_end_offset()
    }

    fn append(&self, batch: &[u8], wall_ms: i64) -> Result<Offset, GroupError> {
        let mut rules = self.partition.batch_rules();
        rules.origin = BatchOrigin::Coordinator;
        let valid = validate(batch, &rules, wall_ms).map_err(|error| self.invalid(&error))?;
        let written = self
            .partition
            .append(&valid, Acks::All, Some(self.epoch), wall_ms)
            .map_err(|error| self.refused(&error))?;
        Ok(written.appended.last_offset + 1)
    }

    fn is_committed(&self, end: Offset) -> bool {
        // In this order: an epoch that is over does not come back, so the watermark was this one's.
        let high_watermark = self.partition.high_watermark();
        high_watermark >= end && self.partition.leader_epoch() == self.epoch
    }

    fn committed(&self, end: Offset) -> Committed {
        let (partition, epoch) = (Arc::clone(&self.partition), self.epoch);
        Box::pin(async move {
            partition
                .committed(epoch, end)
                .await
                .map_err(|_| GroupError::NotCoordinator)
        })
    }

    fn read(&self, from: Offset, upto: Offset) -> io::Result<Vec<u8>> {
        let slices = self
            .partition
            .log()
            .read(from, upto, LOAD_BYTES, true)
            .map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        for slice in slices {
            bytes.extend(slice.read()?);
        }
        Ok(bytes)
    }
}

impl LedPartition {
    fn invalid(&self, error: &BatchError) -> GroupError {
        tracing::warn!(partition = self.index(), %error, "group records were not written");
        match error {
            BatchError::TooLarge { .. } => GroupError::InvalidCommitOffsetSize,
            _ => GroupError::UnknownServerError,
        }
    }

    fn refused(&self, error: &AppendRefused) -> GroupError {
        match error {
            AppendRefused::NotLeader => GroupError::NotCoordinator,
            AppendRefused::NotEnoughReplicas => GroupError::CoordinatorNotAvailable,
            AppendRefused::Log(error) => {
                tracing::warn!(partition = self.index(), %error, "group records were not written");
                match error {
                    AppendError::DiskFull => GroupError::CoordinatorNotAvailable,
                    AppendError::BatchTooLargeForSegment { .. } => {
                        GroupError::InvalidCommitOffsetSize
                    }
                    // Another node can take over where this one's disk has failed.
                    _ => GroupError::NotCoordinator,
                }
            }
        }
    }
}
