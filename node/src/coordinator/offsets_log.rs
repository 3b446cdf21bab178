//! The records of `__consumer_offsets`, byte for byte as Apache Kafka writes them
//! (`OffsetCommitKey/Value.json`, `GroupMetadataKey/Value.json`).
//!
//! ```text
//! string   int16 length, UTF-8     nullable string: length −1 is null     bytes   int32 length, bytes
//!
//! key      int16 version, then
//!   0, 1   offset commit    group string, topic string, partition int32
//!   2      group metadata   group string
//!   3 …    records of newer coordinators: kept in the log, ignored here
//! value    int16 version, then (absent: a tombstone)
//!   offset commit    offset int64, [3+] leader epoch int32, metadata string, commit timestamp int64,
//!                    [1 only] expire timestamp int64
//!   group metadata   protocol type string, generation int32, protocol nullable string,
//!                    leader nullable string, [2+] state timestamp int64, members int32 count ×
//!                    { member id string, [3+] instance id nullable string, client id string,
//!                      client host string, [1+] rebalance timeout int32, session timeout int32,
//!                      subscription bytes, assignment bytes }
//! version 4 of both values: the same in the flexible encoding (compact lengths, tagged fields);
//!   tag 0 of an offset commit is the topic id, uuid
//! ```
//!
//! Written are versions 1 and 2 of the keys; of an offset commit version 4, and version 1 if it says when
//! it expires; of group metadata version 3. Kafka has read them all since 3.5 (KIP-915).

use std::sync::Arc;

use bytes::Bytes;
use kittiwake_raft::{Topic, TopicId};

const OFFSET_COMMIT_KEY: i16 = 1;
const GROUP_METADATA_KEY: i16 = 2;
const OFFSET_COMMIT_VALUE: i16 = 4;
/// The only version that can say when an offset expires.
const EXPIRING_OFFSET_COMMIT_VALUE: i16 = 1;
const GROUP_METADATA_VALUE: i16 = 3;
const VALUE_VERSION_MAX: i16 = 4;
const FLEXIBLE_FROM: i16 = 4;
/// Tag of the topic id in an offset commit.
const TOPIC_ID_TAG: u32 = 0;

/// Longest string a record can hold, in bytes: its length is a signed 16-bit number.
pub const STRING_BYTES_MAX: usize = i16::MAX as usize;

/// One record of the log, decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum OffsetsRecord {
    /// A committed offset, or its tombstone.
    Offset(OffsetKey, Option<CommittedOffset>),
    /// A group's metadata, or its tombstone.
    Group(Arc<str>, Option<GroupMetadata>),
}

/// What a committed offset is filed under.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct OffsetKey {
    /// Group id.
    pub group: Arc<str>,
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition index.
    pub partition: i32,
}

/// An offset a group has committed for one partition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CommittedOffset {
    /// Next offset to read.
    pub offset: i64,
    /// Leader epoch of the last record read, −1 if unknown (KIP-320).
    pub leader_epoch: i32,
    /// Whatever the client wanted to keep with it.
    pub metadata: Arc<str>,
    /// When it was committed, in wall-clock milliseconds.
    pub commit_timestamp_ms: i64,
    /// When it expires, in wall-clock milliseconds; −1: by `offsets.retention.minutes`. Only old
    /// records carry a time.
    pub expire_timestamp_ms: i64,
    /// The topic it was committed for, which another one of the same name may have replaced; none where
    /// the record does not say: below version 4, which is to say in old ones and in those that expire.
    pub topic_id: Option<TopicId>,
}

impl CommittedOffset {
    /// Whether it was committed for `topic`, the one that has its topic's name now, as far as the record says. What was
    /// committed for another one, which is deleted, may still be here until its tombstone is written.
    pub fn is_of(&self, topic: Option<&Topic>) -> bool {
        topic.is_some_and(|topic| self.topic_id.is_none_or(|id| id == topic.id))
    }
}

/// A classic group as it is stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GroupMetadata {
    /// `consumer`, `connect`, …; empty for a group that never had members.
    pub protocol_type: Arc<str>,
    /// Generation of the group.
    pub generation: i32,
    /// Assignment protocol in use; none without members.
    pub protocol: Option<Arc<str>>,
    /// Member id of the leader; none without members.
    pub leader: Option<Arc<str>>,
    /// When the group entered its state, in wall-clock milliseconds; −1 if unknown.
    pub state_timestamp_ms: i64,
    /// Members, by member id.
    pub members: Vec<MemberMetadata>,
}

