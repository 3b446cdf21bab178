//! This node as a registered broker: from its registration until it leaves.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use kittiwake_raft::{BrokerEpoch, CommandError, RegisterBroker};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::expulsion::{Expelled, is_fenced};
use super::leave::{fence_oneself, has_live_others};
use super::{Heartbeats, Life};
use crate::broker::Broker;
use crate::controller::registration::{self, RegistrationError};

/// How often the data directory is looked at; a failed fsync has refused its own writes already.
const OFFLINE_CHECK: Duration = Duration::from_millis(500);

/// What a node brings when it joins.
pub(crate) struct Joining {
    pub(crate) broker: Arc<Broker>,
    pub(crate) registration: RegisterBroker,
    /// For what runs until the node stops serving.
    pub(crate) tasks: TaskTracker,
    /// The heartbeats go on until the node has left the cluster.
    pub(crate) left: CancellationToken,
}

impl Joining {
    /// Registers, is heard by the voters, brings partitions in step with the image and lets the broker lead. The epoch
    /// of this life.
    ///
    /// # Errors
    /// The registration is refused, or the quorum has stopped.
    pub(crate) async fn join(self) -> Result<BrokerEpoch> {
        let Self {
            broker,
            registration,
            tasks,
            left,
        } = self;
        let (quorum, config) = (&broker.quorum, &broker.config);
        let incarnation_id = registration.incarnation_id;
        let epoch = registration::register(quorum, registration)
            .await
            .context("cannot register")?;
        // The quorum knows now what the last life left behind.
        let log_dir = Arc::clone(broker.partitions.log_dir());
        spawn_blocking(move || log_dir.begin_life())
            .await
            .context("beginning a life")?
            .context("cannot write to the data directory")?;
        // A node joins once.
        let _ = broker.epoch.set(epoch);
        info!(%epoch, "registered");
        let heartbeats = Heartbeats {
            life: Life {
                cluster_id: config.cluster_id.to_string(),
                broker: config.node_id,
                incarnation_id,
                epoch,
            },
            quorum: quorum.clone(),
            reconciled: broker.partitions.reconciled(),
            voter: Arc::clone(&broker.voter),
            lease: Arc::clone(&broker.lease),
            expulsion: Arc::clone(&broker.expulsion),
            interval: config.broker_heartbeat_interval_ms,
            session_timeout: config.broker_session_timeout_ms,
            answered: broker.metrics.heartbeats_answered.clone(),
        };
        tasks.spawn(heartbeats.run(left));
        registration::propose_min_insync_replicas(quorum, config)
            .await
            .context("cannot set the cluster's min.insync.replicas")?;
        // As long as this node follows: those it is in sync with wait for it.
        let following = broker.followers_shutdown.clone();
        tasks.spawn(Arc::clone(&broker.partitions).run(quorum.watch(), following));
        tokio::select! {
            unfenced = unfence(&broker, epoch) => unfenced.context("cannot be unfenced")?,
            expelled = expelled(&broker, epoch) => return Err(expelled.into()),
        }
        Ok(epoch)
    }
}

/// Is unfenced once the partitions here are as the image says, the quorum knows which of them are damaged, and there is a
/// lease to lead them by; leads when it returns. Never with a data directory that is offline.
async fn unfence(broker: &Broker, epoch: BrokerEpoch) -> Result<(), RegistrationError> {
    if broker.partitions.log_dir().is_offline() {
        std::future::pending::<()>().await;
    }
    let partitions = &broker.partitions;
    let mut follow = broker.image().offset;
    loop {
        partitions.wait_reconciled(follow).await;
        partitions.damage_reports().wait_none().await;
        broker.lease.wait_valid().await;
        let reconciled = *partitions.reconciled().borrow();
        match registration::unfence(&broker.quorum, broker.node_id, epoch, reconciled).await {
            // Fenced again while it was proposed.
            Err(RegistrationError::Refused(CommandError::FencedSince { offset })) => {
                follow = offset;
            }
            leading_from => {
                partitions.wait_reconciled(leading_from?).await;
                return Ok(());
            }
        }
    }
}

