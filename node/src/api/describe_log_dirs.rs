//! DescribeLogDirs 1–5 (KIP-113, KIP-827): the size of each partition on this broker's disk, and of the disk.
//!
//! One directory, with all partitions or those asked for; a directory that is offline is KAFKA_STORAGE_ERROR. The lag is
//! that of the log end behind the high watermark, which a leader never has. From v4 the size of the volume and what is
//! free of it come along.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use kafka_wire::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_wire::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_wire::{DescribeLogDirsRequest, DescribeLogDirsResponse};
use kafka_wire_core::StrBytes;
use kittiwake_storage::LogDir;
use tracing::warn;

use super::{ErrorCode, RequestContext};
use crate::partition::Partition;

const UNKNOWN_BYTES: i64 = -1;

pub(crate) async fn handle(
    ctx: RequestContext,
    request: DescribeLogDirsRequest,
    _version: i16,
) -> DescribeLogDirsResponse {
    let log_dir = Arc::clone(ctx.broker.partitions.log_dir());
    let mut result = DescribeLogDirsResult::default();
    result.log_dir = StrBytes::from(log_dir.path().to_string_lossy().into_owned());
    result.total_bytes = UNKNOWN_BYTES;
    result.usable_bytes = UNKNOWN_BYTES;
    if log_dir.is_offline() {
        result.error_code = ErrorCode::KafkaStorageError.code();
    } else {
        result.topics = topics(ctx.broker.partitions.all(), request.topics.map(wanted));
        if let Some((total, usable)) = volume(log_dir).await {
            result.total_bytes = total;
            result.usable_bytes = usable;
        }
    }
    let mut response = DescribeLogDirsResponse::default();
    response.results = vec![result];
    response
}

fn wanted(topics: Vec<DescribableLogDirTopic>) -> HashMap<String, HashSet<i32>> {
    let mut wanted: HashMap<String, HashSet<i32>> = HashMap::new();
    for topic in topics {
        wanted
            .entry(topic.topic.to_string())
            .or_default()
            .extend(topic.partitions);
    }
    wanted
}

fn topics(
    partitions: Vec<Arc<Partition>>,
    wanted: Option<HashMap<String, HashSet<i32>>>,
) -> Vec<DescribeLogDirsTopic> {
    let asked_for = |partition: &Partition| match &wanted {
        None => true,
        Some(wanted) => wanted
            .get(partition.topic())
            .is_some_and(|indexes| indexes.contains(&partition.index())),
    };
    let mut by_topic: BTreeMap<String, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    for partition in partitions.iter().filter(|partition| asked_for(partition)) {
        let mut answer = DescribeLogDirsPartition::default();
        answer.partition_index = partition.index();
        answer.partition_size = i64::try_from(partition.log().size_bytes()).unwrap_or(i64::MAX);
        answer.offset_lag = partition
            .high_watermark()
            .0
            .saturating_sub(partition.log_end_offset().0)
            .max(0);
        by_topic
            .entry(partition.topic().to_owned())
            .or_default()
            .push(answer);
    }
    by_topic
        .into_iter()
        .map(|(name, mut partitions)| {
            partitions.sort_by_key(|partition| partition.partition_index);
            let mut topic = DescribeLogDirsTopic::default();
            topic.name = StrBytes::from(name);
            topic.partitions = partitions;
            topic
        })
        .collect()
}

/// Size of the volume and what this process may still use of it, in bytes.
async fn volume(log_dir: Arc<LogDir>) -> Option<(i64, i64)> {
    let asking = tokio::task::spawn_blocking(move || {
        let stat = rustix::fs::statvfs(log_dir.path());
        stat.inspect_err(|error| warn!(path = %log_dir.path().display(), %error, "cannot ask for the volume's size")).ok()
    });
    let stat = asking.await.ok()??;
    let bytes =
        |blocks: u64| i64::try_from(blocks.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX);
    Some((bytes(stat.f_blocks), bytes(stat.f_bavail)))
}
