//! Reads records of one topic: at most one Fetch in flight per leader, so what is held in memory is
//! one answer per leader.
//!
//! Reads are uncommitted (records of open and aborted transactions included); control batches are
//! skipped. Fetches are sessionless.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use kafka_wire::fetch_request::{FetchPartition, FetchTopic};
use kafka_wire::fetch_response::PartitionData;
use kafka_wire::{FetchRequest, FetchResponse};
use kafka_wire_core::StrBytes;
use kafka_wire_records::{RecordBatch, RecordBatchDecode, RecordDecodeLimits, RecordHeader};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Client, ClientError, Connection, Topic};
use crate::api::error::ErrorCode;

/// Pause before a refused fetch is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Decompressed records of one fetched partition, at most.
const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;

/// How much is fetched at once and how long is waited.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// How long a broker may hold a fetch that finds nothing.
    pub wait_ms_max: i32,
    /// Bytes that end the wait.
    pub bytes_min: i32,
    /// Bytes of one answer; the first batch comes whole even if it is larger.
    pub bytes_max: i32,
    /// Bytes of one partition in an answer.
    pub partition_bytes_max: i32,
    /// How long failing fetches are repeated before the error is reported.
    pub retry_timeout: Duration,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            wait_ms_max: 500,
            bytes_min: 1,
            bytes_max: 16 << 20,
            partition_bytes_max: 1 << 20,
            retry_timeout: Duration::from_secs(60),
        }
    }
}

/// A record that was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConsumedRecord {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; none is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers.
    pub headers: Vec<RecordHeader>,
}

/// What a fetch task hands back, its connection included.
#[derive(Debug)]
struct Fetched {
    leader: i32,
    answer: Result<(Connection, FetchResponse), ClientError>,
}

/// Reads some partitions of one topic.
#[derive(Debug)]
pub struct Consumer {
    client: Client,
    topic: Topic,
    config: ConsumerConfig,
    /// The next offset to read, by partition.
    positions: BTreeMap<i32, i64>,
    idle: HashMap<i32, Connection>,
    busy: HashSet<i32>,
    fetches: JoinSet<Fetched>,
    failing_since: Option<Instant>,
}

impl Consumer {
    /// Reads the partitions in `positions`, each from its offset on.
    pub fn new(
        client: Client,
        topic: Topic,
        positions: BTreeMap<i32, i64>,
        config: ConsumerConfig,
    ) -> Self {
        Self {
            client,
            topic,
            config,
            positions,
            idle: HashMap::new(),
            busy: HashSet::new(),
            fetches: JoinSet::new(),
            failing_since: None,
        }
    }

    /// The next offset of each partition that is still read.
    pub fn positions(&self) -> &BTreeMap<i32, i64> {
        &self.positions
    }

    /// Reads `partition` no further.
    pub fn stop(&mut self, partition: i32) {
        self.positions.remove(&partition);
    }

    /// The records of the next answer, in order per partition; none when a wait ran out.
    ///
    /// # Errors
    /// A refusal that a retry cannot cure (an offset out of range), damaged records, or failures
    /// that lasted for `retry_timeout`.
    pub async fn next(&mut self) -> Result<Vec<ConsumedRecord>, ClientError> {
        loop {
            self.start_fetches()?;
            let Some(joined) = self.fetches.join_next().await else {
                return Ok(Vec::new());
            };
            // A fetch task neither panics nor is cancelled while the consumer lives.
            let Ok(Fetched { leader, answer }) = joined else {
                continue;
            };
            self.busy.remove(&leader);
            match answer.and_then(|(connection, response)| self.take(leader, connection, &response))
            {
                Ok(records) => {
                    self.failing_since = None;
                    return Ok(records);
                }
                Err(error) => self.recover(error).await?,
            }
        }
    }

