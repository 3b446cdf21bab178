//! `kittiwake group …`

use anyhow::bail;
use kittiwake_proto::kittiwake::admin::v1 as admin;
use serde::Serialize;

use super::output::{Table, or_dash, print};
use super::remote::{Remote, answer};

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
            let response = answer(client.list_groups(admin::ListGroupsRequest {}).await)?;
            let groups: Vec<Group> = response.groups.into_iter().map(Group::from).collect();
            print(remote.output, &groups, |groups| table(groups))
        }
        Command::Describe { group } => {
            let request = admin::DescribeGroupRequest { group_id: group };
            let response = answer(client.describe_group(request).await)?;
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
            answer(client.delete_group(request).await)?;
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
