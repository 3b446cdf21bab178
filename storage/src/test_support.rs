//! What the tests of this crate share: batches, directories and configurations.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use crate::records::RecordsBuilder;
use crate::{
    Appended, BatchOrigin, BatchRules, Compression, LeaderEpoch, Loaded, LoadedLog, Log, LogConfig,
    LogDir, LogDirOptions, Offset, TimestampType, validate,
};

pub(crate) const TOPIC: &str = "orders";
pub(crate) const EPOCH: LeaderEpoch = LeaderEpoch(3);

/// The seed of a random-step test: a fixed one, or `KITTIWAKE_SEED`.
pub(crate) fn seed(fixed: u64) -> u64 {
    let seed = std::env::var("KITTIWAKE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(fixed);
    println!("KITTIWAKE_SEED={seed}");
    seed
}

pub(crate) fn rules() -> BatchRules {
    BatchRules {
        max_message_bytes: 64 << 20,
        keys_required: false,
        strict: false,
        timestamp_type: TimestampType::CreateTime,
        timestamp_before_max_ms: i64::MAX,
        timestamp_after_max_ms: i64::MAX,
        allow_zstd: true,
        decompressed_bytes_max: 1 << 20,
        origin: BatchOrigin::Client,
    }
}

/// A batch of records with the values given, all of one timestamp.
pub(crate) fn batch(timestamp: i64, values: &[&[u8]]) -> Vec<u8> {
    let mut builder = RecordsBuilder::new(Compression::None);
    for value in values {
        builder.push(timestamp, None, Some(value), &[]);
    }
    builder.build().unwrap()
}

/// A batch of `records` records that takes about `bytes` bytes.
pub(crate) fn sized_batch(timestamp: i64, records: usize, bytes: usize) -> Vec<u8> {
    let value = vec![b'v'; bytes / records];
    batch(timestamp, &vec![value.as_slice(); records])
}

pub(crate) fn append(log: &Log, bytes: &[u8]) -> Appended {
    let batch = validate(bytes, &rules(), 0).unwrap();
    log.append(&batch, EPOCH, 0).unwrap()
}

/// A batch as a leader of `epoch` has stored it at `base_offset`.
pub(crate) fn stamped(bytes: &[u8], base_offset: i64, epoch: i32) -> Vec<u8> {
    let valid = validate(bytes, &rules(), 0).unwrap();
    let (_, head) = valid.stamped(Offset(base_offset), LeaderEpoch(epoch));
    [&head, valid.body()].concat()
}

/// Small segments, so that a few batches make many.
pub(crate) fn small_segments() -> LogConfig {
    LogConfig {
        segment_bytes: 16 << 10,
        segment_index_bytes: 4096,
        index_interval_bytes: 512,
        retention_ms: None,
        file_delete_delay_ms: 0,
        bulk_append_bytes: 2048,
        ..LogConfig::default()
    }
}

/// Options for a directory inside `root`, which also holds the boot id.
pub(crate) fn options(root: &Path) -> LogDirOptions {
    let boot_id_path = root.join("boot_id");
    if !boot_id_path.exists() {
        std::fs::write(&boot_id_path, "boot-1\n").unwrap();
    }
    LogDirOptions {
        cluster_id: "test-cluster".into(),
        node_id: 1,
        boot_id_path,
        free_floor_bytes: 0,
        open_segments_max: 16,
    }
}

/// The data directory in `root`.
/// A directory in use, as a node's that has registered.
pub(crate) fn open_dir(root: &Path) -> LogDir {
    let dir = LogDir::open(&root.join("data"), &options(root)).unwrap();
    dir.begin_life().unwrap();
    dir
}

pub(crate) fn load(dir: &LogDir, config: LogConfig) -> Loaded {
    dir.load(|_, _| config, 2, 0).unwrap()
}

/// Loads a directory with one log, which must be sound.
pub(crate) fn load_one(dir: &LogDir, config: LogConfig) -> LoadedLog {
    let mut loaded = load(dir, config);
    assert!(loaded.failed.is_empty(), "{:?}", loaded.failed);
    loaded.logs.pop().expect("a log")
}

/// Copies the directory tree `from` to `to`: what a `kill -9` at this moment would leave.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            match std::fs::copy(entry.path(), target) {
                // A temporary file of the background thread, renamed meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                result => drop(result.unwrap()),
            }
        }
    }
}

pub(crate) fn create(dir: &LogDir, config: LogConfig) -> Arc<Log> {
    dir.create_log(TOPIC, Uuid::from_u128(7), 0, config)
        .unwrap()
}

/// All bytes from `from` to `upto`.
pub(crate) fn read(log: &Log, from: Offset, upto: Offset) -> Vec<u8> {
    let slices = log.read(from, upto, u32::MAX, true).unwrap();
    slices
        .iter()
        .flat_map(|slice| slice.read().unwrap())
        .collect()
}

/// Says that a test is over when it ends, however it ends: who works beside it would go on for ever, and
/// nobody would see the panic.
pub(crate) struct Over<'a>(pub(crate) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
