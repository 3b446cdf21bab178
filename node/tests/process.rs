//! `serve` and `up` as processes: what they say before they start, and how they end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy sees the helpers of an integration test as ordinary code.

use kafka_wire::FetchRequest;
use kafka_wire::fetch_request::{FetchPartition, FetchTopic};
use kittiwake::client::{Client, ConnectionConfig, NewTopic};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_kittiwake");
/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of a node that a second signal has ended.
const EXIT_INTERRUPTED: i32 = 130;

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn spawn(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// The first line of standard output with `text` in it; none if the process ends without it.
    fn line_with(&mut self, text: &str) -> Option<String> {
        let stdout = BufReader::new(self.0.stdout.take().unwrap());
        let mut lines = stdout.lines().map(Result::unwrap);
        lines.find(|line| line.contains(text))
    }

    fn terminate(&self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// Exit status, and what it said on standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
    }
}

fn config_file(directory: &Path, more: &str) -> PathBuf {
    let file = directory.join("kittiwake.toml");
    let text = format!(
        "node.id = 0\ncluster.id = \"process-test\"\ncluster.voters = \"0@127.0.0.1:1\"\nlog.dirs = \"{}\"\n\
         listeners = \"PLAINTEXT://127.0.0.1:0\"\nreplication.listener = \"127.0.0.1:0\"\ngrpc.listener = \"127.0.0.1:0\"\nhttp.listener = \"127.0.0.1:0\"\n{more}",
        directory.join("data").display()
    );
    fs::write(&file, text).unwrap();
    file
}

fn check(file: &Path) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--check", "--config"]).arg(file);
    command.output().unwrap()
}

#[test]
fn check_reports_every_fault_and_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let faulty = "num.partitions = 0\nno.such.key = 1\nauto.create.topics.enable = \"perhaps\"\n";
    let output = check(&config_file(directory.path(), faulty));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for key in ["num.partitions", "no.such.key", "auto.create.topics.enable"] {
        let lines = said.lines().filter(|line| line.contains(key));
        assert_eq!(lines.count(), 1, "{key}:\n{said}");
    }
    assert!(!directory.path().join("data").exists());

    let output = check(&config_file(directory.path(), "num.partitions = 3\n"));
    assert!(output.status.success());
    assert!(!directory.path().join("data").exists());
}

/// A node that is ready, and where it listens as its ready file says.
fn serve(directory: &Path) -> (Process, BTreeMap<String, String>) {
    let ready_file = directory.join("ready.json");
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--config"]);
    command.arg(config_file(directory, ""));
    command.arg("--ready-file").arg(&ready_file);
    let mut node = Process::spawn(&mut command);
    if node.line_with("ready").is_none() {
        panic!("{}", node.end().1);
    }
    let addresses = serde_json::from_slice(&fs::read(ready_file).unwrap()).unwrap();
    (node, addresses)
}

#[test]
fn the_ready_file_says_where_a_ready_node_is() {
    let directory = tempfile::tempdir().unwrap();
    let (node, addresses) = serve(directory.path());
    let names: Vec<&str> = addresses.keys().map(String::as_str).collect();
    assert_eq!(names, ["grpc", "http", "kafka"]);
    for address in addresses.values() {
        TcpStream::connect(address).unwrap();
    }
    assert!(get(&addresses["http"], "/readyz").starts_with("HTTP/1.1 200"));
    node.terminate();
    let (status, said) = node.end();
    assert_eq!(status, Some(0), "{said}");
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn bytes_in(http: &str) -> u64 {
    let metrics = get(http, "/metrics");
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix("kittiwake_bytes_in_total "));
    value.unwrap().parse().unwrap()
}

/// A planned stop waits for requests in flight, here a fetch of a topic where nothing is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_stop_that_waits() {
    let directory = tempfile::tempdir().unwrap();
    let (mut node, addresses) = serve(directory.path());
    let config = ConnectionConfig::default();
    let mut client = Client::connect(&addresses["kafka"], config).await.unwrap();
    let topic = NewTopic {
        name: "silence".into(),
        partitions: 1,
        replication_factor: -1,
        configs: Vec::new(),
    };
    client.ensure_topic(&topic).await.unwrap();
    let mut connection = client.open(0).await.unwrap();
    let mut partition = FetchPartition::default();
    partition.partition_max_bytes = 1;
    let mut topic = FetchTopic::default();
    topic.topic = "silence".into();
    topic.partitions = vec![partition];
    let mut fetch = FetchRequest::default();
    fetch.max_wait_ms = 60_000;
    fetch.min_bytes = 1;
    fetch.max_bytes = 1;
    fetch.topics = vec![topic];
    let before = bytes_in(&addresses["http"]);
    connection.send(&fetch).await.unwrap();
    while bytes_in(&addresses["http"]) == before {
        tokio::task::yield_now().await;
    }

    node.terminate();
    let stderr = BufReader::new(node.0.stderr.take().unwrap());
    let mut lines = stderr.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("a second signal ends the process at once")));
    node.terminate();
    assert!(lines.any(|line| line.contains("ended by a second signal")));
    assert_eq!(node.0.wait().unwrap().code(), Some(EXIT_INTERRUPTED));
}

