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

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_wire::{FetchRequest, ProduceRequest};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::consume::{Progress, ReadPlan, read};
use super::figures::{Latencies, Percentiles, Throughput, Usage, Watch};
use super::load::{BATCH_BYTES_MAX, Share, Target, Text, shares};
use super::pacer::Pacer;
use super::{Output, parse_bytes};
use crate::client::{
    Acks, Client, ClientError, Codec, Connection, ConsumerConfig, RecordData, StartOffset, Topic,
    encode_batch, fetch_request, now_ms, partition_records, produce_request, produce_result,
};

/// The run's number and the due time at the start of each value.
const STAMP_BYTES: usize = 16;
/// What is due goes into batches of at most this many bytes.
const OPEN_BATCH_BYTES: usize = 512 << 10;

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

/// What the other consumer read while records were measured.
#[derive(Debug, Serialize)]
struct Reader {
    topic: String,
    passes: u32,
    /// False when measuring ended before reading did.
    finished: bool,
    throughput: Throughput,
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

/// What a sending task measured.
#[derive(Debug)]
struct Sent {
    records: u64,
    latencies: Latencies,
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

/// Sends a record when the one before it is acknowledged and, if anyone watches, has arrived.
async fn one_at_a_time(
    mut connection: Connection,
    share: Share,
    run: Arc<Run>,
    records: u64,
    mut seen: Option<watch::Receiver<u64>>,
) -> anyhow::Result<Sent> {
    let mut latencies = Latencies::new()?;
    let filler = Text::new().take(run.record_size);
    let mut measured = 0;
    let mut sent = 0;
    for (number, &partition) in (0..records).zip(share.partitions.iter().cycle()) {
        if run.stop.is_cancelled() {
            break;
        }
        let is_measured = number >= run.warmup;
        let due = Instant::now();
        let record = RecordData {
            value: Some(run.value(due, is_measured, &filler)),
            timestamp_ms: now_ms(),
            ..RecordData::default()
        };
        let batch = encode_batch(&[record], Codec::None)?;
        let request = produce_request(&run.topic, run.acks, [(partition, batch)]);
        let response = connection.call(&request).await?;
        let took = due.elapsed();
        produce_result(&response, partition, &format!("{}-{partition}", run.topic))?;
        sent += 1;
        if is_measured {
            latencies.record(took);
            measured += 1;
            if let Some(seen) = &mut seen {
                let arrived = seen.wait_for(|seen| *seen >= measured).await;
                arrived.context("the consumer stopped")?;
            }
        }
    }
    Ok(Sent {
        records: sent,
        latencies,
    })
}

/// Sends each record when it is due, or as soon after as a request may go out.
async fn at_a_rate(
    mut connection: Connection,
    share: Share,
    run: Arc<Run>,
    records: u64,
    interval: Duration,
    in_flight: usize,
) -> anyhow::Result<Sent> {
    let mut latencies = Latencies::new()?;
    let filler = Text::new().take(run.record_size);
    let mut pacer = Pacer::new()?;
    let mut turns = share.partitions.iter().copied().cycle();
    // Per request: its partition and the numbers of its records.
    let mut waiting: VecDeque<(i32, std::ops::Range<u64>)> = VecDeque::with_capacity(in_flight);
    let started = Instant::now();
    let due = |number: u64| {
        started + Duration::from_nanos((interval.as_nanos() as f64 * number as f64) as u64)
    };
    let mut next = 0;
    loop {
        let more = next < records && !run.stop.is_cancelled();
        if !more && waiting.is_empty() {
            break;
        }
        let may_send = more && waiting.len() < in_flight;
        if may_send && due(next) <= Instant::now() {
            let Some(partition) = turns.next() else { break };
            let (batch, numbers) = due_batch(&run, next..records, due, &filler)?;
            next = numbers.end;
            waiting.push_back((partition, numbers));
            connection
                .send(&produce_request(&run.topic, run.acks, [(partition, batch)]))
                .await?;
            continue;
        }
        tokio::select! {
            response = connection.receive::<ProduceRequest>(), if !waiting.is_empty() => {
                let response = response?;
                let now = Instant::now();
                let Some((partition, numbers)) = waiting.pop_front() else { break };
                produce_result(&response, partition, &format!("{}-{partition}", run.topic))?;
                for number in numbers.start.max(run.warmup)..numbers.end {
                    latencies.record(now.saturating_duration_since(due(number)));
                }
            }
            waited = pacer.until(due(next)), if may_send => waited.context("the timer")?,
        }
    }
    Ok(Sent {
        records: next,
        latencies,
    })
}

/// One batch of the records among `numbers` that are due, and which they are: at least the first.
fn due_batch(
    run: &Run,
    numbers: std::ops::Range<u64>,
    due: impl Fn(u64) -> Instant,
    filler: &Bytes,
) -> anyhow::Result<(Bytes, std::ops::Range<u64>)> {
    let now = Instant::now();
    let mut records = Vec::new();
    let mut bytes = 0;
    for number in numbers.clone() {
        let at = due(number);
        if !records.is_empty() && (at > now || bytes + run.record_size > OPEN_BATCH_BYTES) {
            break;
        }
        bytes += run.record_size;
        records.push(RecordData {
            value: Some(run.value(at, number >= run.warmup, filler)),
            timestamp_ms: now_ms(),
            ..RecordData::default()
        });
    }
    let taken = numbers.start..numbers.start + records.len() as u64;
    Ok((encode_batch(&records, Codec::None)?, taken))
}

/// The consumers that see this run's records arrive.
#[derive(Debug)]
struct Arrivals {
    tasks: JoinSet<anyhow::Result<Latencies>>,
    seen: watch::Receiver<u64>,
    ended: CancellationToken,
}

impl Arrivals {
    /// Starts reading every partition at its end.
    async fn start(client: &mut Client, topic: &Topic, run: &Arc<Run>) -> anyhow::Result<Self> {
        let partitions: Vec<i32> = topic
            .partitions
            .iter()
            .map(|known| known.partition)
            .collect();
        let starts = client
            .start_offsets(topic, &partitions, StartOffset::End)
            .await?;
        let (seen_by_all, seen) = watch::channel(0);
        let seen_by_all = Arc::new(seen_by_all);
        let ended = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for share in shares(topic, 1, false) {
            let connection = client.open(share.leader).await?;
            let offset = |partition| starts.get(partition).copied().unwrap_or(0);
            let wanted = share
                .partitions
                .iter()
                .map(|partition| (*partition, offset(partition)))
                .collect();
            let ended = ended.clone();
            let (run, seen) = (Arc::clone(run), Arc::clone(&seen_by_all));
            tasks.spawn(async move {
                let mut latencies = Latencies::new()?;
                tokio::select! {
                    () = ended.cancelled() => {}
                    failed = watch_arrivals(connection, wanted, &run, &seen, &mut latencies) => failed?,
                }
                Ok(latencies)
            });
        }
        Ok(Self { tasks, seen, ended })
    }

