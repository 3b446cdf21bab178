//! Only a registered node with its current broker epoch is a replica, and only on the replication listener (CVE-2018-1288).
//! Whoever else claims to be one there gets an error and no records; on a client listener the claim counts for nothing: what
//! is not committed stays hidden, and the high watermark does not move. Bytes that are no frame get a closed connection on
//! the replication listener, as everywhere.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use cluster_tests::Cluster;
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{
    ACKS_ALL, ACKS_LEADER, Batch, Bytes, Connection, Fields, fetch_body, request,
};
use cluster_tests::workload::create_topic_on;

const TOPIC: &str = "guarded";
/// A record that every replica has.
const COMMITTED: &[u8] = b"consumers may have this, and replicas";
/// Records that the leader alone has: its followers hang.
const UNCOMMITTED: &[u8] = b"nobody but a replica may have this yet";
const FETCH: i16 = 1;
/// The last version that names topics, and the replica in its first field.
const CLASSIC: i16 = 11;
/// Topic ids, and the replica with its epoch in a tagged field (KIP-903).
const TAGGED: i16 = 17;
/// A consumer, in either form.
const CONSUMER: i32 = -1;

/// Who claims to fetch.
#[derive(Debug, Clone, Copy)]
struct Claim {
    version: i16,
    replica: i32,
    epoch: i64,
}

fn classic(replica: i32) -> Claim {
    Claim {
        version: CLASSIC,
        replica,
        epoch: -1,
    }
}

fn tagged(replica: i32, epoch: i64) -> Claim {
    Claim {
        version: TAGGED,
        replica,
        epoch,
    }
}

/// What came back for partition 0.
#[derive(Debug)]
struct Fetched {
    /// Kafka's error code: of the request, or else of the partition.
    error: i16,
    has_committed: bool,
    has_uncommitted: bool,
}

/// Fetches partition 0 from `offset` on, without waiting for more; `None` if the connection was closed instead.
fn fetch(
    address: SocketAddr,
    claim: Claim,
    topic_id: &[u8; 16],
    offset: i64,
) -> Result<Option<Fetched>> {
    const CORRELATION: i32 = 11;
    let flexible = claim.version == TAGGED;
    let body = match flexible {
        true => tagged_body(claim, topic_id, offset),
        false => fetch_body(claim.replica, TOPIC, offset, 1 << 20, ""),
    };
    let mut connection = Connection::open(address)?;
    connection.send(&request(FETCH, claim.version, CORRELATION, flexible, &body))?;
    let Some(answer) = connection.answer()? else {
        return Ok(None);
    };
    let holds = |record: &[u8]| answer.windows(record.len()).any(|bytes| bytes == record);
    let (has_committed, has_uncommitted) = (holds(COMMITTED), holds(UNCOMMITTED));
    let mut fields = Fields::of(&answer);
    ensure!(fields.i32()? == CORRELATION);
    if flexible {
        fields.raw(1)?;
    }
    let (_throttle, error, _session) = (fields.i32()?, fields.i16()?, fields.i32()?);
    let error = match error {
        0 => partition_error(&mut fields, flexible).unwrap_or(0),
        error => error,
    };
    Ok(Some(Fetched {
        error,
        has_committed,
        has_uncommitted,
    }))
}

/// The error of the first partition of the first topic, if there is one.
fn partition_error(fields: &mut Fields<'_>, flexible: bool) -> Result<i16> {
    if flexible {
        // Compact arrays of one element: a byte each for the lengths.
        let (_topics, _id, _partitions) = (fields.raw(1)?, fields.raw(16)?, fields.raw(1)?);
    } else {
        let (_topics, _name, _partitions) = (fields.i32()?, fields.string()?, fields.i32()?);
    }
    let _index = fields.i32()?;
    fields.i16()
}

fn tagged_body(claim: Claim, topic_id: &[u8; 16], offset: i64) -> Vec<u8> {
    let partition = Bytes::new()
        .i32(0)
        .i32(-1)
        .i64(offset)
        .i32(-1)
        .i64(-1)
        .i32(1 << 20)
        .unsigned_varint(0);
    let replica = Bytes::new()
        .i32(claim.replica)
        .i64(claim.epoch)
        .unsigned_varint(0);
    Bytes::new()
        .i32(0)
        .i32(0)
        .i32(1 << 20)
        .i8(0)
        .i32(0)
        .i32(-1)
        .unsigned_varint(2)
        .raw(topic_id)
        .unsigned_varint(2)
        .raw(&partition.0)
        .unsigned_varint(0)
        .unsigned_varint(1)
        .compact_string("")
        .unsigned_varint(1)
        .unsigned_varint(1)
        .unsigned_varint(replica.0.len() as u32)
        .raw(&replica.0)
        .0
}

