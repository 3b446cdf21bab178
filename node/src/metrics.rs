//! What a node counts, for `/metrics`.
//!
//! Counting on the hot path is an atomic add: every series that is counted there exists from the
//! start and is a field, or a row found by index ([`Metrics::api`]). No label is looked up by its
//! text, except that of an error, which is rare.
//!
//! Counters are incremented where things happen. Gauges of what is cheap to read (connections,
//! partitions, free space), and what another crate counts, are set just before each scrape by
//! whoever answers it.

mod latency;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kittiwake_storage::AppendedBytes;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

pub use latency::Latency;

use crate::replication::FetchCounters;

/// One label, its name and value.
type Label = [(&'static str, &'static str); 1];
/// `api` and `error`.
type ApiError = [(&'static str, &'static str); 2];

/// What `error` says of a request that had none; Kafka's own name.
const NO_ERROR: &str = "NONE";

/// API keys are small and dense; a key from here on is none of ours.
const API_KEYS: usize = 128;

/// Everything a node counts.
pub struct Metrics {
    registry: Registry,
    apis: Box<[Option<ApiMetrics>]>,

    /// Bytes of responses, by the way they took to the socket.
    pub bytes_out: BytesOut,
    /// Bytes of requests.
    pub bytes_in: Counter,
    /// Record bytes appended to logs, by how they were written.
    pub append: AppendBytes,
    /// Slices of fetch responses by residency.
    pub fetch_slices: FetchSlices,
    /// Fetching from leaders.
    pub fetching: FetchCounters,
    /// Connections accepted since the start.
    pub connections_accepted: Counter,
    /// Connections refused at a limit since the start.
    pub connections_refused: Counter,
    /// Kafka connections now.
    pub connections: Gauge,
    /// Request memory in use, in bytes.
    pub request_memory: Gauge,
    /// Partitions with a replica here.
    pub partitions: Gauge,
    /// Partitions led here.
    pub partitions_led: Gauge,
    /// Partitions led here with fewer in-sync replicas than replicas.
    pub partitions_under_replicated: Gauge,
    /// Partitions of the cluster without a leader.
    pub partitions_offline: Gauge,
    /// Partitions here whose log could not be opened or created.
    pub partitions_failed: Gauge,
    /// 1 while the data directory is usable, 0 once it is offline.
    pub log_dir_online: Gauge,
    /// Free bytes of the data directory's file system.
    pub disk_free: Gauge,
    /// Bytes in the logs of this node.
    pub log_bytes: Gauge,
    /// What the last start recovered.
    pub recovery: Recovery,
    /// Metadata offset this node has applied.
    pub metadata_offset: Gauge,
    /// Metadata offset up to which its logs reflect the metadata.
    pub metadata_reconciled_offset: Gauge,
    /// 1 while this node is the controller.
    pub is_controller: Gauge,
    /// 1 while the cluster has this node fenced.
    pub fenced: Gauge,
    /// 1 while a controller has answered recently enough for this node to accept writes.
    pub lease_valid: Gauge,
    /// Heartbeats that voters have answered.
    pub heartbeats_answered: Counter,
    /// Brokers this node has fenced as the controller.
    pub brokers_fenced: BrokersFenced,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Bytes of responses by path; their sum is all that was sent.
#[derive(Clone, Debug)]
pub struct BytesOut {
    /// From the page cache to the socket, by the kernel.
    pub sendfile: Counter,
    /// The same, encrypted by the kernel.
    pub ktls: Counter,
    /// Through memory of this process.
    pub copy: Counter,
}

/// Appended bytes by path.
#[derive(Clone, Debug)]
pub struct AppendBytes {
    /// Copied into the mapped segment.
    pub map: Counter,
    /// Written by `pwrite`.
    pub pwrite: Counter,
}

impl AppendBytes {
    /// Takes over what storage has counted. Two scrapes may do so in either order.
    pub fn read(&self, appended: AppendedBytes) {
        let AppendedBytes { map, pwrite } = appended;
        self.map.inner().fetch_max(map, Ordering::Relaxed);
        self.pwrite.inner().fetch_max(pwrite, Ordering::Relaxed);
    }
}

/// Fetch slices by residency.
#[derive(Clone, Debug)]
pub struct FetchSlices {
    /// In the page cache: sent at once.
    pub hot: Counter,
    /// Read from disk first, by a thread that nobody else waits for.
    pub cold: Counter,
}

/// Brokers fenced by the reason.
#[derive(Clone, Debug)]
pub struct BrokersFenced {
    /// Their process was found to be gone.
    pub dead: Counter,
    /// They were not heard for the session timeout.
    pub silent: Counter,
}

/// What the start of the node recovered.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// Logs opened.
    pub logs: Gauge,
    /// Bytes checked because the last stop was not clean.
    pub scanned_bytes: Gauge,
    /// Files with bytes that were moved aside as torn or damaged.
    pub set_aside_files: Gauge,
    /// Logs that could not be opened.
    pub failed_logs: Gauge,
    /// How long it took.
    pub seconds: Gauge<f64, AtomicU64>,
}

