//! Appends through the map against appends by `pwritev`, per batch size.
//!
//! Processor time and tail latency, which decided between them, are in `append_cost`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kittiwake_storage::{
    BatchOrigin, BatchRules, Compression, LeaderEpoch, LogConfig, LogDir, LogDirOptions,
    RecordsBuilder, TimestampType, validate,
};

fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    for size in [256, 1 << 10, 16 << 10, 64 << 10, 1 << 20] {
        group.throughput(Throughput::Bytes(size as u64));
        for (path, bulk_append_bytes) in [("map", u32::MAX), ("pwritev", 0)] {
            let root = tempfile::tempdir().expect("a directory to write in");
            let dir = open(root.path());
            // Old segments go, so that a long measurement does not fill the disk.
            let config = LogConfig {
                segment_bytes: 64 << 20,
                retention_bytes: Some(256 << 20),
                file_delete_delay_ms: 0,
                bulk_append_bytes,
                ..LogConfig::default()
            };
            let log = dir
                .create_log("bench", uuid::Uuid::from_u128(1), 0, config)
                .expect("a log");
            let mut builder = RecordsBuilder::new(Compression::None);
            builder.push(1, None, Some(&vec![b'x'; size - 73]), &[]);
            let bytes = builder.build().expect("a batch");
            let batch = validate(&bytes, &rules(), 0).expect("a valid batch");
            group.bench_function(BenchmarkId::new(path, size), |bencher| {
                bencher.iter(|| {
                    if log.size_bytes() > 512 << 20 {
                        log.retain(0, log.log_end_offset()).expect("retention");
                        dir.write_checkpoints(&[]).expect("checkpoints");
                    }
                    black_box(log.append(&batch, LeaderEpoch(0), 0).expect("room"))
                });
            });
        }
    }
}

fn open(path: &std::path::Path) -> LogDir {
    let options = LogDirOptions {
        cluster_id: "bench".into(),
        node_id: 1,
        boot_id_path: "/proc/sys/kernel/random/boot_id".into(),
        free_floor_bytes: 0,
        open_segments_max: 16,
    };
    LogDir::open(path, &options).expect("an empty directory")
}

fn rules() -> BatchRules {
    BatchRules {
        max_message_bytes: 2 << 20,
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

criterion_group!(benches, append);
criterion_main!(benches);
