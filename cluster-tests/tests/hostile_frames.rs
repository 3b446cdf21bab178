//! Frames that lie. What cannot be decoded closes its connection, without an answer; a batch that can be told from the
//! rest of its request gets Kafka's error. The node neither dies nor grows with what a frame claims, and another client, on
//! a connection of its own, is served after each.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use cluster_tests::Cluster;
use cluster_tests::wire::{Batch, Bytes, Connection, produce_body, request};
use cluster_tests::workload::create_topic;

const TOPIC: &str = "hostile";
/// Claims below go to 2 GiB; what is honestly held meanwhile is far below this.
const GROWTH_MAX: u64 = 96 << 20;

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const LIST_OFFSETS: i16 = 2;
const METADATA: i16 = 3;
const OFFSET_COMMIT: i16 = 8;
const OFFSET_FETCH: i16 = 9;
const JOIN_GROUP: i16 = 11;
const API_VERSIONS: i16 = 18;
const CREATE_TOPICS: i16 = 19;

const CORRUPT_MESSAGE: i16 = 2;
const MESSAGE_TOO_LARGE: i16 = 10;
const UNSUPPORTED_VERSION: i16 = 35;
const UNSUPPORTED_FOR_MESSAGE_FORMAT: i16 = 43;
const UNSUPPORTED_COMPRESSION_TYPE: i16 = 76;
const INVALID_RECORD: i16 = 87;

/// A node under attack, and an honest client beside it.
struct Scene {
    cluster: Cluster,
    honest: Connection,
    written: i64,
    resident_before: u64,
}

impl Scene {
    fn new() -> Result<Self> {
        let mut cluster = Cluster::start(1)?;
        create_topic(&cluster.bootstrap(), TOPIC, 1, &[])?;
        let honest = Connection::open(cluster.node(0).kafka())?;
        let mut scene = Self {
            cluster,
            honest,
            written: 0,
            resident_before: 0,
        };
        scene.honest_client_goes_on()?;
        scene.resident_before = scene.cluster.node(0).resident_bytes()?;
        Ok(scene)
    }

    fn connect(&mut self) -> Result<Connection> {
        Connection::open(self.cluster.node(0).kafka())
    }

    /// The honest client's connection is the one from the beginning, and nothing but its records is in the log.
    fn honest_client_goes_on(&mut self) -> Result<()> {
        let answer = self
            .honest
            .produce(TOPIC, 0, &Batch::of(&[b"honest"]).encode())?;
        ensure!(
            answer == Some((0, self.written)),
            "the honest client got {answer:?} instead of offset {}",
            self.written
        );
        self.written += 1;
        Ok(())
    }

    /// What is sent on a connection of its own closes it, unanswered, and nobody else notices.
    fn closes(&mut self, what: &str, bytes: &[u8]) -> Result<()> {
        let mut connection = self.connect()?;
        connection.send(bytes)?;
        connection.finish_sending()?;
        let answer = connection.answer().with_context(|| what.to_owned())?;
        ensure!(answer.is_none(), "{what} was answered: {answer:?}");
        self.honest_client_goes_on()
            .with_context(|| format!("after {what}"))
    }

    fn end(mut self) -> Result<()> {
        self.honest_client_goes_on()?;
        let resident = self.cluster.node(0).resident_bytes()?;
        let grown = resident.saturating_sub(self.resident_before);
        ensure!(
            grown < GROWTH_MAX,
            "resident memory grew by {} MiB",
            grown >> 20
        );
        self.cluster.node(0).terminate()?;
        self.cluster.check_logs()
    }
}

#[test]
fn frame_lengths_that_lie() -> Result<()> {
    let mut scene = Scene::new()?;
    for length in [0, -1, i32::MIN, i32::MAX, 1, 7] {
        let bytes = Bytes::new().i32(length).raw(&[0; 7]);
        scene.closes(&format!("a frame of length {length}"), &bytes.0)?;
    }
    // Many connections that each announce the largest frame allowed and send none of it.
    let waiting: Vec<Connection> = (0..64)
        .map(|_| {
            let mut connection = scene.connect()?;
            connection.send(&(100_i32 << 20).to_be_bytes())?;
            Ok(connection)
        })
        .collect::<Result<_>>()?;
    scene.honest_client_goes_on()?;
    drop(waiting);
    scene.end()
}

