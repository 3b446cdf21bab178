//! What partitions cost that nobody uses: creating them, memory, CPU and replication traffic at rest, and the failover of a
//! node that led a third of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Clients;
use crate::pauses;
use crate::wait;
use crate::workload::{Load, create_topic, create_topic_on};
use crate::{Cluster, Options};

/// Partitions of one topic, and of one CreateTopics request.
const PARTITIONS_PER_TOPIC: usize = 1_000;
/// The topic that is written to while a node dies.
const PROBE: &str = "probe";
/// Ten thousand partitions, three replicas each.
const DEADLINE: Duration = Duration::from_secs(300);
/// Left alone before it is measured at rest.
const SETTLE: Duration = Duration::from_secs(3);

/// What one number of partitions costs.
#[derive(Debug)]
pub struct Report {
    /// Partitions, with three replicas each.
    pub partitions: usize,
    /// Created per second, until every node knew the leader of all.
    pub created_per_second: f64,
    /// Of the largest node.
    pub resident_bytes: u64,
    /// Share of one core at rest, of the busiest node.
    pub idle_cpu: f64,
    /// Fetch requests per second between the nodes at rest, all together.
    pub fetches_per_second: f64,
    /// Bytes per second that the nodes sent at rest, all together.
    pub bytes_per_second: f64,
    /// The longest time without acknowledgements after `kill -9` of a node that led a third of the partitions.
    pub pause: Duration,
    /// From the kill until every partition had a living leader.
    pub all_led: Duration,
}

/// Measures three nodes with each of `counts` partitions at rest for `rest`, and prints a line for each.
pub fn partition_counts(
    counts: &[usize],
    rest: Duration,
    under: Option<PathBuf>,
    binary: Option<PathBuf>,
) -> Result<Vec<Report>> {
    counts
        .iter()
        .map(|&partitions| {
            let report = measure(partitions, rest, under.as_ref(), binary.as_ref())
                .with_context(|| format!("{partitions} partitions"))?;
            println!(
                "{partitions} partitions: {:.0} created/s, {} MiB resident, {:.2} % CPU at rest, {:.1} fetches/s and {:.0} B/s between nodes at rest; \
                 after kill -9 no acknowledgements for {:.3?}, all led after {:.3?}",
                report.created_per_second,
                report.resident_bytes >> 20,
                report.idle_cpu * 100.0,
                report.fetches_per_second,
                report.bytes_per_second,
                report.pause,
                report.all_led,
            );
            Ok(report)
        })
        .collect()
}

fn measure(
    partitions: usize,
    rest: Duration,
    under: Option<&PathBuf>,
    binary: Option<&PathBuf>,
) -> Result<Report> {
    let mut options = Options::nodes(3).binary(binary.map(PathBuf::as_path));
    if let Some(under) = under {
        options = options.under(under);
    }
    let mut cluster = Cluster::with(options)?;
    let began = Instant::now();
    for (number, first) in (0..partitions).step_by(PARTITIONS_PER_TOPIC).enumerate() {
        let count = PARTITIONS_PER_TOPIC.min(partitions - first);
        let topic = format!("idle-{number}");
        create_topic(&cluster.bootstrap(), &topic, i32::try_from(count)?, &[])?;
    }
    cluster.wait_in_sync(DEADLINE)?;
    let created_per_second = partitions as f64 / began.elapsed().as_secs_f64();

    wait::pass(SETTLE);
    let before = Usage::of(&mut cluster)?;
    wait::pass(rest);
    let after = Usage::of(&mut cluster)?;
    let seconds = rest.as_secs_f64();

    let replicas = vec![vec![0, 1, 2]; 3];
    create_topic_on(&cluster.bootstrap(), PROBE, &replicas, &[])?;
    let load = Load {
        records_per_second: 500,
        ..Load::of(PROBE)
    };
    let clients = Clients::start(&cluster, load)?;
    clients.workload.progress_everywhere(DEADLINE)?;
    let (killed, clock) = (clients.recorder.now(), Instant::now());
    cluster.node(0).kill()?;
    clients.workload.progress_everywhere(DEADLINE)?;
    let resumed = clients.recorder.now();
    wait::until("every partition to be led", DEADLINE, || {
        let view = cluster.view().ok()?;
        let led = |leader: Option<u32>| leader.is_some_and(|leader| leader != 0);
        view.partitions()
            .all(|(_, partition)| led(partition.leader))
            .then_some(())
    })?;
    let all_led = clock.elapsed();
    cluster.node(0).start()?;
    cluster.wait_in_sync(DEADLINE)?;
    let history = clients.finish()?;
    let pause = pauses::longest(&history, killed, resumed).context("nothing was acknowledged")?;
    let report = Report {
        partitions,
        created_per_second,
        resident_bytes: after.resident_bytes,
        idle_cpu: after
            .cpu
            .iter()
            .zip(&before.cpu)
            .map(|(after, before)| (*after - *before).as_secs_f64() / seconds)
            .fold(0.0, f64::max),
        fetches_per_second: (after.fetches - before.fetches) / seconds,
        bytes_per_second: (after.bytes_out - before.bytes_out) / seconds,
        pause: pause.length,
        all_led,
    };
    cluster.conclude(&[PROBE], DEADLINE)?;
    Ok(report)
}

/// What the nodes have used by some moment.
struct Usage {
    /// Of the largest.
    resident_bytes: u64,
    /// Of each.
    cpu: Vec<Duration>,
    /// Fetches of followers that leaders have answered, of all of them.
    fetches: f64,
    /// Bytes of responses of all of them. The scrape itself is HTTP and not among them.
    bytes_out: f64,
}

impl Usage {
    fn of(cluster: &mut Cluster) -> Result<Self> {
        let mut usage = Self {
            resident_bytes: 0,
            cpu: Vec::new(),
            fetches: 0.0,
            bytes_out: 0.0,
        };
        for node in cluster.nodes() {
            usage.resident_bytes = usage.resident_bytes.max(node.resident_bytes()?);
            usage.cpu.push(node.cpu_time()?);
            let metrics = node.metrics()?;
            usage.fetches += metrics
                .sum("kittiwake_replica_fetches_total", &[])
                .with_context(|| format!("no replica fetches among {:?}", metrics.names()))?;
            usage.bytes_out += metrics
                .sum("kittiwake_bytes_out_total", &[])
                .with_context(|| format!("no bytes out among {:?}", metrics.names()))?;
        }
        Ok(usage)
    }
}
