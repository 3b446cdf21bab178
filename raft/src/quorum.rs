//! The handle every other part of the node holds: propose changes, watch the image.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kittiwake_proto::kittiwake::raft::v1::raft_server::RaftServer;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{Config, Raft, RaftMetrics, SnapshotPolicy};
use prost::Message;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::codec::encode_command;
use crate::command::{Command, Outcome};
use crate::formation::Formation;
use crate::ids::{BrokerId, DirectoryId};
use crate::image::ClusterImage;
use crate::log_store::{Closed, LogStore, Owner, store_path};
use crate::snapshot::Snapshot;
use crate::state_machine::{Published, StateMachine};
use crate::transport::{MESSAGE_BYTES_MAX, Network, RaftService};
use crate::types::{MemberNode, Proposal, StoredMembership, Types};

/// Largest command, encoded. A thousand topics of ten partitions are a tenth of it.
const COMMAND_BYTES_MAX: usize = 4 * 1024 * 1024;

/// This part of the entries between two snapshots stays in the log behind the newer one, for
/// followers that are a little late.
const ENTRIES_KEPT_DIVISOR: u64 = 10;

/// How long a snapshot may take on its way to a member.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(30);

/// Pauses between calls to a member that cannot be reached. It may be back any moment, and a
/// refused connection costs little.
const BACKOFF: &str = "20ms 50ms 100ms ..200ms";

/// How long closing the store may take at shutdown before it is left to the operating system.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How a node takes part in the metadata quorum.
#[derive(Clone, Debug)]
pub struct QuorumOptions {
    /// This broker.
    pub node_id: BrokerId,
    /// The cluster it belongs to; a data directory or a peer of another one is refused.
    pub cluster_id: String,
    /// The node's data directory; the metadata log lives in `metadata/` below it, which is created
    /// if it is missing.
    pub data_dir: PathBuf,
    /// The voters a new cluster is formed with, and where their gRPC listeners are (`host:port`).
    /// Once the cluster is formed the metadata log knows its members and this is only a seed list.
    pub voters: Vec<(BrokerId, String)>,
    /// A follower asks for an election when it has heard nothing for `election_timeout_max`, the
    /// time during which everybody withholds their vote, and then for a random time between the
    /// two.
    pub election_timeout_min: Duration,
    /// See `election_timeout_min`.
    pub election_timeout_max: Duration,
    /// How often the controller says that it is alive.
    pub heartbeat_interval: Duration,
    /// Entries after which a snapshot is taken and the log before it purged.
    pub snapshot_every: u64,
    /// How long a proposal waits for a majority before it is reported as unavailable.
    pub propose_timeout: Duration,
}

impl QuorumOptions {
    /// Options with the default timeouts: a dead controller is replaced within half a second.
    #[must_use]
    pub fn new(
        node_id: BrokerId,
        cluster_id: impl Into<String>,
        data_dir: impl Into<PathBuf>,
        voters: Vec<(BrokerId, String)>,
    ) -> Self {
        Self {
            node_id,
            cluster_id: cluster_id.into(),
            data_dir: data_dir.into(),
            voters,
            election_timeout_min: Duration::from_millis(150),
            election_timeout_max: Duration::from_millis(300),
            heartbeat_interval: Duration::from_millis(50),
            snapshot_every: 5_000,
            propose_timeout: Duration::from_secs(5),
        }
    }
}

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

/// Why a command has no outcome. Except for [`ProposeError::Rejected`] and
/// [`ProposeError::NotController`], it may or may not take effect later.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads the quorum.
    #[error("not the controller; it is {}", leader.map_or("unknown".to_owned(), |id| format!("broker {id}")))]
    NotController {
        /// Who does, as far as this node knows.
        leader: Option<BrokerId>,
    },
    /// No majority answered in time.
    #[error("the metadata quorum is unavailable")]
    Unavailable,
    /// This node shuts down, or its metadata store failed.
    #[error("the metadata quorum has stopped: {0}")]
    Stopped(String),
    /// The command can never be accepted; it was not proposed.
    #[error("rejected: {0}")]
    Rejected(String),
}

