//! `failover --role leader|controller|both|follower`: kills such a node of three again and again under load, prints how long
//! nothing was acknowledged, and checks every history.
//!
//! `KITTIWAKE_SEED` repeats a run's moments.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use cluster_tests::pauses::median_and_longest;
use cluster_tests::trials::failover::{Role, failover};
use cluster_tests::trials::seed;

#[derive(Parser)]
struct Arguments {
    /// What the killed node is; may be repeated. Default: each in turn
    #[arg(long, value_enum)]
    role: Vec<Role>,
    /// Kills in each role
    #[arg(long, default_value_t = 20)]
    count: usize,
    /// The kittiwake binary (a release build, say); default: KITTIWAKE_BIN, or the one of this build
    #[arg(long)]
    binary: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let roles = match arguments.role.is_empty() {
        true => vec![Role::Leader, Role::Controller, Role::Both, Role::Follower],
        false => arguments.role,
    };
    for role in roles {
        let report = failover(role, arguments.count, seed()?, arguments.binary.clone())?;
        let (median, longest) = median_and_longest(&report.pauses);
        let (_, rejoin) = median_and_longest(&report.rejoins);
        println!(
            "{role:?}: {} kills, {} acknowledged, nothing lost, changed, duplicated or reordered; no acknowledgements for {median:.3?} (median), {longest:.3?} (longest), {rejoin:.3?} (longest while a node came back)",
            report.pauses.len(),
            report.acknowledged,
        );
    }
    Ok(())
}
