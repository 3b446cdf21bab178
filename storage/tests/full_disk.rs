//! A filesystem filled to its last byte: clear errors, reads go on, appends resume when space
//! returns. Needs the right to mount a tmpfs; without it the test says that it was skipped.

use std::fs;
use std::path::Path;
use std::process::Command;

use kittiwake_storage::records::batches;
use kittiwake_storage::{
    AppendError, BatchOrigin, BatchRules, Compression, LeaderEpoch, Log, LogConfig, LogDir,
    LogDirOptions, Offset, RecordsBuilder, TimestampType, validate,
};

/// A tmpfs of 2 MiB, unmounted whatever happens.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(dir.path())
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then(|| Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

fn rules() -> BatchRules {
    BatchRules {
        max_message_bytes: 1 << 20,
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

fn open(path: &Path) -> LogDir {
    let options = LogDirOptions {
        cluster_id: "test".into(),
        node_id: 1,
        boot_id_path: "/proc/sys/kernel/random/boot_id".into(),
        free_floor_bytes: 0,
        open_segments_max: 16,
    };
    LogDir::open(path, &options).expect("a directory of our own")
}

fn append(log: &Log, size: usize) -> Result<Offset, AppendError> {
    let mut builder = RecordsBuilder::new(Compression::None);
    builder.push(1, None, Some(&vec![b'x'; size]), &[]);
    let bytes = builder.build().expect("a batch");
    let batch = validate(&bytes, &rules(), 0).expect("a valid batch");
    log.append(&batch, LeaderEpoch(0), 0)
        .map(|appended| appended.base_offset)
}

fn count(log: &Log) -> i64 {
    let slices = log
        .read(Offset(0), log.log_end_offset(), u32::MAX, true)
        .expect("readable");
    let bytes: Vec<u8> = slices
        .iter()
        .flat_map(|slice| slice.read().expect("bytes"))
        .collect();
    batches(&bytes)
        .inspect(|batch| assert!(batch.is_ok(), "whole batches"))
        .count() as i64
}

#[test]
fn a_full_disk_refuses_appends_and_nothing_else() {
    let Some(disk) = Tmpfs::mount() else {
        println!("SKIPPED 1: no right to mount a tmpfs");
        return;
    };
    let config = LogConfig {
        segment_bytes: 512 << 10,
        ..LogConfig::default()
    };
    let dir = open(&disk.0.path().join("data"));
    let log = dir
        .create_log("full", uuid::Uuid::from_u128(1), 0, config)
        .expect("a log");
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![1; 512 << 10]).expect("room for ballast");
    // Small and bulk batches, until neither fits.
    let refused = loop {
        match (append(&log, 900), append(&log, 90_000)) {
            (Err(error), Err(_)) => break error,
            _ => continue,
        }
    };
    assert!(matches!(refused, AppendError::DiskFull), "{refused}");
    let end = log.log_end_offset();
    assert!(end > Offset(0));
    assert_eq!(count(&log), end.0, "reads go on");
    assert!(!dir.is_offline(), "a full disk is no broken disk");
    fs::remove_file(ballast).expect("ballast");
    assert_eq!(append(&log, 900).expect("room again"), end);
    assert_eq!(count(&log), end.0 + 1);
    dir.shutdown_clean(1, &[], 1).expect("a clean stop");
    drop((log, dir));
    let dir = open(&disk.0.path().join("data"));
    let loaded = dir.load(|_, _| config, 1, 0).expect("a listing");
    assert_eq!(loaded.logs[0].log.log_end_offset(), end + 1);
}
