//! Nodes of the cluster, as operators handle them: drained, made voters, removed.

use kittiwake_raft::{BrokerId, ClusterImage, Command, MembershipError, MembershipRefusal};

use super::{Refusal, carry_out};
use crate::api::ErrorCode;
use crate::broker::Broker;

/// A node that registers again while it is drained is drained again in its new life, this often.
const ATTEMPTS: usize = 3;

/// Begins or ends a node's drain; returns how many partitions it still leads, for want of another in-sync replica. The
/// controller moves those later.
///
/// # Errors
/// BROKER_ID_NOT_REGISTERED, or the quorum's.
pub async fn drain(broker: &Broker, node: BrokerId, draining: bool) -> Result<usize, Refusal> {
    let mut refused = unknown(node);
    for _ in 0..ATTEMPTS {
        let image = broker.image();
        let Some(registered) = image.broker(node) else {
            return Err(unknown(node));
        };
        let command = Command::DrainBroker {
            broker: node,
            epoch: registered.epoch,
            draining,
        };
        match only(carry_out(broker, command, false).await?) {
            Ok(()) => return Ok(leads(&broker.image(), node)),
            Err(refusal) if refusal.code == ErrorCode::StaleBrokerEpoch => refused = refusal,
            Err(refusal) => return Err(refusal),
        }
    }
    Err(refused)
}

/// Lets a node vote on metadata that only follows it so far. Done already is done.
///
/// # Errors
/// BROKER_ID_NOT_REGISTERED where it is not a member of the quorum; POLICY_VIOLATION while it is behind, or while another
/// change is under way.
pub async fn add_voter(broker: &Broker, node: BrokerId) -> Result<(), Refusal> {
    Ok(broker.quorum.add_voter(node).await?)
}

/// Forgets a node that has stopped and has no replicas, the metadata quorum first: what is left of it if the second step
/// fails can be removed again.
///
/// # Errors
/// Those of [`unregister`]; POLICY_VIOLATION for the last voter.
pub async fn remove(broker: &Broker, node: BrokerId) -> Result<(), Refusal> {
    removable(&broker.image(), node)?;
    match broker.quorum.remove_member(node).await {
        Ok(()) | Err(MembershipError::Refused(MembershipRefusal::UnknownMember(_))) => {}
        Err(error) => return Err(error.into()),
    }
    unregister(broker, node).await
}

/// Forgets a node that has stopped and has no replicas.
///
/// # Errors
/// BROKER_ID_NOT_REGISTERED; POLICY_VIOLATION where it has replicas or runs.
pub async fn unregister(broker: &Broker, node: BrokerId) -> Result<(), Refusal> {
    removable(&broker.image(), node)?;
    only(carry_out(broker, Command::UnregisterBroker { broker: node }, false).await?)
}

fn removable(image: &ClusterImage, node: BrokerId) -> Result<(), Refusal> {
    let registered = image.broker(node).ok_or_else(|| unknown(node))?;
    let refuse = |message: String| Err(Refusal::new(ErrorCode::PolicyViolation, message));
    let partitions = image.topics().flat_map(|topic| &topic.partitions);
    let replicas = partitions
        .filter(|partition| partition.replicas.contains(&node))
        .count();
    if replicas > 0 {
        return refuse(format!(
            "Node {node} still has replicas of {replicas} partitions: move them away first."
        ));
    }
    if !registered.fenced {
        return refuse(format!("Node {node} is running: stop it first."));
    }
    Ok(())
}

fn only(results: super::Results) -> Result<(), Refusal> {
    let result = results.into_iter().next();
    result
        .unwrap_or_else(|| Err(Refusal::no_answer()))
        .map(drop)
}

fn unknown(node: BrokerId) -> Refusal {
    Refusal::new(
        ErrorCode::BrokerIdNotRegistered,
        format!("Node {node} is not registered."),
    )
}

fn leads(image: &ClusterImage, node: BrokerId) -> usize {
    let partitions = image.topics().flat_map(|topic| &topic.partitions);
    partitions
        .filter(|partition| partition.leader == Some(node))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::tests_support::{apply, create, image_of};

    #[test]
    fn only_a_stopped_node_without_replicas_can_be_removed() {
        let mut image = image_of(3);
        create(&mut image, "t", &[], vec![vec![BrokerId(0)]]);
        let code = |image: &ClusterImage, node| {
            removable(image, BrokerId(node)).map_err(|refusal| refusal.code)
        };
        let violation = Err(ErrorCode::PolicyViolation);
        assert_eq!(code(&image, 7), Err(ErrorCode::BrokerIdNotRegistered));
        assert_eq!(code(&image, 0), violation);
        assert_eq!(code(&image, 1), violation, "it runs");
        for node in [0, 1].map(BrokerId) {
            let epoch = image.broker(node).unwrap().epoch;
            apply(
                &mut image,
                Command::FenceBroker {
                    broker: node,
                    epoch,
                },
            );
        }
        assert_eq!(code(&image, 1), Ok(()));
        assert_eq!(code(&image, 0), violation, "it has a replica");
    }
}
