//! Building and decoding, held against a second implementation (`kafka-wire-records`) and against damage.

use kafka_wire_records::{RecordBatch, RecordDecodeLimits, RecordEncodeLimits};

use super::*;
use crate::batch::check_crc;

const LIMIT: usize = 1 << 20;

/// The fields of a record that a test compares, owned.
type Plain = (
    i64,
    i64,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(Vec<u8>, Option<Vec<u8>>)>,
);

fn builder(compression: Compression) -> RecordsBuilder {
    let mut builder = RecordsBuilder::new(compression).placed(Offset(1000), LeaderEpoch(3));
    builder.push(1_700_000_000_000, Some(b"key"), Some(b"value"), &[]);
    builder.push(
        1_699_999_999_000,
        None,
        Some(&[7; 3000]),
        &[(b"h", Some(b"1")), (b"h", None), (b"", Some(b""))],
    );
    builder.push(1_700_000_009_999, Some(b""), None, &[]);
    builder
}

fn expected() -> Vec<Plain> {
    vec![
        (
            1000,
            1_700_000_000_000,
            Some(b"key".to_vec()),
            Some(b"value".to_vec()),
            vec![],
        ),
        (
            1001,
            1_699_999_999_000,
            None,
            Some(vec![7; 3000]),
            vec![
                (b"h".to_vec(), Some(b"1".to_vec())),
                (b"h".to_vec(), None),
                (vec![], Some(vec![])),
            ],
        ),
        (1002, 1_700_000_009_999, Some(vec![]), None, vec![]),
    ]
}

fn read(batch: &[u8]) -> Result<Vec<Plain>, RecordsError> {
    let header = BatchHeader::parse(batch).expect("header");
    let plain = plain_records(&header, &batch[HEADER_LEN..], LIMIT)?;
    decode(&header, &plain)
        .map(|record| {
            let record = record?;
            let headers = record
                .headers()
                .map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec)));
            Ok((
                record.offset.0,
                record.timestamp,
                record.key.map(<[u8]>::to_vec),
                record.value.map(<[u8]>::to_vec),
                headers.collect(),
            ))
        })
        .collect()
}

#[test]
fn what_is_built_is_read_back() {
    for codec in Compression::ALL {
        let batch = builder(codec).build().expect("batch");
        check_crc(&batch).expect("CRC");
        let header = BatchHeader::parse(&batch).expect("header");
        assert_eq!(header.size(), batch.len());
        assert_eq!(header.compression(), codec);
        assert_eq!(header.max_timestamp, 1_700_000_009_999);
        assert_eq!(header.last_offset(), Offset(1002));
        assert_eq!(read(&batch).expect("records"), expected(), "{codec}");
    }
}

#[test]
fn a_second_implementation_reads_what_is_built() {
    let limits = RecordDecodeLimits::default();
    for codec in Compression::ALL {
        let mut bytes = bytes::Bytes::from(builder(codec).build().expect("batch"));
        let batch = RecordBatch::decode(&mut bytes, limits).expect("decodes");
        assert_eq!(batch.base_offset, 1000);
        assert_eq!(batch.partition_leader_epoch, 3);
        assert_eq!(batch.max_timestamp, 1_700_000_009_999);
        assert_eq!(batch.records.len(), 3);
        assert_eq!(batch.records[1].value.as_deref(), Some(&[7; 3000][..]));
        assert_eq!(batch.records[1].headers.len(), 3);
        assert_eq!(batch.records[2].value, None);
    }
}

#[test]
fn what_a_second_implementation_builds_is_read() {
    for codec in Compression::ALL {
        let mut bytes = bytes::Bytes::from(builder(codec).build().expect("batch"));
        let batch =
            RecordBatch::decode(&mut bytes, RecordDecodeLimits::default()).expect("decodes");
        let mut out = bytes::BytesMut::new();
        batch
            .encode_into(&mut out, RecordEncodeLimits::default())
            .expect("encodes");
        check_crc(&out).expect("CRC");
        assert_eq!(read(&out).expect("records"), expected(), "{codec}");
    }
}

#[test]
fn a_bare_snappy_block_is_read() {
    let plain = builder(Compression::None).build().expect("batch");
    let body = snap::raw::Encoder::new()
        .compress_vec(&plain[HEADER_LEN..])
        .expect("snappy");
    let mut header = BatchHeader::parse(&plain).expect("header");
    header.attributes = Attributes::new(Compression::Snappy);
    header.batch_length = (HEADER_LEN - SIZE_PREFIX_LEN + body.len()) as i32;
    seal(&mut header, &body);
    let batch = [&header.encode()[..], &body].concat();
    assert_eq!(read(&batch).expect("records"), expected());
}

#[test]
fn log_append_time_overrides_the_records_own() {
    let batch = builder(Compression::None).build().expect("batch");
    let mut header = BatchHeader::parse(&batch).expect("header");
    header.attributes = header
        .attributes
        .with_timestamp_type(TimestampType::LogAppendTime);
    header.max_timestamp = 5;
    let timestamps: Vec<i64> = decode(&header, &batch[HEADER_LEN..])
        .map(|record| record.expect("record").timestamp)
        .collect();
    assert_eq!(timestamps, [5, 5, 5]);
}

