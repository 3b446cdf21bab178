//! `kill -9` of a leader, of the controller, of a node that is both and of a follower: writes go on without it, nothing
//! acknowledged is lost, duplicated or reordered, and the node comes back into every ISR.
//!
//! `KITTIWAKE_FAILOVERS` sets how many of each (2); `cargo run -p cluster-tests --bin failover` is the long run.

use anyhow::{Result, ensure};
use cluster_tests::trials::failover::{Role, failover};
use cluster_tests::trials::seed;

#[test]
fn a_dead_node_is_replaced_whatever_it_was() -> Result<()> {
    let count = match std::env::var("KITTIWAKE_FAILOVERS") {
        Ok(text) => text.parse()?,
        Err(_) => 2,
    };
    // One after the other: four clusters at once would measure each other.
    for role in [Role::Leader, Role::Controller, Role::Both, Role::Follower] {
        let report = failover(role, count, seed()?, None)?;
        ensure!(report.pauses.len() == count);
    }
    Ok(())
}
