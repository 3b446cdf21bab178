//! RecordBatch v2: the unit that is produced, stored, replicated and fetched, always verbatim.
//!
//! ```text
//!  0        8       12      16    17     21          23            27
//!  | base   | batch | leader| magic| crc  | attributes| last offset | base
//!  | offset | length| epoch | (=2) |      |           | delta       | timestamp
//!  | i64    | i32   | i32   | i8   | u32  | i16       | i32         | i64
//!
//!  35        43       51       53       57      61
//!  | max     | producer| producer| base    | records | records ...
//!  | timestamp| id     | epoch   | sequence| count   | (compressed as one unit)
//!  | i64     | i64     | i16     | i32     | i32     |
//! ```
//!
//! All numbers are big-endian. `batch length` counts the bytes after itself. The CRC (CRC32C) covers everything from
//! `attributes` to the end, so the base offset and the leader epoch can be stamped by the leader without a new CRC.
//!
//! `attributes`: bits 0–2 codec, 3 timestamp type, 4 transactional, 5 control, 6 delete horizon (KIP-534); the rest is
//! reserved.

mod compression;
mod validate;

use std::fmt;

use thiserror::Error;

use crate::{LeaderEpoch, Offset};

pub use compression::{CodecError, Compression};
pub use validate::{BatchOrigin, BatchRules, ValidBatch, validate};

const BASE_OFFSET_AT: usize = 0;
const BATCH_LENGTH_AT: usize = BASE_OFFSET_AT + 8;
/// Where the bytes counted by `batch length` begin.
const LENGTH_COVERS_FROM: usize = BATCH_LENGTH_AT + 4;
const LEADER_EPOCH_AT: usize = LENGTH_COVERS_FROM;
const MAGIC_AT: usize = LEADER_EPOCH_AT + 4;
const CRC_AT: usize = MAGIC_AT + 1;
/// Where the bytes covered by the CRC begin.
pub(crate) const CRC_COVERS_FROM: usize = CRC_AT + 4;
const ATTRIBUTES_AT: usize = CRC_COVERS_FROM;
const LAST_OFFSET_DELTA_AT: usize = ATTRIBUTES_AT + 2;
const BASE_TIMESTAMP_AT: usize = LAST_OFFSET_DELTA_AT + 4;
const MAX_TIMESTAMP_AT: usize = BASE_TIMESTAMP_AT + 8;
const PRODUCER_ID_AT: usize = MAX_TIMESTAMP_AT + 8;
const PRODUCER_EPOCH_AT: usize = PRODUCER_ID_AT + 8;
const BASE_SEQUENCE_AT: usize = PRODUCER_EPOCH_AT + 2;
const RECORDS_COUNT_AT: usize = BASE_SEQUENCE_AT + 4;

/// Bytes of a batch before its records.
pub const HEADER_LEN: usize = RECORDS_COUNT_AT + 4;
/// Bytes at the start of a batch that are enough to know its size: base offset and batch length.
pub const SIZE_PREFIX_LEN: usize = LENGTH_COVERS_FROM;

/// The one format version this log stores.
pub const MAGIC_V2: i8 = 2;
/// "No timestamp" in a record or a header.
pub const NO_TIMESTAMP: i64 = -1;
/// "Not idempotent" in `producer_id`.
pub const NO_PRODUCER_ID: i64 = -1;
/// "No epoch" in `producer_epoch`.
pub const NO_PRODUCER_EPOCH: i16 = -1;
/// "No sequence" in `base_sequence`.
pub const NO_SEQUENCE: i32 = -1;

/// Who stamped the timestamps of a batch (`message.timestamp.type`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TimestampType {
    /// The producer: every record has its own.
    #[default]
    CreateTime,
    /// The leader, when it appended: every record of the batch has the batch's maximum timestamp.
    LogAppendTime,
}

impl fmt::Display for TimestampType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreateTime => "CreateTime",
            Self::LogAppendTime => "LogAppendTime",
        })
    }
}

/// The attributes word of a batch; its codec is one we know.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Attributes {
    bits: i16,
    compression: Compression,
}

impl Attributes {
    const CODEC_MASK: i16 = 0x07;
    const LOG_APPEND_TIME: i16 = 1 << 3;
    const TRANSACTIONAL: i16 = 1 << 4;
    const CONTROL: i16 = 1 << 5;
    const DELETE_HORIZON: i16 = 1 << 6;
    const KNOWN: i16 = 0x7f;

