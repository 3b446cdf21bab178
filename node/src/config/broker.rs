//! A broker's configuration: one table of keys, typed once.
//!
//! Every row of `broker_keys!` is a Kafka property name (or one of ours where Kafka has none), the field it is read
//! into, its type, default and range, and what it does. Parsing, DescribeConfigs of the broker and
//! `docs/configuration.md` all come from it. Keys that set defaults for topics (`log.*`, `message.max.bytes`, …) are not
//! here: their rows are [`TOPIC_KEYS`](super::topic::TOPIC_KEYS), and [`BrokerConfig::topic_defaults`] holds them.

use std::collections::BTreeMap;
use std::time::Duration;

use kittiwake_raft::BrokerId;

use super::address::{HostPort, Listeners, NamedAddress, RESERVED_LISTENER_NAMES, Voters};
use super::kind::WireType;
use super::topic::TopicDefaults;
use super::value::{ClusterId, LogDirectory, LogFormat, Value, check};

/// A configuration key of a broker.
#[derive(Debug)]
pub struct BrokerKey {
    /// Its name.
    pub name: &'static str,
    /// Its value where nobody set it; `None` if it has to be set.
    pub default: Option<&'static str>,
    /// What it does.
    pub doc: &'static str,
    /// Its type, as DescribeConfigs reports it.
    pub wire_type: WireType,
    /// Its type, for people.
    pub type_name: &'static str,
    /// Smallest and largest number, inclusive.
    pub range: Option<(i128, i128)>,
    check: fn(&str) -> Result<(), String>,
}

impl BrokerKey {
    /// Whether `value` may be set, else why not.
    ///
    /// # Errors
    /// A clause such as "it must be at least 1".
    pub fn validate(&self, value: &str) -> Result<(), String> {
        (self.check)(value)
    }
}

macro_rules! range {
    () => {
        None
    };
    ($min:literal) => {
        Some(($min, i128::MAX))
    };
    ($min:literal, $max:literal) => {
        Some(($min, $max))
    };
}

macro_rules! broker_keys {
    ($($key:literal => $field:ident: $type:ty = $default:expr $(, $min:literal $(..= $max:literal)?)?; $doc:literal)+) => {
        /// The configuration of a broker, checked. Its fields are Kafka's keys with `_` for `.`.
        #[derive(Clone, Debug, Eq, PartialEq)]
        pub struct BrokerConfig {
            $(
                #[doc = concat!("`", $key, "`: ", $doc)]
                pub $field: $type,
            )+
            /// Defaults of topic configuration (`log.*`, `message.max.bytes` and others).
            pub topic_defaults: TopicDefaults,
            given: BTreeMap<&'static str, String>,
        }

        /// Every broker key that is not a topic's default, by subject.
        pub static BROKER_KEYS: &[BrokerKey] = &[$(BrokerKey {
            name: $key,
            default: $default,
            doc: $doc,
            wire_type: <$type as Value>::WIRE_TYPE,
            type_name: <$type as Value>::TYPE_NAME,
            range: range!($($min $(, $max)?)?),
            check: |text| check::<$type>(text, range!($($min $(, $max)?)?)).map(drop),
        }),+];

        impl BrokerConfig {
            /// Types the values, every key judged; `None` if any is missing or refused, with every reason reported to
            /// `fault` (key, value, reason).
            pub(super) fn from_given(
                given: BTreeMap<&'static str, String>,
                topic_defaults: TopicDefaults,
                mut fault: impl FnMut(&'static str, Option<&str>, String),
            ) -> Option<Self> {
                let mut read = Reader { given: &given, fault: &mut fault };
                // All are read before any is missed, so that all faults are reported.
                $(let $field = read.value::<$type>($key, $default, range!($($min $(, $max)?)?));)+
                Some(Self { $($field: $field?,)+ topic_defaults, given })
            }
        }
    };
}

struct Reader<'a, F> {
    given: &'a BTreeMap<&'static str, String>,
    fault: &'a mut F,
}

