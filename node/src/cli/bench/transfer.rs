//! `kittiwake bench transfer`: what sending and receiving a file over TCP costs, by each of the ways
//! the kernel offers, beside what each costs by construction.
//!
//! Sending is measured against a receiver that throws away what it reads; receiving is measured from
//! a `sendfile` sender. The file stays in the page cache, so no disk is in the figures. Combinations
//! alternate within each round and figures are medians over the rounds, because a machine's speed
//! drifts by more than the methods differ.

mod copies;
mod interface;
mod kernel;
mod methods;
mod plot;
mod report;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use self::interface::{Interface, interfaces};
use self::methods::{
    ReceiveMethod, SendMethod, Sender, Spent, Transfer, pretouch, source_file, transfer,
};
use self::report::{draw, print_tables};
use super::{Output, bytes_text, parse_bytes};

/// The sizes that the floor is measured with: the broker's turn.
const FLOOR_CHUNK: u64 = 1 << 20;
/// Bytes sent for each figure of the floor.
const FLOOR_BYTES: u64 = 1 << 30;
const GIB: f64 = (1_u64 << 30) as f64;

/// Compare ways to send and receive a file over TCP.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File sizes, such as 64MiB,512MiB
    #[arg(long, value_delimiter = ',', default_value = "64MiB,512MiB", value_parser = parse_bytes)]
    file_size: Vec<u64>,
    /// Bytes per system call
    #[arg(long, value_delimiter = ',', default_value = "4KiB,64KiB,1MiB", value_parser = parse_bytes)]
    chunk_size: Vec<u64>,
    /// Rounds; figures are medians over them
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Where the files lie; a tmpfs keeps the disk out of the figures
    #[arg(long, default_value_os_t = default_dir())]
    dir: PathBuf,
    /// Do not touch as much memory as a receiver will write before it runs
    #[arg(long)]
    no_pretouch: bool,
    /// How to print the figures
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    /// Also draw the figures into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn default_dir() -> PathBuf {
    let shared_memory = PathBuf::from("/dev/shm");
    if shared_memory.is_dir() {
        shared_memory
    } else {
        std::env::temp_dir()
    }
}

/// Which side of a transfer varies.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "side", content = "method", rename_all = "lowercase")]
enum Method {
    Send(SendMethod),
    Receive(ReceiveMethod),
}

const METHODS: [Method; 6] = [
    Method::Send(SendMethod::ReadWrite),
    Method::Send(SendMethod::MmapWrite),
    Method::Send(SendMethod::Sendfile),
    Method::Receive(ReceiveMethod::Pwrite),
    Method::Receive(ReceiveMethod::CopyIntoMap),
    Method::Receive(ReceiveMethod::ReceiveIntoMap),
];

impl Method {
    fn side(self) -> &'static str {
        match self {
            Self::Send(_) => "send",
            Self::Receive(_) => "receive",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Send(SendMethod::ReadWrite) => "read+write",
            Self::Send(SendMethod::MmapWrite) => "mmap+write",
            Self::Send(SendMethod::Sendfile) => "sendfile",
            Self::Receive(ReceiveMethod::Discard) => "recv",
            Self::Receive(ReceiveMethod::Pwrite) => "recv+pwrite",
            Self::Receive(ReceiveMethod::CopyIntoMap) => "recv+memcpy to map",
            Self::Receive(ReceiveMethod::ReceiveIntoMap) => "recv into map",
        }
    }

    fn path(self) -> copies::Path {
        match self {
            Self::Send(method) => method.path(),
            Self::Receive(method) => method.path(),
        }
    }

    fn run(self, file: &File, len: u64, chunk: u64, dir: &Path) -> std::io::Result<Transfer> {
        let (send, receive) = match self {
            Self::Send(method) => (method, ReceiveMethod::Discard),
            Self::Receive(method) => (SendMethod::Sendfile, method),
        };
        transfer(
            file,
            len,
            chunk as usize,
            Sender::Blocking(send),
            receive,
            dir,
        )
    }
}

