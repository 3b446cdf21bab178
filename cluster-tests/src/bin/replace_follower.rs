//! `replace_follower`: empties a follower's data directory under load; prints how long it takes to be back in every ISR, and
//! a producer's throughput and latency before and meanwhile.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use cluster_tests::trials::replace_follower::{Plan, replace_follower};

#[derive(Parser)]
struct Arguments {
    /// Records of 1 KiB in the topic before the follower is replaced
    #[arg(long, default_value_t = 500_000)]
    backlog: usize,
    /// Records per second of the producer
    #[arg(long, default_value_t = 20_000)]
    rate: u32,
    /// Seconds that the undisturbed cluster is measured
    #[arg(long, default_value_t = 15)]
    before: u64,
    /// The kittiwake binary (a release build, say); default: KITTIWAKE_BIN, or the one of this build
    #[arg(long)]
    binary: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let plan = Plan {
        backlog: arguments.backlog,
        records_per_second: arguments.rate,
        before: Duration::from_secs(arguments.before),
    };
    let report = replace_follower(&plan, arguments.binary)?;
    println!(
        "throughput {:+.1} %, p99 {:.2} times as long while the follower caught up",
        (report.during.records_per_second / report.before.records_per_second - 1.0) * 100.0,
        report.during.p99.as_secs_f64() / report.before.p99.as_secs_f64(),
    );
    Ok(())
}
