//! What an append costs, through the map and by `pwritev`, per batch size: processor time of the
//! whole process (the populating thread included) and the latency of single appends.
//!
//! ```text
//! cargo bench -p kittiwake-storage --bench append_cost -- [DIR] [MIB] [RUNS] [pace]
//! ```
//!
//! Writes MIB mebibytes per run into a log in DIR, RUNS times for each pair, alternating; prints
//! medians. With `pace` appends come at 100 MiB/s, so that write-back runs meanwhile.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kittiwake_storage::{
    BatchOrigin, BatchRules, Compression, LeaderEpoch, LogConfig, LogDir, LogDirOptions,
    RecordsBuilder, TimestampType, validate,
};
use rustix::time::{ClockId, clock_gettime};

/// Batch sizes, bytes.
const SIZES: [usize; 6] = [256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20];
/// Bytes per second with `pace`.
const PACE: f64 = (100 << 20) as f64;

#[derive(Clone, Copy, Default)]
struct Cost {
    cpu_s_per_gib: f64,
    mib_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

fn main() {
    let mut args = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    let directory = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let mib: usize = args.next().and_then(|mib| mib.parse().ok()).unwrap_or(64);
    let runs: usize = args.next().and_then(|runs| runs.parse().ok()).unwrap_or(1);
    let pace = args.next().as_deref() == Some("pace");
    println!(
        "{mib} MiB a run, {runs} runs, in {}, paced: {pace}",
        directory.display()
    );
    println!("| batch | path | CPU-s/GiB | MiB/s | p50 µs | p99 µs | max µs |");
    println!("|---|---|---|---|---|---|---|");
    for size in SIZES {
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..runs {
            for (path, costs) in costs.iter_mut().enumerate() {
                costs.push(run(&directory, size, mib << 20, path == 0, pace));
            }
        }
        for (costs, name) in costs.iter().zip(["map", "pwritev"]) {
            let of = |pick: fn(&Cost) -> f64| median(costs.iter().map(pick).collect());
            println!(
                "| {size} | {name} | {:.2} | {:.0} | {:.1} | {:.1} | {:.0} |",
                of(|cost| cost.cpu_s_per_gib),
                of(|cost| cost.mib_per_s),
                of(|cost| cost.p50_us),
                of(|cost| cost.p99_us),
                of(|cost| cost.max_us),
            );
        }
    }
}

fn run(directory: &Path, size: usize, total: usize, map: bool, pace: bool) -> Cost {
    let root = tempfile::tempdir_in(directory).expect("a directory to write in");
    let options = LogDirOptions {
        cluster_id: "bench".into(),
        node_id: 1,
        boot_id_path: "/proc/sys/kernel/random/boot_id".into(),
        free_floor_bytes: 0,
        open_segments_max: 16,
    };
    let dir = LogDir::open(root.path(), &options).expect("an empty directory");
    let config = LogConfig {
        bulk_append_bytes: if map { u32::MAX } else { 0 },
        ..LogConfig::default()
    };
    let log = dir
        .create_log("bench", uuid::Uuid::from_u128(1), 0, config)
        .expect("a log");
    let mut builder = RecordsBuilder::new(Compression::None);
    builder.push(1, None, Some(&vec![b'x'; size - 61 - 12]), &[]);
    let bytes = builder.build().expect("a batch");
    let batch = validate(&bytes, &rules(), 0).expect("a valid batch");
    let count = total / bytes.len();
    let mut latencies = Vec::with_capacity(count);
    let (cpu, start) = (cpu_time(), Instant::now());
    for at in 0..count {
        if pace {
            wait_until(start, (at * bytes.len()) as f64 / PACE);
        }
        let before = Instant::now();
        log.append(&batch, LeaderEpoch(0), 0).expect("room");
        latencies.push(before.elapsed());
    }
    let (cpu, elapsed) = (cpu_time() - cpu, start.elapsed());
    latencies.sort_unstable();
    let gib = (count * bytes.len()) as f64 / (1u64 << 30) as f64;
    let micros = |at: usize| latencies[at.min(count - 1)].as_secs_f64() * 1e6;
    Cost {
        cpu_s_per_gib: cpu.as_secs_f64() / gib,
        mib_per_s: gib * 1024.0 / elapsed.as_secs_f64(),
        p50_us: micros(count / 2),
        p99_us: micros(count * 99 / 100),
        max_us: micros(count - 1),
    }
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

fn wait_until(start: Instant, seconds: f64) {
    let due = Duration::from_secs_f64(seconds);
    if let Some(left) = due.checked_sub(start.elapsed())
        && left > Duration::from_millis(1)
    {
        std::thread::sleep(left);
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
