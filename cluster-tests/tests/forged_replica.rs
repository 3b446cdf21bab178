//! Only a registered node with its current broker epoch is a replica, and only on the replication listener: whoever else
//! claims to be one gets an error and no records (CVE-2018-1288), and moves no high watermark. Bytes that are no frame get a
//! closed connection there, as everywhere.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::Cluster;
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{Batch, Bytes, Connection, Fields, request};
use cluster_tests::workload::create_topic_on;

const TOPIC: &str = "guarded";
const MARKER: &[u8] = b"only replicas and consumers may have this";
const FETCH: i16 = 1;
/// The last version that names topics, and the replica in its first field.
const CLASSIC: i16 = 11;
/// Topic ids, and the replica with its epoch in a tagged field (KIP-903).
const TAGGED: i16 = 16;
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
    has_records: bool,
}

/// Fetches partition 0 from its beginning; `None` if the connection was closed instead.
fn fetch(address: SocketAddr, claim: Claim, topic_id: &[u8; 16]) -> Result<Option<Fetched>> {
    const CORRELATION: i32 = 11;
    let flexible = claim.version == TAGGED;
    let body = match flexible {
        true => tagged_body(claim, topic_id),
        false => classic_body(claim),
    };
    let mut connection = Connection::open(address)?;
    connection.send(&request(FETCH, claim.version, CORRELATION, flexible, &body))?;
    let Some(answer) = connection.answer()? else {
        return Ok(None);
    };
    let has_records = answer.windows(MARKER.len()).any(|bytes| bytes == MARKER);
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
    Ok(Some(Fetched { error, has_records }))
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

fn classic_body(claim: Claim) -> Vec<u8> {
    // replica, max wait, min bytes, max bytes, isolation, session, epoch, one topic with one partition, nothing forgotten
    let partition = Bytes::new().i32(0).i32(-1).i64(0).i64(-1).i32(1 << 20);
    Bytes::new()
        .i32(claim.replica)
        .i32(100)
        .i32(1)
        .i32(1 << 20)
        .i8(0)
        .i32(0)
        .i32(-1)
        .i32(1)
        .string(TOPIC)
        .i32(1)
        .raw(&partition.0)
        .i32(0)
        .string("")
        .0
}

fn tagged_body(claim: Claim, topic_id: &[u8; 16]) -> Vec<u8> {
    let partition = Bytes::new()
        .i32(0)
        .i32(-1)
        .i64(0)
        .i32(-1)
        .i64(-1)
        .i32(1 << 20)
        .unsigned_varint(0);
    let replica = Bytes::new()
        .i32(claim.replica)
        .i64(claim.epoch)
        .unsigned_varint(0);
    Bytes::new()
        .i32(100)
        .i32(1)
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
        &Batch::of(&[MARKER]).encode(),
    )?;
    ensure!(answer == Some((0, offset)), "an honest write: {answer:?}");
    Ok(())
}

fn conclude(mut cluster: Cluster) -> Result<()> {
    honest_write(&mut cluster, 1)?;
    cluster.wait_in_sync(DEADLINE)?;
    cluster.conclude(&[TOPIC], DEADLINE)
}

#[test]
fn a_forged_replica_gets_no_records() -> Result<()> {
    let (mut cluster, id) = scene()?;
    let (kafka, replication) = (cluster.node(0).kafka(), cluster.node(0).replication());
    for claim in [classic(CONSUMER), tagged(CONSUMER, -1)] {
        let Some(fetched) = fetch(kafka, claim, &id)? else {
            bail!("a consumer was turned away");
        };
        ensure!(
            fetched.has_records && fetched.error == 0,
            "a consumer: {fetched:?}"
        );
    }
    let status = cluster.node(0).status()?;
    let epoch = status["nodes"]
        .as_array()
        .and_then(|nodes| nodes.iter().find(|node| node["id"] == 1))
        .and_then(|node| node["epoch"].as_i64())
        .with_context(|| format!("no epoch of node 1 in {status}"))?;
    let forged = [
        classic(1),
        classic(77),
        tagged(1, -1),
        tagged(1, 0),
        tagged(1, epoch - 1),
        tagged(1, epoch + 1),
        tagged(1, i64::MAX),
        tagged(77, 0),
        tagged(77, epoch),
        tagged(i32::MAX, epoch),
        tagged(i32::MIN, epoch),
    ];
    // What is right on the replication listener is wrong here, and a consumer has no business there.
    let misplaced = [
        (kafka, tagged(1, epoch)),
        (replication, classic(CONSUMER)),
        (replication, tagged(CONSUMER, -1)),
    ];
    let everywhere = forged
        .iter()
        .flat_map(|&claim| [(kafka, claim), (replication, claim)]);
    for (address, claim) in everywhere.chain(misplaced) {
        let listener = match address == kafka {
            true => "clients'",
            false => "replication",
        };
        let fetched = fetch(address, claim, &id)
            .with_context(|| format!("{claim:?} on the {listener} listener"))?;
        if let Some(fetched) = fetched {
            ensure!(
                !fetched.has_records && fetched.error != 0,
                "{claim:?} on the {listener} listener: {fetched:?}"
            );
        }
    }
    conclude(cluster)
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
    conclude(cluster)
}

#[test]
fn a_topic_id_is_read_as_kafka_writes_it() -> Result<()> {
    ensure!(topic_id("AAAAAAAAAAAAAAAAAAAAAQ")? == 1u128.to_be_bytes());
    ensure!(topic_id("_____________________w")? == [0xff; 16]);
    Ok(())
}
