//! The records inside a batch, for the few who look: coordinators, the CLI, topics that need keys, `log dump`.
//!
//! ```text
//! | length | attributes | timestamp | offset  | key    | key | value  | value | headers | headers ...
//! |        | i8, unused | delta     | delta   | length |     | length |       | count   | (key length, key, value length, value)
//! ```
//!
//! Every number but the attributes is a zigzag varint; a length of −1 is null. Deltas count from the header's base
//! offset and base timestamp. Produce and Fetch never come here: they move whole batches.

use std::borrow::Cow;

use thiserror::Error;

use crate::batch::{
    Attributes, BatchError, BatchHeader, CodecError, Compression, HEADER_LEN, MAGIC_V2,
    NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, NO_TIMESTAMP, SIZE_PREFIX_LEN, TimestampType,
    seal,
};
use crate::{LeaderEpoch, Offset};

/// Records that cannot be read.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum RecordsError {
    /// They do not decompress, or expand past the reader's limit.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// They are not what their own lengths or the header say.
    #[error("malformed records: {0}")]
    Malformed(String),
}

/// One record of a batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Record<'a> {
    /// Its place in the partition.
    pub offset: Offset,
    /// Its offset less the batch's base offset.
    pub offset_delta: i32,
    /// Ms since 1970, or [`NO_TIMESTAMP`]; the batch's for LogAppendTime.
    pub timestamp: i64,
    /// What compaction and partitioning go by.
    pub key: Option<&'a [u8]>,
    /// The payload; null is a tombstone.
    pub value: Option<&'a [u8]>,
    headers: Headers<'a>,
}

impl<'a> Record<'a> {
    /// The headers in order (KIP-82); keys may repeat.
    #[must_use]
    pub fn headers(&self) -> Headers<'a> {
        self.headers
    }
}

/// The headers of one record, already found well-formed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Headers<'a> {
    rest: &'a [u8],
    count: usize,
}

impl<'a> Iterator for Headers<'a> {
    /// Key and value. The protocol wants keys in UTF-8, but no broker checks.
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.count == 0 {
            return None;
        }
        let mut reader = Reader { rest: self.rest };
        let header = reader.header().ok()?;
        self.rest = reader.rest;
        self.count -= 1;
        Some(header)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Headers<'_> {}

/// The batches in `bytes`, as a Fetch response or a file holds them: each with its header and its records.
///
/// A last batch that is cut short ends the iteration silently: a Fetch may stop anywhere. CRCs are not checked.
pub fn batches(bytes: &[u8]) -> Batches<'_> {
    Batches { rest: bytes }
}

/// See [`batches`].
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<(BatchHeader, &'a [u8]), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.len() < HEADER_LEN {
            return None;
        }
        let header = match BatchHeader::parse(self.rest) {
            Ok(header) => header,
            Err(error) => {
                self.rest = &[];
                return Some(Err(error));
            }
        };
        let (batch, rest) = self.rest.split_at_checked(header.size())?;
        self.rest = rest;
        Some(Ok((header, &batch[HEADER_LEN..])))
    }
}

/// The records of a batch as plain bytes; `limit` bounds what they may expand to.
pub fn plain_records<'a>(
    header: &BatchHeader,
    body: &'a [u8],
    limit: usize,
) -> Result<Cow<'a, [u8]>, RecordsError> {
    match header.compression() {
        Compression::None => Ok(Cow::Borrowed(body)),
        codec => Ok(Cow::Owned(codec.decompress(body, limit)?)),
    }
}

/// Decodes plain records (see [`plain_records`]): as many as the header counts, and nothing after them.
///
/// The first error ends the iteration.
pub fn decode<'a>(header: &BatchHeader, plain: &'a [u8]) -> Records<'a> {
    Records {
        header: *header,
        reader: Reader { rest: plain },
        remaining: header.records_count,
        done: false,
    }
}

/// See [`decode`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    header: BatchHeader,
    reader: Reader<'a>,
    remaining: i32,
    done: bool,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        if self.remaining == 0 {
            self.done = true;
            let trailing = self.reader.rest.len();
            return (trailing != 0)
                .then(|| Err(malformed(format!("{trailing} bytes after the last record"))));
        }
        self.remaining -= 1;
        let record = self.reader.record(&self.header);
        self.done = record.is_err();
        Some(record)
    }
}

