//! A topic is deleted and created again under a live consumer group, and once more while the group's coordinator is dead:
//! what was committed for the old topic is never told for the new one, nor shown; the group goes on in its generation and
//! reads the new topic from its beginning, and nothing of the old one.
//!
//! The member speaks the classic protocol by hand. A client library has a position of its own, and metadata that may be of
//! the topic before.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::history::Value;
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{Bytes, Connection, Fields, fetch_body};
use cluster_tests::workload::{create_topic, delete_topic, produce_all};
use cluster_tests::{Cluster, wait};
use serde_json::json;

const TOPIC: &str = "orders";
const GROUP: &str = "billing";
/// How often the topic is created.
const TOPICS: u64 = 3;
/// Of each topic, so that an offset of one is an offset of the next, too. Their sequence numbers tell whose they are.
const RECORDS: u64 = 50;
const RECORD_BYTES: usize = 100;
const COMMITTED: i64 = 30;
/// Longer than the test takes with a debug build on a slow machine.
const SESSION: Duration = Duration::from_secs(300);

const NOTHING: i64 = -1;
const COORDINATOR_LOAD_IN_PROGRESS: i16 = 14;
const COORDINATOR_NOT_AVAILABLE: i16 = 15;
const NOT_COORDINATOR: i16 = 16;

/// The only member of the group.
struct Member {
    nodes: Vec<SocketAddr>,
    generation: i32,
    id: String,
}

impl Member {
    /// Which node coordinates the group (FindCoordinator v0), asked of any that answers.
    fn coordinator(&self) -> Option<usize> {
        const FIND_COORDINATOR: i16 = 10;
        self.nodes.iter().find_map(|node| {
            let mut connection = Connection::open_within(*node, Duration::from_secs(2)).ok()?;
            let group = Bytes::new().string(GROUP);
            let answer = connection.call(FIND_COORDINATOR, 0, &group.0).ok()??;
            let mut fields = Fields::of(&answer);
            let (error, node) = (fields.i16().ok()?, fields.i32().ok()?);
            (error == 0).then_some(node as usize)
        })
    }

