//! This node, as `/metrics` and `/readyz` show it.

use std::sync::{Arc, OnceLock};

use kittiwake_raft::ClusterImage;
use nix::sys::statvfs::statvfs;
use tracing::{error, warn};

use super::Monitored;
use crate::broker::Broker;
use crate::metrics::Metrics;

/// Tells about a node from before its logs are recovered until it stops.
#[derive(Debug)]
pub struct Monitor {
    metrics: Arc<Metrics>,
    node: OnceLock<Arc<Broker>>,
}

impl Monitor {
    /// A node that is starting.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            node: OnceLock::new(),
        }
    }

    /// Its logs are recovered, it is registered and its listeners are open.
    pub fn serving(&self, broker: Arc<Broker>) {
        // A node starts once.
        let _ = self.node.set(broker);
    }

    /// Sets the gauges that are read, not counted.
    fn read(&self, broker: &Broker) {
        let metrics = &self.metrics;
        let log_dir = broker.partitions.log_dir();
        let partitions = broker.partitions.all();
        metrics.partitions.set(signed(partitions.len()));
        metrics.partitions_led.set(signed(
            partitions
                .iter()
                .filter(|partition| partition.is_leader())
                .count(),
        ));
        let bytes = partitions
            .iter()
            .map(|partition| partition.log().size_bytes())
            .sum::<u64>();
        metrics.log_bytes.set(signed(bytes));
        let image = broker.image();
        let (under_replicated, offline) = in_trouble(&image, broker);
        metrics.partitions_under_replicated.set(under_replicated);
        metrics.partitions_offline.set(offline);
        metrics
            .partitions_failed
            .set(signed(broker.partitions.failed_count()));
        metrics.append.read(log_dir.appended_bytes());
        metrics.metadata_offset.set(signed(image.offset));
        metrics
            .metadata_reconciled_offset
            .set(signed(*broker.partitions.reconciled().borrow()));
        metrics
            .is_controller
            .set(broker.quorum.is_controller().into());
        let registered = image.broker(broker.node_id);
        metrics
            .fenced
            .set(registered.is_none_or(|registered| registered.fenced).into());
        metrics.lease_valid.set(broker.lease.is_valid().into());
        metrics.log_dir_online.set((!log_dir.is_offline()).into());
        match statvfs(log_dir.path()) {
            Ok(space) => drop(
                metrics.disk_free.set(signed(
                    space
                        .blocks_available()
                        .saturating_mul(space.fragment_size()),
                )),
            ),
            Err(error) => warn!(%error, "free disk space cannot be read"),
        }
        metrics
            .connections
            .set(signed(broker.admission.connections()));
        metrics
            .request_memory
            .set(signed(broker.admission.request_memory_used()));
    }
}

/// Gauges are signed; what they show never comes near the limit.
fn signed(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// Partitions led by this broker that lack replicas, and partitions of the cluster without a leader.
fn in_trouble(image: &ClusterImage, broker: &Broker) -> (i64, i64) {
    let (mut under_replicated, mut offline) = (0, 0);
    for partition in image.topics().flat_map(|topic| &topic.partitions) {
        offline += i64::from(partition.leader.is_none());
        let led_here = partition.leader == Some(broker.node_id);
        under_replicated += i64::from(led_here && partition.isr.len() < partition.replicas.len());
    }
    (under_replicated, offline)
}

impl Monitored for Monitor {
    fn metrics(&self) -> String {
        if let Some(broker) = self.node.get() {
            self.read(broker);
        }
        self.metrics.scrape().unwrap_or_else(|_| {
            error!("metrics cannot be encoded");
            String::new()
        })
    }

    fn ready(&self) -> Result<(), String> {
        let Some(broker) = self.node.get() else {
            return Err("starting: logs are being recovered, or there is no controller yet".into());
        };
        if let Some(reason) = broker.partitions.log_dir().offline() {
            return Err(format!("the data directory is offline: {reason}"));
        }
        match broker.image().broker(broker.node_id) {
            None => Err("not registered".into()),
            Some(registered) if registered.fenced => Err("fenced".into()),
            Some(_) if !broker.lease.is_valid() => {
                Err("no controller answers: writes are refused".into())
            }
            Some(_) => Ok(()),
        }
    }
}
