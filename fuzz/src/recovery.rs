//! A log whose files were damaged, opened as after a crash.
//!
//! The input is a list of blows at a sound log of a few small segments: one byte for the recovery point, then six bytes
//! each: file, kind of blow, position (two bytes), value, length.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kittiwake_storage::inspect::{PartitionDir, verify};
use kittiwake_storage::{
    BatchOrigin, BatchRules, Compression, LeaderEpoch, Log, LogConfig, LogDir, LogDirOptions,
    Offset, RecordsBuilder, TimestampType, check_crc, records, validate,
};
use uuid::Uuid;

const NOW_MS: i64 = 1_700_000_000_000;
const PARTITION: &str = "t-0";
const BLOWS_MAX: usize = 16;

/// Damages a log as `data` says, opens it and uses it; panics where a promise is broken.
pub(crate) fn run(data: &[u8]) {
    let Some((&recovery_point, blows)) = data.split_first() else {
        return;
    };
    let root = directory();
    let data_dir = root.path().join("data");
    copy(sound_log(), root.path());
    let partition = data_dir.join(PARTITION);
    let recovery_point = i64::from(recovery_point);
    fs::write(
        data_dir.join("recovery-point-offset-checkpoint"),
        format!("0\n1\nt 0 {recovery_point}\n"),
    )
    .expect("written");
    fs::remove_file(data_dir.join(".kittiwake_clean_shutdown")).expect("removed");
    let files = list(&partition);
    for blow in blows.chunks_exact(6).take(BLOWS_MAX) {
        strike(&files, blow);
    }
    let before = logs(&partition);

    let dir = LogDir::open(&data_dir, &options(root.path())).expect("the data directory is sound");
    let loaded = dir
        .load(|_, _| config(), 1, NOW_MS)
        .expect("the data directory is listed");
    assert_eq!(loaded.logs.len() + loaded.failed.len(), 1);
    let Some(loaded) = loaded.logs.first() else {
        assert_eq!(
            logs(&partition),
            before,
            "a log that is refused is left alone"
        );
        return;
    };
    use_log(&loaded.log, Offset(recovery_point));
    let end = loaded.log.log_end_offset();
    dir.shutdown_clean(1, &[], 1).expect("closed");
    if let Ok(partition) = PartitionDir::open(&partition) {
        // Damage below the recovery point is not looked for; finding it must not fail either.
        let report = verify(&partition, true).expect("readable");
        assert!(
            recovery_point > 0 || report.faults.is_empty(),
            "{:?}",
            report.faults
        );
        assert!(recovery_point > 0 || report.end_offset == end);
    }
}

/// Everything from the recovery point on is whole and in sequence, and appending goes on from there.
fn use_log(log: &Log, recovery_point: Offset) {
    let end = log.log_end_offset();
    assert!(
        end >= recovery_point,
        "nothing below the recovery point is ever cut off"
    );
    let from = recovery_point.max(log.log_start_offset());
    if from < end {
        let slices = log.read(from, end, u32::MAX, true).expect("readable");
        let bytes: Vec<u8> = slices
            .iter()
            .flat_map(|slice| slice.read().expect("read"))
            .collect();
        let mut rest = &bytes[..];
        let mut expected = None;
        for batch in records::batches(&bytes) {
            let (header, _) = batch.expect("a batch");
            assert!(expected.is_none_or(|expected| expected == header.base_offset));
            assert!(expected.is_some() || header.base_offset <= from);
            if header.base_offset >= recovery_point {
                check_crc(rest).expect("a right CRC");
            }
            expected = Some(header.next_offset());
            rest = &rest[header.size()..];
        }
        assert_eq!((expected, rest.len()), (Some(end), 0));
    }
    append(log, 3, log.latest_epoch().unwrap_or(LeaderEpoch(0)));
    assert_eq!(log.log_end_offset(), end + 3);
}

fn strike(files: &[PathBuf], blow: &[u8]) {
    let path = &files[blow[0] as usize % files.len()];
    let Ok(mut bytes) = fs::read(path) else {
        return; // removed by an earlier blow
    };
    let at = usize::from(u16::from_be_bytes([blow[2], blow[3]])).min(bytes.len());
    let end = (at + usize::from(blow[5])).min(bytes.len());
    match blow[1] % 6 {
        0 => bytes[at..]
            .iter_mut()
            .take(1)
            .for_each(|byte| *byte = blow[4]),
        1 => bytes.truncate(at),
        2 => bytes[at..end].fill(blow[4]),
        3 => bytes.extend_from_within(at..end),
        4 => bytes.extend(std::iter::repeat_n(blow[4], usize::from(blow[5]))),
        _ => {
            fs::remove_file(path).expect("removed");
            return;
        }
    }
    fs::write(path, bytes).expect("written");
}

/// A data directory with one log of a few segments, stopped cleanly.
fn sound_log() -> &'static Path {
    static SOUND: OnceLock<tempfile::TempDir> = OnceLock::new();
    SOUND
        .get_or_init(|| {
            let root = directory();
            let options = options(root.path());
            fs::write(&options.boot_id_path, "boot").expect("written");
            let dir = LogDir::open(&root.path().join("data"), &options).expect("opened");
            let log = dir
                .create_log("t", Uuid::from_u128(1), 0, config())
                .expect("created");
            for n in 0..40 {
                if n % 15 == 0 {
                    log.assign_epoch(LeaderEpoch(n / 15), log.log_end_offset());
                }
                append(&log, 1 + n % 5, LeaderEpoch(n / 15));
            }
            assert!(log.segment_count() > 2);
            dir.shutdown_clean(1, &[], 1).expect("closed");
            root
        })
        .path()
}

fn append(log: &Log, records: i32, epoch: LeaderEpoch) {
    let mut batch = RecordsBuilder::new(Compression::None);
    for _ in 0..records {
        batch.push(
            NOW_MS + log.log_end_offset().0,
            Some(b"key"),
            Some(&[b'v'; 20]),
            &[],
        );
    }
    let bytes = batch.build().expect("a batch");
    let rules = BatchRules {
        max_message_bytes: 1 << 20,
        keys_required: false,
        strict: false,
        timestamp_type: TimestampType::CreateTime,
        timestamp_before_max_ms: i64::MAX,
        timestamp_after_max_ms: i64::MAX,
        allow_zstd: true,
        decompressed_bytes_max: 0,
        origin: BatchOrigin::Client,
    };
    let batch = validate(&bytes, &rules, NOW_MS).expect("valid");
    log.append(&batch, epoch, NOW_MS).expect("appended");
}

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 2048,
        index_interval_bytes: 256,
        segment_index_bytes: 1024,
        retention_ms: None,
        ..LogConfig::default()
    }
}

fn options(root: &Path) -> LogDirOptions {
    LogDirOptions {
        cluster_id: "fuzz".into(),
        node_id: 1,
        boot_id_path: root.join("boot_id"),
        free_floor_bytes: 0,
        open_segments_max: 4,
    }
}

/// In memory where there is a tmpfs.
fn directory() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let parent = if shm.is_dir() {
        shm.to_owned()
    } else {
        std::env::temp_dir()
    };
    tempfile::tempdir_in(parent).expect("a directory")
}

fn list(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("listed");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    for path in list(from) {
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            fs::create_dir(&target).expect("created");
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copied");
        }
    }
}

fn logs(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let logs = list(dir)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|found| found == "log"));
    logs.map(|path| (path.clone(), fs::read(&path).expect("read")))
        .collect()
}
