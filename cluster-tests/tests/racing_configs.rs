//! Of two requests that edit the same list at the same time (IncrementalAlterConfigs, KIP-339), each finds what the other
//! made of it: none is lost.

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::trials::DEADLINE;
use cluster_tests::wire::{Bytes, Connection, Fields};
use cluster_tests::workload::create_topic;
use cluster_tests::{Cluster, wait};

const INCREMENTAL_ALTER_CONFIGS: i16 = 44;
const DESCRIBE_CONFIGS: i16 = 32;
const TOPIC_RESOURCE: i8 = 2;
const SET: i8 = 0;
const SUBTRACT: i8 = 3;
const INVALID_CONFIG: i16 = 40;

const TOPIC: &str = "raced-for";
const KEY: &str = "cleanup.policy";
const BOTH: &str = "compact,delete";
const ROUNDS: usize = 50;

/// IncrementalAlterConfigs v0 of one key, sent and not waited for.
fn ask(connection: &mut Connection, operation: i8, value: &str) -> Result<()> {
    let body = Bytes::new()
        .i32(1)
        .i8(TOPIC_RESOURCE)
        .string(TOPIC)
        .i32(1)
        .string(KEY)
        .i8(operation)
        .string(value)
        .i8(0);
    connection.ask(INCREMENTAL_ALTER_CONFIGS, 0, &body.0)
}

/// The error code of its answer: throttle i32 | responses [error i16 | message string | type i8 | name string].
fn answered(connection: &mut Connection) -> Result<i16> {
    let answer = connection.response()?.context("not answered")?;
    let mut fields = Fields::of(&answer);
    fields.i32()?;
    fields.i32()?;
    fields.i16()
}

/// DescribeConfigs v1 of the key: throttle i32 | results [error i16 | message string | type i8 | name string |
/// configs [name string | value string | …]].
fn value(connection: &mut Connection) -> Result<String> {
    let body = Bytes::new()
        .i32(1)
        .i8(TOPIC_RESOURCE)
        .string(TOPIC)
        .i32(1)
        .string(KEY)
        .i8(0);
    let answer = connection.call(DESCRIBE_CONFIGS, 1, &body.0)?;
    let answer = answer.context("not answered")?;
    let mut fields = Fields::of(&answer);
    fields.i32()?;
    fields.i32()?;
    let error = fields.i16()?;
    ensure!(error == 0, "DescribeConfigs: error {error}");
    fields.string()?;
    fields.raw(1)?;
    fields.string()?;
    fields.i32()?;
    fields.string()?;
    fields.string()?.context("a value")
}

/// Each of two clients takes another word out of a list of two. Whoever comes second would leave none, and is refused; if
/// both looked at the same list, both would be told that it was done, and one word would be back.
#[test]
fn two_who_edit_one_list() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    create_topic(&cluster.bootstrap(), TOPIC, 1, &[])?;
    let mut first = Connection::open(cluster.node(0).kafka())?;
    let mut second = Connection::open(cluster.node(1).kafka())?;
    for round in 0..ROUNDS {
        ask(&mut first, SET, BOTH)?;
        ensure!(answered(&mut first)? == 0);
        // The other node must have it too: an editor may start from what it has just been told.
        wait::until("both nodes to know", DEADLINE, || {
            (value(&mut second).ok()? == BOTH).then_some(())
        })?;
        ask(&mut first, SUBTRACT, "delete")?;
        ask(&mut second, SUBTRACT, "compact")?;
        let answers = (answered(&mut first)?, answered(&mut second)?);
        let left = match answers {
            (0, INVALID_CONFIG) => "compact",
            (INVALID_CONFIG, 0) => "delete",
            other => bail!("round {round}: answers {other:?}"),
        };
        for connection in [&mut first, &mut second] {
            wait::until("the word that is left", DEADLINE, || {
                (value(connection).ok()? == left).then_some(())
            })?;
        }
    }
    cluster.terminate_all()?;
    cluster.check_logs()
}