/// Requests other than Produce are admitted by what they may decode to, 64 times their bytes: with the default request
/// memory of 256 MiB they may have 4 MiB. What is larger is refused by its size, before it arrives.
#[test]
fn requests_larger_than_their_share_of_memory() -> Result<()> {
    const LEN_MAX: usize = 4 << 20;
    /// The longest metadata that a string of this version can hold.
    const METADATA_LEN: usize = i16::MAX as usize;
    let mut scene = Scene::new()?;
    // OffsetCommit v2: group, generation, member, retention | topics [name | partitions [index, offset, metadata]].
    let partitions = LEN_MAX / (METADATA_LEN + 14) - 1;
    let metadata = "m".repeat(METADATA_LEN);
    let mut commit = Bytes::new()
        .string("g")
        .i32(-1)
        .string("")
        .i64(-1)
        .i32(1)
        .string(TOPIC)
        .i32(partitions as i32);
    for partition in 0..partitions {
        commit = commit.i32(partition as i32).i64(0).string(&metadata);
    }
    ensure!((LEN_MAX - 2 * METADATA_LEN..LEN_MAX).contains(&commit.0.len()));
    let answer = scene.connect()?.call(OFFSET_COMMIT, 2, &commit.0)?;
    ensure!(
        answer.is_some(),
        "{} bytes were not answered",
        commit.0.len()
    );

    let larger = Bytes::new().i32(LEN_MAX as i32 + 1).i16(OFFSET_COMMIT);
    scene.closes("a larger OffsetCommit", &larger.0)?;
    // Produce may be larger; its records are not decoded.
    let mut produce = scene.connect()?;
    produce.send(&Bytes::new().i32(LEN_MAX as i32 + 1).i16(PRODUCE).0)?;
    scene.honest_client_goes_on()?;
    ensure!(produce.is_silent()?, "a large Produce is waited for");
    scene.end()
}

