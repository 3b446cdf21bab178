//! `kill_loop [COUNT]`: kills a broker under load COUNT times (default 100) at random moments and checks every history.
//!
//! `KITTIWAKE_SEED` repeats a run's moments; `KITTIWAKE_BIN` names the binary (a release build, say).
#![forbid(unsafe_code)]

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let count = match std::env::args().nth(1) {
        Some(text) => text.parse().context("COUNT must be a number")?,
        None => 100,
    };
    let report =
        cluster_tests::trials::crashes::kill_under_load(count, cluster_tests::trials::seed()?)?;
    let mut ready = report.ready_after;
    ready.sort_unstable();
    println!(
        "{count} kills: {} acknowledged, {} read, nothing lost, changed, duplicated or reordered; ready after a restart in {:.1?} (median), {:.1?} (longest)",
        report.acknowledged,
        report.read,
        ready.get(ready.len() / 2).copied().unwrap_or_default(),
        ready.last().copied().unwrap_or_default(),
    );
    Ok(())
}
