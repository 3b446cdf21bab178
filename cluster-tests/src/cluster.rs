//! A local cluster of real processes in a temporary directory.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::node::{Node, Ports, write_new};

/// How often starting over with other ports is worth it before something else must be wrong.
const PORT_TRIES: usize = 3;

/// What a cluster is started with; see [`Cluster::with`].
#[derive(Debug, Clone)]
pub struct Options {
    nodes: u32,
    config: BTreeMap<String, toml::Value>,
    parent: Option<std::path::PathBuf>,
    expected_errors: Vec<String>,
}

impl Options {
    /// `nodes` nodes with the default configuration.
    pub fn nodes(nodes: u32) -> Self {
        Self {
            nodes,
            config: BTreeMap::new(),
            parent: None,
            expected_errors: Vec::new(),
        }
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

    /// ERROR lines that contain `text` belong to the test and do not fail it.
    pub fn expect_errors(mut self, text: &str) -> Self {
        self.expected_errors.push(text.to_owned());
        self
    }
}

/// A running cluster. Dropping it kills every process and removes every file, and panics if a node logged an ERROR that
/// the test did not announce ([`Options::expect_errors`]).
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    expected_errors: Vec<String>,
    // After the processes, which `Drop` ends first.
    _directory: TempDir,
}

impl Cluster {
    /// Starts `nodes` nodes with the default configuration and waits until all are ready.
    pub fn start(nodes: u32) -> Result<Self> {
        Self::with(Options::nodes(nodes))
    }

    /// Starts a cluster as `options` say and waits until every node is ready.
    pub fn with(options: Options) -> Result<Self> {
        for attempt in 1.. {
            let mut cluster = Self::prepare(options.clone())?;
            match cluster.start_all() {
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
        let ports = (0..options.nodes)
            .map(|_| Ports::pick())
            .collect::<Result<Vec<_>>>()?;
        let mut nodes = Vec::new();
        for (id, own) in (0..).zip(&ports) {
            let home = directory.path().join(format!("node-{id}"));
            std::fs::create_dir(&home)?;
            let node = Node::new(id, home, *own);
            let text = toml::to_string(&config(&node, own, &ports, &options.config))?;
            write_new(&node.config_file(), &text)?;
            nodes.push(node);
        }
        Ok(Self {
            nodes,
            expected_errors: options.expected_errors,
            _directory: directory,
        })
    }

    fn start_all(&mut self) -> Result<()> {
        let began = self
            .nodes
            .iter_mut()
            .map(Node::spawn)
            .collect::<Result<Vec<_>>>()?;
        self.nodes
            .iter_mut()
            .zip(began)
            .try_for_each(|(node, began)| node.wait_ready(began))
    }

    /// Node `index`, 0-based.
    pub fn node(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// What Kafka clients are given as `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        let addresses: Vec<String> = self
            .nodes
            .iter()
            .map(|node| node.kafka().to_string())
            .collect();
        addresses.join(",")
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
        self.nodes.iter_mut().for_each(Node::destroy);
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("{}", node.log_tail());
            }
        } else if let Err(error) = self.check_logs() {
            panic!("{error}");
        }
    }
}

/// One node's configuration: what it needs to find itself and its peers, then what the test asked for.
fn config(
    node: &Node,
    own: &Ports,
    all: &[Ports],
    extra: &BTreeMap<String, toml::Value>,
) -> toml::Table {
    let mut table = toml::Table::new();
    let mut set = |key: &str, value: toml::Value| table.insert(key.to_owned(), value);
    let local = |port: u16| format!("127.0.0.1:{port}");
    set("node.id", i64::from(node.id()).into());
    set("cluster.id", "cluster-tests".into());
    let voters: Vec<toml::Value> = (0..)
        .zip(all)
        .map(|(id, ports): (u32, _)| format!("{id}@{}", local(ports.grpc)).into())
        .collect();
    set("cluster.voters", voters.into());
    set(
        "log.dirs",
        node.data_directory().to_string_lossy().into_owned().into(),
    );
    set(
        "listeners",
        format!("PLAINTEXT://{}", local(own.kafka)).into(),
    );
    set("replication.listener", local(own.replication).into());
    set("grpc.listener", local(own.grpc).into());
    set("http.listener", local(own.http).into());
    // Tests have their members ready; waiting for further ones only costs time.
    set("group.initial.rebalance.delay.ms", 0.into());
    for (key, value) in extra {
        set(key, value.clone());
    }
    table
}
