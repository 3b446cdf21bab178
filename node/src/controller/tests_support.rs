//! Images to test against.

use kittiwake_raft::{
    BrokerId, ClusterImage, Command, DirectoryId, Endpoint, IncarnationId, LastStop, NewTopic,
    RegisterBroker, TopicId,
};

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
        apply(
            &mut image,
            Command::UnfenceBroker {
                broker: BrokerId(id),
                epoch,
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