    /// Attributes of a batch of this codec with no flag set.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self {
            bits: compression.id(),
            compression,
        }
    }

    /// Reads an attributes word; an unknown codec is [`BatchError::UnsupportedCompression`].
    pub fn parse(bits: i16) -> Result<Self, BatchError> {
        let compression = Compression::from_id(bits & Self::CODEC_MASK).ok_or_else(|| {
            BatchError::UnsupportedCompression(format!("unknown codec {}", bits & Self::CODEC_MASK))
        })?;
        Ok(Self { bits, compression })
    }

    fn with(self, flag: i16, on: bool) -> Self {
        let bits = if on {
            self.bits | flag
        } else {
            self.bits & !flag
        };
        Self { bits, ..self }
    }

    /// The same attributes with this timestamp type.
    #[must_use]
    pub fn with_timestamp_type(self, timestamp_type: TimestampType) -> Self {
        self.with(
            Self::LOG_APPEND_TIME,
            timestamp_type == TimestampType::LogAppendTime,
        )
    }

    /// The same attributes with the transactional bit as given.
    #[must_use]
    pub fn with_transactional(self, transactional: bool) -> Self {
        self.with(Self::TRANSACTIONAL, transactional)
    }

    /// The same attributes with the control bit as given.
    #[must_use]
    pub fn with_control(self, control: bool) -> Self {
        self.with(Self::CONTROL, control)
    }

    /// The word as it is written.
    #[must_use]
    pub fn bits(self) -> i16 {
        self.bits
    }

    /// Codec of the records.
    #[must_use]
    pub fn compression(self) -> Compression {
        self.compression
    }

    /// Who stamped the timestamps.
    #[must_use]
    pub fn timestamp_type(self) -> TimestampType {
        if self.bits & Self::LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the batch is part of a transaction.
    #[must_use]
    pub fn is_transactional(self) -> bool {
        self.bits & Self::TRANSACTIONAL != 0
    }

    /// Whether the batch holds a control record (a transaction marker) that no consumer sees.
    #[must_use]
    pub fn is_control(self) -> bool {
        self.bits & Self::CONTROL != 0
    }

    /// Whether `base_timestamp` is a delete horizon, which only the log cleaner sets (KIP-534).
    #[must_use]
    pub fn has_delete_horizon(self) -> bool {
        self.bits & Self::DELETE_HORIZON != 0
    }

    /// Bits that no version of the format defines.
    #[must_use]
    pub fn unknown_bits(self) -> i16 {
        self.bits & !Self::KNOWN
    }
}

/// The first [`HEADER_LEN`] bytes of a batch, decoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BatchHeader {
    /// Offset of the first record (of the batch as produced: compaction may have removed it).
    pub base_offset: Offset,
    /// Bytes after this field; see [`BatchHeader::size`].
    pub batch_length: i32,
    /// Reign of the leader that appended the batch; [`LeaderEpoch::NONE`] before that.
    pub leader_epoch: LeaderEpoch,
    /// Format version: always [`MAGIC_V2`].
    pub magic: i8,
    /// CRC32C from the attributes to the end.
    pub crc: u32,
    /// Codec and flags.
    pub attributes: Attributes,
    /// Last offset less base offset, as produced; compaction keeps it.
    pub last_offset_delta: i32,
    /// Timestamp of the first record, ms since 1970, or the delete horizon.
    pub base_timestamp: i64,
    /// Largest timestamp in the batch, ms since 1970, or [`NO_TIMESTAMP`].
    pub max_timestamp: i64,
    /// Idempotent producer, or [`NO_PRODUCER_ID`].
    pub producer_id: i64,
    /// Incarnation of the producer, or [`NO_PRODUCER_EPOCH`].
    pub producer_epoch: i16,
    /// Sequence number of the first record, or [`NO_SEQUENCE`].
    pub base_sequence: i32,
    /// Records present: `last_offset_delta + 1` as produced, fewer after compaction.
    pub records_count: i32,
}

