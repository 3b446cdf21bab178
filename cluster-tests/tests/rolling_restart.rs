//! A planned restart of each node in turn under load loses nothing; leadership moves before a node goes.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::trials::planned_restart::planned_restart;

/// Far above what is promised (0.1 s): this machine may be busy. Far below what waiting for a dead node's session takes.
const PAUSE_MAX: Duration = Duration::from_secs(2);

#[test]
fn nodes_can_be_restarted_one_by_one() -> Result<()> {
    let report = planned_restart(1, None)?;
    ensure!(report.stops.len() == 3);
    for pause in report.stops {
        ensure!(
            pause < PAUSE_MAX,
            "no acknowledgements for {pause:.1?} while a node stopped"
        );
    }
    Ok(())
}
