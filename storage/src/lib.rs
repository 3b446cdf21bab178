//! One partition's log on disk.
#![deny(unsafe_code)]

pub mod batch;
mod ids;
pub mod inspect;
mod leader_epochs;
mod producer_state;
pub mod records;

pub use batch::{
    BatchError, BatchHeader, BatchOrigin, BatchRules, Compression, TimestampType, ValidBatch,
    check_crc, validate,
};
pub use ids::{LeaderEpoch, Offset};
pub use leader_epochs::{EpochEntry, EpochFileError, LeaderEpochCache};
pub use producer_state::{ProducerEntry, ProducerError, ProducerState, Sequence, SnapshotError};
pub use records::{BuildError, Record, RecordsBuilder, RecordsError};