/// A member of a classic group as it is stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MemberMetadata {
    /// Member id the coordinator gave it.
    pub member_id: Arc<str>,
    /// Group instance id of a static member (KIP-345).
    pub instance_id: Option<Arc<str>>,
    /// Client id of its last JoinGroup.
    pub client_id: Arc<str>,
    /// Address it joined from, `/127.0.0.1`.
    pub client_host: Arc<str>,
    /// How long the others wait for it in a rebalance, in milliseconds.
    pub rebalance_timeout_ms: i32,
    /// How long it may stay silent, in milliseconds.
    pub session_timeout_ms: i32,
    /// Its metadata for the group's protocol.
    pub subscription: Bytes,
    /// What the leader assigned to it.
    pub assignment: Bytes,
}

/// Why a record could not be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EncodeError {
    /// A string is longer than [`STRING_BYTES_MAX`].
    #[error("a string of {0} bytes does not fit into a record of __consumer_offsets")]
    StringTooLong(usize),
    /// A byte field or an array is longer than an int32 counts.
    #[error("a field of {0} bytes or elements does not fit into a record of __consumer_offsets")]
    FieldTooLong(usize),
}

/// Why a record could not be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The record has no key.
    #[error("no key")]
    NoKey,
    /// A field runs past the end, has a negative length, or is not UTF-8.
    #[error("field `{0}` is damaged")]
    Damaged(&'static str),
    /// A value newer than this node knows.
    #[error("value version {0} is unknown")]
    UnknownValueVersion(i16),
}

/// Key and value of a record; no value is a tombstone.
pub type KeyValue = (Vec<u8>, Option<Vec<u8>>);

/// Encodes a record as Kafka writes it.
///
/// # Errors
/// A field is too long for the format.
pub fn encode(record: &OffsetsRecord) -> Result<KeyValue, EncodeError> {
    Ok(match record {
        OffsetsRecord::Offset(key, value) => {
            let mut out = Writer::version(OFFSET_COMMIT_KEY);
            out.string(&key.group)?;
            out.string(&key.topic)?;
            out.i32(key.partition);
            (out.0, value.as_ref().map(encode_offset).transpose()?)
        }
        OffsetsRecord::Group(group, value) => {
            let mut out = Writer::version(GROUP_METADATA_KEY);
            out.string(group)?;
            (out.0, value.as_ref().map(encode_group).transpose()?)
        }
    })
}

fn encode_offset(value: &CommittedOffset) -> Result<Vec<u8>, EncodeError> {
    if value.expire_timestamp_ms >= 0 {
        return encode_expiring_offset(value);
    }
    let mut out = Writer::version(OFFSET_COMMIT_VALUE);
    out.i64(value.offset);
    out.i32(value.leader_epoch);
    out.compact_string(&value.metadata)?;
    out.i64(value.commit_timestamp_ms);
    match value.topic_id {
        Some(id) => {
            out.unsigned_varint(1);
            out.unsigned_varint(TOPIC_ID_TAG);
            out.unsigned_varint(16);
            out.0.extend_from_slice(id.as_bytes());
        }
        None => out.unsigned_varint(0),
    }
    Ok(out.0)
}

/// What a client asks for that does not know leader epochs (OffsetCommit v2–4).
fn encode_expiring_offset(value: &CommittedOffset) -> Result<Vec<u8>, EncodeError> {
    let mut out = Writer::version(EXPIRING_OFFSET_COMMIT_VALUE);
    out.i64(value.offset);
    out.string(&value.metadata)?;
    out.i64(value.commit_timestamp_ms);
    out.i64(value.expire_timestamp_ms);
    Ok(out.0)
}

fn encode_group(value: &GroupMetadata) -> Result<Vec<u8>, EncodeError> {
    let mut out = Writer::version(GROUP_METADATA_VALUE);
    out.string(&value.protocol_type)?;
    out.i32(value.generation);
    out.nullable_string(value.protocol.as_deref())?;
    out.nullable_string(value.leader.as_deref())?;
    out.i64(value.state_timestamp_ms);
    out.length(value.members.len())?;
    for member in &value.members {
        out.string(&member.member_id)?;
        out.nullable_string(member.instance_id.as_deref())?;
        out.string(&member.client_id)?;
        out.string(&member.client_host)?;
        out.i32(member.rebalance_timeout_ms);
        out.i32(member.session_timeout_ms);
        out.bytes(&member.subscription)?;
        out.bytes(&member.assignment)?;
    }
    Ok(out.0)
}

