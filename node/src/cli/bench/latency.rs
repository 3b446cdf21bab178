//! `kittiwake bench latency`: how long a record takes to be acknowledged and, with `--end-to-end`,
//! to arrive at a consumer.
//!
//! Without `--rate` one record is on its way at a time: the round trip of an idle broker. With
//! `--rate` records are due at fixed times whatever the broker does, and each is measured from the
//! time it was *due*: a broker that stalls for a second is charged a second for every record that
//! fell due meanwhile, sent or not (no coordinated omission). What is due together goes in one batch.
//!
//! With `--reader-topic` another consumer reads that topic from its beginning meanwhile, and only
//! records sent while it reads are measured: with the topic's pages dropped from the page cache this
//! is the cold reader that must not disturb anyone, and with `--reader-passes` and pages in the cache
//! it is the control.
//!
//! A record starts with the time it was due, as nanoseconds since the bench began (u64, big-endian),
//! behind a number that tells this run's records from any other (u64): the consumer is in the same
//! process, so it reads the same clock.

mod arrivals;
mod reader;
mod senders;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::arrivals::Arrivals;
use self::reader::{Reader, Reading};
use self::senders::{Sent, at_a_rate, one_at_a_time};
use super::figures::{Latencies, Percentiles, Throughput, Usage, Watch};
use super::load::{BATCH_BYTES_MAX, Share, Target, shares};
use super::{Output, parse_bytes};
use crate::client::{Acks, Client};

/// The run's number and the due time at the start of each value.
const STAMP_BYTES: usize = 16;
/// Measure how long records take.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Bytes of a record's value, at least 16
    #[arg(short = 's', long, default_value = "1KiB", value_parser = parse_bytes)]
    record_size: u64,
    /// Records to measure
    #[arg(short, long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Records to send before measuring starts
    #[arg(long, default_value_t = 500)]
    warmup: u64,
    /// Send so many records per second at fixed times; without it, one at a time
    #[arg(short, long, value_parser = parse_rate)]
    rate: Option<f64>,
    /// Also measure how long records take to arrive at a consumer
    #[arg(short, long)]
    end_to_end: bool,
    /// Replicas that must have a record before the broker answers: 1 or all
    #[arg(short, long, value_enum, default_value = "all")]
    acks: Acks,
    /// With --rate: connections to each leader, which share the rate
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// With --rate: requests on their way per connection
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
    /// Read this topic from its beginning meanwhile, and measure only while it is read
    #[arg(long, value_name = "TOPIC")]
    reader_topic: Option<String>,
    /// Times the reader reads its topic
    #[arg(long, default_value_t = 1, requires = "reader_topic", value_parser = clap::value_parser!(u32).range(1..))]
    reader_passes: u32,
    /// Broker processes on this machine whose CPU time and memory are printed too
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,
    /// How to print the figures
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    /// Nanoseconds are the finest times there are.
    const RATE_MAX: f64 = 1e7;
    let rate = text
        .parse::<f64>()
        .ok()
        .filter(|rate| *rate > 0.0 && *rate <= RATE_MAX);
    rate.ok_or_else(|| format!("expected records per second, above 0 and at most {RATE_MAX}"))
}

#[derive(Debug, Serialize)]
struct Report {
    topic: String,
    partitions: usize,
    record_bytes: u64,
    acks: Acks,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    throughput: Throughput,
    acknowledgement: Percentiles,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_to_end: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reader: Option<Reader>,
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<Usage>,
}

/// What every task of a run shares.
#[derive(Debug)]
struct Run {
    topic: String,
    /// Tells this run's records from others in the topic.
    number: u64,
    began: Instant,
    record_size: usize,
    acks: Acks,
    /// No more records are sent once this is cancelled.
    stop: CancellationToken,
    /// Records before this one in each connection's sequence are not measured.
    warmup: u64,
}

impl Run {
    /// The value of a record that was due at `due`.
    fn value(&self, due: Instant, measured: bool, filler: &Bytes) -> Bytes {
        let mut value = BytesMut::with_capacity(self.record_size);
        // The consumer passes over the records of another run, and of the warm-up.
        value.put_u64(if measured { self.number } else { 0 });
        value.put_u64(
            u64::try_from(due.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX),
        );
        value.extend_from_slice(&filler[STAMP_BYTES..]);
        value.freeze()
    }

    /// When a record of this run was due.
    fn due(&self, value: &[u8]) -> Option<Instant> {
        let (number, rest) = value.split_first_chunk::<8>()?;
        let nanoseconds = rest.first_chunk::<8>()?;
        (u64::from_be_bytes(*number) == self.number)
            .then(|| self.began + Duration::from_nanos(u64::from_be_bytes(*nanoseconds)))
    }
}

