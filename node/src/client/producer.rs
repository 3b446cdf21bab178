//! Writes records in batches and says of every one whether it was written.
//!
//! Records gather per partition. When a batch or the whole request is full, or the caller flushes,
//! every leader gets one Produce request with all its batches, and the call returns when all are
//! answered: with one request in flight per leader, a retry cannot overtake a later batch.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_wire::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_wire::{ProduceRequest, ProduceResponse};
use kafka_wire_core::StrBytes;
use tokio::time::{Instant, sleep};

use super::{
    Client, ClientError, Codec, Connection, RecordData, Topic, encode_batch, partition_for_key,
};
use crate::api::error::ErrorCode;

/// Pause before a refused batch is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Which replicas must have a record before the broker answers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum, serde::Serialize)]
pub enum Acks {
    /// No answer at all.
    #[value(name = "0")]
    #[serde(rename = "0")]
    None,
    /// The leader.
    #[value(name = "1")]
    #[serde(rename = "1")]
    Leader,
    /// Every in-sync replica.
    #[default]
    #[serde(rename = "all")]
    All,
}

impl Acks {
    /// The number in a Produce request.
    pub const fn wire(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Leader => 1,
            Self::All => -1,
        }
    }
}

/// How records are gathered and sent.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Which replicas must have a record.
    pub acks: Acks,
    /// Compression of every batch.
    pub codec: Codec,
    /// A partition's batch is sent before it would grow past this many bytes, uncompressed.
    pub batch_bytes: usize,
    /// Everything is sent before the batches together would grow past this many bytes.
    pub request_bytes: usize,
    /// How long a refused batch is sent again before its records are reported as not written.
    pub delivery_timeout: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            acks: Acks::default(),
            codec: Codec::default(),
            batch_bytes: 256 << 10,
            request_bytes: 8 << 20,
            delivery_timeout: Duration::from_secs(120),
        }
    }
}

#[derive(Debug, Default)]
struct OpenBatch {
    records: Vec<RecordData>,
    bytes: usize,
}

/// An encoded batch on its way.
#[derive(Clone, Debug)]
struct Sealed {
    partition: i32,
    records: u64,
    bytes: Bytes,
}

/// Writes records to one topic.
#[derive(Debug)]
pub struct Producer {
    client: Client,
    topic: Topic,
    config: ProducerConfig,
    connections: HashMap<i32, Connection>,
    /// By position in `topic.partitions`.
    open: Vec<OpenBatch>,
    open_bytes: usize,
    /// Where the next keyless record goes; moves on with every flush, so batches stay large.
    sticky: usize,
    written: u64,
}

impl Producer {
    /// A producer for `topic`, which it may ask the broker to create.
    ///
    /// # Errors
    /// The topic is neither there nor created.
    pub async fn new(
        mut client: Client,
        topic: &str,
        config: ProducerConfig,
    ) -> Result<Self, ClientError> {
        let topic = client.topic(topic, true).await?;
        Ok(Self {
            open: topic
                .partitions
                .iter()
                .map(|_| OpenBatch::default())
                .collect(),
            client,
            topic,
            config,
            connections: HashMap::new(),
            open_bytes: 0,
            sticky: 0,
            written: 0,
        })
    }

    /// Records the broker has acknowledged (acks=0: sent).
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether records wait to be sent.
    pub fn has_unsent(&self) -> bool {
        self.open_bytes > 0
    }

    /// Takes a record, for `partition` or the one its key belongs to. Sends what has gathered when
    /// this one would not fit.
    ///
    /// # Errors
    /// As [`Self::flush`], and [`ClientError::NoPartition`].
    pub async fn send(
        &mut self,
        partition: Option<i32>,
        record: RecordData,
    ) -> Result<(), ClientError> {
        let size = record.encoded_len_max();
        let mut index = self.choose(partition, &record)?;
        let batch_full =
            self.open[index].bytes > 0 && self.open[index].bytes + size > self.config.batch_bytes;
        if batch_full || self.open_bytes + size > self.config.request_bytes {
            self.flush().await?;
            index = self.choose(partition, &record)?;
        }
        self.open[index].records.push(record);
        self.open[index].bytes += size;
        self.open_bytes += size;
        Ok(())
    }

