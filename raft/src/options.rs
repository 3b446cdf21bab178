//! How a node takes part in the quorum, and what Raft makes of it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use crate::ids::BrokerId;
use crate::quorum::OpenError;

/// This part of the entries between two snapshots stays in the log behind the newer one, for
/// followers that are a little late.
const ENTRIES_KEPT_DIVISOR: u64 = 10;

/// How long a snapshot may take on its way to a member.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(30);

/// Pauses between calls to a member that cannot be reached. It may be back any moment, and a
/// refused connection costs little.
const BACKOFF: &str = "20ms 50ms 100ms ..200ms";

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
    /// Once the cluster is formed the metadata log knows its members; this is then the list of whom
    /// a node asks to be taken in, and of the brokers that are made voters without being asked for.
    pub voters: Vec<(BrokerId, String)>,
    /// Where the other members reach this node: `host:port` of its gRPC listener. Taken over by the
    /// cluster when it is another one than before. [`QuorumOptions::new`] finds it among the voters;
    /// a node that is not one of them sets it.
    pub advertised_address: String,
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
        let own = voters.iter().find(|(broker, _)| *broker == node_id);
        Self {
            node_id,
            cluster_id: cluster_id.into(),
            data_dir: data_dir.into(),
            advertised_address: own.map_or_else(String::new, |(_, address)| address.clone()),
            voters,
            election_timeout_min: Duration::from_millis(150),
            election_timeout_max: Duration::from_millis(250),
            heartbeat_interval: Duration::from_millis(100),
            snapshot_every: 5_000,
            propose_timeout: Duration::from_secs(5),
        }
    }
}

pub(crate) fn raft_config(options: &QuorumOptions) -> Result<Config, OpenError> {
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
    if options.advertised_address.is_empty() {
        return Err(invalid(
            "a node that is not one of the voters needs an advertised address".into(),
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