/// 16 bytes as Kafka writes them: base64 for URLs, without padding.
fn topic_id(text: &str) -> Result<[u8; 16]> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bits = 0u128;
    ensure!(text.len() == 22, "{text} is no topic id");
    for (index, letter) in text.bytes().enumerate() {
        let value = ALPHABET
            .iter()
            .position(|&known| known == letter)
            .with_context(|| format!("{text} is no topic id"))? as u128;
        // 22 letters are 132 bits: the last four are padding.
        bits = match index {
            21 => bits << 2 | value >> 4,
            _ => bits << 6 | value,
        };
    }
    Ok(bits.to_be_bytes())
}

/// Three nodes, one record in a partition that node 0 leads, and that topic's id.
fn scene() -> Result<(Cluster, [u8; 16])> {
    let mut cluster = Cluster::start(3)?;
    create_topic_on(&cluster.bootstrap(), TOPIC, &[vec![0, 1, 2]], &[])?;
    ensure!(cluster.leader(TOPIC, 0, DEADLINE)? == 0);
    honest_write(&mut cluster, 0)?;
    let topic = cluster.administer(0, &["topic", "describe", TOPIC])?;
    let id = topic["id"].as_str().or(topic["topic"]["id"].as_str());
    let id = topic_id(id.with_context(|| format!("no id in {topic}"))?)?;
    Ok((cluster, id))
}

fn honest_write(cluster: &mut Cluster, offset: i64) -> Result<()> {
    let answer = Connection::open(cluster.node(0).kafka())?.produce(
        TOPIC,
        0,
        &Batch::of(&[COMMITTED]).encode(),
    )?;
    ensure!(answer == Some((0, offset)), "an honest write: {answer:?}");
    Ok(())
}

/// Every claim that is false, about a broker that has this epoch.
fn lies(epoch: i64) -> Vec<Claim> {
    let mut lies = vec![classic(1), classic(2), classic(77)];
    for wrong in [-1, 0, epoch - 1, epoch + 1, i64::MAX] {
        lies.push(tagged(1, wrong));
    }
    for nobody in [77, i32::MAX, i32::MIN] {
        lies.push(tagged(nobody, epoch));
    }
    lies
}

#[test]
fn a_forged_replica_is_none() -> Result<()> {
    let (mut cluster, id) = scene()?;
    let (kafka, replication) = (cluster.node(0).kafka(), cluster.node(0).replication());
    for claim in [classic(CONSUMER), tagged(CONSUMER, -1)] {
        let fetched = fetch(kafka, claim, &id, 0)?;
        ensure!(
            fetched
                .as_ref()
                .is_some_and(|fetched| fetched.has_committed),
            "a consumer: {fetched:?}"
        );
    }
    let status = cluster.node(0).status()?;
    let epoch_of = |node| {
        status["nodes"]
            .as_array()
            .and_then(|nodes| nodes.iter().find(|found| found["id"] == node))
            .and_then(|found| found["epoch"].as_i64())
            .with_context(|| format!("no epoch of node {node} in {status}"))
    };
    let (one, two) = (epoch_of(1)?, epoch_of(2)?);

    for node in [1, 2] {
        cluster.node(node).pause()?;
    }
    let batch = Batch::of(&[UNCOMMITTED]).encode();
    let mut leader_only = Connection::open(kafka)?;
    leader_only.ask_produce(ACKS_LEADER, TOPIC, 0, &batch)?;
    ensure!(leader_only.produced()? == Some((0, 1)));
    let mut waiting = Connection::open(kafka)?;
    waiting.ask_produce(ACKS_ALL, TOPIC, 0, &batch)?;

    // From the beginning, from what is not committed, and from where a replica would be that has it all.
    for offset in [0, 1, 3] {
        for claim in lies(one) {
            refused(replication, claim, &id, offset)?;
            hidden(kafka, claim, &id, offset)?;
        }
        // True, but on the wrong listener; and consumers have no business on the other.
        for claim in [tagged(1, one), tagged(2, two)] {
            hidden(kafka, claim, &id, offset)?;
        }
        for claim in [classic(CONSUMER), tagged(CONSUMER, -1)] {
            refused(replication, claim, &id, offset)?;
        }
    }
    ensure!(
        waiting.is_silent()?,
        "forged fetches moved the high watermark: a write was answered that no follower has"
    );
    hidden(kafka, classic(CONSUMER), &id, 1)?;

    for node in [1, 2] {
        cluster.node(node).resume()?;
    }
    let answer = waiting.produced()?;
    ensure!(
        answer == Some((0, 2)),
        "with its followers back: {answer:?}"
    );
    cluster.conclude(&[TOPIC], DEADLINE)
}

