//! Encodes a Fetch response as a [`SendPlan`]: header bytes, slice, bytes, slice, …
//!
//! Kafka's generated encoder needs the records in memory; ours leaves them in their files, which is why it exists
//! (`docs/adr/0004-own-fetch-encoder.md`). Field by field it follows FetchResponse.json, versions 4–18:
//!
//! ```text
//! Response   := throttle_time_ms:i32  [7+ error_code:i16 session_id:i32]  topics:array<Topic>  tags(16+: 0 = endpoints)
//! Topic      := [≤12 name:string | 13+ topic_id:uuid]  partitions:array<Partition>  tags
//! Partition  := index:i32 error_code:i16 high_watermark:i64 last_stable_offset:i64 [5+ log_start_offset:i64]
//!               aborted_transactions:nullable_array  [11+ preferred_read_replica:i32]  records
//!               tags(12+: 0 = diverging epoch, 1 = current leader)
//! ```
//!
//! From v12 on everything is flexible (compact lengths, tagged fields). Nothing to return is an *empty* records field,
//! never null: librdkafka takes null for a protocol error.

use bytes::{BufMut, BytesMut};
use kafka_wire_core::{StrBytes, Uuid};
use kittiwake_storage::FileSlice;

use crate::api::ErrorCode;
use crate::wire::send_plan::SendPlan;

const FLEXIBLE_FROM: i16 = 12;
const TOPIC_IDS_FROM: i16 = 13;
const ENDPOINTS_FROM: i16 = 16;

/// "Not known", for offsets in a response with an error.
pub(super) const UNKNOWN_OFFSET: i64 = -1;
const NO_PREFERRED_REPLICA: i32 = -1;

/// A whole response.
#[derive(Debug, Default)]
pub(super) struct Response {
    /// An error of the request as a whole.
    pub error: Option<ErrorCode>,
    /// The session this belongs to, or 0.
    pub session_id: i32,
    /// Topics, in serving order; one may come more than once.
    pub topics: Vec<Topic>,
    /// Endpoints of the leaders named in partitions (KIP-951).
    pub endpoints: Vec<Endpoint>,
}

/// Partitions of one topic.
#[derive(Debug)]
pub(super) struct Topic {
    /// Its name, used below v13.
    pub name: StrBytes,
    /// Its id, used from v13 on.
    pub id: Uuid,
    /// Its partitions.
    pub partitions: Vec<Partition>,
}

/// One partition.
#[derive(Debug)]
pub(super) struct Partition {
    /// Its number.
    pub index: i32,
    /// What went wrong, or none.
    pub error: ErrorCode,
    /// High watermark; −1 with an error.
    pub high_watermark: i64,
    /// Last stable offset; −1 with an error.
    pub last_stable_offset: i64,
    /// Log start offset; −1 with an error.
    pub log_start_offset: i64,
    /// Whether the reader is read_committed: the list of aborted transactions is then empty, else null.
    pub read_committed: bool,
    /// Where the reader's history leaves ours (KIP-595): epoch and its end offset.
    pub diverging: Option<(i32, i64)>,
    /// The current leader and its epoch, where the reader has another in mind (KIP-951).
    pub current_leader: Option<(i32, i32)>,
    /// A follower that the reader had better read from (KIP-392).
    pub preferred_read_replica: Option<i32>,
    /// The records.
    pub slices: Vec<FileSlice>,
}

impl Partition {
    /// A partition that answers nothing but `error`.
    pub(super) fn failed(index: i32, error: ErrorCode) -> Self {
        Self {
            index,
            error,
            high_watermark: UNKNOWN_OFFSET,
            last_stable_offset: UNKNOWN_OFFSET,
            log_start_offset: UNKNOWN_OFFSET,
            read_committed: false,
            diverging: None,
            current_leader: None,
            preferred_read_replica: None,
            slices: Vec::new(),
        }
    }

    /// Bytes of its records.
    pub(super) fn records_len(&self) -> usize {
        self.slices
            .iter()
            .map(|slice| slice.length() as usize)
            .sum()
    }
}

/// Where a broker is reached.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Its id.
    pub node_id: i32,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Its rack.
    pub rack: Option<String>,
}

/// Encodes `response` to the request with `correlation_id`.
pub(super) fn encode(response: Response, correlation_id: i32, version: i16) -> SendPlan {
    let mut encoder = Encoder {
        plan: SendPlan::default(),
        bytes: BytesMut::with_capacity(256),
        version,
    };
    encoder.bytes.put_i32(0);
    encoder.bytes.put_i32(correlation_id);
    encoder.no_tags();
    encoder.response(response);
    let Encoder {
        mut plan, bytes, ..
    } = encoder;
    plan.push_bytes(bytes);
    plan.set_frame_size();
    plan
}

