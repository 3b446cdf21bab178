//! `kittiwake up`: a local cluster of real processes.
//!
//! ```text
//! DATA/node-0/kittiwake.toml   configuration, written at every start
//! DATA/node-0/node.log         standard error of the node, across starts
//! DATA/node-0/data/            its data directory
//! ```
//!
//! Each node is a child process running `kittiwake serve` in a process group of its own, so that the
//! terminal's Ctrl-C reaches only this process, which then stops the nodes; a node stops by itself
//! when this process ends in any other way (PR_SET_PDEATHSIG).

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// Distance of the other listeners from the Kafka port of the same node.
const REPLICATION_OFFSET: u16 = 50;
const GRPC_OFFSET: u16 = 100;
const HTTP_OFFSET: u16 = 200;

/// Nodes whose ports do not run into each other's.
const NODES_MAX: u16 = REPLICATION_OFFSET;

/// A node that is not ready by then is stuck; recovery after a crash takes seconds.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// Beyond the node's own deadline for a planned stop.
const STOP_DEADLINE: Duration = Duration::from_secs(40);

/// Lines of a dead node's log that are shown.
const LOG_LINES: usize = 20;
/// What is read of it for that.
const LOG_TAIL_BYTES: u64 = 64 * 1024;

/// Runs a local cluster.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How many nodes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: u16,
    /// Kafka port of the first node; node i uses PORT+i for Kafka, PORT+50+i for replication,
    /// PORT+100+i for gRPC and PORT+200+i for HTTP
    #[arg(long, default_value_t = 9092, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    port: u16,
    /// Where the nodes keep their data; it is kept when the cluster stops, and used again
    #[arg(long, value_name = "DIR", default_value = "kittiwake-data")]
    data: PathBuf,
}

/// The ports of one node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Ports {
    kafka: u16,
    replication: u16,
    grpc: u16,
    http: u16,
}

impl Ports {
    /// Ports of the node with this 0-based index.
    fn of(first: u16, index: u16) -> Self {
        let kafka = first + index;
        Self {
            kafka,
            replication: kafka + REPLICATION_OFFSET,
            grpc: kafka + GRPC_OFFSET,
            http: kafka + HTTP_OFFSET,
        }
    }

    fn each(self) -> [(&'static str, u16); 4] {
        [
            ("Kafka", self.kafka),
            ("replication", self.replication),
            ("gRPC", self.grpc),
            ("HTTP", self.http),
        ]
    }
}

/// One node of the cluster: its files and ports.
#[derive(Debug)]
struct Plan {
    index: u16,
    directory: PathBuf,
    ports: Ports,
}

impl Plan {
    fn config_file(&self) -> PathBuf {
        self.directory.join("kittiwake.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("node.log")
    }

    /// The configuration, as TOML. Strings are written as JSON strings, which TOML reads alike.
    fn config(&self, voters: &[String]) -> anyhow::Result<String> {
        let data = self.directory.join("data");
        let data = data
            .to_str()
            .context("the data directory's name is not UTF-8")?;
        let Ports {
            kafka,
            replication,
            grpc,
            http,
        } = self.ports;
        Ok(format!(
            "# Written by `kittiwake up` at every start; changes are lost. Environment variables\n\
             # (KITTIWAKE_LOG_RETENTION_MS for log.retention.ms) reach every node.\n\
             node.id = {}\ncluster.id = \"kittiwake-up\"\ncluster.voters = {}\nlog.dirs = {}\n\
             listeners = \"PLAINTEXT://127.0.0.1:{kafka}\"\nreplication.listener = \"127.0.0.1:{replication}\"\n\
             grpc.listener = \"127.0.0.1:{grpc}\"\nhttp.listener = \"127.0.0.1:{http}\"\n\
             grpc.reflection.enable = true\n",
            self.index,
            serde_json::to_string(voters)?,
            serde_json::to_string(data)?,
        ))
    }
}

/// A running node.
struct Node {
    plan: Plan,
    child: Child,
}

/// Runs the cluster until Ctrl-C.
///
/// # Errors
/// A sentence: a port is in use, a node does not start, a node ended.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.nodes > 1 {
        bail!(
            "this version runs one node: --nodes {} needs replication, which it does not have",
            args.nodes
        );
    }
    let (mut interrupted, mut terminated) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let plans = plan(&args)?;
    let mut nodes = start(plans)?;
    let (outcome, all_ready) = tokio::select! {
        ready = wait_ready(&mut nodes) => (ready, true),
        _ = interrupted.recv() => (Ok(()), false),
        _ = terminated.recv() => (Ok(()), false),
    };
    if let Err(error) = outcome {
        stop(nodes).await?;
        return Err(error);
    }
    if all_ready {
        print!("{}", Welcome(&nodes));
        let ended = tokio::select! {
            ended = first_end(&mut nodes) => Some(ended),
            _ = interrupted.recv() => None,
            _ = terminated.recv() => None,
        };
        if let Some(ended) = ended {
            stop(nodes).await?;
            return Err(ended);
        }
    }
    eprintln!("stopping");
    stop(nodes).await?;
    Ok(ExitCode::SUCCESS)
}