    /// The latencies of `expected` records, once they have all arrived.
    async fn finish(&mut self, expected: u64) -> anyhow::Result<Percentiles> {
        /// Acknowledged records are visible to consumers at once, or something is wrong.
        const ARRIVAL_MAX: Duration = Duration::from_secs(30);
        let arrived = self.seen.wait_for(|seen| *seen >= expected);
        if tokio::time::timeout(ARRIVAL_MAX, arrived).await.is_err() {
            let seen = *self.seen.borrow();
            bail!("{expected} records were acknowledged, but only {seen} arrived at the consumer");
        }
        self.ended.cancel();
        let mut all = Latencies::new()?;
        while let Some(done) = self.tasks.join_next().await {
            all.add(&done??);
        }
        Ok(all.summary())
    }
}

async fn watch_arrivals(
    mut connection: Connection,
    mut wanted: Vec<(i32, i64)>,
    run: &Run,
    seen: &watch::Sender<u64>,
    latencies: &mut Latencies,
) -> anyhow::Result<()> {
    let config = ConsumerConfig::default();
    loop {
        wanted.rotate_left(1);
        let request = fetch_request(&run.topic, &wanted, &config);
        connection.send(&request).await?;
        let response = connection.receive::<FetchRequest>().await?;
        let now = Instant::now();
        if response.error_code != 0 {
            return Err(ClientError::refused(run.topic.clone(), response.error_code, None).into());
        }
        let mut arrived = 0;
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
            let (records, next) = partition_records(&run.topic, data, *offset)?;
            *offset = next;
            for due in records
                .iter()
                .filter_map(|record| run.due(record.value.as_deref()?))
            {
                latencies.record(now.saturating_duration_since(due));
                arrived += 1;
            }
        }
        if arrived > 0 {
            seen.send_modify(|seen| *seen += arrived);
        }
    }
}

/// The other consumer.
#[derive(Debug)]
struct Reading {
    topic: String,
    passes: u32,
    progress: Arc<Progress>,
    started: Instant,
    /// Nanoseconds from the start to the end of reading; zero until then.
    took_ns: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Reading {
    async fn start(args: &Args, name: &str, run: &Arc<Run>) -> anyhow::Result<Self> {
        let mut client = args.target.connect().await?;
        let topic = client.topic(name, false).await?;
        let plan = Arc::new(ReadPlan::new(&mut client, &topic, ConsumerConfig::default()).await?);
        let progress = Arc::new(Progress::default());
        let mut tasks = JoinSet::new();
        let passes = args.reader_passes;
        for share in shares(&topic, 1, false) {
            let mut connection = client.open(share.leader).await?;
            let (plan, progress) = (Arc::clone(&plan), Arc::clone(&progress));
            tasks.spawn(async move {
                let mut latencies = Latencies::new()?;
                for _ in 0..passes {
                    read(&mut connection, &share, &plan, &progress, &mut latencies).await?;
                }
                anyhow::Ok(())
            });
        }
        let started = Instant::now();
        let took_ns = Arc::new(AtomicU64::new(0));
        let (took, stop) = (Arc::clone(&took_ns), run.stop.clone());
        let task = tokio::spawn(async move {
            // Measuring ends with reading, also when reading failed.
            let _ending = stop.drop_guard();
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            took.store(
                u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX),
                Ordering::Relaxed,
            );
            Ok(())
        });
        Ok(Self {
            topic: topic.name,
            passes,
            progress,
            started,
            took_ns,
            task,
        })
    }

