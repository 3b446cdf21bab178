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
use std::sync::atomic::{AtomicU16, Ordering};
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

/// Ports of one `up`: node i of it uses PORT+i, PORT+50+i, PORT+100+i and PORT+200+i.
const PORTS: u16 = 250;

/// `up` on the first ports where it finds all it needs free, and the first of them.
fn up(directory: &Path, nodes: u16) -> (Process, u16) {
    // Tests of this process do not try the same ones at the same time.
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(PORTS, Ordering::Relaxed);
        assert!(port < 30_000, "no free ports");
        let (nodes, number) = (nodes.to_string(), port.to_string());
        let mut command = Command::new(PROGRAM);
        command.args(["up", "--nodes", &nodes, "--port", &number, "--data"]);
        let mut cluster = Process::spawn(command.arg(directory.join(&number)));
        if cluster.line_with("Ctrl-C").is_some() {
            return (cluster, port);
        }
        let (_, said) = cluster.end();
        let taken = said.contains("cannot be used") || said.contains("Address already in use");
        assert!(taken, "{said}");
    }
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

fn ask(admin: u16, arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .args(["--output", "json", "--admin"]);
    command.arg(format!("127.0.0.1:{admin}")).output().unwrap()
}

/// What a command that administers prints, as JSON; none if it fails.
fn answer(admin: u16, arguments: &[&str]) -> Option<serde_json::Value> {
    let Output { status, stdout, .. } = ask(admin, arguments);
    let told = || serde_json::from_slice(&stdout).unwrap();
    status.success().then(told)
}

/// The one sentence of a command that fails.
fn refusal(admin: u16, arguments: &[&str]) -> String {
    let output = ask(admin, arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Asks until the answer is as wanted.
fn wait_for(admin: u16, arguments: &[&str], wanted: impl Fn(&serde_json::Value) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = answer(admin, arguments);
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
        wait_for(grpc(node), &["cluster", "status"], |status| {
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
        answer(grpc(node), &["cluster", "drain", &number]).unwrap();
        wait_for(grpc(node), &["cluster", "status"], |status| {
            states(status)[usize::from(drained)] == "draining"
        });
        answer(grpc(node), &["cluster", "drain", "--undo", &number]).unwrap();
    }
    let nodes = children(cluster.0.id());
    kill_process(Pid::from_raw(nodes[2]).unwrap(), Signal::KILL).unwrap();
    wait_for(grpc(0), &["cluster", "status"], |status| {
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

/// Nothing is written here: all replicas of an empty topic are in sync from its creation.
#[test]
fn leaderships_leave_a_drained_node_and_come_back_and_partitions_move() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, port) = up(directory.path(), 3);
    let admin = |node: u16| port + 100 + node;
    let create = ["topic", "create", "t", "-p", "6", "-r", "3"];
    answer(admin(0), &create).unwrap();
    let leads = |status: &serde_json::Value| -> Vec<u64> {
        let nodes = status["nodes"].as_array().unwrap();
        nodes
            .iter()
            .map(|node| node["leads"].as_u64().unwrap())
            .collect()
    };
    wait_for(admin(1), &["cluster", "status"], |status| {
        leads(status) == [2; 3]
    });
    answer(admin(1), &["cluster", "drain", "0"]).unwrap();
    wait_for(admin(2), &["cluster", "status"], |status| {
        leads(status)[0] == 0
    });
    assert_eq!(
        answer(admin(2), &["cluster", "elect"]),
        None,
        "0 is draining"
    );
    answer(admin(2), &["cluster", "drain", "0", "--undo"]).unwrap();
    wait_for(admin(2), &["cluster", "status"], |status| {
        leads(status) == [2; 3]
    });
    // All are at home already.
    let elected = answer(admin(2), &["cluster", "elect", "--topic", "t"]);
    assert_eq!(elected, Some(serde_json::json!([])));

    let reassign = |replicas| {
        [
            "cluster",
            "reassign",
            "--topic",
            "t",
            "--partition",
            "0",
            "--replicas",
            replicas,
        ]
    };
    answer(admin(1), &reassign("2,1")).unwrap();
    wait_for(admin(0), &["topic", "describe", "t"], |topic| {
        let partition = &topic["partitions"][0];
        partition["replicas"] == serde_json::json!([2, 1]) && partition["leader"] == 2
    });
    wait_for(admin(1), &["cluster", "reassign", "--list"], |moving| {
        *moving == serde_json::json!([])
    });
    let said = refusal(admin(1), &reassign("7"));
    assert!(said.contains("t-0: Broker 7 is not registered."), "{said}");
    let said = refusal(
        admin(1),
        &[
            "cluster",
            "reassign",
            "--topic",
            "t",
            "--partition",
            "0",
            "--cancel",
        ],
    );
    assert!(said.contains("not being reassigned"), "{said}");
    let said = refusal(admin(1), &["cluster", "remove", "0"]);
    assert!(
        said.contains("still has replicas of 5 partitions"),
        "{said}"
    );
    let said = refusal(admin(1), &["cluster", "evacuate", "1"]);
    assert!(
        said.contains("No other node can take the replica"),
        "{said}"
    );
    let said = refusal(admin(1), &["cluster", "join", "9"]);
    assert!(said.contains("not a member"), "{said}");
    cluster.terminate();
    let (status, said) = cluster.end();
    assert_eq!(status, Some(0), "{said}");
}