    fn start_fetches(&mut self) -> Result<(), ClientError> {
        let mut by_leader: HashMap<i32, Vec<(i32, i64)>> = HashMap::new();
        for (&partition, &offset) in &self.positions {
            by_leader
                .entry(self.topic.leader(partition)?)
                .or_default()
                .push((partition, offset));
        }
        for (leader, mut wanted) in by_leader {
            if !self.busy.insert(leader) {
                continue;
            }
            // The broker fills an answer in request order: start elsewhere each time, so that one
            // busy partition does not starve the rest.
            let first = wanted
                .iter()
                .map(|(_, offset)| *offset as usize)
                .sum::<usize>()
                % wanted.len();
            wanted.rotate_left(first);
            let request = fetch_request(&self.topic.name, &wanted, &self.config);
            let connection = self.idle.remove(&leader);
            let address = self.client.address_of(leader);
            let config = self.client.connection_config().clone();
            self.fetches.spawn(async move {
                let answer = async {
                    let mut connection = match connection {
                        Some(connection) => connection,
                        None => Connection::open(&address?, &config).await?,
                    };
                    let response = connection.call(&request).await?;
                    Ok((connection, response))
                }
                .await;
                Fetched { leader, answer }
            });
        }
        Ok(())
    }

    fn take(
        &mut self,
        leader: i32,
        connection: Connection,
        response: &FetchResponse,
    ) -> Result<Vec<ConsumedRecord>, ClientError> {
        self.idle.insert(leader, connection);
        if response.error_code != ErrorCode::None.code() {
            return Err(ClientError::refused(
                format!("topic {}", self.topic.name),
                response.error_code,
                None,
            ));
        }
        let mut taken = Vec::new();
        let mut refused = None;
        for data in response
            .responses
            .iter()
            .flat_map(|topic| &topic.partitions)
        {
            // A partition that was stopped while its fetch was out.
            let Some(position) = self.positions.get_mut(&data.partition_index) else {
                continue;
            };
            match partition_records(&self.topic.name, data, *position) {
                Ok((records, next)) => {
                    taken.extend(records);
                    *position = next;
                }
                Err(error) => refused = Some(error),
            }
        }
        // Records of the partitions that did answer come first; a refusal comes again with the next fetch.
        match refused {
            Some(error) if taken.is_empty() => Err(error),
            _ => Ok(taken),
        }
    }