struct Encoder {
    plan: SendPlan,
    /// Encoded since the last slice.
    bytes: BytesMut,
    version: i16,
}

impl Encoder {
    fn response(&mut self, response: Response) {
        self.bytes.put_i32(0);
        if self.version >= 7 {
            self.bytes
                .put_i16(response.error.unwrap_or(ErrorCode::None).code());
            self.bytes.put_i32(response.session_id);
        }
        self.array_len(response.topics.len());
        for topic in response.topics {
            self.topic(topic);
        }
        if self.version >= ENDPOINTS_FROM && !response.endpoints.is_empty() {
            self.tagged(&[(0, endpoints(&response.endpoints))]);
        } else {
            self.no_tags();
        }
    }

    fn topic(&mut self, topic: Topic) {
        if self.version >= TOPIC_IDS_FROM {
            self.bytes.put_slice(topic.id.as_bytes());
        } else {
            self.string(&topic.name);
        }
        self.array_len(topic.partitions.len());
        for partition in topic.partitions {
            self.partition(partition);
        }
        self.no_tags();
    }

    fn partition(&mut self, partition: Partition) {
        self.bytes.put_i32(partition.index);
        self.bytes.put_i16(partition.error.code());
        self.bytes.put_i64(partition.high_watermark);
        self.bytes.put_i64(partition.last_stable_offset);
        if self.version >= 5 {
            self.bytes.put_i64(partition.log_start_offset);
        }
        if partition.read_committed {
            self.array_len(0);
        } else {
            self.null_array();
        }
        if self.version >= 11 {
            let preferred = partition.preferred_read_replica;
            self.bytes
                .put_i32(preferred.unwrap_or(NO_PREFERRED_REPLICA));
        }
        self.records(partition.slices);
        let mut tags = Vec::new();
        if let Some((epoch, end_offset)) = partition.diverging {
            let mut field = BytesMut::new();
            field.put_i32(epoch);
            field.put_i64(end_offset);
            field.put_u8(0);
            tags.push((0, field));
        }
        if let Some((leader, epoch)) = partition.current_leader {
            let mut field = BytesMut::new();
            field.put_i32(leader);
            field.put_i32(epoch);
            field.put_u8(0);
            tags.push((1, field));
        }
        self.tagged(&tags);
    }

    fn records(&mut self, slices: Vec<FileSlice>) {
        let length: usize = slices.iter().map(|slice| slice.length() as usize).sum();
        if self.flexible() {
            put_unsigned_varint(&mut self.bytes, length as u32 + 1);
        } else {
            self.bytes.put_i32(length as i32);
        }
        if slices.is_empty() {
            return;
        }
        self.plan.push_bytes(self.bytes.split());
        for slice in slices {
            self.plan.push_slice(slice);
        }
    }

    fn flexible(&self) -> bool {
        self.version >= FLEXIBLE_FROM
    }

    fn array_len(&mut self, length: usize) {
        if self.flexible() {
            put_unsigned_varint(&mut self.bytes, length as u32 + 1);
        } else {
            self.bytes.put_i32(length as i32);
        }
    }

    fn null_array(&mut self) {
        if self.flexible() {
            self.bytes.put_u8(0);
        } else {
            self.bytes.put_i32(-1);
        }
    }

    fn string(&mut self, value: &str) {
        if self.flexible() {
            put_compact_string(&mut self.bytes, value);
        } else {
            self.bytes.put_i16(value.len() as i16);
            self.bytes.put_slice(value.as_bytes());
        }
    }

    fn no_tags(&mut self) {
        self.tagged(&[]);
    }

    fn tagged(&mut self, fields: &[(u32, BytesMut)]) {
        if !self.flexible() {
            return;
        }
        put_unsigned_varint(&mut self.bytes, fields.len() as u32);
        for (tag, field) in fields {
            put_unsigned_varint(&mut self.bytes, *tag);
            put_unsigned_varint(&mut self.bytes, field.len() as u32);
            self.bytes.put_slice(field);
        }
    }
}

fn endpoints(endpoints: &[Endpoint]) -> BytesMut {
    let mut field = BytesMut::new();
    put_unsigned_varint(&mut field, endpoints.len() as u32 + 1);
    for endpoint in endpoints {
        field.put_i32(endpoint.node_id);
        put_compact_string(&mut field, &endpoint.host);
        field.put_i32(i32::from(endpoint.port));
        match &endpoint.rack {
            Some(rack) => put_compact_string(&mut field, rack),
            None => field.put_u8(0),
        }
        field.put_u8(0);
    }
    field
}