/// Runs the bench and prints its figures.
///
/// # Errors
/// The first request that was refused or not answered.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if args.acks == Acks::None {
        bail!("a record with --acks 0 is never acknowledged: there is no latency to measure");
    }
    if !(STAMP_BYTES as u64..=BATCH_BYTES_MAX).contains(&args.record_size) {
        bail!(
            "--record-size must be from {STAMP_BYTES} bytes to {} MiB",
            BATCH_BYTES_MAX >> 20
        );
    }
    let (mut client, topic) = args.target.create().await?;
    let shares = match args.rate {
        Some(_) => shares(&topic, usize::from(args.connections), true),
        // One at a time is one at a time, whatever the number of leaders.
        None => shares(&topic, 1, false).into_iter().take(1).collect(),
    };
    let run = Arc::new(Run {
        topic: topic.name.clone(),
        // Odd, so that it is never the warm-up's zero.
        number: rand::random::<u64>() | 1,
        began: Instant::now(),
        record_size: args.record_size as usize,
        acks: args.acks,
        stop: CancellationToken::new(),
        warmup: args.warmup.div_ceil(shares.len() as u64),
    });
    let mut arrivals = match args.end_to_end {
        true => Some(Arrivals::start(&mut client, &topic, &run).await?),
        false => None,
    };
    let reading = match &args.reader_topic {
        Some(name) => Some(Reading::start(&args, name, &run).await?),
        None => None,
    };
    let watch = Watch::start(&args.pid)?;
    let started = Instant::now();
    let sent = send_all(&args, &client, shares, &run, arrivals.as_ref()).await?;
    let elapsed = started.elapsed();
    let reader = match reading {
        Some(reading) => Some(reading.finish().await?),
        None => None,
    };
    let end_to_end = match &mut arrivals {
        Some(arrivals) => Some(arrivals.finish(sent.latencies.summary().count).await?),
        None => None,
    };
    let throughput = Throughput::new(sent.records, sent.records * args.record_size, elapsed);
    let report = Report {
        topic: topic.name,
        partitions: topic.partitions.len(),
        record_bytes: args.record_size,
        acks: args.acks,
        rate: args.rate,
        acknowledgement: sent.latencies.summary(),
        end_to_end,
        reader,
        broker: watch.map(|watch| watch.finish(&throughput)).transpose()?,
        throughput,
    };
    print(&report, args.output)
}

async fn send_all(
    args: &Args,
    client: &Client,
    shares: Vec<Share>,
    run: &Arc<Run>,
    arrivals: Option<&Arrivals>,
) -> anyhow::Result<Sent> {
    let count = shares.len() as u64;
    let mut tasks = JoinSet::new();
    for share in shares {
        let connection = client.open(share.leader).await?;
        let records = args.count.div_ceil(count) + run.warmup;
        let run = Arc::clone(run);
        match args.rate {
            None => {
                let seen = arrivals.map(|arrivals| arrivals.seen.clone());
                tasks.spawn(one_at_a_time(connection, share, run, records, seen));
            }
            Some(rate) => {
                let interval = Duration::from_secs_f64(count as f64 / rate);
                let in_flight = usize::from(args.in_flight);
                tasks.spawn(at_a_rate(
                    connection, share, run, records, interval, in_flight,
                ));
            }
        }
    }
    let mut all = Sent {
        records: 0,
        latencies: Latencies::new()?,
    };
    while let Some(done) = tasks.join_next().await {
        let sent = done??;
        all.records += sent.records;
        all.latencies.add(&sent.latencies);
    }
    Ok(all)
}

fn print(report: &Report, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    let pace = report.rate.map_or_else(
        || "one at a time".to_owned(),
        |rate| format!("{rate} records/s"),
    );
    println!(
        "latency on {}: {} partitions, records of {} bytes, {pace}",
        report.topic, report.partitions, report.record_bytes
    );
    println!("throughput       {}", report.throughput.line());
    println!("acknowledgement  {}", report.acknowledgement.line());
    if let Some(latencies) = &report.end_to_end {
        println!("end to end       {}", latencies.line());
    }
    if let Some(reader) = &report.reader {
        let state = if reader.finished {
            "read to the end"
        } else {
            "still reading"
        };
        println!(
            "reader of {}     {} ({state})",
            reader.topic,
            reader.throughput.line()
        );
    }
    if let Some(usage) = &report.broker {
        println!("broker           {}", usage.line());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::load::Text;

    pub(super) fn run(record_size: usize) -> Run {
        Run {
            topic: "t".to_owned(),
            number: 7,
            began: Instant::now(),
            record_size,
            acks: Acks::All,
            stop: CancellationToken::new(),
            warmup: 2,
        }
    }

    #[test]
    fn a_record_carries_the_time_it_was_due() {
        let run = run(100);
        let filler = Text::new().take(100);
        let due = run.began + Duration::from_nanos(123_456_789);
        let value = run.value(due, true, &filler);
        assert_eq!((value.len(), run.due(&value)), (100, Some(due)));
        assert_eq!(
            run.due(&run.value(due, false, &filler)),
            None,
            "the warm-up is not measured"
        );
        assert_eq!(run.due(b"another's"), None);
    }

    #[test]
    fn rates_are_checked() {
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        for bad in ["0", "-1", "NaN", "inf", "1e9", "x"] {
            assert!(parse_rate(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