fn malformed(reason: impl Into<String>) -> RecordsError {
    RecordsError::Malformed(reason.into())
}

/// What is left of the records to decode.
#[derive(Clone, Debug)]
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], RecordsError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| {
            malformed(format!("{length} bytes claimed, {} left", self.rest.len()))
        })?;
        self.rest = rest;
        Ok(taken)
    }

    fn varlong(&mut self) -> Result<i64, RecordsError> {
        let mut zigzag = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                break;
            }
            zigzag |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
            }
        }
        Err(malformed("varint of more than 64 bits"))
    }

    fn varint(&mut self) -> Result<i32, RecordsError> {
        let long = self.varlong()?;
        i32::try_from(long).map_err(|_| malformed(format!("varint {long} does not fit 32 bits")))
    }

    fn length(&mut self, of: &str) -> Result<usize, RecordsError> {
        let length = self.varint()?;
        usize::try_from(length).map_err(|_| malformed(format!("{of} {length}")))
    }

    fn nullable_bytes(&mut self, of: &str) -> Result<Option<&'a [u8]>, RecordsError> {
        match self.varint()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length)
                    .map_err(|_| malformed(format!("{of} length {length}")))?;
                self.take(length).map(Some)
            }
        }
    }

    fn header(&mut self) -> Result<(&'a [u8], Option<&'a [u8]>), RecordsError> {
        let key_length = self.length("header key length")?;
        let key = self.take(key_length)?;
        Ok((key, self.nullable_bytes("header value")?))
    }

    /// Steps over `count` headers and returns them; none of them is allocated.
    fn headers(&mut self) -> Result<Headers<'a>, RecordsError> {
        let count = self.length("headers count")?;
        // Two bytes is the shortest header: a count that cannot be true is not worth counting to.
        if count > self.rest.len() / 2 {
            return Err(malformed(format!(
                "{count} headers in {} bytes",
                self.rest.len()
            )));
        }
        let start = self.rest;
        for _ in 0..count {
            self.header()?;
        }
        let rest = &start[..start.len() - self.rest.len()];
        Ok(Headers { rest, count })
    }

    fn record(&mut self, header: &BatchHeader) -> Result<Record<'a>, RecordsError> {
        let length = self.length("record length")?;
        let mut body = Reader {
            rest: self.take(length)?,
        };
        body.take(1)?; // attributes: no bit is defined
        let timestamp_delta = body.varlong()?;
        let offset_delta = body.varint()?;
        if !(0..=header.last_offset_delta).contains(&offset_delta) {
            return Err(malformed(format!(
                "offset delta {offset_delta} in a batch that ends at {}",
                header.last_offset_delta
            )));
        }
        let key = body.nullable_bytes("key")?;
        let value = body.nullable_bytes("value")?;
        let headers = body.headers()?;
        if !body.rest.is_empty() {
            return Err(malformed(format!(
                "{} bytes after the record's headers",
                body.rest.len()
            )));
        }
        let timestamp = match header.timestamp_type() {
            TimestampType::CreateTime => header.base_timestamp.wrapping_add(timestamp_delta),
            TimestampType::LogAppendTime => header.max_timestamp,
        };
        Ok(Record {
            offset: header.base_offset + i64::from(offset_delta),
            offset_delta,
            timestamp,
            key,
            value,
            headers,
        })
    }
}

/// Records that do not make a batch.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A batch has one record at least.
    #[error("a batch without records")]
    Empty,
    /// Sizes in a batch are 31 bits.
    #[error("a batch of more than 2 GiB or 2^31 records")]
    TooLarge,
    /// The codec failed.
    #[error("compression failed: {0}")]
    Compression(#[from] std::io::Error),
}

/// Builds one batch, ready to be produced: base offset 0, no leader epoch.
///
/// ```
/// use kittiwake_storage::{Compression, RecordsBuilder};
///
/// let mut builder = RecordsBuilder::new(Compression::Lz4);
/// builder.push(1_700_000_000_000, Some(b"key"), Some(b"value"), &[]);
/// let batch = builder.build()?;
/// # Ok::<(), kittiwake_storage::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RecordsBuilder {
    header: BatchHeader,
    records: Vec<u8>,
    count: usize,
}

