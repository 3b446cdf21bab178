//! What a node tells Kafka clients of the cluster: Metadata (v8), asked by hand.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wire::{Bytes, Connection, Fields};

const METADATA: i16 = 3;
const METADATA_VERSION: i16 = 8;
/// Every topic, instead of those named.
const ALL: i32 = -1;
/// A node that is alive answers at once; a hung one must not hold the asker up.
const DEADLINE: Duration = Duration::from_secs(2);

/// The cluster as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Ids of the brokers that are not fenced, ascending.
    pub brokers: Vec<u32>,
    /// The controller, if the node knows one.
    pub controller: Option<u32>,
    /// The topics, internal ones included.
    pub topics: Vec<Topic>,
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Kafka's error code, 0 for none.
    pub error: i16,
    /// Its partitions by index.
    pub partitions: Vec<Partition>,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its index.
    pub index: i32,
    /// Who leads it, if anybody does.
    pub leader: Option<u32>,
    /// The leader's epoch.
    pub leader_epoch: i32,
    /// Its replicas, the preferred leader first.
    pub replicas: Vec<u32>,
    /// Its in-sync replicas.
    pub isr: Vec<u32>,
}

impl Partition {
    /// Led, and every replica in the ISR.
    pub fn in_sync(&self) -> bool {
        self.leader.is_some() && self.replicas.iter().all(|node| self.isr.contains(node))
    }
}

impl View {
    /// Asks the node whose Kafka listener is at `address`.
    pub fn of(address: SocketAddr) -> Result<Self> {
        let body = Bytes::new().i32(ALL).i8(0).i8(0).i8(0);
        let answer = Connection::open_within(address, DEADLINE)?
            .call(METADATA, METADATA_VERSION, &body.0)?
            .with_context(|| format!("{address} answered no Metadata"))?;
        parse(&answer).with_context(|| format!("the Metadata answer of {address}"))
    }

    /// A topic's partition, if the node knows it.
    pub fn partition(&self, topic: &str, index: i32) -> Option<&Partition> {
        self.topics
            .iter()
            .find(|known| known.name == topic)?
            .partitions
            .iter()
            .find(|partition| partition.index == index)
    }

    /// Who is there, and which partitions are not in sync; for messages.
    pub fn troubles(&self) -> String {
        let troubled: Vec<String> = self
            .partitions()
            .filter(|(_, partition)| !partition.in_sync())
            .map(|(topic, partition)| {
                let Partition {
                    index,
                    leader,
                    leader_epoch,
                    replicas,
                    isr,
                } = partition;
                format!("{topic}-{index} (leader {leader:?} of epoch {leader_epoch}, replicas {replicas:?}, ISR {isr:?})")
            })
            .collect();
        format!(
            "brokers {:?}, controller {:?}, {} partitions not in sync: {}",
            self.brokers,
            self.controller,
            troubled.len(),
            troubled.join(", ")
        )
    }

    /// Every partition with its topic's name.
    pub fn partitions(&self) -> impl Iterator<Item = (&str, &Partition)> {
        self.topics.iter().flat_map(|topic| {
            topic
                .partitions
                .iter()
                .map(|partition| (topic.name.as_str(), partition))
        })
    }
}

/// A node id of an answer; -1 is nobody.
fn node(id: i32) -> Option<u32> {
    u32::try_from(id).ok()
}

fn nodes(fields: &mut Fields<'_>) -> Result<Vec<u32>> {
    Ok(fields
        .list(Fields::i32)?
        .into_iter()
        .filter_map(node)
        .collect())
}

fn parse(answer: &[u8]) -> Result<View> {
    let mut fields = Fields::of(answer);
    let _throttle_ms = fields.i32()?;
    let mut brokers = fields.list(|fields| {
        let id = fields.i32()?;
        let (_host, _port, _rack) = (fields.string()?, fields.i32()?, fields.string()?);
        Ok(id)
    })?;
    brokers.sort_unstable();
    let _cluster_id = fields.string()?;
    let controller = node(fields.i32()?);
    let topics = fields.list(topic)?;
    Ok(View {
        brokers: brokers.into_iter().filter_map(node).collect(),
        controller,
        topics,
    })
}

fn topic(fields: &mut Fields<'_>) -> Result<Topic> {
    let error = fields.i16()?;
    let name = fields.string()?.context("a topic without a name")?;
    let _internal = fields.bool()?;
    let mut partitions = fields.list(partition)?;
    partitions.sort_unstable_by_key(|partition| partition.index);
    let _authorized_operations = fields.i32()?;
    Ok(Topic {
        name,
        error,
        partitions,
    })
}

fn partition(fields: &mut Fields<'_>) -> Result<Partition> {
    let _error = fields.i16()?;
    let partition = Partition {
        index: fields.i32()?,
        leader: node(fields.i32()?),
        leader_epoch: fields.i32()?,
        replicas: nodes(fields)?,
        isr: nodes(fields)?,
    };
    let _offline = nodes(fields)?;
    Ok(partition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer = Bytes::new()
            .i32(0)
            .i32(2)
            .raw(&Bytes::new().i32(2).string("h").i32(9092).i16(-1).0)
            .raw(&Bytes::new().i32(0).string("h").i32(9093).string("rack").0)
            .string("cluster")
            .i32(-1)
            .i32(1)
            .raw(&Bytes::new().i16(0).string("t").i8(0).i32(1).0)
            .raw(&Bytes::new().i16(5).i32(3).i32(-1).i32(7).0)
            .raw(&Bytes::new().i32(3).i32(0).i32(1).i32(2).0)
            .raw(&Bytes::new().i32(2).i32(2).i32(0).i32(1).i32(1).0)
            .i32(0)
            .i32(0);
        let view = parse(&answer.0).unwrap();
        assert_eq!(view.brokers, [0, 2]);
        assert_eq!(view.controller, None);
        let partition = view.partition("t", 3).unwrap();
        assert_eq!(partition.leader, None);
        assert_eq!(partition.leader_epoch, 7);
        assert_eq!(partition.isr, [2, 0]);
        assert!(!partition.in_sync());
        assert_eq!(view.partitions().count(), 1);
        assert!(parse(&answer.0[..40]).is_err());
    }
}