/// No leader was elected before the deadline.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no controller was elected in time")]
pub struct NoLeader;

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
    /// Members that vote.
    pub voters: Vec<Member>,
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
    raft: Raft<Types, StateMachine>,
    service: RaftService,
    directory_id: DirectoryId,
    published: Arc<Published>,
    propose_timeout: Duration,
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
        let network = Network {
            cluster_id: options.cluster_id.clone(),
        };
        let raft = Raft::new(directory_id, config, network, store, state_machine)
            .await
            .map_err(|error| damaged(error.to_string()))?;
        let service = RaftService {
            raft: raft.clone(),
            cluster_id: options.cluster_id.clone(),
            broker: options.node_id,
            directory_id,
            failure: watch::Sender::new(None),
        };
        let quorum = Self {
            inner: Arc::new(Inner {
                raft,
                service,
                directory_id,
                published,
                propose_timeout: options.propose_timeout,
                closed: Mutex::new(Some(closed)),
            }),
        };
        tokio::spawn(rest_while_alone(quorum.inner.raft.clone(), directory_id));
        quorum
            .form(&options)
            .await
            .map_err(|error| damaged(error.to_string()))?;
        Ok(quorum)
    }

    /// A single voter forms its cluster at once, and leads it without waiting for a timeout. Several
    /// form theirs in the background: each must be able to answer the others first.
    async fn form(&self, options: &QuorumOptions) -> Result<(), NoLeader> {
        let [(broker, address)] = options.voters.as_slice() else {
            let formation = Formation {
                raft: self.inner.raft.clone(),
                cluster_id: options.cluster_id.clone(),
                broker: options.node_id,
                directory_id: self.inner.directory_id,
                voters: options.voters.clone(),
            };
            tokio::spawn(formation.run());
            return Ok(());
        };
        let raft = &self.inner.raft;
        if raft.is_initialized().await.map_err(|_| NoLeader)? {
            if !self
                .metrics()
                .membership_config
                .voter_ids()
                .eq([self.inner.directory_id])
            {
                return Ok(());
            }
            raft.trigger().elect(true).await.map_err(|_| NoLeader)?;
        } else {
            let node = MemberNode {
                broker: *broker,
                address: address.clone(),
            };
            let members = BTreeMap::from([(self.inner.directory_id, node)]);
            // Asked for in this order, and the second at once: left alone, it would first let an
            // election timeout pass, and the answer to the first comes no sooner.
            let trigger = raft.trigger();
            let (formed, elected) =
                tokio::join!(biased; raft.initialize(members), trigger.elect(false));
            formed.map_err(|_| NoLeader)?;
            elected.map_err(|_| NoLeader)?;
        }
        self.wait_for_leader(Instant::now() + options.propose_timeout)
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
        self.inner.service.broker
    }

    /// The Raft identity of this node: its metadata directory.
    #[must_use]
    pub fn directory_id(&self) -> DirectoryId {
        self.inner.directory_id
    }

    /// Commits a command and applies it. When this returns, the outcome is durable and
    /// [`MetadataQuorum::image`] of this node contains it.
    ///
    /// # Errors
    /// See [`ProposeError`]. That items of the command were refused is no error of the proposal:
    /// see [`Outcome::results`].
    pub async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        let bytes = encode_command(&command).encoded_len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(ProposeError::Rejected(format!(
                "the command has {bytes} bytes, more than {COMMAND_BYTES_MAX}"
            )));
        }
        let write = self.inner.raft.client_write(Proposal(Arc::new(command)));
        let written = timeout(self.inner.propose_timeout, write)
            .await
            .map_err(|_| ProposeError::Unavailable)?;
        match written {
            Ok(response) => Ok(Outcome {
                offset: response.log_id.index,
                results: response.data,
            }),
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::Stopped(fatal.to_string())),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                let leader = forward.leader_node.map(|node| node.broker);
                Err(ProposeError::NotController { leader })
            }
            Err(RaftError::APIError(_)) => Err(ProposeError::Unavailable),
        }
    }

    /// The broker that leads the quorum, if this node knows one.
    #[must_use]
    pub fn controller(&self) -> Option<BrokerId> {
        leader_of(&self.metrics())
    }

    /// Waits until a leader is known. Its image may be ahead of this node's.
    ///
    /// # Errors
    /// [`NoLeader`] at the deadline, or when the quorum has stopped.
    pub async fn wait_for_leader(&self, deadline: Instant) -> Result<BrokerId, NoLeader> {
        let mut metrics = self.inner.raft.metrics();
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
        let mut metrics = self.inner.raft.metrics();
        let mut failure = self.inner.service.failure.subscribe();
        loop {
            if let Some(reason) = failure.borrow_and_update().clone() {
                return reason;
            }
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return fatal.to_string();
            }
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() {
                    return "the metadata quorum has stopped".into();
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
            && let Err(error) = self.inner.raft.trigger().transfer_leader(target).await
        {
            tracing::info!(%error, broker = %to, "leadership was not transferred");
        }
    }

    /// Stops taking part and closes the metadata store. Proposals fail from now on.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
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
        self.inner.raft.metrics().borrow_watched().clone()
    }
}

impl fmt::Debug for MetadataQuorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetadataQuorum")
            .field("directory_id", &self.inner.directory_id)
            .finish_non_exhaustive()
    }
}

/// A leader without other members has nobody to send heartbeats to and no election to lose: its
/// clock, a hundred ticks a second, stands still until somebody joins. (Idle nodes are to use no
/// CPU that anybody notices.)
async fn rest_while_alone(raft: Raft<Types, StateMachine>, own: DirectoryId) {
    let mut metrics = raft.server_metrics();
    loop {
        let alone = {
            let now = metrics.borrow_watched();
            let members = now.membership_config.membership();
            now.current_leader == Some(own) && members.nodes().map(|(id, _)| *id).eq([own])
        };
        raft.runtime_config().tick(!alone);
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

fn leader_of(metrics: &RaftMetrics<Types>) -> Option<BrokerId> {
    let leader = metrics.current_leader?;
    let membership = metrics.membership_config.membership();
    membership.get_node(&leader).map(|node| node.broker)
}

fn raft_config(options: &QuorumOptions) -> Result<Config, OpenError> {
    let invalid = |reason: String| OpenError::InvalidOptions(reason);
    if options.node_id.0 < 0 {
        return Err(invalid(format!(
            "broker id {} is negative",
            options.node_id
        )));
    }
    if options.cluster_id.is_empty() {
        return Err(invalid("the cluster id is empty".into()));
    }
    let distinct: BTreeSet<BrokerId> = options.voters.iter().map(|(broker, _)| *broker).collect();
    if distinct.is_empty() || distinct.len() != options.voters.len() {
        return Err(invalid(
            "the voters must be one or more distinct brokers".into(),
        ));
    }
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: options.cluster_id.clone(),
        election_timeout_min: millis(options.election_timeout_min),
        election_timeout_max: millis(options.election_timeout_max),
        heartbeat_interval: millis(options.heartbeat_interval),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_every),
        max_in_snapshot_log_to_keep: options.snapshot_every / ENTRIES_KEPT_DIVISOR,
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        backoff: BACKOFF.into(),
        // A node that was cut off must not disturb the others when it comes back.
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    config
        .validate()
        .map_err(|error| invalid(error.to_string()))
}
