//! `kittiwake cluster …`: nodes, elections, reassignments.

mod reassign;
mod status;

use anyhow::{bail, ensure};
use kittiwake_proto::kittiwake::admin::v1 as admin;
use serde::Serialize;

use super::output::{Output, print};
use super::remote::{Client, Remote, answer};
use super::watch::Watch;

/// Shows and changes the state of the cluster.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Show the nodes, the metadata quorum and partitions in trouble
    Status {
        #[command(flatten)]
        watch: Watch,
    },
    /// List the nodes
    Nodes {
        #[command(flatten)]
        watch: Watch,
    },
    /// Take a node's leaderships away, before it is stopped for long
    Drain {
        /// Its number
        node: i32,
        /// End the drain
        #[arg(long)]
        undo: bool,
    },
    /// Move all replicas of a node to other nodes
    Evacuate {
        /// Its number
        node: i32,
    },
    /// Let a node that only follows the metadata quorum vote in it
    Join {
        /// Its number
        node: i32,
    },
    /// Forget a node that has stopped and has no replicas
    Remove {
        /// Its number
        node: i32,
    },
    /// Give partitions back to their preferred leaders, or a leader to those that have none
    Elect {
        /// Partitions of this topic [default: all topics]
        #[arg(long, short)]
        topic: Option<String>,
        /// This partition of the topic
        #[arg(long, short, requires = "topic")]
        partition: Option<i32>,
        /// Where nobody leads, accept any live replica: acknowledged records may be LOST
        #[arg(long)]
        unclean: bool,
    },
    /// Move partitions to other nodes, or show those that move
    Reassign(reassign::Args),
}

/// Runs the command.
///
/// # Errors
/// One sentence: nobody answers, or the cluster refuses.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { remote, command } = args;
    let mut client = remote.connect().await?;
    let output = remote.output;
    match command {
        Command::Status { watch } => {
            watch
                .repeat(async || status::show(&mut client, output).await)
                .await
        }
        Command::Nodes { watch } => {
            watch
                .repeat(async || status::nodes(&mut client, output).await)
                .await
        }
        Command::Drain { node, undo } => {
            let request = admin::DrainNodeRequest {
                node_id: node,
                undo,
            };
            let leads = answer(client.drain_node(request).await)?.leads;
            let done = match (undo, leads) {
                (true, _) => {
                    "no longer draining; its leaderships come back by themselves".to_owned()
                }
                (false, 0) => "draining; it leads nothing".to_owned(),
                (false, leads) => format!(
                    "draining; it still leads {leads} partitions, until another replica of them is in sync"
                ),
            };
            report(output, node, done)
        }
        Command::Evacuate { node } => {
            let request = admin::EvacuateNodeRequest { node_id: node };
            let moving = answer(client.evacuate_node(request).await)?.moving;
            let done = format!("{moving} partitions move away; see 'cluster reassign --list'");
            report(output, node, done)
        }
        Command::Join { node } => {
            let request = admin::AddVoterRequest { node_id: node };
            answer(client.add_voter(request).await)?;
            report(output, node, "votes in the metadata quorum".to_owned())
        }
        Command::Remove { node } => {
            answer(
                client
                    .remove_node(admin::RemoveNodeRequest { node_id: node })
                    .await,
            )?;
            report(output, node, "removed".to_owned())
        }
        Command::Elect {
            topic,
            partition,
            unclean,
        } => elect(&mut client, output, topic, partition, unclean).await,
        Command::Reassign(args) => reassign::run(&mut client, output, args).await,
    }
}

#[derive(Serialize)]
struct Done {
    node: i32,
    done: String,
}

fn report(output: Output, node: i32, done: String) -> anyhow::Result<()> {
    print(output, &Done { node, done }, |value| {
        format!("node {}: {}\n", value.node, value.done)
    })
}

async fn elect(
    client: &mut Client,
    output: Output,
    topic: Option<String>,
    partition: Option<i32>,
    unclean: bool,
) -> anyhow::Result<()> {
    let all = topic.is_none();
    let selector = topic.map(|topic| admin::PartitionSelector { topic, partition });
    let request = admin::ElectLeadersRequest {
        partitions: selector.into_iter().collect(),
        unclean,
    };
    let mut results = answer(client.elect_leaders(request).await)?.results;
    if all {
        // Nobody asked for those in particular that cannot have their preferred leader yet.
        let refused = results.iter().filter(|result| result.error.is_some());
        let refused = refused.count();
        if refused > 0 && refused < results.len() {
            eprintln!("{refused} partitions could not be given a leader and are left as they are");
            results.retain(|result| result.error.is_none());
        }
    }
    outcome(output, &results, "elected", "nothing to elect")
}

#[derive(Serialize)]
struct Outcome {
    topic: String,
    partition: i32,
    done: bool,
    error: Option<String>,
}

/// Prints what became of each partition, and fails if any was refused.
fn outcome(
    output: Output,
    results: &[admin::PartitionResult],
    done: &str,
    nothing: &str,
) -> anyhow::Result<()> {
    let outcomes: Vec<Outcome> = results
        .iter()
        .map(|result| Outcome {
            topic: result.topic.clone(),
            partition: result.partition,
            done: result.error.is_none(),
            error: result.error.clone(),
        })
        .collect();
    print(output, &outcomes, |outcomes| {
        let mut text = String::new();
        for one in outcomes.iter().filter(|one| one.done) {
            text.push_str(&format!("{}-{}: {done}\n", one.topic, one.partition));
        }
        if outcomes.is_empty() {
            text = format!("{nothing}\n");
        }
        text
    })?;
    let refused: Vec<&Outcome> = outcomes.iter().filter(|one| !one.done).collect();
    let reason = |one: &Outcome| {
        let error = one.error.as_deref().unwrap_or_default();
        format!("{}-{}: {error}", one.topic, one.partition)
    };
    match refused.as_slice() {
        [] => Ok(()),
        [one] => bail!("{}", reason(one)),
        [first, rest @ ..] => {
            ensure!(
                output == Output::Json,
                "{} (and {} more)",
                reason(first),
                rest.len()
            );
            bail!("{} partitions were refused", refused.len())
        }
    }
}