/// The figures of one side, per transfer.
#[derive(Clone, Copy, Debug, Serialize)]
struct SideFigures {
    cpu_seconds_per_gib: f64,
    system_calls: f64,
    voluntary_switches: f64,
    involuntary_switches: f64,
}

/// The figures of one combination.
#[derive(Clone, Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    method: Method,
    file_bytes: u64,
    chunk_bytes: u64,
    gib_per_second: f64,
    sender: SideFigures,
    receiver: SideFigures,
}

/// What a `sendfile` sender costs at least: the goal of the fetch path is set against this.
#[derive(Clone, Debug, Serialize)]
struct Floor {
    chunk_bytes: u64,
    blocking_cpu_seconds_per_gib: f64,
    blocking_gib_per_second: f64,
    broker_sender_cpu_seconds_per_gib: f64,
    broker_sender_gib_per_second: f64,
    broker_sender_to_blocking: f64,
}

#[derive(Debug, Serialize)]
struct Construction {
    #[serde(flatten)]
    method: Method,
    #[serde(flatten)]
    path: copies::Path,
}

#[derive(Debug, Serialize)]
struct Report {
    rounds: u32,
    directory: PathBuf,
    interfaces: Vec<Interface>,
    measured: Vec<Row>,
    sendfile_floor: Floor,
    by_construction: Vec<Construction>,
}

/// Runs the comparison and prints it.
///
/// # Errors
/// The directory takes no files, the plot cannot be written, or a transfer failed.
pub async fn run(args: Args) -> anyhow::Result<()> {
    check(&args)?;
    // Blocking sockets and threads throughout: nothing here belongs on the runtime.
    let report = tokio::task::spawn_blocking(move || {
        let report = measure(&args)?;
        if let Some(path) = &args.plot {
            fs::write(path, draw(&report))
                .with_context(|| format!("cannot write the plot to {}", path.display()))?;
        }
        match args.output {
            Output::Table => print_tables(&report),
            Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        }
        anyhow::Ok(())
    });
    report.await.context("the measuring thread failed")?
}

fn check(args: &Args) -> anyhow::Result<()> {
    /// Above this a mapping and a length no longer fit the same types on every machine.
    const FILE_BYTES_MAX: u64 = 64 << 30;
    const CHUNK_BYTES_MAX: u64 = 1 << 30;
    if args
        .file_size
        .iter()
        .any(|&size| size == 0 || size > FILE_BYTES_MAX)
    {
        bail!(
            "--file-size must be from 1 byte to {}",
            bytes_text(FILE_BYTES_MAX)
        );
    }
    if args
        .chunk_size
        .iter()
        .any(|&size| size == 0 || size > CHUNK_BYTES_MAX)
    {
        bail!(
            "--chunk-size must be from 1 byte to {}",
            bytes_text(CHUNK_BYTES_MAX)
        );
    }
    Ok(())
}

