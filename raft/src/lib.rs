//! The metadata quorum.
#![forbid(unsafe_code)]

mod codec;
mod command;
mod formation;
mod ids;
pub mod image;
mod log_store;
mod quorum;
mod snapshot;
mod state_machine;
mod transport;
mod types;

pub use command::{
    Applied, Command, CommandError, ConfigChange, ConfigResource, Election, IsrMember, LastStop,
    NewPartitions, NewTopic, Outcome, PartitionChange, Reassignment, RegisterBroker, Requester,
};
pub use ids::{
    BrokerEpoch, BrokerId, DirectoryId, IncarnationId, ParseIdError, PartitionEpoch, TopicId,
};
pub use image::{Broker, ClusterImage, Endpoint, Partition, Topic};
pub use quorum::{
    Member, MetadataQuorum, NoLeader, OpenError, ProposeError, QuorumOptions, QuorumStatus,
};
pub use transport::RaftService;