/// Decodes a record; `Ok(Err(version))` is a key of a version this node does not know, which is
/// another coordinator's business.
///
/// # Errors
/// The record is damaged or its value is newer than this node.
pub fn decode(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
) -> Result<Result<OffsetsRecord, i16>, DecodeError> {
    let mut key = Reader::new(key.ok_or(DecodeError::NoKey)?);
    Ok(Ok(match key.i16("key version")? {
        0 | OFFSET_COMMIT_KEY => OffsetsRecord::Offset(
            OffsetKey {
                group: key.string("group")?,
                topic: key.string("topic")?,
                partition: key.i32("partition")?,
            },
            value.map(decode_offset).transpose()?,
        ),
        GROUP_METADATA_KEY => {
            OffsetsRecord::Group(key.string("group")?, value.map(decode_group).transpose()?)
        }
        other => return Ok(Err(other)),
    }))
}

fn decode_offset(value: &[u8]) -> Result<CommittedOffset, DecodeError> {
    let (mut value, version) = Reader::versioned(value)?;
    let mut committed = CommittedOffset {
        offset: value.i64("offset")?,
        leader_epoch: if version >= 3 {
            value.i32("leader epoch")?
        } else {
            -1
        },
        metadata: value.string("metadata")?,
        commit_timestamp_ms: value.i64("commit timestamp")?,
        expire_timestamp_ms: if version == EXPIRING_OFFSET_COMMIT_VALUE {
            value.i64("expire timestamp")?
        } else {
            -1
        },
        topic_id: None,
    };
    let mut topic_id = None;
    value.tagged_fields(|tag, bytes| {
        if tag == TOPIC_ID_TAG {
            topic_id = Some(bytes);
        }
    })?;
    if let Some(bytes) = topic_id {
        let bytes = bytes
            .try_into()
            .map_err(|_| DecodeError::Damaged("topic id"))?;
        // Zero is Kafka's way to say that it does not know.
        committed.topic_id = TopicId::from_bytes(bytes);
    }
    Ok(committed)
}

fn decode_group(value: &[u8]) -> Result<GroupMetadata, DecodeError> {
    let (mut value, version) = Reader::versioned(value)?;
    let mut group = GroupMetadata {
        protocol_type: value.string("protocol type")?,
        generation: value.i32("generation")?,
        protocol: value.nullable_string("protocol")?,
        leader: value.nullable_string("leader")?,
        state_timestamp_ms: if version >= 2 {
            value.i64("state timestamp")?
        } else {
            -1
        },
        members: Vec::new(),
    };
    for _ in 0..value.array_length("members")? {
        group.members.push(decode_member(&mut value, version)?);
    }
    Ok(group)
}

fn decode_member(value: &mut Reader<'_>, version: i16) -> Result<MemberMetadata, DecodeError> {
    let member_id = value.string("member id")?;
    let instance_id = if version >= 3 {
        value.nullable_string("group instance id")?
    } else {
        None
    };
    let client_id = value.string("client id")?;
    let client_host = value.string("client host")?;
    let rebalance_timeout_ms = if version >= 1 {
        value.i32("rebalance timeout")?
    } else {
        -1
    };
    let session_timeout_ms = value.i32("session timeout")?;
    let member = MemberMetadata {
        member_id,
        instance_id,
        client_id,
        client_host,
        // Version 0 knew one timeout for both.
        rebalance_timeout_ms: if rebalance_timeout_ms == -1 {
            session_timeout_ms
        } else {
            rebalance_timeout_ms
        },
        session_timeout_ms,
        subscription: value.bytes("subscription")?,
        assignment: value.bytes("assignment")?,
    };
    value.tagged_fields(|_, _| {})?;
    Ok(member)
}

struct Writer(Vec<u8>);

impl Writer {
    fn version(version: i16) -> Self {
        Self(version.to_be_bytes().to_vec())
    }

