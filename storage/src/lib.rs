//! One partition's log on disk, in Apache Kafka's own format: its tools read what is written here.
//!
//! # The directory of a partition
//!
//! ```text
//! <data>/orders-7/
//!   partition.metadata                 topic id; durable before the first append
//!   leader-epoch-checkpoint            epoch and first offset of each reign
//!   00000000000000000000.log           a sealed segment: record batches, one after another
//!   00000000000000000000.index         8-byte entries: last offset of a batch, its position
//!   00000000000000000000.timeindex     12-byte entries: largest timestamp so far, its offset
//!   00000000000000004711.log           the active segment: batches, then zeros allocated ahead
//!   00000000000000004711.index
//!   00000000000000004711.timeindex
//!   00000000000000004711.snapshot      producers as of offset 4711, written when it was rolled
//!   *.deleted                          removed by retention or a truncation, waiting for file.delete.delay.ms
//!   *.tmp                              being written; takes the place of the file it is named after
//!   *.cut                              found after the end of the log by a recovery; for the operator
//!   00000000000000009000.restart       the log is to be empty and start here: all else is void
//! ```
//!
//! A segment ends where its successor begins. After a truncation its file goes on beyond that, with a
//! *superseded* end that is no part of the log, until a copy without it has taken its place:
//!
//! ```text
//!   00000000000000000000.log           |batches 0 to 4000|superseded: 4001 to 4710|
//!   00000000000000004001.log           |batches from 4001 on ...
//! ```
//!
//! Such a file is never below the recovery point, where no start would look at it.
//!
//! A record batch (v2, big endian). The CRC covers what follows it, so the leader patches the first
//! two fields it owns without touching it:
//!
//! ```text
//!  0            8       12            16     17     21           23                 27
//!  +------------+--------+-------------+------+------+------------+------------------+
//!  | base offset| length | leader epoch| magic| crc  | attributes | last offset delta|
//!  +------------+--------+-------------+------+------+------------+------------------+
//!  27               35              43            51       53         57       61
//!  +----------------+---------------+-------------+--------+----------+--------+---------
//!  | base timestamp | max timestamp | producer id | epoch  | base seq | count  | records ...
//!  +----------------+---------------+-------------+--------+----------+--------+---------
//! ```
//!
//! What surrounds the partitions is drawn in [`LogDir`]'s module: lock, `meta.properties`, the
//! checkpoints, the clean-shutdown marker.
//!
//! # Watermarks
//!
//! ```text
//! log_start <= high_watermark <= log_end        log_start <= flushed <= log_end
//! recovery point <= flushed
//! ```
//!
//! Readable is what lies between `log_start` and `log_end`, committed what is below the high
//! watermark (the replica's business: it is passed in), durable what is below `flushed`. Published
//! bytes never change, nor do they where a follower's log is cut: `log_end`, `flushed` and the recovery
//! point go back together then, the last of them on disk first. `log_start` only goes back when the
//! log starts over.
//!
//! # The way through
//!
//! A batch: [`validate`] (outside any lock) → [`Log::append`] → the active segment's file → index →
//! published. From a leader: [`Log::append_as_follower`], and where the logs have parted
//! [`Log::truncate_to`] or [`Log::restart_at`] before it. A range: [`Log::read`] → segment → index → [`FileSlice`], which `sendfile` sends.
//! After a stop: [`LogDir::load`] → recovery of what lies past the recovery point.
//!
//! This crate knows no sockets, no clock (time is passed in), no replication; a topic is a name and
//! an id to it.
#![deny(unsafe_code)]

mod append_file;
mod background;
pub mod batch;
mod checkpoint;
mod config;
mod disk;
mod file_slice;
mod flush;
mod follower_append;
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
mod reclaim;
pub mod records;
mod recovery;
mod restart;
mod retention;
mod segment;
mod tail;
mod time_index;
mod truncation;

#[cfg(test)]
mod follower_append_tests;
#[cfg(test)]
mod follower_random_tests;
#[cfg(test)]
mod log_dir_tests;
#[cfg(test)]
mod log_tests;
#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod retention_tests;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod truncation_tests;

pub use batch::{
    BatchError, BatchHeader, BatchOrigin, BatchRules, Compression, TimestampType, ValidBatch,
    check_crc, validate,
};
pub use checkpoint::TopicPartition;
pub use config::LogConfig;
pub use disk::AppendedBytes;
pub use file_slice::FileSlice;
pub use flush::FlushError;
pub use follower_append::{FollowerAppendError, FollowerAppended};
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
pub use truncation::TruncateError;
