//! The controller's part in a node: what topics and configurations may look like, where replicas go, how a broker
//! registers. Kafka's admin APIs and the gRPC service both call these functions; every change is a proposal to the
//! metadata quorum, and every refusal a [`Refusal`].
//!
//! What is checked here before a proposal is a courtesy: the image decides when the command is applied. `validate_only`
//! applies the command to a copy of the image.

pub mod configs;
pub mod elections;
pub mod evacuation;
pub(crate) mod fencing;
pub mod liveness;
pub mod nodes;
pub mod partitions;
pub mod placement;
pub mod producer_ids;
pub mod reassignment;
pub mod refusal;
pub mod registration;
pub mod topics;
pub mod upkeep;

#[cfg(test)]
mod random_tests;

#[cfg(test)]
pub(crate) mod tests_support;

pub use refusal::Refusal;

use kittiwake_raft::{Applied, ClusterImage, Command, Outcome};

use crate::broker::Broker;

/// Results of a command's items, in their order.
type Results = Vec<Result<Applied, Refusal>>;

/// Proposes `command`, or tries it on a copy of the image. Returns when the partitions of this node are as the command
/// says, so that whoever asked for a topic can produce to it at once.
async fn carry_out(
    broker: &Broker,
    command: Command,
    validate_only: bool,
) -> Result<Results, Refusal> {
    if validate_only {
        return Ok(rehearse(&broker.quorum.image(), &command));
    }
    let Outcome { offset, results } = broker.quorum.propose(command).await?;
    broker.partitions.wait_reconciled(offset).await;
    Ok(refusals(results))
}

/// What `command` would come to if it were applied to `image` now.
fn rehearse(image: &ClusterImage, command: &Command) -> Results {
    let mut copy = ClusterImage::clone(image);
    let next = copy.offset + 1;
    refusals(copy.apply(next, command))
}

fn refusals(results: Vec<Result<Applied, kittiwake_raft::CommandError>>) -> Results {
    results
        .into_iter()
        .map(|result| result.map_err(Refusal::from))
        .collect()
}

/// Puts the results of the items that were proposed in the places of those whose planning succeeded.
fn fill_in<P, T>(
    planned: Vec<Result<P, Refusal>>,
    results: Result<Results, Refusal>,
    finish: impl Fn(P, Applied) -> T,
) -> Vec<Result<T, Refusal>> {
    let mut results = results.map(Vec::into_iter);
    planned
        .into_iter()
        .map(|plan| {
            let plan = plan?;
            let result = match &mut results {
                // The quorum answers item by item; should it ever answer fewer, nobody is told that all is well.
                Ok(results) => results.next().unwrap_or_else(|| Err(Refusal::no_answer())),
                Err(refusal) => Err(refusal.clone()),
            };
            result.map(|applied| finish(plan, applied))
        })
        .collect()
}
