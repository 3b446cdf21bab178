//! What a leader demands of a batch before it appends it, checked outside the partition lock.
//!
//! For an ordinary uncompressed or compressed batch only the header is read and the CRC computed. Bodies are decoded
//! where the topic needs keys (compaction) or asks for it (strict); then at most `decompressed_bytes_max` are held.
//! The rules are those of Apache Kafka's `ProduceRequest.validateRecords`, `UnifiedLog.analyzeAndValidateRecords` and
//! `LogValidator`.

use super::{
    BatchError, BatchHeader, CRC_COVERS_FROM, HEADER_LEN, NO_PRODUCER_ID, NO_TIMESTAMP,
    TimestampType, crc_matches,
};
use crate::batch::Compression;
use crate::records::{self, RecordsError};
use crate::{LeaderEpoch, Offset};

/// Single records reported for one refused batch: enough to find the fault, and a bound on the answer.
/// The shortest record: its length, attributes, both deltas, no key, no value and no headers take a byte each.
const RECORD_LEN_MIN: usize = 7;
const RECORD_ERRORS_MAX: usize = 1000;

/// Who hands over the batch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum BatchOrigin {
    /// A producer.
    #[default]
    Client,
    /// A coordinator of this node, which may write control batches and is not held to a client's timestamps.
    Coordinator,
}

/// What a topic demands of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchRules {
    /// `max.message.bytes`: the largest batch, header included.
    pub max_message_bytes: u32,
    /// The topic is compacted: every record needs a key.
    pub keys_required: bool,
    /// `batch.validation=strict`: decode every record.
    pub strict: bool,
    /// `message.timestamp.type`.
    pub timestamp_type: TimestampType,
    /// `message.timestamp.before.max.ms`: how much older than now a record may be.
    pub timestamp_before_max_ms: i64,
    /// `message.timestamp.after.max.ms`: how far in the future a record may be.
    pub timestamp_after_max_ms: i64,
    /// Produce v7 and later (KIP-110).
    pub allow_zstd: bool,
    /// Bytes the records may expand to where they are decoded.
    pub decompressed_bytes_max: usize,
    /// Who hands over the batch.
    pub origin: BatchOrigin,
}

/// A batch that passed [`validate`]: its header (a copy, already patched for LogAppendTime) and its records, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct ValidBatch<'a> {
    header: BatchHeader,
    body: &'a [u8],
}

impl<'a> ValidBatch<'a> {
    /// The header, before the leader has stamped base offset and epoch.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The records as they came, compressed or not: what follows the header.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Bytes of the whole batch.
    #[must_use]
    pub fn size(&self) -> usize {
        self.header.size()
    }

    /// The header to store, with the place and the reign the leader gives it, and its bytes.
    #[must_use]
    pub fn stamped(
        &self,
        base_offset: Offset,
        leader_epoch: LeaderEpoch,
    ) -> (BatchHeader, [u8; HEADER_LEN]) {
        let header = BatchHeader {
            base_offset,
            leader_epoch,
            ..self.header
        };
        (header, header.encode())
    }
}

/// Checks that `records` is exactly one batch that fits the rules. `now_ms` is the wall clock.
pub fn validate<'a>(
    records: &'a [u8],
    rules: &BatchRules,
    now_ms: i64,
) -> Result<ValidBatch<'a>, BatchError> {
    let header = one_batch(records)?;
    if header.size() > rules.max_message_bytes as usize {
        return Err(BatchError::TooLarge {
            size: header.size(),
            max: rules.max_message_bytes,
        });
    }
    check_counts(&header, rules)?;
    check_attributes(&header, rules)?;
    check_producer(&header, rules)?;
    let body = &records[HEADER_LEN..];
    let header = check_crc_and_stamp_time(&header, records, rules, now_ms)?;
    if rules.timestamp_type == TimestampType::CreateTime && rules.origin == BatchOrigin::Client {
        check_timestamp(header.base_timestamp, rules, now_ms)?;
        check_timestamp(header.max_timestamp, rules, now_ms)?;
    }
    if rules.keys_required || rules.strict {
        check_records(&header, body, rules, now_ms)?;
    }
    Ok(ValidBatch { header, body })
}

