//! DeleteTopics 1–6: by name, from v6 also by id (KIP-516).
//!
//! `delete.topic.enable=false` is TOPIC_DELETION_DISABLED, and INVALID_REQUEST to versions before 3 that do not know it. A
//! topic named twice is INVALID_REQUEST and stays.

use std::collections::HashMap;

use kafka_wire::delete_topics_request::DeleteTopicState;
use kafka_wire::delete_topics_response::DeletableTopicResult;
use kafka_wire::{DeleteTopicsRequest, DeleteTopicsResponse};
use kafka_wire_core::{StrBytes, Uuid};
use kittiwake_raft::{ClusterImage, TopicId};

use super::{ErrorCode, RequestContext};
use crate::controller::Refusal;
use crate::controller::topics::{TopicRef, delete_topics};

const BY_ID_FROM: i16 = 6;
const DELETION_DISABLED_FROM: i16 = 3;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: DeleteTopicsRequest,
    version: i16,
) -> DeleteTopicsResponse {
    let states = if version >= BY_ID_FROM {
        request.topics
    } else {
        request.topic_names.into_iter().map(by_name).collect()
    };
    let mut response = DeleteTopicsResponse::default();
    let mut accepted = Vec::new();
    for (state, topic) in checked(&ctx.broker.quorum.image(), states) {
        match topic {
            Ok(topic) => accepted.push((state, topic)),
            Err(refusal) => response
                .responses
                .push(answer(state, Err(refusal), version)),
        }
    }
    let topics: Vec<TopicRef> = accepted.iter().map(|(_, topic)| topic.clone()).collect();
    let results = delete_topics(&ctx.broker, &topics).await;
    for ((mut state, _), result) in accepted.into_iter().zip(results) {
        let result = result.map(|topic| {
            state.name = Some(StrBytes::from(topic.name.as_str()));
            state.topic_id = Uuid::from_bytes(topic.id.to_bytes());
        });
        response.responses.push(answer(state, result, version));
    }
    response
}

fn by_name(name: StrBytes) -> DeleteTopicState {
    let mut state = DeleteTopicState::default();
    state.name = Some(name);
    state
}

/// The topics meant, those named twice (also once by name and once by id) refused.
fn checked(
    image: &ClusterImage,
    states: Vec<DeleteTopicState>,
) -> Vec<(DeleteTopicState, Result<TopicRef, Refusal>)> {
    let references: Vec<Result<TopicRef, Refusal>> = states.iter().map(reference).collect();
    let target = |reference: &Result<TopicRef, Refusal>| {
        let topic = reference.as_ref().ok()?.find(image).ok()?;
        Some(topic.id)
    };
    let mut times: HashMap<TopicId, usize> = HashMap::new();
    for id in references.iter().filter_map(target) {
        *times.entry(id).or_default() += 1;
    }
    states
        .into_iter()
        .zip(references)
        .map(|(state, reference)| {
            let twice = target(&reference).is_some_and(|id| times.get(&id) != Some(&1));
            let refusal = || Refusal::new(ErrorCode::InvalidRequest, "The topic is named twice.");
            (state, if twice { Err(refusal()) } else { reference })
        })
        .collect()
}

fn reference(state: &DeleteTopicState) -> Result<TopicRef, Refusal> {
    match (&state.name, TopicId::from_bytes(state.topic_id.to_bytes())) {
        (Some(name), None) => Ok(TopicRef::Name(name.to_string())),
        (None, Some(id)) => Ok(TopicRef::Id(id)),
        (Some(_), Some(_)) => Err(Refusal::new(
            ErrorCode::InvalidRequest,
            "A topic is named by name or by id, not both.",
        )),
        (None, None) => Err(Refusal::new(
            ErrorCode::InvalidRequest,
            "Neither a topic name nor an id is given.",
        )),
    }
}

fn answer(
    state: DeleteTopicState,
    result: Result<(), Refusal>,
    version: i16,
) -> DeletableTopicResult {
    let mut answer = DeletableTopicResult::default();
    answer.error_message = None;
    answer.name = state.name;
    answer.topic_id = state.topic_id;
    if let Err(refusal) = result {
        let unknown_to_client =
            refusal.code == ErrorCode::TopicDeletionDisabled && version < DELETION_DISABLED_FROM;
        let code = if unknown_to_client {
            ErrorCode::InvalidRequest
        } else {
            refusal.code
        };
        answer.error_code = code.code();
        answer.error_message = Some(StrBytes::from(refusal.message));
    }
    answer
}

#[cfg(test)]
mod tests {
    use kittiwake_raft::BrokerId;

    use super::*;
    use crate::controller::tests_support::{create, image_of};

    #[test]
    fn a_topic_named_twice_stays() {
        let mut image = image_of(1);
        create(&mut image, "a", &[], vec![vec![BrokerId(0)]]);
        create(&mut image, "b", &[], vec![vec![BrokerId(0)]]);
        let mut by_id = DeleteTopicState::default();
        by_id.topic_id = Uuid::from_bytes(image.topic_by_name("a").unwrap().id.to_bytes());
        let states = vec![
            by_name("a".into()),
            by_name("b".into()),
            by_id,
            DeleteTopicState::default(),
        ];
        let codes: Vec<_> = checked(&image, states)
            .into_iter()
            .map(|(_, result)| result.err().map_or(ErrorCode::None, |refusal| refusal.code))
            .collect();
        assert_eq!(
            codes,
            [
                ErrorCode::InvalidRequest,
                ErrorCode::None,
                ErrorCode::InvalidRequest,
                ErrorCode::InvalidRequest
            ]
        );
    }

    #[test]
    fn old_clients_are_told_what_they_know() {
        let disabled = || Err(Refusal::new(ErrorCode::TopicDeletionDisabled, "no"));
        assert_eq!(
            answer(by_name("a".into()), disabled(), 2).error_code,
            ErrorCode::InvalidRequest.code()
        );
        assert_eq!(
            answer(by_name("a".into()), disabled(), 3).error_code,
            ErrorCode::TopicDeletionDisabled.code()
        );
    }
}
