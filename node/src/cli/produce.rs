//! `kittiwake produce TOPIC`: one record per line of standard input.
//!
//! The command ends with success only when the broker has acknowledged every line. On a refusal it
//! stops reading, says how many records were written, and exits non-zero.

use std::io::{self, Read as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::client::{
    Acks, Client, ClientError, Codec, ConnectionConfig, Producer, ProducerConfig, RecordData,
    now_ms,
};

/// A line longer than this is refused before it fills the memory: no broker's default takes it.
const LINE_BYTES_MAX: usize = 64 << 20;
/// Standard input is read in pieces of this size...
const CHUNK_BYTES: usize = 64 << 10;
/// ...so many of which may wait.
const CHUNKS_WAITING_MAX: usize = 8;

/// Write records, one per line of standard input.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Topic to write to
    topic: String,
    /// Brokers to start from: HOST:PORT[,HOST:PORT...]
    #[arg(short, long, default_value = "127.0.0.1:9092")]
    bootstrap: String,
    /// What separates a line's key from its value; without it lines have no key
    #[arg(short = 'K', long, value_name = "TEXT")]
    key_separator: Option<String>,
    /// Write to this partition only; without it the key decides, or keyless records are spread
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Replicas that must have a record before it counts as written
    #[arg(short, long, value_enum, default_value = "all")]
    acks: Acks,
    /// Compression
    #[arg(short = 'z', long, value_enum, default_value = "none")]
    codec: Codec,
    /// Send what has gathered after so many milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5)]
    linger_ms: u64,
    /// How long a record may take to be acknowledged, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 120_000)]
    timeout_ms: u64,
}

/// Runs the command on standard input.
///
/// # Errors
/// One sentence: what was refused and how many records were written before.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let (chunks, input) = mpsc::channel(CHUNKS_WAITING_MAX);
    // A thread nobody waits for: a read of a terminal returns when a line is typed, and a failing
    // command must not hang until then.
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || read_stdin(&chunks))
        .context("cannot start the thread that reads standard input")?;
    produce_lines(&args, input).await
}

fn read_stdin(chunks: &mpsc::Sender<io::Result<Bytes>>) {
    let mut input = io::stdin().lock();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let chunk = match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => Ok(Bytes::copy_from_slice(&buffer[..read])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = chunk.is_err();
        // A closed channel: the command has ended.
        if chunks.blocking_send(chunk).is_err() || failed {
            return;
        }
    }
}

async fn produce_lines(
    args: &Args,
    input: mpsc::Receiver<io::Result<Bytes>>,
) -> anyhow::Result<()> {
    let client = Client::connect(&args.bootstrap, ConnectionConfig::default()).await?;
    let config = ProducerConfig {
        acks: args.acks,
        codec: args.codec,
        delivery_timeout: Duration::from_millis(args.timeout_ms),
        ..ProducerConfig::default()
    };
    let mut producer = Producer::new(client, &args.topic, config).await?;
    let mut lines = Lines::new(input);
    let outcome = pump(args, &mut lines, &mut producer).await;
    let (read, written) = (lines.count, producer.written());
    outcome.with_context(|| match args.acks {
        Acks::None => format!(
            "not every record was taken: {read} lines read, {written} records sent unacknowledged"
        ),
        _ => format!(
            "not every record was written: {read} lines read, {written} records acknowledged"
        ),
    })
}

async fn pump(args: &Args, lines: &mut Lines, producer: &mut Producer) -> anyhow::Result<()> {
    let linger = Duration::from_millis(args.linger_ms);
    let mut flush_at = Instant::now();
    loop {
        let had_unsent = producer.has_unsent();
        let line = tokio::select! {
            biased;
            line = lines.next() => line?,
            () = sleep_until(flush_at), if had_unsent => {
                producer.flush().await?;
                continue;
            }
        };
        let Some(line) = line else {
            return Ok(producer.finish().await?);
        };
        let record = record_of(line, args.key_separator.as_deref(), lines.count)?;
        if let Err(error) = producer.send(args.partition, record).await {
            return Err(at_line(error, lines.count));
        }
        if !had_unsent {
            flush_at = Instant::now() + linger;
        } else if Instant::now() >= flush_at {
            producer.flush().await?;
        }
    }
}

fn at_line(error: ClientError, line: u64) -> anyhow::Error {
    match error {
        ClientError::NoPartition { .. } => anyhow::Error::new(error),
        _ => anyhow::Error::new(error).context(format!("at line {line}")),
    }
}

