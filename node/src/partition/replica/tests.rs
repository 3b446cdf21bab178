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

/// A partition that its node alone leads, and what keeps it.
struct Scene {
    _directory: tempfile::TempDir,
    _log_dir: LogDir,
    lease: Arc<ControllerLease>,
    partition: Arc<Partition>,
}

fn committed_by_one() -> Committed {
    Committed {
        partition_epoch: PartitionEpoch(0),
        replicas: vec![BrokerId(0)],
        isr: vec![BrokerId(0)],
    }
}

impl Scene {
    /// Without a lease yet; led in epoch 0.
    fn led() -> Self {
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
        let settings = Settings {
            batch_rules: TopicConfig::resolve(&Default::default(), &Default::default())
                .batch_rules(),
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
        partition.lead(LeaderEpoch(0), BrokerId(0), committed_by_one(), 10_000);
        Self {
            _directory: directory,
            _log_dir: log_dir,
            lease,
            partition,
        }
    }
}

/// A batch of one record.
fn batch() -> Vec<u8> {
    let mut batch = RecordsBuilder::new(Compression::None);
    batch.push(now_ms(), None, Some(b"record"), &[]);
    batch.build().unwrap()
}

#[test]
fn what_is_appended_while_the_lease_runs_out_is_not_acknowledged_by_the_leader_alone() {
    let scene = Scene::led();
    let (lease, partition) = (&scene.lease, &scene.partition);
    let batch = batch();
    let batch = validate(&batch, &partition.batch_rules(), now_ms()).unwrap();

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

#[test]
fn a_leader_says_what_its_log_lacks_only_under_a_lease_and_in_the_epoch_it_was_asked_in() {
    let scene = Scene::led();
    let (lease, partition) = (&scene.lease, &scene.partition);
    let refused = Err(ErrorCode::NotLeaderOrFollower);
    let epoch = partition.check_reader_epoch(-1).unwrap();
    assert_eq!(partition.check_denial(epoch), refused, "no lease");
    lease.extend(Instant::now() + 100 * SESSION);
    assert_eq!(partition.check_denial(epoch), Ok(()));

    let following = Following {
        leader: BrokerId(1),
        epoch: LeaderEpoch(1),
    };
    assert!(partition.follow(following));
    assert_eq!(partition.check_denial(epoch), refused, "replaced meanwhile");
    let epoch = partition.check_reader_epoch(-1).unwrap();
    let elsewhere = Err(ErrorCode::OffsetNotAvailable);
    assert_eq!(
        partition.check_denial(epoch),
        elsewhere,
        "a follower's reader"
    );

    partition.lead(LeaderEpoch(2), BrokerId(0), committed_by_one(), 10_000);
    assert_eq!(partition.check_denial(epoch), refused, "leads by now");
    let epoch = partition.check_leader_epoch(2).unwrap();
    assert_eq!(partition.check_denial(epoch), Ok(()));
    partition.resign();
    assert_eq!(partition.check_denial(epoch), refused, "neither");
}

#[test]
fn a_gap_is_no_error_of_the_producer_while_its_partition_changes_hands() {
    let scene = Scene::led();
    let (lease, partition) = (&scene.lease, &scene.partition);
    lease.extend(Instant::now() + 100 * SESSION);
    let append = |sequence: i32| {
        let mut batch = RecordsBuilder::new(Compression::None).producer(7, 0, sequence);
        batch.push(now_ms(), None, Some(b"record"), &[]);
        let batch = batch.build().unwrap();
        let batch = validate(&batch, &partition.batch_rules(), now_ms()).unwrap();
        partition.append(&batch, Acks::Leader, None, now_ms())
    };
    assert!(append(0).is_ok());
    // Nobody has led before: nothing can have been refused or lost.
    assert!(matches!(append(2), Err(AppendRefused::Log(_))));
    partition.lead(LeaderEpoch(1), BrokerId(0), committed_by_one(), 10_000);
    assert!(matches!(append(2), Err(AppendRefused::NotLeader)));
    assert!(append(1).is_ok());
    assert!(append(2).is_ok());
    // Not for ever, or a producer whose records are lost would never be told.
    let mut standing = partition.standing.lock();
    let leader = standing.leader().unwrap();
    assert!(leader.is_taking_over(uptime_ms()));
    assert!(!leader.is_taking_over(uptime_ms() + 1_000));
}

/// KAFKA-18723: a leader that answers after its reign has another's log.
#[test]
fn a_follower_appends_nothing_of_an_epoch_above_the_one_it_follows() {
    let scene = Scene::led();
    let partition = &scene.partition;
    let following = Following {
        leader: BrokerId(1),
        epoch: LeaderEpoch(1),
    };
    assert!(partition.follow(following));
    let batch_at = |offset: i64, epoch: i32| {
        let mut batch = batch();
        batch[..8].copy_from_slice(&offset.to_be_bytes());
        // Neither is covered by the CRC.
        batch[12..16].copy_from_slice(&epoch.to_be_bytes());
        batch
    };
    let take = |records: &[u8]| {
        let answer = LeaderAnswer {
            error: ErrorCode::None,
            diverging: None,
            high_watermark: Offset(9),
            log_start: Offset::ZERO,
            records,
        };
        partition.follow_answer(following, answer)
    };
    let newer = [batch_at(0, 1), batch_at(1, 2)].concat();
    assert_eq!(take(&newer), Followed::Wait);
    let state = (partition.log_end_offset(), partition.high_watermark());
    assert_eq!(
        state,
        (Offset(0), Offset(0)),
        "not even what is of the epoch"
    );
    assert_eq!(take(&batch_at(0, 1)), Followed::Advanced);
    assert_eq!(partition.log_end_offset(), Offset(1));
}