impl BatchHeader {
    /// Decodes the header at the start of `bytes`, which may be shorter or longer than the batch.
    ///
    /// The geometry is checked (a batch as long as its header at least, offsets that do not overflow, counts that are
    /// not negative), so arithmetic on the result cannot fail. The CRC is not: see [`check_crc`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(BatchError::Corrupt(format!(
                "{} bytes are too few for a batch header of {HEADER_LEN}",
                bytes.len()
            )));
        };
        let magic = i8::from_be_bytes(field(header, MAGIC_AT));
        if magic != MAGIC_V2 {
            return Err(BatchError::UnsupportedMagic(magic));
        }
        let header = Self {
            base_offset: Offset(i64::from_be_bytes(field(header, BASE_OFFSET_AT))),
            batch_length: i32::from_be_bytes(field(header, BATCH_LENGTH_AT)),
            leader_epoch: LeaderEpoch(i32::from_be_bytes(field(header, LEADER_EPOCH_AT))),
            magic,
            crc: u32::from_be_bytes(field(header, CRC_AT)),
            attributes: Attributes::parse(i16::from_be_bytes(field(header, ATTRIBUTES_AT)))?,
            last_offset_delta: i32::from_be_bytes(field(header, LAST_OFFSET_DELTA_AT)),
            base_timestamp: i64::from_be_bytes(field(header, BASE_TIMESTAMP_AT)),
            max_timestamp: i64::from_be_bytes(field(header, MAX_TIMESTAMP_AT)),
            producer_id: i64::from_be_bytes(field(header, PRODUCER_ID_AT)),
            producer_epoch: i16::from_be_bytes(field(header, PRODUCER_EPOCH_AT)),
            base_sequence: i32::from_be_bytes(field(header, BASE_SEQUENCE_AT)),
            records_count: i32::from_be_bytes(field(header, RECORDS_COUNT_AT)),
        };
        header.check_geometry()?;
        Ok(header)
    }

    fn check_geometry(&self) -> Result<(), BatchError> {
        let corrupt = |reason: String| Err(BatchError::Corrupt(reason));
        if usize::try_from(self.batch_length).is_err()
            || self.batch_length as usize + SIZE_PREFIX_LEN < HEADER_LEN
        {
            return corrupt(format!(
                "batch length {} is less than a header",
                self.batch_length
            ));
        }
        if self.last_offset_delta < 0 {
            return corrupt(format!("last offset delta {}", self.last_offset_delta));
        }
        let last_offset = self
            .base_offset
            .0
            .checked_add(i64::from(self.last_offset_delta));
        // The offset after the last one must exist too: it is where the next batch goes.
        if self.base_offset.0 < 0 || last_offset.is_none_or(|last| last == i64::MAX) {
            return corrupt(format!("base offset {}", self.base_offset));
        }
        if self.records_count < 0 {
            return corrupt(format!("records count {}", self.records_count));
        }
        Ok(())
    }

    /// Writes the header as it is stored.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        put(&mut bytes, BASE_OFFSET_AT, self.base_offset.0.to_be_bytes());
        put(&mut bytes, BATCH_LENGTH_AT, self.batch_length.to_be_bytes());
        put(
            &mut bytes,
            LEADER_EPOCH_AT,
            self.leader_epoch.0.to_be_bytes(),
        );
        put(&mut bytes, MAGIC_AT, self.magic.to_be_bytes());
        put(&mut bytes, CRC_AT, self.crc.to_be_bytes());
        put(
            &mut bytes,
            ATTRIBUTES_AT,
            self.attributes.bits().to_be_bytes(),
        );
        put(
            &mut bytes,
            LAST_OFFSET_DELTA_AT,
            self.last_offset_delta.to_be_bytes(),
        );
        put(
            &mut bytes,
            BASE_TIMESTAMP_AT,
            self.base_timestamp.to_be_bytes(),
        );
        put(
            &mut bytes,
            MAX_TIMESTAMP_AT,
            self.max_timestamp.to_be_bytes(),
        );
        put(&mut bytes, PRODUCER_ID_AT, self.producer_id.to_be_bytes());
        put(
            &mut bytes,
            PRODUCER_EPOCH_AT,
            self.producer_epoch.to_be_bytes(),
        );
        put(
            &mut bytes,
            BASE_SEQUENCE_AT,
            self.base_sequence.to_be_bytes(),
        );
        put(
            &mut bytes,
            RECORDS_COUNT_AT,
            self.records_count.to_be_bytes(),
        );
        bytes
    }

    /// Offset of the last record as produced.
    #[must_use]
    pub fn last_offset(&self) -> Offset {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    /// Offset of the batch after this one.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.last_offset() + 1
    }

    /// Bytes of the whole batch, header included.
    #[must_use]
    pub fn size(&self) -> usize {
        SIZE_PREFIX_LEN + self.batch_length as usize
    }

    /// Codec of the records.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.attributes.compression()
    }

    /// Who stamped the timestamps.
    #[must_use]
    pub fn timestamp_type(&self) -> TimestampType {
        self.attributes.timestamp_type()
    }

    /// Whether the batch is part of a transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes.is_transactional()
    }

    /// Whether the batch holds a control record.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes.is_control()
    }

    /// Whether an idempotent producer wrote the batch.
    #[must_use]
    pub fn has_producer_id(&self) -> bool {
        self.producer_id > NO_PRODUCER_ID
    }

    /// Sequence number of the last record; sequences wrap from `i32::MAX` to 0. [`NO_SEQUENCE`] if there is none.
    #[must_use]
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 {
            NO_SEQUENCE
        } else {
            sequence_after(self.base_sequence, self.last_offset_delta)
        }
    }
}

