//! A broker's registration with the metadata quorum.
//!
//! A starting process registers and gets a new broker epoch, fenced; once its partitions are as the image says it is
//! unfenced and may lead. Nothing of an earlier life, not even a delayed request, counts after that (KIP-841, KIP-903).

use std::time::Duration;

use kittiwake_raft::image::MIN_INSYNC_REPLICAS;
use kittiwake_raft::{
    Applied, BrokerEpoch, BrokerId, Command, CommandError, ConfigChange, ConfigResource, LastStop,
    MetadataQuorum, Outcome, ProposeError, RegisterBroker,
};
use thiserror::Error;
use tracing::{info, warn};

use crate::config::BrokerConfig;
use crate::config::topic::topic_key;

/// Pause between proposals of which it is not known what became: one that was lost with its controller fails at once.
const RETRY: Duration = Duration::from_millis(100);

/// Why a broker could not register.
#[derive(Debug, Error)]
pub enum RegistrationError {
    /// The quorum did not take the command.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The quorum refused it.
    #[error("the registration was refused: {0}")]
    Refused(#[from] CommandError),
    /// The quorum answered something else than a registration; a bug.
    #[error("the registration was answered with {0:?}")]
    Unexpected(Option<Applied>),
}

/// How the broker's previous life ended, in the quorum's terms. A new directory has nothing to lose.
pub fn last_stop(of_directory: kittiwake_storage::LastStop) -> LastStop {
    use kittiwake_storage::LastStop as Stored;
    match of_directory {
        Stored::Clean { broker_epoch } => LastStop::Clean(BrokerEpoch(broker_epoch)),
        Stored::Killed => LastStop::Killed,
        Stored::New | Stored::Lossy => LastStop::Lossy,
    }
}

/// Registers and returns the epoch of this life; the broker is fenced.
///
/// # Errors
/// See [`RegistrationError`].
pub async fn register(
    quorum: &MetadataQuorum,
    registration: RegisterBroker,
) -> Result<BrokerEpoch, RegistrationError> {
    let outcome = insist(quorum, Command::RegisterBroker(registration)).await?;
    match outcome.results.into_iter().next() {
        Some(Ok(Applied::Registered(epoch))) => Ok(epoch),
        Some(Err(refused)) => Err(refused.into()),
        Some(Ok(other)) => Err(RegistrationError::Unexpected(Some(other))),
        None => Err(RegistrationError::Unexpected(None)),
    }
}

/// Lets the broker lead, whose partitions have followed the metadata up to `reconciled`; returns the metadata offset from
/// which on it does. Refused by [`CommandError::FencedSince`] if it was fenced later than that.
///
/// # Errors
/// See [`RegistrationError`].
pub async fn unfence(
    quorum: &MetadataQuorum,
    broker: BrokerId,
    epoch: BrokerEpoch,
    reconciled: u64,
) -> Result<u64, RegistrationError> {
    let unfence = Command::UnfenceBroker {
        broker,
        epoch,
        reconciled,
    };
    let outcome = insist(quorum, unfence).await?;
    match outcome.results.into_iter().next() {
        Some(Err(refused)) => Err(refused.into()),
        _ => Ok(outcome.offset),
    }
}

/// Makes the configuration file's `min.insync.replicas` the cluster's, if the cluster has none yet. Afterwards the file
/// does not count: the nodes' files could differ, and the quorum derives eligible leaders from the value.
///
/// # Errors
/// See [`RegistrationError`].
pub async fn propose_min_insync_replicas(
    quorum: &MetadataQuorum,
    config: &BrokerConfig,
) -> Result<(), RegistrationError> {
    let row = topic_key(MIN_INSYNC_REPLICAS);
    let Some((_, file)) = row.and_then(|row| config.topic_defaults.get(row)) else {
        return Ok(());
    };
    let image = quorum.image();
    let configs = image.broker_configs(None);
    match configs.and_then(|configs| configs.get(MIN_INSYNC_REPLICAS)) {
        Some(cluster) if *cluster == file => Ok(()),
        Some(cluster) => {
            warn!(
                %cluster, %file,
                "min.insync.replicas of the configuration file does not count: the cluster has its own, a dynamic \
                 configuration of all brokers"
            );
            Ok(())
        }
        None => {
            let change = ConfigChange {
                resource: ConfigResource::Broker(None),
                set: vec![(MIN_INSYNC_REPLICAS.to_owned(), file.clone().into_owned())],
                remove: Vec::new(),
                expected: Vec::new(),
            };
            let outcome = insist(quorum, Command::AlterConfigs(vec![change])).await?;
            outcome
                .results
                .into_iter()
                .try_for_each(|result| result.map(drop))?;
            info!(min_insync_replicas = %file, "set for the cluster");
            Ok(())
        }
    }
}

/// Proposes a command that may be applied twice without harm, until it is answered. The quorum itself waits for a new
/// controller; what comes back from it has had its time.
async fn insist(quorum: &MetadataQuorum, command: Command) -> Result<Outcome, ProposeError> {
    loop {
        match quorum.propose(command.clone()).await {
            Err(error @ (ProposeError::NotController { .. } | ProposeError::Unavailable)) => {
                info!(%error, command = command.name(), "waiting for the metadata quorum");
                tokio::time::sleep(RETRY).await;
            }
            answered => return answered,
        }
    }
}