/// The header of the one batch that `records` must be.
fn one_batch(records: &[u8]) -> Result<BatchHeader, BatchError> {
    if records.is_empty() {
        return Err(BatchError::invalid("no record batch"));
    }
    // An old message set can be shorter than a v2 header: tell its magic before its length.
    if let Some(&magic) = records.get(super::MAGIC_AT)
        && magic as i8 != super::MAGIC_V2
    {
        return Err(BatchError::UnsupportedMagic(magic as i8));
    }
    let header = BatchHeader::parse(records)?;
    if records.len() < header.size() {
        return Err(BatchError::invalid(format!(
            "batch of {} bytes cut after {}",
            header.size(),
            records.len()
        )));
    }
    if records.len() > header.size() {
        return Err(BatchError::invalid(format!(
            "{} bytes after the first batch; exactly one is accepted",
            records.len() - header.size()
        )));
    }
    Ok(header)
}

fn check_counts(header: &BatchHeader, rules: &BatchRules) -> Result<(), BatchError> {
    if header.base_offset != Offset::ZERO {
        return Err(BatchError::invalid(format!(
            "base offset {} of a batch not yet appended should be 0",
            header.base_offset
        )));
    }
    if header.records_count == 0
        || i64::from(header.records_count) != i64::from(header.last_offset_delta) + 1
    {
        return Err(BatchError::invalid(format!(
            "{} records with last offset delta {}",
            header.records_count, header.last_offset_delta
        )));
    }
    // Offsets are taken for as many records as the header claims, and no others ever fill them.
    let body_max = match header.compression() {
        Compression::None => header.size() - HEADER_LEN,
        _ => rules.decompressed_bytes_max,
    };
    if header.records_count as usize > body_max / RECORD_LEN_MIN {
        return Err(BatchError::invalid(format!(
            "{} records do not fit in {body_max} bytes",
            header.records_count
        )));
    }
    Ok(())
}

fn check_attributes(header: &BatchHeader, rules: &BatchRules) -> Result<(), BatchError> {
    let attributes = header.attributes;
    if attributes.unknown_bits() != 0 {
        return Err(BatchError::invalid(format!(
            "unknown attribute bits {:#06x}",
            attributes.unknown_bits()
        )));
    }
    if attributes.has_delete_horizon() {
        return Err(BatchError::invalid(
            "only the log cleaner sets a delete horizon",
        ));
    }
    if header.compression() == Compression::Zstd && !rules.allow_zstd {
        return Err(BatchError::UnsupportedCompression(
            "zstd needs Produce version 7 or later".into(),
        ));
    }
    if rules.origin == BatchOrigin::Client {
        if attributes.is_control() {
            return Err(BatchError::invalid("clients may not write control batches"));
        }
        if attributes.timestamp_type() == TimestampType::LogAppendTime {
            return Err(BatchError::InvalidTimestamp(
                "producers may not set the timestamp type to LogAppendTime".into(),
            ));
        }
    }
    Ok(())
}

fn check_producer(header: &BatchHeader, rules: &BatchRules) -> Result<(), BatchError> {
    if header.producer_id < NO_PRODUCER_ID {
        return Err(BatchError::invalid(format!(
            "producer id {}",
            header.producer_id
        )));
    }
    if !header.has_producer_id() {
        if header.is_transactional() {
            return Err(BatchError::invalid(
                "transactional batch without a producer id",
            ));
        }
        return Ok(());
    }
    if header.producer_epoch < 0 {
        return Err(BatchError::invalid(format!(
            "producer id {} with epoch {}",
            header.producer_id, header.producer_epoch
        )));
    }
    // Coordinators write markers and transactional offset commits, which have no sequence.
    if header.base_sequence < 0 && rules.origin == BatchOrigin::Client {
        return Err(BatchError::invalid(format!(
            "producer id {} with sequence {}",
            header.producer_id, header.base_sequence
        )));
    }
    Ok(())
}

