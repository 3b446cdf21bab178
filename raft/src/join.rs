//! A node sees to it that the cluster has it as a member, at the address it is at.
//!
//! It asks whoever it knows: the controller, the configured voters, the members it last knew of; and
//! again, ever less often, until its own copy of the membership says that it is in. So a new node
//! joins, a voter that lost its disk comes back as a new member, and a node that moved is found.

use std::sync::Arc;
use std::time::Duration;

use kittiwake_proto::kittiwake::raft::v1 as pb;
use kittiwake_proto::metadata::v1::Member;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::codec::encode_log_id;
use crate::forward::{Attempt, decode_changed};
use crate::local::Local;
use crate::membership::MembershipRefusal;
use crate::transport;

/// Pause after the first round without success; doubled after each, up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A member that has heard from no controller for so long asks whether it still is one: nobody tells
/// who was taken out while it was away.
const FORGOTTEN: Duration = Duration::from_secs(3);

/// How long one node may take to answer. Taking a member in is one entry, fsynced by a majority.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Redirections followed in one round: to the controller, and once more if it has just changed.
const REDIRECTIONS: usize = 2;

/// Runs until the quorum stops.
pub(crate) async fn run(local: Arc<Local>) {
    let mut changes = local.raft.server_metrics();
    let mut pause = PAUSE;
    let mut told = None;
    loop {
        drop(changes.borrow_and_update());
        let settled = match is_member(&local) {
            false => false,
            // What changes is looked at at once, silence is not an event.
            true => match timeout(FORGOTTEN, changes.changed()).await {
                Ok(Ok(())) => continue,
                Ok(Err(_)) => return,
                Err(_) => !is_forgotten(&local).await,
            },
        };
        if settled {
            pause = PAUSE;
            continue;
        }
        match ask(&local).await {
            Some(Ok(())) => tracing::debug!("the metadata quorum has this node as a member"),
            Some(Err(refusal)) if told.as_ref() != Some(&refusal) => {
                tracing::warn!(%refusal, "the metadata quorum does not take this node in");
                told = Some(refusal);
            }
            Some(Err(_)) | None => {}
        }
        if let Ok(Err(_)) = timeout(pause, changes.changed()).await {
            return;
        }
        pause = PAUSE_MAX.min(pause * 2);
    }
}

/// Whether the membership, as this node knows it, has the node where it is.
fn is_member(local: &Local) -> bool {
    let metrics = local.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    membership.get_node(&local.directory_id) == Some(&local.node)
}

/// Whether no controller has been heard of for long. The membership this node knows may be of long
/// ago, and so may the controller.
async fn is_forgotten(local: &Local) -> bool {
    if local.leads() {
        return false;
    }
    let heard = local
        .raft
        .with_raft_state(|state| state.vote_last_modified());
    let heard = heard.await.ok().flatten();
    heard.is_none_or(|heard| heard.elapsed() >= FORGOTTEN)
}

/// One round. `None`: nobody who could decide was reached.
async fn ask(local: &Local) -> Option<Result<(), MembershipRefusal>> {
    let committed = local.metrics().local_committed;
    if local.leads() {
        let deadline = Instant::now() + JOIN_TIMEOUT;
        let admitted = local.admit(local.directory_id, local.node.clone(), committed, deadline);
        return match admitted.await {
            Attempt::Answered(answer) => Some(answer),
            _ => None,
        };
    }
    let request = pb::JoinRequest {
        cluster_id: local.cluster_id.clone(),
        member: Some(Member {
            directory_id: local.directory_id.to_bytes().to_vec().into(),
            broker: local.node.broker.0,
            address: local.node.address.clone(),
        }),
        committed: committed.as_ref().map(encode_log_id),
    };
    let leader = local.leader().map(|(_, node)| node.address);
    let others = local.addresses.all_but(local.node.broker);
    let mut refused = None;
    for address in leader.into_iter().chain(others) {
        match ask_at(local, address, &request).await {
            Some(Err(refusal)) => refused = Some(Err(refusal)),
            Some(Ok(())) => return Some(Ok(())),
            None => {}
        }
    }
    refused
}

/// Asks at one address, and at those it points to.
async fn ask_at(
    local: &Local,
    mut address: String,
    request: &pb::JoinRequest,
) -> Option<Result<(), MembershipRefusal>> {
    for _ in 0..=REDIRECTIONS {
        let response = transport::join(&address, request.clone(), JOIN_TIMEOUT).await;
        let response = match response {
            Ok(response) => response,
            // Another cluster is there.
            Err(status) if status.code() == Code::FailedPrecondition => {
                let reason = format!("{address}: {}", status.message());
                return Some(Err(MembershipRefusal::Invalid(reason)));
            }
            Err(_) => return None,
        };
        match decode_changed(response, local.node.broker) {
            Attempt::Answered(answer) => return Some(answer),
            Attempt::NotController {
                leader: Some(leader),
            } if leader.address != address => address = leader.address,
            _ => return None,
        }
    }
    None
}
