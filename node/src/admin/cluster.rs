//! The state of the cluster, for an operator.

use std::collections::BTreeMap;

use kittiwake_proto::kittiwake::admin::v1 as proto;
use kittiwake_raft::image::{self, ClusterImage};
use kittiwake_raft::{BrokerId, Partition, Topic};

use super::service::{count, ids};
use crate::controller::reassignment::in_progress;

/// Partitions in trouble that are named; the others are only counted.
const TROUBLED_MAX: usize = 1_000;

/// What is wrong with a partition, the worst first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Trouble {
    Offline,
    UnderMinIsr,
    UnderReplicated,
}

impl Trouble {
    fn of(partition: &Partition, min_insync_replicas: usize) -> Option<Self> {
        let in_sync = partition.isr.len();
        if partition.leader.is_none() {
            Some(Self::Offline)
        } else if in_sync < min_insync_replicas.min(partition.replicas.len()) {
            Some(Self::UnderMinIsr)
        } else if in_sync < under_replicated_below(partition) {
            Some(Self::UnderReplicated)
        } else {
            None
        }
    }
}

/// Replicas that should be in sync: those a reassignment adds were never there (KIP-455).
fn under_replicated_below(partition: &Partition) -> usize {
    partition.replicas.len() - partition.adding.len()
}

/// The cluster as of `image`; of the quorum nothing is said yet.
pub(super) fn status(image: &ClusterImage, node_id: i32) -> proto::GetClusterStatusResponse {
    let mut leads = BTreeMap::<BrokerId, u32>::new();
    let mut replicas = BTreeMap::<BrokerId, u32>::new();
    let mut status = proto::GetClusterStatusResponse {
        cluster_id: image.cluster_id.to_string(),
        node_id,
        metadata_offset: image.offset,
        topics: count(image.topic_count()),
        ..Default::default()
    };
    let mut troubled: Vec<(Trouble, &Topic, i32, &Partition)> = Vec::new();
    for topic in image.topics() {
        let min_insync_replicas = image.min_insync_replicas(topic);
        for (index, partition) in (0..).zip(&topic.partitions) {
            status.partitions += 1;
            status.reassigning_partitions += u32::from(in_progress(partition));
            status.under_replicated_partitions +=
                u32::from(partition.isr.len() < under_replicated_below(partition));
            for broker in &partition.replicas {
                *replicas.entry(*broker).or_default() += 1;
            }
            if let Some(leader) = partition.leader {
                *leads.entry(leader).or_default() += 1;
            }
            if let Some(trouble) = Trouble::of(partition, min_insync_replicas) {
                status.offline_partitions += u32::from(trouble == Trouble::Offline);
                status.under_min_isr_partitions += u32::from(trouble == Trouble::UnderMinIsr);
                troubled.push((trouble, topic, index, partition));
            }
        }
    }
    troubled.sort_by(|a, b| (a.0, &a.1.name, a.2).cmp(&(b.0, &b.1.name, b.2)));
    troubled.truncate(TROUBLED_MAX);
    let name = |(_, topic, index, partition): (Trouble, &Topic, i32, &Partition)| {
        let min_insync_replicas = image
            .min_insync_replicas(topic)
            .min(partition.replicas.len());
        proto::TroubledPartition {
            topic: topic.name.clone(),
            partition: index,
            leader: partition.leader.map(|id| id.0),
            replicas: ids(&partition.replicas),
            isr: ids(&partition.isr),
            elr: ids(&partition.elr),
            damaged: ids(&partition.damaged),
            min_insync_replicas: count(min_insync_replicas),
        }
    };
    status.troubled = troubled.into_iter().map(name).collect();
    let of = |counts: &BTreeMap<BrokerId, u32>, id| counts.get(&id).copied().unwrap_or_default();
    let node = |broker: &image::Broker| proto::Node {
        id: broker.id.0,
        epoch: broker.epoch.0,
        endpoints: broker.endpoints.iter().map(endpoint).collect(),
        rack: broker.rack.clone(),
        fenced: broker.fenced,
        draining: broker.draining,
        leads: of(&leads, broker.id),
        replicas: of(&replicas, broker.id),
    };
    status.nodes = image.brokers.values().map(|broker| node(broker)).collect();
    status
}

fn endpoint(endpoint: &image::Endpoint) -> proto::Endpoint {
    proto::Endpoint {
        listener: endpoint.listener.clone(),
        host: endpoint.host.clone(),
        port: endpoint.port.into(),
    }
}

#[cfg(test)]
mod tests {
    use kittiwake_raft::Command;

    use super::*;
    use crate::controller::tests_support::{apply, create, image_of};

    #[test]
    fn partitions_in_trouble_are_counted_and_named_the_worst_first() {
        let mut image = image_of(3);
        let on = |ids: &[i32]| ids.iter().copied().map(BrokerId).collect::<Vec<_>>();
        create(&mut image, "a", &[], vec![on(&[0, 1, 2]), on(&[0, 1])]);
        create(&mut image, "b", &[], vec![on(&[1]), on(&[2])]);
        let epoch = image.broker(BrokerId(1)).unwrap().epoch;
        apply(
            &mut image,
            Command::FenceBroker {
                broker: BrokerId(1),
                epoch,
            },
        );
        let status = status(&image, 0);
        assert_eq!(status.partitions, 4);
        assert_eq!(status.offline_partitions, 1);
        assert_eq!(status.under_min_isr_partitions, 1);
        assert_eq!(status.under_replicated_partitions, 3);
        let named: Vec<(&str, i32)> = status
            .troubled
            .iter()
            .map(|one| (one.topic.as_str(), one.partition))
            .collect();
        assert_eq!(named, [("b", 0), ("a", 1), ("a", 0)]);
        assert!(status.nodes[1].fenced);
        assert_eq!((status.nodes[0].leads, status.nodes[0].replicas), (2, 2));
    }
}
