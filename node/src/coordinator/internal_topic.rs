//! Creates `__consumer_offsets` when it is first needed.

use std::collections::BTreeMap;

use kittiwake_raft::{Command, CommandError, NewTopic, ProposeError, TopicId};

use super::OFFSETS_TOPIC;
use crate::broker::Broker;
use crate::controller::placement::{Candidate, PlacementError, Start, place};

/// Replicas of an internal topic where nothing else is configured and there are as many voters.
const REPLICAS_DEFAULT: usize = 3;

/// Why the topic does not exist yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error(transparent)]
    Placement(#[from] PlacementError),
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error(transparent)]
    Refused(#[from] CommandError),
}

/// Sees to it that the topic exists and that this node's part of it can be used.
///
/// It gets min(3, voters) replicas, and is not created before that many brokers are registered: a node
/// that starts first must not leave it with one.
pub(crate) async fn ensure_exists(broker: &Broker) -> Result<(), CreateError> {
    let image = broker.quorum.image();
    if image.topic_by_name(OFFSETS_TOPIC).is_some() {
        return Ok(());
    }
    let config = &broker.config;
    let replicas = match config.offsets_topic_replication_factor {
        Some(replicas) => usize::try_from(replicas).unwrap_or(1),
        None => config.cluster_voters.0.len().clamp(1, REPLICAS_DEFAULT),
    };
    let candidates: Vec<Candidate<'_>> = image
        .brokers
        .values()
        .map(|broker| Candidate::from(&**broker))
        .collect();
    let count = usize::try_from(config.offsets_topic_num_partitions).unwrap_or(1);
    let partitions = place(&candidates, count, replicas, Start::default())?;
    let topic = NewTopic {
        name: OFFSETS_TOPIC.to_owned(),
        id: TopicId::random(),
        configs: BTreeMap::from([
            ("cleanup.policy".to_owned(), "compact".to_owned()),
            ("compression.type".to_owned(), "producer".to_owned()),
            (
                "segment.bytes".to_owned(),
                config.offsets_topic_segment_bytes.to_string(),
            ),
        ]),
        partitions,
    };
    let outcome = broker
        .quorum
        .propose(Command::CreateTopics(vec![topic]))
        .await?;
    for result in outcome.results {
        match result {
            // Somebody else was asked at the same time.
            Ok(_) | Err(CommandError::TopicExists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    broker.groups.wait_followed(outcome.offset).await;
    Ok(())
}
