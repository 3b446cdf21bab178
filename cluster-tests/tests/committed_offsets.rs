//! What a group committed survives `kill -9` of its coordinator, and the group resumes there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::Cluster;
use cluster_tests::wait;
use cluster_tests::workload::{client, create_topic};
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const RECORDS: i64 = 100;
const COMMITTED: i64 = 60;
const DEADLINE: Duration = Duration::from_secs(60);

fn consumer(bootstrap: &str) -> Result<BaseConsumer> {
    let mut config = client(bootstrap);
    config
        .set("group.id", GROUP)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest");
    Ok(config.create()?)
}

/// The next record of a group member; errors while the node is away are waited out.
fn next(consumer: &BaseConsumer) -> Result<i64> {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            return Ok(message.offset());
        }
    }
    anyhow::bail!("no record within {DEADLINE:?}")
}

#[test]
fn a_group_resumes_where_it_committed() -> Result<()> {
    let mut cluster = Cluster::start(1)?;
    let bootstrap = cluster.bootstrap();
    create_topic(&bootstrap, TOPIC, 1, &[])?;
    let producer: BaseProducer = client(&bootstrap).create()?;
    for i in 0..RECORDS {
        let payload = i.to_string();
        producer
            .send(
                BaseRecord::<(), _>::to(TOPIC)
                    .partition(0)
                    .payload(&payload),
            )
            .map_err(|(error, _)| error)?;
    }
    producer.flush(DEADLINE)?;

    let before = consumer(&bootstrap)?;
    before.subscribe(&[TOPIC])?;
    for expected in 0..COMMITTED {
        ensure!(next(&before)? == expected, "records come in order");
    }
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(TOPIC, 0, Offset::Offset(COMMITTED))?;
    before.commit(&offsets, CommitMode::Sync)?;

    drop(before);

    cluster.node(0).kill()?;
    cluster.node(0).start()?;

    let after = consumer(&bootstrap)?;
    // COORDINATOR_LOAD_IN_PROGRESS is retried by the client; an offset of -1 would be the bug.
    let committed = wait::until("the group's coordinator", DEADLINE, || {
        let asked = offsets.clone();
        after.committed_offsets(asked, Duration::from_secs(5)).ok()
    })?;
    let partition = committed
        .find_partition(TOPIC, 0)
        .context("the partition is answered")?;
    ensure!(
        partition.offset() == Offset::Offset(COMMITTED),
        "committed {COMMITTED}, found {:?}",
        partition.offset()
    );
    after.subscribe(&[TOPIC])?;
    ensure!(
        next(&after)? == COMMITTED,
        "the group's next member starts where the last one committed"
    );
    Ok(())
}
