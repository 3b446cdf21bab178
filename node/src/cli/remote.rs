//! The gRPC administration service, from the command line.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kittiwake_proto::kittiwake::admin::v1 as admin;
use kittiwake_proto::kittiwake::admin::v1::admin_client::AdminClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::output::Output;
use crate::config::address::{GRPC_LISTENER, HostPort};

/// A connection to a node's administration service.
pub type Client = AdminClient<Channel>;

/// What every command that administers takes.
#[derive(clap::Args, Debug)]
pub struct Remote {
    /// gRPC listener of any node
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:9192",
        env = "KITTIWAKE_ADMIN"
    )]
    admin: String,
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t)]
    pub output: Output,
    /// How long the node may take to answer, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

impl Remote {
    /// Connects to the node.
    ///
    /// # Errors
    /// The address is none, or nobody answers there.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        self.connect_to(&self.admin).await
    }

    /// Connects to another node, at `address`.
    ///
    /// # Errors
    /// The address is none, or nobody answers there.
    pub async fn connect_to(&self, address: &str) -> anyhow::Result<Client> {
        let timeout = Duration::from_secs(self.timeout);
        let endpoint = Endpoint::try_from(format!("http://{address}"))
            .with_context(|| format!("{address} is not HOST:PORT"))?;
        let connected = endpoint
            .connect_timeout(timeout)
            .timeout(timeout)
            .connect()
            .await;
        let channel = connected.map_err(|error| {
            anyhow!(
                "no node answers at {address} (--admin HOST:PORT): {}",
                root(&error)
            )
        })?;
        Ok(AdminClient::new(channel))
    }
}

/// The nodes that are up, by id, with their gRPC listeners as HOST:PORT.
///
/// # Errors
/// The node does not say.
pub async fn nodes(client: &mut Client) -> anyhow::Result<Vec<(i32, String)>> {
    let request = admin::GetClusterStatusRequest {};
    let cluster = answer(client.get_cluster_status(request).await)?;
    let up = cluster.nodes.into_iter().filter(|node| !node.fenced);
    let address = |node: admin::Node| {
        let mut listeners = node.endpoints.iter();
        let grpc = listeners.find(|endpoint| endpoint.listener == GRPC_LISTENER)?;
        let (host, port) = (grpc.host.clone(), u16::try_from(grpc.port).ok()?);
        Some((node.id, HostPort { host, port }.to_string()))
    };
    Ok(up.filter_map(address).collect())
}

/// What a status says to the person who asked.
///
/// # Errors
/// If the call failed, its sentence.
pub fn answer<T>(result: Result<Response<T>, Status>) -> anyhow::Result<T> {
    match result {
        Ok(response) => Ok(response.into_inner()),
        Err(status) if status.message().is_empty() => Err(anyhow!("{}", status.code())),
        Err(status) => Err(anyhow!("{}", status.message())),
    }
}

/// The innermost cause: the layers above it say only that a transport failed.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
