//! Proposals from every node: carried out here if this node is the controller, there if it is not.
//!
//! A request is sent to the controller once. Where it is certain that nothing was proposed (there is
//! no controller, it cannot be reached, it answers that it is not the one) it is tried again until
//! its deadline. Where that is not certain (sent, and no answer) it is not: the caller knows whether
//! it may be done twice. A node that gets a forwarded request does not forward it.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kittiwake_proto::kittiwake::raft::v1 as pb;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use pb::raft_client::RaftClient;
use prost::Message;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Request as Call, Status};

use crate::codec::{decode_outcome, encode_command, encode_outcome};
use crate::command::{Command, Outcome};
use crate::ids::{BrokerId, DirectoryId};
use crate::local::Local;
use crate::membership::MembershipRefusal;
use crate::transport::Connection;
use crate::types::MemberNode;

/// Largest command, encoded. A thousand topics of ten partitions are a tenth of it.
pub(crate) const COMMAND_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Pause before a request that was not proposed is tried again. A new controller ends it.
const RETRY: Duration = Duration::from_millis(20);

/// How long the answer of a controller is waited for when another one has taken its place: it hung,
/// or it handed over and the answer is on its way.
const SUPERSEDED: Duration = Duration::from_millis(200);

/// Why a command has no outcome. Except for [`ProposeError::Rejected`] and
/// [`ProposeError::NotController`], it may or may not take effect later.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProposeError {
    /// No controller could be reached in time. Nothing was proposed.
    #[error("no controller could be reached; it is {}", leader.map_or("unknown".to_owned(), |id| format!("broker {id}")))]
    NotController {
        /// Who leads, as far as this node knows.
        leader: Option<BrokerId>,
    },
    /// No answer in time: there is no majority, or the controller was lost meanwhile.
    #[error("the metadata quorum is unavailable")]
    Unavailable,
    /// This node shuts down, or its metadata store failed.
    #[error("the metadata quorum has stopped: {0}")]
    Stopped(String),
    /// The command can never be accepted; it was not proposed.
    #[error("rejected: {0}")]
    Rejected(String),
}

/// What became of a request.
pub(crate) enum Attempt<T> {
    Answered(T),
    /// Nothing was proposed; this one may be the controller.
    NotController {
        leader: Option<MemberNode>,
    },
    /// It was proposed, or may have been.
    Unknown,
    /// This node takes no part any more.
    Stopped(String),
}

/// Something that only the controller can do.
pub(crate) trait Request: Sync {
    type Answer;

    /// Does it here.
    fn here(
        &self,
        local: &Local,
        deadline: Instant,
    ) -> impl Future<Output = Attempt<Self::Answer>> + Send;

    /// Asks the controller to do it.
    fn there(
        &self,
        client: RaftClient<Channel>,
        to: pb::Recipient,
        deadline: Instant,
    ) -> impl Future<Output = Result<Attempt<Self::Answer>, Status>> + Send;
}

/// The connection to the controller, kept between requests.
#[derive(Default)]
pub(crate) struct Forwarder {
    connection: Mutex<Option<Connection>>,
}

impl Forwarder {
    /// Carries out a request, wherever the controller is. The last attempt decides the answer, which
    /// is never [`Attempt::NotController`] before the deadline.
    pub(crate) async fn carry_out<R: Request>(
        &self,
        local: &Local,
        request: &R,
        deadline: Instant,
    ) -> Attempt<R::Answer> {
        let mut changes = local.raft.server_metrics();
        loop {
            // Seen from here on: what changes during the attempt ends the pause after it.
            drop(changes.borrow_and_update());
            let leader = local.leader();
            let attempt = match &leader {
                None => Attempt::NotController { leader: None },
                Some((id, _)) if *id == local.directory_id => request.here(local, deadline).await,
                Some((id, node)) => self.send(local, request, *id, node, deadline).await,
            };
            if !matches!(attempt, Attempt::NotController { .. }) || Instant::now() >= deadline {
                return attempt;
            }
            let pause = deadline.min(Instant::now() + RETRY);
            if let Ok(Err(_)) = timeout_at(pause, changes.changed()).await {
                return Attempt::Stopped("it was shut down".into());
            }
        }
    }

