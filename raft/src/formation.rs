//! How a cluster of several voters begins.
//!
//! The voter with the lowest broker id forms it, once it has spoken to every other configured voter
//! in one round and none of them holds any state. So nothing is formed twice: if any voter was part
//! of a cluster, it says so, and whoever is empty then waits to be let in as a new member. A voter
//! that is late delays the first formation and nothing else. All others wait to be called.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kittiwake_proto::kittiwake::raft::v1::DescribeResponse;
use tokio::time::sleep;

use crate::codec::directory_id;
use crate::ids::{BrokerId, DirectoryId};
use crate::local::Local;
use crate::transport::describe;
use crate::types::MemberNode;

/// How long a voter may take to say who it is.
const DESCRIBE_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause between two rounds; nodes that start together find each other in the first few.
const ROUND: Duration = Duration::from_millis(20);

/// Rounds without success after which an operator is told once what is missing.
const ROUNDS_BEFORE_NOTICE: u32 = 250;

/// Why there is no cluster yet.
enum Obstacle {
    /// Somebody did not answer, or not as configured; it may be otherwise in the next round.
    Missing(String),
    /// A voter holds state: the cluster exists.
    Exists(BrokerId),
}

/// Tries until the cluster is formed, by this node or another, or the quorum stops.
pub(crate) async fn run(local: Arc<Local>) {
    let first = local.voters.iter().map(|(broker, _)| *broker).min();
    if first != Some(local.node.broker) {
        return;
    }
    for round in 0u32.. {
        match local.raft.is_initialized().await {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
        match local.first_members().await {
            Ok(members) => {
                tracing::info!(voters = members.len(), "forming the cluster");
                if let Err(error) = local.raft.initialize(members).await {
                    tracing::error!(%error, "the cluster was not formed");
                }
                return;
            }
            Err(Obstacle::Exists(voter)) => {
                tracing::warn!(
                    %voter,
                    directory = %local.directory_id,
                    "the cluster exists and this voter's metadata is empty: it asks to be taken in \
                     as a new member"
                );
                return;
            }
            Err(Obstacle::Missing(reason)) if round == ROUNDS_BEFORE_NOTICE => {
                tracing::warn!(reason, "the cluster cannot be formed yet");
            }
            Err(Obstacle::Missing(_)) => {}
        }
        sleep(ROUND).await;
    }
}

impl Local {
    /// Everybody's identity, if everybody is there and empty.
    async fn first_members(&self) -> Result<BTreeMap<DirectoryId, MemberNode>, Obstacle> {
        let mut members = BTreeMap::new();
        for (broker, address) in &self.voters {
            let directory = if *broker == self.node.broker {
                self.directory_id
            } else {
                let answer = describe(&self.cluster_id, address, DESCRIBE_TIMEOUT).await;
                let answer = answer.map_err(|status| {
                    Obstacle::Missing(format!(
                        "broker {broker} at {address}: {}",
                        status.message()
                    ))
                })?;
                self.check_empty(*broker, address, &answer)?
            };
            members.insert(
                directory,
                MemberNode {
                    broker: *broker,
                    address: address.clone(),
                },
            );
        }
        if members.len() != self.voters.len() {
            return Err(Obstacle::Missing(
                "two voters have the same directory id".into(),
            ));
        }
        Ok(members)
    }

    fn check_empty(
        &self,
        broker: BrokerId,
        address: &str,
        answer: &DescribeResponse,
    ) -> Result<DirectoryId, Obstacle> {
        if answer.has_state {
            return Err(Obstacle::Exists(broker));
        }
        if answer.broker != broker.0 {
            let reason = format!("{address} is broker {}, not {broker}", answer.broker);
            return Err(Obstacle::Missing(reason));
        }
        directory_id(&answer.directory_id).map_err(|error| Obstacle::Missing(error.to_string()))
    }
}
