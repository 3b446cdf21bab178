//! A small Kafka client for the command line and the benches. Brokers do not use it.
//!
//! It speaks to any Kafka-compatible broker: versions are negotiated per connection. What a caller
//! can rely on:
//!
//! - Nothing runs behind the caller's back: a [`Connection`] is a socket and a queue of requests in
//!   flight, owned by one task. Memory is bounded by the frame cap per connection and, for the
//!   [`Producer`] and [`Consumer`], by their batch and fetch limits times the number of leaders.
//! - Every wait has a deadline and every failure is a [`ClientError`] that reads as one sentence.
//! - [`Producer`] reports a record as written only after the broker said so (or, with acks=0, read
//!   it); without idempotence a retry after a lost connection can write a batch twice.
//!
//! Topics are addressed by name, so Produce and Fetch stay at the last versions that carry names.

mod connection;
mod consumer;
mod error;
mod metadata;
mod offsets;
mod partitioner;
mod producer;
mod records;
#[cfg(test)]
mod scripted_broker;

pub use connection::{Connection, ConnectionConfig};
pub use consumer::{ConsumedRecord, Consumer, ConsumerConfig};
pub use error::ClientError;
pub use metadata::{Client, NewTopic, PartitionLeader, Topic};
pub use offsets::StartOffset;
pub use partitioner::partition_for_key;
pub use producer::{Acks, Producer, ProducerConfig};
pub use records::{Codec, RecordData, encode_batch, now_ms};

pub(crate) use consumer::{fetch_request, partition_records};
pub(crate) use producer::{produce_request, produce_result};
