//! ApiVersions 0–4 (KIP-35, KIP-511): what this node serves.
//!
//! The response header is v0 in every version, because a client asks before it knows what the node understands. A
//! version we do not know is answered in v0 with UNSUPPORTED_VERSION and the range of this API, from which the client
//! tries again. A client name or version that is not `[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?` is INVALID_REQUEST
//! from v3 on (KIP-511). Supported features whose minimum is 0 are left out below v4.

use kafka_wire::api_versions_response::ApiVersion as Row;
use kafka_wire::{ApiVersionsRequest, ApiVersionsResponse};

use super::{API_VERSIONS_KEY, Api, ErrorCode, RequestContext, served};

pub(crate) async fn handle(
    _ctx: RequestContext,
    request: ApiVersionsRequest,
    version: i16,
) -> ApiVersionsResponse {
    let named = is_software_name(&request.client_software_name)
        && is_software_name(&request.client_software_version);
    let mut response = ApiVersionsResponse::default();
    if version >= 3 && !named {
        response.error_code = ErrorCode::InvalidRequest.code();
        return response;
    }
    response.api_keys = served().map(row).collect();
    response.api_keys.sort_by_key(|row| row.api_key);
    response
}

/// The v0 answer to a version we do not know.
pub(super) fn unsupported() -> ApiVersionsResponse {
    let mut response = ApiVersionsResponse::default();
    response.error_code = ErrorCode::UnsupportedVersion.code();
    response.api_keys = served()
        .filter(|api| api.key == API_VERSIONS_KEY)
        .map(row)
        .collect();
    response
}

fn row(api: &Api) -> Row {
    let mut row = Row::default();
    row.api_key = api.key;
    row.min_version = *api.versions.start();
    row.max_version = *api.versions.end();
    row
}

fn is_software_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_names_are_kip_511s() {
        for good in ["librdkafka", "apache-kafka-java", "2.0.2", "a"] {
            assert!(is_software_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "ä"] {
            assert!(!is_software_name(bad), "{bad}");
        }
    }

    #[test]
    fn an_unknown_version_learns_the_range_of_this_api_only() {
        let response = unsupported();
        assert_eq!(response.error_code, 35);
        assert_eq!(response.api_keys.len(), 1);
        assert_eq!(
            (
                response.api_keys[0].api_key,
                response.api_keys[0].max_version
            ),
            (18, 4)
        );
    }
}
