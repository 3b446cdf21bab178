//! What became of a forwarded command. Only on the wire, between nodes of one cluster.

use kittiwake_proto::kittiwake::raft::v1 as pb;
use pb::applied::{ProducerIds, What};
use pb::command_error::{InvalidConfig, Reason};

use crate::codec::image::{decode_partition, encode_partition};
use crate::codec::{CodecError, topic_id};
use crate::command::{Applied, CommandError, Outcome};
use crate::ids::{BrokerEpoch, BrokerId, PartitionEpoch};

pub(crate) fn encode_outcome(outcome: &Outcome) -> pb::Outcome {
    use pb::item_result::Result as Record;
    pb::Outcome {
        offset: outcome.offset,
        results: outcome
            .results
            .iter()
            .map(|result| pb::ItemResult {
                result: Some(match result {
                    Ok(applied) => Record::Applied(encode_applied(applied)),
                    Err(refused) => Record::Refused(encode_refused(refused)),
                }),
            })
            .collect(),
    }
}

pub(crate) fn decode_outcome(record: pb::Outcome) -> Result<Outcome, CodecError> {
    use pb::item_result::Result as Record;
    let results = record
        .results
        .into_iter()
        .map(|item| {
            Ok(match item.result.ok_or(CodecError::Field("result"))? {
                Record::Applied(applied) => Ok(decode_applied(applied)?),
                Record::Refused(refused) => Err(decode_refused(refused)?),
            })
        })
        .collect::<Result<_, CodecError>>()?;
    Ok(Outcome {
        offset: record.offset,
        results,
    })
}

fn encode_applied(applied: &Applied) -> pb::Applied {
    pb::Applied {
        what: Some(match applied {
            Applied::Done => What::Done(pb::Empty {}),
            Applied::Registered(epoch) => What::RegisteredEpoch(epoch.0),
            Applied::TopicCreated(id) => What::CreatedTopicId(id.to_bytes().to_vec().into()),
            Applied::PartitionAltered(partition) => {
                What::AlteredPartition(encode_partition(partition))
            }
            Applied::ProducerIds { first, count } => What::ProducerIds(ProducerIds {
                first: *first,
                count: *count,
            }),
        }),
    }
}

fn decode_applied(record: pb::Applied) -> Result<Applied, CodecError> {
    Ok(match record.what.ok_or(CodecError::Field("what"))? {
        What::Done(_) => Applied::Done,
        What::RegisteredEpoch(epoch) => Applied::Registered(BrokerEpoch(epoch)),
        What::CreatedTopicId(id) => Applied::TopicCreated(topic_id(&id)?),
        What::AlteredPartition(partition) => {
            Applied::PartitionAltered(decode_partition(&partition))
        }
        What::ProducerIds(ProducerIds { first, count }) => Applied::ProducerIds { first, count },
    })
}

fn encode_refused(error: &CommandError) -> pb::CommandError {
    let empty = pb::Empty {};
    pb::CommandError {
        reason: Some(match error.clone() {
            CommandError::UnknownBroker(broker) => Reason::UnknownBroker(broker.0),
            CommandError::StaleBrokerEpoch { current } => Reason::StaleBrokerEpoch(current.0),
            CommandError::FencedSince { offset } => Reason::FencedSince(offset),
            CommandError::InvalidRegistration(reason) => Reason::InvalidRegistration(reason),
            CommandError::BrokerInUse(broker) => Reason::BrokerInUse(broker.0),
            CommandError::InvalidTopicName(reason) => Reason::InvalidTopicName(reason),
            CommandError::TopicExists(name) => Reason::TopicExists(name),
            CommandError::TopicNameCollision(name) => Reason::TopicNameCollision(name),
            CommandError::UnknownTopic => Reason::UnknownTopic(empty),
            CommandError::UnknownPartition => Reason::UnknownPartition(empty),
            CommandError::InvalidPartitions(reason) => Reason::InvalidPartitions(reason),
            CommandError::InvalidReplicas(reason) => Reason::InvalidReplicas(reason),
            CommandError::StaleLeaderEpoch { current } => Reason::StaleLeaderEpoch(current),
            CommandError::StalePartitionEpoch { current } => Reason::StalePartitionEpoch(current.0),
            CommandError::IneligibleReplica(broker) => Reason::IneligibleReplica(broker.0),
            CommandError::InvalidChange(reason) => Reason::InvalidChange(reason),
            CommandError::InvalidConfig { key, reason } => {
                Reason::InvalidConfig(InvalidConfig { key, reason })
            }
            CommandError::ConfigChanged(key) => Reason::ConfigChanged(key),
            CommandError::InvalidProducerIds(count) => Reason::InvalidProducerIds(count),
        }),
    }
}

