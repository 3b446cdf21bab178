//! Carries out what [`super::liveness`] decides: runs on every voter, acts while this node is the controller.

use std::sync::Arc;
use std::time::Duration;

use kittiwake_raft::{BrokerId, ClusterImage, Command, Controller, ProposeError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::liveness::{Action, Cause, Event, FRESH, Registration, Verdict, image_event};
use crate::cluster::{Voter, identify};
use crate::config::address::{GRPC_LISTENER, HostPort};
use crate::metrics::BrokersFenced;

/// How long a broker that is asked for may take to answer.
const CONFIRM_PATIENCE: Duration = Duration::from_millis(500);

/// Pause before a fence that was not committed is proposed again.
const RETRY: Duration = Duration::from_millis(50);

/// Fences the dead and the silent until `shutdown`.
pub(crate) async fn run(voter: Arc<Voter>, metrics: BrokersFenced, shutdown: CancellationToken) {
    let own = voter.node_id();
    let mut controllers = voter.quorum.watch_controller();
    let mut images = voter.quorum.watch();
    let mut running = JoinSet::new();
    let mut reign = None;
    voter.note(image_event(&images.borrow_and_update()));
    loop {
        let (actions, deadline) = voter.decisions();
        for action in actions {
            match action {
                Action::Confirm(broker) => {
                    running.spawn(confirm(Arc::clone(&voter), broker));
                }
                Action::Fence(broker, cause) => {
                    let fence = Fence {
                        voter: Arc::clone(&voter),
                        reign,
                        broker,
                        cause,
                        metrics: metrics.clone(),
                    };
                    running.spawn(fence.run());
                }
            }
        }
        let due = async {
            match deadline {
                Some(deadline) => sleep_until(Instant::from_std(deadline)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = controllers.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = reign_of(own, &mut controllers);
                if now != reign {
                    reign = now;
                    voter.note(reign_event(&voter, reign));
                }
            }
            changed = images.changed() => {
                if changed.is_err() {
                    return;
                }
                voter.note(image_event(&images.borrow_and_update()));
            }
            () = voter.changed() => {}
            () = due => voter.note(Event::Tick),
            Some(_) = running.join_next() => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// This node's reign, if it has one.
fn reign_of(
    own: BrokerId,
    controllers: &mut watch::Receiver<Option<Controller>>,
) -> Option<Controller> {
    let controller = *controllers.borrow_and_update();
    controller.filter(|controller| controller.broker == own)
}

fn reign_event(voter: &Voter, reign: Option<Controller>) -> Event {
    match reign {
        None => Event::LostController,
        Some(_) => Event::BecameController {
            log_end: voter.quorum.status().last_log.unwrap_or(0),
        },
    }
}

/// Looks whether the broker's process is still there.
async fn confirm(voter: Arc<Voter>, registration: Registration) {
    let image = voter.quorum.image();
    let broker = current(&image, registration);
    let address = broker.and_then(|broker| broker.endpoint(GRPC_LISTENER));
    let verdict = match (broker, address) {
        (Some(broker), Some(endpoint)) => {
            let address = HostPort {
                host: endpoint.host.clone(),
                port: endpoint.port,
            };
            identify(
                &image.cluster_id,
                broker.id,
                broker.incarnation_id,
                &address.to_string(),
                CONFIRM_PATIENCE,
            )
            .await
        }
        _ => Verdict::Unknown,
    };
    debug!(broker = %registration.broker, ?verdict, "looked for a broker without a heartbeat stream");
    voter.note(Event::Confirmed(registration, verdict));
}

fn current(
    image: &ClusterImage,
    registration: Registration,
) -> Option<&Arc<kittiwake_raft::Broker>> {
    image
        .broker(registration.broker)
        .filter(|broker| broker.epoch == registration.epoch)
}

/// A decision on its way to the metadata log.
struct Fence {
    voter: Arc<Voter>,
    /// The reign in which it was decided.
    reign: Option<Controller>,
    broker: Registration,
    cause: Cause,
    metrics: BrokersFenced,
}

impl Fence {
    /// Proposes it until it is applied or obsolete.
    async fn run(self) {
        let quorum = &self.voter.quorum;
        let Registration { broker, epoch } = self.broker;
        while self.is_wanted() {
            // One that was cut off, or has slept, must not act on what it has not heard.
            if !quorum.controller_is_fresh(FRESH) {
                sleep(RETRY).await;
                continue;
            }
            let command = Command::FenceBroker { broker, epoch };
            match quorum.propose_as_controller(command).await {
                Ok(outcome) => {
                    if let Some(Ok(_)) = outcome.results.first() {
                        self.report();
                    }
                    return;
                }
                Err(ProposeError::Stopped(_)) => return,
                // A controller that is about to hand over refuses too, and may stay one in the end.
                Err(error) => {
                    debug!(%broker, %error, "a broker is not fenced yet; trying again");
                    sleep(RETRY).await;
                }
            }
        }
    }

    fn is_wanted(&self) -> bool {
        let quorum = &self.voter.quorum;
        let image = quorum.image();
        let unfenced = current(&image, self.broker).is_some_and(|broker| !broker.fenced);
        unfenced && *quorum.watch_controller().borrow() == self.reign
    }

    fn report(&self) {
        let Registration { broker, epoch } = self.broker;
        match self.cause {
            Cause::Dead => {
                self.metrics.dead.inc();
                warn!(%broker, %epoch, "fenced a broker: its process is gone");
            }
            Cause::Silent => {
                self.metrics.silent.inc();
                warn!(%broker, %epoch, "fenced a broker: no heartbeat for broker.session.timeout.ms");
            }
        }
    }
}
