//! A local cluster of real processes in a temporary directory.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::janitor::Janitor;
use crate::network::{CutFrom, Network};
use crate::node::{Launch, Node, Ports, kittiwake_json, run, write_new};
use crate::view::{Partition, View};
use crate::wait;

/// How often starting over with other ports is worth it before something else must be wrong.
const PORT_TRIES: usize = 3;

/// What a cluster is started with; see [`Cluster::with`].
#[derive(Debug, Clone)]
pub struct Options {
    nodes: u8,
    voters: Option<u8>,
    config: BTreeMap<String, toml::Value>,
    parent: Option<PathBuf>,
    binary: Option<PathBuf>,
    own_hosts: bool,
    expected_errors: Vec<String>,
}

impl Options {
    /// `nodes` nodes with the default configuration, all of them voters.
    pub fn nodes(nodes: u8) -> Self {
        Self {
            nodes,
            voters: None,
            config: BTreeMap::new(),
            parent: None,
            binary: None,
            own_hosts: false,
            expected_errors: Vec::new(),
        }
    }

    /// Only the first `voters` nodes form the cluster, and are started with it; the others have to join.
    pub fn voters(mut self, voters: u8) -> Self {
        self.voters = Some(voters);
        self
    }

    /// Sets a configuration key (Kafka's name) on every node.
    pub fn config(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.config.insert(key.to_owned(), value.into());
        self
    }

    /// Puts the nodes' directories under `parent` (a small file system, a tmpfs) instead of the system's temporary directory.
    pub fn under(mut self, parent: &Path) -> Self {
        self.parent = Some(parent.to_owned());
        self
    }

    /// Runs this binary instead of `KITTIWAKE_BIN` or the one of this build.
    pub fn binary(mut self, binary: Option<&Path>) -> Self {
        self.binary = binary.map(Path::to_owned);
        self
    }

    /// Gives every node a network namespace, so that it can be [cut off](Cluster::cut). Needs root.
    pub fn own_hosts(mut self) -> Self {
        self.own_hosts = true;
        self
    }

    /// ERROR lines that contain `text` belong to the test and do not fail it.
    pub fn expect_errors(mut self, text: &str) -> Self {
        self.expected_errors.push(text.to_owned());
        self
    }
}

/// A running cluster. Dropping it kills every process and removes every file, and panics if a node logged an ERROR that
/// the test did not announce ([`Options::expect_errors`]). If this process is killed, all of that (but the panic) happens
/// too.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    voters: usize,
    binary: Option<PathBuf>,
    expected_errors: Vec<String>,
    // After the processes, which `Drop` ends first.
    directory: TempDir,
    network: Option<Network>,
    _janitor: Janitor,
}

impl Cluster {
    /// Starts `nodes` nodes with the default configuration and waits until all are ready.
    pub fn start(nodes: u8) -> Result<Self> {
        Self::with(Options::nodes(nodes))
    }

    /// Starts a cluster as `options` say and waits until every voter is ready and the cluster has all of them.
    pub fn with(options: Options) -> Result<Self> {
        for attempt in 1.. {
            let mut cluster = Self::prepare(options.clone())?;
            match cluster.start_voters() {
                Ok(()) => return Ok(cluster),
                Err(error) => {
                    let conflict = cluster
                        .nodes
                        .iter()
                        .any(|node| node.log().contains("Address already in use"));
                    cluster.expected_errors.push(String::new());
                    if !conflict || attempt == PORT_TRIES {
                        return Err(error);
                    }
                }
            }
        }
        unreachable!("the loop returns by its last attempt")
    }

