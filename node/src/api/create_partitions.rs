//! CreatePartitions 0–3: topics grow, never shrink (KIP-195). A topic named twice is INVALID_REQUEST; internal topics keep
//! their partitions (INVALID_TOPIC_EXCEPTION), because groups would be looked for in others.

use std::collections::HashMap;

use kafka_wire::create_partitions_request::CreatePartitionsTopic;
use kafka_wire::create_partitions_response::CreatePartitionsTopicResult;
use kafka_wire::{CreatePartitionsRequest, CreatePartitionsResponse};
use kafka_wire_core::StrBytes;
use kittiwake_raft::BrokerId;

use super::{ErrorCode, RequestContext};
use crate::controller::Refusal;
use crate::controller::topics::{GrowthSpec, create_partitions};

pub(crate) async fn handle(
    ctx: RequestContext,
    request: CreatePartitionsRequest,
    _version: i16,
) -> CreatePartitionsResponse {
    let mut times: HashMap<StrBytes, usize> = HashMap::new();
    for topic in &request.topics {
        *times.entry(topic.name.clone()).or_default() += 1;
    }
    let mut response = CreatePartitionsResponse::default();
    let mut specs = Vec::new();
    for topic in request.topics {
        match times.get_mut(&topic.name) {
            Some(1) => specs.push(spec(&topic)),
            // Answered at its first mention, skipped at the others.
            Some(times) if *times > 1 => {
                *times = 0;
                let refusal = Refusal::new(ErrorCode::InvalidRequest, "Duplicate topic name.");
                response.results.push(answer(topic.name, Err(refusal)));
            }
            _ => {}
        }
    }
    let results = create_partitions(&ctx.broker, &specs, request.validate_only).await;
    let answers = specs
        .into_iter()
        .zip(results)
        .map(|(spec, result)| answer(StrBytes::from(spec.topic), result));
    response.results.extend(answers);
    response
}

fn spec(topic: &CreatePartitionsTopic) -> GrowthSpec {
    let assignment = topic.assignments.as_ref().map(|partitions| {
        partitions
            .iter()
            .map(|assigned| assigned.broker_ids.iter().copied().map(BrokerId).collect())
            .collect()
    });
    GrowthSpec {
        topic: topic.name.to_string(),
        count: topic.count,
        assignment,
    }
}

fn answer(name: StrBytes, result: Result<(), Refusal>) -> CreatePartitionsTopicResult {
    let mut answer = CreatePartitionsTopicResult::default();
    answer.error_message = None;
    answer.name = name;
    if let Err(refusal) = result {
        answer.error_code = refusal.code.code();
        answer.error_message = Some(StrBytes::from(refusal.message));
    }
    answer
}