fn record_of(line: Bytes, separator: Option<&str>, number: u64) -> anyhow::Result<RecordData> {
    let (key, value) = match separator {
        None => (None, line),
        Some(separator) => {
            let Some(at) = find(&line, separator.as_bytes()) else {
                bail!("line {number} has no key: {separator:?} does not occur in it");
            };
            (Some(line.slice(..at)), line.slice(at + separator.len()..))
        }
    };
    Ok(RecordData {
        key,
        value: Some(value),
        headers: Vec::new(),
        timestamp_ms: now_ms(),
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len().max(1))
        .position(|window| window == needle)
}

/// Lines of any bytes, one at a time, bounded in length.
struct Lines {
    input: mpsc::Receiver<io::Result<Bytes>>,
    /// What is left of the last chunk.
    chunk: Bytes,
    /// The part of a line that earlier chunks held: it survives a cancelled `next`.
    partial: Vec<u8>,
    count: u64,
}

impl Lines {
    fn new(input: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self {
            input,
            chunk: Bytes::new(),
            partial: Vec::new(),
            count: 0,
        }
    }

    /// The next line without its newline; none at the end of input. Safe to cancel.
    async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if self.chunk.is_empty() {
                match self.input.recv().await {
                    Some(chunk) => self.chunk = chunk.context("cannot read standard input")?,
                    None if self.partial.is_empty() => return Ok(None),
                    None => return Ok(Some(self.take())),
                }
            }
            let newline = self.chunk.iter().position(|&byte| byte == b'\n');
            let part = self.chunk.split_to(newline.unwrap_or(self.chunk.len()));
            if self.partial.len() + part.len() > LINE_BYTES_MAX {
                bail!(
                    "line {} is longer than {} MiB",
                    self.count + 1,
                    LINE_BYTES_MAX >> 20
                );
            }
            self.partial.extend_from_slice(&part);
            if newline.is_some() {
                self.chunk.advance(1);
                return Ok(Some(self.take()));
            }
        }
    }

    fn take(&mut self) -> Bytes {
        self.count += 1;
        Bytes::from(std::mem::take(&mut self.partial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines_of(input: &[u8]) -> Vec<Bytes> {
        // Tiny chunks, so that lines span several of them.
        let (chunks, receiver) = mpsc::channel(64);
        for chunk in input.chunks(3) {
            chunks
                .send(Ok(Bytes::copy_from_slice(chunk)))
                .await
                .unwrap();
        }
        drop(chunks);
        let mut lines = Lines::new(receiver);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            all.push(line);
        }
        all
    }

    #[tokio::test]
    async fn every_line_becomes_a_record_whatever_its_bytes() {
        assert_eq!(lines_of(b"").await, Vec::<Bytes>::new());
        assert_eq!(
            lines_of(b"a\n\nlonger line\n").await,
            ["a", "", "longer line"]
        );
        assert_eq!(
            lines_of(b"no newline at the end").await,
            ["no newline at the end"]
        );
        assert_eq!(
            lines_of(b"\xff\xfe\r\n").await,
            [Bytes::from_static(b"\xff\xfe\r")]
        );
    }

    #[tokio::test]
    async fn a_read_error_is_not_the_end_of_input() {
        let (chunks, receiver) = mpsc::channel(2);
        chunks
            .send(Ok(Bytes::from_static(b"half a li")))
            .await
            .unwrap();
        chunks
            .send(Err(io::ErrorKind::InvalidData.into()))
            .await
            .unwrap();
        drop(chunks);
        assert!(Lines::new(receiver).next().await.is_err());
    }

    #[test]
    fn the_first_separator_ends_the_key() {
        let record = record_of(Bytes::from_static(b"k::v::w"), Some("::"), 1).unwrap();
        assert_eq!(
            (record.key.as_deref(), record.value.as_deref()),
            (Some(&b"k"[..]), Some(&b"v::w"[..]))
        );
        let error = record_of(Bytes::from_static(b"no separator"), Some("::"), 7).unwrap_err();
        assert!(error.to_string().contains("line 7"), "{error}");
        let record = record_of(Bytes::from_static(b"k::v"), None, 1).unwrap();
        assert_eq!(
            (record.key, record.value.as_deref()),
            (None, Some(&b"k::v"[..]))
        );
    }
}
