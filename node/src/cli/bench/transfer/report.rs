//! The comparison for people: tables and a picture.

use super::copies::{Mover, Step, copies, describe};
use super::methods::SendMethod;
use super::{Method, Report, Row, SideFigures, plot};
use crate::cli::bench::{Table, bytes_text};

/// Prints what was measured, then what each way costs by construction.
pub(super) fn print_tables(report: &Report) {
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
        let count = |steps: &[Step]| {
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
        "\nSendfile floor ({} turns): blocking loop {:.3} CPU-s/GiB at {:.2} GiB/s, the broker's sender {:.3} at {:.2} GiB/s: {:.2} x",
        bytes_text(floor.chunk_bytes),
        floor.blocking_cpu_seconds_per_gib,
        floor.blocking_gib_per_second,
        floor.broker_sender_cpu_seconds_per_gib,
        floor.broker_sender_gib_per_second,
        floor.broker_sender_to_blocking
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
                describe(steps),
            ]);
        }
    }
    print!("{table}");
    println!();
    for interface in &report.interfaces {
        println!("{}", interface.describe());
    }
}

/// The measurement as an SVG picture.
pub(super) fn draw(report: &Report) -> String {
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
        "Loopback TCP, file in the page cache, medians of {} rounds. One group of bars per chunk size; CPU: solid is the sender, light the receiver. Sendfile floor: {:.3} CPU-s/GiB blocking, {:.3} by the broker's sender.",
        report.rounds,
        report.sendfile_floor.blocking_cpu_seconds_per_gib,
        report.sendfile_floor.broker_sender_cpu_seconds_per_gib
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
