//! Commands: a type number, a version, and a body named after the type.

use kittiwake_proto::metadata::v1 as pb;
use pb::CommandType as Type;
use prost::Message;

use crate::codec::{
    CodecError, brokers, decode_endpoints, directory_id, encode_endpoints, incarnation_id, numbers,
    topic_id,
};
use crate::command::{
    Command, ConfigChange, ConfigResource, Damage, Election, IsrMember, LastStop, NewPartitions,
    NewTopic, PartitionChange, Reassignment, RegisterBroker, Requester,
};
use crate::ids::{BrokerEpoch, BrokerId, PartitionEpoch};

/// The version in which a command is written, and the highest that is read.
fn version_of(command_type: Type) -> u32 {
    match command_type {
        // 1 has no `damage`.
        Type::AlterPartitions => 2,
        // 1 has no `expected`.
        Type::AlterConfigs => 2,
        // 1 has no `reconciled`.
        Type::UnfenceBroker => 2,
        _ => 1,
    }
}

pub(crate) fn encode_command(command: &Command) -> pb::Command {
    let (command_type, body) = match command {
        Command::RegisterBroker(request) => (Type::RegisterBroker, encode_register(request)),
        Command::FenceBroker { broker, epoch } => (
            Type::FenceBroker,
            pb::FenceBroker {
                broker: broker.0,
                epoch: epoch.0,
            }
            .encode_to_vec(),
        ),
        Command::UnfenceBroker {
            broker,
            epoch,
            reconciled,
        } => (
            Type::UnfenceBroker,
            pb::UnfenceBroker {
                broker: broker.0,
                epoch: epoch.0,
                reconciled: Some(*reconciled),
            }
            .encode_to_vec(),
        ),
        Command::DrainBroker {
            broker,
            epoch,
            draining,
        } => (
            Type::DrainBroker,
            pb::DrainBroker {
                broker: broker.0,
                epoch: epoch.0,
                draining: *draining,
            }
            .encode_to_vec(),
        ),
        Command::UnregisterBroker { broker } => (
            Type::UnregisterBroker,
            pb::UnregisterBroker { broker: broker.0 }.encode_to_vec(),
        ),
        Command::CreateTopics(topics) => {
            let topics = topics.iter().map(encode_new_topic).collect();
            (
                Type::CreateTopics,
                pb::CreateTopics { topics }.encode_to_vec(),
            )
        }
        Command::DeleteTopics(ids) => {
            let ids = ids.iter().map(|id| id.to_bytes().to_vec().into()).collect();
            (Type::DeleteTopics, pb::DeleteTopics { ids }.encode_to_vec())
        }
        Command::CreatePartitions(topics) => {
            let topics = topics.iter().map(encode_new_partitions).collect();
            (
                Type::CreatePartitions,
                pb::CreatePartitions { topics }.encode_to_vec(),
            )
        }
        Command::AlterPartitions(changes) => {
            let changes = changes.iter().map(encode_partition_change).collect();
            (
                Type::AlterPartitions,
                pb::AlterPartitions { changes }.encode_to_vec(),
            )
        }
        Command::AlterConfigs(changes) => {
            let changes = changes.iter().map(encode_config_change).collect();
            (
                Type::AlterConfigs,
                pb::AlterConfigs { changes }.encode_to_vec(),
            )
        }
        Command::AllocateProducerIds {
            broker,
            epoch,
            count,
        } => (
            Type::AllocateProducerIds,
            pb::AllocateProducerIds {
                broker: broker.0,
                epoch: epoch.0,
                count: *count,
            }
            .encode_to_vec(),
        ),
    };
    pb::Command {
        r#type: command_type as u32,
        version: version_of(command_type),
        body: body.into(),
    }
}

