//! What partitions need from time to time: retention, rolling, producer expiry, checkpoints.
//!
//! One task with a period for each kind of work in the whole node, on the blocking pool; a partition without anything to do costs a look.

use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::manager::PartitionManager;
use crate::broker::now_ms;

/// The first checkpoint comes soon after a start, but not at once: what the start found unflushed is flushed by then as a
/// rule, so that a node that crashes in a loop does not check the same bytes again each time.
const FIRST_CHECKPOINT: Duration = Duration::from_millis(500);

/// How often each kind of work is done.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// Retention and rolling (`log.retention.check.interval.ms`).
    pub retention: Duration,
    /// Producer expiry (`producer.id.expiration.check.interval.ms`).
    pub producer_expiry: Duration,
    /// The checkpoint files (`replica.high.watermark.checkpoint.interval.ms`).
    pub checkpoint: Duration,
}

/// Does the housekeeping until `shutdown`.
pub async fn run(partitions: Arc<PartitionManager>, periods: Periods, shutdown: CancellationToken) {
    let mut retention = interval(periods.retention);
    let mut producer_expiry = interval(periods.producer_expiry);
    let mut checkpoint = interval_at(Instant::now() + FIRST_CHECKPOINT, periods.checkpoint);
    producer_expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    retention.set_missed_tick_behavior(MissedTickBehavior::Delay);
    checkpoint.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let partitions = Arc::clone(&partitions);
        let work = tokio::select! {
            _ = retention.tick() => tokio::task::spawn_blocking(move || retain(&partitions)),
            _ = producer_expiry.tick() => tokio::task::spawn_blocking(move || expire_producers(&partitions)),
            _ = checkpoint.tick() => tokio::task::spawn_blocking(move || write_checkpoints(&partitions)),
            () = shutdown.cancelled() => return,
        };
        if let Err(error) = work.await {
            error!(%error, "housekeeping failed; it is tried again at its next time");
        }
    }
}

fn expire_producers(partitions: &PartitionManager) {
    let now_ms = now_ms();
    for partition in partitions.all() {
        partition.log().expire_producers(now_ms);
    }
}

fn retain(partitions: &PartitionManager) {
    let now_ms = now_ms();
    for partition in partitions.all() {
        let log = partition.log();
        if let Err(error) = log.roll_if_due(now_ms) {
            error!(topic = partition.topic(), partition = partition.index(), %error, "cannot roll the log");
            continue;
        }
        let retained = log.retain(now_ms, partition.high_watermark());
        match retained {
            Ok(retained) if retained.segments > 0 => info!(
                topic = partition.topic(),
                partition = partition.index(),
                segments = retained.segments,
                bytes = retained.bytes,
                log_start = %log.log_start_offset(),
                "retention deleted segments"
            ),
            Ok(_) => {}
            Err(error) => {
                error!(topic = partition.topic(), partition = partition.index(), %error, "retention failed");
            }
        }
    }
}

/// Writes the checkpoint files of the log directory. Blocks on the disk.
pub fn write_checkpoints(partitions: &PartitionManager) {
    if let Err(error) = partitions
        .log_dir()
        .write_checkpoints(&partitions.high_watermarks())
    {
        error!(%error, "cannot write the checkpoints");
    }
}
