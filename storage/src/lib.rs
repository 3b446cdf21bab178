//! One partition's log on disk, in Apache Kafka's own format.
#![deny(unsafe_code)]

mod append_file;
mod background;
pub mod batch;
mod checkpoint;
mod config;
mod disk;
mod file_slice;
mod flush;
mod ids;
mod index_file;
pub mod inspect;
mod leader_epochs;
mod log;
mod log_dir;
mod mapping;
mod offset_index;
mod open_segments;
mod partition_metadata;
mod populate;
mod producer_state;
mod properties;
mod read;
pub mod records;
mod recovery;
mod retention;
mod segment;
mod tail;
mod time_index;

#[cfg(test)]
mod log_dir_tests;
#[cfg(test)]
mod log_tests;
#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod retention_tests;
#[cfg(test)]
mod test_support;

pub use batch::{
    BatchError, BatchHeader, BatchOrigin, BatchRules, Compression, TimestampType, ValidBatch,
    check_crc, validate,
};
pub use checkpoint::{Checkpoint, TopicPartition};
pub use config::LogConfig;
pub use file_slice::FileSlice;
pub use flush::FlushError;
pub use ids::{LeaderEpoch, Offset};
pub use leader_epochs::{EpochEntry, EpochFileError, LeaderEpochCache};
pub use log::{AppendError, Appended, Log};
pub use log_dir::{
    CreateError, FailedLog, LastStop, Loaded, LoadedLog, LogDir, LogDirError, LogDirOptions,
};
pub use partition_metadata::{decode_id, encode_id};
pub use producer_state::{ProducerEntry, ProducerError, ProducerState, Sequence, SnapshotError};
pub use read::{ReadError, TimestampOffset};
pub use records::{BuildError, Record, RecordsBuilder, RecordsError};
pub use recovery::{OpenError, Recovery};
pub use retention::{RetainError, Retained};
