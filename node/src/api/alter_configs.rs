//! AlterConfigs 0–2 (KIP-133, superseded by IncrementalAlterConfigs): the keys given are set, every other key of the
//! resource returns to its default. Errors as in IncrementalAlterConfigs.

use kafka_wire::alter_configs_request::AlterConfigsResource;
use kafka_wire::alter_configs_response::AlterConfigsResourceResponse;
use kafka_wire::{AlterConfigsRequest, AlterConfigsResponse};
use kafka_wire_core::StrBytes;
use kittiwake_raft::ConfigResource;

use super::{ErrorCode, RequestContext};
use crate::config::topic::Configs;
use crate::controller::Refusal;
use crate::controller::configs::{Alteration, alter_configs, resource};

pub(crate) async fn handle(
    ctx: RequestContext,
    request: AlterConfigsRequest,
    _version: i16,
) -> AlterConfigsResponse {
    let mut response = AlterConfigsResponse::default();
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
    let mut configs = Configs::new();
    for config in &asked.configs {
        let invalid = |message: String| Err(Refusal::new(ErrorCode::InvalidRequest, message));
        let name = config.name.to_string();
        let Some(value) = &config.value else {
            return invalid(format!("The key {name} has no value."));
        };
        if configs.contains_key(&name) {
            return invalid(format!("The key {name} appears twice."));
        }
        configs.insert(name, value.to_string());
    }
    Ok((resource, Alteration::Replace(configs)))
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
