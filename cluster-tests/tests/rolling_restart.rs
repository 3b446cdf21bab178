//! A planned restart of each node in turn under load loses nothing. How long clients wait is printed; the program
//! `planned_restart` measures it.

use anyhow::{Result, ensure};
use cluster_tests::trials::planned_restart::planned_restart;

#[test]
fn nodes_can_be_restarted_one_by_one() -> Result<()> {
    let report = planned_restart(1, None)?;
    ensure!(report.stops.len() == 3);
    Ok(())
}
