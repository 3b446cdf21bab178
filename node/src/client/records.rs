//! Records as a user sees them, and the batch (magic 2) that carries them.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kafka_wire_core::StrBytes;
use kafka_wire_records::{
    Compression, Record, RecordBatch, RecordEncodeLimits, RecordHeader, TimestampType,
};

use super::ClientError;

/// A batch's compression, by Kafka's names.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Not compressed.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// snappy in xerial framing.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// zstd, level 3.
    Zstd,
}

impl From<Codec> for Compression {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::None => Self::None,
            Codec::Gzip => Self::Gzip,
            Codec::Snappy => Self::Snappy,
            Codec::Lz4 => Self::Lz4,
            Codec::Zstd => Self::Zstd,
        }
    }
}

/// One record to write.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RecordData {
    /// Decides the partition; none spreads records over all.
    pub key: Option<Bytes>,
    /// None is a tombstone.
    pub value: Option<Bytes>,
    /// In order; keys may repeat.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// Varints and the attribute byte of one record, at most: length 5, attributes 1, timestamp 10,
/// offset 5, key length 5, value length 5, header count 5.
const RECORD_OVERHEAD_BYTES: usize = 36;
/// Varints of one header, at most.
const HEADER_OVERHEAD_BYTES: usize = 10;

impl RecordData {
    /// Bytes this record takes in an uncompressed batch, at most.
    pub fn encoded_len_max(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(key, value)| {
                key.len() + value.as_ref().map_or(0, Bytes::len) + HEADER_OVERHEAD_BYTES
            })
            .sum();
        let key = self.key.as_ref().map_or(0, Bytes::len);
        let value = self.value.as_ref().map_or(0, Bytes::len);
        RECORD_OVERHEAD_BYTES + key + value + headers
    }
}

/// Milliseconds since 1970, the time a record carries; a clock before that counts as 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// One batch of `records` as a client sends it: base offset 0, no leader epoch, no producer id.
///
/// # Errors
/// [`ClientError::Records`] past the codec's limits (100 MiB). `records` is not empty: Kafka has no
/// empty batch.
pub fn encode_batch(records: &[RecordData], codec: Codec) -> Result<Bytes, ClientError> {
    let base_timestamp = records.first().map_or(0, |record| record.timestamp_ms);
    let max_timestamp = records
        .iter()
        .map(|record| record.timestamp_ms)
        .max()
        .unwrap_or(base_timestamp);
    let batch = RecordBatch {
        base_offset: 0,
        last_offset_delta: records.len().saturating_sub(1) as i32,
        partition_leader_epoch: -1,
        compression: codec.into(),
        timestamp_type: TimestampType::CreateTime,
        is_transactional: false,
        is_control: false,
        has_delete_horizon: false,
        base_timestamp,
        max_timestamp,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        records: records
            .iter()
            .zip(0..)
            .map(|(record, offset_delta)| wire_record(record, offset_delta, base_timestamp))
            .collect(),
    };
    batch
        .encode_to_bytes(RecordEncodeLimits::default())
        .map_err(|reason| ClientError::Records {
            subject: "a batch to write".to_owned(),
            reason,
        })
}

fn wire_record(record: &RecordData, offset_delta: i32, base_timestamp: i64) -> Record {
    Record {
        attributes: 0,
        timestamp_delta: record.timestamp_ms - base_timestamp,
        offset_delta,
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record
            .headers
            .iter()
            .map(|(key, value)| RecordHeader {
                key: StrBytes::from(key.as_str()),
                value: value.clone(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use kafka_wire_records::RecordDecodeLimits;

    use super::*;

    #[test]
    fn a_batch_of_every_codec_comes_back_as_it_was() {
        let records: Vec<RecordData> = (0..100)
            .map(|number| RecordData {
                key: (number % 3 == 0).then(|| Bytes::from(format!("k{number}"))),
                value: (number % 7 != 0).then(|| Bytes::from(vec![number as u8; number])),
                headers: vec![
                    ("h".to_owned(), None),
                    ("h".to_owned(), Some(Bytes::from_static(b"v"))),
                ],
                timestamp_ms: 1_000 - number as i64,
            })
            .collect();
        for codec in [
            Codec::None,
            Codec::Gzip,
            Codec::Snappy,
            Codec::Lz4,
            Codec::Zstd,
        ] {
            let mut bytes = encode_batch(&records, codec).unwrap();
            let size_max = records
                .iter()
                .map(RecordData::encoded_len_max)
                .sum::<usize>()
                + 61;
            assert!(codec != Codec::None || bytes.len() <= size_max);
            let batch = RecordBatch::decode(&mut bytes, RecordDecodeLimits::default()).unwrap();
            assert!(bytes.is_empty(), "one batch and nothing behind it");
            assert_eq!(batch.compression, codec.into());
            assert_eq!(batch.last_offset_delta, 99);
            assert_eq!((batch.base_timestamp, batch.max_timestamp), (1_000, 1_000));
            for (decoded, written) in batch.records.iter().zip(&records) {
                assert_eq!(
                    (&decoded.key, &decoded.value),
                    (&written.key, &written.value)
                );
                assert_eq!(
                    batch.base_timestamp + decoded.timestamp_delta,
                    written.timestamp_ms
                );
                assert_eq!(decoded.headers.len(), 2);
            }
        }
    }
}
