//! `kittiwake log dump|verify DIR...`: a partition's directory, read without a node. Nothing is modified, and a node
//! may be running on it.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use kittiwake_storage::Offset;
use kittiwake_storage::batch::BatchHeader;
use kittiwake_storage::inspect::{
    Difference, Finding, FoundBatch, PartitionDir, Report, SegmentEnd, SegmentReader, Step,
    compare, verify,
};
use kittiwake_storage::records::{self, Record};
use serde_json::{Map, Value, json};

/// Bytes the records of one batch may expand to. A larger batch is named, not shown.
const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;

/// Read a partition's directory
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the batches of a partition
    Dump(DumpArgs),
    /// Check the files of a partition against each other, and replicas of it against each other
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Args)]
struct DumpArgs {
    /// Directories of partitions, such as DATA/orders-0
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Print the records too
    #[arg(long)]
    records: bool,
    /// Begin with the batch that holds this offset
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from: i64,
    /// Stop before this offset
    #[arg(long, value_name = "OFFSET")]
    upto: Option<i64>,
    /// `json`: one object per line, with key and value as text, or as hexadecimal digits in key_hex and value_hex
    /// where they are not UTF-8
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// Directories of partitions; several are taken for replicas of one and compared up to the smallest end
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// `json`: one object
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs the command; fails with findings printed when something is wrong with the files.
///
/// # Errors
/// One sentence: the directory that cannot be read and why. A closed standard output is not an error.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let out = BufWriter::new(io::stdout().lock());
    let sound = match args.command {
        Command::Dump(args) => dump(&args, out),
        Command::Verify(args) => verify_all(&args, out),
    };
    match sound {
        Err(error) if is_closed_pipe(&error) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Says whether everything printed was sound.
fn dump(args: &DumpArgs, mut out: impl Write) -> anyhow::Result<bool> {
    let mut sound = true;
    for path in &args.dirs {
        let dir = PartitionDir::open(path)?;
        let first = dir.segment_of(Offset(args.from));
        let segments = dir.segments().iter().filter(|&&base| base >= first);
        for &base in segments.take_while(|base| args.upto.is_none_or(|upto| base.0 < upto)) {
            let reader = dir.segment(base)?;
            sound &= dump_segment(args, path, base, reader, &mut out)?;
        }
    }
    out.flush()?;
    Ok(sound)
}

fn dump_segment(
    args: &DumpArgs,
    dir: &Path,
    base: Offset,
    mut reader: SegmentReader,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let file = dir.join(format!("{:020}.log", base.0));
    let reading = || format!("cannot read {}", file.display());
    if args.output == Output::Text {
        writeln!(out, "{}", file.display())?;
    }
    let mut sound = true;
    loop {
        let batch = match reader.step().with_context(reading)? {
            Step::Batch(batch) => batch,
            Step::End(position, end) => {
                sound &= !matches!(end, SegmentEnd::Damage { .. });
                print_end(args.output, &file, position, &end, out)?;
                return Ok(sound);
            }
        };
        if args
            .upto
            .is_some_and(|upto| batch.header.base_offset.0 >= upto)
        {
            return Ok(sound);
        }
        if batch.header.last_offset().0 < args.from {
            continue;
        }
        sound &= batch.crc.is_ok();
        let records = if args.records && batch.crc.is_ok() {
            let body = reader.body(&batch).with_context(reading)?;
            Some(decode(args.output, &batch.header, &body))
        } else {
            None
        };
        sound &= records.as_ref().is_none_or(|(_, error)| error.is_none());
        print_batch(args.output, &file, &batch, records, out)?;
    }
}

/// The records of a batch as they are printed, and what stopped the decoding.
type Printed = (Vec<Value>, Option<String>);

fn decode(output: Output, header: &BatchHeader, body: &[u8]) -> Printed {
    let mut printed = Vec::new();
    let plain = match records::plain_records(header, body, DECOMPRESSED_BYTES_MAX) {
        Ok(plain) => plain,
        Err(error) => return (printed, Some(error.to_string())),
    };
    for record in records::decode(header, &plain) {
        match record {
            Ok(record) if output == Output::Json => printed.push(record_json(&record)),
            Ok(record) => printed.push(Value::String(record_text(&record))),
            Err(error) => return (printed, Some(error.to_string())),
        }
    }
    (printed, None)
}

fn print_batch(
    output: Output,
    file: &Path,
    batch: &FoundBatch,
    records: Option<Printed>,
    out: &mut impl Write,
) -> io::Result<()> {
    if output == Output::Json {
        return writeln!(out, "{}", batch_json(file, batch, records));
    }
    writeln!(out, "{}", batch_text(batch))?;
    let (records, error) = records.unwrap_or_default();
    for record in records.iter().filter_map(Value::as_str) {
        writeln!(out, "  {record}")?;
    }
    error.map_or(Ok(()), |error| writeln!(out, "  INVALID: {error}"))
}

fn batch_text(batch: &FoundBatch) -> String {
    let header = &batch.header;
    let mut text = format!(
        "batch {}..{} at {} size {} records {} codec {} leader epoch {} {} {}",
        header.base_offset,
        header.last_offset(),
        batch.position,
        header.size(),
        header.records_count,
        header.compression(),
        header.leader_epoch,
        header.timestamp_type(),
        header.max_timestamp,
    );
    if header.has_producer_id() {
        text += &format!(
            " producer {} epoch {} sequence {}..{}",
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
            header.last_sequence()
        );
    }
    for (set, name) in [
        (header.is_transactional(), " transactional"),
        (header.is_control(), " control"),
        (header.attributes.has_delete_horizon(), " delete horizon"),
    ] {
        text += if set { name } else { "" };
    }
    match &batch.crc {
        Ok(()) => text,
        Err(error) => format!("{text} INVALID: {error}"),
    }
}

fn batch_json(file: &Path, batch: &FoundBatch, records: Option<Printed>) -> Value {
    let header = &batch.header;
    let mut object = json!({
        "file": file.display().to_string(),
        "position": batch.position,
        "size": header.size(),
        "base_offset": header.base_offset.0,
        "last_offset": header.last_offset().0,
        "records_count": header.records_count,
        "leader_epoch": header.leader_epoch.0,
        "compression": header.compression().name(),
        "timestamp_type": header.timestamp_type().to_string(),
        "base_timestamp": header.base_timestamp,
        "max_timestamp": header.max_timestamp,
        "producer_id": header.producer_id,
        "producer_epoch": header.producer_epoch,
        "base_sequence": header.base_sequence,
        "last_sequence": header.last_sequence(),
        "transactional": header.is_transactional(),
        "control": header.is_control(),
        "crc": header.crc,
        "valid": batch.crc.is_ok(),
    });
    if let Some((records, error)) = records {
        object["records"] = Value::Array(records);
        if let Some(error) = error {
            object["error"] = Value::String(error);
        }
    }
    object
}

fn record_text(record: &Record<'_>) -> String {
    let mut text = format!(
        "record {} timestamp {} key {} value {}",
        record.offset,
        record.timestamp,
        bytes_text(record.key),
        bytes_text(record.value)
    );
    for (key, value) in record.headers() {
        text += &format!(" header {}={}", bytes_text(Some(key)), bytes_text(value));
    }
    text
}

/// In quotes where it is text, as hexadecimal digits where it is not.
fn bytes_text(bytes: Option<&[u8]>) -> String {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => "null".to_owned(),
        Some((_, Ok(text))) => format!("{text:?}"),
        Some((bytes, Err(_))) => format!("0x{}", hex(bytes)),
    }
}

fn record_json(record: &Record<'_>) -> Value {
    let mut object = Map::new();
    object.insert("offset".to_owned(), json!(record.offset.0));
    object.insert("timestamp".to_owned(), json!(record.timestamp));
    put_bytes(&mut object, "key", record.key);
    put_bytes(&mut object, "value", record.value);
    let headers: Vec<_> = record
        .headers()
        .map(|(key, value)| {
            let mut header = Map::new();
            put_bytes(&mut header, "key", Some(key));
            put_bytes(&mut header, "value", value);
            Value::Object(header)
        })
        .collect();
    if !headers.is_empty() {
        object.insert("headers".to_owned(), Value::Array(headers));
    }
    Value::Object(object)
}

fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => object.insert(name.to_owned(), Value::Null),
        Some((_, Ok(text))) => object.insert(name.to_owned(), json!(text)),
        Some((bytes, Err(_))) => object.insert(format!("{name}_hex"), json!(hex(bytes))),
    };
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn print_end(
    output: Output,
    file: &Path,
    position: u64,
    end: &SegmentEnd,
    out: &mut impl Write,
) -> io::Result<()> {
    let (kind, what) = match end {
        SegmentEnd::File => return Ok(()),
        SegmentEnd::Successor { superseded } => (
            "successor",
            format!("{superseded} bytes cut off by a truncation"),
        ),
        SegmentEnd::Zeros {
            bytes,
            nonzero_at: None,
        } => ("zeros", format!("{bytes} bytes allocated and not used")),
        SegmentEnd::Zeros {
            nonzero_at: Some(at),
            ..
        } => ("zeros", format!("a zero header, but bytes at {at}")),
        SegmentEnd::Damage { reason, bytes, .. } => (
            "damage",
            format!("INVALID: {reason}, and {bytes} bytes unread"),
        ),
    };
    if output == Output::Json {
        let end = json!({ "file": file.display().to_string(), "position": position, "end": kind, "what": what });
        return writeln!(out, "{end}");
    }
    writeln!(out, "end at {position}: {what}")
}

