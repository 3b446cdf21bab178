//! Apache Kafka's own `DumpLogSegments` reads what this log writes, and says of every batch and record what our reader
//! says.
//!
//! Needs a Java runtime and `KITTIWAKE_KAFKA_LIBS`, a directory of Kafka's jars, as
//! `cluster-tests/clients/java/libs DIR` fills it. Skipped where either is missing.

#![allow(clippy::unwrap_used)] // In a test a panic is the message.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kittiwake_storage::batch::{NO_SEQUENCE, NO_TIMESTAMP};
use kittiwake_storage::inspect::{FoundBatch, PartitionDir, Step, verify};
use kittiwake_storage::{
    BatchHeader, BatchOrigin, BatchRules, Compression, LeaderEpoch, Log, LogConfig, LogDir,
    LogDirOptions, Offset, ProducerState, Record, RecordsBuilder, TimestampType, records, validate,
};
use uuid::Uuid;

const NOW_MS: i64 = 1_700_000_000_000;
const LOG4J: &str = r#"<Configuration><Appenders><Console name="C" target="SYSTEM_ERR"><PatternLayout pattern="%p %m (%c)%n"/></Console></Appenders><Loggers><Root level="WARN"><AppenderRef ref="C"/></Root></Loggers></Configuration>"#;

/// Kafka's jars and a Java runtime, or why not.
fn kafka() -> Result<PathBuf, String> {
    let libs = std::env::var_os("KITTIWAKE_KAFKA_LIBS").ok_or("KITTIWAKE_KAFKA_LIBS is not set")?;
    Command::new("java")
        .arg("-version")
        .output()
        .map_err(|error| format!("no Java: {error}"))?;
    Ok(libs.into())
}

/// What the tool prints of these files, and what it complains about.
fn dump_log_segments(libs: &Path, arguments: &[&str], files: &[PathBuf]) -> (String, Vec<String>) {
    let config = tempfile::tempdir().unwrap();
    let log4j = config.path().join("log4j2.xml");
    fs::write(&log4j, LOG4J).unwrap();
    let files: Vec<_> = files
        .iter()
        .map(|file| file.to_str().unwrap().to_owned())
        .collect();
    let output = Command::new("java")
        .args(["-Xmx256m", "-XX:TieredStopAtLevel=1"])
        .arg(format!("-Dlog4j2.configurationFile={}", log4j.display()))
        .arg("-cp")
        .arg(format!("{}/*", libs.display()))
        .arg("org.apache.kafka.tools.DumpLogSegments")
        .args(arguments)
        .arg("--files")
        .arg(files.join(","))
        .output()
        .unwrap();
    // Complaints do not make it fail.
    assert!(output.status.success());
    let complaints = String::from_utf8(output.stderr).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (text, complaints.lines().map(str::to_owned).collect())
}

/// As [`dump_log_segments`], of files it has nothing to complain about.
fn sound_dump(libs: &Path, arguments: &[&str], files: &[PathBuf]) -> String {
    let (text, complaints) = dump_log_segments(libs, arguments, files);
    assert_eq!(complaints, [""; 0]);
    text
}

fn rules(timestamp_type: TimestampType, origin: BatchOrigin) -> BatchRules {
    BatchRules {
        max_message_bytes: 1 << 20,
        keys_required: false,
        strict: true,
        timestamp_type,
        timestamp_before_max_ms: i64::MAX,
        timestamp_after_max_ms: i64::MAX,
        allow_zstd: true,
        decompressed_bytes_max: 1 << 20,
        origin,
    }
}

fn append(log: &Log, batch: RecordsBuilder, rules: &BatchRules, epoch: i32) {
    let bytes = batch.build().unwrap();
    let batch = validate(&bytes, rules, NOW_MS + 77).unwrap();
    log.append(&batch, LeaderEpoch(epoch), NOW_MS).unwrap();
}