fn decode_refused(record: pb::CommandError) -> Result<CommandError, CodecError> {
    Ok(match record.reason.ok_or(CodecError::Field("reason"))? {
        Reason::UnknownBroker(broker) => CommandError::UnknownBroker(BrokerId(broker)),
        Reason::StaleBrokerEpoch(current) => CommandError::StaleBrokerEpoch {
            current: BrokerEpoch(current),
        },
        Reason::FencedSince(offset) => CommandError::FencedSince { offset },
        Reason::InvalidRegistration(reason) => CommandError::InvalidRegistration(reason),
        Reason::BrokerInUse(broker) => CommandError::BrokerInUse(BrokerId(broker)),
        Reason::InvalidTopicName(reason) => CommandError::InvalidTopicName(reason),
        Reason::TopicExists(name) => CommandError::TopicExists(name),
        Reason::TopicNameCollision(name) => CommandError::TopicNameCollision(name),
        Reason::UnknownTopic(_) => CommandError::UnknownTopic,
        Reason::UnknownPartition(_) => CommandError::UnknownPartition,
        Reason::InvalidPartitions(reason) => CommandError::InvalidPartitions(reason),
        Reason::InvalidReplicas(reason) => CommandError::InvalidReplicas(reason),
        Reason::StaleLeaderEpoch(current) => CommandError::StaleLeaderEpoch { current },
        Reason::StalePartitionEpoch(current) => CommandError::StalePartitionEpoch {
            current: PartitionEpoch(current),
        },
        Reason::IneligibleReplica(broker) => CommandError::IneligibleReplica(BrokerId(broker)),
        Reason::InvalidChange(reason) => CommandError::InvalidChange(reason),
        Reason::InvalidConfig(InvalidConfig { key, reason }) => {
            CommandError::InvalidConfig { key, reason }
        }
        Reason::ConfigChanged(key) => CommandError::ConfigChanged(key),
        Reason::InvalidProducerIds(count) => CommandError::InvalidProducerIds(count),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TopicId;
    use crate::image::Partition;

    #[test]
    fn every_outcome_survives_the_wire() {
        let partition = Partition {
            replicas: vec![BrokerId(1), BrokerId(2), BrokerId(3)],
            isr: vec![BrokerId(1)],
            elr: vec![BrokerId(2)],
            last_known_leader: Some(BrokerId(2)),
            leader: Some(BrokerId(1)),
            leader_epoch: 7,
            partition_epoch: PartitionEpoch(9),
            adding: vec![BrokerId(3)],
            removing: vec![BrokerId(1)],
            damaged: vec![BrokerId(3)],
        };
        let text = || "why".to_owned();
        let outcome = Outcome {
            offset: 42,
            results: vec![
                Ok(Applied::Done),
                Ok(Applied::Registered(BrokerEpoch(3))),
                Ok(Applied::TopicCreated(TopicId::random())),
                Ok(Applied::PartitionAltered(partition)),
                Ok(Applied::ProducerIds {
                    first: 5,
                    count: 1000,
                }),
                Err(CommandError::UnknownBroker(BrokerId(1))),
                Err(CommandError::StaleBrokerEpoch {
                    current: BrokerEpoch(4),
                }),
                Err(CommandError::FencedSince { offset: 7 }),
                Err(CommandError::InvalidRegistration(text())),
                Err(CommandError::BrokerInUse(BrokerId(1))),
                Err(CommandError::InvalidTopicName(text())),
                Err(CommandError::TopicExists(text())),
                Err(CommandError::TopicNameCollision(text())),
                Err(CommandError::UnknownTopic),
                Err(CommandError::UnknownPartition),
                Err(CommandError::InvalidPartitions(text())),
                Err(CommandError::InvalidReplicas(text())),
                Err(CommandError::StaleLeaderEpoch { current: 5 }),
                Err(CommandError::StalePartitionEpoch {
                    current: PartitionEpoch(6),
                }),
                Err(CommandError::IneligibleReplica(BrokerId(1))),
                Err(CommandError::InvalidChange(text())),
                Err(CommandError::InvalidConfig {
                    key: "key".into(),
                    reason: text(),
                }),
                Err(CommandError::ConfigChanged("key".into())),
                Err(CommandError::InvalidProducerIds(-1)),
            ],
        };
        assert_eq!(decode_outcome(encode_outcome(&outcome)).unwrap(), outcome);
    }

    #[test]
    fn what_a_later_version_says_is_refused() {
        let record = pb::Outcome {
            offset: 1,
            results: vec![pb::ItemResult { result: None }],
        };
        assert!(decode_outcome(record).is_err());
    }
}
