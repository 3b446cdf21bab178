//! InitProducerId 0–5, of idempotent producers: an id that no producer ever had, with epoch 0 (KIP-98).
//!
//! A producer that names its old id and epoch (v3+, KIP-360) gets a new id as well, as from Kafka: only a transactional
//! producer keeps its id, the others bump their epoch by themselves.
//!
//! A transactional id is TRANSACTIONAL_ID_AUTHORIZATION_FAILED: transactions are not supported, and of all errors this is
//! the one at which both the Java client and librdkafka stop and tell the application, at once. At UNSUPPORTED_VERSION and
//! every unknown code librdkafka retries for ever, at COORDINATOR_NOT_AVAILABLE both do.

use kafka_wire::{InitProducerIdRequest, InitProducerIdResponse};
use tracing::info;

use super::{ErrorCode, RequestContext};

const NO_PRODUCER_ID: i64 = -1;
const NO_PRODUCER_EPOCH: i16 = -1;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: InitProducerIdRequest,
    _version: i16,
) -> InitProducerIdResponse {
    match check(&request) {
        Ok(()) => {}
        Err(error) => {
            info!(client = ?ctx.client_id, %error, "refused a producer id");
            return refused(error);
        }
    }
    match ctx.broker.producer_ids.next().await {
        Ok(id) => {
            let mut response = InitProducerIdResponse::default();
            response.producer_id = id;
            response.producer_epoch = 0;
            response
        }
        Err(refusal) => {
            info!(client = ?ctx.client_id, error = %refusal, "refused a producer id");
            refused(refusal.code)
        }
    }
}

fn check(request: &InitProducerIdRequest) -> Result<(), ErrorCode> {
    let named = (
        request.producer_id != NO_PRODUCER_ID,
        request.producer_epoch != NO_PRODUCER_EPOCH,
    );
    match &request.transactional_id {
        Some(id) if id.is_empty() => Err(ErrorCode::InvalidRequest),
        Some(_) => Err(ErrorCode::TransactionalIdAuthorizationFailed),
        None if named.0 != named.1 => Err(ErrorCode::InvalidRequest),
        None => Ok(()),
    }
}

fn refused(error: ErrorCode) -> InitProducerIdResponse {
    let mut response = InitProducerIdResponse::default();
    response.error_code = error.code();
    response.producer_id = NO_PRODUCER_ID;
    response.producer_epoch = NO_PRODUCER_EPOCH;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(transactional_id: Option<&str>, id: i64, epoch: i16) -> InitProducerIdRequest {
        let mut request = InitProducerIdRequest::default();
        request.transactional_id = transactional_id.map(Into::into);
        request.producer_id = id;
        request.producer_epoch = epoch;
        request
    }

    #[test]
    fn only_idempotent_producers_are_served() {
        assert_eq!(check(&request(None, -1, -1)), Ok(()));
        assert_eq!(check(&request(None, 7, 3)), Ok(()));
        assert_eq!(check(&request(None, 7, -1)), Err(ErrorCode::InvalidRequest));
        assert_eq!(
            check(&request(Some(""), -1, -1)),
            Err(ErrorCode::InvalidRequest)
        );
        assert_eq!(
            check(&request(Some("t"), -1, -1)),
            Err(ErrorCode::TransactionalIdAuthorizationFailed)
        );
    }
}
