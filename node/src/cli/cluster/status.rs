//! `cluster status` and `cluster nodes`.

use kittiwake_proto::kittiwake::admin::v1 as admin;
use serde::Serialize;

use crate::cli::output::{Output, Table, ids, or_dash, print};
use crate::cli::remote::{Client, answer};

#[derive(Serialize)]
struct Status {
    cluster_id: String,
    node_id: i32,
    controller: Option<i32>,
    metadata_offset: u64,
    topics: u32,
    partitions: u32,
    under_replicated_partitions: u32,
    under_min_isr_partitions: u32,
    offline_partitions: u32,
    reassigning_partitions: u32,
    nodes: Vec<Node>,
    quorum: Quorum,
    troubled: Vec<Troubled>,
}

#[derive(Serialize)]
struct Node {
    id: i32,
    epoch: i64,
    state: &'static str,
    rack: Option<String>,
    leads: u32,
    replicas: u32,
    endpoints: Vec<String>,
}

#[derive(Default, Serialize)]
struct Quorum {
    term: u64,
    committed: Option<u64>,
    members: Vec<Member>,
}

#[derive(Serialize)]
struct Member {
    node: i32,
    role: &'static str,
    directory_id: String,
    address: String,
    log_end: Option<u64>,
    /// Entries behind the controller.
    lag: Option<u64>,
}

#[derive(Serialize)]
struct Troubled {
    topic: String,
    partition: i32,
    trouble: &'static str,
    leader: Option<i32>,
    replicas: Vec<i32>,
    isr: Vec<i32>,
    elr: Vec<i32>,
    damaged: Vec<i32>,
}

impl From<admin::Node> for Node {
    fn from(node: admin::Node) -> Self {
        let state = match (node.fenced, node.draining) {
            (true, _) => "fenced",
            (false, true) => "draining",
            (false, false) => "active",
        };
        let endpoint = |endpoint: admin::Endpoint| {
            format!(
                "{}://{}:{}",
                endpoint.listener, endpoint.host, endpoint.port
            )
        };
        Self {
            id: node.id,
            epoch: node.epoch,
            state,
            rack: node.rack,
            leads: node.leads,
            replicas: node.replicas,
            endpoints: node.endpoints.into_iter().map(endpoint).collect(),
        }
    }
}

impl From<admin::GetQuorumResponse> for Quorum {
    fn from(quorum: admin::GetQuorumResponse) -> Self {
        let leads = |member: &admin::QuorumMember| Some(member.node_id) == quorum.controller;
        let leader = quorum.members.iter().find(|member| leads(member));
        let end = leader.and_then(|leader| leader.log_end);
        let member = |member: &admin::QuorumMember| Member {
            node: member.node_id,
            role: match (leads(member), member.voter) {
                (true, _) => "controller",
                (false, true) => "voter",
                (false, false) => "learner",
            },
            directory_id: member.directory_id.clone(),
            address: member.address.clone(),
            log_end: member.log_end,
            lag: end
                .zip(member.log_end)
                .map(|(end, at)| end.saturating_sub(at)),
        };
        Self {
            term: quorum.term,
            committed: quorum.committed,
            members: quorum.members.iter().map(member).collect(),
        }
    }
}

impl From<admin::TroubledPartition> for Troubled {
    fn from(partition: admin::TroubledPartition) -> Self {
        let in_sync = u32::try_from(partition.isr.len()).unwrap_or(u32::MAX);
        let trouble = match partition.leader {
            None => "offline",
            Some(_) if in_sync < partition.min_insync_replicas => "under min ISR",
            Some(_) => "under-replicated",
        };
        Self {
            topic: partition.topic,
            partition: partition.partition,
            trouble,
            leader: partition.leader,
            replicas: partition.replicas,
            isr: partition.isr,
            elr: partition.elr,
            damaged: partition.damaged,
        }
    }
}

impl From<admin::GetClusterStatusResponse> for Status {
    fn from(status: admin::GetClusterStatusResponse) -> Self {
        Self {
            cluster_id: status.cluster_id,
            node_id: status.node_id,
            controller: status.controller,
            metadata_offset: status.metadata_offset,
            topics: status.topics,
            partitions: status.partitions,
            under_replicated_partitions: status.under_replicated_partitions,
            under_min_isr_partitions: status.under_min_isr_partitions,
            offline_partitions: status.offline_partitions,
            reassigning_partitions: status.reassigning_partitions,
            nodes: status.nodes.into_iter().map(Node::from).collect(),
            quorum: status.quorum.map(Quorum::from).unwrap_or_default(),
            troubled: status.troubled.into_iter().map(Troubled::from).collect(),
        }
    }
}

