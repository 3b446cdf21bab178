//! `kittiwake bench consume`: read a topic from its beginning, as fast as the broker sends it.
//!
//! Batches are counted by their headers and not decoded, so that the client spends next to nothing:
//! figures are the broker's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kafka_wire::FetchRequest;
use kafka_wire::fetch_response::PartitionData;
use serde::Serialize;
use tokio::task::JoinSet;

use super::figures::{Latencies, Percentiles, Throughput, Usage, Watch};
use super::load::{Share, Target, shares};
use super::{Output, parse_bytes};
use crate::client::{
    Client, ClientError, Connection, ConsumerConfig, StartOffset, Topic, fetch_request,
};

/// Read a topic from its beginning as fast as the broker sends it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Stop after so many records; without it, at the end the topic has when the run starts
    #[arg(short, long)]
    count: Option<u64>,
    /// Times to read the topic
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    passes: u32,
    /// Connections to each leader, at most one per partition
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Bytes of one answer
    #[arg(long, default_value = "50MiB", value_parser = parse_bytes)]
    fetch_size: u64,
    /// Bytes of one partition in an answer
    #[arg(long, default_value = "1MiB", value_parser = parse_bytes)]
    partition_size: u64,
    /// Check every batch's CRC
    #[arg(long)]
    check_crcs: bool,
    /// Broker processes on this machine whose CPU time and memory are printed too
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,
    /// How to print the figures
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Report {
    topic: String,
    partitions: usize,
    connections: usize,
    passes: u32,
    /// Of batches as they are on the wire.
    throughput: Throughput,
    /// From sending a fetch to its whole answer.
    fetch: Percentiles,
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<Usage>,
}

/// How much has been read, by all connections, and whether that is enough.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) records: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) stop: AtomicBool,
}

/// A topic to be read from the beginning to the end it had when the plan was made.
#[derive(Clone, Debug)]
pub(super) struct ReadPlan {
    pub(super) topic: String,
    starts: BTreeMap<i32, i64>,
    ends: BTreeMap<i32, i64>,
    fetch: ConsumerConfig,
    check_crcs: bool,
    records_max: u64,
}

impl ReadPlan {
    /// Asks for the topic's beginning and end.
    pub(super) async fn new(
        client: &mut Client,
        topic: &Topic,
        fetch: ConsumerConfig,
    ) -> anyhow::Result<Self> {
        let partitions: Vec<i32> = topic
            .partitions
            .iter()
            .map(|known| known.partition)
            .collect();
        Ok(Self {
            topic: topic.name.clone(),
            starts: client
                .start_offsets(topic, &partitions, StartOffset::Beginning)
                .await?,
            ends: client.end_offsets(topic, &partitions).await?,
            fetch,
            check_crcs: false,
            records_max: u64::MAX,
        })
    }
}