    /// Sends everything and waits until the broker has acknowledged it.
    ///
    /// # Errors
    /// The first refusal that a retry cannot cure, or the last one when `delivery_timeout` has
    /// passed. [`Self::written`] then says how many records are acknowledged; the others are not
    /// kept, and after a lost connection some of them may be in the log all the same.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        let mut waiting = self.seal()?;
        self.sticky = (self.sticky + 1) % self.open.len().max(1);
        let started = Instant::now();
        while !waiting.is_empty() {
            let (refused, error) = self.attempt(waiting).await?;
            waiting = refused;
            let Some(error) = error else { continue };
            if started.elapsed() >= self.config.delivery_timeout {
                return Err(ClientError::GaveUp {
                    after: started.elapsed(),
                    reason: Box::new(error),
                });
            }
            sleep(RETRY_PAUSE).await;
            match self.client.topic(&self.topic.name, false).await {
                Ok(topic) => self.topic.partitions = topic.partitions,
                Err(error) if error.is_retriable() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Flushes, and with acks=0 also waits until the brokers have read what was sent.
    ///
    /// # Errors
    /// As [`Self::flush`]; with acks=0 a closed connection, which is how brokers refuse such writes.
    pub async fn finish(&mut self) -> Result<(), ClientError> {
        self.flush().await?;
        if self.config.acks == Acks::None {
            for connection in self.connections.values_mut() {
                connection.barrier().await?;
            }
        }
        Ok(())
    }

    fn choose(&self, partition: Option<i32>, record: &RecordData) -> Result<usize, ClientError> {
        let count = self.open.len();
        match (partition, &record.key) {
            (Some(partition), _) => self
                .topic
                .partitions
                .iter()
                .take(count)
                .position(|known| known.partition == partition)
                .ok_or_else(|| ClientError::NoPartition {
                    topic: self.topic.name.clone(),
                    partition,
                    partitions: count,
                }),
            (None, Some(key)) => Ok(partition_for_key(key, count)),
            (None, None) => Ok(self.sticky),
        }
    }

    fn seal(&mut self) -> Result<Vec<Sealed>, ClientError> {
        let mut sealed = Vec::new();
        for (open, known) in self.open.iter_mut().zip(&self.topic.partitions) {
            if open.records.is_empty() {
                continue;
            }
            sealed.push(Sealed {
                partition: known.partition,
                records: open.records.len() as u64,
                bytes: encode_batch(&open.records, self.config.codec)?,
            });
            *open = OpenBatch::default();
        }
        self.open_bytes = 0;
        Ok(sealed)
    }

    /// Sends each batch once. Gives back those worth sending again and why; an error is final.
    async fn attempt(
        &mut self,
        batches: Vec<Sealed>,
    ) -> Result<(Vec<Sealed>, Option<ClientError>), ClientError> {
        let mut by_leader: HashMap<i32, Vec<Sealed>> = HashMap::new();
        for batch in batches {
            by_leader
                .entry(self.topic.leader(batch.partition)?)
                .or_default()
                .push(batch);
        }
        let mut outcome = Outcome::default();
        let mut asked = Vec::new();
        for (leader, batches) in by_leader {
            match self.send_to(leader, &batches).await {
                Ok(()) if self.config.acks == Acks::None => {
                    self.written += batches.iter().map(|batch| batch.records).sum::<u64>();
                }
                Ok(()) => asked.push((leader, batches)),
                Err(error) => outcome.add(batches, self.lost(leader, error)),
            }
        }
        for (leader, batches) in asked {
            let Some(connection) = self.connections.get_mut(&leader) else {
                continue;
            };
            match connection.receive::<ProduceRequest>().await {
                Ok(response) => self.sort(&response, batches, &mut outcome),
                Err(error) => outcome.add(batches, self.lost(leader, error)),
            }
        }
        match outcome.fatal {
            Some(error) => Err(error),
            None => Ok((outcome.again, outcome.last)),
        }
    }

    async fn send_to(&mut self, leader: i32, batches: &[Sealed]) -> Result<(), ClientError> {
        if !self.connections.contains_key(&leader) {
            let connection = self.client.open(leader).await?;
            self.connections.insert(leader, connection);
        }
        let Some(connection) = self.connections.get_mut(&leader) else {
            return Ok(());
        };
        let parts = batches
            .iter()
            .map(|batch| (batch.partition, batch.bytes.clone()));
        let request = produce_request(&self.topic.name, self.config.acks, parts);
        match self.config.acks {
            Acks::None => connection.send_unanswered(&request).await,
            _ => connection.send(&request).await,
        }
    }

    /// A connection that failed is of no further use. With acks=0 its failure is the broker's answer.
    fn lost(&mut self, leader: i32, error: ClientError) -> (ClientError, bool) {
        self.connections.remove(&leader);
        let again = error.is_retriable() && self.config.acks != Acks::None;
        (error, again)
    }

    fn sort(&mut self, response: &ProduceResponse, batches: Vec<Sealed>, outcome: &mut Outcome) {
        for batch in batches {
            let subject = format!("{}-{}", self.topic.name, batch.partition);
            match produce_result(response, batch.partition, &subject) {
                Ok(_) => self.written += batch.records,
                Err(error) => {
                    let again = error.is_retriable();
                    outcome.add(vec![batch], (error, again));
                }
            }
        }
    }
}

/// What became of the batches of one attempt that were not acknowledged.
#[derive(Debug, Default)]
struct Outcome {
    again: Vec<Sealed>,
    last: Option<ClientError>,
    fatal: Option<ClientError>,
}

impl Outcome {
    fn add(&mut self, batches: Vec<Sealed>, (error, again): (ClientError, bool)) {
        if again {
            self.again.extend(batches);
            self.last = Some(error);
        } else {
            self.fatal.get_or_insert(error);
        }
    }
}

/// The base offset a Produce response gives for `partition`.
pub(crate) fn produce_result(
    response: &ProduceResponse,
    partition: i32,
    subject: &str,
) -> Result<i64, ClientError> {
    let answer = response
        .responses
        .iter()
        .flat_map(|topic| &topic.partition_responses)
        .find(|answer| answer.index == partition);
    let Some(answer) = answer else {
        let code = ErrorCode::UnknownServerError.code();
        return Err(ClientError::refused(
            subject,
            code,
            Some("the answer leaves it out"),
        ));
    };
    if answer.error_code == ErrorCode::None.code() {
        return Ok(answer.base_offset);
    }
    let of_a_record = answer
        .record_errors
        .first()
        .and_then(|error| error.batch_index_error_message.as_ref());
    let message = answer
        .error_message
        .as_ref()
        .or(of_a_record)
        .map(StrBytes::as_str);
    Err(ClientError::refused(subject, answer.error_code, message))
}

/// A Produce request of one topic: `(partition, batch)` each at most once.
pub(crate) fn produce_request(
    topic: &str,
    acks: Acks,
    batches: impl IntoIterator<Item = (i32, Bytes)>,
) -> ProduceRequest {
    /// How long the broker may wait for its replicas.
    const TIMEOUT_MS: i32 = 30_000;
    let mut data = TopicProduceData::default();
    data.name = StrBytes::from(topic);
    data.partition_data = batches
        .into_iter()
        .map(|(index, bytes)| {
            let mut partition = PartitionProduceData::default();
            partition.index = index;
            partition.records = Some(bytes);
            partition
        })
        .collect();
    let mut request = ProduceRequest::default();
    request.acks = acks.wire();
    request.timeout_ms = TIMEOUT_MS;
    request.topic_data = vec![data];
    request
}

#[cfg(test)]
mod tests {
    use kafka_wire::produce_response::{PartitionProduceResponse, TopicProduceResponse};
    use kafka_wire_core::{ApiVersion, DecodeLimits, KafkaDecode as _, KafkaEncode as _};

    use super::*;
    use crate::client::ConnectionConfig;
    use crate::client::scripted_broker::{self, Answer};

    #[test]
    fn a_request_decodes_to_what_was_asked_in_every_version_we_use() {
        let batch = encode_batch(&[RecordData::default()], Codec::None).unwrap();
        let request = produce_request("logs", Acks::All, [(0, batch.clone()), (7, batch.clone())]);
        for version in 3..=12 {
            let version = ApiVersion::new(version);
            let bytes = request.encode_to_bytes(version).unwrap();
            let decoded =
                ProduceRequest::decode_from_bytes(bytes, version, DecodeLimits::default()).unwrap();
            assert_eq!(
                (decoded.acks, decoded.topic_data[0].name.as_str()),
                (-1, "logs")
            );
            let partitions = &decoded.topic_data[0].partition_data;
            assert_eq!(
                partitions
                    .iter()
                    .map(|partition| partition.index)
                    .collect::<Vec<_>>(),
                [0, 7]
            );
            assert_eq!(partitions[1].records, Some(batch.clone()));
        }
    }

    #[test]
    fn a_refused_partition_is_named_with_the_brokers_words() {
        let mut refused = PartitionProduceResponse::default();
        refused.index = 3;
        refused.error_code = 10;
        refused.error_message = Some(StrBytes::from("too large"));
        let mut topic = TopicProduceResponse::default();
        topic.partition_responses = vec![PartitionProduceResponse::default(), refused];
        let mut response = ProduceResponse::default();
        response.responses = vec![topic];
        assert_eq!(produce_result(&response, 0, "logs-0").unwrap(), 0);
        let error = produce_result(&response, 3, "logs-3").unwrap_err();
        assert_eq!(error.to_string(), "logs-3: MESSAGE_TOO_LARGE (too large)");
        assert!(
            produce_result(&response, 9, "logs-9").is_err(),
            "an answer that is missing is not a success"
        );
    }

    /// Writes three records in three batches against the script; the outcome and what counts as
    /// written.
    async fn write(acks: Acks, answers: &'static [Answer]) -> (Result<(), ClientError>, u64) {
        let bootstrap = scripted_broker::start(answers).await;
        let client = Client::connect(&bootstrap, ConnectionConfig::default())
            .await
            .unwrap();
        let config = ProducerConfig {
            acks,
            ..ProducerConfig::default()
        };
        let mut producer = Producer::new(client, "t", config).await.unwrap();
        for _ in 0..3 {
            producer.send(None, RecordData::default()).await.unwrap();
            if let Err(error) = producer.finish().await {
                return (Err(error), producer.written());
            }
        }
        (Ok(()), producer.written())
    }

    #[tokio::test]
    async fn what_a_retry_can_cure_is_sent_again() {
        const NOT_LEADER: Answer = Answer::Code(6);
        let (outcome, written) =
            write(Acks::All, &[NOT_LEADER, Answer::HangUp, Answer::Code(0)]).await;
        outcome.unwrap();
        assert_eq!(written, 3);
    }

    #[tokio::test]
    async fn a_refusal_ends_it_and_only_acknowledged_records_count() {
        const MESSAGE_TOO_LARGE: Answer = Answer::Code(10);
        let (outcome, written) = write(Acks::Leader, &[Answer::Code(0), MESSAGE_TOO_LARGE]).await;
        assert_eq!(outcome.unwrap_err().to_string(), "t-0: MESSAGE_TOO_LARGE");
        assert_eq!(written, 1);
    }

    #[tokio::test]
    async fn a_closed_connection_is_how_a_write_without_acks_is_refused() {
        let (outcome, _) = write(Acks::None, &[Answer::Silence]).await;
        outcome.unwrap();
        let (outcome, _) = write(Acks::None, &[Answer::Silence, Answer::HangUp]).await;
        assert!(
            matches!(outcome, Err(ClientError::Broken { .. })),
            "{outcome:?}"
        );
    }
}