/// Shows everything.
pub(super) async fn show(client: &mut Client, output: Output) -> anyhow::Result<()> {
    print(output, &ask(client).await?, describe)
}

/// Lists the nodes.
pub(super) async fn nodes(client: &mut Client, output: Output) -> anyhow::Result<()> {
    print(output, &ask(client).await?.nodes, |nodes| node_table(nodes))
}

async fn ask(client: &mut Client) -> anyhow::Result<Status> {
    let request = admin::GetClusterStatusRequest {};
    Ok(answer(client.get_cluster_status(request).await)?.into())
}

fn describe(status: &Status) -> String {
    let mut summary = Table::new([
        "CLUSTER",
        "CONTROLLER",
        "METADATA",
        "TOPICS",
        "PARTITIONS",
        "OFFLINE",
        "UNDER MIN ISR",
        "UNDER-REPLICATED",
        "REASSIGNING",
    ]);
    summary.row([
        status.cluster_id.clone(),
        or_dash(status.controller),
        status.metadata_offset.to_string(),
        status.topics.to_string(),
        status.partitions.to_string(),
        status.offline_partitions.to_string(),
        status.under_min_isr_partitions.to_string(),
        status.under_replicated_partitions.to_string(),
        status.reassigning_partitions.to_string(),
    ]);
    let mut parts = vec![summary.render(), node_table(&status.nodes)];
    parts.push(quorum_table(&status.quorum));
    if !status.troubled.is_empty() {
        parts.push(trouble_table(&status.troubled));
    }
    parts.join("\n")
}

fn node_table(nodes: &[Node]) -> String {
    let mut table = Table::new([
        "NODE",
        "STATE",
        "EPOCH",
        "LEADS",
        "REPLICAS",
        "RACK",
        "ENDPOINTS",
    ]);
    for node in nodes {
        table.row([
            node.id.to_string(),
            node.state.to_owned(),
            node.epoch.to_string(),
            node.leads.to_string(),
            node.replicas.to_string(),
            or_dash(node.rack.clone()),
            node.endpoints.join(" "),
        ]);
    }
    table.render()
}

fn quorum_table(quorum: &Quorum) -> String {
    let mut table = Table::new(["QUORUM", "ROLE", "LOG END", "LAG", "ADDRESS", "DIRECTORY"]);
    for member in &quorum.members {
        table.row([
            member.node.to_string(),
            member.role.to_owned(),
            or_dash(member.log_end),
            or_dash(member.lag),
            member.address.clone(),
            member.directory_id.clone(),
        ]);
    }
    table.render()
}

fn trouble_table(troubled: &[Troubled]) -> String {
    let mut table = Table::new([
        "PARTITION",
        "TROUBLE",
        "LEADER",
        "REPLICAS",
        "ISR",
        "ELR",
        "DAMAGED",
    ]);
    for one in troubled {
        table.row([
            format!("{}-{}", one.topic, one.partition),
            one.trouble.to_owned(),
            or_dash(one.leader),
            ids(&one.replicas),
            ids(&one.isr),
            ids(&one.elr),
            ids(&one.damaged),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_lag_behind_the_controller_where_that_is_known() {
        let member = |node_id, voter, log_end| admin::QuorumMember {
            node_id,
            voter,
            log_end,
            ..Default::default()
        };
        let quorum = Quorum::from(admin::GetQuorumResponse {
            controller: Some(1),
            term: 3,
            committed: Some(9),
            members: vec![
                member(1, true, Some(10)),
                member(2, true, Some(7)),
                member(3, false, None),
            ],
        });
        let told: Vec<_> = quorum
            .members
            .iter()
            .map(|member| (member.node, member.role, member.lag))
            .collect();
        assert_eq!(
            told,
            [
                (1, "controller", Some(0)),
                (2, "voter", Some(3)),
                (3, "learner", None)
            ]
        );
    }
}
