//! All three nodes killed at once under load and started again: nothing acknowledged is missing.

use anyhow::{Result, ensure};
use cluster_tests::trials::kill_all::kill_all;

#[test]
fn what_was_acknowledged_survives_the_death_of_all() -> Result<()> {
    const COUNT: usize = 2;
    let report = kill_all(COUNT, None)?;
    ensure!(report.first_acknowledgement.len() == COUNT);
    Ok(())
}
