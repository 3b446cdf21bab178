//! A quorum of one: what was acknowledged is there after every kind of stop.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use kittiwake_raft::{
    Applied, BrokerEpoch, BrokerId, Command, DirectoryId, Endpoint, IncarnationId, LastStop,
    MetadataQuorum, NewTopic, OpenError, QuorumOptions, RegisterBroker, TopicId,
};
use tempfile::TempDir;

const BROKER: BrokerId = BrokerId(1);

fn options(directory: &Path) -> QuorumOptions {
    QuorumOptions::new(
        BROKER,
        "test",
        directory,
        vec![(BROKER, "127.0.0.1:1".into())],
    )
}

async fn open(directory: &Path) -> MetadataQuorum {
    MetadataQuorum::open(options(directory)).await.unwrap()
}

async fn register(quorum: &MetadataQuorum) -> BrokerEpoch {
    let command = Command::RegisterBroker(RegisterBroker {
        broker: BROKER,
        incarnation_id: IncarnationId::random(),
        directory_id: DirectoryId::random(),
        endpoints: vec![Endpoint {
            listener: "PLAINTEXT".into(),
            host: "localhost".into(),
            port: 9092,
        }],
        rack: None,
        last_stop: LastStop::Lossy,
    });
    let outcome = quorum.propose(command).await.unwrap();
    let [Ok(Applied::Registered(epoch))] = outcome.results[..] else {
        panic!("not registered: {outcome:?}")
    };
    assert_eq!(epoch.0, i64::try_from(outcome.offset).unwrap());
    quorum
        .propose(Command::UnfenceBroker {
            broker: BROKER,
            epoch,
            reconciled: outcome.offset,
        })
        .await
        .unwrap();
    epoch
}

fn topic(name: &str) -> NewTopic {
    NewTopic {
        name: name.into(),
        id: TopicId::random(),
        configs: BTreeMap::new(),
        partitions: vec![vec![BROKER]],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let started = Instant::now();
    let quorum = open(directory.path()).await;
    println!("formed after {:?}", started.elapsed());
    assert_eq!(quorum.controller(), Some(BROKER));
    let epoch = register(&quorum).await;
    println!("unfenced after {:?}", started.elapsed());
    let outcome = quorum
        .propose(Command::CreateTopics(vec![topic("a"), topic("b")]))
        .await
        .unwrap();
    assert!(outcome.results.iter().all(Result::is_ok));
    let image = quorum.image();
    assert_eq!(image.offset, outcome.offset);
    let leader = image.topic_by_name("a").unwrap().partitions[0].leader;
    assert_eq!(leader, Some(BROKER));
    quorum.shutdown().await;
    drop(quorum);

    let started = Instant::now();
    let quorum = open(directory.path()).await;
    println!("led again after {:?}", started.elapsed());
    let recovered = quorum.image();
    assert_eq!(recovered.broker(BROKER).unwrap().epoch, epoch);
    assert_eq!(recovered.topic_by_name("b"), image.topic_by_name("b"));
    quorum.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_opened_by_one_process_of_its_own_cluster_and_broker() {
    let directory = TempDir::new().unwrap();
    let quorum = open(directory.path()).await;
    let error = MetadataQuorum::open(options(directory.path()))
        .await
        .unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    quorum.shutdown().await;
    drop(quorum);

    let mut other = options(directory.path());
    other.cluster_id = "other".into();
    let error = MetadataQuorum::open(other).await.unwrap_err();
    assert!(matches!(error, OpenError::ClusterId { .. }), "{error}");

    let mut other = options(directory.path());
    other.node_id = BrokerId(2);
    let error = MetadataQuorum::open(other).await.unwrap_err();
    assert!(matches!(error, OpenError::NodeId { .. }), "{error}");
}
