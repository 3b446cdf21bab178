//! The consumers that see the records of a run arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use kafka_wire::FetchRequest;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Run;
use crate::cli::bench::figures::{Latencies, Percentiles};
use crate::cli::bench::load::shares;
use crate::client::{
    Client, ClientError, Connection, ConsumerConfig, StartOffset, Topic, fetch_request,
    partition_records,
};

/// One consumer per leader, from the end of the topic on.
#[derive(Debug)]
pub(super) struct Arrivals {
    tasks: JoinSet<anyhow::Result<Latencies>>,
    /// How many measured records have arrived.
    pub(super) seen: watch::Receiver<u64>,
    ended: CancellationToken,
}

impl Arrivals {
    /// Starts reading every partition at its end.
    pub(super) async fn start(
        client: &mut Client,
        topic: &Topic,
        run: &Arc<Run>,
    ) -> anyhow::Result<Self> {
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
    pub(super) async fn finish(&mut self, expected: u64) -> anyhow::Result<Percentiles> {
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
