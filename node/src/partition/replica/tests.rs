//! What a partition does at its edges: the decisions have tests of their own.

use std::time::{Duration, Instant};

use kittiwake_raft::{IncarnationId, PartitionEpoch};
use kittiwake_storage::{Compression, LogConfig, LogDir, LogDirOptions, RecordsBuilder, validate};
use uuid::Uuid;

use super::*;
use crate::broker::now_ms;
use crate::config::TopicConfig;

/// How long the lease lasts that runs out while a writer waits; the writer has to begin within it, or proves nothing.
const SESSION: Duration = Duration::from_millis(1_500);

#[test]
fn what_is_appended_while_the_lease_runs_out_is_not_acknowledged_by_the_leader_alone() {
    let directory = tempfile::tempdir().unwrap();
    let boot_id_path = directory.path().join("boot_id");
    std::fs::write(&boot_id_path, IncarnationId::random().to_string()).unwrap();
    let options = LogDirOptions {
        cluster_id: "c".to_owned(),
        node_id: 0,
        boot_id_path,
        free_floor_bytes: 0,
        open_segments_max: 10,
    };
    let log_dir = LogDir::open(&directory.path().join("data"), &options).unwrap();
    let id = TopicId::random();
    let uuid = Uuid::from_bytes(id.to_bytes());
    let log = log_dir
        .create_log("t", uuid, 0, LogConfig::default())
        .unwrap();
    let batch_rules = TopicConfig::resolve(&Default::default(), &Default::default()).batch_rules();
    let settings = Settings {
        batch_rules,
        min_insync_replicas: 1,
        durability: Durability::Replicated,
        throttled: Default::default(),
    };
    let lease = Arc::new(ControllerLease::new(SESSION));
    let partition = Arc::new(Partition::new(
        "t".into(),
        id,
        0,
        (log, Offset::ZERO),
        settings,
        (Arc::clone(&lease), Arc::default()),
    ));
    let committed = Committed {
        partition_epoch: PartitionEpoch(0),
        replicas: vec![BrokerId(0)],
        isr: vec![BrokerId(0)],
    };
    partition.lead(LeaderEpoch(0), BrokerId(0), committed, 10_000);
    let mut batch = RecordsBuilder::new(Compression::None);
    batch.push(now_ms(), None, Some(b"record"), &[]);
    let batch = batch.build().unwrap();
    let batch = validate(&batch, &batch_rules, now_ms()).unwrap();

    lease.extend(Instant::now());
    let written = partition.append(&batch, Acks::Leader, None, now_ms());
    assert!(written.is_ok(), "{written:?}");
    // As if the process were stopped in the middle of it: the writer has seen a lease, and gets no further.
    let held_up = partition.standing.lock();
    let refused = std::thread::scope(|scope| {
        let writer = scope.spawn(|| partition.append(&batch, Acks::Leader, None, now_ms()));
        while lease.is_valid() {
            std::thread::yield_now();
        }
        drop(held_up);
        writer.join().unwrap()
    });
    assert!(
        matches!(refused, Err(AppendRefused::NotLeader)),
        "{refused:?}"
    );
}
