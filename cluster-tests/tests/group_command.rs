//! `kittiwake group` against a live group, by way of every node: listed, described with its members and how far behind they
//! are, not deleted while somebody is in it, and deleted once nobody is.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::trials::DEADLINE;
use cluster_tests::workload::{client, create_topic, create_topic_on};
use cluster_tests::{Cluster, run_kittiwake, wait};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};

const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const CLIENT: &str = "a-clerk";
const RECORDS: i64 = 40;
const COMMITTED: i64 = 25;

/// A member of `group` that polls until the coordinator says that it is one.
fn member(cluster: &Cluster, group: &str) -> Result<BaseConsumer> {
    let member: BaseConsumer = client(&cluster.bootstrap())
        .set("group.id", group)
        .set("client.id", CLIENT)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()?;
    member.subscribe(&[TOPIC])?;
    wait::until("a member to be given its partitions", DEADLINE, || {
        let polled = member.poll(Duration::from_millis(100));
        let assigned = member.assignment().is_ok_and(|given| given.count() > 0);
        (assigned && polled.is_none_or(|polled| polled.is_ok())).then_some(())
    })?;
    Ok(member)
}

fn produce(bootstrap: &str) -> Result<()> {
    let producer: BaseProducer = client(bootstrap).set("acks", "all").create()?;
    for _ in 0..RECORDS {
        let record = BaseRecord::<(), _>::to(TOPIC).partition(0);
        producer
            .send(record.payload("an order"))
            .map_err(|(error, _)| error)?;
    }
    Ok(producer.flush(DEADLINE)?)
}

fn commit(member: &BaseConsumer) -> Result<()> {
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(TOPIC, 0, Offset::Offset(COMMITTED))?;
    Ok(member.commit(&offsets, CommitMode::Sync)?)
}

/// The sentence a command fails with.
fn refusal(admin: SocketAddr, arguments: &[&str]) -> Result<String> {
    let admin = admin.to_string();
    let output = run_kittiwake(&[arguments, &["--admin", &admin]].concat())?;
    ensure!(!output.status.success(), "{arguments:?} succeeded");
    Ok(String::from_utf8(output.stderr)?)
}

/// What a node shows people.
fn shown(admin: SocketAddr, arguments: &[&str]) -> Result<String> {
    let admin = admin.to_string();
    let output = run_kittiwake(&[arguments, &["--admin", &admin]].concat())?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

fn described(cluster: &Cluster, through: usize) -> Result<()> {
    let description = cluster.administer(through, &["group", "describe", GROUP])?;
    let group = json!({"group": GROUP, "state": "Stable", "protocol_type": "consumer"});
    ensure!(description["group"] == group, "{description}");
    let [member] = description["members"]
        .as_array()
        .context("members")?
        .as_slice()
    else {
        bail!("not one member: {description}");
    };
    ensure!(member["client_id"] == CLIENT, "{description}");
    let offsets = json!([{
        "topic": TOPIC,
        "partition": 0,
        "committed_offset": COMMITTED,
        "high_watermark": RECORDS,
        "lag": RECORDS - COMMITTED,
    }]);
    ensure!(description["offsets"] == offsets, "{description}");
    Ok(())
}

/// The ids and states of the groups that a node lists.
fn listed(cluster: &Cluster, through: usize) -> Result<Vec<(String, String)>> {
    let list = cluster.administer(through, &["group", "list"])?;
    let text = |group: &Value, key: &str| group[key].as_str().unwrap_or_default().to_owned();
    let groups = list.as_array().context("a list")?.iter();
    Ok(groups
        .map(|group| (text(group, "group"), text(group, "state")))
        .collect())
}

fn follows_its_life(mut cluster: Cluster) -> Result<()> {
    let nodes = cluster.size();
    let admins: Vec<SocketAddr> = cluster.nodes().map(|node| node.grpc()).collect();
    let of = |id: &str, state: &str| (id.to_owned(), state.to_owned());
    for &admin in &admins {
        let said = refusal(admin, &["group", "describe", GROUP])?;
        ensure!(said.contains("does not exist"), "{said}");
    }
    produce(&cluster.bootstrap())?;
    let live = member(&cluster, GROUP)?;
    let other = member(&cluster, "another")?;
    commit(&live)?;
    // The first group of all has made the topic of groups: every node must have heard of it.
    cluster.wait_in_sync(DEADLINE)?;
    for (through, &admin) in admins.iter().enumerate() {
        described(&cluster, through)?;
        let groups = listed(&cluster, through)?;
        ensure!(
            groups == [of("another", "Stable"), of(GROUP, "Stable")],
            "node {through} lists {groups:?}"
        );
        let text = shown(admin, &["group", "describe", GROUP])?;
        for expected in [GROUP, "Stable", CLIENT, TOPIC, "LAG"] {
            ensure!(text.contains(expected), "no {expected} in\n{text}");
        }
        let said = refusal(admin, &["group", "delete", GROUP])?;
        ensure!(said.contains("not empty"), "{said}");
    }
    // Refused means untouched: the member and its offset are still there.
    described(&cluster, 0)?;

    drop(live);
    wait::until("the group to be empty", DEADLINE, || {
        let groups = listed(&cluster, 0).ok()?;
        groups.contains(&of(GROUP, "Empty")).then_some(())
    })?;
    let deleted = cluster.administer(nodes - 1, &["group", "delete", GROUP])?;
    ensure!(
        deleted == json!({"group": GROUP, "done": "deleted"}),
        "{deleted}"
    );
    for (through, &admin) in admins.iter().enumerate() {
        let groups = listed(&cluster, through)?;
        ensure!(
            groups == [of("another", "Stable")],
            "node {through} lists {groups:?}"
        );
        for command in ["describe", "delete"] {
            let said = refusal(admin, &["group", command, GROUP])?;
            ensure!(said.contains("does not exist"), "{said}");
        }
    }
    drop(other);
    cluster.terminate_all()?;
    cluster.check_logs()
}

#[test]
fn on_one_node() -> Result<()> {
    let cluster = Cluster::start(1)?;
    create_topic(&cluster.bootstrap(), TOPIC, 1, &[])?;
    follows_its_life(cluster)
}

/// Two of the three have no replica of what the group reads, and two do not coordinate it.
#[test]
fn on_any_of_three() -> Result<()> {
    let cluster = Cluster::start(3)?;
    create_topic_on(&cluster.bootstrap(), TOPIC, &[vec![1]], &[])?;
    follows_its_life(cluster)
}
