//! `planned_restart`: SIGTERM and restart of each of three nodes in turn under load; prints how long nothing was
//! acknowledged, and checks the history.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use cluster_tests::pauses::median_and_longest;
use cluster_tests::trials::planned_restart::planned_restart;

#[derive(Parser)]
struct Arguments {
    /// How often every node is restarted
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The kittiwake binary (a release build, say); default: KITTIWAKE_BIN, or the one of this build
    #[arg(long)]
    binary: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let report = planned_restart(arguments.rounds, arguments.binary)?;
    for (title, pauses) in [("stop", report.stops), ("return", report.returns)] {
        let (median, longest) = median_and_longest(&pauses);
        println!(
            "{title} of a node: no acknowledgements for {median:.3?} (median), {longest:.3?} (longest) of {}",
            pauses.len()
        );
    }
    Ok(())
}
