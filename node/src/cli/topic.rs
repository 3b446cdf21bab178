//! `kittiwake topic …`

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::bail;
use kittiwake_proto::kittiwake::admin::v1 as admin;
use serde::Serialize;

use super::output::{Output, Table, ids, or_dash, print};
use super::remote::{Client, Remote, answer, nodes};
use super::watch::Watch;

/// Creates, lists, describes, alters and deletes topics.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Create a topic
    Create {
        /// Its name
        name: String,
        /// Partitions [default: the cluster's num.partitions]
        #[arg(long, short)]
        partitions: Option<i32>,
        /// Replicas of each partition [default: the cluster's default.replication.factor]
        #[arg(long, short)]
        replication_factor: Option<i32>,
        /// Topic configuration, as often as needed
        #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
        config: Vec<(String, String)>,
    },
    /// List topics
    List {
        /// Also those of the cluster itself
        #[arg(long)]
        internal: bool,
    },
    /// Show a topic's partitions and configuration
    Describe {
        /// Its name
        name: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Change a topic's configuration or add partitions
    Alter {
        /// Its name
        name: String,
        /// Configuration to set, as often as needed
        #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
        config: Vec<(String, String)>,
        /// Configuration to return to its default, as often as needed
        #[arg(long, value_name = "KEY")]
        remove_config: Vec<String>,
        /// How many partitions it shall have
        #[arg(long, short)]
        partitions: Option<i32>,
    },
    /// Delete a topic and all its records
    Delete {
        /// Its name
        name: String,
    },
}

/// Reads `KEY=VALUE`.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it must be KEY=VALUE".into()),
    }
}

#[derive(Serialize)]
struct Topic {
    name: String,
    id: String,
    partitions: u32,
    replication_factor: u32,
    internal: bool,
}

impl From<admin::TopicSummary> for Topic {
    fn from(topic: admin::TopicSummary) -> Self {
        let admin::TopicSummary {
            name,
            id,
            partitions,
            replication_factor,
            internal,
        } = topic;
        Self {
            name,
            id,
            partitions,
            replication_factor,
            internal,
        }
    }
}

#[derive(Serialize)]
struct Description {
    topic: Topic,
    configs: BTreeMap<String, String>,
    partitions: Vec<Partition>,
}

#[derive(Serialize)]
struct Partition {
    index: i32,
    leader: Option<i32>,
    leader_epoch: i32,
    replicas: Vec<i32>,
    isr: Vec<i32>,
    elr: Vec<i32>,
    damaged: Vec<i32>,
    last_known_leader: Option<i32>,
    partition_epoch: i32,
    adding: Vec<i32>,
    removing: Vec<i32>,
    log_start_offset: Option<i64>,
    high_watermark: Option<i64>,
    size_bytes: Option<u64>,
    followers: Vec<Follower>,
}

#[derive(Serialize)]
struct Follower {
    replica: i32,
    /// Records it lacks.
    lag: Option<i64>,
}

