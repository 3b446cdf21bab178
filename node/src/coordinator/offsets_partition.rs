//! What the coordinator needs of a partition of `__consumer_offsets`.

use std::future::Future;
use std::io;
use std::pin::Pin;

use kittiwake_storage::{LeaderEpoch, Offset};

use super::error::GroupError;

/// A wait that outlives the call it began in.
pub(crate) type Committed = Pin<Box<dyn Future<Output = Result<(), GroupError>> + Send>>;

/// A partition of `__consumer_offsets`, as led by this node in one epoch.
pub(crate) trait OffsetsPartition: Send + Sync + 'static {
    /// Which partition.
    fn index(&self) -> i32;

    /// The epoch of this leadership.
    fn epoch(&self) -> LeaderEpoch;

    /// Whether this node may answer from it now: one that is cut off from the cluster may have been replaced.
    fn is_leased(&self) -> bool;

    /// First offset there is.
    fn start(&self) -> Offset;

    /// Offset of the next record.
    fn end(&self) -> Offset;

    /// Appends one batch; returns the offset behind it.
    ///
    /// # Errors
    /// What a client is told.
    fn append(&self, batch: &[u8], wall_ms: i64) -> Result<Offset, GroupError>;

    /// Whether everything below `end` is committed, in this epoch.
    fn is_committed(&self, end: Offset) -> bool;

    /// Waits until everything below `end` is committed.
    ///
    /// The wait fails with [`GroupError::NotCoordinator`] when this leadership ends first: the same
    /// offset may hold another record afterwards (KAFKA-20634).
    fn committed(&self, end: Offset) -> Committed;

    /// Reads record batches, the one that holds `from` first; the last may be cut short. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// The log cannot be read.
    fn read(&self, from: Offset, upto: Offset) -> io::Result<Vec<u8>>;
}
