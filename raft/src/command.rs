//! What can be proposed to the metadata quorum, and what comes back.
//!
//! A command is validated when it is *applied*, on every node alike, against the image its entry
//! finds there; a proposer's own look at the image is only a courtesy to its caller. A command of
//! several items is one log entry; its items are applied in order, and each is accepted or refused
//! on its own.

use std::collections::BTreeMap;

use crate::ids::{BrokerEpoch, BrokerId, DirectoryId, IncarnationId, PartitionEpoch, TopicId};
use crate::image::{Endpoint, Partition};

/// A change of the cluster metadata.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// A broker process starts. It is accepted *fenced*, with a new epoch:
    /// [`Applied::Registered`]. The same incarnation again (a retry) gets its epoch again.
    RegisterBroker(RegisterBroker),
    /// The broker is dead, hung or has stopped: it leaves every ISR and all its leaderships move,
    /// in this one entry.
    FenceBroker {
        /// Which broker.
        broker: BrokerId,
        /// Its registration; another one is refused as stale.
        epoch: BrokerEpoch,
    },
    /// The broker is caught up with the metadata and may lead. Partitions that waited for it (it
    /// is in their ELR, or led them last when nobody else is left) elect it.
    UnfenceBroker {
        /// Which broker.
        broker: BrokerId,
        /// Its registration; another one is refused as stale.
        epoch: BrokerEpoch,
        /// Metadata offset that its partitions have followed; refused if it was fenced after that, as a repeated
        /// proposal may have been: [`CommandError::FencedSince`]. [`u64::MAX`] counts as all, which is what a command
        /// of the first version is read as.
        reconciled: u64,
    },
    /// An operator or a planned stop empties the broker of leaderships: those with another ISR
    /// member move in this entry, and it is chosen as leader only where nobody else can be.
    DrainBroker {
        /// Which broker.
        broker: BrokerId,
        /// Its registration; another one is refused as stale.
        epoch: BrokerEpoch,
        /// `false` ends the drain; leaderships come back by later elections.
        draining: bool,
    },
    /// Forgets a fenced broker that has no replicas.
    UnregisterBroker {
        /// Which broker.
        broker: BrokerId,
    },
    /// Creates topics: [`Applied::TopicCreated`] each.
    CreateTopics(Vec<NewTopic>),
    /// Deletes topics.
    DeleteTopics(Vec<TopicId>),
    /// Adds partitions at the end of topics.
    CreatePartitions(Vec<NewPartitions>),
    /// Changes ISR, leader or replicas of partitions, or reports damage of replicas, by compare-and-set on the partition
    /// epoch: [`Applied::PartitionAltered`] each.
    AlterPartitions(Vec<PartitionChange>),
    /// Sets and removes dynamic configuration.
    AlterConfigs(Vec<ConfigChange>),
    /// Reserves producer ids for a broker (KIP-730): [`Applied::ProducerIds`].
    AllocateProducerIds {
        /// The broker that will hand them out.
        broker: BrokerId,
        /// Its registration; another one is refused as stale.
        epoch: BrokerEpoch,
        /// How many, at least 1.
        count: i32,
    },
}

impl Command {
    /// Its kind, for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::RegisterBroker(_) => "RegisterBroker",
            Self::FenceBroker { .. } => "FenceBroker",
            Self::UnfenceBroker { .. } => "UnfenceBroker",
            Self::DrainBroker { .. } => "DrainBroker",
            Self::UnregisterBroker { .. } => "UnregisterBroker",
            Self::CreateTopics(_) => "CreateTopics",
            Self::DeleteTopics(_) => "DeleteTopics",
            Self::CreatePartitions(_) => "CreatePartitions",
            Self::AlterPartitions(_) => "AlterPartitions",
            Self::AlterConfigs(_) => "AlterConfigs",
            Self::AllocateProducerIds { .. } => "AllocateProducerIds",
        }
    }
}

/// A starting broker process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RegisterBroker {
    /// Which broker.
    pub broker: BrokerId,
    /// This life of the process.
    pub incarnation_id: IncarnationId,
    /// Its data directory. Another one than before means that the broker's replicas are gone.
    pub directory_id: DirectoryId,
    /// Where clients and other brokers reach it, one per listener name.
    pub endpoints: Vec<Endpoint>,
    /// Failure domain, `broker.rack`.
    pub rack: Option<String>,
    /// What its previous life left behind.
    pub last_stop: LastStop,
}