impl From<admin::Partition> for Partition {
    fn from(partition: admin::Partition) -> Self {
        Self {
            index: partition.index,
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            replicas: partition.replicas,
            isr: partition.isr,
            elr: partition.elr,
            damaged: partition.damaged,
            last_known_leader: partition.last_known_leader,
            partition_epoch: partition.partition_epoch,
            adding: partition.adding,
            removing: partition.removing,
            log_start_offset: partition.log_start_offset,
            high_watermark: partition.high_watermark,
            size_bytes: partition.size_bytes,
            followers: partition
                .followers
                .into_iter()
                .map(|follower| Follower {
                    replica: follower.replica,
                    lag: follower.lag,
                })
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct Done {
    topic: String,
    done: &'static str,
}

/// Runs the command.
///
/// # Errors
/// One sentence: nobody answers, or the cluster refuses.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { remote, command } = args;
    let mut client = remote.connect().await?;
    let done = |topic: &str, done| {
        let value = Done {
            topic: topic.to_owned(),
            done,
        };
        print(remote.output, &value, |value| {
            format!("{}: {}\n", value.topic, value.done)
        })
    };
    match command {
        Command::Create {
            name,
            partitions,
            replication_factor,
            config,
        } => {
            let configs = config.into_iter().collect();
            let request = admin::CreateTopicRequest {
                name,
                partitions,
                replication_factor,
                configs,
            };
            let response = answer(client.create_topic(request).await)?;
            print(remote.output, &listed(response.topic), |topics| {
                table(topics)
            })
        }
        Command::List { internal } => {
            let request = admin::ListTopicsRequest {
                include_internal: internal,
            };
            let response = answer(client.list_topics(request).await)?;
            print(remote.output, &listed(response.topics), |topics| {
                table(topics)
            })
        }
        Command::Describe { name, watch } => {
            let show = async || show(&remote, &mut client, remote.output, &name).await;
            watch.repeat(show).await
        }
        Command::Alter {
            name,
            config,
            remove_config,
            partitions,
        } => {
            if config.is_empty() && remove_config.is_empty() && partitions.is_none() {
                bail!("nothing to alter: give --config, --remove-config or --partitions");
            }
            if !config.is_empty() || !remove_config.is_empty() {
                let set = config.into_iter().collect();
                let request = admin::AlterTopicConfigRequest {
                    name: name.clone(),
                    set,
                    remove: remove_config,
                };
                answer(client.alter_topic_config(request).await)?;
            }
            if let Some(total) = partitions {
                let request = admin::AddPartitionsRequest {
                    name: name.clone(),
                    total,
                };
                answer(client.add_partitions(request).await)?;
            }
            done(&name, "altered")
        }
        Command::Delete { name } => {
            let request = admin::DeleteTopicRequest { name: name.clone() };
            answer(client.delete_topic(request).await)?;
            done(&name, "deleted")
        }
    }
}

async fn show(
    remote: &Remote,
    client: &mut Client,
    output: Output,
    name: &str,
) -> anyhow::Result<()> {
    let request = admin::DescribeTopicRequest { name: name.into() };
    let mut response = answer(client.describe_topic(request).await)?;
    let Some(topic) = response.topic else {
        bail!("the node's answer names no topic")
    };
    ask_leaders(remote, client, name, &mut response.partitions).await;
    let partitions = response.partitions.into_iter();
    let description = Description {
        topic: topic.into(),
        configs: response.configs,
        partitions: partitions.map(Partition::from).collect(),
    };
    print(output, &description, describe)
}

/// Offsets and lags are what the leader of a partition knows: asks those that have not been asked. What one that cannot be
/// reached would say is left out.
pub(super) async fn ask_leaders(
    remote: &Remote,
    client: &mut Client,
    name: &str,
    partitions: &mut [admin::Partition],
) {
    let leaders: BTreeSet<i32> = partitions
        .iter()
        .filter(|partition| partition.high_watermark.is_none())
        .filter_map(|partition| partition.leader)
        .collect();
    if leaders.is_empty() {
        return;
    }
    let Ok(nodes) = nodes(client).await else {
        return;
    };
    for (_, address) in nodes.iter().filter(|(id, _)| leaders.contains(id)) {
        let Ok(mut leader) = remote.connect_to(address).await else {
            continue;
        };
        let request = admin::DescribeTopicRequest { name: name.into() };
        let Ok(told) = answer(leader.describe_topic(request).await) else {
            continue;
        };
        for (partition, told) in partitions.iter_mut().zip(told.partitions) {
            if told.high_watermark.is_some() && partition.high_watermark.is_none() {
                *partition = told;
            }
        }
    }
}

fn listed(topics: impl IntoIterator<Item = admin::TopicSummary>) -> Vec<Topic> {
    topics.into_iter().map(Topic::from).collect()
}

fn table(topics: &[Topic]) -> String {
    let mut table = Table::new(["TOPIC", "PARTITIONS", "REPLICAS", "ID"]);
    for topic in topics {
        table.row([
            topic.name.clone(),
            topic.partitions.to_string(),
            topic.replication_factor.to_string(),
            topic.id.clone(),
        ]);
    }
    table.render()
}

fn describe(description: &Description) -> String {
    let mut text = table(std::slice::from_ref(&description.topic));
    for (key, value) in &description.configs {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {key} = {value}");
    }
    let mut partitions = Table::new([
        "PARTITION",
        "LEADER",
        "EPOCH",
        "REPLICAS",
        "ISR",
        "ELR",
        "DAMAGED",
        "LAG",
        "MOVING",
        "VERSION",
        "LOG START",
        "HIGH WATERMARK",
        "BYTES",
    ]);
    for partition in &description.partitions {
        partitions.row([
            partition.index.to_string(),
            or_dash(partition.leader),
            partition.leader_epoch.to_string(),
            ids(&partition.replicas),
            ids(&partition.isr),
            ids(&partition.elr),
            ids(&partition.damaged),
            lag(partition),
            moving(partition),
            partition.partition_epoch.to_string(),
            or_dash(partition.log_start_offset),
            or_dash(partition.high_watermark),
            or_dash(partition.size_bytes),
        ]);
    }
    text.push('\n');
    text + &partitions.render()
}

/// Records that followers lack, as in `2:0 3:417`.
fn lag(partition: &Partition) -> String {
    let followers: Vec<String> = partition
        .followers
        .iter()
        .map(|follower| format!("{}:{}", follower.replica, or_dash(follower.lag)))
        .collect();
    or_dash((!followers.is_empty()).then(|| followers.join(" ")))
}

/// Who joins and who leaves, as in `+4 -1`.
fn moving(partition: &Partition) -> String {
    let joining = partition.adding.iter().map(|id| format!("+{id}"));
    let leaving = partition.removing.iter().map(|id| format!("-{id}"));
    let moving: Vec<String> = joining.chain(leaving).collect();
    or_dash((!moving.is_empty()).then(|| moving.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_on_the_command_line_is_key_and_value() {
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(key_value("a="), Ok(("a".into(), String::new())));
        assert!(key_value("a").is_err());
        assert!(key_value("=b").is_err());
    }
}
