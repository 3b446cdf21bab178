//! Nodes of one cluster in one process, over real gRPC connections on loopback. Each has a runtime
//! of its own, so that it can die as a process does: in the middle of whatever it was doing, without
//! a goodbye.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use kittiwake_raft::{
    BrokerId, Command, ConfigChange, ConfigResource, MetadataQuorum, OpenError, Outcome,
    ProposeError, QuorumOptions,
};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::TcpListenerStream;

/// Far more than anything here takes; a test that gets there has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(5);

pub struct Node {
    pub quorum: MetadataQuorum,
    runtime: Option<Runtime>,
}

impl Node {
    /// Opens the quorum and serves it; waits until a dead predecessor has let go of the directory.
    pub async fn start(options: QuorumOptions, listener: TcpListener) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let opened = runtime.spawn(async move {
            let deadline = Instant::now() + PATIENCE;
            let quorum = loop {
                match MetadataQuorum::open(options.clone()).await {
                    Err(OpenError::InUse { .. }) if Instant::now() < deadline => sleep(LOOK).await,
                    opened => break opened.unwrap(),
                }
            };
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let server = tonic::transport::Server::builder()
                .add_service(quorum.grpc_service())
                .serve_with_incoming(TcpListenerStream::new(listener));
            tokio::spawn(server);
            quorum
        });
        Self {
            quorum: opened.await.unwrap(),
            runtime: Some(runtime),
        }
    }

    pub fn broker(&self) -> BrokerId {
        self.quorum.node_id()
    }

    /// As `kill -9` does.
    pub fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    pub async fn wait_for_offset(&self, offset: u64) {
        let mut images = self.quorum.watch();
        let reached = images.wait_for(|image| image.offset >= offset);
        timeout(PATIENCE, reached).await.unwrap().unwrap();
    }

    pub fn setting(&self, key: &str) -> Option<String> {
        let image = self.quorum.image();
        image.broker_configs(None)?.get(key).cloned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Addresses and directories of a cluster's brokers, numbered from 1.
pub struct Cluster {
    pub voters: Vec<(BrokerId, String)>,
    places: BTreeMap<i32, Place>,
}

struct Place {
    directory: TempDir,
    address: String,
    listener: Option<TcpListener>,
}

impl Place {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            directory: TempDir::new().unwrap(),
            address: listener.local_addr().unwrap().to_string(),
            listener: Some(listener),
        }
    }
}

impl Cluster {
    /// A cluster of `brokers`, of which `voters` are configured as such.
    pub fn new(brokers: i32, voters: i32) -> Self {
        let places: BTreeMap<i32, Place> = (1..=brokers).map(|id| (id, Place::new())).collect();
        let mut cluster = Self {
            voters: Vec::new(),
            places,
        };
        cluster.configure(voters);
        cluster
    }

    /// What later starts have as `cluster.voters`.
    pub fn configure(&mut self, voters: i32) {
        self.voters = (1..=voters)
            .map(|id| (BrokerId(id), self.places[&id].address.clone()))
            .collect();
    }

    pub fn options(&self, broker: i32) -> QuorumOptions {
        let place = &self.places[&broker];
        let directory = place.directory.path();
        let voters = self.voters.clone();
        let mut options = QuorumOptions::new(BrokerId(broker), "test", directory, voters);
        options.advertised_address.clone_from(&place.address);
        options.snapshot_every = 50;
        options
    }

    pub async fn start(&mut self, broker: i32) -> Node {
        let options = self.options(broker);
        self.start_with(broker, options).await
    }

    pub async fn start_with(&mut self, broker: i32, options: QuorumOptions) -> Node {
        let place = self.places.get_mut(&broker).unwrap();
        let listener = match place.listener.take() {
            Some(listener) => listener,
            // A dead node's sockets are closed when its runtime is gone.
            None => {
                let deadline = Instant::now() + PATIENCE;
                loop {
                    match TcpListener::bind(&place.address) {
                        Ok(listener) => break listener,
                        Err(_) if Instant::now() < deadline => sleep(LOOK).await,
                        Err(error) => panic!("{}: {error}", place.address),
                    }
                }
            }
        };
        Node::start(options, listener).await
    }

    pub async fn start_all(&mut self) -> Vec<Node> {
        let mut nodes = Vec::new();
        for broker in self.places.keys().copied().collect::<Vec<_>>() {
            nodes.push(self.start(broker).await);
        }
        nodes
    }

    /// The broker's disk is lost.
    pub fn empty(&mut self, broker: i32) {
        self.places.get_mut(&broker).unwrap().directory = TempDir::new().unwrap();
    }

    /// The broker is at another address from its next start on.
    pub fn move_away(&mut self, broker: i32) {
        let place = self.places.get_mut(&broker).unwrap();
        let new = Place::new();
        place.address = new.address;
        place.listener = new.listener;
        let address = place.address.clone();
        for (id, known) in &mut self.voters {
            if id.0 == broker {
                known.clone_from(&address);
            }
        }
    }
}

pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(LOOK).await;
    }
}

/// Whom all of these nodes know as the controller, one of them.
pub async fn controller(nodes: &[&Node]) -> BrokerId {
    let mut found = None;
    eventually("one controller known to all", || {
        found = nodes[0].quorum.controller();
        let known = nodes.iter().all(|node| node.quorum.controller() == found);
        known && nodes.iter().any(|node| Some(node.broker()) == found)
    })
    .await;
    found.unwrap()
}

/// Brokers that vote, and brokers that only follow, as this node sees it.
pub fn members(node: &Node) -> (Vec<i32>, Vec<i32>) {
    let status = node.quorum.status();
    let sorted = |members: &[kittiwake_raft::Member]| {
        let mut brokers: Vec<i32> = members.iter().map(|member| member.broker.0).collect();
        brokers.sort_unstable();
        brokers
    };
    (sorted(&status.voters), sorted(&status.learners))
}

pub async fn wait_for_members(node: &Node, voters: &[i32], learners: &[i32]) {
    let expected = (voters.to_vec(), learners.to_vec());
    eventually(
        &format!("voters {voters:?} and learners {learners:?}"),
        || members(node) == expected && !node.quorum.status().changing,
    )
    .await;
}

pub fn set(key: &str, value: impl ToString) -> Command {
    Command::AlterConfigs(vec![ConfigChange {
        resource: ConfigResource::Broker(None),
        set: vec![(key.into(), value.to_string())],
        remove: Vec::new(),
        expected: Vec::new(),
    }])
}

/// Proposes what may be proposed twice until it is answered.
pub async fn insist(node: &Node, command: Command) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match node.quorum.propose(command.clone()).await {
            Ok(outcome) => return outcome,
            Err(ProposeError::NotController { .. } | ProposeError::Unavailable) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "no proposal was accepted");
    }
}