    /// Directories and configuration, but no process yet.
    pub fn prepare(options: Options) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("kittiwake-test-");
        let directory = match &options.parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        }
        .context("a temporary directory")?;
        let network = match options.own_hosts {
            true => Some(Network::new(options.nodes)?),
            false => None,
        };
        let removal = network.as_ref().map(Network::removal).unwrap_or_default();
        let janitor = Janitor::of(directory.path(), &removal)?;
        let host = |index| match &network {
            Some(network) => network.address(index),
            None => Ipv4Addr::LOCALHOST,
        };
        let ports = (0..options.nodes)
            .map(|index| Ports::pick(host(index)))
            .collect::<Result<Vec<_>>>()?;
        let voters = usize::from(options.voters.unwrap_or(options.nodes));
        let mut nodes = Vec::new();
        for (index, own) in (0..).zip(&ports) {
            let home = directory.path().join(format!("node-{index}"));
            std::fs::create_dir(&home)?;
            let launch = Launch {
                binary: options.binary.clone(),
                prefix: network
                    .as_ref()
                    .map(|network| network.enter(index))
                    .unwrap_or_default(),
            };
            let node = Node::new(u32::from(index), home, *own, launch);
            let text = toml::to_string(&config(&node, own, &ports[..voters], &options.config))?;
            write_new(&node.config_file(), &text)?;
            nodes.push(node);
        }
        Ok(Self {
            nodes,
            voters,
            binary: options.binary,
            expected_errors: options.expected_errors,
            directory,
            network,
            _janitor: janitor,
        })
    }

    fn start_voters(&mut self) -> Result<()> {
        let voters = self.voters;
        let began = self.nodes[..voters]
            .iter_mut()
            .map(Node::spawn)
            .collect::<Result<Vec<_>>>()?;
        self.nodes
            .iter_mut()
            .zip(began)
            .try_for_each(|(node, began)| node.wait_ready(began))?;
        self.wait_in_sync(crate::START_DEADLINE)
    }

    /// How many nodes there are, running or not.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Node `index`, 0-based; its node id is the same number.
    pub fn node(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// Every node.
    pub fn nodes(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut()
    }

    /// The directory that holds all nodes' files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What Kafka clients are given as `bootstrap.servers`: every node, also those that are yet to join. A client that knew
    /// only the first one could lose it before it has heard of the others.
    pub fn bootstrap(&self) -> String {
        let addresses: Vec<String> = self
            .nodes
            .iter()
            .map(|node| node.kafka().to_string())
            .collect();
        addresses.join(",")
    }

    /// What the first node that answers says of the cluster.
    pub fn view(&self) -> Result<View> {
        self.running()
            .find_map(|node| View::of(node.kafka()).ok())
            .context("no node answers")
    }

    fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_running())
    }

    /// Waits until every running node says that `partition` is as `wanted`; returns it as the first of them described it.
    /// Nodes that do not answer are left out, but one must.
    pub fn wait_partition(
        &self,
        topic: &str,
        partition: i32,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&Partition) -> bool,
    ) -> Result<Partition> {
        let what = format!("{topic}-{partition} to be {what}");
        self.wait_views(&what, deadline, |views| {
            let found: Vec<&Partition> = views
                .iter()
                .filter_map(|view| view.partition(topic, partition))
                .collect();
            let all = found.len() == views.len() && found.iter().all(|found| wanted(found));
            all.then(|| found.first().copied().cloned()).flatten()
        })
    }

    /// Waits until no running node knows `topic` any more.
    pub fn wait_topic_gone(&self, topic: &str, deadline: Duration) -> Result<()> {
        let what = format!("{topic} to be gone");
        let running = self.running().count();
        self.wait_views(&what, deadline, |views| {
            let knows = |view: &View| view.topics.iter().any(|known| known.name == topic);
            (views.len() == running && !views.iter().any(knows)).then_some(())
        })
    }

    /// Which node leads the partition: waits until every running node says the same one, and that it runs.
    pub fn leader(&self, topic: &str, partition: i32, deadline: Duration) -> Result<usize> {
        let running: Vec<u32> = self.running().map(Node::id).collect();
        let led = |partition: &Partition| {
            partition
                .leader
                .is_some_and(|leader| running.contains(&leader))
        };
        let found = self.wait_partition(topic, partition, "led", deadline, led)?;
        Ok(found.leader.context("led by nobody")? as usize)
    }

    /// Which node is the controller: waits until every running node names the same one, and that it runs.
    pub fn controller(&self, deadline: Duration) -> Result<usize> {
        let running: Vec<u32> = self.running().map(Node::id).collect();
        self.wait_views("a controller", deadline, |views| {
            let controller = views.first()?.controller?;
            let agreed = views.iter().all(|view| view.controller == Some(controller));
            (agreed && running.contains(&controller)).then_some(controller as usize)
        })
    }

    /// Waits until every running node says that all running nodes are there, and that every partition is led and has all
    /// its replicas in its ISR.
    pub fn wait_in_sync(&self, deadline: Duration) -> Result<()> {
        let running: Vec<u32> = self.running().map(Node::id).collect();
        let in_sync = |view: &View| {
            view.brokers == running
                && view.controller.is_some()
                && view.partitions().all(|(_, partition)| partition.in_sync())
        };
        let answer = self.wait_views("every replica to be in sync", deadline, |views| {
            (views.len() == running.len() && views.iter().all(in_sync)).then_some(())
        });
        answer.with_context(|| {
            self.running()
                .map(|node| match View::of(node.kafka()) {
                    Ok(view) => format!("node {} says {}", node.id(), view.troubles()),
                    Err(error) => format!("node {}: {error:#}", node.id()),
                })
                .collect::<Vec<_>>()
                .join("\n")
        })
    }

    fn wait_views<T>(
        &self,
        what: &str,
        deadline: Duration,
        judge: impl Fn(&[View]) -> Option<T>,
    ) -> Result<T> {
        wait::until(what, deadline, || {
            let views: Vec<View> = self
                .running()
                .filter_map(|node| View::of(node.kafka()).ok())
                .collect();
            judge(&views)
        })
    }

    /// Waits until all replicas of every partition of `topic` end at the same offset, then compares them byte by byte
    /// (`kittiwake log verify`). Nobody may be producing.
    pub fn compare_replicas(&self, topic: &str, deadline: Duration) -> Result<()> {
        for replicas in self.replicas(topic)? {
            let mut last = None;
            let what = format!("equal replicas {replicas:?}");
            wait::until(&what, deadline, || {
                let found = self.verify(&replicas);
                let equal = found.as_ref().is_ok_and(|found| {
                    let mut ends = found.ends.windows(2);
                    found.differences.is_empty() && ends.all(|pair| pair[0] == pair[1])
                });
                last = Some(found);
                equal.then_some(())
            })
            .with_context(|| format!("the last look: {last:?}"))?;
        }
        Ok(())
    }

    /// The end of a test. Everybody is in sync, and the replicas of `topics` are equal; a planned stop of all nodes; then
    /// they are equal still, and every log agrees with its own indexes and checksums; no node has logged an ERROR.
    pub fn conclude(mut self, topics: &[&str], deadline: Duration) -> Result<()> {
        self.wait_in_sync(deadline)?;
        let mut logs = Vec::new();
        for topic in topics {
            self.compare_replicas(topic, deadline)?;
            logs.extend(self.replicas(topic)?);
        }
        self.terminate_all()?;
        for replicas in logs {
            let found = self.verify(&replicas)?;
            if !found.differences.is_empty() || !found.faults.is_empty() {
                bail!("after the stop: {found:?}");
            }
        }
        self.check_logs()
    }

    /// The directories of each partition's replicas.
    fn replicas(&self, topic: &str) -> Result<Vec<Vec<String>>> {
        let view = self.view()?;
        let partitions = view.partitions().filter(|(name, _)| *name == topic);
        let found: Vec<Vec<String>> = partitions
            .map(|(_, partition)| {
                let directory = |&node: &u32| {
                    self.nodes[node as usize]
                        .partition_directory(topic, partition.index)
                        .to_string_lossy()
                        .into_owned()
                };
                partition.replicas.iter().map(directory).collect()
            })
            .collect();
        if found.is_empty() {
            bail!("there is no topic {topic}");
        }
        Ok(found)
    }

    /// What `kittiwake log verify` finds in directories of one partition.
    fn verify(&self, replicas: &[String]) -> Result<Verified> {
        let arguments: Vec<&str> = ["log", "verify", "--output", "json"]
            .into_iter()
            .chain(replicas.iter().map(String::as_str))
            .collect();
        // Findings make it fail, too, and are in the report.
        let output = run(self.binary.as_deref(), &arguments)?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut verified = Verified {
            ends: Vec::new(),
            differences: list(&report["differences"]),
            faults: Vec::new(),
        };
        for log in list(&report["logs"]) {
            let end = log["end_offset"]
                .as_i64()
                .context("a log without its end")?;
            verified.ends.push(end);
            verified.faults.extend(list(&log["faults"]));
        }
        Ok(verified)
    }

    /// Runs `kittiwake ARGUMENTS --admin HOST:PORT --output json` against node `index`; it must succeed.
    pub fn administer(&self, index: usize, arguments: &[&str]) -> Result<serde_json::Value> {
        let admin = self.nodes[index].grpc().to_string();
        let arguments = [arguments, &["--admin", &admin]].concat();
        kittiwake_json(self.binary.as_deref(), &arguments)
    }

    /// Cuts a node off; the cluster must have been started with [`Options::own_hosts`].
    pub fn cut(&self, index: usize, from: CutFrom) -> Result<()> {
        self.network()?.cut(u8::try_from(index)?, from)
    }

    /// Undoes a [cut](Self::cut).
    pub fn heal(&self, index: usize) -> Result<()> {
        self.network()?.heal(u8::try_from(index)?)
    }

    fn network(&self) -> Result<&Network> {
        self.network
            .as_ref()
            .context("the nodes have no hosts of their own")
    }

    /// Makes the first `count` nodes the voters in every node's configuration; none may be running.
    pub fn configure_voters(&mut self, count: usize) -> Result<()> {
        let voters: Vec<toml::Value> = self.nodes[..count]
            .iter()
            .map(|node| voter(node.id(), node.grpc()).into())
            .collect();
        for node in &mut self.nodes {
            node.configure("cluster.voters", voters.clone())?;
        }
        self.voters = count;
        Ok(())
    }

    /// Kills every running node at once.
    pub fn kill_all(&mut self) -> Result<()> {
        let mut started = self.started();
        started.iter_mut().try_for_each(|node| node.send_kill())?;
        started.iter_mut().try_for_each(|node| node.wait_killed())
    }

    /// Starts every node that does not run and waits until all are ready; returns when the first was executed.
    pub fn start_all(&mut self) -> Result<Instant> {
        let first = Instant::now();
        let mut stopped: Vec<&mut Node> = self
            .nodes
            .iter_mut()
            .filter(|node| node.pid().is_none())
            .collect();
        let began = stopped
            .iter_mut()
            .map(|node| node.spawn())
            .collect::<Result<Vec<_>>>()?;
        stopped
            .iter_mut()
            .zip(began)
            .try_for_each(|(node, began)| node.wait_ready(began))?;
        Ok(first)
    }

    /// A planned stop of every running node, all at once; each must exit with 0.
    pub fn terminate_all(&mut self) -> Result<()> {
        let mut started = self.started();
        started.iter_mut().try_for_each(|node| node.ask_to_stop())?;
        started.iter_mut().try_for_each(|node| node.wait_stopped())
    }

    fn started(&mut self) -> Vec<&mut Node> {
        self.nodes
            .iter_mut()
            .filter(|node| node.pid().is_some())
            .collect()
    }

    /// Copies every node's log to `directory`, under the name of the cluster's own directory.
    fn keep_logs(&self, directory: &Path) {
        let name = self.directory.path().file_name().unwrap_or_default();
        for node in &self.nodes {
            let mut kept = name.to_owned();
            kept.push(format!("-node-{}.log", node.id()));
            if let Err(error) = std::fs::write(directory.join(kept), node.log()) {
                eprintln!("a log is not kept in {}: {error}", directory.display());
            }
        }
    }

    /// Fails if any node logged an ERROR that was not announced.
    pub fn check_logs(&self) -> Result<()> {
        for node in &self.nodes {
            let errors = node.error_lines();
            let unexpected: Vec<&String> = errors
                .iter()
                .filter(|line| !self.expected_errors.iter().any(|text| line.contains(text)))
                .collect();
            if let Some(first) = unexpected.first() {
                bail!(
                    "node {} logged {} unexpected ERROR lines, the first: {first}",
                    node.id(),
                    unexpected.len()
                );
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A test that succeeds has stopped its nodes, or its output is not shown.
        let abandoned = self.nodes.iter().any(|node| node.pid().is_some());
        self.nodes.iter_mut().for_each(Node::destroy);
        if let Some(kept) = std::env::var_os("KITTIWAKE_KEEP_LOGS") {
            self.keep_logs(Path::new(&kept));
        }
        if abandoned || std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("{}", node.log_tail());
            }
        }
        if !std::thread::panicking()
            && let Err(error) = self.check_logs()
        {
            panic!("{error}");
        }
    }
}