/// Waits until the cluster has expelled this life of the node.
async fn expelled(broker: &Broker, epoch: BrokerEpoch) -> Expelled {
    let read = async {
        let mut images = broker.quorum.watch();
        loop {
            if let Err(expelled) = is_fenced(&images.borrow_and_update(), broker.node_id, epoch) {
                return expelled;
            }
            // The sender lives as long as the quorum, whose end is noticed elsewhere.
            if images.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        expelled = read => expelled,
        expelled = broker.expulsion.told() => expelled,
    }
}

/// Follows what the cluster thinks of this node, and is unfenced again whenever it was taken for dead and is not.
/// Returns only if the node must stop.
pub(crate) async fn stay(broker: &Broker, epoch: BrokerEpoch) -> Expelled {
    let mut images = broker.quorum.watch();
    loop {
        let fenced = match is_fenced(&images.borrow_and_update(), broker.node_id, epoch) {
            Ok(fenced) => fenced,
            Err(expelled) => return expelled,
        };
        if fenced {
            warn!("this node was fenced; it comes back when it is in step with the cluster");
            // Without a lease, or with its directory offline, it may wait for ever.
            let unfenced = tokio::select! {
                unfenced = unfence(broker, epoch) => unfenced,
                expelled = expelled(broker, epoch) => return expelled,
            };
            match unfenced {
                Ok(()) => info!("unfenced again"),
                // What it was refused for is in the image, or will be.
                Err(error) => warn!(%error, "not unfenced"),
            }
        }
        tokio::select! {
            // The sender lives as long as the quorum, whose end is noticed elsewhere.
            changed = images.changed() => if changed.is_err() {
                std::future::pending::<()>().await;
            },
            expelled = broker.expulsion.told() => return expelled,
        }
    }
}

/// Says when this node has lost its lease, and when it has one again.
pub(crate) async fn watch_lease(broker: Arc<Broker>, shutdown: CancellationToken) {
    let watching = async {
        loop {
            broker.lease.wait_lost().await;
            warn!("no controller has answered a heartbeat for long; this node refuses writes");
            broker.lease.wait_valid().await;
            info!("a controller answers again; this node accepts writes");
        }
    };
    tokio::select! {
        () = watching => {}
        () = shutdown.cancelled() => {}
    }
}

/// Gives up all leaderships and ISR memberships, in one entry, when the data directory goes offline and there are others to
/// take over; alone, it goes on answering what can be read.
pub(crate) async fn leave_when_offline(
    broker: Arc<Broker>,
    epoch: BrokerEpoch,
    shutdown: CancellationToken,
) {
    let is_unfenced = || {
        let image = broker.image();
        image.broker(broker.node_id).is_some_and(|own| !own.fenced)
    };
    let watching = async {
        loop {
            sleep(OFFLINE_CHECK).await;
            let offline = broker.partitions.log_dir().is_offline();
            if offline && is_unfenced() && has_live_others(&broker) {
                error!("the data directory is offline: this node gives up its leaderships");
                fence_oneself(&broker, epoch).await;
            }
        }
    };
    shutdown.run_until_cancelled(watching).await;
}

#[cfg(test)]
mod tests {
    use kittiwake_raft::{Applied, Command, IncarnationId, LastStop};
    use tokio::time::timeout;

    use super::*;
    use crate::controller::topics::{TopicSpec, create_topics};
    use crate::node::Node;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_fenced_node_that_lives_comes_back_and_a_superseded_one_stops() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::for_tests(directory.path()).await;
        let broker = &Arc::clone(node.broker());
        let registered = Arc::clone(broker.image().broker(broker.node_id).unwrap());
        assert_eq!(broker.epoch.get(), Some(&registered.epoch));
        let staying = stay(broker, registered.epoch);
        tokio::pin!(staying);

        let fence = Command::FenceBroker {
            broker: broker.node_id,
            epoch: registered.epoch,
        };
        broker.quorum.propose(fence).await.unwrap();
        let mut images = broker.quorum.watch();
        let unfenced = images.wait_for(|image| !image.broker(broker.node_id).unwrap().fenced);
        tokio::select! {
            expelled = &mut staying => panic!("{expelled}"),
            unfenced = timeout(DEADLINE, unfenced) => drop(unfenced.unwrap().unwrap()),
        }

        let twin = RegisterBroker {
            broker: broker.node_id,
            incarnation_id: IncarnationId::random(),
            directory_id: registered.directory_id,
            endpoints: registered.endpoints.clone(),
            rack: None,
            last_stop: LastStop::Killed,
        };
        let spec = TopicSpec {
            name: "t".to_owned(),
            ..TopicSpec::default()
        };
        let created = create_topics(broker, &[spec], false).await;
        assert!(created.iter().all(Result::is_ok));
        assert!(broker.partitions.get("t", 0).is_ok());
        let outcome = broker.quorum.propose(Command::RegisterBroker(twin)).await;
        let Some(Ok(Applied::Registered(epoch))) = outcome.unwrap().results.pop() else {
            panic!("the twin is not registered");
        };
        let unfence = Command::UnfenceBroker {
            broker: broker.node_id,
            epoch,
            reconciled: u64::MAX,
        };
        let unfenced = broker.quorum.propose(unfence).await.unwrap().offset;
        assert!(
            broker.leader("t", 0, "PLAINTEXT").is_some(),
            "the twin leads"
        );
        broker.partitions.wait_reconciled(unfenced).await;
        assert!(broker.partitions.get("t", 0).is_err());
        let expelled = timeout(DEADLINE, staying).await.unwrap();
        assert!(matches!(expelled, Expelled::Superseded { .. }));
        node.stop_for_tests().await;
    }
}
