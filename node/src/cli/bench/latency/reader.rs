//! The other consumer, which reads a topic from its beginning while records are measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::{Args, Run};
use crate::cli::bench::consume::{Progress, ReadPlan, read};
use crate::cli::bench::figures::{Latencies, Throughput};
use crate::cli::bench::load::shares;
use crate::client::ConsumerConfig;

/// What the other consumer read while records were measured.
#[derive(Debug, Serialize)]
pub(super) struct Reader {
    pub(super) topic: String,
    pub(super) passes: u32,
    /// False when measuring ended before reading did.
    pub(super) finished: bool,
    pub(super) throughput: Throughput,
}

/// Reading that is going on.
#[derive(Debug)]
pub(super) struct Reading {
    topic: String,
    passes: u32,
    progress: Arc<Progress>,
    started: Instant,
    /// Nanoseconds from the start to the end of reading; zero until then.
    took_ns: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Reading {
    pub(super) async fn start(args: &Args, name: &str, run: &Arc<Run>) -> anyhow::Result<Self> {
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
    pub(super) async fn finish(self) -> anyhow::Result<Reader> {
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
