//! Producer ids: handed out from blocks that the metadata quorum gives to this broker (KIP-730).
//!
//! A block is owned by one registration of one broker and never given out again, so an id is never used twice, restarts
//! included; what is left of a block when the process ends is lost.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use kittiwake_raft::{Applied, BrokerEpoch, BrokerId, Command, MetadataQuorum};
use tokio::sync::Mutex;

use super::Refusal;
use crate::api::ErrorCode;

/// Ids per block: one entry of the metadata log for so many producers. Kafka's number.
const BLOCK: i32 = 1_000;

/// The producer ids of this broker.
#[derive(Debug)]
pub struct ProducerIds {
    broker: BrokerId,
    /// This life's registration, once it has one.
    epoch: Arc<OnceLock<BrokerEpoch>>,
    quorum: MetadataQuorum,
    /// What is left of the block. Held while the next one is asked for: who comes meanwhile waits for the same.
    left: Mutex<Range<i64>>,
}

impl ProducerIds {
    /// Ids for producers that ask `broker`, in the life with this `epoch`.
    pub fn new(
        broker: BrokerId,
        epoch: Arc<OnceLock<BrokerEpoch>>,
        quorum: MetadataQuorum,
    ) -> Self {
        Self {
            broker,
            epoch,
            quorum,
            left: Mutex::new(0..0),
        }
    }

    /// An id that no producer ever had.
    ///
    /// # Errors
    /// COORDINATOR_LOAD_IN_PROGRESS, which clients retry, while the broker is not registered or the quorum gives no block.
    pub async fn next(&self) -> Result<i64, Refusal> {
        let mut left = self.left.lock().await;
        if left.is_empty() {
            *left = self.allocate().await?;
        }
        left.next()
            .ok_or_else(|| unavailable("no producer ids are left"))
    }

    async fn allocate(&self) -> Result<Range<i64>, Refusal> {
        let epoch = self
            .epoch
            .get()
            .ok_or_else(|| unavailable("this broker is not registered"))?;
        let command = Command::AllocateProducerIds {
            broker: self.broker,
            epoch: *epoch,
            count: BLOCK,
        };
        let outcome = self
            .quorum
            .propose(command)
            .await
            .map_err(|error| unavailable(&error.to_string()))?;
        match outcome.results.into_iter().next() {
            Some(Ok(Applied::ProducerIds { first, count })) => Ok(first..first + i64::from(count)),
            Some(Err(error)) => Err(unavailable(&error.to_string())),
            Some(Ok(_)) | None => Err(Refusal::no_answer()),
        }
    }
}

fn unavailable(reason: &str) -> Refusal {
    Refusal::new(
        ErrorCode::CoordinatorLoadInProgress,
        format!("no producer id can be given: {reason}"),
    )
}