/// Runs the bench and prints its figures.
///
/// # Errors
/// A topic that is missing or empty, a refused fetch, damaged batches.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut client = args.target.connect().await?;
    let topic = client.topic(&args.target.topic, false).await?;
    /// What a connection takes in one answer, less room for a batch that comes whole all the same.
    const FETCH_BYTES_MAX: i32 = 64 << 20;
    let bytes = |size: u64, name: &str| {
        let size = i32::try_from(size)
            .ok()
            .filter(|size| (1..=FETCH_BYTES_MAX).contains(size));
        size.with_context(|| {
            format!(
                "--{name} must be from 1 byte to {} MiB",
                FETCH_BYTES_MAX >> 20
            )
        })
    };
    let fetch = ConsumerConfig {
        bytes_max: bytes(args.fetch_size, "fetch-size")?,
        partition_bytes_max: bytes(args.partition_size, "partition-size")?,
        ..ConsumerConfig::default()
    };
    let mut plan = ReadPlan::new(&mut client, &topic, fetch).await?;
    plan.check_crcs = args.check_crcs;
    plan.records_max = args.count.unwrap_or(u64::MAX);
    if plan.starts == plan.ends {
        bail!(
            "topic {} is empty: write to it first, for example with bench produce",
            topic.name
        );
    }
    let plan = Arc::new(plan);
    let mut connections = Vec::new();
    for share in shares(&topic, usize::from(args.connections), false) {
        connections.push((client.open(share.leader).await?, share));
    }
    let count = connections.len();
    let progress = Arc::new(Progress::default());
    let watch = Watch::start(&args.pid)?;
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (mut connection, share) in connections {
        let (plan, progress) = (Arc::clone(&plan), Arc::clone(&progress));
        tasks.spawn(async move {
            let mut latencies = Latencies::new()?;
            for _ in 0..args.passes {
                read(&mut connection, &share, &plan, &progress, &mut latencies).await?;
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Latencies::new()?;
    while let Some(done) = tasks.join_next().await {
        latencies.add(&done??);
    }
    let (records, bytes) = (
        progress.records.load(Ordering::Relaxed),
        progress.bytes.load(Ordering::Relaxed),
    );
    let throughput = Throughput::new(records, bytes, started.elapsed());
    let report = Report {
        topic: topic.name,
        partitions: topic.partitions.len(),
        connections: count,
        passes: args.passes,
        fetch: latencies.summary(),
        broker: watch.map(|watch| watch.finish(&throughput)).transpose()?,
        throughput,
    };
    print(&report, args.output)
}

/// Reads a share of the topic once, from its beginning to its end.
pub(super) async fn read(
    connection: &mut Connection,
    share: &Share,
    plan: &ReadPlan,
    progress: &Progress,
    latencies: &mut Latencies,
) -> anyhow::Result<()> {
    /// A broker that answers nothing for this long, though it said there is more, will not.
    const STALL_MAX: Duration = Duration::from_secs(60);
    let of = |offsets: &BTreeMap<i32, i64>, partition: &i32| {
        offsets.get(partition).copied().unwrap_or(0)
    };
    let mut wanted: Vec<(i32, i64)> = share
        .partitions
        .iter()
        .map(|p| (*p, of(&plan.starts, p)))
        .collect();
    let mut moved = Instant::now();
    loop {
        wanted.retain(|(partition, offset)| *offset < of(&plan.ends, partition));
        if wanted.is_empty() || progress.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Whoever was served first goes to the end of the line.
        wanted.rotate_left(1);
        let request = fetch_request(&plan.topic, &wanted, &plan.fetch);
        let sent = Instant::now();
        connection.send(&request).await?;
        let response = connection.receive::<FetchRequest>().await?;
        latencies.record(sent.elapsed());
        if response.error_code != 0 {
            return Err(ClientError::refused(plan.topic.clone(), response.error_code, None).into());
        }
        for data in response
            .responses
            .iter()
            .flat_map(|topic| &topic.partitions)
        {
            let Some((_, offset)) = wanted
                .iter_mut()
                .find(|(partition, _)| *partition == data.partition_index)
            else {
                continue;
            };
            let counted = count(&plan.topic, data, *offset, plan.check_crcs)?;
            if counted.next > *offset {
                moved = Instant::now();
            }
            *offset = counted.next;
            let records = progress
                .records
                .fetch_add(counted.records, Ordering::Relaxed)
                + counted.records;
            progress.bytes.fetch_add(counted.bytes, Ordering::Relaxed);
            if records >= plan.records_max {
                progress.stop.store(true, Ordering::Relaxed);
            }
        }
        if moved.elapsed() >= STALL_MAX {
            bail!(
                "{} sends nothing of {}, though its end is not reached",
                connection.address(),
                plan.topic
            );
        }
    }
}

/// What the whole batches of an answer hold.
#[derive(Debug, Eq, PartialEq)]
struct Counted {
    records: u64,
    bytes: u64,
    next: i64,
}

/// Counts by the batch header: base offset i64 | length i32 | leader epoch i32 | magic i8 | CRC u32 |
/// attributes i16 | last offset delta i32 | 36 bytes to the record count | record count i32.
fn count(
    topic: &str,
    data: &PartitionData,
    position: i64,
    check_crcs: bool,
) -> anyhow::Result<Counted> {
    const LENGTH_AT: usize = 8;
    const LENGTH_END: usize = 12;
    const CRC_AT: usize = 17;
    const CRC_END: usize = 21;
    const LAST_OFFSET_DELTA_AT: usize = 23;
    const RECORD_COUNT_AT: usize = 57;
    const HEADER_END: usize = 61;
    let subject = || format!("{topic}-{}", data.partition_index);
    if data.error_code != 0 {
        return Err(ClientError::refused(subject(), data.error_code, None).into());
    }
    let mut counted = Counted {
        records: 0,
        bytes: 0,
        next: position,
    };
    let mut left = data.records.as_deref().unwrap_or_default();
    while let Some(header) = left.first_chunk::<HEADER_END>() {
        let i32_at = |at: usize| {
            i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let base_offset = header
            .first_chunk::<8>()
            .map_or(0, |bytes| i64::from_be_bytes(*bytes));
        let Some(size) = usize::try_from(i32_at(LENGTH_AT))
            .ok()
            .map(|length| LENGTH_END + length)
        else {
            bail!(
                "{}: a batch at offset {base_offset} has a negative length",
                subject()
            );
        };
        if size < HEADER_END {
            bail!(
                "{}: a batch at offset {base_offset} is shorter than its header",
                subject()
            );
        }
        if left.len() < size {
            break;
        }
        if check_crcs && crc32c::crc32c(&left[CRC_END..size]) != i32_at(CRC_AT) as u32 {
            bail!(
                "{}: the batch at offset {base_offset} is damaged (CRC)",
                subject()
            );
        }
        counted.records += u64::try_from(i32_at(RECORD_COUNT_AT)).unwrap_or(0);
        counted.bytes += size as u64;
        let last = base_offset.saturating_add(i64::from(i32_at(LAST_OFFSET_DELTA_AT)));
        counted.next = counted.next.max(last.saturating_add(1));
        left = &left[size..];
    }
    Ok(counted)
}

fn print(report: &Report, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    println!(
        "consume from {}: {} partitions, {} connections, {} passes",
        report.topic, report.partitions, report.connections, report.passes
    );
    println!("throughput  {}", report.throughput.line());
    println!("fetch       {}", report.fetch.line());
    if let Some(usage) = &report.broker {
        println!("broker      {}", usage.line());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Codec, RecordData, encode_batch};
    use bytes::Bytes;

    fn fetched(cut: usize, flip: Option<usize>) -> PartitionData {
        let batch = encode_batch(&vec![RecordData::default(); 7], Codec::Gzip).unwrap();
        let mut bytes = [&batch[..], &batch[..]].concat();
        bytes[batch.len()..batch.len() + 8].copy_from_slice(&7_i64.to_be_bytes());
        if let Some(at) = flip {
            bytes[at] ^= 1;
        }
        bytes.truncate(bytes.len() - cut);
        let mut data = PartitionData::default();
        data.records = Some(Bytes::from(bytes));
        data
    }

    #[test]
    fn whole_batches_are_counted_by_their_headers() {
        let counted = count("t", &fetched(0, None), 3, true).unwrap();
        assert_eq!((counted.records, counted.next), (14, 14));
        let cut = count("t", &fetched(1, None), 3, true).unwrap();
        assert_eq!(
            (cut.records, cut.next, cut.bytes),
            (7, 7, counted.bytes / 2)
        );
        assert_eq!(
            count("t", &PartitionData::default(), 5, true).unwrap().next,
            5
        );
    }

    #[test]
    fn damage_is_found_when_asked_for_and_lengths_that_lie_always() {
        assert!(count("t", &fetched(0, Some(70)), 0, true).is_err());
        assert!(count("t", &fetched(0, Some(70)), 0, false).is_ok());
        let mut short = fetched(0, None);
        let mut bytes = short.records.take().unwrap().to_vec();
        bytes[8..12].copy_from_slice(&5_i32.to_be_bytes());
        short.records = Some(Bytes::from(bytes));
        assert!(
            count("t", &short, 0, false).is_err(),
            "a length below the header would never end"
        );
    }
}
