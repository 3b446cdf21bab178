//! `kill_all`: kills all three nodes at once under load and restarts them; prints the time to the first acknowledgement, and
//! checks that nothing acknowledged is missing.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use cluster_tests::pauses::median_and_longest;
use cluster_tests::trials::kill_all::kill_all;

#[derive(Parser)]
struct Arguments {
    /// How often all are killed
    #[arg(long, default_value_t = 5)]
    count: usize,
    /// The kittiwake binary (a release build, say); default: KITTIWAKE_BIN, or the one of this build
    #[arg(long)]
    binary: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let report = kill_all(arguments.count, arguments.binary)?;
    for (title, times) in [
        ("first acknowledgement", report.first_acknowledgement),
        ("every partition", report.every_partition),
    ] {
        let (median, longest) = median_and_longest(&times);
        println!("{title} after {median:.3?} (median), {longest:.3?} (longest) from the start");
    }
    Ok(())
}
