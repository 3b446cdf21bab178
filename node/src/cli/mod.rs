//! The `kittiwake` command line: one file per command.
//!
//! Every command ends with exit status 0, or with another one and a sentence on standard error.

pub mod bench;
pub mod cluster;
pub mod consume;
pub mod group;
pub mod log;
pub mod output;
pub mod produce;
pub mod remote;
pub mod serve;
pub mod topic;
pub mod up;
pub mod watch;

use std::process::ExitCode;

use clap::Parser;

/// A replicated, partitioned log that speaks the Kafka protocol.
#[derive(Debug, Parser)]
#[command(name = "kittiwake", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run a local cluster of real processes; Ctrl-C stops it
    Up(up::Args),
    /// Run one node
    Serve(serve::Args),
    /// Create, list, describe, alter and delete topics
    Topic(topic::Args),
    /// List, describe and delete consumer groups
    Group(group::Args),
    /// Show and change the state of the cluster: nodes, elections, reassignments
    Cluster(cluster::Args),
    /// Write lines of standard input to a topic
    Produce(produce::Args),
    /// Print the records of a topic
    Consume(consume::Args),
    /// Measure a broker, or this machine's ways to move bytes
    Bench(bench::Args),
    /// Read partition directories without a broker
    Log(log::Args),
}

impl Cli {
    /// Runs the command to its end.
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Up(args) => one_thread(up::run(args)),
            Command::Serve(args) => serve::run(&args),
            Command::Topic(args) => one_thread(topic::run(args)).map(|()| ExitCode::SUCCESS),
            Command::Group(args) => one_thread(group::run(args)).map(|()| ExitCode::SUCCESS),
            Command::Cluster(args) => one_thread(cluster::run(args)).map(|()| ExitCode::SUCCESS),
            Command::Produce(args) => all_threads(produce::run(args)).map(|()| ExitCode::SUCCESS),
            Command::Consume(args) => all_threads(consume::run(args)).map(|()| ExitCode::SUCCESS),
            Command::Bench(args) => all_threads(bench::run(args)).map(|()| ExitCode::SUCCESS),
            Command::Log(args) => log::run(args),
        };
        result.unwrap_or_else(|error| {
            eprintln!("kittiwake: {error:#}");
            ExitCode::FAILURE
        })
    }
}

/// Runs on this thread: what only waits needs no more, and children started from the main thread
/// are told of its death, not of a worker's.
fn one_thread<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

fn all_threads<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_may_follow_the_subcommand() {
        for line in [
            "kittiwake topic list --admin h:1 --output json",
            "kittiwake topic --output json create t --partitions 3 -c a=b -c c=d",
            "kittiwake group describe g --output json",
            "kittiwake cluster status --admin h:1 --watch",
            "kittiwake cluster status --watch 5 --output json",
            "kittiwake cluster nodes",
            "kittiwake cluster drain 1 --undo",
            "kittiwake cluster evacuate 1",
            "kittiwake cluster join 1",
            "kittiwake cluster remove 1",
            "kittiwake cluster elect --topic t --partition 0 --unclean",
            "kittiwake cluster elect",
            "kittiwake cluster reassign --file f",
            "kittiwake cluster reassign --topic t --partition 0 --replicas 1,2,3",
            "kittiwake cluster reassign --topic t --partition 0 --cancel",
            "kittiwake cluster reassign --cancel",
            "kittiwake cluster reassign --list",
            "kittiwake topic describe t --watch",
            "kittiwake up --nodes 1 --port 9092 --data d",
            "kittiwake serve --config f --check",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "kittiwake topic create t -c a",
            "kittiwake cluster reassign",
            "kittiwake cluster reassign --partition 0",
            "kittiwake cluster reassign --topic t --partition 0 --replicas 1 --cancel",
            "kittiwake cluster reassign --list --cancel",
            "kittiwake cluster elect --partition 0",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
