//! What the broker benches share: the topic they run on, the records they write, and how work is
//! spread over connections.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;

use crate::client::{
    Client, Codec, ConnectionConfig, NewTopic, RecordData, Topic, encode_batch, now_ms,
};

/// The largest record or batch a bench makes: far above what brokers accept, far below what hurts.
pub(super) const BATCH_BYTES_MAX: u64 = 64 << 20;
/// Different batches that are sent in turn, so that neither a broker nor a compressor sees one only.
const DISTINCT_BATCHES: usize = 8;

/// The cluster and topic a bench runs on.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Target {
    /// Brokers to start from: HOST:PORT[,HOST:PORT...]
    #[arg(short, long, default_value = "127.0.0.1:9092")]
    pub(super) bootstrap: String,
    /// Topic to use
    #[arg(short, long, default_value = "bench")]
    pub(super) topic: String,
    /// Partitions, if the topic has to be created
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
    /// Replicas, if the topic has to be created; -1 for the broker's default
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    replication_factor: i16,
    /// KEY=VALUE configuration, if the topic has to be created
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_config)]
    topic_config: Vec<(String, String)>,
    /// How long to wait for any answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 30_000)]
    timeout_ms: u64,
}

fn parse_config(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

impl Target {
    /// Connects, and creates the topic if it is missing.
    pub(super) async fn create(&self) -> anyhow::Result<(Client, Topic)> {
        let mut client = self.connect().await?;
        let new = NewTopic {
            name: self.topic.clone(),
            partitions: self.partitions,
            replication_factor: self.replication_factor,
            configs: self.topic_config.clone(),
        };
        let topic = client.ensure_topic(&new).await?;
        Ok((client, topic))
    }

    /// Connects.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        let config = ConnectionConfig {
            timeout: Duration::from_millis(self.timeout_ms),
            ..ConnectionConfig::default()
        };
        Ok(Client::connect(&self.bootstrap, config).await?)
    }
}

/// One connection's share of the work.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Share {
    /// The broker to connect to.
    pub(super) leader: i32,
    /// Partitions it leads, never empty.
    pub(super) partitions: Vec<i32>,
}

/// Spreads every leader's partitions over `connections` connections to it; partitions are shared
/// where there are fewer of them and `sharing` allows it.
pub(super) fn shares(topic: &Topic, connections: usize, sharing: bool) -> Vec<Share> {
    let mut by_leader: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for known in &topic.partitions {
        by_leader
            .entry(known.leader)
            .or_default()
            .push(known.partition);
    }
    let mut shares = Vec::new();
    for (leader, partitions) in by_leader {
        let wanted = if sharing {
            connections
        } else {
            connections.min(partitions.len())
        };
        for index in 0..wanted.max(1) {
            let mut own: Vec<i32> = partitions
                .iter()
                .copied()
                .skip(index)
                .step_by(wanted.max(1))
                .collect();
            if own.is_empty() {
                own.push(partitions[index % partitions.len()]);
            }
            shares.push(Share {
                leader,
                partitions: own,
            });
        }
    }
    shares
}

/// Batches made before the clock starts, so that the bench measures the broker and not the making of
/// records.
#[derive(Clone, Debug)]
pub(super) struct Batches {
    encoded: Vec<Bytes>,
    /// Records in each.
    pub(super) records: u64,
}

impl Batches {
    /// Batches of as many records of `record_size` bytes as `batch_size` holds uncompressed, at
    /// least one.
    pub(super) fn new(record_size: u64, batch_size: u64, codec: Codec) -> anyhow::Result<Self> {
        if record_size > BATCH_BYTES_MAX || batch_size > BATCH_BYTES_MAX {
            bail!(
                "records and batches of this bench are at most {} MiB",
                BATCH_BYTES_MAX >> 20
            );
        }
        let mut text = Text::new();
        let mut record = || RecordData {
            value: Some(text.take(record_size as usize)),
            timestamp_ms: now_ms(),
            ..RecordData::default()
        };
        let records = (batch_size as usize / record().encoded_len_max()).max(1);
        let encoded = (0..DISTINCT_BATCHES).map(|_| {
            let batch: Vec<RecordData> = (0..records).map(|_| record()).collect();
            encode_batch(&batch, codec)
        });
        Ok(Self {
            encoded: encoded.collect::<Result<_, _>>()?,
            records: records as u64,
        })
    }

    /// The `number`-th batch to send.
    pub(super) fn get(&self, number: u64) -> Bytes {
        self.encoded[number as usize % self.encoded.len()].clone()
    }
}

/// Letters that compress about two to one, like the text of logs; the same in every run.
#[derive(Debug)]
pub(super) struct Text {
    state: u64,
}

impl Text {
    pub(super) fn new() -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15,
        }
    }

    pub(super) fn take(&mut self, len: usize) -> Bytes {
        let letters = (0..len).map(|_| {
            // xorshift64, of which four bits choose a letter.
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            b'a' + (self.state >> 60) as u8
        });
        letters.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::PartitionLeader;

    fn topic(leaders: &[i32]) -> Topic {
        Topic {
            name: "t".to_owned(),
            partitions: (0..)
                .zip(leaders)
                .map(|(partition, &leader)| PartitionLeader { partition, leader })
                .collect(),
        }
    }

    #[test]
    fn every_partition_is_in_one_share_of_its_leader() {
        let topic = topic(&[1, 2, 1, 2, 1]);
        let shares = shares(&topic, 2, true);
        let mut all: Vec<i32> = shares
            .iter()
            .flat_map(|share| share.partitions.clone())
            .collect();
        all.sort_unstable();
        assert_eq!((shares.len(), all), (4, vec![0, 1, 2, 3, 4]));
        for share in &shares {
            assert!(
                share
                    .partitions
                    .iter()
                    .all(|&partition| topic.leader(partition).unwrap() == share.leader)
            );
        }
    }

    #[test]
    fn more_connections_than_partitions_share_or_are_not_opened() {
        assert_eq!(shares(&topic(&[1]), 3, true).len(), 3);
        assert_eq!(shares(&topic(&[1]), 3, false).len(), 1);
        assert_eq!(shares(&topic(&[1, 1]), 3, true)[2].partitions, [0]);
    }

    #[test]
    fn batches_stay_within_their_size_and_hold_at_least_one_record() {
        let batches = Batches::new(1024, 64 << 10, Codec::None).unwrap();
        assert_eq!(batches.records, 61);
        assert!(batches.get(0).len() <= (64 << 10) + 61 && batches.get(0) != batches.get(1));
        assert_eq!(batches.get(0), batches.get(DISTINCT_BATCHES as u64));
        assert_eq!(Batches::new(1024, 1, Codec::Zstd).unwrap().records, 1);
        assert!(Batches::new(1 << 40, 1, Codec::None).is_err());
    }
}
