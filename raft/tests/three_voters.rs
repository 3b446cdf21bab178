//! A quorum of three over real gRPC connections, in one process.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use kittiwake_raft::{
    BrokerId, Command, ConfigChange, ConfigResource, DirectoryId, Endpoint, IncarnationId,
    LastStop, MetadataQuorum, NewTopic, ProposeError, QuorumOptions, RegisterBroker, TopicId,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::TcpListenerStream;

/// Far more than anything here takes; a test that gets there has failed.
const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    quorum: MetadataQuorum,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Node {
    async fn start(
        broker: i32,
        directory: &Path,
        listener: TcpListener,
        voters: &[(BrokerId, String)],
    ) -> Self {
        let mut options = QuorumOptions::new(BrokerId(broker), "test", directory, voters.to_vec());
        options.snapshot_every = 20;
        let quorum = MetadataQuorum::open(options).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let service = quorum.grpc_service();
        let server = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
                    let _ = stopped.await;
                })
                .await
                .unwrap();
        });
        Self {
            quorum,
            stop,
            server,
        }
    }

    /// As a process dies: its peers hear nothing more, not even a goodbye.
    async fn stop(self) {
        self.server.abort();
        drop(self.stop);
        let _ = self.server.await;
        self.quorum.shutdown().await;
    }

    async fn wait_for_offset(&self, offset: u64) {
        let mut images = self.quorum.watch();
        let reached = images.wait_for(|image| image.offset >= offset);
        timeout(PATIENCE, reached).await.unwrap().unwrap();
    }
}

async fn leader(nodes: &[&Node]) -> BrokerId {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let known = nodes[0].quorum.wait_for_leader(deadline).await.unwrap();
        if nodes
            .iter()
            .all(|node| node.quorum.controller() == Some(known))
            && nodes.iter().any(|node| node.quorum.node_id() == known)
        {
            return known;
        }
        assert!(Instant::now() < deadline, "no leader");
        tokio::task::yield_now().await;
    }
}

fn set(value: usize) -> Command {
    Command::AlterConfigs(vec![ConfigChange {
        resource: ConfigResource::Broker(None),
        set: vec![("retention.ms".into(), value.to_string())],
        remove: Vec::new(),
        expected: Vec::new(),
    }])
}

/// Proposes wherever the controller is, until it is accepted.
async fn propose(nodes: &[&Node], command: Command) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let controller = leader(nodes).await;
        let node = nodes
            .iter()
            .find(|node| node.quorum.node_id() == controller)
            .unwrap();
        match node.quorum.propose(command.clone()).await {
            Ok(outcome) => return outcome.offset,
            Err(ProposeError::NotController { .. } | ProposeError::Unavailable) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "no proposal was accepted");
    }
}

fn register(broker: i32) -> Command {
    Command::RegisterBroker(RegisterBroker {
        broker: BrokerId(broker),
        incarnation_id: IncarnationId::random(),
        directory_id: DirectoryId::random(),
        endpoints: vec![Endpoint {
            listener: "A".into(),
            host: "h".into(),
            port: 1,
        }],
        rack: None,
        last_stop: LastStop::Lossy,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_agree_survive_their_leader_and_let_it_back_in() {
    let mut listeners = Vec::new();
    let mut voters = Vec::new();
    let directories = [0; 3].map(|_| TempDir::new().unwrap());
    for broker in 1..=3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        voters.push((BrokerId(broker), listener.local_addr().unwrap().to_string()));
        listeners.push(listener);
    }
    let started = Instant::now();
    let mut nodes = Vec::new();
    for (broker, listener) in (1..).zip(listeners) {
        let directory = directories[broker as usize - 1].path();
        nodes.push(Node::start(broker, directory, listener, &voters).await);
    }
    let all: Vec<&Node> = nodes.iter().collect();
    let first = leader(&all).await;
    println!("formed after {:?}", started.elapsed());

    let offset = propose(&all, register(1)).await;
    for node in &all {
        node.wait_for_offset(offset).await;
        assert!(node.quorum.image().broker(BrokerId(1)).is_some());
    }
    let follower = all
        .iter()
        .find(|node| node.quorum.node_id() != first)
        .unwrap();
    let forwarded = follower.quorum.propose(set(0)).await.unwrap();
    assert!(follower.quorum.image().offset >= forwarded.offset);

    // The leader dies; the others go on, past what it can catch up with from their logs.
    let position = nodes
        .iter()
        .position(|node| node.quorum.node_id() == first)
        .unwrap();
    nodes.remove(position).stop().await;
    let died = Instant::now();
    let rest: Vec<&Node> = nodes.iter().collect();
    propose(&rest, set(1)).await;
    println!("proposals accepted again after {:?}", died.elapsed());
    for value in 0..100 {
        propose(&rest, set(value)).await;
    }
    let topic = NewTopic {
        name: "t".into(),
        id: TopicId::random(),
        configs: BTreeMap::new(),
        partitions: vec![vec![BrokerId(1)]],
    };
    let offset = propose(&rest, Command::CreateTopics(vec![topic])).await;
    assert!(
        rest[0].quorum.status().snapshot.is_some(),
        "no snapshot was taken"
    );

    // It comes back on its address with its directory.
    let address = &voters[first.0 as usize - 1].1;
    let listener = TcpListener::bind(address).await.unwrap();
    let directory = directories[first.0 as usize - 1].path();
    let back = Node::start(first.0, directory, listener, &voters).await;
    back.wait_for_offset(offset).await;
    let settled = propose(&[&back, rest[0], rest[1]], set(5)).await;
    for node in [&back, rest[0], rest[1]] {
        node.wait_for_offset(settled).await;
    }
    assert_eq!(back.quorum.image(), rest[0].quorum.image());

    // A planned stop hands over first.
    let controller = leader(&[&back, rest[0], rest[1]]).await;
    let nodes = [&back, rest[0], rest[1]];
    let leading = nodes
        .iter()
        .find(|node| node.quorum.node_id() == controller)
        .unwrap();
    let other = nodes
        .iter()
        .find(|node| node.quorum.node_id() != controller)
        .unwrap();
    let asked = Instant::now();
    leading
        .quorum
        .transfer_leadership(other.quorum.node_id())
        .await;
    while leader(&nodes).await == controller {
        assert!(asked.elapsed() < PATIENCE, "leadership was not handed over");
        tokio::task::yield_now().await;
    }
    println!("handed over after {:?}", asked.elapsed());
    back.quorum.shutdown().await;
    for node in rest {
        node.quorum.shutdown().await;
    }
}
