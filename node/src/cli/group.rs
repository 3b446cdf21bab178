//! `kittiwake group …`
//!
//! A group is known to the node that coordinates it. Whichever node is asked, it names the others.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use kittiwake_proto::kittiwake::admin::v1 as admin;
use serde::Serialize;

use super::output::{Table, or_dash, print};
use super::remote::{Client, Remote, answer, nodes};
use super::topic::ask_leaders;

/// Lists, describes and deletes consumer groups.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// List the groups
    List,
    /// Show a group's members and how far behind they are
    Describe {
        /// Its id
        group: String,
    },
    /// Delete a group without members, and its offsets
    Delete {
        /// Its id
        group: String,
    },
}

#[derive(Serialize)]
struct Group {
    group: String,
    state: String,
    protocol_type: String,
}

impl From<admin::GroupSummary> for Group {
    fn from(group: admin::GroupSummary) -> Self {
        let admin::GroupSummary {
            group_id,
            state,
            protocol_type,
        } = group;
        Self {
            group: group_id,
            state,
            protocol_type,
        }
    }
}

#[derive(Serialize)]
struct Description {
    group: Group,
    protocol: String,
    members: Vec<Member>,
    offsets: Vec<Offset>,
}

#[derive(Serialize)]
struct Member {
    member_id: String,
    instance_id: Option<String>,
    client_id: String,
    client_host: String,
}

#[derive(Serialize)]
struct Offset {
    topic: String,
    partition: i32,
    committed_offset: i64,
    high_watermark: Option<i64>,
    lag: Option<i64>,
}

impl From<admin::GroupOffset> for Offset {
    fn from(offset: admin::GroupOffset) -> Self {
        let admin::GroupOffset {
            topic,
            partition,
            committed_offset,
            high_watermark,
        } = offset;
        let lag = high_watermark.map(|end| end.saturating_sub(committed_offset).max(0));
        Self {
            topic,
            partition,
            committed_offset,
            high_watermark,
            lag,
        }
    }
}

#[derive(Serialize)]
struct Deleted {
    group: String,
    done: &'static str,
}

/// Runs the command.
///
/// # Errors
/// One sentence: nobody answers, or the cluster refuses.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { remote, command } = args;
    let mut client = remote.connect().await?;
    match command {
        Command::List => {
            let groups = list(&remote, &mut client).await?;
            print(remote.output, &groups, |groups| table(groups))
        }
        Command::Describe { group } => {
            let mut coordinator = coordinator(&remote, &mut client, &group).await?;
            let request = admin::DescribeGroupRequest { group_id: group };
            let mut response = answer(coordinator.describe_group(request).await)?;
            ask_for_ends(&remote, &mut client, &mut response.offsets).await;
            let Some(group) = response.group else {
                bail!("the node's answer names no group")
            };
            let member = |member: admin::GroupMember| Member {
                member_id: member.member_id,
                instance_id: member.instance_id,
                client_id: member.client_id,
                client_host: member.client_host,
            };
            let description = Description {
                group: group.into(),
                protocol: response.protocol,
                members: response.members.into_iter().map(member).collect(),
                offsets: response.offsets.into_iter().map(Offset::from).collect(),
            };
            print(remote.output, &description, describe)
        }
        Command::Delete { group } => {
            let request = admin::DeleteGroupRequest {
                group_id: group.clone(),
            };
            let mut coordinator = coordinator(&remote, &mut client, &group).await?;
            answer(coordinator.delete_group(request).await)?;
            let value = Deleted {
                group,
                done: "deleted",
            };
            print(remote.output, &value, |value| {
                format!("{}: {}\n", value.group, value.done)
            })
        }
    }
}

/// The groups of every node.
async fn list(remote: &Remote, client: &mut Client) -> anyhow::Result<Vec<Group>> {
    // By id: one whose coordinator changes meanwhile may be named twice.
    let mut groups = BTreeMap::new();
    for (_, address) in nodes(client).await? {
        let mut node = remote.connect_to(&address).await?;
        let response = answer(node.list_groups(admin::ListGroupsRequest {}).await)?;
        let found = response.groups.into_iter().map(Group::from);
        groups.extend(found.map(|group| (group.group.clone(), group)));
    }
    Ok(groups.into_values().collect())
}

async fn coordinator(remote: &Remote, client: &mut Client, group: &str) -> anyhow::Result<Client> {
    let request = admin::FindGroupCoordinatorRequest {
        group_id: group.into(),
    };
    let found = answer(client.find_group_coordinator(request).await)?;
    remote.connect_to(&found.address).await
}

/// Asks for the ends of partitions that the coordinator has no replica of. What cannot be asked is left out.
async fn ask_for_ends(remote: &Remote, client: &mut Client, offsets: &mut [admin::GroupOffset]) {
    let unknown = |offset: &&admin::GroupOffset| offset.high_watermark.is_none();
    let topics: BTreeSet<String> = offsets
        .iter()
        .filter(unknown)
        .map(|offset| offset.topic.clone())
        .collect();
    for topic in topics {
        let request = admin::DescribeTopicRequest {
            name: topic.clone(),
        };
        let Ok(mut told) = answer(client.describe_topic(request).await) else {
            continue; // deleted meanwhile
        };
        ask_leaders(remote, client, &topic, &mut told.partitions).await;
        for offset in offsets.iter_mut().filter(|offset| offset.topic == topic) {
            let mut partitions = told.partitions.iter();
            let partition = partitions.find(|partition| partition.index == offset.partition);
            let end = partition.and_then(|partition| partition.high_watermark);
            offset.high_watermark = offset.high_watermark.or(end);
        }
    }
}

fn table(groups: &[Group]) -> String {
    let mut table = Table::new(["GROUP", "STATE", "TYPE"]);
    for group in groups {
        table.row([
            group.group.clone(),
            group.state.clone(),
            group.protocol_type.clone(),
        ]);
    }
    table.render()
}

fn describe(description: &Description) -> String {
    let mut text = table(std::slice::from_ref(&description.group));
    if !description.members.is_empty() {
        let mut members = Table::new(["MEMBER", "INSTANCE", "CLIENT", "HOST"]);
        for member in &description.members {
            members.row([
                member.member_id.clone(),
                or_dash(member.instance_id.clone()),
                member.client_id.clone(),
                member.client_host.clone(),
            ]);
        }
        text.push('\n');
        text += &members.render();
    }
    if !description.offsets.is_empty() {
        let mut offsets = Table::new(["TOPIC", "PARTITION", "COMMITTED", "HIGH WATERMARK", "LAG"]);
        for offset in &description.offsets {
            offsets.row([
                offset.topic.clone(),
                offset.partition.to_string(),
                offset.committed_offset.to_string(),
                or_dash(offset.high_watermark),
                or_dash(offset.lag),
            ]);
        }
        text.push('\n');
        text += &offsets.render();
    }
    text
}