/// The sequence number `steps` after `sequence` (both ≥ 0), wrapping from `i32::MAX` to 0.
pub(crate) fn sequence_after(sequence: i32, steps: i32) -> i32 {
    // Both are below 2^31, so the sum fits u32, and dropping its top bit is the wrap.
    ((sequence as u32 + steps as u32) & i32::MAX as u32) as i32
}

/// Checks the CRC of the batch that starts at `bytes` (which may go on after it); reads all of the batch.
pub fn check_crc(bytes: &[u8]) -> Result<(), BatchError> {
    let header = BatchHeader::parse(bytes)?;
    let Some(covered) = bytes.get(CRC_COVERS_FROM..header.size()) else {
        return Err(BatchError::Corrupt(format!(
            "batch of {} bytes cut after {}",
            header.size(),
            bytes.len()
        )));
    };
    crc_matches(header.crc, crc32c::crc32c(covered))
}

pub(crate) fn crc_matches(stored: u32, computed: u32) -> Result<(), BatchError> {
    if stored == computed {
        return Ok(());
    }
    Err(BatchError::Corrupt(format!(
        "CRC is {computed:08x} but the header says {stored:08x}"
    )))
}

/// Computes the CRC of a batch about to be written and sets it in the header.
pub(crate) fn seal(header: &mut BatchHeader, body: &[u8]) {
    let head = crc32c::crc32c(&header.encode()[CRC_COVERS_FROM..]);
    header.crc = crc32c::crc32c_append(head, body);
}

/// Writes the leader's part of a header: where the batch lands and whose reign it is. Outside the CRC.
pub fn stamp(header: &mut [u8; HEADER_LEN], base_offset: Offset, leader_epoch: LeaderEpoch) {
    put(header, BASE_OFFSET_AT, base_offset.0.to_be_bytes());
    put(header, LEADER_EPOCH_AT, leader_epoch.0.to_be_bytes());
}

fn field<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

fn put<const N: usize>(header: &mut [u8; HEADER_LEN], at: usize, bytes: [u8; N]) {
    header[at..at + N].copy_from_slice(&bytes);
}

/// Why a batch was refused. One variant per Kafka error code.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum BatchError {
    /// `CORRUPT_MESSAGE`: a size, count or CRC that contradicts the bytes.
    #[error("corrupt batch: {0}")]
    Corrupt(String),
    /// `MESSAGE_TOO_LARGE`: over the topic's `max.message.bytes`.
    #[error("batch of {size} bytes exceeds max.message.bytes {max}")]
    TooLarge {
        /// Bytes of the batch.
        size: usize,
        /// The topic's limit.
        max: u32,
    },
    /// `INVALID_RECORD`: well-formed, but not what a client may write to this topic.
    #[error("invalid record: {reason}")]
    Invalid {
        /// What is wrong with the batch.
        reason: String,
        /// Index in the batch and message of single records at fault (KIP-467), at most a thousand.
        record_errors: Vec<(i32, String)>,
    },
    /// `UNSUPPORTED_FOR_MESSAGE_FORMAT`: a message set older than v2, or newer.
    #[error("batch has magic {0}; only magic 2 is accepted")]
    UnsupportedMagic(i8),
    /// `INVALID_TIMESTAMP`: outside the topic's bounds, or stamped as if by the leader.
    #[error("invalid timestamp: {0}")]
    InvalidTimestamp(String),
    /// `UNSUPPORTED_COMPRESSION_TYPE`: a codec unknown or not allowed at this request version.
    #[error("unsupported compression: {0}")]
    UnsupportedCompression(String),
}

impl BatchError {
    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid {
            reason: reason.into(),
            record_errors: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
