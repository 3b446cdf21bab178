//! CreateTopics 2–7.
//!
//! Partitions and replication factor −1 are the broker's defaults (KIP-464); replicas may be assigned instead of counted.
//! A topic named twice is INVALID_REQUEST, once. From v5 the result has the topic's numbers and its whole configuration
//! (KIP-525), from v7 its id, which is zero with `validate_only`. When the answer goes out, the partitions of this node can
//! be produced to.

use std::collections::HashMap;

use kafka_wire::create_topics_request::CreatableTopic;
use kafka_wire::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_wire::{CreateTopicsRequest, CreateTopicsResponse};
use kafka_wire_core::{StrBytes, Uuid};
use kittiwake_raft::BrokerId;

use super::{ErrorCode, RequestContext};
use crate::config::topic::TOPIC_KEYS;
use crate::config::topic_layers::{Layers, Source};
use crate::controller::Refusal;
use crate::controller::topics::{CreatedTopic, TopicSpec, create_topics};

const DEFAULT: i32 = -1;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: CreateTopicsRequest,
    version: i16,
) -> CreateTopicsResponse {
    let mut times: HashMap<StrBytes, usize> = HashMap::new();
    for topic in &request.topics {
        *times.entry(topic.name.clone()).or_default() += 1;
    }
    let mut response = CreateTopicsResponse::default();
    let mut specs = Vec::new();
    for topic in request.topics {
        match times.get_mut(&topic.name) {
            Some(1) => match spec(&topic) {
                Ok(spec) => specs.push(spec),
                Err(refusal) => response.topics.push(refused(topic.name, refusal)),
            },
            // Answered at its first mention, skipped at the others.
            Some(times) if *times > 1 => {
                *times = 0;
                let refusal = Refusal::new(ErrorCode::InvalidRequest, "Duplicate topic name.");
                response.topics.push(refused(topic.name, refusal));
            }
            _ => {}
        }
    }
    let results = create_topics(&ctx.broker, &specs, request.validate_only).await;
    for (spec, result) in specs.into_iter().zip(results) {
        let name = StrBytes::from(spec.name);
        response.topics.push(match result {
            Ok(created) => answer(&ctx, name, &created, version),
            Err(refusal) => refused(name, refusal),
        });
    }
    response
}

fn spec(topic: &CreatableTopic) -> Result<TopicSpec, Refusal> {
    let value =
        |config: &kafka_wire::create_topics_request::CreatableTopicConfig| match &config.value {
            Some(value) => Ok((config.name.to_string(), value.to_string())),
            None => {
                let message = format!("The configuration {} has no value.", config.name.as_str());
                Err(Refusal::new(ErrorCode::InvalidConfig, message))
            }
        };
    Ok(TopicSpec {
        name: topic.name.to_string(),
        partitions: Some(topic.num_partitions).filter(|count| *count != DEFAULT),
        replication_factor: Some(topic.replication_factor)
            .filter(|factor| i32::from(*factor) != DEFAULT),
        assignment: topic
            .assignments
            .iter()
            .map(|assigned| {
                (
                    assigned.partition_index,
                    assigned.broker_ids.iter().copied().map(BrokerId).collect(),
                )
            })
            .collect(),
        configs: topic.configs.iter().map(value).collect::<Result<_, _>>()?,
    })
}

fn refused(name: StrBytes, refusal: Refusal) -> CreatableTopicResult {
    let mut result = CreatableTopicResult::default();
    result.name = name;
    result.error_code = refusal.code.code();
    result.error_message = Some(StrBytes::from(refusal.message));
    result
}

fn answer(
    ctx: &RequestContext,
    name: StrBytes,
    created: &CreatedTopic,
    version: i16,
) -> CreatableTopicResult {
    const DETAILS_FROM: i16 = 5;
    let mut result = CreatableTopicResult::default();
    // The codec starts from an empty message; Kafka sends null.
    result.error_message = None;
    result.name = name;
    result.topic_id = created
        .id
        .map(|id| Uuid::from_bytes(id.to_bytes()))
        .unwrap_or_default();
    if version >= DETAILS_FROM {
        result.num_partitions = created.partitions;
        result.replication_factor = created.replication_factor;
        result.configs = Some(configs(ctx, created));
    }
    result
}

/// Every key of the topic, its own and its defaults.
fn configs(ctx: &RequestContext, created: &CreatedTopic) -> Vec<CreatableTopicConfigs> {
    let image = ctx.broker.quorum.image();
    let layers = Layers::new(&image, &ctx.broker.config, None);
    TOPIC_KEYS
        .iter()
        .map(|row| {
            let own = created.configs.get(row.name);
            let inherited = layers.value(row);
            let mut config = CreatableTopicConfigs::default();
            config.name = StrBytes::from(row.name);
            config.value = Some(StrBytes::from(
                own.map_or(&*inherited.value, String::as_str),
            ));
            config.config_source = own.map_or(inherited.source, |_| Source::Topic).code();
            config
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minus_one_is_the_default_and_a_missing_value_is_refused() {
        let mut topic = CreatableTopic::default();
        topic.name = "t".into();
        topic.num_partitions = -1;
        topic.replication_factor = -1;
        let asked = spec(&topic).unwrap();
        assert_eq!((asked.partitions, asked.replication_factor), (None, None));
        topic.num_partitions = -2;
        topic.replication_factor = 0;
        let asked = spec(&topic).unwrap();
        assert_eq!(
            (asked.partitions, asked.replication_factor),
            (Some(-2), Some(0))
        );
        let mut config = kafka_wire::create_topics_request::CreatableTopicConfig::default();
        config.name = "retention.ms".into();
        config.value = None;
        topic.configs = vec![config];
        assert_eq!(
            spec(&topic).map_err(|refusal| refusal.code),
            Err(ErrorCode::InvalidConfig)
        );
    }
}
