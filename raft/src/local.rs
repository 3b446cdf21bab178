//! What this node is in the quorum: shared by its handle, its gRPC service and its tasks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{Instant as _, Raft, RaftMetrics};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::command::{Command, Outcome};
use crate::forward::Attempt;
use crate::ids::{BrokerId, DirectoryId};
use crate::state_machine::StateMachine;
use crate::transport::AddressBook;
use crate::types::{MemberNode, Proposal, Types};

pub(crate) struct Local {
    pub(crate) raft: Raft<Types, StateMachine>,
    pub(crate) cluster_id: String,
    pub(crate) directory_id: DirectoryId,
    /// This broker, and where it is reached.
    pub(crate) node: MemberNode,
    pub(crate) voters: Vec<(BrokerId, String)>,
    pub(crate) addresses: Arc<AddressBook>,
    pub(crate) propose_timeout: Duration,
    /// When a controller was last heard of that this node follows.
    pub(crate) heard: parking_lot::Mutex<Option<Instant>>,
    /// Held by whoever changes the membership: one change at a time.
    pub(crate) membership: Mutex<()>,
}

impl Local {
    pub(crate) fn metrics(&self) -> RaftMetrics<Types> {
        self.raft.metrics().borrow_watched().clone()
    }

    pub(crate) fn heard_at(&self) -> Option<Instant> {
        *self.heard.lock()
    }

    /// Who leads, if this node knows.
    pub(crate) fn leader(&self) -> Option<(DirectoryId, MemberNode)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics.current_leader?;
        let node = metrics.membership_config.membership().get_node(&id)?;
        Some((id, node.clone()))
    }

    pub(crate) fn leads(&self) -> bool {
        let metrics = self.raft.server_metrics();
        metrics.borrow_watched().current_leader == Some(self.directory_id)
    }

    /// Whether this node leads and a majority has said so within that time.
    pub(crate) fn leads_surely(&self, within: Duration) -> bool {
        if !self.leads() {
            return false;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<DirectoryId> = metrics.membership_config.voter_ids().collect();
        metrics.current_leader == Some(self.directory_id)
            && (voters == [self.directory_id].into()
                || metrics
                    .last_quorum_acked
                    .is_some_and(|acknowledged| acknowledged.elapsed() <= within))
    }

    /// Commits and applies a command, if this node leads.
    pub(crate) async fn propose(
        &self,
        command: Arc<Command>,
        deadline: Instant,
    ) -> Attempt<Outcome> {
        let write = self.raft.client_write(Proposal(command));
        let Ok(written) = timeout_at(deadline, write).await else {
            return Attempt::Unknown;
        };
        match written {
            Ok(response) => Attempt::Answered(Outcome {
                offset: response.log_id.index,
                results: response.data,
            }),
            Err(error) => Attempt::from(error),
        }
    }
}

impl<T> From<RaftError<Types, ClientWriteError<Types>>> for Attempt<T> {
    /// What a failed write says about the entry.
    fn from(error: RaftError<Types, ClientWriteError<Types>>) -> Self {
        match error {
            RaftError::Fatal(fatal) => Self::Stopped(fatal.to_string()),
            // It was not appended.
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                Self::NotController {
                    leader: forward.leader_node,
                }
            }
            RaftError::APIError(_) => Self::Unknown,
        }
    }
}