/// Says whether no fault was found.
fn verify_all(args: &VerifyArgs, mut out: impl Write) -> anyhow::Result<bool> {
    let dirs: Vec<_> = args
        .dirs
        .iter()
        .map(|path| PartitionDir::open(path))
        .collect::<Result<_, _>>()?;
    let reports: Vec<_> = dirs
        .iter()
        .map(|dir| verify(dir, dir.stopped_cleanly()))
        .collect::<Result<_, _>>()?;
    let differences = compare(&dirs)?;
    match args.output {
        Output::Json => {
            let reports: Vec<_> = reports.iter().map(report_json).collect();
            let differences: Vec<_> = differences.iter().map(difference_json).collect();
            writeln!(
                out,
                "{}",
                json!({ "logs": reports, "differences": differences })
            )?;
        }
        Output::Text => {
            for report in &reports {
                print_report(report, &mut out)?;
            }
            for difference in &differences {
                let Difference {
                    reference,
                    replica,
                    offset,
                    what,
                } = difference;
                writeln!(
                    out,
                    "{}: differs from {} at offset {offset}: {what}",
                    replica.display(),
                    reference.display()
                )?;
            }
        }
    }
    out.flush()?;
    Ok(differences.is_empty() && reports.iter().all(|report| report.faults.is_empty()))
}