/// Several segments with every codec, several epochs and producers, a transaction, LogAppendTime, headers and nulls.
fn fill(log: &Log) {
    let client = rules(TimestampType::CreateTime, BatchOrigin::Client);
    let mut sequences = BTreeMap::from([(7, 0), (8, i32::MAX - 100)]);
    for n in 0..300_i64 {
        let epoch = (n / 70) as i32 * 2;
        if n % 70 == 0 {
            log.assign_epoch(LeaderEpoch(epoch), log.log_end_offset());
        }
        let codec = Compression::ALL[(n % 5) as usize];
        let mut batch = RecordsBuilder::new(codec);
        let count = 1 + (n % 7) as i32;
        if let Some(sequence) = sequences.get_mut(&(n % 10)) {
            batch = batch.producer(n % 10, 1, *sequence);
            *sequence = (i64::from(*sequence) + i64::from(count)).rem_euclid(1 << 31) as i32;
        }
        for r in 0..i64::from(count) {
            // Now and then time goes back.
            let timestamp = NOW_MS + n * 10 + r - if n % 13 == 0 { 5000 } else { 0 };
            let (key, value) = (format!("key-{n}-{r}"), "value ".repeat((n % 17) as usize));
            let key = (r % 3 != 1).then_some(key.as_bytes());
            let value = (r % 5 != 2).then_some(value.as_bytes());
            let headers: &[(&[u8], Option<&[u8]>)] = &[(b"one", Some(b"1")), (b"two", None)];
            batch.push(timestamp, key, value, &headers[..(r % 3) as usize]);
        }
        append(log, batch, &client, epoch);
    }
    let epoch = 8;
    let stamped = rules(TimestampType::LogAppendTime, BatchOrigin::Client);
    for codec in Compression::ALL {
        let mut batch = RecordsBuilder::new(codec);
        batch.push(5, Some(b"stamped"), Some(b"by the leader"), &[]);
        batch.push(NO_TIMESTAMP, None, None, &[]);
        append(log, batch, &stamped, epoch);
    }
    let mut batch = RecordsBuilder::new(Compression::None)
        .producer(20, 0, 0)
        .transactional();
    batch.push(NOW_MS, None, Some(b"in a transaction"), &[]);
    append(log, batch, &client, epoch);
    // Commit, by coordinator epoch 0.
    let mut marker = RecordsBuilder::new(Compression::None)
        .producer(20, 0, NO_SEQUENCE)
        .transactional()
        .control();
    marker.push(NOW_MS, Some(&[0, 0, 0, 1]), Some(&[0; 6]), &[]);
    append(
        log,
        marker,
        &rules(TimestampType::CreateTime, BatchOrigin::Coordinator),
        epoch,
    );
    let mut batch = RecordsBuilder::new(Compression::None)
        .producer(21, 3, 0)
        .transactional();
    batch.push(NOW_MS, None, Some(b"in a transaction that stays open"), &[]);
    append(log, batch, &client, epoch);
}

/// A data directory with one log, after a clean stop; returns the log's directory.
fn write_log(root: &Path) -> PathBuf {
    let boot_id_path = root.join("boot_id");
    fs::write(&boot_id_path, "boot").unwrap();
    let options = LogDirOptions {
        cluster_id: "test-cluster".into(),
        node_id: 1,
        boot_id_path,
        free_floor_bytes: 0,
        open_segments_max: 4,
    };
    let config = LogConfig {
        segment_bytes: 16 << 10,
        index_interval_bytes: 512,
        bulk_append_bytes: 400,
        ..LogConfig::default()
    };
    let dir = LogDir::open(&root.join("data"), &options).unwrap();
    let log = dir
        .create_log("orders", Uuid::from_u128(7), 0, config)
        .unwrap();
    fill(&log);
    assert!(log.segment_count() > 3);
    dir.shutdown_clean(1, &[], 1).unwrap();
    root.join("data/orders-0")
}

