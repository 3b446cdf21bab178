//! `kittiwake bench produce`: as much as the broker takes.
//!
//! Batches are made before the clock starts and sent again and again, one per request, so the client
//! spends next to nothing: figures are the broker's, and not comparable with those of a client that
//! builds its batches while it runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;
use tokio::task::JoinSet;

use super::figures::{Latencies, Percentiles, Throughput, Usage, Watch};
use super::load::{Batches, Share, Target, shares};
use super::{Output, parse_bytes};
use crate::client::{Acks, Codec, Connection, produce_request, produce_result};
use kafka_wire::ProduceRequest;

/// Write as fast as the broker takes it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Bytes of a record's value
    #[arg(short = 's', long, default_value = "1KiB", value_parser = parse_bytes)]
    record_size: u64,
    /// Records to write, rounded up to whole batches
    #[arg(short, long, default_value_t = 1_000_000)]
    count: u64,
    /// Bytes of a batch before compression; a batch holds at least one record
    #[arg(long, default_value = "256KiB", value_parser = parse_bytes)]
    batch_size: u64,
    /// Replicas that must have a record before the broker answers
    #[arg(short, long, value_enum, default_value = "all")]
    acks: Acks,
    /// Compression
    #[arg(short = 'z', long, value_enum, default_value = "none")]
    codec: Codec,
    /// Connections to each leader
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Requests on their way per connection
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
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
    record_bytes: u64,
    records_per_batch: u64,
    acks: Acks,
    codec: Codec,
    connections: usize,
    in_flight: u16,
    /// Of record values, before compression.
    throughput: Throughput,
    /// From sending a request to its answer; none with acks=0.
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledgement: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<Usage>,
}

/// What every connection's task needs.
#[derive(Debug)]
struct Plan {
    topic: String,
    batches: Batches,
    acks: Acks,
    in_flight: usize,
    total: u64,
    next: AtomicU64,
}

impl Plan {
    /// The number of the next batch, while there are any.
    fn take(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.total).then_some(number)
    }
}

/// Runs the bench and prints its figures.
///
/// # Errors
/// The first request that was refused or not answered: a bench that lost records has no figures.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let batches = Batches::new(args.record_size, args.batch_size, args.codec)?;
    let (client, topic) = args.target.create().await?;
    let plan = Arc::new(Plan {
        topic: topic.name.clone(),
        acks: args.acks,
        in_flight: usize::from(args.in_flight),
        total: args.count.div_ceil(batches.records),
        next: AtomicU64::new(0),
        batches,
    });
    let mut connections = Vec::new();
    for share in shares(&topic, usize::from(args.connections), true) {
        connections.push((client.open(share.leader).await?, share));
    }
    let count = connections.len();
    let watch = Watch::start(&args.pid)?;
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (connection, share) in connections {
        tasks.spawn(write(connection, share, Arc::clone(&plan)));
    }
    let mut latencies = Latencies::new()?;
    while let Some(done) = tasks.join_next().await {
        latencies.add(&done??);
    }
    let records = plan.total * plan.batches.records;
    let throughput = Throughput::new(records, records * args.record_size, started.elapsed());
    let report = Report {
        topic: topic.name,
        partitions: topic.partitions.len(),
        record_bytes: args.record_size,
        records_per_batch: plan.batches.records,
        acks: args.acks,
        codec: args.codec,
        connections: count,
        in_flight: args.in_flight,
        acknowledgement: (args.acks != Acks::None).then(|| latencies.summary()),
        broker: watch.map(|watch| watch.finish(&throughput)).transpose()?,
        throughput,
    };
    print(&report, args.output)
}

async fn write(
    mut connection: Connection,
    share: Share,
    plan: Arc<Plan>,
) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::new()?;
    let mut sent: VecDeque<(Instant, i32)> = VecDeque::with_capacity(plan.in_flight);
    let mut turns = share.partitions.iter().copied().cycle();
    let mut more = true;
    while more || !sent.is_empty() {
        while more && sent.len() < plan.in_flight {
            let (Some(number), Some(partition)) = (plan.take(), turns.next()) else {
                more = false;
                break;
            };
            let request = produce_request(
                &plan.topic,
                plan.acks,
                [(partition, plan.batches.get(number))],
            );
            if plan.acks == Acks::None {
                connection.send_unanswered(&request).await?;
            } else {
                sent.push_back((Instant::now(), partition));
                connection.send(&request).await?;
            }
        }
        if let Some((at, partition)) = sent.pop_front() {
            let response = connection.receive::<ProduceRequest>().await?;
            latencies.record(at.elapsed());
            produce_result(&response, partition, &format!("{}-{partition}", plan.topic))?;
        }
    }
    if plan.acks == Acks::None {
        connection.barrier().await?;
    }
    Ok(latencies)
}

fn print(report: &Report, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    println!(
        "produce to {}: {} partitions, {} connections, {} in flight, {} records of {} bytes per batch",
        report.topic,
        report.partitions,
        report.connections,
        report.in_flight,
        report.records_per_batch,
        report.record_bytes
    );
    println!("throughput       {}", report.throughput.line());
    if let Some(latencies) = &report.acknowledgement {
        println!("acknowledgement  {}", latencies.line());
    }
    if let Some(usage) = &report.broker {
        println!("broker           {}", usage.line());
    }
    Ok(())
}