#[test]
fn arrays_that_claim_two_thousand_million_elements() -> Result<()> {
    let mut scene = Scene::new()?;
    let huge = [i32::MAX, i32::MAX - 1, 1 << 24, -2, i32::MIN];
    for claim in huge {
        let array = Bytes::new().i32(claim);
        let group = Bytes::new().string("g");
        let bodies = [
            ("Metadata", METADATA, 4, array.clone()),
            (
                "Produce",
                PRODUCE,
                7,
                Bytes::new().i16(-1).i16(-1).i32(1000).i32(claim),
            ),
            (
                "Produce partitions",
                PRODUCE,
                7,
                Bytes::new()
                    .i16(-1)
                    .i16(-1)
                    .i32(1000)
                    .i32(1)
                    .string(TOPIC)
                    .i32(claim),
            ),
            (
                "Produce records",
                PRODUCE,
                7,
                Bytes::new()
                    .i16(-1)
                    .i16(-1)
                    .i32(1000)
                    .i32(1)
                    .string(TOPIC)
                    .i32(1)
                    .i32(0)
                    .i32(claim),
            ),
            (
                "Fetch",
                FETCH,
                4,
                Bytes::new()
                    .i32(-1)
                    .i32(0)
                    .i32(1)
                    .i32(1 << 20)
                    .i8(0)
                    .i32(claim),
            ),
            (
                "ListOffsets",
                LIST_OFFSETS,
                1,
                Bytes::new().i32(-1).i32(claim),
            ),
            ("CreateTopics", CREATE_TOPICS, 2, array.clone()),
            ("OffsetFetch", OFFSET_FETCH, 1, group.clone().i32(claim)),
            (
                "OffsetCommit",
                OFFSET_COMMIT,
                2,
                group.i32(-1).string("").i64(-1).i32(claim),
            ),
        ];
        for (what, key, version, body) in bodies {
            let frame = request(key, version, 1, false, &body.0);
            scene.closes(&format!("{what} claiming {claim}"), &frame)?;
        }
    }
    // The flexible versions count in varints.
    let compact = Bytes::new().raw(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    for (key, version) in [(METADATA, 9), (CREATE_TOPICS, 5), (PRODUCE, 9), (FETCH, 12)] {
        let frame = request(key, version, 1, true, &compact.0);
        scene.closes(&format!("key {key} version {version}"), &frame)?;
    }
    scene.end()
}

/// A frame whose body ends after every possible byte, with a length that says so.
#[test]
fn bodies_cut_at_every_byte() -> Result<()> {
    let mut scene = Scene::new()?;
    let produce = produce_body("elsewhere", 0, &Batch::of(&[b"cut"]).encode());
    let fetch = Bytes::new()
        .i32(-1)
        .i32(0)
        .i32(1)
        .i32(1 << 20)
        .i8(0)
        .i32(1)
        .string(TOPIC)
        .i32(1)
        .i32(0)
        .i64(0)
        .i32(1 << 20);
    let join = Bytes::new()
        .string("g")
        .i32(6000)
        .i32(6000)
        .string("")
        .string("consumer")
        .i32(1)
        .string("range")
        .i32(2)
        .raw(&[0, 0]);
    let metadata = Bytes::new()
        .unsigned_varint(2)
        .compact_string(TOPIC)
        .unsigned_varint(0)
        .i8(0)
        .i8(0)
        .i8(0)
        .unsigned_varint(0);
    let versions = Bytes::new()
        .compact_string("client")
        .compact_string("1.0")
        .unsigned_varint(0);
    let bodies = [
        ("Produce v7", PRODUCE, 7, false, produce),
        ("Fetch v4", FETCH, 4, false, fetch.0),
        ("JoinGroup v4", JOIN_GROUP, 4, false, join.0),
        ("Metadata v9", METADATA, 9, true, metadata.0),
        ("ApiVersions v3", API_VERSIONS, 3, true, versions.0),
    ];
    for (what, key, version, flexible, body) in bodies {
        for end in 0..body.len() {
            let cut = request(key, version, 1, flexible, &body[..end]);
            let what = format!("{what} cut at {end} of {}", body.len());
            scene.closes(&what, &cut)?;
        }
        // Nothing but the cut was wrong with it.
        let mut connection = scene.connect()?;
        connection.send(&request(key, version, 1, flexible, &body))?;
        let answer = connection.answer()?;
        ensure!(answer.is_some(), "{what}, whole, was not answered");
    }
    // And a frame whose header is cut.
    let whole = request(METADATA, 4, 1, false, &[]);
    for end in 4..whole.len() {
        let length = Bytes::new().i32((end - 4) as i32);
        let cut = length.raw(&whole[4..end]);
        scene.closes(&format!("a header cut at {end}"), &cut.0)?;
    }
    scene.end()
}

#[test]
fn unknown_keys_and_versions() -> Result<()> {
    let mut scene = Scene::new()?;
    for (key, version) in [
        (-1, 0),
        (i16::MIN, 0),
        (999, 0),
        (i16::MAX, 0),
        (METADATA, 99),
        (METADATA, -1),
        (PRODUCE, 2),
        (FETCH, i16::MAX),
    ] {
        let frame = request(key, version, 1, false, &[0; 64]);
        scene.closes(&format!("key {key} version {version}"), &frame)?;
    }
    // The one exception: ApiVersions answers in its version 0 and names the versions it knows (KIP-35).
    let mut connection = scene.connect()?;
    connection.send(&request(API_VERSIONS, 99, 42, true, &[]))?;
    let answer = connection
        .answer()?
        .context("ApiVersions v99 is answered")?;
    ensure!(
        answer[..4] == 42_i32.to_be_bytes() && answer[4..6] == UNSUPPORTED_VERSION.to_be_bytes(),
        "{answer:?}"
    );
    scene.end()
}

#[test]
fn batches_that_lie() -> Result<()> {
    let mut scene = Scene::new()?;
    let good = || Batch::of(&[b"one", b"two"]);
    let cases = [
        (
            "a bad CRC",
            Batch {
                crc_lie: 1,
                ..good()
            }
            .encode(),
            CORRUPT_MESSAGE,
        ),
        (
            "magic 1",
            Batch { magic: 1, ..good() }.encode(),
            UNSUPPORTED_FOR_MESSAGE_FORMAT,
        ),
        (
            "magic 77",
            Batch {
                magic: 77,
                ..good()
            }
            .encode(),
            UNSUPPORTED_FOR_MESSAGE_FORMAT,
        ),
        (
            "count 3 of 2",
            Batch {
                records_count: 3,
                ..good()
            }
            .encode(),
            INVALID_RECORD,
        ),
        (
            "count 0",
            Batch {
                records_count: 0,
                last_offset_delta: -1,
                ..good()
            }
            .encode(),
            CORRUPT_MESSAGE,
        ),
        (
            "count -1",
            Batch {
                records_count: -1,
                ..good()
            }
            .encode(),
            CORRUPT_MESSAGE,
        ),
        (
            "count 2^31-1",
            Batch {
                records_count: i32::MAX,
                last_offset_delta: i32::MAX - 1,
                ..good()
            }
            .encode(),
            INVALID_RECORD,
        ),
        (
            "last delta 7 of 2",
            Batch {
                last_offset_delta: 7,
                ..good()
            }
            .encode(),
            INVALID_RECORD,
        ),
        (
            "codec 7",
            Batch {
                attributes: 7,
                ..good()
            }
            .encode(),
            UNSUPPORTED_COMPRESSION_TYPE,
        ),
        (
            "a control batch",
            Batch {
                attributes: 0x20,
                ..good()
            }
            .encode(),
            INVALID_RECORD,
        ),
        (
            "a longer length",
            Batch {
                length_lie: 10,
                ..good()
            }
            .encode(),
            INVALID_RECORD,
        ),
        (
            "a shorter length",
            Batch {
                length_lie: -10,
                ..good()
            }
            .encode(),
            INVALID_RECORD,
        ),
        (
            "a negative length",
            Batch {
                length_lie: i32::MIN / 2,
                ..good()
            }
            .encode(),
            CORRUPT_MESSAGE,
        ),
        (
            "a length of 2 GiB",
            Batch {
                length_lie: i32::MAX - 200,
                ..good()
            }
            .encode(),
            INVALID_RECORD,
        ),
        (
            "two batches",
            [good().encode(), good().encode()].concat(),
            INVALID_RECORD,
        ),
        (
            "trailing bytes",
            [good().encode(), vec![0; 5]].concat(),
            INVALID_RECORD,
        ),
        (
            "half a header",
            good().encode()[..30].to_vec(),
            CORRUPT_MESSAGE,
        ),
        ("no batch", Vec::new(), INVALID_RECORD),
        (
            "2 MiB in a topic that takes 1",
            Batch::of(&[&vec![b'x'; 2 << 20]]).encode(),
            MESSAGE_TOO_LARGE,
        ),
    ];
    for (what, records, expected) in cases {
        let mut connection = scene.connect()?;
        let answer = connection
            .produce(TOPIC, 0, &records)
            .with_context(|| what.to_owned())?;
        ensure!(
            matches!(answer, Some((error, -1)) if error == expected),
            "{what}: {answer:?}, expected error {expected}"
        );
        scene.honest_client_goes_on()?;
    }
    scene.end()
}

/// 900 MiB of zeros in about 1 MiB of gzip: stored unread, as Kafka does; refused where keys must be looked at, and never
/// unpacked whole.
#[test]
fn a_decompression_bomb() -> Result<()> {
    const GZIP: i16 = 1;
    const UNPACKED_MIB: usize = 900;
    let mut scene = Scene::new()?;
    let mut gzip = std::process::Command::new("gzip")
        .args(["-9", "-c"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("gzip must be installed")?;
    let mut input = gzip.stdin.take().context("gzip has a standard input")?;
    let feeder = std::thread::spawn(move || {
        let zeros = vec![0; 1 << 20];
        (0..UNPACKED_MIB).try_for_each(|_| input.write_all(&zeros))
    });
    let output = gzip.wait_with_output()?;
    feeder
        .join()
        .map_err(|_| anyhow::anyhow!("the feeder panicked"))??;
    ensure!(
        output.stdout.len() < 1_000_000,
        "the bomb is small enough to be taken"
    );
    let bomb = Batch {
        attributes: GZIP,
        records: output.stdout,
        ..Batch::of(&[b"x"])
    };
    create_topic(&scene.cluster.bootstrap(), "bombed", 1, &[])?;
    create_topic(
        &scene.cluster.bootstrap(),
        "compacted",
        1,
        &[("cleanup.policy", "compact")],
    )?;
    for (topic, expected) in [("bombed", (0, 0)), ("compacted", (INVALID_RECORD, -1))] {
        let answer = scene.connect()?.produce(topic, 0, &bomb.encode())?;
        ensure!(answer == Some(expected), "{topic}: {answer:?}");
        scene.honest_client_goes_on()?;
    }
    scene.end()
}
