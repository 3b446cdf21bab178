//! Images to test against.

use kittiwake_raft::{
    BrokerId, ClusterImage, Command, DirectoryId, Election, Endpoint, IncarnationId, IsrMember,
    LastStop, NewTopic, Partition, PartitionChange, RegisterBroker, TopicId,
};

use super::partitions::unchanged;

/// The listener of every broker in [`image_of`].
pub(crate) const LISTENER: &str = "PLAINTEXT";

/// A cluster of `brokers` live brokers, 0 and up, at `host-N:9092`.
pub(crate) fn image_of(brokers: i32) -> ClusterImage {
    let mut image = ClusterImage::new("cluster");
    for id in 0..brokers {
        apply(
            &mut image,
            Command::RegisterBroker(RegisterBroker {
                broker: BrokerId(id),
                incarnation_id: IncarnationId::random(),
                directory_id: DirectoryId::random(),
                endpoints: vec![Endpoint {
                    listener: LISTENER.into(),
                    host: format!("host-{id}"),
                    port: 9092,
                }],
                rack: None,
                last_stop: LastStop::Killed,
            }),
        );
        let epoch = image
            .broker(BrokerId(id))
            .map(|broker| broker.epoch)
            .unwrap_or_default();
        let reconciled = image.offset;
        apply(
            &mut image,
            Command::UnfenceBroker {
                broker: BrokerId(id),
                epoch,
                reconciled,
            },
        );
    }
    image
}

/// A cluster of one broker and one topic of one partition.
pub(crate) fn image_with_topic(name: &str, configs: &[(&str, &str)]) -> ClusterImage {
    let mut image = image_of(1);
    create(&mut image, name, configs, vec![vec![BrokerId(0)]]);
    image
}

/// Creates a topic.
pub(crate) fn create(
    image: &mut ClusterImage,
    name: &str,
    configs: &[(&str, &str)],
    partitions: Vec<Vec<BrokerId>>,
) {
    let configs = configs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let topic = NewTopic {
        name: name.into(),
        id: TopicId::random(),
        configs,
        partitions,
    };
    apply(image, Command::CreateTopics(vec![topic]));
}

/// Applies a command that must be accepted.
pub(crate) fn apply(image: &mut ClusterImage, command: Command) {
    let results = image.apply(image.offset + 1, &command);
    assert!(
        results.iter().all(Result::is_ok),
        "{command:?}: {results:?}"
    );
}

/// A partition of a topic that exists.
pub(crate) fn partition_of<'a>(
    image: &'a ClusterImage,
    topic: &str,
    index: usize,
) -> &'a Partition {
    let topic = image.topic_by_name(topic).expect("the topic exists");
    &topic.partitions[index]
}

/// Brings a live broker into the ISR of every led partition it has a replica of, as the leaders would.
pub(crate) fn rejoin(image: &mut ClusterImage, broker: BrokerId) {
    let behind = |partition: &Partition| {
        partition.leader.is_some()
            && partition.replicas.contains(&broker)
            && !partition.isr.contains(&broker)
    };
    let changes = changes(image, behind, |partition, change| {
        let members = partition.isr.iter().copied().chain([broker]);
        change.isr = Some(
            members
                .map(|broker| IsrMember {
                    broker,
                    broker_epoch: None,
                })
                .collect(),
        );
    });
    apply(image, Command::AlterPartitions(changes));
}

/// Elects `to` in the first `count` partitions of a topic.
pub(crate) fn move_leaders(image: &mut ClusterImage, topic: &str, count: usize, to: BrokerId) {
    let id = image.topic_by_name(topic).expect("the topic exists").id;
    let mut changes = changes(
        image,
        |_| true,
        |_, change| change.leader = Some(Election::Clean(to)),
    );
    changes.retain(|change| change.topic == id);
    changes.truncate(count);
    apply(image, Command::AlterPartitions(changes));
}

fn changes(
    image: &ClusterImage,
    concerned: impl Fn(&Partition) -> bool,
    fill: impl Fn(&Partition, &mut PartitionChange),
) -> Vec<PartitionChange> {
    let mut changes = Vec::new();
    for topic in image.topics() {
        for (index, partition) in (0..).zip(&topic.partitions) {
            if concerned(partition) {
                let mut change = unchanged(topic, index, partition);
                fill(partition, &mut change);
                changes.push(change);
            }
        }
    }
    changes
}