/// Process ids of the children of `parent`, whichever of its threads started them.
fn children(parent: u32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).unwrap();
    let lists = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("children")));
    let text: Vec<String> = lists.map(Result::unwrap).collect();
    let ids = text.iter().flat_map(|text| text.split_whitespace());
    ids.map(|id| id.parse().unwrap()).collect()
}

/// `up` on the first port where it finds all it needs free, and the port.
fn up(directory: &Path, nodes: u16) -> (Process, u16) {
    for port in (20_000..30_000).step_by(7) {
        let mut command = Command::new(PROGRAM);
        let (nodes, number) = (nodes.to_string(), port.to_string());
        command.args(["up", "--nodes", &nodes, "--port", &number, "--data"]);
        let mut cluster = Process::spawn(command.arg(directory));
        if cluster.line_with("Ctrl-C").is_some() {
            return (cluster, port);
        }
        let (_, said) = cluster.end();
        assert!(said.contains("cannot be used"), "{said}");
    }
    panic!("no free ports")
}

#[test]
fn up_ends_with_a_node_that_dies_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, _) = up(directory.path(), 1);
    let nodes = children(cluster.0.id());
    assert_eq!(nodes.len(), 1);
    kill_process(Pid::from_raw(nodes[0]).unwrap(), Signal::KILL).unwrap();
    let (status, said) = cluster.end();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("node 0 has ended (signal: 9"), "{said}");
    assert!(said.contains("node.log"), "{said}");
}

/// What a `cluster` command prints, as JSON; none while it fails.
fn cluster_json(admin: u16, arguments: &[&str]) -> Option<serde_json::Value> {
    let mut command = Command::new(PROGRAM);
    command.args(["cluster", "--output", "json", "--admin"]);
    command.arg(format!("127.0.0.1:{admin}")).args(arguments);
    let output = command.output().unwrap();
    output
        .status
        .success()
        .then(|| serde_json::from_slice(&output.stdout).unwrap())
}

/// Asks until the answer is as wanted.
fn wait_for(admin: u16, arguments: &[&str], wanted: impl Fn(&serde_json::Value) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = cluster_json(admin, arguments);
        if answer.as_ref().is_some_and(&wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{arguments:?}: {answer:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn three_nodes_are_a_cluster_that_outlives_one_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, port) = up(directory.path(), 3);
    let grpc = |node: u16| port + 100 + node;
    let states = |status: &serde_json::Value| -> Vec<String> {
        let nodes = status["nodes"].as_array().unwrap();
        nodes
            .iter()
            .map(|node| node["state"].as_str().unwrap().to_owned())
            .collect()
    };
    for node in 0..3 {
        wait_for(grpc(node), &["status"], |status| {
            let members = status["quorum"]["members"].as_array().unwrap();
            let vote = |member: &serde_json::Value| member["role"] != "learner";
            let known = |member: &serde_json::Value| !member["lag"].is_null();
            states(status) == ["active"; 3]
                && members.len() == 3
                && members.iter().all(|member| vote(member) && known(member))
        });
    }
    // Asked of whichever node, also of one that is not the controller.
    for node in 0..3 {
        let drained = (node + 1) % 3;
        let number = drained.to_string();
        cluster_json(grpc(node), &["drain", &number]).unwrap();
        wait_for(grpc(node), &["status"], |status| {
            states(status)[usize::from(drained)] == "draining"
        });
        cluster_json(grpc(node), &["drain", "--undo", &number]).unwrap();
    }
    let nodes = children(cluster.0.id());
    kill_process(Pid::from_raw(nodes[2]).unwrap(), Signal::KILL).unwrap();
    wait_for(grpc(0), &["status"], |status| {
        let fenced = states(status)
            .iter()
            .filter(|state| *state == "fenced")
            .count();
        fenced == 1 && !status["controller"].is_null()
    });
    cluster.terminate();
    let (status, said) = cluster.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("has ended (signal: 9"), "{said}");
    assert!(said.contains("2 of 3 nodes go on"), "{said}");
}