/// What is counted of one API.
#[derive(Debug)]
pub struct ApiMetrics {
    name: &'static str,
    latency: Latency,
    succeeded: Counter,
    by_error: Family<ApiError, Counter>,
}

impl ApiMetrics {
    /// Counts an answered request: how long it took from its last byte to its response, and Kafka's
    /// name of the first error in that.
    pub fn answered(&self, took: Duration, error: Option<&'static str>) {
        self.latency.observe(took);
        if let Some(error) = error {
            let labels = [("api", self.name), ("error", error)];
            self.by_error.get_or_create(&labels).inc();
        } else {
            self.succeeded.inc();
        }
    }
}

impl Metrics {
    /// Metrics of a node that serves these APIs: Kafka's key and a name each.
    pub fn new(apis: impl IntoIterator<Item = (i16, &'static str)>) -> Self {
        let mut registry = Registry::with_prefix("kittiwake");
        let apis = api_rows(&mut registry, apis);
        let mut make = Make(&mut registry);
        let [sendfile, ktls, copy] = make.each(
            "bytes_out",
            "Bytes of Kafka responses by the path they took",
            [("path", "sendfile"), ("path", "ktls"), ("path", "copy")],
        );
        let [map, pwrite] = make.each(
            "append_bytes",
            "Record bytes appended by how they were written",
            [("path", "map"), ("path", "pwrite")],
        );
        let [hot, cold] = make.each(
            "fetch_slices",
            "Slices of fetch responses by whether they were in memory",
            [("residency", "hot"), ("residency", "cold")],
        );
        let [dead, silent] = make.each(
            "brokers_fenced",
            "Brokers fenced by this node as the controller",
            [("reason", "dead"), ("reason", "silent")],
        );
        Self {
            apis,
            bytes_out: BytesOut {
                sendfile,
                ktls,
                copy,
            },
            bytes_in: make.one("bytes_in", "Bytes of Kafka requests"),
            append: AppendBytes { map, pwrite },
            fetch_slices: FetchSlices { hot, cold },
            fetching: FetchCounters {
                fetches: make.one(
                    "replica_fetches",
                    "Fetches of this node's followers that leaders have answered",
                ),
                bytes: make.one(
                    "replica_bytes_in",
                    "Record bytes that this node's followers have received",
                ),
            },
            connections_accepted: make.one("connections_accepted", "Kafka connections accepted"),
            connections_refused: make.one(
                "connections_refused",
                "Kafka connections refused at a limit",
            ),
            connections: make.one("connections", "Kafka connections now"),
            request_memory: make.one("request_memory_bytes", "Memory held by requests"),
            partitions: make.one("partitions", "Partitions with a replica on this node"),
            partitions_led: make.one("partitions_led", "Partitions this node leads"),
            partitions_under_replicated: make.one(
                "partitions_under_replicated",
                "Partitions this node leads with fewer in-sync replicas than replicas",
            ),
            partitions_offline: make.one(
                "partitions_offline",
                "Partitions of the cluster without a leader",
            ),
            partitions_failed: make.one(
                "partitions_failed",
                "Partitions of this node whose log could not be opened or created",
            ),
            log_dir_online: make.one("log_dir_online", "1 while the data directory is usable"),
            disk_free: make.one(
                "disk_free_bytes",
                "Free space of the data directory's file system",
            ),
            log_bytes: make.one("log_bytes", "Bytes in the logs of this node"),
            recovery: Recovery {
                logs: make.one("recovery_logs", "Logs opened by the last start"),
                scanned_bytes: make.one(
                    "recovery_scanned_bytes",
                    "Bytes the last start had to check",
                ),
                set_aside_files: make.one(
                    "recovery_set_aside_files",
                    "Files with bytes the last start moved aside as torn or damaged",
                ),
                failed_logs: make.one("recovery_failed_logs", "Logs the last start could not open"),
                seconds: make.one(
                    "recovery_seconds",
                    "How long the last start's recovery took",
                ),
            },
            metadata_offset: make.one("metadata_offset", "Metadata offset applied"),
            metadata_reconciled_offset: make.one(
                "metadata_reconciled_offset",
                "Metadata offset up to which the logs of this node reflect the metadata",
            ),
            is_controller: make.one("is_controller", "1 while this node is the controller"),
            fenced: make.one("fenced", "1 while the cluster has this node fenced"),
            lease_valid: make.one(
                "lease_valid",
                "1 while a controller has answered recently enough to accept writes",
            ),
            heartbeats_answered: make.one(
                "heartbeats_answered",
                "Heartbeats of this node that voters have answered",
            ),
            brokers_fenced: BrokersFenced { dead, silent },
            registry,
        }
    }

    /// What is counted of the API with this key; `None` for one that is not served.
    pub fn api(&self, key: i16) -> Option<&ApiMetrics> {
        self.apis.get(usize::try_from(key).ok()?)?.as_ref()
    }

    /// Every series, in the OpenMetrics text format that Prometheus reads.
    ///
    /// # Errors
    /// None in practice: writing to a string does not fail.
    pub fn scrape(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Registers what is counted of each API; the rows are found by its key.
fn api_rows(
    registry: &mut Registry,
    apis: impl IntoIterator<Item = (i16, &'static str)>,
) -> Box<[Option<ApiMetrics>]> {
    let by_error = Family::<ApiError, Counter>::default();
    let latency = Family::<Label, Latency>::default();
    registry.register(
        "requests",
        "Requests answered by API and error",
        by_error.clone(),
    );
    registry.register(
        "request_seconds",
        "From a request's last byte to its response, by API",
        latency.clone(),
    );
    let mut rows: Vec<Option<ApiMetrics>> = (0..API_KEYS).map(|_| None).collect();
    for (key, name) in apis {
        let row = usize::try_from(key).ok().and_then(|key| rows.get_mut(key));
        debug_assert!(
            row.is_some(),
            "API key {key} of {name} is beyond {API_KEYS}"
        );
        if let Some(row) = row {
            *row = Some(ApiMetrics {
                name,
                latency: latency.get_or_create_owned(&[("api", name)]),
                succeeded: by_error.get_or_create_owned(&[("api", name), ("error", NO_ERROR)]),
                by_error: by_error.clone(),
            });
        }
    }
    rows.into_boxed_slice()
}

struct Make<'a>(&'a mut Registry);

impl Make<'_> {
    fn one<M: Metric + Default + Clone>(&mut self, name: &'static str, help: &'static str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    /// One counter per label, all of one name.
    fn each<const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [(&'static str, &'static str); N],
    ) -> [Counter; N] {
        let family = Family::<Label, Counter>::default();
        self.0.register(name, help, family.clone());
        labels.map(|label| family.get_or_create_owned(&[label]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_scraped() {
        let metrics = Metrics::new([(0, "produce"), (1, "fetch")]);
        metrics.bytes_out.sendfile.inc_by(5);
        metrics.connections.set(2);
        metrics.recovery.seconds.set(0.5);
        let produce = metrics.api(0).unwrap();
        produce.answered(Duration::from_micros(60), None);
        produce.answered(Duration::from_secs(60), Some("NOT_LEADER_OR_FOLLOWER"));
        let text = metrics.scrape().unwrap();
        for line in [
            "kittiwake_bytes_out_total{path=\"sendfile\"} 5",
            "kittiwake_bytes_out_total{path=\"copy\"} 0",
            "kittiwake_connections 2",
            "kittiwake_recovery_seconds 0.5",
            "kittiwake_requests_total{api=\"produce\",error=\"NONE\"} 1",
            "kittiwake_requests_total{api=\"produce\",error=\"NOT_LEADER_OR_FOLLOWER\"} 1",
            "kittiwake_requests_total{api=\"fetch\",error=\"NONE\"} 0",
            "kittiwake_request_seconds_bucket{le=\"0.00005\",api=\"produce\"} 0",
            "kittiwake_request_seconds_bucket{le=\"0.0001\",api=\"produce\"} 1",
            "kittiwake_request_seconds_bucket{le=\"30.0\",api=\"produce\"} 1",
            "kittiwake_request_seconds_bucket{le=\"+Inf\",api=\"produce\"} 2",
            "kittiwake_request_seconds_sum{api=\"produce\"} 60.00006",
            "kittiwake_request_seconds_count{api=\"produce\"} 2",
        ] {
            assert!(
                text.lines().any(|other| other == line),
                "{line}\nis not in\n{text}"
            );
        }
        let types = text
            .lines()
            .filter(|line| *line == "# TYPE kittiwake_bytes_out counter");
        assert_eq!(types.count(), 1, "a family is described once");
    }

    #[test]
    fn an_api_that_is_not_served_has_no_row() {
        let metrics = Metrics::new([(0, "produce")]);
        assert!(metrics.api(-1).is_none());
        assert!(metrics.api(1).is_none());
        assert!(metrics.api(i16::MAX).is_none());
    }
}