/// Records cut anywhere, or with any byte changed, give an error or records, never a panic or an endless loop.
#[test]
fn damage_is_an_error() {
    let batch = builder(Compression::None).build().expect("batch");
    let header = BatchHeader::parse(&batch).expect("header");
    let body = &batch[HEADER_LEN..];
    for end in 0..body.len() {
        let last = decode(&header, &body[..end]).last().expect("an item");
        assert!(
            matches!(last, Err(RecordsError::Malformed(_))),
            "cut at {end}"
        );
    }
    for at in 0..body.len().min(200) {
        for byte in 0..=255 {
            let mut damaged = body.to_vec();
            damaged[at] = byte;
            assert!(decode(&header, &damaged).count() <= 4);
        }
    }
    let longer = [body, b"\0"].concat();
    assert!(decode(&header, &longer).last().expect("an item").is_err());
    assert_eq!(decode(&header, &longer).filter(Result::is_err).count(), 1);
}

#[test]
fn claims_beyond_the_bytes_are_refused() {
    let mut header =
        BatchHeader::parse(&builder(Compression::None).build().expect("batch")).expect("header");
    header.last_offset_delta = 0;
    header.records_count = 1;
    let record = |fields: &[i64]| {
        let mut body = vec![0];
        fields
            .iter()
            .for_each(|&field| put_varlong(&mut body, field));
        let mut record = Vec::new();
        put_varlong(&mut record, body.len() as i64);
        record.extend_from_slice(&body);
        record
    };
    let fault = |fields: &[i64]| {
        decode(&header, &record(fields))
            .next()
            .expect("an item")
            .expect_err("refused")
            .to_string()
    };
    // timestamp delta, offset delta, key length, value length, headers count, header key length, header value length
    assert!(decode(&header, &record(&[0, 0, -1, -1, 0])).all(|record| record.is_ok()));
    assert_eq!(
        fault(&[0, 1, -1, -1, 0]),
        "malformed records: offset delta 1 in a batch that ends at 0"
    );
    assert_eq!(
        fault(&[0, -1, -1, -1, 0]),
        "malformed records: offset delta -1 in a batch that ends at 0"
    );
    assert_eq!(
        fault(&[0, 0, -2, -1, 0]),
        "malformed records: key length -2"
    );
    assert_eq!(
        fault(&[0, 0, i64::from(i32::MAX), -1, 0]),
        "malformed records: 2147483647 bytes claimed, 2 left"
    );
    assert_eq!(
        fault(&[0, 0, i64::MAX, -1, 0]),
        "malformed records: varint 9223372036854775807 does not fit 32 bits"
    );
    assert_eq!(
        fault(&[0, 0, -1, -1, i64::from(i32::MAX)]),
        "malformed records: 2147483647 headers in 0 bytes"
    );
    assert_eq!(
        fault(&[0, 0, -1, -1, -1]),
        "malformed records: headers count -1"
    );
    assert_eq!(
        fault(&[0, 0, -1, -1, 1, -1, 0]),
        "malformed records: header key length -1"
    );
    assert_eq!(
        fault(&[0, 0, -1, -1, 0, 0]),
        "malformed records: 1 bytes after the record's headers"
    );
}

#[test]
fn varints_keep_their_width() {
    for number in [
        0,
        -1,
        1,
        63,
        -64,
        64,
        i64::from(i32::MAX),
        i64::MIN,
        i64::MAX,
    ] {
        let mut bytes = Vec::new();
        put_varlong(&mut bytes, number);
        assert_eq!(Reader { rest: &bytes }.varlong(), Ok(number));
    }
    let eleven = [0xff; 11];
    assert!(Reader { rest: &eleven }.varlong().is_err());
    let overflow = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
    assert!(Reader { rest: &overflow }.varlong().is_err());
}

#[test]
fn batches_end_at_the_last_whole_one() {
    let one = builder(Compression::None).build().expect("batch");
    let two = [&one[..], &one].concat();
    for (bytes, whole) in [
        (&two[..], 2),
        (&two[..two.len() - 1], 1),
        (&two[..one.len() + 20], 1),
        (&one[..30], 0),
    ] {
        let found: Vec<_> = batches(bytes).collect::<Result<_, _>>().expect("batches");
        assert_eq!(found.len(), whole);
        assert!(found.iter().all(|(_, body)| *body == &one[HEADER_LEN..]));
    }
    let mut damaged = two;
    damaged[one.len() + 16] = 1;
    let items: Vec<_> = batches(&damaged).collect();
    assert_eq!(items.len(), 2);
    assert_eq!(items[1], Err(BatchError::UnsupportedMagic(1)));
}

#[test]
fn an_empty_batch_is_not_built() {
    assert!(matches!(
        RecordsBuilder::new(Compression::None).build(),
        Err(BuildError::Empty)
    ));
}
