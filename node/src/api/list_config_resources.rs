//! ListConfigResources 0–1 (KIP-714, KIP-1142): what can be described by DescribeConfigs, by type.
//!
//! v0 is the older ListClientMetricsResources and asks for client metrics, of which there are none. From v1 the client
//! names types; no type is all of them. An unknown type is UNSUPPORTED_VERSION.

use kafka_wire::list_config_resources_response::ConfigResource;
use kafka_wire::{ListConfigResourcesRequest, ListConfigResourcesResponse};
use kafka_wire_core::StrBytes;
use kittiwake_raft::ClusterImage;
use std::collections::BTreeSet;

use super::{ErrorCode, RequestContext};
use crate::controller::configs::resource_type::{
    BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP, TOPIC,
};

const TYPES: [i8; 5] = [TOPIC, BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP];
const TYPES_FROM: i16 = 1;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: ListConfigResourcesRequest,
    version: i16,
) -> ListConfigResourcesResponse {
    let mut types: BTreeSet<i8> = request.resource_types.into_iter().collect();
    if version < TYPES_FROM {
        types = BTreeSet::from([CLIENT_METRICS]);
    } else if types.is_empty() {
        types.extend(TYPES);
    }
    let mut response = ListConfigResourcesResponse::default();
    if types.iter().any(|kind| !TYPES.contains(kind)) {
        response.error_code = ErrorCode::UnsupportedVersion.code();
        return response;
    }
    response.config_resources = resources(&ctx.broker.quorum.image(), &types);
    response
}

fn resources(image: &ClusterImage, types: &BTreeSet<i8>) -> Vec<ConfigResource> {
    let mut found = Vec::new();
    let mut add = |kind, name: StrBytes| {
        let mut resource = ConfigResource::default();
        resource.resource_type = kind;
        resource.resource_name = name;
        found.push(resource);
    };
    if types.contains(&TOPIC) {
        image
            .topics()
            .for_each(|topic| add(TOPIC, StrBytes::from(topic.name.as_str())));
    }
    if types.contains(&BROKER) {
        image
            .brokers
            .keys()
            .for_each(|id| add(BROKER, StrBytes::from(id.to_string())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::tests_support::image_with_topic;

    #[test]
    fn topics_and_brokers_are_listed_by_type() {
        let image = image_with_topic("t", &[]);
        let names = |types: &[i8]| -> Vec<(i8, String)> {
            let types = types.iter().copied().collect();
            let found = resources(&image, &types).into_iter();
            found
                .map(|resource| (resource.resource_type, resource.resource_name.to_string()))
                .collect()
        };
        assert_eq!(names(&[TOPIC]), [(TOPIC, "t".to_owned())]);
        assert_eq!(
            names(&TYPES),
            [(TOPIC, "t".to_owned()), (BROKER, "0".to_owned())]
        );
        assert_eq!(names(&[CLIENT_METRICS, GROUP]), []);
    }
}
