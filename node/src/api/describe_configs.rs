//! DescribeConfigs 1–4 (KIP-133, KIP-226, KIP-569): of topics, of this broker, and what is set for all brokers (a broker
//! resource without a name).
//!
//! Another broker's configuration is in that broker's file: INVALID_REQUEST; tools ask the broker itself. So are loggers,
//! client metrics and groups, which have no configuration here. Nothing is sensitive: there are no secrets among the keys.

use kafka_wire::describe_configs_request::DescribeConfigsResource;
use kafka_wire::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_wire::{DescribeConfigsRequest, DescribeConfigsResponse};
use kafka_wire_core::StrBytes;
use std::collections::BTreeSet;

use super::RequestContext;
use crate::controller::Refusal;
use crate::controller::configs::{ConfigEntry, describe_configs, resource};

pub(crate) async fn handle(
    ctx: RequestContext,
    request: DescribeConfigsRequest,
    _version: i16,
) -> DescribeConfigsResponse {
    let shown = Shown {
        synonyms: request.include_synonyms,
        documentation: request.include_documentation,
    };
    let mut response = DescribeConfigsResponse::default();
    response.results = each_once(request.resources)
        .map(|asked| describe(&ctx, asked, shown))
        .collect();
    response
}

/// What of an entry the client asked for.
#[derive(Clone, Copy)]
struct Shown {
    synonyms: bool,
    documentation: bool,
}

/// The resources, those asked for again left out: a request of a few bytes each must not be answered with pages each.
fn each_once(
    resources: Vec<DescribeConfigsResource>,
) -> impl Iterator<Item = DescribeConfigsResource> {
    let mut seen = BTreeSet::new();
    resources
        .into_iter()
        .filter(move |asked| seen.insert((asked.resource_type, asked.resource_name.to_string())))
}

fn describe(
    ctx: &RequestContext,
    asked: DescribeConfigsResource,
    shown: Shown,
) -> DescribeConfigsResult {
    let mut result = DescribeConfigsResult::default();
    result.error_message = None;
    match entries(ctx, &asked) {
        Ok(entries) => {
            result.configs = entries
                .into_iter()
                .map(|entry| answer(entry, shown))
                .collect()
        }
        Err(refusal) => {
            result.error_code = refusal.code.code();
            result.error_message = Some(StrBytes::from(refusal.message));
        }
    }
    result.resource_type = asked.resource_type;
    result.resource_name = asked.resource_name;
    result
}

fn entries(
    ctx: &RequestContext,
    asked: &DescribeConfigsResource,
) -> Result<Vec<ConfigEntry>, Refusal> {
    let resource = resource(asked.resource_type, &asked.resource_name)?;
    let mut entries = describe_configs(&ctx.broker.quorum.image(), &ctx.broker.config, &resource)?;
    if let Some(keys) = &asked.configuration_keys {
        let keys: BTreeSet<&str> = keys.iter().map(StrBytes::as_str).collect();
        entries.retain(|entry| keys.contains(entry.name));
    }
    Ok(entries)
}

fn answer(entry: ConfigEntry, shown: Shown) -> DescribeConfigsResourceResult {
    let mut answer = DescribeConfigsResourceResult::default();
    answer.documentation = None;
    answer.name = StrBytes::from(entry.name);
    answer.value = entry.value.map(StrBytes::from);
    answer.read_only = entry.read_only;
    answer.config_source = entry.source.code();
    answer.config_type = entry.wire_type.code();
    if shown.synonyms {
        answer.synonyms = entry
            .synonyms
            .into_iter()
            .map(|found| {
                let mut synonym = DescribeConfigsSynonym::default();
                synonym.name = StrBytes::from(found.name);
                synonym.value = Some(StrBytes::from(found.value));
                synonym.source = found.source.code();
                synonym
            })
            .collect();
    }
    if shown.documentation {
        answer.documentation = Some(StrBytes::from(entry.doc));
    }
    answer
}
