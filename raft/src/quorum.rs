//! The handle every other part of the node holds: propose changes, watch the image.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kittiwake_proto::kittiwake::raft::v1::raft_server::RaftServer;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Raft, RaftMetrics};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::codec::encode_command;
use crate::command::{Command, Outcome};
use crate::controller::{self, Controller, NoLeader, leader_of};
use crate::formation;
use crate::forward::{
    Attempt, ChangeMember, Forwarder, Propose, ProposeError, Request, check_size,
};
use crate::ids::{BrokerId, DirectoryId};
use crate::image::ClusterImage;
use crate::join;
use crate::local::Local;
use crate::log_store::{Closed, LogStore, Owner, store_path};
use crate::membership::MembershipError;
use crate::options::{QuorumOptions, raft_config};
use crate::snapshot::Snapshot;
use crate::state_machine::{Published, StateMachine};
use crate::steward;
use crate::transport::{AddressBook, MESSAGE_BYTES_MAX, Network, RaftService};
use crate::types::{MemberNode, StoredMembership, Types};

/// How long closing the store may take at shutdown before it is left to the operating system.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the quorum did not start. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The options contradict each other.
    #[error("{0}")]
    InvalidOptions(String),
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// Another process holds the metadata store.
    #[error("{path}: in use by another process")]
    InUse {
        /// The store.
        path: PathBuf,
    },
    /// The directory belongs to another cluster.
    #[error("{path}: belongs to cluster '{found}', not '{expected}'")]
    ClusterId {
        /// The store.
        path: PathBuf,
        /// The configured cluster.
        expected: String,
        /// The cluster on disk.
        found: String,
    },
    /// The directory belongs to another broker.
    #[error("{path}: belongs to broker {found}, not {expected}")]
    NodeId {
        /// The store.
        path: PathBuf,
        /// The configured broker.
        expected: BrokerId,
        /// The broker on disk.
        found: BrokerId,
    },
    /// Written by a later version.
    #[error("{path}: format {found} is newer than this version reads ({supported})")]
    NewerFormat {
        /// The store.
        path: PathBuf,
        /// The format on disk.
        found: u32,
        /// The newest this version reads.
        supported: u32,
    },
    /// A later version wrote a command this one does not know.
    #[error("{path}: {reason}")]
    NewerRecord {
        /// The store.
        path: PathBuf,
        /// Which one.
        reason: String,
    },
    /// What is on disk is not what was written. The node refuses to serve; its operator replaces
    /// the directory, and it comes back as a new member.
    #[error("{path}: damaged: {reason}")]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
}

/// Where the quorum stands, for operators and metrics.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct QuorumStatus {
    /// Current term.
    pub term: u64,
    /// The controller, if one is known.
    pub leader: Option<BrokerId>,
    /// Offset of the last entry in this node's log.
    pub last_log: Option<u64>,
    /// Highest offset known to be committed.
    pub committed: Option<u64>,
    /// Highest offset applied to the image.
    pub applied: Option<u64>,
    /// Last offset of the latest snapshot.
    pub snapshot: Option<u64>,
    /// Members that vote; while they change, the old and the new ones.
    pub voters: Vec<Member>,
    /// The voters change: a majority of the old and of the new ones is needed for everything.
    pub changing: bool,
    /// Members that only follow.
    pub learners: Vec<Member>,
}

/// A member of the quorum.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Its Raft identity: the data directory that holds its log.
    pub directory_id: DirectoryId,
    /// The broker that runs it.
    pub broker: BrokerId,
    /// `host:port` of its gRPC listener.
    pub address: String,
    /// Last offset of its log, of others as far as the controller has heard. Only the controller
    /// knows it of others.
    pub log_end: Option<u64>,
}

/// This node's membership in the metadata quorum; clones are handles to the same one.
#[derive(Clone)]
pub struct MetadataQuorum {
    inner: Arc<Inner>,
}

struct Inner {
    local: Arc<Local>,
    service: RaftService,
    published: Arc<Published>,
    controller: watch::Receiver<Option<Controller>>,
    forwarder: Forwarder,
    closed: Mutex<Option<Closed>>,
}