/// What was found in the replicas of one partition.
#[derive(Debug)]
struct Verified {
    /// Where each ends.
    ends: Vec<i64>,
    /// How they differ up to the smallest end.
    differences: Vec<Value>,
    /// What is wrong with any of them in itself. Checkpoints of a running node may lag behind, so this is of interest once
    /// it has stopped.
    faults: Vec<Value>,
}

/// An entry of `cluster.voters`.
fn voter(id: u32, grpc: SocketAddr) -> String {
    format!("{id}@{grpc}")
}

/// One node's configuration: what it needs to find itself and its peers, then what the test asked for.
fn config(
    node: &Node,
    own: &Ports,
    voters: &[Ports],
    extra: &BTreeMap<String, toml::Value>,
) -> toml::Table {
    let mut table = toml::Table::new();
    let mut set = |key: &str, value: toml::Value| table.insert(key.to_owned(), value);
    let at = |host: Ipv4Addr, port: u16| format!("{host}:{port}");
    set("node.id", i64::from(node.id()).into());
    set("cluster.id", "cluster-tests".into());
    let voters: Vec<toml::Value> = (0..)
        .zip(voters)
        .map(|(id, ports)| voter(id, (ports.host, ports.grpc).into()).into())
        .collect();
    set("cluster.voters", voters.into());
    set(
        "log.dirs",
        node.data_directory().to_string_lossy().into_owned().into(),
    );
    set(
        "listeners",
        format!("PLAINTEXT://{}", at(own.host, own.kafka)).into(),
    );
    set("replication.listener", at(own.host, own.replication).into());
    set("grpc.listener", at(own.host, own.grpc).into());
    set("http.listener", at(own.host, own.http).into());
    // Tests have their members ready; waiting for further ones only costs time.
    set("group.initial.rebalance.delay.ms", 0.into());
    for (key, value) in extra {
        set(key, value.clone());
    }
    table
}