impl RecordsBuilder {
    /// An empty batch of this codec.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self {
            header: BatchHeader {
                base_offset: Offset::ZERO,
                batch_length: 0,
                leader_epoch: LeaderEpoch::NONE,
                magic: MAGIC_V2,
                crc: 0,
                attributes: Attributes::new(compression),
                last_offset_delta: -1,
                base_timestamp: NO_TIMESTAMP,
                max_timestamp: NO_TIMESTAMP,
                producer_id: NO_PRODUCER_ID,
                producer_epoch: NO_PRODUCER_EPOCH,
                base_sequence: NO_SEQUENCE,
                records_count: 0,
            },
            records: Vec::new(),
            count: 0,
        }
    }

    /// Makes the batch an idempotent producer's; `base_sequence` is its first record's.
    #[must_use]
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        self.header.producer_id = id;
        self.header.producer_epoch = epoch;
        self.header.base_sequence = base_sequence;
        self
    }

    /// Makes the batch part of its producer's transaction.
    #[must_use]
    pub fn transactional(mut self) -> Self {
        self.header.attributes = self.header.attributes.with_transactional(true);
        self
    }

    /// Makes the batch a control batch.
    #[must_use]
    pub fn control(mut self) -> Self {
        self.header.attributes = self.header.attributes.with_control(true);
        self
    }

    /// Places the batch as a leader would.
    #[must_use]
    pub fn placed(mut self, base_offset: Offset, leader_epoch: LeaderEpoch) -> Self {
        self.header.base_offset = base_offset;
        self.header.leader_epoch = leader_epoch;
        self
    }

    /// Adds a record; `timestamp` in ms since 1970.
    pub fn push(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) {
        if self.count == 0 {
            self.header.base_timestamp = timestamp;
            self.header.max_timestamp = timestamp;
        }
        self.header.max_timestamp = self.header.max_timestamp.max(timestamp);
        let mut record = vec![0]; // attributes
        put_varlong(
            &mut record,
            timestamp.wrapping_sub(self.header.base_timestamp),
        );
        put_varlong(&mut record, self.count as i64);
        put_nullable(&mut record, key);
        put_nullable(&mut record, value);
        put_varlong(&mut record, headers.len() as i64);
        for (key, value) in headers {
            put_nullable(&mut record, Some(key));
            put_nullable(&mut record, *value);
        }
        put_varlong(&mut self.records, record.len() as i64);
        self.records.extend_from_slice(&record);
        self.count += 1;
    }

    /// Records so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the batch so far, before compression.
    #[must_use]
    pub fn size(&self) -> usize {
        HEADER_LEN + self.records.len()
    }

    /// The batch.
    pub fn build(self) -> Result<Vec<u8>, BuildError> {
        let count = i32::try_from(self.count).map_err(|_| BuildError::TooLarge)?;
        if count == 0 {
            return Err(BuildError::Empty);
        }
        i32::try_from(self.size()).map_err(|_| BuildError::TooLarge)?;
        let body = match self.header.compression() {
            Compression::None => self.records,
            codec => codec.compress(&self.records)?,
        };
        let length = HEADER_LEN - SIZE_PREFIX_LEN + body.len();
        let mut header = BatchHeader {
            batch_length: i32::try_from(length).map_err(|_| BuildError::TooLarge)?,
            last_offset_delta: count - 1,
            records_count: count,
            ..self.header
        };
        seal(&mut header, &body);
        let mut batch = Vec::with_capacity(header.size());
        batch.extend_from_slice(&header.encode());
        batch.extend_from_slice(&body);
        Ok(batch)
    }
}

fn put_varlong(out: &mut Vec<u8>, number: i64) {
    let mut zigzag = ((number << 1) ^ (number >> 63)) as u64;
    while zigzag >= 0x80 {
        out.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    out.push(zigzag as u8);
}

fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varlong(out, -1),
        Some(bytes) => {
            put_varlong(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests;