/// Directories and ports of every node; nothing is started if any port is taken.
fn plan(args: &Args) -> anyhow::Result<Vec<Plan>> {
    let mut plans = Vec::new();
    for index in 0..args.nodes {
        let ports = Ports::of(args.port, index);
        for (what, port) in ports.each() {
            if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                bail!(
                    "port {port} ({what} of node {index}) cannot be used: {error}; choose others with --port"
                );
            }
        }
        let directory = args.data.join(format!("node-{index}"));
        fs::create_dir_all(&directory)
            .with_context(|| format!("{} cannot be created", directory.display()))?;
        plans.push(Plan {
            index,
            directory: directory.canonicalize()?,
            ports,
        });
    }
    Ok(plans)
}

fn start(plans: Vec<Plan>) -> anyhow::Result<Vec<Node>> {
    let voters: Vec<String> = plans
        .iter()
        .map(|plan| format!("{}@127.0.0.1:{}", plan.index, plan.ports.grpc))
        .collect();
    let program = std::env::current_exe().context("this program cannot be found")?;
    let mut nodes = Vec::new();
    for plan in plans {
        let file = plan.config_file();
        fs::write(&file, plan.config(&voters)?)
            .with_context(|| format!("{} cannot be written", file.display()))?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(plan.log_file())?;
        let child = Command::new(&program)
            .arg("serve")
            .arg("--config")
            .arg(&file)
            .arg("--stop-with-parent")
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        nodes.push(Node { plan, child });
    }
    Ok(nodes)
}

/// Waits until every node has printed its ready line.
async fn wait_ready(nodes: &mut [Node]) -> anyhow::Result<()> {
    for node in nodes {
        let stdout = node
            .child
            .stdout
            .take()
            .context("a node without standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        match timeout(READY_DEADLINE, lines.next_line()).await {
            Err(_) => bail!(
                "node {} was not ready after {READY_DEADLINE:?}{}",
                node.plan.index,
                tail(&node.plan)
            ),
            Ok(Ok(Some(_))) => {}
            Ok(_) => return Err(ended(&node.plan, node.child.wait().await)),
        }
    }
    Ok(())
}

