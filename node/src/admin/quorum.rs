//! The metadata quorum, described. How far its members are only the controller knows, so every other node asks it.

use std::time::Duration;

use kittiwake_proto::kittiwake::admin::v1 as proto;
use kittiwake_proto::kittiwake::admin::v1::admin_client::AdminClient;
use kittiwake_raft::Member;
use tonic::transport::Endpoint;
use tracing::debug;

use crate::broker::Broker;

/// What the controller is given to answer: a person waits.
const CONTROLLER_DEADLINE: Duration = Duration::from_secs(1);

/// The quorum as this node sees it.
pub(super) fn as_seen(broker: &Broker) -> proto::GetQuorumResponse {
    let status = broker.quorum.status();
    let member = |member: &Member, voter| proto::QuorumMember {
        node_id: member.broker.0,
        directory_id: member.directory_id.to_string(),
        address: member.address.clone(),
        voter,
        log_end: member.log_end,
    };
    let voters = status.voters.iter().map(|one| member(one, true));
    let learners = status.learners.iter().map(|one| member(one, false));
    let mut members: Vec<proto::QuorumMember> = voters.chain(learners).collect();
    members.sort_by_key(|member| (!member.voter, member.node_id));
    proto::GetQuorumResponse {
        controller: status.leader.map(|id| id.0),
        term: status.term,
        committed: status.committed,
        members,
    }
}

/// The quorum as the controller sees it, or as this node does where the controller does not answer.
pub(crate) async fn ask_controller(broker: &Broker) -> proto::GetQuorumResponse {
    let seen = as_seen(broker);
    let controller = seen.controller.filter(|id| *id != broker.node_id.0);
    let member = seen
        .members
        .iter()
        .find(|member| Some(member.node_id) == controller);
    let Some(member) = member else {
        return seen;
    };
    match ask(&member.address).await {
        Ok(answer) => answer,
        Err(error) => {
            debug!(%error, controller = member.node_id, "the controller does not describe the quorum");
            seen
        }
    }
}

async fn ask(address: &str) -> anyhow::Result<proto::GetQuorumResponse> {
    let endpoint = Endpoint::try_from(format!("http://{address}"))?
        .connect_timeout(CONTROLLER_DEADLINE)
        .timeout(CONTROLLER_DEADLINE);
    let mut client = AdminClient::new(endpoint.connect().await?);
    let answer = client.get_quorum(proto::GetQuorumRequest {}).await?;
    Ok(answer.into_inner())
}