/// No records, and an error or a closed connection.
fn refused(address: SocketAddr, claim: Claim, id: &[u8; 16], offset: i64) -> Result<()> {
    let fetched = fetch(address, claim, id, offset)
        .with_context(|| format!("{claim:?} on the replication listener"))?;
    ensure!(
        fetched.as_ref().is_none_or(|fetched| {
            fetched.error != 0 && !fetched.has_committed && !fetched.has_uncommitted
        }),
        "{claim:?} from {offset} on the replication listener: {fetched:?}"
    );
    Ok(())
}

/// At most what a consumer would be given.
fn hidden(address: SocketAddr, claim: Claim, id: &[u8; 16], offset: i64) -> Result<()> {
    let fetched = fetch(address, claim, id, offset)
        .with_context(|| format!("{claim:?} on the clients' listener"))?;
    ensure!(
        fetched
            .as_ref()
            .is_none_or(|fetched| !fetched.has_uncommitted),
        "{claim:?} from {offset} on the clients' listener: {fetched:?}"
    );
    Ok(())
}

#[test]
fn the_replication_listener_takes_nothing_else() -> Result<()> {
    const METADATA: i16 = 3;
    const CREATE_TOPICS: i16 = 19;
    let (mut cluster, _) = scene()?;
    let replication = cluster.node(0).replication();
    for length in [0, -1, i32::MIN, i32::MAX, 1, 7] {
        let mut connection = Connection::open(replication)?;
        connection.send(&length.to_be_bytes())?;
        connection.send(&[0; 7])?;
        connection.finish_sending()?;
        ensure!(
            connection.answer()?.is_none(),
            "a frame of length {length} was answered"
        );
    }
    for claim in [i32::MAX, 1 << 24, -2, i32::MIN] {
        let body = Bytes::new()
            .i32(1)
            .i32(0)
            .i32(1)
            .i32(1)
            .i8(0)
            .i32(0)
            .i32(-1);
        let body = body.i32(claim);
        let answer = Connection::open(replication)?.call(FETCH, CLASSIC, &body.0)?;
        ensure!(
            answer.is_none_or(|answer| answer.len() < 1024),
            "an array that claims {claim} topics"
        );
    }
    let written = Connection::open(replication)?
        .produce(TOPIC, 0, &Batch::of(&[b"forged"]).encode())
        .unwrap_or(None);
    ensure!(
        written.is_none_or(|(error, _)| error != 0),
        "a client wrote through the replication listener: {written:?}"
    );
    for (api, version) in [(METADATA, 8), (CREATE_TOPICS, 4)] {
        let body = Bytes::new().i32(-1).i8(0).i8(0).i8(0);
        let answer = Connection::open(replication)?.call(api, version, &body.0)?;
        ensure!(
            answer.is_none_or(|answer| !answer.windows(TOPIC.len()).any(|w| w == TOPIC.as_bytes())),
            "API {api} was answered on the replication listener"
        );
    }
    honest_write(&mut cluster, 1)?;
    cluster.conclude(&[TOPIC], DEADLINE)
}

#[test]
fn a_topic_id_is_read_as_kafka_writes_it() -> Result<()> {
    ensure!(topic_id("AAAAAAAAAAAAAAAAAAAAAQ")? == 1u128.to_be_bytes());
    ensure!(topic_id("_____________________w")? == [0xff; 16]);
    Ok(())
}
