//! IncrementalAlterConfigs 0–1 (KIP-339): SET, DELETE, APPEND and SUBTRACT on the configuration of topics, and on the
//! defaults of topics for one broker or all.
//!
//! A resource or a key named twice, an operation that does not exist, a missing value and a key that only the broker's
//! configuration file sets are INVALID_REQUEST; a key or value that is wrong is INVALID_CONFIG.

use kafka_wire::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_wire::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_wire::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};
use kafka_wire_core::StrBytes;
use kittiwake_raft::ConfigResource;

use super::{ErrorCode, RequestContext};
use crate::controller::Refusal;
use crate::controller::configs::{Alteration, KeyChange, Operation, alter_configs, resource};

pub(crate) async fn handle(
    ctx: RequestContext,
    request: IncrementalAlterConfigsRequest,
    _version: i16,
) -> IncrementalAlterConfigsResponse {
    let mut response = IncrementalAlterConfigsResponse::default();
    let mut accepted = Vec::new();
    let mut alterations = Vec::new();
    for asked in request.resources {
        match alteration(&asked) {
            Ok(alteration) => {
                alterations.push(alteration);
                accepted.push(asked);
            }
            Err(refusal) => response.responses.push(answer(asked, Err(refusal))),
        }
    }
    let results = alter_configs(&ctx.broker, &alterations, request.validate_only).await;
    response.responses.extend(
        accepted
            .into_iter()
            .zip(results)
            .map(|(asked, result)| answer(asked, result)),
    );
    response
}

fn alteration(asked: &AlterConfigsResource) -> Result<(ConfigResource, Alteration), Refusal> {
    let resource = resource(asked.resource_type, &asked.resource_name)?;
    let changes = asked.configs.iter().map(change).collect::<Result<_, _>>()?;
    Ok((resource, Alteration::Incremental(changes)))
}

fn change(config: &AlterableConfig) -> Result<KeyChange, Refusal> {
    let operation = Operation::from_wire(config.config_operation).ok_or_else(|| {
        Refusal::new(
            ErrorCode::InvalidRequest,
            format!("Unknown operation {}.", config.config_operation),
        )
    })?;
    Ok(KeyChange {
        name: config.name.to_string(),
        operation,
        value: config.value.as_ref().map(ToString::to_string),
    })
}

fn answer(
    asked: AlterConfigsResource,
    result: Result<(), Refusal>,
) -> AlterConfigsResourceResponse {
    let mut answer = AlterConfigsResourceResponse::default();
    answer.error_message = None;
    if let Err(refusal) = result {
        answer.error_code = refusal.code.code();
        answer.error_message = Some(StrBytes::from(refusal.message));
    }
    answer.resource_type = asked.resource_type;
    answer.resource_name = asked.resource_name;
    answer
}
