//! A broker's registration with the metadata quorum.
//!
//! A starting process registers and gets a new broker epoch, fenced; once its partitions are as the image says it is
//! unfenced and may lead. Nothing of an earlier life, not even a delayed request, counts after that (KIP-841, KIP-903).

use kittiwake_raft::{
    Applied, BrokerEpoch, BrokerId, Command, CommandError, LastStop, MetadataQuorum, ProposeError,
    RegisterBroker,
};
use thiserror::Error;

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
    let outcome = quorum
        .propose(Command::RegisterBroker(registration))
        .await?;
    match outcome.results.into_iter().next() {
        Some(Ok(Applied::Registered(epoch))) => Ok(epoch),
        Some(Err(refused)) => Err(refused.into()),
        Some(Ok(other)) => Err(RegistrationError::Unexpected(Some(other))),
        None => Err(RegistrationError::Unexpected(None)),
    }
}

/// Lets the broker lead; returns the metadata offset from which on it does.
///
/// # Errors
/// See [`RegistrationError`].
pub async fn unfence(
    quorum: &MetadataQuorum,
    broker: BrokerId,
    epoch: BrokerEpoch,
) -> Result<u64, RegistrationError> {
    let outcome = quorum
        .propose(Command::UnfenceBroker { broker, epoch })
        .await?;
    match outcome.results.into_iter().next() {
        Some(Err(refused)) => Err(refused.into()),
        _ => Ok(outcome.offset),
    }
}