fn put_compact_string(bytes: &mut BytesMut, value: &str) {
    put_unsigned_varint(bytes, value.len() as u32 + 1);
    bytes.put_slice(value.as_bytes());
}

fn put_unsigned_varint(bytes: &mut BytesMut, mut value: u32) {
    while value >= 0x80 {
        bytes.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::send_plan::flatten;
    use kafka_wire::FetchResponse;
    use kafka_wire_core::{ApiVersion, Bytes, DecodeLimits, KafkaDecode};
    use std::io::Write;
    use std::sync::Arc;

    const FILE: &[u8] = b"0123456789abcdef";

    fn slice(position: u64, length: u32) -> FileSlice {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(FILE).unwrap();
        FileSlice::new(Arc::new(file), position, length, true)
    }

    fn sample() -> Response {
        let full = Partition {
            index: 7,
            error: ErrorCode::None,
            high_watermark: 90,
            last_stable_offset: 80,
            log_start_offset: 3,
            read_committed: true,
            diverging: None,
            current_leader: None,
            preferred_read_replica: Some(7),
            slices: vec![slice(2, 4), slice(10, 3)],
        };
        let empty = Partition {
            index: 8,
            read_committed: false,
            slices: Vec::new(),
            ..Partition::failed(8, ErrorCode::None)
        };
        let moved = Partition {
            diverging: Some((4, 44)),
            current_leader: Some((2, 5)),
            ..Partition::failed(9, ErrorCode::NotLeaderOrFollower)
        };
        Response {
            error: None,
            session_id: 77,
            topics: vec![
                Topic {
                    name: "a".into(),
                    id: Uuid::from_bytes([1; 16]),
                    partitions: vec![full, empty],
                },
                Topic {
                    name: "b".into(),
                    id: Uuid::from_bytes([2; 16]),
                    partitions: vec![moved],
                },
            ],
            endpoints: vec![Endpoint {
                node_id: 2,
                host: "h".into(),
                port: 9092,
                rack: Some("r".into()),
            }],
        }
    }

    /// What we encode by hand is what Kafka's generated decoder reads, in every version we advertise.
    #[test]
    fn every_version_decodes_as_kafkas_schema_says() {
        for version in 4..=18 {
            let plan = encode(sample(), 1234, version);
            let bytes = flatten(plan);
            assert_eq!(
                &bytes[..4],
                &((bytes.len() - 4) as i32).to_be_bytes(),
                "size of v{version}"
            );
            assert_eq!(&bytes[4..8], &1234i32.to_be_bytes());
            let header_len = if version >= FLEXIBLE_FROM { 9 } else { 8 };
            let body = Bytes::copy_from_slice(&bytes[header_len..]);
            let decoded = FetchResponse::decode_from_bytes(
                body,
                ApiVersion::new(version),
                DecodeLimits::default(),
            )
            .unwrap();
            assert_eq!(decoded.session_id, if version >= 7 { 77 } else { 0 });
            let full = &decoded.responses[0].partitions[0];
            assert_eq!(full.records.as_deref(), Some(&b"2345abc"[..]), "v{version}");
            assert_eq!((full.high_watermark, full.last_stable_offset), (90, 80));
            assert_eq!(full.aborted_transactions.as_ref().map(Vec::len), Some(0));
            let empty = &decoded.responses[0].partitions[1];
            assert_eq!(
                empty.records.as_deref(),
                Some(&b""[..]),
                "empty, never null"
            );
            assert!(empty.aborted_transactions.is_none());
            let moved = &decoded.responses[1].partitions[0];
            assert_eq!(moved.error_code, 6);
            if version >= FLEXIBLE_FROM {
                assert_eq!(
                    (
                        moved.diverging_epoch.epoch,
                        moved.diverging_epoch.end_offset
                    ),
                    (4, 44)
                );
                assert_eq!(
                    (
                        moved.current_leader.leader_id,
                        moved.current_leader.leader_epoch
                    ),
                    (2, 5)
                );
            }
            if version >= TOPIC_IDS_FROM {
                assert_eq!(decoded.responses[1].topic_id, Uuid::from_bytes([2; 16]));
            } else {
                assert_eq!(&*decoded.responses[1].topic, "b");
            }
            if version >= ENDPOINTS_FROM {
                assert_eq!(decoded.node_endpoints[0].port, 9092);
            }
        }
    }
}
