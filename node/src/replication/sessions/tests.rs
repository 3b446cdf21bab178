//! What a leader tells its followers, and when it must not any more.

use kittiwake_raft::{Applied, Command, IncarnationId, LastStop, RegisterBroker};
use kittiwake_storage::{Compression, RecordsBuilder, validate};

use super::*;
use crate::broker::now_ms;
use crate::controller::topics::{TopicSpec, create_topics};
use crate::node::Node;
use crate::partition::Acks;

/// Between the look at a partition and the reading of its log everything can come: the log may be another's by then.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_read_after_the_reign_are_not_told() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::for_tests(directory.path()).await;
    let broker = node.broker();
    let image = broker.image();
    let own = image.broker(broker.node_id).unwrap();
    let follower = BrokerId(broker.node_id.0 + 1);
    let register = Command::RegisterBroker(RegisterBroker {
        broker: follower,
        incarnation_id: IncarnationId::random(),
        directory_id: kittiwake_raft::DirectoryId::random(),
        endpoints: own.endpoints.clone(),
        rack: None,
        last_stop: LastStop::Lossy,
    });
    let registered = broker.quorum.propose(register).await.unwrap().results.pop();
    let Some(Ok(Applied::Registered(broker_epoch))) = registered else {
        panic!("the follower is not registered: {registered:?}");
    };
    let spec = TopicSpec {
        name: "t".to_owned(),
        assignment: vec![(0, vec![broker.node_id, follower])],
        ..TopicSpec::default()
    };
    let created = create_topics(broker, &[spec], false).await;
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    let partition = broker.partitions.get("t", 0).unwrap();
    let mut batch = RecordsBuilder::new(Compression::None);
    batch.push(now_ms(), None, Some(b"record"), &[]);
    let batch = batch.build().unwrap();
    let batch = validate(&batch, &partition.batch_rules(), now_ms()).unwrap();
    partition
        .append(&batch, Acks::Leader, None, now_ms())
        .unwrap();

    let session = broker.replica_sessions.open(follower, broker_epoch);
    let ask = Ask {
        key: (partition.topic_id(), 0),
        fetch: FollowerFetch {
            replica: follower,
            broker_epoch,
            leader_epoch: partition.leader_epoch(),
            from: Offset::ZERO,
            last_epoch: LeaderEpoch::NONE,
            flushed: Offset::ZERO,
            log_start: Offset::ZERO,
        },
        bytes_max: 1 << 20,
    };
    let changes = Changes {
        asks: vec![ask],
        forgotten: Vec::new(),
    };
    session.begin(changes, &broker.partitions);
    let number = session.news().take()[0];
    let Look::Read(read) = session.state.lock().look(number) else {
        panic!("there is a record to be read");
    };
    let fence = Command::FenceBroker {
        broker: broker.node_id,
        epoch: own.epoch,
    };
    let fenced = broker.quorum.propose(fence).await.unwrap().offset;
    broker.partitions.wait_reconciled(fenced).await;
    let slices = read.slices(1 << 20, true);
    assert!(slices.as_ref().is_ok_and(|slices| !slices.is_empty()));
    let told = session.state.lock().take_read(number, read, slices);
    let told = told.expect("an answer");
    assert_eq!(told.error, ErrorCode::NotLeaderOrFollower);
    assert!(told.slices.is_empty());
    node.stop_for_tests().await;
}
