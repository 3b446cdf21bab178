//! `kittiwake consume TOPIC`: records to standard output, one per line unless `--format` says else.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use anyhow::Context as _;
use kafka_wire_records::RecordHeader;
use serde_json::{Value, json};

use crate::client::{
    Client, ConnectionConfig, ConsumedRecord, Consumer, ConsumerConfig, StartOffset, Topic,
};

/// Print records, one per line.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Topic to read
    topic: String,
    /// Brokers to start from: HOST:PORT[,HOST:PORT...]
    #[arg(short, long, default_value = "127.0.0.1:9092")]
    bootstrap: String,
    /// Read these partitions only
    #[arg(short, long, value_name = "NUMBER", value_delimiter = ',', value_parser = clap::value_parser!(i32).range(0..))]
    partition: Vec<i32>,
    /// Where to start: beginning, end, OFFSET, -COUNT (before the end) or @MILLISECONDS
    #[arg(short, long, default_value = "beginning", allow_hyphen_values = true)]
    offset: StartOffset,
    /// Stop after so many records
    #[arg(short, long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Stop at the end that each partition has when reading starts
    #[arg(short = 'e', long)]
    until_end: bool,
    /// How a record is printed: %k key, %s value, %o offset, %p partition, %t topic, %T timestamp,
    /// %h headers, %% a percent sign, \n \t \0 \\ as in C
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "%s\\n",
        conflicts_with = "output"
    )]
    format: String,
    /// `json`: one object per line, with key and value as text, or as hexadecimal digits in
    /// key_hex and value_hex where they are not UTF-8
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// How records are printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Output {
    /// By `--format`.
    Text,
    /// One JSON object per line.
    Json,
}

/// Runs the command.
///
/// # Errors
/// One sentence: the topic, partition or offset that cannot be read and why. A closed standard
/// output is not an error: the reader has what it wanted.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let layout = match args.output {
        Output::Text => Layout::parse(&args.format)?,
        Output::Json => Layout::Json,
    };
    let mut client = Client::connect(&args.bootstrap, ConnectionConfig::default()).await?;
    let topic = client.topic(&args.topic, false).await?;
    let partitions = chosen(&topic, &args.partition)?;
    let ends = if args.until_end {
        Some(client.end_offsets(&topic, &partitions).await?)
    } else {
        None
    };
    let starts = client
        .start_offsets(&topic, &partitions, args.offset)
        .await?;
    let consumer = Consumer::new(client, topic, starts, ConsumerConfig::default());
    // Locked per write: a lock held across an await would belong to one thread.
    let out = BufWriter::with_capacity(64 << 10, io::stdout());
    match print_records(&args, consumer, ends, &layout, out).await {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        other => other,
    }
}

async fn print_records(
    args: &Args,
    mut consumer: Consumer,
    ends: Option<BTreeMap<i32, i64>>,
    layout: &Layout,
    mut out: impl Write,
) -> anyhow::Result<()> {
    let mut left = args.count.unwrap_or(u64::MAX);
    loop {
        stop_at_ends(&mut consumer, ends.as_ref());
        if left == 0 || consumer.positions().is_empty() {
            return Ok(out.flush()?);
        }
        for record in consumer.next().await? {
            let past_end = ends
                .as_ref()
                .and_then(|ends| ends.get(&record.partition))
                .is_some_and(|&end| record.offset >= end);
            if past_end || left == 0 {
                continue;
            }
            layout.print(&args.topic, &record, &mut out)?;
            left -= 1;
        }
        // A reader of a pipe sees what there is, not what fills a buffer.
        out.flush()?;
    }
}

fn stop_at_ends(consumer: &mut Consumer, ends: Option<&BTreeMap<i32, i64>>) {
    let Some(ends) = ends else { return };
    let reached: Vec<i32> = consumer
        .positions()
        .iter()
        .filter(|(partition, position)| ends.get(partition).is_some_and(|end| *position >= end))
        .map(|(&partition, _)| partition)
        .collect();
    for partition in reached {
        consumer.stop(partition);
    }
}