fn measure(args: &Args) -> anyhow::Result<Report> {
    let cannot = || format!("cannot transfer files in {} (--dir)", args.dir.display());
    let mut measured = Vec::new();
    for &len in &args.file_size {
        let file = source_file(&args.dir, len).with_context(cannot)?;
        let combinations: Vec<(Method, u64)> = args
            .chunk_size
            .iter()
            .flat_map(|&chunk| METHODS.map(|method| (method, chunk)))
            .collect();
        let mut samples = vec![Vec::new(); combinations.len()];
        for round in 0..=args.rounds {
            for (&(method, chunk), samples) in combinations.iter().zip(&mut samples) {
                if matches!(method, Method::Receive(_)) && !args.no_pretouch {
                    pretouch(&args.dir, len).with_context(cannot)?;
                }
                let sample = method
                    .run(&file, len, chunk, &args.dir)
                    .with_context(cannot)?;
                // The first round warms sockets, caches and the clock up.
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
        for ((method, chunk), samples) in combinations.into_iter().zip(samples) {
            measured.push(row(method, len, chunk, &samples));
        }
    }
    Ok(Report {
        rounds: args.rounds,
        directory: args.dir.clone(),
        interfaces: interfaces().context("cannot ask for network interfaces")?,
        measured,
        sendfile_floor: floor(args).with_context(cannot)?,
        by_construction: METHODS
            .map(|method| Construction {
                method,
                path: method.path(),
            })
            .into(),
    })
}

fn floor(args: &Args) -> std::io::Result<Floor> {
    let len = args
        .file_size
        .iter()
        .copied()
        .max()
        .unwrap_or(FLOOR_BYTES)
        .min(FLOOR_BYTES);
    let file = source_file(&args.dir, len)?;
    let times = FLOOR_BYTES.div_ceil(len).min(16);
    let mut samples = [Vec::new(), Vec::new()];
    for round in 0..=args.rounds {
        for (sender, samples) in [Sender::Blocking(SendMethod::Sendfile), Sender::Broker]
            .into_iter()
            .zip(&mut samples)
        {
            for _ in 0..times {
                let done = transfer(
                    &file,
                    len,
                    FLOOR_CHUNK as usize,
                    sender,
                    ReceiveMethod::Discard,
                    &args.dir,
                )?;
                if round > 0 {
                    samples.push(done);
                }
            }
        }
    }
    let cost =
        |samples: &[Transfer]| median(samples, |done| done.sender.cpu_seconds) / (len as f64 / GIB);
    let speed =
        |samples: &[Transfer]| median(samples, |done| len as f64 / GIB / done.wall.as_secs_f64());
    let [blocking, broker] = &samples;
    Ok(Floor {
        chunk_bytes: FLOOR_CHUNK,
        blocking_cpu_seconds_per_gib: cost(blocking),
        blocking_gib_per_second: speed(blocking),
        broker_sender_cpu_seconds_per_gib: cost(broker),
        broker_sender_gib_per_second: speed(broker),
        broker_sender_to_blocking: cost(broker) / cost(blocking),
    })
}

fn row(method: Method, file_bytes: u64, chunk_bytes: u64, samples: &[Transfer]) -> Row {
    let gib = file_bytes as f64 / GIB;
    let side = |of: fn(&Transfer) -> Spent| SideFigures {
        cpu_seconds_per_gib: median(samples, |done| of(done).cpu_seconds) / gib,
        system_calls: median(samples, |done| of(done).system_calls as f64),
        voluntary_switches: median(samples, |done| of(done).voluntary_switches as f64),
        involuntary_switches: median(samples, |done| of(done).involuntary_switches as f64),
    };
    Row {
        method,
        file_bytes,
        chunk_bytes,
        gib_per_second: median(samples, |done| gib / done.wall.as_secs_f64()),
        sender: side(|done| done.sender),
        receiver: side(|done| done.receiver),
    }
}

/// The middle value, or the mean of the two middle ones; zero of nothing.
fn median(samples: &[Transfer], figure: impl Fn(&Transfer) -> f64) -> f64 {
    let mut figures: Vec<f64> = samples.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => figures[middle],
        _ => (figures[middle - 1] + figures[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sample(millis: u64) -> Transfer {
        Transfer {
            wall: Duration::from_millis(millis),
            sender: Spent::default(),
            receiver: Spent::default(),
        }
    }

    #[test]
    fn medians_are_of_the_middle() {
        let wall = |done: &Transfer| done.wall.as_secs_f64();
        assert_eq!(median(&[], wall), 0.0);
        assert_eq!(median(&[sample(3), sample(1), sample(2)], wall), 0.002);
        assert_eq!(
            median(&[sample(4), sample(1), sample(2), sample(3)], wall),
            0.0025
        );
    }
}