    /// Ends reading if it goes on, and says how much was read.
    async fn finish(self) -> anyhow::Result<Reader> {
        let took = match self.took_ns.load(Ordering::Relaxed) {
            0 => self.started.elapsed(),
            nanoseconds => Duration::from_nanos(nanoseconds),
        };
        let finished = self.took_ns.load(Ordering::Relaxed) != 0;
        let records = self.progress.records.load(Ordering::Relaxed);
        let bytes = self.progress.bytes.load(Ordering::Relaxed);
        self.progress.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(Reader {
            topic: self.topic,
            passes: self.passes,
            finished,
            throughput: Throughput::new(records, bytes, took),
        })
    }
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

    fn run(record_size: usize) -> Run {
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
    fn what_is_due_goes_in_one_batch_and_nothing_early() {
        let run = run(1_000);
        let filler = Text::new().take(1_000);
        let past = Instant::now();
        let future = past + Duration::from_secs(3_600);
        let due = |number: u64| if number < 5 { past } else { future };
        let (_, numbers) = due_batch(&run, 0..10, due, &filler).unwrap();
        assert_eq!(numbers, 0..5);
        let (batch, numbers) = due_batch(&run, 3..1_000_000, |_| past, &filler).unwrap();
        assert_eq!(
            numbers.end - numbers.start,
            (OPEN_BATCH_BYTES / 1_000) as u64,
            "bounded whatever has piled up"
        );
        assert!(batch.len() < 2 * OPEN_BATCH_BYTES);
    }

    #[test]
    fn rates_are_checked() {
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        for bad in ["0", "-1", "NaN", "inf", "1e9", "x"] {
            assert!(parse_rate(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