fn print_report(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let verdict = match report.faults.len() {
        0 => "sound".to_owned(),
        1 => "1 FAULT".to_owned(),
        faults => format!("{faults} FAULTS"),
    };
    writeln!(
        out,
        "{}: {verdict}; offsets {}..{}, {} segments, {} batches, {} records, {} bytes",
        report.dir.display(),
        report.start_offset,
        report.end_offset,
        report.segments,
        report.batches,
        report.records,
        report.bytes
    )?;
    for (kind, findings) in [("FAULT", &report.faults), ("note", &report.notes)] {
        for Finding {
            file,
            position,
            what,
        } in findings
        {
            let at = position.map_or(String::new(), |position| format!(" at {position}"));
            writeln!(out, "  {kind}: {file}{at}: {what}")?;
        }
    }
    if report.omitted > 0 {
        writeln!(out, "  and {} more", report.omitted)?;
    }
    Ok(())
}

fn report_json(report: &Report) -> Value {
    let findings = |findings: &[Finding]| -> Vec<Value> {
        findings
            .iter()
            .map(
                |Finding {
                     file,
                     position,
                     what,
                 }| json!({ "file": file, "position": position, "what": what }),
            )
            .collect()
    };
    json!({
        "dir": report.dir.display().to_string(),
        "sound": report.faults.is_empty(),
        "start_offset": report.start_offset.0,
        "end_offset": report.end_offset.0,
        "segments": report.segments,
        "batches": report.batches,
        "records": report.records,
        "bytes": report.bytes,
        "faults": findings(&report.faults),
        "notes": findings(&report.notes),
        "omitted": report.omitted,
    })
}

fn difference_json(difference: &Difference) -> Value {
    json!({
        "reference": difference.reference.display().to_string(),
        "replica": difference.replica.display().to_string(),
        "offset": difference.offset.0,
        "what": difference.what,
    })
}

#[cfg(test)]
mod tests {
    //! What is printed, and when the command fails. What is found is storage's to test.