    async fn send<R: Request>(
        &self,
        local: &Local,
        request: &R,
        id: DirectoryId,
        node: &MemberNode,
        deadline: Instant,
    ) -> Attempt<R::Answer> {
        let not_sent = || Attempt::NotController {
            leader: Some(node.clone()),
        };
        let Some(client) = self.client(local, id, node) else {
            return not_sent();
        };
        let to = pb::Recipient {
            cluster_id: local.cluster_id.clone(),
            directory_id: id.to_bytes().to_vec().into(),
        };
        let answer = async {
            tokio::select! {
                answer = timeout_at(deadline, request.there(client, to, deadline)) => answer.ok(),
                () = superseded(local, id) => None,
            }
        };
        let answer = answer.await;
        let mut connection = self.connection.lock();
        match answer {
            Some(Ok(attempt)) => {
                if let Some(connection) = connection.as_mut() {
                    connection.answered();
                }
                attempt
            }
            Some(Err(status)) => {
                if let Some(connection) = connection.as_mut() {
                    connection.failed();
                }
                if was_not_proposed(&status) {
                    not_sent()
                } else {
                    tracing::info!(%status, controller = %node, "no answer to a forwarded request");
                    Attempt::Unknown
                }
            }
            None => {
                *connection = None;
                Attempt::Unknown
            }
        }
    }

    fn client(
        &self,
        local: &Local,
        id: DirectoryId,
        node: &MemberNode,
    ) -> Option<RaftClient<Channel>> {
        let mut connection = self.connection.lock();
        if connection.as_ref().is_none_or(|kept| !kept.is_to(id)) {
            *connection = Some(Connection::new(
                Arc::clone(&local.addresses),
                id,
                node.clone(),
            ));
        }
        connection.as_mut().and_then(Connection::client)
    }
}

/// Completes a moment after somebody else has become the controller.
async fn superseded(local: &Local, id: DirectoryId) {
    let mut metrics = local.raft.server_metrics();
    loop {
        let leader = metrics.borrow_and_update().current_leader;
        if leader.is_some_and(|leader| leader != id) {
            break;
        }
        if metrics.changed().await.is_err() {
            break;
        }
    }
    tokio::time::sleep(SUPERSEDED).await;
}

/// Whether the status says that the request never got as far as the log.
fn was_not_proposed(status: &Status) -> bool {
    // Refused by the answering side before it looked at the request: another cluster or directory
    // is there by now, or a version without this call.
    if matches!(
        status.code(),
        Code::FailedPrecondition | Code::Unimplemented
    ) {
        return true;
    }
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The call with its deadline, announced to the other side.
fn call<M>(message: M, deadline: Instant) -> Call<M> {
    let mut call = Call::new(message);
    call.set_timeout(deadline.saturating_duration_since(Instant::now()));
    call
}

/// A command to propose.
pub(crate) struct Propose(pub(crate) Arc<Command>);

/// Refuses what is too large to propose, on either side of a forwarded request.
pub(crate) fn check_size(command: &kittiwake_proto::metadata::v1::Command) -> Result<(), String> {
    let bytes = command.encoded_len();
    if bytes > COMMAND_BYTES_MAX {
        return Err(format!(
            "the command has {bytes} bytes, more than {COMMAND_BYTES_MAX}"
        ));
    }
    Ok(())
}

impl Request for Propose {
    type Answer = Result<Outcome, String>;

    async fn here(&self, local: &Local, deadline: Instant) -> Attempt<Self::Answer> {
        local
            .propose(Arc::clone(&self.0), deadline)
            .await
            .map(Ok::<Outcome, String>)
    }

    async fn there(
        &self,
        mut client: RaftClient<Channel>,
        to: pb::Recipient,
        deadline: Instant,
    ) -> Result<Attempt<Self::Answer>, Status> {
        let request = pb::ProposeRequest {
            to: Some(to),
            command: Some(encode_command(&self.0)),
        };
        let response = client.propose(call(request, deadline)).await?.into_inner();
        Ok(decode_proposed(response))
    }
}

impl<T> Attempt<T> {
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> Attempt<U> {
        match self {
            Self::Answered(answer) => Attempt::Answered(f(answer)),
            Self::NotController { leader } => Attempt::NotController { leader },
            Self::Unknown => Attempt::Unknown,
            Self::Stopped(reason) => Attempt::Stopped(reason),
        }
    }
}

fn encode_leader(leader: Option<MemberNode>) -> pb::NotController {
    pb::NotController {
        broker: leader.as_ref().map(|node| node.broker.0),
        address: leader.map(|node| node.address).unwrap_or_default(),
    }
}

pub(crate) fn decode_leader(record: pb::NotController) -> Option<MemberNode> {
    Some(MemberNode {
        broker: BrokerId(record.broker?),
        address: record.address,
    })
}

pub(crate) fn encode_proposed(attempt: Attempt<Outcome>) -> pb::ProposeResponse {
    use pb::propose_response::{Result as Record, Unknown};
    pb::ProposeResponse {
        result: Some(match attempt {
            Attempt::Answered(outcome) => Record::Outcome(encode_outcome(&outcome)),
            Attempt::NotController { leader } => Record::NotController(encode_leader(leader)),
            Attempt::Unknown | Attempt::Stopped(_) => Record::Unknown(Unknown {}),
        }),
    }
}

fn decode_proposed(response: pb::ProposeResponse) -> Attempt<Result<Outcome, String>> {
    use pb::propose_response::Result as Record;
    match response.result {
        Some(Record::Outcome(outcome)) => match decode_outcome(outcome) {
            Ok(outcome) => Attempt::Answered(Ok(outcome)),
            Err(error) => {
                tracing::warn!(%error, "the controller's answer cannot be read");
                Attempt::Unknown
            }
        },
        Some(Record::NotController(record)) => Attempt::NotController {
            leader: decode_leader(record),
        },
        Some(Record::Rejected(reason)) => Attempt::Answered(Err(reason)),
        Some(Record::Unknown(_)) | None => Attempt::Unknown,
    }
}

/// What an operator asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ChangeMember {
    AddVoter(BrokerId),
    Remove(BrokerId),
}