/// Waits until a node ends by itself, which is always an error.
async fn first_end(nodes: &mut [Node]) -> anyhow::Error {
    let waiting = nodes
        .iter_mut()
        .map(|node| Box::pin(async { ended(&node.plan, node.child.wait().await) }));
    let mut waiting: Vec<_> = waiting.collect();
    std::future::poll_fn(|context| {
        let ended = waiting
            .iter_mut()
            .find_map(|end| match end.as_mut().poll(context) {
                Poll::Ready(error) => Some(error),
                Poll::Pending => None,
            });
        ended.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Asks every node to stop, and waits.
async fn stop(nodes: Vec<Node>) -> anyhow::Result<()> {
    for node in &nodes {
        let pid = node
            .child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        // A node that has ended by itself has no id, and one that ends just now is no error.
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    for mut node in nodes {
        match timeout(STOP_DEADLINE, node.child.wait()).await {
            Ok(status) => drop(status?),
            Err(_) => {
                eprintln!(
                    "node {} has not stopped after {STOP_DEADLINE:?} and is killed",
                    node.plan.index
                );
                node.child.kill().await?;
            }
        }
    }
    Ok(())
}

fn ended(plan: &Plan, status: io::Result<ExitStatus>) -> anyhow::Error {
    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    anyhow!("node {} has ended ({status}){}", plan.index, tail(plan))
}

/// The end of a node's log, as the end of a sentence.
fn tail(plan: &Plan) -> String {
    let file = plan.log_file();
    match last_lines(&file) {
        Ok(lines) => format!("; the end of {}:\n{lines}", file.display()),
        Err(error) => format!("; {} cannot be read: {error}", file.display()),
    }
}

fn last_lines(file: &Path) -> io::Result<String> {
    let mut log = File::open(file)?;
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    log.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
}

/// What is printed when the cluster is ready.
struct Welcome<'a>(&'a [Node]);

impl fmt::Display for Welcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in self.0 {
            let Plan {
                index,
                directory,
                ports,
            } = &node.plan;
            writeln!(f, "node {index}   {}", directory.display())?;
            writeln!(f, "  Kafka  127.0.0.1:{}", ports.kafka)?;
            writeln!(f, "  gRPC   127.0.0.1:{}", ports.grpc)?;
            writeln!(f, "  HTTP   http://127.0.0.1:{}/metrics", ports.http)?;
        }
        if let Some(first) = self.0.first() {
            let port = first.plan.ports.kafka;
            writeln!(
                f,
                "\ntry     echo hello | kcat -b 127.0.0.1:{port} -P -t greetings"
            )?;
            writeln!(f, "        kcat -b 127.0.0.1:{port} -C -t greetings -e")?;
        }
        writeln!(f, "Ctrl-C stops the cluster; its data stays")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_planned_twice() {
        let mut ports: Vec<u16> = (0..NODES_MAX)
            .flat_map(|index| Ports::of(9092, index).each().map(|(_, port)| port))
            .collect();
        assert_eq!(
            Ports::of(9092, 2),
            Ports {
                kafka: 9094,
                replication: 9144,
                grpc: 9194,
                http: 9294
            }
        );
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), usize::from(NODES_MAX) * 4);
    }

    #[test]
    fn the_highest_port_is_a_port() {
        assert!(Ports::of(65_000, NODES_MAX - 1).http > 65_000);
    }

    #[test]
    fn the_configuration_it_writes_is_valid() {
        let plan = Plan {
            index: 0,
            directory: "/with \"quotes\"".into(),
            ports: Ports::of(9092, 0),
        };
        let text = plan.config(&["0@127.0.0.1:9192".into()]).unwrap();
        let config = crate::config::load("up", &text, []).unwrap().config;
        assert_eq!(&*config.log_dirs, Path::new("/with \"quotes\"/data"));
        assert!(config.grpc_reflection_enable);
    }

    #[test]
    fn a_port_in_use_is_refused_by_one_sentence() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        // The ephemeral range lies below the highest port that is accepted.
        let args = Args {
            nodes: 1,
            port,
            data: "never-created".into(),
        };
        let error = plan(&args).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("port {port} (Kafka of node 0) cannot be used")),
            "{error}"
        );
        assert!(!Path::new("never-created").exists());
    }

    #[test]
    fn only_the_end_of_a_log_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("node.log");
        let lines: Vec<String> = (0..100_000).map(|line| format!("line {line}")).collect();
        fs::write(&file, lines.join("\n")).unwrap();
        assert_eq!(
            last_lines(&file).unwrap(),
            lines[lines.len() - LOG_LINES..].join("\n")
        );
    }
}