impl MetadataQuorum {
    /// Opens the metadata log, recovers the image and joins or forms the quorum. A node that is the
    /// only voter leads, and has applied its whole log, when this returns.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(options: QuorumOptions) -> Result<Self, OpenError> {
        let config = Arc::new(raft_config(&options)?);
        let owner = Owner {
            cluster_id: options.cluster_id.clone(),
            broker: options.node_id,
        };
        let data_dir = options.data_dir.clone();
        let path = store_path(&data_dir);
        let damaged = |reason: String| OpenError::Damaged {
            path: path.clone(),
            reason,
        };
        let (store, recovered, closed) =
            tokio::task::spawn_blocking(move || LogStore::open(&data_dir, &owner))
                .await
                .map_err(|error| damaged(error.to_string()))??;

        let state = match &recovered.snapshot {
            None => Snapshot {
                last: None,
                membership: StoredMembership::default(),
                image: ClusterImage::new(&options.cluster_id),
            },
            Some(bytes) => {
                Snapshot::decode(bytes.clone()).map_err(|error| damaged(error.to_string()))?
            }
        };
        let state_machine = StateMachine::new(state, recovered.snapshot, store.writer());
        let published = state_machine.published();
        let directory_id = recovered.directory_id;
        let addresses = Arc::new(AddressBook::new(&options.voters));
        let network = Network {
            cluster_id: options.cluster_id.clone(),
            addresses: Arc::clone(&addresses),
        };
        let raft = Raft::new(directory_id, config, network, store, state_machine)
            .await
            .map_err(|error| damaged(error.to_string()))?;
        let local = Arc::new(Local {
            raft,
            cluster_id: options.cluster_id,
            directory_id,
            node: MemberNode {
                broker: options.node_id,
                address: options.advertised_address,
            },
            voters: options.voters,
            addresses,
            propose_timeout: options.propose_timeout,
            heard: parking_lot::Mutex::default(),
            membership: Mutex::new(()),
        });
        let (known, controller) = watch::channel(None);
        tokio::spawn(controller::follow(Arc::clone(&local), known));
        let quorum = Self {
            inner: Arc::new(Inner {
                service: RaftService {
                    local: Arc::clone(&local),
                    failure: watch::Sender::new(None),
                },
                local: Arc::clone(&local),
                published,
                controller,
                forwarder: Forwarder::default(),
                closed: Mutex::new(Some(closed)),
            }),
        };
        quorum
            .form()
            .await
            .map_err(|error| damaged(error.to_string()))?;
        tokio::spawn(steward::run(Arc::clone(&local)));
        tokio::spawn(join::run(local));
        Ok(quorum)
    }

    /// A single voter forms its cluster at once, and leads it without waiting for a timeout. Several
    /// form theirs in the background: each must be able to answer the others first.
    async fn form(&self) -> Result<(), NoLeader> {
        let local = &self.inner.local;
        let raft = &local.raft;
        let own = local.directory_id;
        if raft.is_initialized().await.map_err(|_| NoLeader)? {
            let metrics = local.metrics();
            if !metrics.membership_config.voter_ids().eq([own]) {
                return Ok(());
            }
            raft.trigger().elect(true).await.map_err(|_| NoLeader)?;
        } else if local.voters == [(local.node.broker, local.node.address.clone())] {
            let members = BTreeMap::from([(own, local.node.clone())]);
            // Asked for in this order, and the second at once: left alone, it would first let an
            // election timeout pass, and the answer to the first comes no sooner.
            let trigger = raft.trigger();
            let (formed, elected) =
                tokio::join!(biased; raft.initialize(members), trigger.elect(false));
            formed.map_err(|_| NoLeader)?;
            elected.map_err(|_| NoLeader)?;
        } else {
            tokio::spawn(formation::run(Arc::clone(local)));
            return Ok(());
        }
        self.wait_for_leader(Instant::now() + local.propose_timeout)
            .await?;
        // What was acknowledged before a restart is committed again behind this entry, and applied.
        raft.write_blank().await.map(drop).map_err(|_| NoLeader)
    }

    /// Answers the other members of the quorum; to be added to the node's gRPC server.
    #[must_use]
    pub fn grpc_service(&self) -> RaftServer<RaftService> {
        RaftServer::new(self.inner.service.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The latest image; one atomic load.
    #[must_use]
    pub fn image(&self) -> Arc<ClusterImage> {
        self.inner.published.latest()
    }

    /// Every applied change; a slow receiver sees the latest image only.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterImage>> {
        self.inner.published.subscribe()
    }

    /// This broker.
    #[must_use]
    pub fn node_id(&self) -> BrokerId {
        self.inner.local.node.broker
    }

    /// The Raft identity of this node: its metadata directory.
    #[must_use]
    pub fn directory_id(&self) -> DirectoryId {
        self.inner.local.directory_id
    }

    /// Commits a command and applies it, on whichever node: it is forwarded to the controller if
    /// that is another one. When this returns, the outcome is durable and
    /// [`MetadataQuorum::image`] of this node contains it.
    ///
    /// A command is proposed at most once. Where it is certain that it was not proposed, this is
    /// tried again for the propose timeout (a new controller is elected well within it).
    ///
    /// # Errors
    /// See [`ProposeError`]. That items of the command were refused is no error of the proposal:
    /// see [`Outcome::results`].
    pub async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        check_size(&encode_command(&command)).map_err(ProposeError::Rejected)?;
        let request = Propose(Arc::new(command));
        let deadline = self.deadline();
        let outcome = match self.carry_out(&request, deadline).await {
            Attempt::Answered(answer) => answer.map_err(ProposeError::Rejected)?,
            Attempt::NotController { leader } => {
                let leader = leader.map(|node| node.broker);
                return Err(ProposeError::NotController { leader });
            }
            Attempt::Unknown => return Err(ProposeError::Unavailable),
            Attempt::Stopped(reason) => return Err(ProposeError::Stopped(reason)),
        };
        let mut images = self.watch();
        let reached = images.wait_for(|image| image.offset >= outcome.offset);
        match timeout_at(deadline, reached).await {
            Ok(Ok(_)) => Ok(outcome),
            Ok(Err(_)) => Err(ProposeError::Stopped("it was shut down".into())),
            Err(_) => Err(ProposeError::Unavailable),
        }
    }

    /// As [`MetadataQuorum::propose`], but not forwarded: what this node decides as the controller
    /// must not be done by another one, which may know better. Of at most 4 MiB, encoded.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose_as_controller(&self, command: Command) -> Result<Outcome, ProposeError> {
        check_size(&encode_command(&command)).map_err(ProposeError::Rejected)?;
        let local = &self.inner.local;
        match local.propose(Arc::new(command), self.deadline()).await {
            Attempt::Answered(outcome) => Ok(outcome),
            Attempt::NotController { leader } => {
                let leader = leader.map(|node| node.broker);
                Err(ProposeError::NotController { leader })
            }
            Attempt::Unknown => Err(ProposeError::Unavailable),
            Attempt::Stopped(reason) => Err(ProposeError::Stopped(reason)),
        }
    }

    /// Lets a learner vote. Done already is done.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn add_voter(&self, broker: BrokerId) -> Result<(), MembershipError> {
        self.change_member(ChangeMember::AddVoter(broker)).await
    }

    /// Takes a broker out of the quorum, voter or learner. Its process is to be stopped before: as
    /// long as it runs it asks to be taken in again.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn remove_member(&self, broker: BrokerId) -> Result<(), MembershipError> {
        self.change_member(ChangeMember::Remove(broker)).await
    }

    async fn change_member(&self, change: ChangeMember) -> Result<(), MembershipError> {
        match self.carry_out(&change, self.deadline()).await {
            Attempt::Answered(answer) => Ok(answer?),
            Attempt::NotController { leader } => Err(MembershipError::NotController {
                leader: leader.map(|node| node.broker),
            }),
            Attempt::Unknown => Err(MembershipError::Unavailable),
            Attempt::Stopped(reason) => Err(MembershipError::Stopped(reason)),
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.inner.local.propose_timeout
    }

    async fn carry_out<R: Request>(&self, request: &R, deadline: Instant) -> Attempt<R::Answer> {
        let Inner {
            forwarder, local, ..
        } = &*self.inner;
        forwarder.carry_out(local, request, deadline).await
    }

    /// The broker that leads the quorum, if this node knows one.
    #[must_use]
    pub fn controller(&self) -> Option<BrokerId> {
        leader_of(&self.metrics())
    }

    /// Whether this node leads the quorum, as far as it knows: another one may have been elected
    /// since. See [`MetadataQuorum::controller_is_fresh`].
    #[must_use]
    pub fn is_controller(&self) -> bool {
        self.inner.local.leads()
    }

    /// Whether this node leads the quorum, and a majority has acknowledged that within the time
    /// given. A single voter needs nobody's word.
    ///
    /// Acknowledgements come with heartbeats, so less than two or three
    /// [heartbeat intervals](QuorumOptions::heartbeat_interval) asks for more than there is. No
    /// other node can be elected within [`QuorumOptions::election_timeout_max`] of one.
    #[must_use]
    pub fn controller_is_fresh(&self, within: Duration) -> bool {
        self.inner.local.leads_surely(within)
    }

    /// Who leads, in which reign, and every change of it; a slow receiver sees the latest only.
    #[must_use]
    pub fn watch_controller(&self) -> watch::Receiver<Option<Controller>> {
        self.inner.controller.clone()
    }

    /// Waits until a leader is known. Its image may be ahead of this node's.
    ///
    /// # Errors
    /// [`NoLeader`] at the deadline, or when the quorum has stopped.
    pub async fn wait_for_leader(&self, deadline: Instant) -> Result<BrokerId, NoLeader> {
        let mut metrics = self.inner.local.raft.metrics();
        let wait = async {
            loop {
                let now = metrics.borrow_watched().clone();
                now.running_state.as_ref().map_err(|_| NoLeader)?;
                if let Some(leader) = leader_of(&now) {
                    return Ok(leader);
                }
                metrics.changed().await.map_err(|_| NoLeader)?;
            }
        };
        timeout_at(deadline, wait).await.map_err(|_| NoLeader)?
    }

    /// Completes with the reason when this node can no longer take part: its store failed, or the
    /// log holds a command of a later version. A node that sees this must stop.
    pub async fn failed(&self) -> String {
        // What changes rarely: the whole of the metrics changes with every heartbeat. It ends with the quorum, too.
        let mut changes = self.inner.local.raft.server_metrics();
        let mut failure = self.inner.service.failure.subscribe();
        loop {
            if let Some(reason) = failure.borrow_and_update().clone() {
                return reason;
            }
            if let Err(fatal) = self.metrics().running_state {
                return fatal.to_string();
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return match self.metrics().running_state {
                        Err(fatal) => fatal.to_string(),
                        Ok(()) => "the metadata quorum has stopped".into(),
                    };
                },
                // The sender is part of this quorum, so it is there.
                _ = failure.changed() => {}
            }
        }
    }

    /// Where the quorum stands.
    #[must_use]
    pub fn status(&self) -> QuorumStatus {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<DirectoryId> = membership.voter_ids().collect();
        let log_end = |id: &DirectoryId| match &metrics.replication {
            _ if *id == self.directory_id() => metrics.last_log_index,
            Some(others) => Some(others.get(id)?.as_ref()?.index),
            None => None,
        };
        let (voters, learners) = membership
            .nodes()
            .map(|(id, node)| Member {
                directory_id: *id,
                broker: node.broker,
                address: node.address.clone(),
                log_end: log_end(id),
            })
            .partition(|member| voters.contains(&member.directory_id));
        QuorumStatus {
            term: metrics.current_term,
            leader: leader_of(&metrics),
            last_log: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index),
            applied: metrics.last_applied.map(|_| self.image().offset),
            snapshot: metrics.snapshot.map(|id| id.index),
            voters,
            changing: membership.get_joint_config().len() > 1,
            learners,
        }
    }

    /// Asks another voter to lead, before this node stops. It is only asked: see
    /// [`MetadataQuorum::controller`] for what became of it. Does nothing unless this node leads
    /// and that broker votes.
    pub async fn transfer_leadership(&self, to: BrokerId) {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let target = membership.voter_ids().find(|id| {
            membership
                .get_node(id)
                .is_some_and(|node| node.broker == to)
        });
        if let Some(target) = target
            && let Err(error) = self
                .inner
                .local
                .raft
                .trigger()
                .transfer_leader(target)
                .await
        {
            tracing::info!(%error, broker = %to, "leadership was not transferred");
        }
    }

    /// Has the best other voter lead, if this node does, and waits until another one is known to
    /// lead: for a planned stop. At once if another one leads.
    ///
    /// # Errors
    /// [`NoLeader`] if there is no other voter, or none has taken over before the deadline. This
    /// node may refuse proposals then until the next election.
    pub async fn hand_over(&self, deadline: Instant) -> Result<BrokerId, NoLeader> {
        self.inner.local.hand_over(deadline).await
    }

    /// Stops taking part and closes the metadata store. Proposals fail from now on.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.local.raft.shutdown().await {
            tracing::error!(%error, "the metadata quorum did not stop cleanly");
        }
        let closed = self.inner.closed.lock().await.take();
        if let Some(closed) = closed {
            // Closed or dropped, the writer thread is gone.
            if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
                tracing::warn!("the metadata store is still being written");
            }
        }
    }

    fn metrics(&self) -> RaftMetrics<Types> {
        self.inner.local.metrics()
    }
}

impl fmt::Debug for MetadataQuorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetadataQuorum")
            .field("directory_id", &self.inner.local.directory_id)
            .finish_non_exhaustive()
    }
}