/// The files of a log with this extension, in order.
fn files(log: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(log)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

/// The line the tool prints for a batch.
fn batch_line(batch: &FoundBatch) -> String {
    let header = &batch.header;
    format!(
        "baseOffset: {} lastOffset: {} count: {} baseSequence: {} lastSequence: {} producerId: {} producerEpoch: {} \
         partitionLeaderEpoch: {} isTransactional: {} isControl: {} deleteHorizonMs: OptionalLong.empty position: {} \
         {}: {} size: {} magic: {} compresscodec: {} crc: {} isvalid: {}",
        header.base_offset,
        header.last_offset(),
        header.records_count,
        header.base_sequence,
        header.last_sequence(),
        header.producer_id,
        header.producer_epoch,
        header.leader_epoch,
        header.is_transactional(),
        header.is_control(),
        batch.position,
        header.timestamp_type(),
        header.max_timestamp,
        header.size(),
        header.magic,
        header.compression(),
        header.crc,
        batch.crc.is_ok(),
    )
}

/// The line the tool prints for a record.
fn record_line(header: &BatchHeader, record: &Record<'_>) -> String {
    let size = |bytes: Option<&[u8]>| bytes.map_or(-1, |bytes| bytes.len() as i64);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let sequence = match header.base_sequence {
        NO_SEQUENCE => NO_SEQUENCE,
        base => (i64::from(base) + i64::from(record.offset_delta)).rem_euclid(1 << 31) as i32,
    };
    let keys: Vec<_> = record.headers().map(|(key, _)| text(key)).collect();
    let mut line = format!(
        "| offset: {} {}: {} keySize: {} valueSize: {} sequence: {sequence} headerKeys: [{}]",
        record.offset,
        header.timestamp_type(),
        record.timestamp,
        size(record.key),
        size(record.value),
        keys.join(",")
    );
    if header.is_control() {
        line += " endTxnMarker: COMMIT coordinatorEpoch: 0";
        return line;
    }
    if let Some(key) = record.key {
        line += &format!(" key: {}", text(key));
    }
    if let Some(value) = record.value {
        line += &format!(" payload: {}", text(value));
    }
    line
}

/// What the tool should print of the `.log` files.
fn expected_log_dump(log: &Path) -> Vec<String> {
    let dir = PartitionDir::open(log).unwrap();
    let mut lines = Vec::new();
    for &base in dir.segments() {
        lines.push(format!(
            "Dumping {}/{base:020}.log",
            log.display(),
            base = base.0
        ));
        lines.push(format!("Log starting offset: {base}"));
        let mut reader = dir.segment(base).unwrap();
        while let Step::Batch(batch) = reader.step().unwrap() {
            lines.push(batch_line(&batch));
            let body = reader.body(&batch).unwrap();
            let plain = records::plain_records(&batch.header, &body, 1 << 20).unwrap();
            for record in records::decode(&batch.header, &plain) {
                lines.push(record_line(&batch.header, &record.unwrap()));
            }
        }
    }
    lines
}

#[test]
fn kafkas_tool_reads_our_logs() {
    let root = tempfile::tempdir().unwrap();
    let log = write_log(root.path());
    let report = verify(&PartitionDir::open(&log).unwrap(), true).unwrap();
    assert_eq!((report.faults, report.notes), (vec![], vec![]));
    let libs = match kafka() {
        Ok(libs) => libs,
        Err(reason) => {
            println!("SKIPPED: {reason}");
            return;
        }
    };

    let (text, mut complaints) = dump_log_segments(
        &libs,
        &["--deep-iteration", "--print-data-log"],
        &files(&log, "log"),
    );
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    let expected = expected_log_dump(&log);
    for (line, expected) in lines.iter().zip(&expected) {
        assert_eq!(line, &expected.trim_end());
    }
    assert_eq!(lines.len(), expected.len());
    // The tool wants every file to begin at offset 0: it says so of every later segment, and must say no more.
    let mut expected = expected_complaints(&log);
    complaints.sort();
    expected.sort();
    assert_eq!(complaints, expected);

    let indexes = files(&log, "index");
    let text = sound_dump(&libs, &["--index-sanity-check"], &indexes);
    assert_eq!(
        text.matches("passed sanity check").count(),
        indexes.len(),
        "{text}"
    );
    sound_dump(&libs, &["--verify-index-only"], &indexes);
    let text = sound_dump(&libs, &[], &indexes);
    assert!(text.matches("offset: ").count() > indexes.len(), "{text}");
    let times = files(&log, "timeindex");
    sound_dump(&libs, &["--verify-index-only"], &times);
    let text = sound_dump(&libs, &[], &times);
    assert!(text.matches("timestamp: ").count() > times.len(), "{text}");

    let text = sound_dump(&libs, &[], &files(&log, "snapshot"));
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    assert_eq!(lines, expected_snapshot_dump(&log));
}

fn expected_complaints(log: &Path) -> Vec<String> {
    let dir = PartitionDir::open(log).unwrap();
    let complaint = |base: &Offset| {
        let file = log.join(format!("{:020}.log", base.0));
        [
            format!("Non-consecutive offsets in {}", file.display()),
            format!("  -1 is followed by {base}"),
        ]
    };
    dir.segments()[1..].iter().flat_map(complaint).collect()
}

/// What the tool should print of the `.snapshot` files.
fn expected_snapshot_dump(log: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for file in files(log, "snapshot") {
        lines.push(format!("Dumping {}", file.display()));
        let state = ProducerState::decode_snapshot(&fs::read(&file).unwrap()).unwrap();
        for entry in state.producers() {
            let start = entry
                .transaction_start
                .map_or("OptionalLong.empty".to_owned(), |offset| {
                    format!("OptionalLong[{offset}]")
                });
            let mut line = format!(
                "producerId: {} producerEpoch: {} coordinatorEpoch: -1 currentTxnFirstOffset: {start} lastTimestamp: {}",
                entry.producer_id, entry.epoch, entry.timestamp
            );
            if let Some(offset) = entry.last_offset {
                let delta = entry.last_offset_delta;
                line += &format!(
                    " firstSequence: {} lastSequence: {} lastOffset: {offset} offsetDelta: {delta} timestamp: {}",
                    (i64::from(entry.last_sequence) - i64::from(delta)).rem_euclid(1 << 31),
                    entry.last_sequence,
                    entry.timestamp
                );
            }
            lines.push(line);
        }
    }
    lines
}