/// Checks the CRC and, where the leader stamps the time, sets it. The body is read once either way.
fn check_crc_and_stamp_time(
    header: &BatchHeader,
    records: &[u8],
    rules: &BatchRules,
    now_ms: i64,
) -> Result<BatchHeader, BatchError> {
    if rules.timestamp_type == TimestampType::CreateTime {
        crc_matches(header.crc, crc32c::crc32c(&records[CRC_COVERS_FROM..]))?;
        return Ok(*header);
    }
    // CRC(head ++ body) follows from CRC(head) and CRC(body), so the new one costs 40 bytes, not the batch again.
    let body = &records[HEADER_LEN..];
    let body_crc = crc32c::crc32c(body);
    let crc_with = |head: &[u8]| {
        crc32c::crc32c_combine(
            crc32c::crc32c(&head[CRC_COVERS_FROM..HEADER_LEN]),
            body_crc,
            body.len(),
        )
    };
    crc_matches(header.crc, crc_with(records))?;
    let mut stamped = BatchHeader {
        attributes: header
            .attributes
            .with_timestamp_type(TimestampType::LogAppendTime),
        max_timestamp: now_ms,
        ..*header
    };
    stamped.crc = crc_with(&stamped.encode());
    Ok(stamped)
}

fn check_timestamp(timestamp: i64, rules: &BatchRules, now_ms: i64) -> Result<(), BatchError> {
    if timestamp == NO_TIMESTAMP {
        return Ok(());
    }
    if now_ms.saturating_sub(timestamp) > rules.timestamp_before_max_ms {
        return Err(BatchError::InvalidTimestamp(format!(
            "{timestamp} is more than message.timestamp.before.max.ms {} before {now_ms}",
            rules.timestamp_before_max_ms
        )));
    }
    if timestamp.saturating_sub(now_ms) > rules.timestamp_after_max_ms {
        return Err(BatchError::InvalidTimestamp(format!(
            "{timestamp} is more than message.timestamp.after.max.ms {} after {now_ms}",
            rules.timestamp_after_max_ms
        )));
    }
    Ok(())
}

/// Decodes every record: their run must be what the header says, and each must have a key where the topic needs one.
fn check_records(
    header: &BatchHeader,
    body: &[u8],
    rules: &BatchRules,
    now_ms: i64,
) -> Result<(), BatchError> {
    let plain =
        records::plain_records(header, body, rules.decompressed_bytes_max).map_err(refusal)?;
    let mut keyless = Vec::new();
    let mut max_timestamp = i64::MIN;
    for (index, record) in records::decode(header, &plain).enumerate() {
        let record = record.map_err(refusal)?;
        if record.offset_delta as usize != index {
            return Err(BatchError::invalid(format!(
                "record {index} has offset delta {}",
                record.offset_delta
            )));
        }
        if rules.timestamp_type == TimestampType::CreateTime && rules.origin == BatchOrigin::Client
        {
            check_timestamp(record.timestamp, rules, now_ms)?;
        }
        max_timestamp = max_timestamp.max(record.timestamp);
        if rules.keys_required && record.key.is_none() && keyless.len() < RECORD_ERRORS_MAX {
            keyless.push((
                index as i32,
                "a compacted topic needs a key in every record".to_owned(),
            ));
        }
    }
    if !keyless.is_empty() {
        return Err(BatchError::Invalid {
            reason: format!(
                "{} records have no key; the topic is compacted",
                keyless.len()
            ),
            record_errors: keyless,
        });
    }
    if rules.strict
        && rules.timestamp_type == TimestampType::CreateTime
        && max_timestamp != header.max_timestamp
    {
        return Err(BatchError::invalid(format!(
            "largest timestamp is {max_timestamp} but the header says {}",
            header.max_timestamp
        )));
    }
    Ok(())
}

fn refusal(error: RecordsError) -> BatchError {
    match error {
        // The CRC was right: the client wrote exactly these bytes.
        RecordsError::Codec(error) => BatchError::invalid(error.to_string()),
        RecordsError::Malformed(reason) => BatchError::invalid(reason),
    }
}
