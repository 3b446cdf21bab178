//! `partition_counts [COUNT…]`: what so many partitions cost three nodes at rest, and the failover of a node that led a third.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use cluster_tests::trials::partition_counts::partition_counts;

#[derive(Parser)]
struct Arguments {
    /// Numbers of partitions, three replicas each
    #[arg(default_values_t = [10, 1_000, 5_000, 10_000])]
    counts: Vec<usize>,
    /// Seconds at rest that are measured
    #[arg(long, default_value_t = 10)]
    rest: u64,
    /// Where the data goes (a tmpfs, say); default: the system's temporary directory
    #[arg(long)]
    directory: Option<PathBuf>,
    /// The kittiwake binary (a release build, say); default: KITTIWAKE_BIN, or the one of this build
    #[arg(long)]
    binary: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let rest = Duration::from_secs(arguments.rest);
    partition_counts(
        &arguments.counts,
        rest,
        arguments.directory,
        arguments.binary,
    )?;
    Ok(())
}
