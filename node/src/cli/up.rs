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
//! when this process ends in any other way (PR_SET_PDEATHSIG). A node that ends by itself is reported,
//! and the others go on: that is what there are several for.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

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
    /// How many nodes; the first three (of five and more: five) vote on metadata
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
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

/// Runs the cluster until Ctrl-C.
///
/// # Errors
/// A sentence: a port is in use, a node does not start, every node has ended.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (mut interrupted, mut terminated) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let mut cluster = Cluster::start(plan(&args)?)?;
    let running = async {
        cluster.ready().await?;
        print!("{}", Welcome(&cluster.nodes));
        Err(cluster.all_ended().await)
    };
    let outcome = tokio::select! {
        ended = running => ended,
        _ = interrupted.recv() => Ok(ExitCode::SUCCESS),
        _ = terminated.recv() => Ok(ExitCode::SUCCESS),
    };
    if outcome.is_ok() {
        eprintln!("stopping");
    }
    cluster.stop().await;
    outcome
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

/// How many nodes vote on metadata: an odd number, so that as many as possible may fail.
fn voters(nodes: usize) -> usize {
    match nodes {
        ..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// A node that was started.
struct Node {
    plan: Plan,
    /// Set until it has ended.
    process: Option<Pid>,
    ready: bool,
}

/// What a node does by itself.
enum Event {
    /// It serves clients.
    Ready,
    /// Its process has ended.
    Ended(io::Result<ExitStatus>),
}

/// The nodes, and what they do, by index.
struct Cluster {
    nodes: Vec<Node>,
    events: mpsc::UnboundedReceiver<(usize, Event)>,
}

impl Cluster {
    fn start(plans: Vec<Plan>) -> anyhow::Result<Self> {
        let voters: Vec<String> = plans[..voters(plans.len())]
            .iter()
            .map(|plan| format!("{}@127.0.0.1:{}", plan.index, plan.ports.grpc))
            .collect();
        // Two events a node.
        let (happened, events) = mpsc::unbounded_channel();
        let mut nodes = Vec::new();
        for (index, plan) in plans.into_iter().enumerate() {
            let child = spawn(&plan, &voters)?;
            let id = child.id().and_then(|id| i32::try_from(id).ok());
            nodes.push(Node {
                plan,
                process: id.and_then(Pid::from_raw),
                ready: false,
            });
            tokio::spawn(watch(index, child, happened.clone()));
        }
        Ok(Self { nodes, events })
    }

    /// Waits until every node has printed its ready line.
    async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        while let Some(late) = self.nodes.iter().find(|node| !node.ready) {
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some((index, Event::Ready))) => self.nodes[index].ready = true,
                Ok(Some((index, Event::Ended(status)))) => return Err(self.ended(index, status)),
                Ok(None) => bail!("every node has ended"),
                Err(_) => bail!(
                    "node {} was not ready after {READY_DEADLINE:?}{}",
                    late.plan.index,
                    tail(&late.plan)
                ),
            }
        }
        Ok(())
    }

    /// Says which nodes end, until none is left: that of the last one is returned.
    async fn all_ended(&mut self) -> anyhow::Error {
        while let Some((index, event)) = self.events.recv().await {
            let Event::Ended(status) = event else {
                continue;
            };
            let ended = self.ended(index, status);
            let config = self.nodes[index].plan.config_file();
            match self.running().count() {
                0 => return ended,
                left => eprintln!(
                    "{ended}\n{left} of {} nodes go on; to start it again: kittiwake serve --config {}",
                    self.nodes.len(),
                    config.display()
                ),
            }
        }
        anyhow!("every node has ended")
    }

    fn ended(&mut self, index: usize, status: io::Result<ExitStatus>) -> anyhow::Error {
        let node = &mut self.nodes[index];
        node.process = None;
        ended(&node.plan, status)
    }

    fn running(&self) -> impl Iterator<Item = (&Node, Pid)> {
        let running = |node: &'_ Node| node.process;
        self.nodes
            .iter()
            .filter_map(move |node| Some((node, running(node)?)))
    }

    /// Asks every node to stop, and waits.
    async fn stop(mut self) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_DEADLINE;
        while self.running().next().is_some() {
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some((index, Event::Ended(_)))) => self.nodes[index].process = None,
                Ok(Some((_, Event::Ready))) => {}
                Ok(None) => return,
                Err(_) => break,
            }
        }
        for (node, _) in self.running() {
            eprintln!(
                "node {} has not stopped after {STOP_DEADLINE:?} and is killed",
                node.plan.index
            );
        }
        self.signal(Signal::KILL);
    }

    fn signal(&mut self, signal: Signal) {
        // One that has ended may have left its number to another process.
        while let Ok((index, event)) = self.events.try_recv() {
            if let Event::Ended(_) = event {
                self.nodes[index].process = None;
            }
        }
        for (_, process) in self.running() {
            // That it ends just now is no error.
            let _ = kill_process(process, signal);
        }
    }
}

fn spawn(plan: &Plan, voters: &[String]) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("this program cannot be found")?;
    let file = plan.config_file();
    fs::write(&file, plan.config(voters)?)
        .with_context(|| format!("{} cannot be written", file.display()))?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(plan.log_file())?;
    Command::new(&program)
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
        .with_context(|| format!("{} cannot be started", program.display()))
}

/// Follows a node to its end.
async fn watch(index: usize, mut child: Child, happened: mpsc::UnboundedSender<(usize, Event)>) {
    // Nobody listens any more when the cluster is stopped and gone.
    let tell = |event| drop(happened.send((index, event)));
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout).lines();
        if let Ok(Some(_)) = lines.next_line().await {
            tell(Event::Ready);
        }
    }
    tell(Event::Ended(child.wait().await));
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
    fn an_odd_number_of_nodes_votes() {
        assert_eq!([1, 2, 3, 4, 5, 50].map(voters), [1, 1, 3, 3, 5, 5]);
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