impl Request for ChangeMember {
    type Answer = Result<(), MembershipRefusal>;

    async fn here(&self, local: &Local, deadline: Instant) -> Attempt<Self::Answer> {
        local.change_member(*self, deadline).await
    }

    async fn there(
        &self,
        mut client: RaftClient<Channel>,
        to: pb::Recipient,
        deadline: Instant,
    ) -> Result<Attempt<Self::Answer>, Status> {
        let (Self::AddVoter(broker) | Self::Remove(broker)) = *self;
        let request = call(
            pb::MemberRequest {
                to: Some(to),
                broker: broker.0,
            },
            deadline,
        );
        let response = match self {
            Self::AddVoter(_) => client.add_voter(request).await?,
            Self::Remove(_) => client.remove_member(request).await?,
        };
        Ok(decode_changed(response.into_inner(), broker))
    }
}

pub(crate) fn encode_changed(
    attempt: Attempt<Result<(), MembershipRefusal>>,
) -> pb::MembershipResponse {
    use pb::membership_response::Result as Record;
    let empty = pb::Empty {};
    pb::MembershipResponse {
        result: Some(match attempt {
            Attempt::Answered(Ok(())) => Record::Done(empty),
            Attempt::Answered(Err(refusal)) => match refusal {
                MembershipRefusal::UnknownMember(_) => Record::UnknownMember(empty),
                MembershipRefusal::LastVoter(_) => Record::LastVoter(empty),
                MembershipRefusal::NotCaughtUp(_) => Record::NotCaughtUp(empty),
                MembershipRefusal::InProgress => Record::InProgress(empty),
                MembershipRefusal::Invalid(reason) => Record::Refused(reason),
            },
            Attempt::NotController { leader } => Record::NotController(encode_leader(leader)),
            Attempt::Unknown | Attempt::Stopped(_) => Record::Unknown(empty),
        }),
    }
}

pub(crate) fn decode_changed(
    response: pb::MembershipResponse,
    broker: BrokerId,
) -> Attempt<Result<(), MembershipRefusal>> {
    use pb::membership_response::Result as Record;
    let answered = match response.result {
        Some(Record::Done(_)) => Ok(()),
        Some(Record::UnknownMember(_)) => Err(MembershipRefusal::UnknownMember(broker)),
        Some(Record::LastVoter(_)) => Err(MembershipRefusal::LastVoter(broker)),
        Some(Record::NotCaughtUp(_)) => Err(MembershipRefusal::NotCaughtUp(broker)),
        Some(Record::InProgress(_)) => Err(MembershipRefusal::InProgress),
        Some(Record::Refused(reason)) => Err(MembershipRefusal::Invalid(reason)),
        Some(Record::NotController(record)) => {
            return Attempt::NotController {
                leader: decode_leader(record),
            };
        }
        Some(Record::Unknown(_)) | None => return Attempt::Unknown,
    };
    Attempt::Answered(answered)
}