    async fn recover(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !error.is_retriable() {
            return Err(error);
        }
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.config.retry_timeout {
            return Err(ClientError::GaveUp {
                after: since.elapsed(),
                reason: Box::new(error),
            });
        }
        sleep(RETRY_PAUSE).await;
        match self.client.topic(&self.topic.name, false).await {
            Ok(topic) => self.topic = topic,
            Err(error) if error.is_retriable() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// A sessionless Fetch of one topic: `(partition, offset)` in the order they are to be served.
pub(crate) fn fetch_request(
    topic: &str,
    wanted: &[(i32, i64)],
    config: &ConsumerConfig,
) -> FetchRequest {
    let mut fetched = FetchTopic::default();
    fetched.topic = StrBytes::from(topic);
    fetched.partitions = wanted
        .iter()
        .map(|&(partition, offset)| {
            let mut asked = FetchPartition::default();
            asked.partition = partition;
            asked.fetch_offset = offset;
            asked.partition_max_bytes = config.partition_bytes_max;
            asked
        })
        .collect();
    let mut request = FetchRequest::default();
    request.max_wait_ms = config.wait_ms_max;
    request.min_bytes = config.bytes_min;
    request.max_bytes = config.bytes_max;
    request.session_epoch = -1;
    request.topics = vec![fetched];
    request
}

/// The records of a fetched partition from `position` on, and the next position. A broker sends the
/// whole batch that holds the position and may cut the last one short.
pub(crate) fn partition_records(
    topic: &str,
    data: &PartitionData,
    position: i64,
) -> Result<(Vec<ConsumedRecord>, i64), ClientError> {
    let subject = format!("{topic}-{}", data.partition_index);
    if data.error_code != ErrorCode::None.code() {
        let asked = format!(
            "offset {position} was asked for; the log starts at {}",
            data.log_start_offset
        );
        let out_of_range = data.error_code == ErrorCode::OffsetOutOfRange.code();
        return Err(ClientError::refused(
            subject,
            data.error_code,
            out_of_range.then_some(asked.as_str()),
        ));
    }
    let damaged = |reason| ClientError::Records {
        subject: subject.clone(),
        reason,
    };
    let mut left = data.records.clone().unwrap_or_default();
    let mut records = Vec::new();
    let mut next = position;
    let mut budget = DECOMPRESSED_BYTES_MAX;
    while !left.is_empty() {
        match RecordBatch::decode_next(&mut left, RecordDecodeLimits::default(), budget)
            .map_err(damaged)?
        {
            RecordBatchDecode::Complete {
                batch,
                additional_retained_payload_bytes,
            } => {
                budget = budget.saturating_sub(additional_retained_payload_bytes);
                let after = batch
                    .base_offset
                    .saturating_add(i64::from(batch.last_offset_delta))
                    .saturating_add(1);
                take_batch(data.partition_index, batch, position, &mut records);
                next = next.max(after);
            }
            _ => break,
        }
    }
    Ok((records, next))
}

fn take_batch(
    partition: i32,
    batch: RecordBatch,
    position: i64,
    records: &mut Vec<ConsumedRecord>,
) {
    if batch.is_control {
        return;
    }
    for record in batch.records {
        let offset = batch.base_offset + i64::from(record.offset_delta);
        if offset >= position {
            records.push(ConsumedRecord {
                partition,
                offset,
                timestamp_ms: batch.base_timestamp.saturating_add(record.timestamp_delta),
                key: record.key,
                value: record.value,
                headers: record.headers,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use kafka_wire_core::{ApiVersion, DecodeLimits, KafkaDecode as _, KafkaEncode as _};

    use super::*;
    use crate::client::{Codec, RecordData, encode_batch};

    #[test]
    fn a_request_decodes_to_what_was_asked_in_every_version_we_use() {
        let request = fetch_request("logs", &[(3, 70), (1, 5)], &ConsumerConfig::default());
        for version in 4..=12 {
            let version = ApiVersion::new(version);
            let bytes = request.encode_to_bytes(version).unwrap();
            let decoded =
                FetchRequest::decode_from_bytes(bytes, version, DecodeLimits::default()).unwrap();
            assert_eq!((decoded.replica_id, decoded.isolation_level), (-1, 0));
            let asked: Vec<_> = decoded.topics[0]
                .partitions
                .iter()
                .map(|partition| (partition.partition, partition.fetch_offset))
                .collect();
            assert_eq!(
                asked,
                [(3, 70), (1, 5)],
                "in the order given, v{}",
                version.value()
            );
        }
    }

    fn fetched(batches: &[(i64, usize)], cut: usize) -> PartitionData {
        let mut bytes = Vec::new();
        for &(base_offset, count) in batches {
            let mut batch = encode_batch(&vec![RecordData::default(); count], Codec::Lz4)
                .unwrap()
                .to_vec();
            batch[..8].copy_from_slice(&base_offset.to_be_bytes());
            bytes.extend(batch);
        }
        bytes.truncate(bytes.len() - cut);
        let mut data = PartitionData::default();
        data.records = Some(Bytes::from(bytes));
        data
    }

    #[test]
    fn records_before_the_position_are_filtered_and_a_cut_batch_waits_for_the_next_fetch() {
        let (records, next) = partition_records("t", &fetched(&[(10, 5), (15, 2)], 0), 12).unwrap();
        assert_eq!(
            records
                .iter()
                .map(|record| record.offset)
                .collect::<Vec<_>>(),
            [12, 13, 14, 15, 16]
        );
        assert_eq!(next, 17);
        let (records, next) = partition_records("t", &fetched(&[(10, 5), (15, 2)], 1), 10).unwrap();
        assert_eq!((records.len(), next), (5, 15));
    }

    #[test]
    fn nothing_fetched_leaves_the_position_where_it_was() {
        let (records, next) = partition_records("t", &PartitionData::default(), 42).unwrap();
        assert_eq!((records.len(), next), (0, 42));
    }

    #[test]
    fn an_offset_out_of_range_says_which() {
        let mut data = PartitionData::default();
        data.error_code = 1;
        data.log_start_offset = 100;
        let error = partition_records("t", &data, 7).unwrap_err();
        assert_eq!(
            error.to_string(),
            "t-0: OFFSET_OUT_OF_RANGE (offset 7 was asked for; the log starts at 100)"
        );
        assert!(!error.is_retriable());
    }

    #[test]
    fn a_flipped_bit_is_reported_not_shown() {
        let mut data = fetched(&[(0, 3)], 0);
        let mut bytes = data.records.take().unwrap().to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        data.records = Some(Bytes::from(bytes));
        assert!(partition_records("t", &data, 0).is_err());
    }
}