fn chosen(topic: &Topic, wanted: &[i32]) -> anyhow::Result<Vec<i32>> {
    if wanted.is_empty() {
        return Ok(topic
            .partitions
            .iter()
            .map(|known| known.partition)
            .collect());
    }
    for &partition in wanted {
        topic.leader(partition)?;
    }
    Ok(wanted.to_vec())
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A parsed `--format`.
#[derive(Debug, Eq, PartialEq)]
enum Layout {
    Fields(Vec<Field>),
    Json,
}

#[derive(Debug, Eq, PartialEq)]
enum Field {
    Text(Vec<u8>),
    Key,
    Value,
    Offset,
    Partition,
    Topic,
    Timestamp,
    Headers,
}

impl Layout {
    fn parse(format: &str) -> anyhow::Result<Self> {
        let mut fields = Vec::new();
        let mut text = Vec::new();
        let mut chars = format.chars();
        while let Some(char) = chars.next() {
            let field = match char {
                '%' => match chars.next() {
                    Some('k') => Field::Key,
                    Some('s') => Field::Value,
                    Some('o') => Field::Offset,
                    Some('p') => Field::Partition,
                    Some('t') => Field::Topic,
                    Some('T') => Field::Timestamp,
                    Some('h') => Field::Headers,
                    Some('%') => Field::Text(b"%".to_vec()),
                    other => anyhow::bail!(
                        "--format has no %{}",
                        other.map_or_else(String::new, String::from)
                    ),
                },
                '\\' => Field::Text(match chars.next() {
                    Some('n') => b"\n".to_vec(),
                    Some('t') => b"\t".to_vec(),
                    Some('0') => b"\0".to_vec(),
                    Some('\\') => b"\\".to_vec(),
                    other => anyhow::bail!(
                        "--format has no \\{}",
                        other.map_or_else(String::new, String::from)
                    ),
                }),
                plain => Field::Text(plain.to_string().into_bytes()),
            };
            match field {
                Field::Text(more) => text.extend(more),
                field => {
                    if !text.is_empty() {
                        fields.push(Field::Text(std::mem::take(&mut text)));
                    }
                    fields.push(field);
                }
            }
        }
        if !text.is_empty() {
            fields.push(Field::Text(text));
        }
        Ok(Self::Fields(fields))
    }

    fn print(
        &self,
        topic: &str,
        record: &ConsumedRecord,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        match self {
            Self::Json => {
                serde_json::to_writer(&mut *out, &json_of(topic, record))
                    .map_err(io::Error::from)
                    .context("standard output")?;
                out.write_all(b"\n")?;
            }
            Self::Fields(fields) => {
                for field in fields {
                    field.print(topic, record, out)?;
                }
            }
        }
        Ok(())
    }
}

impl Field {
    fn print(&self, topic: &str, record: &ConsumedRecord, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Text(text) => out.write_all(text),
            Self::Key => out.write_all(record.key.as_deref().unwrap_or_default()),
            Self::Value => out.write_all(record.value.as_deref().unwrap_or_default()),
            Self::Offset => write!(out, "{}", record.offset),
            Self::Partition => write!(out, "{}", record.partition),
            Self::Topic => out.write_all(topic.as_bytes()),
            Self::Timestamp => write!(out, "{}", record.timestamp_ms),
            Self::Headers => print_headers(&record.headers, out),
        }
    }
}

/// `key=value,key=value`, as kcat prints them.
fn print_headers(headers: &[RecordHeader], out: &mut impl Write) -> io::Result<()> {
    for (index, header) in headers.iter().enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        write!(out, "{}=", header.key)?;
        out.write_all(header.value.as_deref().unwrap_or(b"NULL"))?;
    }
    Ok(())
}

fn json_of(topic: &str, record: &ConsumedRecord) -> Value {
    let mut object = json!({
        "topic": topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp_ms,
    });
    put_bytes(&mut object, "key", record.key.as_deref());
    put_bytes(&mut object, "value", record.value.as_deref());
    let headers = record.headers.iter().map(|header| {
        let mut entry = json!({ "key": header.key.as_str() });
        put_bytes(&mut entry, "value", header.value.as_deref());
        entry
    });
    object["headers"] = headers.collect();
    object
}

/// Text as text; other bytes as hexadecimal digits under another name, so that nothing is guessed.
fn put_bytes(object: &mut Value, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(std::str::from_utf8) {
        None => object[name] = Value::Null,
        Some(Ok(text)) => object[name] = text.into(),
        Some(Err(_)) => {
            let digits = bytes
                .unwrap_or_default()
                .iter()
                .map(|byte| format!("{byte:02x}"));
            object[format!("{name}_hex")] = digits.collect::<String>().into();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record() -> ConsumedRecord {
        ConsumedRecord {
            partition: 3,
            offset: 42,
            timestamp_ms: 1_000,
            key: Some(Bytes::from_static(b"\xff\x00")),
            value: None,
            headers: vec![RecordHeader {
                key: "h".into(),
                value: Some(Bytes::from_static(b"v")),
            }],
        }
    }

    fn printed(layout: &Layout) -> Vec<u8> {
        let mut out = Vec::new();
        layout.print("logs", &record(), &mut out).unwrap();
        out
    }

    #[test]
    fn a_format_prints_every_field_and_bytes_as_they_are() {
        let layout = Layout::parse(r"%t-%p@%o %T 100%% %h [%k]\t%s\n").unwrap();
        assert_eq!(printed(&layout), b"logs-3@42 1000 100% h=v [\xff\x00]\t\n");
    }

    #[test]
    fn a_wrong_format_is_refused_before_anything_is_read() {
        for bad in ["%x", "%", r"\x", r"\"] {
            assert!(Layout::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn json_tells_null_text_and_bytes_apart() {
        let object: Value = serde_json::from_slice(&printed(&Layout::Json)).unwrap();
        assert_eq!(object["key_hex"], "ff00");
        assert_eq!(object["value"], Value::Null);
        assert!(object.get("key").is_none() && object.get("value_hex").is_none());
        assert_eq!(object["headers"][0], json!({ "key": "h", "value": "v" }));
        assert_eq!(
            (&object["partition"], &object["offset"]),
            (&json!(3), &json!(42))
        );
    }
}
