//! `kittiwake cluster …`

use kittiwake_proto::kittiwake::admin::v1 as admin;
use serde::Serialize;

use super::output::{Table, or_dash, print};
use super::remote::{Remote, answer};

/// Shows the state of the cluster.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Show the nodes, the controller and partitions in trouble
    Status,
}

#[derive(Serialize)]
struct Status {
    cluster_id: String,
    node_id: i32,
    controller: Option<i32>,
    metadata_offset: u64,
    topics: u32,
    partitions: u32,
    under_replicated_partitions: u32,
    offline_partitions: u32,
    nodes: Vec<Node>,
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
            offline_partitions: status.offline_partitions,
            nodes: status.nodes.into_iter().map(Node::from).collect(),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// One sentence: nobody answers, or the cluster refuses.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        remote,
        command: Command::Status,
    } = args;
    let mut client = remote.connect().await?;
    let status = answer(
        client
            .get_cluster_status(admin::GetClusterStatusRequest {})
            .await,
    )?;
    print(remote.output, &Status::from(status), describe)
}

fn describe(status: &Status) -> String {
    let mut summary = Table::new([
        "CLUSTER",
        "CONTROLLER",
        "METADATA",
        "TOPICS",
        "PARTITIONS",
        "UNDER-REPLICATED",
        "OFFLINE",
    ]);
    summary.row([
        status.cluster_id.clone(),
        or_dash(status.controller),
        status.metadata_offset.to_string(),
        status.topics.to_string(),
        status.partitions.to_string(),
        status.under_replicated_partitions.to_string(),
        status.offline_partitions.to_string(),
    ]);
    let mut nodes = Table::new([
        "NODE",
        "STATE",
        "EPOCH",
        "LEADS",
        "REPLICAS",
        "RACK",
        "ENDPOINTS",
    ]);
    for node in &status.nodes {
        nodes.row([
            node.id.to_string(),
            node.state.to_owned(),
            node.epoch.to_string(),
            node.leads.to_string(),
            node.replicas.to_string(),
            or_dash(node.rack.clone()),
            node.endpoints.join(" "),
        ]);
    }
    summary.render() + "\n" + &nodes.render()
}