/// How a broker's previous life ended, as far as its disk can tell (KIP-966).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LastStop {
    /// Everything was flushed: the marker holds the epoch of the life that wrote it. Believed only
    /// if that is the latest epoch the quorum gave this broker.
    Clean(BrokerEpoch),
    /// The process died, the machine did not (same boot id): the page cache kept every byte.
    Killed,
    /// Anything else: acknowledged bytes may be gone, so the broker leaves every ISR and ELR.
    Lossy,
}

/// A topic to create.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewTopic {
    /// `[A-Za-z0-9._-]{1,249}`, neither `.` nor `..`.
    pub name: String,
    /// Chosen by the proposer, so that applying stays deterministic: [`TopicId::random`].
    pub id: TopicId,
    /// Topic-level configuration.
    pub configs: BTreeMap<String, String>,
    /// Replicas of each partition, preferred leader first.
    pub partitions: Vec<Vec<BrokerId>>,
}

/// Partitions to add to a topic.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewPartitions {
    /// Which topic.
    pub topic: TopicId,
    /// How many partitions the proposer saw. Refused if it is no longer so: two requests to grow
    /// from 3 to 6 must not end with 9.
    pub existing: i32,
    /// Replicas of each new partition, preferred leader first.
    pub partitions: Vec<Vec<BrokerId>>,
}

/// A change of one partition. What is `None` stays, except as far as the rules move it (a leader
/// that leaves the replicas is replaced, for example).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PartitionChange {
    /// Which topic.
    pub topic: TopicId,
    /// Which partition of it, from 0.
    pub partition: i32,
    /// The state this change was computed from; refused if the partition has moved on.
    pub partition_epoch: PartitionEpoch,
    /// Set when the partition's leader asks, `None` when the controller does.
    pub requester: Option<Requester>,
    /// The new in-sync replicas, not empty, the leader among them.
    pub isr: Option<Vec<IsrMember>>,
    /// Elects.
    pub leader: Option<Election>,
    /// Replaces the replica set (reassignment).
    pub replicas: Option<Reassignment>,
    /// Says whether a replica's log is damaged.
    pub damage: Option<Damage>,
}

/// The leader on whose behalf a partition changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Requester {
    /// Its id.
    pub broker: BrokerId,
    /// Its registration.
    pub broker_epoch: BrokerEpoch,
    /// Its reign over the partition.
    pub leader_epoch: i32,
}

/// What a broker has found of its own replica. A damaged one is neither led nor kept in sync by it, like one in an
/// offline log directory (KIP-858).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Damage {
    /// Whose replica.
    pub broker: BrokerId,
    /// Its registration; another one is refused as stale.
    pub broker_epoch: BrokerEpoch,
    /// Whether it cannot be used. `false` takes an earlier report of the same registration back: the damaged log was
    /// set aside, and an empty one follows the leader.
    pub damaged: bool,
}

/// A proposed member of an ISR.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IsrMember {
    /// Its id.
    pub broker: BrokerId,
    /// The registration that fetched up to the log end. A delayed request must not bring a
    /// rebooted broker back (KIP-903); `None` skips the check.
    pub broker_epoch: Option<BrokerEpoch>,
}

/// Who shall lead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Election {
    /// This replica, which must be in the ISR (or, where that is empty, in the ELR).
    Clean(BrokerId),
    /// This replica whatever it holds: acknowledged records may be lost. Only for a partition
    /// without a leader, on an operator's order or `unclean.leader.election.enable`.
    Unclean(BrokerId),
}

/// A new replica set. During a reassignment `replicas` holds the old and the new ones.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reassignment {
    /// All replicas, preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// Those of them still catching up to join.
    pub adding: Vec<BrokerId>,
    /// Those of them that leave once the others have joined.
    pub removing: Vec<BrokerId>,
}