    fn i32(&mut self, value: i32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn string(&mut self, value: &str) -> Result<(), EncodeError> {
        let length =
            i16::try_from(value.len()).map_err(|_| EncodeError::StringTooLong(value.len()))?;
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(value.as_bytes());
        Ok(())
    }

    /// Limited like the others: what reads it back may know no longer ones.
    fn compact_string(&mut self, value: &str) -> Result<(), EncodeError> {
        let length =
            i16::try_from(value.len()).map_err(|_| EncodeError::StringTooLong(value.len()))?;
        self.unsigned_varint(u32::from(length.unsigned_abs()) + 1);
        self.0.extend_from_slice(value.as_bytes());
        Ok(())
    }

    fn unsigned_varint(&mut self, mut value: u32) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.0.push(low & 0x7f);
            }
            self.0.push(low | 0x80);
        }
    }

    fn nullable_string(&mut self, value: Option<&str>) -> Result<(), EncodeError> {
        match value {
            Some(value) => self.string(value),
            None => {
                self.0.extend_from_slice(&(-1_i16).to_be_bytes());
                Ok(())
            }
        }
    }

    fn length(&mut self, length: usize) -> Result<(), EncodeError> {
        self.i32(i32::try_from(length).map_err(|_| EncodeError::FieldTooLong(length))?);
        Ok(())
    }

    fn bytes(&mut self, value: &[u8]) -> Result<(), EncodeError> {
        self.length(value.len())?;
        self.0.extend_from_slice(value);
        Ok(())
    }
}

/// Reads fields in either encoding; every length is checked against what is left.
struct Reader<'a> {
    rest: &'a [u8],
    flexible: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            flexible: false,
        }
    }

    /// Opens a value, whose first field is its version.
    fn versioned(bytes: &'a [u8]) -> Result<(Self, i16), DecodeError> {
        let mut reader = Self::new(bytes);
        let version = reader.i16("value version")?;
        if !(0..=VALUE_VERSION_MAX).contains(&version) {
            return Err(DecodeError::UnknownValueVersion(version));
        }
        reader.flexible = version >= FLEXIBLE_FROM;
        Ok((reader, version))
    }

    fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(DecodeError::Damaged(field))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Damaged(field))?;
        self.rest = rest;
        Ok(*head)
    }

    fn i16(&mut self, field: &'static str) -> Result<i16, DecodeError> {
        self.array(field).map(i16::from_be_bytes)
    }

    fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.array(field).map(i32::from_be_bytes)
    }

    fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.array(field).map(i64::from_be_bytes)
    }

    fn unsigned_varint(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        let mut value = 0_u32;
        for shift in (0..35).step_by(7) {
            let [byte] = self.array(field)?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && bits > 0x0f {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Damaged(field))
    }

    /// A length; −1 is null.
    fn length(&mut self, short: bool, field: &'static str) -> Result<Option<usize>, DecodeError> {
        let length = if self.flexible {
            i64::from(self.unsigned_varint(field)?) - 1
        } else if short {
            i64::from(self.i16(field)?)
        } else {
            i64::from(self.i32(field)?)
        };
        match length {
            -1 => Ok(None),
            length => usize::try_from(length)
                .map(Some)
                .map_err(|_| DecodeError::Damaged(field)),
        }
    }

    fn nullable_string(&mut self, field: &'static str) -> Result<Option<Arc<str>>, DecodeError> {
        let Some(length) = self.length(true, field)? else {
            return Ok(None);
        };
        let bytes = self.take(length, field)?;
        std::str::from_utf8(bytes)
            .map(|text| Some(Arc::from(text)))
            .map_err(|_| DecodeError::Damaged(field))
    }

    fn string(&mut self, field: &'static str) -> Result<Arc<str>, DecodeError> {
        self.nullable_string(field)?
            .ok_or(DecodeError::Damaged(field))
    }

    fn bytes(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        let length = self
            .length(false, field)?
            .ok_or(DecodeError::Damaged(field))?;
        Ok(Bytes::copy_from_slice(self.take(length, field)?))
    }

    /// An element count; the caller reads element by element, so a lying count ends at the last byte.
    fn array_length(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        self.length(false, field)?
            .ok_or(DecodeError::Damaged(field))
    }

    /// Shows the tagged fields at the end of a flexible struct, by tag.
    fn tagged_fields(&mut self, mut field: impl FnMut(u32, &'a [u8])) -> Result<(), DecodeError> {
        const FIELD: &str = "tagged fields";
        if !self.flexible {
            return Ok(());
        }
        for _ in 0..self.unsigned_varint(FIELD)? {
            let tag = self.unsigned_varint(FIELD)?;
            let length = self.unsigned_varint(FIELD)?;
            field(tag, self.take(length as usize, FIELD)?);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "offsets_log_tests.rs"]
mod tests;
