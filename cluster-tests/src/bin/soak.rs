//! `soak`: random faults (kills, stops, hangs, replaced disks, all killed at once) one after the other under load, and every
//! history checked.
//!
//! `KITTIWAKE_SEED` repeats a run's faults.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use cluster_tests::trials::seed;
use cluster_tests::trials::soak::soak;

#[derive(Parser)]
struct Arguments {
    /// Faults
    #[arg(long, default_value_t = 50)]
    count: usize,
    /// The kittiwake binary (a release build, say); default: KITTIWAKE_BIN, or the one of this build
    #[arg(long)]
    binary: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let acknowledged = soak(arguments.count, seed()?, arguments.binary)?;
    println!(
        "{} faults: {acknowledged} acknowledged, nothing lost, changed, duplicated or reordered",
        arguments.count
    );
    Ok(())
}