/// A change of one resource's dynamic configuration. Values are checked by the proposer, except
/// where the image itself depends on them (`min.insync.replicas`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigChange {
    /// Whose configuration.
    pub resource: ConfigResource,
    /// Keys to set.
    pub set: Vec<(String, String)>,
    /// Keys to return to their default; unknown ones are ignored.
    pub remove: Vec<String>,
    /// Values the change was computed from, `None` for a key that was not set; refused if one of
    /// them is another by now. Two requests to edit one list must not end with one of them.
    pub expected: Vec<(String, Option<String>)>,
}

/// What has a dynamic configuration.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ConfigResource {
    /// A topic, by name.
    Topic(String),
    /// A broker; `None` is every broker (the cluster-wide default).
    Broker(Option<BrokerId>),
}

/// A command that was committed and applied.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// Metadata offset of its entry. The image of the node that proposed it is there already;
    /// others follow.
    pub offset: u64,
    /// One result per item, in the command's order; exactly one for a command without items.
    pub results: Vec<Result<Applied, CommandError>>,
}

/// What an accepted item did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Applied {
    /// What was asked; there is nothing to add.
    Done,
    /// The broker's new registration.
    Registered(BrokerEpoch),
    /// The topic exists now.
    TopicCreated(TopicId),
    /// The partition's state after the change.
    PartitionAltered(Partition),
    /// The broker owns `first..first + count`.
    ProducerIds {
        /// The first id of the block.
        first: i64,
        /// How many there are.
        count: i32,
    },
}

/// Why an item was refused. The image is as if it had not been asked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// The broker never registered, or was unregistered.
    #[error("broker {0} is not registered")]
    UnknownBroker(BrokerId),
    /// The request belongs to an earlier life of the broker.
    #[error("stale broker epoch; the current one is {current}")]
    StaleBrokerEpoch {
        /// Its latest registration.
        current: BrokerEpoch,
    },
    /// The broker was fenced after what its partitions have followed.
    #[error(
        "the broker was fenced at metadata offset {offset}, which its partitions have not followed"
    )]
    FencedSince {
        /// Metadata offset of the fence.
        offset: u64,
    },
    /// The registration cannot be accepted as it is.
    #[error("invalid registration: {0}")]
    InvalidRegistration(String),
    /// The broker is not fenced, or still has replicas.
    #[error("broker {0} is in use: it must be fenced and without replicas")]
    BrokerInUse(BrokerId),
    /// Not a legal topic name.
    #[error("invalid topic name: {0}")]
    InvalidTopicName(String),
    /// A topic of this name or id exists already.
    #[error("topic '{0}' already exists")]
    TopicExists(String),
    /// The names differ only in `.` and `_`, which metric names cannot tell apart.
    #[error("topic name collides with the existing topic '{0}'")]
    TopicNameCollision(String),
    /// No such topic.
    #[error("unknown topic")]
    UnknownTopic,
    /// No such partition.
    #[error("unknown partition")]
    UnknownPartition,
    /// The number of partitions is not possible.
    #[error("invalid partitions: {0}")]
    InvalidPartitions(String),
    /// The replica assignment is not possible.
    #[error("invalid replica assignment: {0}")]
    InvalidReplicas(String),
    /// The requester does not lead the partition in that epoch.
    #[error("stale leader epoch; the current one is {current}")]
    StaleLeaderEpoch {
        /// The partition's leader epoch.
        current: i32,
    },
    /// The partition has changed since.
    #[error("stale partition epoch; the current one is {current}")]
    StalePartitionEpoch {
        /// The partition's epoch.
        current: PartitionEpoch,
    },
    /// The broker may not join the ISR or lead: fenced, draining, of another epoch, or its log is damaged.
    #[error("broker {0} is not eligible")]
    IneligibleReplica(BrokerId),
    /// The change contradicts itself or the partition's state.
    #[error("invalid change: {0}")]
    InvalidChange(String),
    /// A configuration value the image depends on is not usable.
    #[error("invalid value for {key}: {reason}")]
    InvalidConfig {
        /// The configuration key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key has been changed since.
    #[error("{0} has been changed meanwhile")]
    ConfigChanged(String),
    /// No producer ids are left, or the block size is not positive.
    #[error("cannot allocate {0} producer ids")]
    InvalidProducerIds(i32),
}
