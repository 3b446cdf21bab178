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

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use self::copies::{Mover, copies};
use self::interface::{Interface, interfaces};
use self::methods::{
    ReceiveMethod, SendMethod, Sender, Spent, Transfer, pretouch, source_file, transfer,
};
use super::{Output, Table, bytes_text, parse_bytes};

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
    tokio_cpu_seconds_per_gib: f64,
    tokio_gib_per_second: f64,
    tokio_to_blocking: f64,
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
        for (sender, samples) in [Sender::Blocking(SendMethod::Sendfile), Sender::Tokio]
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
    let [blocking, tokio] = &samples;
    Ok(Floor {
        chunk_bytes: FLOOR_CHUNK,
        blocking_cpu_seconds_per_gib: cost(blocking),
        blocking_gib_per_second: speed(blocking),
        tokio_cpu_seconds_per_gib: cost(tokio),
        tokio_gib_per_second: speed(tokio),
        tokio_to_blocking: cost(tokio) / cost(blocking),
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

fn print_tables(report: &Report) {
    println!(
        "Measured: medians of {} rounds, files in {}\n",
        report.rounds,
        report.directory.display()
    );
    let mut table = Table::new(&[
        "side",
        "method",
        "file",
        "chunk",
        "GiB/s",
        "sender CPU-s/GiB",
        "receiver CPU-s/GiB",
        "sender calls",
        "receiver calls",
        "sender switches",
        "receiver switches",
        "CPU+DMA copies",
        "without gather",
        "mode sw/MiB",
    ]);
    for row in &report.measured {
        let path = row.method.path();
        let count = |steps: &[copies::Step]| {
            format!(
                "{}+{}",
                copies(steps, Mover::Cpu),
                copies(steps, Mover::Dma)
            )
        };
        let switches = |side: &SideFigures| {
            format!(
                "{:.0}+{:.0}",
                side.voluntary_switches, side.involuntary_switches
            )
        };
        let mode_switches =
            f64::from(path.mode_switches_per_chunk) * f64::from(1 << 20) / row.chunk_bytes as f64;
        table.row([
            row.method.side().to_owned(),
            row.method.name().to_owned(),
            bytes_text(row.file_bytes),
            bytes_text(row.chunk_bytes),
            format!("{:.2}", row.gib_per_second),
            format!("{:.3}", row.sender.cpu_seconds_per_gib),
            format!("{:.3}", row.receiver.cpu_seconds_per_gib),
            format!("{:.0}", row.sender.system_calls),
            format!("{:.0}", row.receiver.system_calls),
            switches(&row.sender),
            switches(&row.receiver),
            count(&path.with_gather),
            count(&path.without_gather),
            format!("{mode_switches:.0}"),
        ]);
    }
    print!("{table}");
    println!(
        "\nReceiving counts the allocation of the file's pages. Calls and switches are per transfer; switches are voluntary+involuntary. Copies are of the side that varies, with\n\
         the file cold and a device at the end; hot and on loopback the DMA copies fall away. On loopback the receiver's half\n\
         of TCP runs in the sender's system calls, so compare methods, not sides."
    );
    print_construction(report);
    let floor = &report.sendfile_floor;
    println!(
        "\nSendfile floor ({} turns): blocking loop {:.3} CPU-s/GiB at {:.2} GiB/s, tokio sender {:.3} at {:.2} GiB/s: {:.2} x",
        bytes_text(floor.chunk_bytes),
        floor.blocking_cpu_seconds_per_gib,
        floor.blocking_gib_per_second,
        floor.tokio_cpu_seconds_per_gib,
        floor.tokio_gib_per_second,
        floor.tokio_to_blocking
    );
}

fn print_construction(report: &Report) {
    println!("\nBy construction: the way of every byte\n");
    let mut table = Table::new(&[
        "side",
        "method",
        "device gathers",
        "CPU copies",
        "DMA copies",
        "calls/chunk",
        "way",
    ]);
    for entry in &report.by_construction {
        let path = &entry.path;
        let same = entry.method != Method::Send(SendMethod::Sendfile);
        let variants = [("yes", &path.with_gather), ("no", &path.without_gather)];
        for (gathers, steps) in variants.into_iter().take(if same { 1 } else { 2 }) {
            table.row([
                entry.method.side().to_owned(),
                entry.method.name().to_owned(),
                if same { "either" } else { gathers }.to_owned(),
                copies(steps, Mover::Cpu).to_string(),
                copies(steps, Mover::Dma).to_string(),
                path.system_calls_per_chunk.to_string(),
                copies::describe(steps),
            ]);
        }
    }
    print!("{table}");
    println!();
    for interface in &report.interfaces {
        println!("{}", interface.describe());
    }
}

fn draw(report: &Report) -> String {
    let mut sizes: Vec<u64> = report.measured.iter().map(|row| row.file_bytes).collect();
    sizes.dedup();
    let rows: Vec<plot::Row> = sizes
        .into_iter()
        .map(|size| {
            let of_size: Vec<&Row> = report
                .measured
                .iter()
                .filter(|row| row.file_bytes == size)
                .collect();
            let charts = ["send", "receive"].into_iter().flat_map(|side| {
                let rows: Vec<&Row> = of_size
                    .iter()
                    .copied()
                    .filter(|row| row.method.side() == side)
                    .collect();
                let speed = chart(&rows, side, "GiB/s", |row| vec![row.gib_per_second]);
                let cost = chart(&rows, side, "CPU-s/GiB", |row| {
                    vec![
                        row.sender.cpu_seconds_per_gib,
                        row.receiver.cpu_seconds_per_gib,
                    ]
                });
                [speed, cost]
            });
            plot::Row {
                heading: format!("File of {}", bytes_text(size)),
                charts: charts.collect(),
            }
        })
        .collect();
    let notes = format!(
        "Loopback TCP, file in the page cache, medians of {} rounds. One group of bars per chunk size; CPU: solid is the sender, light the receiver. Sendfile floor: {:.3} CPU-s/GiB blocking, {:.3} under tokio.",
        report.rounds,
        report.sendfile_floor.blocking_cpu_seconds_per_gib,
        report.sendfile_floor.tokio_cpu_seconds_per_gib
    );
    plot::svg("Ways to move a file over TCP", &notes, &rows)
}

fn chart(rows: &[&Row], side: &str, unit: &str, parts: impl Fn(&Row) -> Vec<f64>) -> plot::Chart {
    let mut chunks: Vec<u64> = rows.iter().map(|row| row.chunk_bytes).collect();
    chunks.dedup();
    let in_group = |chunk: u64| rows.iter().filter(move |row| row.chunk_bytes == chunk);
    plot::Chart {
        title: if side == "send" {
            "Sending"
        } else {
            "Receiving"
        }
        .to_owned(),
        unit: unit.to_owned(),
        groups: chunks.iter().map(|&chunk| bytes_text(chunk)).collect(),
        series: chunks
            .first()
            .map(|&chunk| {
                in_group(chunk)
                    .map(|row| row.method.name().to_owned())
                    .collect()
            })
            .unwrap_or_default(),
        bars: chunks
            .iter()
            .map(|&chunk| {
                in_group(chunk)
                    .map(|row| plot::Bar { parts: parts(row) })
                    .collect()
            })
            .collect(),
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
