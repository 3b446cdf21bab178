//! `real_clients [COUNT] [--nodes N]`: starts N nodes (one) and lets every real Kafka client whose toolchain is installed
//! work on them.
//!
//! With several nodes each client is given another one as its only bootstrap server, so all of them are tried. Clients write
//! with acks=all, and topics have the cluster's replication factor unless the client asks for another.
//!
//! Each `cluster-tests/clients/NAME/run` is given a directory to keep its packages in, the bootstrap address and COUNT
//! (default 100,000 records per codec). Exit status 0: everything came back identical and in order; 77: its toolchain is
//! missing, and its output says which; anything else: a failure. `KITTIWAKE_BOOTSTRAP` names another broker to try them on.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use cluster_tests::trials::DEADLINE;
use cluster_tests::{Cluster, Options};

/// What a `run` script exits with when its toolchain is missing; Automake's convention for a skipped test.
const SKIPPED: i32 = 77;

#[derive(Parser)]
struct Arguments {
    /// Records per codec
    #[arg(default_value_t = 100_000)]
    count: u64,
    /// Nodes to start
    #[arg(long, default_value_t = 1)]
    nodes: u8,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let count = arguments.count.to_string();
    let mut cluster = None;
    let servers = match std::env::var("KITTIWAKE_BOOTSTRAP") {
        Ok(bootstrap) => vec![bootstrap],
        Err(_) => {
            let options = Options::nodes(arguments.nodes).config("num.partitions", 4);
            let cluster = cluster.insert(Cluster::with(options)?);
            cluster
                .nodes()
                .map(|node| node.kafka().to_string())
                .collect()
        }
    };
    let mut servers = servers.iter().cycle();
    let keep = keep_directory()?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for script in scripts()? {
        let bootstrap = servers.next().context("no node to bootstrap from")?;
        let name = script
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let began = Instant::now();
        let status = Command::new(&script)
            .args([keep.as_os_str(), bootstrap.as_ref(), count.as_ref()])
            .stdin(Stdio::null())
            // `cargo run` puts the librdkafka that these tests link before the system's own.
            .env_remove("LD_LIBRARY_PATH")
            .status()
            .with_context(|| format!("starting {}", script.display()))?;
        let took = began.elapsed();
        match status.code() {
            Some(0) => {
                passed += 1;
                println!("{name}: passed in {took:.1?}");
            }
            Some(SKIPPED) => {
                skipped += 1;
                println!("{name}: SKIPPED");
            }
            _ => {
                failed += 1;
                println!("{name}: FAILED with {status} after {took:.1?}");
            }
        }
    }
    if let Some(mut cluster) = cluster {
        cluster.wait_in_sync(DEADLINE)?;
        cluster.terminate_all()?;
        cluster.check_logs()?;
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        bail!("{failed} real clients failed");
    }
    Ok(())
}

/// Every `clients/*/run`, by name.
fn scripts() -> Result<Vec<PathBuf>> {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
    let mut scripts: Vec<PathBuf> = std::fs::read_dir(&clients)
        .with_context(|| format!("reading {}", clients.display()))?
        .filter_map(|entry| Some(entry.ok()?.path().join("run")))
        .filter(|script| script.is_file())
        .collect();
    scripts.sort();
    Ok(scripts)
}

/// Where the clients' packages are kept between runs: beside the build's other products, so that nothing is left elsewhere.
fn keep_directory() -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let target = executable
        .ancestors()
        .nth(2)
        .context("the running executable is not in a target directory")?;
    let keep = target.join("clients");
    std::fs::create_dir_all(&keep)?;
    Ok(keep)
}