    /// Asks the coordinator, wherever it moves; `parse` finds the error code in its answer, and what else is wanted.
    fn ask<T>(
        &self,
        (api_key, api_version): (i16, i16),
        body: &Bytes,
        parse: impl Fn(&mut Fields<'_>) -> Result<(i16, T)>,
    ) -> Result<(i16, T)> {
        let what = format!("the coordinator to answer API {api_key}");
        wait::until(&what, DEADLINE, || {
            let node = self.nodes[self.coordinator()?];
            let mut connection = Connection::open(node).ok()?;
            let answer = connection.call(api_key, api_version, &body.0).ok()??;
            let (error, parsed) = parse(&mut Fields::of(&answer)).ok()?;
            let moves = [
                COORDINATOR_LOAD_IN_PROGRESS,
                COORDINATOR_NOT_AVAILABLE,
                NOT_COORDINATOR,
            ];
            (!moves.contains(&error)).then_some((error, parsed))
        })
    }

    /// JoinGroup v1 and SyncGroup v0: the member leads the group and assigns itself everything.
    fn join(nodes: Vec<SocketAddr>) -> Result<Self> {
        let mut member = Self {
            nodes,
            generation: -1,
            id: String::new(),
        };
        let session_ms = i32::try_from(SESSION.as_millis())?;
        let join = Bytes::new()
            .string(GROUP)
            .i32(session_ms)
            .i32(session_ms)
            .string("")
            .string("consumer")
            .i32(1)
            .string("range")
            .i32(0);
        let (error, (generation, id)) = member.ask((11, 1), &join, |fields| {
            let (error, generation) = (fields.i16()?, fields.i32()?);
            let (_protocol, _leader) = (fields.string()?, fields.string()?);
            Ok((error, (generation, fields.string()?)))
        })?;
        ensure!(error == 0, "JoinGroup: error {error}");
        (member.generation, member.id) = (generation, id.context("no member id")?);
        let sync = member.header().i32(1).string(&member.id).i32(0);
        let (error, ()) = member.ask((14, 0), &sync, |fields| Ok((fields.i16()?, ())))?;
        ensure!(error == 0, "SyncGroup: error {error}");
        Ok(member)
    }

    fn header(&self) -> Bytes {
        Bytes::new()
            .string(GROUP)
            .i32(self.generation)
            .string(&self.id)
    }

    /// Heartbeat v0: the group is stable, and this is its generation still.
    fn is_well(&self) -> Result<()> {
        let (error, ()) = self.ask((12, 0), &self.header(), |fields| Ok((fields.i16()?, ())))?;
        ensure!(error == 0, "Heartbeat: error {error}");
        Ok(())
    }

    /// OffsetCommit v2.
    fn commit(&self, offset: i64) -> Result<()> {
        let body = self
            .header()
            .i64(-1)
            .i32(1)
            .string(TOPIC)
            .i32(1)
            .i32(0)
            .i64(offset)
            .string("");
        let (error, ()) = self.ask((8, 2), &body, |fields| {
            let (_topics, _name, _partitions) = (fields.i32()?, fields.string()?, fields.i32()?);
            let _index = fields.i32()?;
            Ok((fields.i16()?, ()))
        })?;
        ensure!(error == 0, "OffsetCommit of {offset}: error {error}");
        Ok(())
    }

    /// OffsetFetch v1.
    fn committed(&self) -> Result<i64> {
        let body = Bytes::new()
            .string(GROUP)
            .i32(1)
            .string(TOPIC)
            .i32(1)
            .i32(0);
        let (error, offset) = self.ask((9, 1), &body, |fields| {
            let (_topics, _name, _partitions) = (fields.i32()?, fields.string()?, fields.i32()?);
            let (_index, offset, _metadata) = (fields.i32()?, fields.i64()?, fields.string()?);
            Ok((fields.i16()?, offset))
        })?;
        ensure!(error == 0, "OffsetFetch: error {error}");
        Ok(offset)
    }
}

/// What is in the topic from `from` on (Fetch v11): the bytes of all batches.
fn read(leader: SocketAddr, from: i64) -> Result<Vec<u8>> {
    let body = fetch_body(-1, TOPIC, from, 1 << 20, "");
    let answer = Connection::open(leader)?.call(1, 11, &body)?;
    let answer = answer.context("Fetch was not answered")?;
    let mut fields = Fields::of(&answer);
    let (_throttle, error, _session) = (fields.i32()?, fields.i16()?, fields.i32()?);
    let (_topics, _name, _partitions) = (fields.i32()?, fields.string()?, fields.i32()?);
    let (_index, partition_error) = (fields.i32()?, fields.i16()?);
    ensure!(
        (error, partition_error) == (0, 0),
        "Fetch: errors {error}, {partition_error}"
    );
    let (_high_watermark, _last_stable, _log_start) = (fields.i64()?, fields.i64()?, fields.i64()?);
    let (_aborted, _preferred, length) = (fields.i32()?, fields.i32()?, fields.i32()?);
    Ok(fields.raw(usize::try_from(length)?)?.to_vec())
}

/// The records of the `nth` topic.
fn records(nth: u64) -> std::ops::Range<u64> {
    nth * RECORDS..(nth + 1) * RECORDS
}

/// Creates the topic for the `nth` time and fills it; returns where its leader is.
fn create(cluster: &mut Cluster, nth: u64) -> Result<SocketAddr> {
    create_topic(&cluster.bootstrap(), TOPIC, 1, &[])?;
    produce_all(&cluster.bootstrap(), TOPIC, records(nth), RECORD_BYTES)?;
    let leader = cluster.leader(TOPIC, 0, DEADLINE)?;
    Ok(cluster.node(leader).kafka())
}

/// The member reads the `nth` topic to its end from where its group is, which is its beginning, and commits part of it.
fn consume(member: &Member, leader: SocketAddr, nth: u64) -> Result<()> {
    member.is_well()?;
    let start = member.committed()?;
    ensure!(
        start == NOTHING,
        "offset {start} is committed for topic {nth}, by nobody"
    );
    let read = read(leader, 0)?;
    for of in 0..TOPICS {
        let is_there = |sequence: &u64| {
            let value = Value {
                producer: 0,
                sequence: *sequence,
            };
            let payload = value.payload(RECORD_BYTES);
            let mut places = read.windows(payload.len());
            places.any(|place| place == payload)
        };
        let found = records(of).filter(is_there).count() as u64;
        ensure!(
            found == RECORDS * u64::from(of == nth),
            "{found} records of topic {of} in topic {nth}"
        );
    }
    member.commit(COMMITTED)?;
    let committed = member.committed()?;
    ensure!(committed == COMMITTED, "committed {committed}");
    Ok(())
}

/// Deletes the topic, until every node that runs has heard of it.
fn delete(cluster: &Cluster) -> Result<()> {
    delete_topic(&cluster.bootstrap(), TOPIC)?;
    cluster.wait_topic_gone(TOPIC, DEADLINE)
}

/// Nothing that was committed for the deleted topic is told or shown.
fn forgotten(cluster: &Cluster, member: &Member, through: &[usize]) -> Result<()> {
    let committed = member.committed()?;
    ensure!(
        committed == NOTHING,
        "offset {committed} of a deleted topic is told"
    );
    for &node in through {
        let described = cluster.administer(node, &["group", "describe", GROUP])?;
        ensure!(
            described["offsets"] == json!([]) && described["group"]["state"] == "Stable",
            "{described:#}"
        );
    }
    Ok(())
}

#[test]
fn a_group_begins_a_recreated_topic_from_its_beginning() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let leader = create(&mut cluster, 0)?;
    let member = Member::join(cluster.nodes().map(|node| node.kafka()).collect())?;
    cluster.wait_in_sync(DEADLINE)?;
    consume(&member, leader, 0)?;

    delete(&cluster)?;
    forgotten(&cluster, &member, &[0, 1, 2])?;
    let leader = create(&mut cluster, 1)?;
    consume(&member, leader, 1)?;

    // Its coordinator dies, and does not see the next change.
    let Some(dying) = member.coordinator() else {
        bail!("the group has no coordinator");
    };
    cluster.wait_in_sync(DEADLINE)?;
    cluster.node(dying).kill()?;
    delete(&cluster)?;
    let others: Vec<usize> = (0..3).filter(|node| *node != dying).collect();
    forgotten(&cluster, &member, &others)?;
    let leader = create(&mut cluster, 2)?;
    consume(&member, leader, 2)?;
    // The dead one comes back, and may coordinate the group again.
    cluster.node(dying).start()?;
    cluster.wait_in_sync(DEADLINE)?;
    member.is_well()?;
    let committed = member.committed()?;
    ensure!(committed == COMMITTED, "committed {committed}");
    cluster.conclude(&[TOPIC], DEADLINE)
}