impl<F: FnMut(&'static str, Option<&str>, String)> Reader<'_, F> {
    fn value<T: Value>(
        &mut self,
        key: &'static str,
        default: Option<&str>,
        range: Option<(i128, i128)>,
    ) -> Option<T> {
        let given = self.given.get(key).map(String::as_str);
        let Some(text) = given.or(default) else {
            (self.fault)(key, None, "it has no default and must be set".into());
            return None;
        };
        check(text, range)
            .map_err(|reason| (self.fault)(key, given, reason))
            .ok()
    }
}

broker_keys! {
    // Identity
    "node.id" => node_id: BrokerId = None, 0;
    "This node's number, of no other node of the cluster."
    "cluster.id" => cluster_id: ClusterId = None;
    "The cluster this node belongs to. A data directory of another cluster is refused."
    "cluster.voters" => cluster_voters: Voters = None;
    "The nodes whose majority agrees on metadata: id@host:port of their gRPC listeners, three or five (or one). The same \
     on every node."
    "broker.rack" => broker_rack: Option<String> = Some("");
    "The failure domain this node is in; replicas are spread over racks."
    "log.dirs" => log_dirs: LogDirectory = None;
    "The data directory. This version uses one."

    // Listeners
    "listeners" => listeners: Listeners = Some("PLAINTEXT://:9092");
    "Where Kafka clients connect: NAME://host:port, separated by commas. An empty host is every interface; port 0 is any \
     free port."
    "advertised.listeners" => advertised_listeners: Listeners = Some("");
    "What clients are told to connect to, by listener name. Default: the listener's address, with this machine's host \
     name in place of a wildcard."
    "replication.listener" => replication_listener: HostPort = Some(":9142");
    "Where the other nodes fetch from: the followers of the partitions that this node leads. It belongs on a network of \
     trusted nodes."
    "advertised.replication.listener" => advertised_replication_listener: Option<HostPort> = Some("");
    "Where the other nodes are told to fetch from. Default: the listener's address, with this machine's host name in \
     place of a wildcard."
    "grpc.listener" => grpc_listener: HostPort = Some(":9192");
    "Where the metadata quorum, the heartbeats of the nodes and the gRPC administration service listen."
    "advertised.grpc.listener" => advertised_grpc_listener: Option<HostPort> = Some("");
    "Where the other nodes are told that the gRPC listener is. Default: this node's address in cluster.voters, if it is \
     there; else the listener's address, with this machine's host name in place of a wildcard."
    "http.listener" => http_listener: HostPort = Some(":9292");
    "Where /metrics, /livez and /readyz are served."
    "grpc.reflection.enable" => grpc_reflection_enable: bool = Some("false");
    "Whether the gRPC listener describes its services to whoever asks (grpcurl)."

    // Cluster membership
    "broker.heartbeat.interval.ms" => broker_heartbeat_interval_ms: Duration = Some("500"), 1;
    "How often this node tells the voters that it lives; less than a third of broker.session.timeout.ms."
    "broker.session.timeout.ms" => broker_session_timeout_ms: Duration = Some("3000"), 100..=3600000;
    "A node that is not heard for this long is fenced and its leaderships move. The same on every node: a node that no \
     controller has answered for two thirds of it refuses writes; while it differs, a leader that was replaced as it hung may \
     still acknowledge writes of acks=0 and 1."

    // Topics
    "num.partitions" => num_partitions: i32 = Some("1"), 1;
    "Partitions of a topic whose creator does not say."
    "default.replication.factor" => default_replication_factor: Option<i16> = Some(""), 1;
    "Replicas of a topic whose creator does not say. Default: three, or as many as there are nodes. Until so many nodes have \
     registered, such topics are not created."
    "auto.create.topics.enable" => auto_create_topics_enable: bool = Some("true");
    "Whether a client's Metadata request may create the topics it names."
    "delete.topic.enable" => delete_topic_enable: bool = Some("true");
    "Whether topics can be deleted."

    // Leadership
    "auto.leader.rebalance.enable" => auto_leader_rebalance_enable: bool = Some("true");
    "Whether the controller gives leaderships back to preferred leaders. A node that came back gets its own five seconds \
     later, or when it is in sync with the last of them."
    "leader.imbalance.check.interval.seconds" => leader_imbalance_check_interval_seconds: u64 = Some("300"), 1..=31536000;
    "How often the controller also looks for nodes that lack leaderships they are in sync for."
    "leader.imbalance.per.broker.percentage" => leader_imbalance_per_broker_percentage: usize = Some("10"), 0..=100;
    "The share of its leaderships a node may lack without that check giving them back."

    // Admission: every limit is finite
    "socket.request.max.bytes" => socket_request_max_bytes: usize = Some("104857600"), 1024..=2147483647;
    "The largest request. A connection that announces a larger one is closed."
    "queued.max.request.bytes" => queued_max_request_bytes: usize = Some("268435456"), 1024;
    "Memory that requests may hold together. Beyond it connections are not read until others are answered. A request \
     counts with what it may take once decoded: Produce with its bytes, any other with 64 times its bytes. One that \
     counts for more than this closes its connection."
    "max.connections" => max_connections: usize = Some("10000"), 1;
    "Kafka connections at once; further ones are closed."
    "max.connections.per.ip" => max_connections_per_ip: usize = Some("5000"), 1;
    "Kafka connections at once from one address; further ones are closed."
    "connections.max.idle.ms" => connections_max_idle_ms: Duration = Some("600000"), 1;
    "A connection without a request for this long is closed."
    "request.progress.timeout.ms" => request_progress_timeout_ms: Duration = Some("30000"), 1;
    "A connection is closed when a request that has begun does not go on arriving, or a response is not taken, for this \
     long."

    // Fetch
    "fetch.max.bytes" => fetch_max_bytes: u32 = Some("57671680"), 1024..=2147483647;
    "The most one fetch returns, whatever the client asks; one batch is always returned whole."
    "max.incremental.fetch.session.cache.slots" => max_incremental_fetch_session_cache_slots: usize = Some("1000"), 0..=1000000;
    "Incremental fetch sessions kept (KIP-227)."

    // Replication
    "replica.lag.time.max.ms" => replica_lag_time_max_ms: Duration = Some("10000"), 100;
    "A live follower that has not had all records for this long leaves the in-sync replicas."
    "replica.fetch.max.bytes" => replica_fetch_max_bytes: u32 = Some("1048576"), 1024..=1073741824;
    "The most a follower fetches of one partition at once; one batch is always fetched whole."
    "replica.fetch.response.max.bytes" => replica_fetch_response_max_bytes: u32 = Some("10485760"), 1024..=1073741824;
    "The most a follower fetches from one leader at once; it is also the memory it receives into."
    "replica.fetch.wait.max.ms" => replica_fetch_wait_max_ms: Duration = Some("500"), 1..=30000;
    "How long a leader lets a follower's fetch wait for news."
    "replica.socket.timeout.ms" => replica_socket_timeout_ms: Duration = Some("10000"), 100;
    "A follower gives a connection up when its leader takes this much longer than a fetch may wait."

    // Groups
    "group.min.session.timeout.ms" => group_min_session_timeout_ms: i32 = Some("6000"), 1;
    "The shortest session timeout a consumer may ask for."
    "group.max.session.timeout.ms" => group_max_session_timeout_ms: i32 = Some("1800000"), 1;
    "The longest session timeout a consumer may ask for."
    "group.initial.rebalance.delay.ms" => group_initial_rebalance_delay_ms: i32 = Some("3000"), 0;
    "How long an empty group waits for further members before its first rebalance ends."
    "group.max.size" => group_max_size: usize = Some("10000"), 1..=2147483647;
    "Members of one group; further ones are refused."
    "offsets.retention.minutes" => offsets_retention_minutes: i32 = Some("10080"), 1;
    "How long the offsets of an empty group are kept."
    "offsets.retention.check.interval.ms" => offsets_retention_check_interval_ms: Duration = Some("600000"), 1;
    "How often expired offsets are looked for."
    "offset.metadata.max.bytes" => offset_metadata_max_bytes: usize = Some("4096"), 0..=1048576;
    "The longest text a commit may attach to an offset."
    "offsets.commit.timeout.ms" => offsets_commit_timeout_ms: Duration = Some("5000"), 1;
    "How long a commit waits for its replicas."
    "offsets.topic.num.partitions" => offsets_topic_num_partitions: i32 = Some("50"), 1..=10000;
    "Partitions of __consumer_offsets. Not to be changed once it exists: groups would move."
    "offsets.topic.replication.factor" => offsets_topic_replication_factor: Option<i16> = Some(""), 1;
    "Replicas of __consumer_offsets. Default: three, or as many as there are voters."
    "offsets.topic.segment.bytes" => offsets_topic_segment_bytes: u32 = Some("104857600"), 4096..=2147483647;
    "segment.bytes of __consumer_offsets; small, so that it is compacted and loaded quickly."

    // Producers
    "producer.id.expiration.ms" => producer_id_expiration_ms: i64 = Some("86400000"), 1;
    "How long the sequence numbers of an idempotent producer that sends nothing are remembered."
    "producer.id.expiration.check.interval.ms" => producer_id_expiration_check_interval_ms: Duration = Some("600000"), 1;
    "How often expired producers are looked for."

    // Logs
    "log.retention.check.interval.ms" => log_retention_check_interval_ms: Duration = Some("300000"), 1;
    "How often segments to delete are looked for."
    "replica.high.watermark.checkpoint.interval.ms" => replica_high_watermark_checkpoint_interval_ms: Duration = Some("5000"), 1;
    "How often high watermarks, log start offsets and recovery points are written; a restart after a crash checks what \
     lies beyond the recovery points."
    "num.recovery.threads.per.data.dir" => num_recovery_threads_per_data_dir: usize = Some("2"), 1..=1024;
    "Threads that recover logs at start and flush them at a stop."
    "kittiwake.disk.free.min.bytes" => kittiwake_disk_free_min_bytes: u64 = Some("67108864"), 0;
    "Free space below which writes are refused (and may be retried), so that metadata still has room."

    // Process
    "kittiwake.worker.threads" => kittiwake_worker_threads: usize = Some("0"), 0..=1024;
    "Threads that serve connections; 0: one per processor."
    "kittiwake.cold.read.threads" => kittiwake_cold_read_threads: usize = Some("8"), 1..=1024;
    "Reads at once from disk of what is not in memory, each on a thread that nobody else waits for."
    "kittiwake.shutdown.timeout.ms" => kittiwake_shutdown_timeout_ms: Duration = Some("30000"), 1;
    "How long a planned stop may take before the process ends as it is. Half of it is for requests in flight, the rest \
     for flushing."
    "log.level" => log_level: String = Some("info,openraft=off");
    "What is logged: error, warn, info, debug or trace, also per module, as in RUST_LOG, which goes first. openraft tells \
     of every heartbeat to a node that is down; what matters of it this node says itself."
    "log.format" => log_format: LogFormat = Some("text");
    "How it is logged, to standard error: text or json."
}

/// Text of the keys that have no default, for [`BrokerConfig::default`].
const SAMPLE: [(&str, &str); 4] = [
    ("node.id", "0"),
    ("cluster.id", "local"),
    ("cluster.voters", "0@localhost:9192"),
    ("log.dirs", "kittiwake-data"),
];

impl Default for BrokerConfig {
    /// Every key at its default; node 0, the only one of its cluster, with its data in `./kittiwake-data`.
    fn default() -> Self {
        let given = SAMPLE
            .into_iter()
            .map(|(key, value)| (key, value.to_owned()))
            .collect();
        Self::from_given(given, TopicDefaults::default(), |_, _, _| ())
            .expect("the table's defaults are values of their keys: a test reads them")
    }
}

impl BrokerConfig {
    /// The text a key was given in the file or the environment, if it was.
    pub fn given(&self, key: &str) -> Option<&str> {
        self.given.get(key).map(String::as_str)
    }

    /// What clients are told to connect to. `bound_port` tells which port a listener got, `hostname` stands in for
    /// wildcards.
    pub fn advertised(
        &self,
        bound_port: impl Fn(&str) -> u16,
        hostname: &str,
    ) -> Vec<NamedAddress> {
        let address = |listener: &NamedAddress| match self.advertised_listeners.get(&listener.name)
        {
            Some(advertised) => advertised.clone(),
            None => listener
                .address
                .reachable_at(bound_port(&listener.name), hostname),
        };
        let named = |listener: &NamedAddress| NamedAddress {
            name: listener.name.clone(),
            address: address(listener),
        };
        self.listeners.0.iter().map(named).collect()
    }

    /// Where the other nodes are told to fetch from.
    pub fn advertised_replication(&self, bound_port: u16, hostname: &str) -> HostPort {
        self.advertised_replication_listener
            .clone()
            .unwrap_or_else(|| self.replication_listener.reachable_at(bound_port, hostname))
    }

    /// Where the other nodes are told that the gRPC listener is.
    pub fn advertised_grpc(&self, bound_port: u16, hostname: &str) -> HostPort {
        let voter = || {
            let voters = &self.cluster_voters.0;
            let own = voters.iter().find(|(id, _)| *id == self.node_id);
            own.map(|(_, address)| address.clone())
        };
        self.advertised_grpc_listener
            .clone()
            .or_else(voter)
            .unwrap_or_else(|| self.grpc_listener.reachable_at(bound_port, hostname))
    }

    /// Rules between keys: reported as (key, reason).
    pub(super) fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut refuse = |wrong: bool, key, reason: &str| {
            if wrong {
                found.push((key, reason.to_owned()));
            }
        };
        refuse(
            self.listeners.0.is_empty(),
            "listeners",
            "at least one listener is needed",
        );
        for advertised in &self.advertised_listeners.0 {
            let NamedAddress { name, address } = advertised;
            let unknown = self.listeners.get(name).is_none();
            refuse(
                unknown,
                "advertised.listeners",
                &format!("there is no listener called {name}"),
            );
            let usable = !address.is_wildcard() && address.port != 0;
            refuse(
                !usable,
                "advertised.listeners",
                &format!("clients cannot connect to {address}"),
            );
        }
        for name in self.listeners.names() {
            let reserved = RESERVED_LISTENER_NAMES.contains(&name);
            refuse(
                reserved,
                "listeners",
                &format!("{name} is the name of a listener between nodes"),
            );
        }
        for (key, advertised) in [
            (
                "advertised.replication.listener",
                &self.advertised_replication_listener,
            ),
            ("advertised.grpc.listener", &self.advertised_grpc_listener),
        ] {
            if let Some(address) = advertised {
                let usable = !address.is_wildcard() && address.port != 0;
                refuse(
                    !usable,
                    key,
                    &format!("the other nodes cannot connect to {address}"),
                );
            }
        }
        refuse(
            self.broker_heartbeat_interval_ms * 3 >= self.broker_session_timeout_ms,
            "broker.heartbeat.interval.ms",
            "it must be less than a third of broker.session.timeout.ms",
        );
        for (key, address) in self.shared_addresses() {
            refuse(true, key, &format!("{address} is used by another listener"));
        }
        refuse(
            self.queued_max_request_bytes < self.socket_request_max_bytes,
            "queued.max.request.bytes",
            "it must be at least socket.request.max.bytes, or the largest request could never be read",
        );
        refuse(
            self.group_min_session_timeout_ms > self.group_max_session_timeout_ms,
            "group.min.session.timeout.ms",
            "it must be at most group.max.session.timeout.ms",
        );
        found
    }

    /// Listeners on the address of one before them; port 0 never is.
    fn shared_addresses(&self) -> Vec<(&'static str, &HostPort)> {
        let kafka = self
            .listeners
            .0
            .iter()
            .map(|listener| ("listeners", &listener.address));
        let others = [
            ("replication.listener", &self.replication_listener),
            ("grpc.listener", &self.grpc_listener),
            ("http.listener", &self.http_listener),
        ];
        let all: Vec<_> = kafka
            .chain(others)
            .filter(|(_, address)| address.port != 0)
            .collect();
        let taken = |(index, (_, address)): (usize, &(&str, &HostPort))| {
            all[..index].iter().any(|(_, other)| {
                other.port == address.port
                    && (other.host == address.host || other.is_wildcard() || address.is_wildcard())
            })
        };
        all.iter()
            .enumerate()
            .filter(|entry| taken(*entry))
            .map(|(_, entry)| *entry)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::topic::TOPIC_KEYS;

    #[test]
    fn every_default_is_a_value_of_its_key() {
        for key in BROKER_KEYS {
            if let Some(default) = key.default {
                assert_eq!(key.validate(default), Ok(()), "{}", key.name);
            }
        }
        assert_eq!(BrokerConfig::default().contradictions(), []);
    }

    #[test]
    fn no_key_is_in_the_table_twice_or_in_both_tables() {
        let topics = TOPIC_KEYS.iter().filter_map(|row| row.broker_key);
        let mut names: Vec<&str> = BROKER_KEYS
            .iter()
            .map(|row| row.name)
            .chain(topics)
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn clients_are_told_what_is_advertised_else_what_is_bound() {
        let config = BrokerConfig {
            listeners: "A://:0,B://127.0.0.1:0,C://:9".parse().unwrap(),
            advertised_listeners: "C://outside:99".parse().unwrap(),
            ..BrokerConfig::default()
        };
        let told: Vec<String> = config
            .advertised(|_| 4711, "gull")
            .iter()
            .map(NamedAddress::to_string)
            .collect();
        assert_eq!(
            told,
            ["A://gull:4711", "B://127.0.0.1:4711", "C://outside:99"]
        );
    }

    #[test]
    fn nodes_are_told_what_is_advertised_else_the_voters_address_else_what_is_bound() {
        let mut config = BrokerConfig {
            grpc_listener: "0.0.0.0:0".parse().unwrap(),
            replication_listener: ":0".parse().unwrap(),
            cluster_voters: "0@voter:9192".parse().unwrap(),
            ..BrokerConfig::default()
        };
        let grpc = |config: &BrokerConfig| config.advertised_grpc(4711, "gull").to_string();
        let replication =
            |config: &BrokerConfig| config.advertised_replication(4712, "gull").to_string();
        assert_eq!(grpc(&config), "voter:9192");
        assert_eq!(replication(&config), "gull:4712");
        config.node_id = BrokerId(7);
        assert_eq!(grpc(&config), "gull:4711");
        config.advertised_grpc_listener = Some("outside:1".parse().unwrap());
        config.advertised_replication_listener = Some("outside:2".parse().unwrap());
        assert_eq!(grpc(&config), "outside:1");
        assert_eq!(replication(&config), "outside:2");
    }

    #[test]
    fn names_and_times_between_nodes_are_checked() {
        let config = BrokerConfig {
            listeners: "GRPC://:1,REPLICATION://:2".parse().unwrap(),
            advertised_grpc_listener: Some("0.0.0.0:1".parse().unwrap()),
            broker_heartbeat_interval_ms: Duration::from_secs(1),
            ..BrokerConfig::default()
        };
        let keys: Vec<&str> = config
            .contradictions()
            .iter()
            .map(|(key, _)| *key)
            .collect();
        assert_eq!(
            keys,
            [
                "listeners",
                "listeners",
                "advertised.grpc.listener",
                "broker.heartbeat.interval.ms"
            ]
        );
    }
}