pub(crate) fn decode_command(record: &pb::Command) -> Result<Command, CodecError> {
    let unknown = || CodecError::UnknownCommand {
        command_type: record.r#type,
        version: record.version,
    };
    let command_type = i32::try_from(record.r#type)
        .ok()
        .and_then(|number| Type::try_from(number).ok())
        .filter(|&known| (1..=version_of(known)).contains(&record.version))
        .ok_or_else(unknown)?;
    let body = record.body.as_ref();
    Ok(match command_type {
        Type::Unspecified => return Err(unknown()),
        Type::RegisterBroker => {
            Command::RegisterBroker(decode_register(pb::RegisterBroker::decode(body)?)?)
        }
        Type::FenceBroker => {
            let body = pb::FenceBroker::decode(body)?;
            Command::FenceBroker {
                broker: BrokerId(body.broker),
                epoch: BrokerEpoch(body.epoch),
            }
        }
        Type::UnfenceBroker => {
            let body = pb::UnfenceBroker::decode(body)?;
            if (record.version == 1) != body.reconciled.is_none() {
                return Err(CodecError::Field("reconciled"));
            }
            Command::UnfenceBroker {
                broker: BrokerId(body.broker),
                epoch: BrokerEpoch(body.epoch),
                reconciled: body.reconciled.unwrap_or(u64::MAX),
            }
        }
        Type::DrainBroker => {
            let body = pb::DrainBroker::decode(body)?;
            Command::DrainBroker {
                broker: BrokerId(body.broker),
                epoch: BrokerEpoch(body.epoch),
                draining: body.draining,
            }
        }
        Type::UnregisterBroker => {
            let body = pb::UnregisterBroker::decode(body)?;
            Command::UnregisterBroker {
                broker: BrokerId(body.broker),
            }
        }
        Type::CreateTopics => Command::CreateTopics(each(
            pb::CreateTopics::decode(body)?.topics,
            decode_new_topic,
        )?),
        Type::DeleteTopics => {
            Command::DeleteTopics(each(pb::DeleteTopics::decode(body)?.ids, |id| {
                topic_id(&id)
            })?)
        }
        Type::CreatePartitions => Command::CreatePartitions(each(
            pb::CreatePartitions::decode(body)?.topics,
            decode_new_partitions,
        )?),
        Type::AlterPartitions => {
            let changes = each(
                pb::AlterPartitions::decode(body)?.changes,
                decode_partition_change,
            )?;
            if record.version == 1 && changes.iter().any(|change| change.damage.is_some()) {
                return Err(CodecError::Field("damage"));
            }
            Command::AlterPartitions(changes)
        }
        Type::AlterConfigs => {
            let changes = each(
                pb::AlterConfigs::decode(body)?.changes,
                decode_config_change,
            )?;
            if record.version == 1 && changes.iter().any(|change| !change.expected.is_empty()) {
                return Err(CodecError::Field("expected"));
            }
            Command::AlterConfigs(changes)
        }
        Type::AllocateProducerIds => {
            let body = pb::AllocateProducerIds::decode(body)?;
            Command::AllocateProducerIds {
                broker: BrokerId(body.broker),
                epoch: BrokerEpoch(body.epoch),
                count: body.count,
            }
        }
    })
}

fn each<R, T>(
    records: Vec<R>,
    decode: impl Fn(R) -> Result<T, CodecError>,
) -> Result<Vec<T>, CodecError> {
    records.into_iter().map(decode).collect()
}

fn encode_register(request: &RegisterBroker) -> Vec<u8> {
    use pb::register_broker::{Killed, LastStop as Record, Lossy};
    pb::RegisterBroker {
        broker: request.broker.0,
        incarnation_id: request.incarnation_id.to_bytes().to_vec().into(),
        directory_id: request.directory_id.to_bytes().to_vec().into(),
        endpoints: encode_endpoints(&request.endpoints),
        rack: request.rack.clone(),
        last_stop: Some(match request.last_stop {
            LastStop::Clean(epoch) => Record::Clean(epoch.0),
            LastStop::Killed => Record::Killed(Killed {}),
            LastStop::Lossy => Record::Lossy(Lossy {}),
        }),
    }
    .encode_to_vec()
}

fn decode_register(body: pb::RegisterBroker) -> Result<RegisterBroker, CodecError> {
    use pb::register_broker::LastStop as Record;
    Ok(RegisterBroker {
        broker: BrokerId(body.broker),
        incarnation_id: incarnation_id(&body.incarnation_id)?,
        directory_id: directory_id(&body.directory_id)?,
        endpoints: decode_endpoints(body.endpoints)?,
        rack: body.rack,
        last_stop: match body.last_stop.ok_or(CodecError::Field("last_stop"))? {
            Record::Clean(epoch) => LastStop::Clean(BrokerEpoch(epoch)),
            Record::Killed(_) => LastStop::Killed,
            Record::Lossy(_) => LastStop::Lossy,
        },
    })
}

fn encode_replicas(partitions: &[Vec<BrokerId>]) -> Vec<pb::Replicas> {
    partitions
        .iter()
        .map(|replicas| pb::Replicas {
            brokers: numbers(replicas),
        })
        .collect()
}

fn decode_replicas(partitions: &[pb::Replicas]) -> Vec<Vec<BrokerId>> {
    partitions
        .iter()
        .map(|replicas| brokers(&replicas.brokers))
        .collect()
}

fn encode_new_topic(topic: &NewTopic) -> pb::create_topics::Topic {
    pb::create_topics::Topic {
        name: topic.name.clone(),
        id: topic.id.to_bytes().to_vec().into(),
        configs: topic.configs.clone(),
        partitions: encode_replicas(&topic.partitions),
    }
}

fn decode_new_topic(record: pb::create_topics::Topic) -> Result<NewTopic, CodecError> {
    Ok(NewTopic {
        id: topic_id(&record.id)?,
        name: record.name,
        configs: record.configs,
        partitions: decode_replicas(&record.partitions),
    })
}

fn encode_new_partitions(topic: &NewPartitions) -> pb::create_partitions::Topic {
    pb::create_partitions::Topic {
        id: topic.topic.to_bytes().to_vec().into(),
        existing: topic.existing,
        partitions: encode_replicas(&topic.partitions),
    }
}

fn decode_new_partitions(
    record: pb::create_partitions::Topic,
) -> Result<NewPartitions, CodecError> {
    Ok(NewPartitions {
        topic: topic_id(&record.id)?,
        existing: record.existing,
        partitions: decode_replicas(&record.partitions),
    })
}

fn encode_partition_change(change: &PartitionChange) -> pb::alter_partitions::Change {
    use pb::alter_partitions as record;
    record::Change {
        topic: change.topic.to_bytes().to_vec().into(),
        partition: change.partition,
        partition_epoch: change.partition_epoch.0,
        requester: change.requester.map(|requester| record::Requester {
            broker: requester.broker.0,
            broker_epoch: requester.broker_epoch.0,
            leader_epoch: requester.leader_epoch,
        }),
        isr: change.isr.as_ref().map(|isr| record::Isr {
            members: isr
                .iter()
                .map(|member| record::isr::Member {
                    broker: member.broker.0,
                    broker_epoch: member.broker_epoch.map(|epoch| epoch.0),
                })
                .collect(),
        }),
        leader: change.leader.map(|election| match election {
            Election::Clean(broker) => record::change::Leader::Clean(broker.0),
            Election::Unclean(broker) => record::change::Leader::Unclean(broker.0),
        }),
        replicas: change.replicas.as_ref().map(|to| record::Reassignment {
            replicas: numbers(&to.replicas),
            adding: numbers(&to.adding),
            removing: numbers(&to.removing),
        }),
        damage: change.damage.map(|damage| record::Damage {
            broker: damage.broker.0,
            broker_epoch: damage.broker_epoch.0,
            damaged: damage.damaged,
        }),
    }
}

fn decode_partition_change(
    record: pb::alter_partitions::Change,
) -> Result<PartitionChange, CodecError> {
    use pb::alter_partitions::change::Leader;
    Ok(PartitionChange {
        topic: topic_id(&record.topic)?,
        partition: record.partition,
        partition_epoch: PartitionEpoch(record.partition_epoch),
        requester: record.requester.map(|requester| Requester {
            broker: BrokerId(requester.broker),
            broker_epoch: BrokerEpoch(requester.broker_epoch),
            leader_epoch: requester.leader_epoch,
        }),
        isr: record.isr.map(|isr| {
            isr.members
                .iter()
                .map(|member| IsrMember {
                    broker: BrokerId(member.broker),
                    broker_epoch: member.broker_epoch.map(BrokerEpoch),
                })
                .collect()
        }),
        leader: record.leader.map(|leader| match leader {
            Leader::Clean(broker) => Election::Clean(BrokerId(broker)),
            Leader::Unclean(broker) => Election::Unclean(BrokerId(broker)),
        }),
        replicas: record.replicas.map(|to| Reassignment {
            replicas: brokers(&to.replicas),
            adding: brokers(&to.adding),
            removing: brokers(&to.removing),
        }),
        damage: record.damage.map(|damage| Damage {
            broker: BrokerId(damage.broker),
            broker_epoch: BrokerEpoch(damage.broker_epoch),
            damaged: damage.damaged,
        }),
    })
}

fn encode_config_change(change: &ConfigChange) -> pb::alter_configs::Change {
    use pb::alter_configs as record;
    record::Change {
        resource: Some(match &change.resource {
            ConfigResource::Topic(name) => record::change::Resource::Topic(name.clone()),
            ConfigResource::Broker(Some(broker)) => record::change::Resource::Broker(broker.0),
            ConfigResource::Broker(None) => {
                record::change::Resource::EveryBroker(record::EveryBroker {})
            }
        }),
        set: change
            .set
            .iter()
            .map(|(key, value)| record::Entry {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        remove: change.remove.clone(),
        expected: change
            .expected
            .iter()
            .map(|(key, value)| record::Expectation {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
    }
}

fn decode_config_change(record: pb::alter_configs::Change) -> Result<ConfigChange, CodecError> {
    use pb::alter_configs::change::Resource;
    Ok(ConfigChange {
        resource: match record.resource.ok_or(CodecError::Field("resource"))? {
            Resource::Topic(name) => ConfigResource::Topic(name),
            Resource::Broker(broker) => ConfigResource::Broker(Some(BrokerId(broker))),
            Resource::EveryBroker(_) => ConfigResource::Broker(None),
        },
        set: record
            .set
            .into_iter()
            .map(|entry| (entry.key, entry.value))
            .collect(),
        remove: record.remove,
        expected: record
            .expected
            .into_iter()
            .map(|expected| (expected.key, expected.value))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: u32, body: &pb::AlterConfigs) -> pb::Command {
        record_of(Type::AlterConfigs, version, body)
    }

    fn record_of(command_type: Type, version: u32, body: &impl Message) -> pb::Command {
        pb::Command {
            r#type: command_type as u32,
            version,
            body: body.encode_to_vec().into(),
        }
    }

    #[test]
    fn unfence_broker_is_read_as_its_first_version_wrote_it() {
        let body = |reconciled| pb::UnfenceBroker {
            broker: 1,
            epoch: 2,
            reconciled,
        };
        let command = |reconciled| Command::UnfenceBroker {
            broker: BrokerId(1),
            epoch: BrokerEpoch(2),
            reconciled,
        };
        let decode = |version, reconciled| {
            decode_command(&record_of(Type::UnfenceBroker, version, &body(reconciled)))
        };
        assert_eq!(decode(1, None).unwrap(), command(u64::MAX));
        assert_eq!(decode(2, Some(7)).unwrap(), command(7));
        for (version, reconciled) in [(1, Some(7)), (2, None), (0, None), (3, Some(7))] {
            assert!(decode(version, reconciled).is_err(), "{version}");
        }
    }

    #[test]
    fn alter_partitions_is_read_as_its_first_version_wrote_it() {
        use pb::alter_partitions::{Change, Damage};
        let body = |damage| pb::AlterPartitions {
            changes: vec![Change {
                topic: vec![1; 16].into(),
                damage,
                ..Change::default()
            }],
        };
        let decode = |version, damage| {
            decode_command(&record_of(Type::AlterPartitions, version, &body(damage)))
        };
        let damage = Some(Damage::default());
        assert_eq!(decode(1, None).unwrap(), decode(2, None).unwrap());
        assert!(decode(2, damage).is_ok());
        for (version, damage) in [(1, damage), (0, None), (3, None)] {
            assert!(decode(version, damage).is_err(), "{version}");
        }
    }

    #[test]
    fn alter_configs_is_read_as_its_first_version_wrote_it() {
        use pb::alter_configs::{Change, Entry, Expectation, change::Resource};
        let mut change = Change {
            resource: Some(Resource::Topic("t".into())),
            set: vec![Entry {
                key: "k".into(),
                value: "v".into(),
            }],
            remove: vec!["r".into()],
            expected: Vec::new(),
        };
        let first = pb::AlterConfigs {
            changes: vec![change.clone()],
        };
        let expected = Command::AlterConfigs(vec![ConfigChange {
            resource: ConfigResource::Topic("t".into()),
            set: vec![("k".into(), "v".into())],
            remove: vec!["r".into()],
            expected: Vec::new(),
        }]);
        for version in [1, 2] {
            assert_eq!(decode_command(&record(version, &first)).unwrap(), expected);
        }
        change.expected.push(Expectation {
            key: "k".into(),
            value: None,
        });
        let second = pb::AlterConfigs {
            changes: vec![change],
        };
        assert!(decode_command(&record(2, &second)).is_ok());
        for (version, body) in [(1, &second), (0, &first), (3, &first)] {
            assert!(decode_command(&record(version, body)).is_err(), "{version}");
        }
    }
}
