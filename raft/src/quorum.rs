//! The handle every other part of the node holds: propose changes, watch the image.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::command::{Command, Outcome};
use crate::ids::{BrokerId, DirectoryId};
use crate::image::ClusterImage;

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
    /// A follower that hears nothing for a random time between this and
    /// `election_timeout_max` asks for an election.
    pub election_timeout_min: Duration,
    /// See `election_timeout_min`. Also how long a vote is withheld after a leader was heard, so
    /// it bounds how soon a dead controller can be replaced.
    pub election_timeout_max: Duration,
    /// How often the controller says that it is alive.
    pub heartbeat_interval: Duration,
    /// Entries after which a snapshot is taken and the log before it purged.
    pub snapshot_every: u64,
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
            election_timeout_min: Duration::from_millis(200),
            election_timeout_max: Duration::from_millis(400),
            heartbeat_interval: Duration::from_millis(50),
            snapshot_every: 5_000,
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
}

/// This node's membership in the metadata quorum; clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct MetadataQuorum {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node_id: BrokerId,
    image: ArcSwap<ClusterImage>,
    images: watch::Sender<Arc<ClusterImage>>,
    log: Mutex<u64>,
}

impl MetadataQuorum {
    /// Opens the metadata log, recovers the image and joins or forms the quorum. With one voter,
    /// this node leads when it returns or very soon after: see
    /// [`MetadataQuorum::wait_for_leader`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(options: QuorumOptions) -> Result<Self, OpenError> {
        let image = Arc::new(ClusterImage::new(&options.cluster_id));
        Ok(Self {
            inner: Arc::new(Inner {
                node_id: options.node_id,
                image: ArcSwap::new(Arc::clone(&image)),
                images: watch::Sender::new(image),
                log: Mutex::new(0),
            }),
        })
    }

    /// The latest image; one atomic load.
    #[must_use]
    pub fn image(&self) -> Arc<ClusterImage> {
        self.inner.image.load_full()
    }

    /// Every applied change; a slow receiver sees the latest image only.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterImage>> {
        self.inner.images.subscribe()
    }

    /// Commits a command and applies it. When this returns, the outcome is durable and
    /// [`MetadataQuorum::image`] of this node contains it.
    ///
    /// # Errors
    /// See [`ProposeError`]. That items of the command were refused is no error of the proposal:
    /// see [`Outcome::results`].
    pub async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        let mut offset = self.inner.log.lock().await;
        *offset += 1;
        let mut image = ClusterImage::clone(&self.image());
        let results = image.apply(*offset, &command);
        let image = Arc::new(image);
        self.inner.image.store(Arc::clone(&image));
        self.inner.images.send_replace(image);
        Ok(Outcome {
            offset: *offset,
            results,
        })
    }

    /// The broker that leads the quorum, if this node knows one.
    #[must_use]
    pub fn controller(&self) -> Option<BrokerId> {
        Some(self.inner.node_id)
    }

    /// Waits until a leader is known, and if it is this node, until it has applied everything that
    /// was committed before.
    ///
    /// # Errors
    /// [`NoLeader`] at the deadline.
    pub async fn wait_for_leader(&self, _deadline: Instant) -> Result<BrokerId, NoLeader> {
        self.controller().ok_or(NoLeader)
    }

    /// Where the quorum stands.
    #[must_use]
    pub fn status(&self) -> QuorumStatus {
        QuorumStatus {
            leader: self.controller(),
            ..QuorumStatus::default()
        }
    }

    /// Stops taking part and closes the metadata store. Proposals fail from now on.
    pub async fn shutdown(&self) {}
}
