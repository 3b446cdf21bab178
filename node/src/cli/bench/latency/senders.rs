//! The two ways to send: one record at a time, and at a rate.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use kafka_wire::ProduceRequest;
use tokio::sync::watch;

use super::Run;
use crate::cli::bench::figures::Latencies;
use crate::cli::bench::load::{Share, Text};
use crate::cli::bench::pacer::Pacer;
use crate::client::{
    Codec, Connection, RecordData, encode_batch, now_ms, produce_request, produce_result,
};

/// What is due goes into batches of at most this many bytes.
const OPEN_BATCH_BYTES: usize = 512 << 10;

/// What a sending task measured.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) records: u64,
    pub(super) latencies: Latencies,
}

/// Sends a record when the one before it is acknowledged and, if anyone watches, has arrived.
pub(super) async fn one_at_a_time(
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
pub(super) async fn at_a_rate(
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

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

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
}
