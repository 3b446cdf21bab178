//! The `kittiwake` command.

use std::process::ExitCode;

use clap::Parser as _;
use kittiwake::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
