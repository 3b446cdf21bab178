//! The cluster image, as snapshots hold it.

use std::collections::BTreeMap;
use std::sync::Arc;

use kittiwake_proto::metadata::v1 as pb;
use pb::image as record;

use crate::codec::{
    CodecError, brokers, decode_endpoints, directory_id, encode_endpoints, incarnation_id, numbers,
    topic_id,
};
use crate::ids::{BrokerEpoch, BrokerId, PartitionEpoch};
use crate::image::{Broker, ClusterImage, Configs, Partition, Topic};

pub(crate) fn encode_image(image: &ClusterImage) -> pb::Image {
    let mut topics: Vec<&Arc<Topic>> = image.topics().collect();
    topics.sort_unstable_by_key(|topic| topic.id);
    pb::Image {
        cluster_id: image.cluster_id.to_string(),
        feature_level: u32::from(image.feature_level),
        next_producer_id: image.next_producer_id,
        brokers: image
            .brokers
            .values()
            .map(|broker| encode_broker(broker))
            .collect(),
        broker_configs: image
            .all_broker_configs()
            .iter()
            .map(|(broker, configs)| record::BrokerConfigs {
                broker: broker.map(|broker| broker.0),
                configs: Configs::clone(configs),
            })
            .collect(),
        topics: topics
            .into_iter()
            .map(|topic| encode_topic(topic))
            .collect(),
    }
}

/// The image as it was at `offset`.
pub(crate) fn decode_image(image: pb::Image, offset: u64) -> Result<ClusterImage, CodecError> {
    let brokers = image
        .brokers
        .into_iter()
        .map(|broker| Ok((BrokerId(broker.id), Arc::new(decode_broker(broker)?))))
        .collect::<Result<BTreeMap<_, _>, CodecError>>()?;
    let broker_configs = image
        .broker_configs
        .into_iter()
        .map(|configs| (configs.broker.map(BrokerId), Arc::new(configs.configs)))
        .collect();
    let topics = image
        .topics
        .into_iter()
        .map(decode_topic)
        .collect::<Result<Vec<_>, _>>()?;
    let mut decoded = ClusterImage::new(&image.cluster_id);
    decoded.offset = offset;
    decoded.feature_level =
        u16::try_from(image.feature_level).map_err(|_| CodecError::Field("feature_level"))?;
    decoded.next_producer_id = image.next_producer_id;
    decoded.brokers = brokers;
    decoded.restore(topics, broker_configs);
    Ok(decoded)
}

fn encode_broker(broker: &Broker) -> record::Broker {
    record::Broker {
        id: broker.id.0,
        epoch: broker.epoch.0,
        directory_id: broker.directory_id.to_bytes().to_vec().into(),
        incarnation_id: broker.incarnation_id.to_bytes().to_vec().into(),
        endpoints: encode_endpoints(&broker.endpoints),
        rack: broker.rack.clone(),
        fenced: broker.fenced,
        fenced_at: broker.fenced_at,
        draining: broker.draining,
    }
}

fn decode_broker(broker: record::Broker) -> Result<Broker, CodecError> {
    Ok(Broker {
        id: BrokerId(broker.id),
        epoch: BrokerEpoch(broker.epoch),
        directory_id: directory_id(&broker.directory_id)?,
        incarnation_id: incarnation_id(&broker.incarnation_id)?,
        endpoints: decode_endpoints(broker.endpoints)?,
        rack: broker.rack,
        fenced: broker.fenced,
        fenced_at: broker.fenced_at,
        draining: broker.draining,
    })
}

fn encode_topic(topic: &Topic) -> record::Topic {
    record::Topic {
        id: topic.id.to_bytes().to_vec().into(),
        name: topic.name.clone(),
        configs: topic.configs.clone(),
        partitions: topic
            .partitions
            .iter()
            .map(|partition| encode_partition(partition))
            .collect(),
    }
}

fn decode_topic(topic: record::Topic) -> Result<Topic, CodecError> {
    Ok(Topic {
        id: topic_id(&topic.id)?,
        name: topic.name,
        configs: topic.configs,
        partitions: topic
            .partitions
            .iter()
            .map(|p| Arc::new(decode_partition(p)))
            .collect(),
    })
}

pub(super) fn encode_partition(partition: &Partition) -> record::Partition {
    record::Partition {
        replicas: numbers(&partition.replicas),
        isr: numbers(&partition.isr),
        elr: numbers(&partition.elr),
        last_known_leader: partition.last_known_leader.map(|broker| broker.0),
        leader: partition.leader.map(|broker| broker.0),
        leader_epoch: partition.leader_epoch,
        partition_epoch: partition.partition_epoch.0,
        adding: numbers(&partition.adding),
        removing: numbers(&partition.removing),
        damaged: numbers(&partition.damaged),
    }
}

pub(super) fn decode_partition(partition: &record::Partition) -> Partition {
    Partition {
        replicas: brokers(&partition.replicas),
        isr: brokers(&partition.isr),
        elr: brokers(&partition.elr),
        last_known_leader: partition.last_known_leader.map(BrokerId),
        leader: partition.leader.map(BrokerId),
        leader_epoch: partition.leader_epoch,
        partition_epoch: PartitionEpoch(partition.partition_epoch),
        adding: brokers(&partition.adding),
        removing: brokers(&partition.removing),
        damaged: brokers(&partition.damaged),
    }
}