    use std::fs;

    use clap::Parser;
    use kittiwake_storage::{Compression, LeaderEpoch, RecordsBuilder};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn printed(arguments: &[&str]) -> (bool, String) {
        let mut out = Vec::new();
        let sound = match Cli::parse_from([&["log"], arguments].concat()).args.command {
            Command::Dump(args) => dump(&args, &mut out),
            Command::Verify(args) => verify_all(&args, &mut out),
        };
        (
            sound.expect("readable"),
            String::from_utf8(out).expect("text"),
        )
    }

    fn partition(value: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("directory");
        let mut log = Vec::new();
        for offset in [0, 2] {
            let mut builder = RecordsBuilder::new(Compression::Gzip)
                .producer(5, 1, offset as i32)
                .placed(Offset(offset), LeaderEpoch(0));
            builder.push(1000, Some(b"k\n"), Some(value), &[(b"h", None)]);
            builder.push(1001, None, Some(&[0xff, 0]), &[]);
            log.extend(builder.build().expect("batch"));
        }
        fs::write(dir.path().join("00000000000000000000.log"), log).expect("written");
        fs::write(dir.path().join("leader-epoch-checkpoint"), "0\n1\n0 0\n").expect("written");
        dir
    }

    #[test]
    fn a_dump_shows_batches_and_records() {
        let dir = partition(b"v");
        let path = dir.path().to_str().expect("a text path");
        let (sound, text) = printed(&["dump", path, "--records", "--from", "3"]);
        assert!(sound);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].ends_with("00000000000000000000.log"));
        assert!(lines[1].starts_with("batch 2..3 at "));
        assert!(lines[1].ends_with(
            "records 2 codec gzip leader epoch 0 CreateTime 1001 producer 5 epoch 1 sequence 2..3"
        ));
        assert_eq!(
            lines[2],
            r#"  record 2 timestamp 1000 key "k\n" value "v" header "h"=null"#
        );
        assert_eq!(lines[3], "  record 3 timestamp 1001 key null value 0xff00");
        let (_, text) = printed(&["dump", path, "--upto", "2"]);
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_dump_in_json_is_an_object_per_line() {
        let dir = partition(b"v");
        let path = dir.path().to_str().expect("a text path");
        let (_, text) = printed(&["dump", path, "--records", "--output", "json"]);
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["base_offset"], 2);
        assert_eq!(
            lines[1]["records"],
            json!([
                { "offset": 2, "timestamp": 1000, "key": "k\n", "value": "v", "headers": [{ "key": "h", "value": null }] },
                { "offset": 3, "timestamp": 1001, "key": null, "value_hex": "ff00" },
            ])
        );
    }

    #[test]
    fn damage_fails_the_command() {
        let dir = partition(b"v");
        let log = dir.path().join("00000000000000000000.log");
        let mut bytes = fs::read(&log).expect("read");
        bytes[80] ^= 1;
        fs::write(&log, bytes).expect("written");
        let path = dir.path().to_str().expect("a text path");
        let (sound, text) = printed(&["dump", path, "--records"]);
        assert!(!sound);
        assert!(text.contains("INVALID: corrupt batch: CRC is"), "{text}");
        let (sound, text) = printed(&["verify", path]);
        assert!(!sound);
        assert!(text.contains("1 FAULT;"), "{text}");
        assert!(
            text.contains("  FAULT: 00000000000000000000.log at 0: batch at offset 0"),
            "{text}"
        );
    }

    #[test]
    fn replicas_are_compared() {
        let (one, two) = (partition(b"v"), partition(b"w"));
        let paths = [&one, &two].map(|dir| dir.path().to_str().expect("a text path"));
        assert!(printed(&["verify", paths[0], paths[0]]).0);
        let (sound, text) = printed(&["verify", paths[0], paths[1], "--output", "json"]);
        assert!(!sound);
        let report: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(report["logs"][1]["sound"], true);
        assert_eq!(report["differences"][0]["offset"], 0);
    }

    #[test]
    fn what_is_no_partition_is_one_sentence() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().to_str().expect("a text path");
        let args = Cli::parse_from(["log", "verify", path]).args;
        let error = run(args).expect_err("refused").to_string();
        assert!(
            error.contains("is it the directory of a partition?"),
            "{error}"
        );
    }
}
