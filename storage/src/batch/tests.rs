//! What is accepted from a client, what is not and with which of Kafka's errors.

use super::*;
use crate::records::{RecordsBuilder, plain_records};

const NOW_MS: i64 = 1_700_000_000_000;

fn rules() -> BatchRules {
    BatchRules {
        max_message_bytes: 1 << 20,
        keys_required: false,
        strict: false,
        timestamp_type: TimestampType::CreateTime,
        timestamp_before_max_ms: i64::MAX,
        timestamp_after_max_ms: 3_600_000,
        allow_zstd: true,
        decompressed_bytes_max: 1 << 20,
        origin: BatchOrigin::Client,
    }
}

fn strict() -> BatchRules {
    BatchRules {
        strict: true,
        ..rules()
    }
}

fn batch(compression: Compression) -> Vec<u8> {
    let mut builder = RecordsBuilder::new(compression).producer(7, 0, 40);
    for n in 0..3 {
        builder.push(NOW_MS - n, Some(b"k"), Some(b"value"), &[]);
    }
    builder.build().expect("batch")
}

/// The batch with its header changed and its CRC made right again.
fn with(change: impl FnOnce(&mut BatchHeader)) -> Vec<u8> {
    let bytes = batch(Compression::None);
    let mut header = BatchHeader::parse(&bytes).expect("header");
    change(&mut header);
    let body = &bytes[HEADER_LEN..];
    seal(&mut header, body);
    [&header.encode()[..], body].concat()
}

fn invalid(records: &[u8], rules: &BatchRules) -> String {
    match validate(records, rules, NOW_MS) {
        Err(BatchError::Invalid { reason, .. }) => reason,
        other => panic!("not INVALID_RECORD: {other:?}"),
    }
}

#[test]
fn every_codec_passes_and_the_body_is_not_copied() {
    for codec in Compression::ALL {
        let bytes = batch(codec);
        for rules in [rules(), strict()] {
            let valid = validate(&bytes, &rules, NOW_MS).expect("valid");
            assert_eq!(valid.size(), bytes.len());
            assert_eq!(valid.body().as_ptr(), bytes[HEADER_LEN..].as_ptr());
            assert_eq!(valid.header(), &BatchHeader::parse(&bytes).expect("header"));
        }
    }
}

#[test]
fn stamping_keeps_the_crc_right() {
    let bytes = batch(Compression::Lz4);
    let valid = validate(&bytes, &rules(), NOW_MS).expect("valid");
    let (header, head) = valid.stamped(Offset(77), LeaderEpoch(5));
    assert_eq!(header.last_offset(), Offset(79));
    let stored = [&head[..], valid.body()].concat();
    check_crc(&stored).expect("CRC");
    let mut in_place: [u8; HEADER_LEN] = *bytes.first_chunk().expect("header");
    stamp(&mut in_place, Offset(77), LeaderEpoch(5));
    assert_eq!(in_place, head);
}

/// No change of any bit of a batch is accepted, but in the leader epoch, which is the leader's to write.
#[test]
fn every_flipped_bit_is_caught() {
    for codec in Compression::ALL {
        let bytes = batch(codec);
        for at in (0..bytes.len()).filter(|at| !(LEADER_EPOCH_AT..MAGIC_AT).contains(at)) {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(
                    validate(&damaged, &rules(), NOW_MS).is_err(),
                    "byte {at} bit {bit}"
                );
            }
        }
    }
}

#[test]
fn a_batch_cut_anywhere_is_refused() {
    let bytes = batch(Compression::None);
    for end in 0..bytes.len() {
        assert!(
            validate(&bytes[..end], &strict(), NOW_MS).is_err(),
            "cut at {end}"
        );
    }
}

#[test]
fn exactly_one_batch() {
    let one = batch(Compression::None);
    assert_eq!(invalid(&[], &rules()), "no record batch");
    assert!(invalid(&[&one[..], &one].concat(), &rules()).contains("after the first batch"));
    assert!(invalid(&one[..one.len() - 1], &rules()).contains("cut after"));
}

#[test]
fn sizes_that_lie() {
    for length in [i32::MIN, -1, 0, 48] {
        let lie = with(|header| header.batch_length = length);
        assert!(
            matches!(
                validate(&lie, &rules(), NOW_MS),
                Err(BatchError::Corrupt(_))
            ),
            "{length}"
        );
    }
    let lie = with(|header| header.batch_length = i32::MAX);
    assert!(invalid(&lie, &rules()).contains("cut after"));
}

#[test]
fn old_and_new_magic() {
    let mut bytes = batch(Compression::None);
    for magic in [0, 1, 3, 0x7f, 0xff] {
        bytes[MAGIC_AT] = magic;
        let unsupported = Err(BatchError::UnsupportedMagic(magic as i8));
        assert_eq!(validate(&bytes, &rules(), NOW_MS).map(|_| ()), unsupported);
        // An old message set may be shorter than our header.
        assert_eq!(
            validate(&bytes[..34], &rules(), NOW_MS).map(|_| ()),
            unsupported
        );
    }
}

#[test]
fn counts_that_disagree() {
    for (delta, count) in [(2, 0), (2, 2), (2, 4), (0, 3), (i32::MAX, 3)] {
        let bytes = with(|header| {
            header.last_offset_delta = delta;
            header.records_count = count;
        });
        assert!(invalid(&bytes, &rules()).contains("last offset delta"));
    }
    let negative = with(|header| header.last_offset_delta = -1);
    assert!(matches!(
        validate(&negative, &rules(), NOW_MS),
        Err(BatchError::Corrupt(_))
    ));
    assert!(
        invalid(&with(|header| header.base_offset = Offset(1)), &rules()).contains("should be 0")
    );
    // Header and CRC agree with each other but not with the records: only decoding tells.
    let more = with(|header| {
        header.last_offset_delta = 3;
        header.records_count = 4;
    });
    validate(&more, &rules(), NOW_MS).expect("not decoded");
    invalid(&more, &strict());
    let fewer = with(|header| {
        header.last_offset_delta = 1;
        header.records_count = 2;
    });
    assert!(invalid(&fewer, &strict()).contains("after the last record"));
    let later = with(|header| header.max_timestamp += 1);
    assert!(invalid(&later, &strict()).contains("largest timestamp"));
}

#[test]
fn attributes_a_client_may_not_set() {
    let attributes = |bits| Attributes::parse(bits).expect("codec");
    assert!(invalid(&with(|h| h.attributes = attributes(1 << 5)), &rules()).contains("control"));
    assert!(
        invalid(&with(|h| h.attributes = attributes(1 << 6)), &rules()).contains("delete horizon")
    );
    for bit in 7..16 {
        let bytes = with(|h| h.attributes = attributes((1_u16 << bit) as i16));
        assert!(invalid(&bytes, &rules()).contains("unknown attribute bits"));
    }
    let stamped = with(|h| h.attributes = attributes(1 << 3));
    assert!(matches!(
        validate(&stamped, &rules(), NOW_MS),
        Err(BatchError::InvalidTimestamp(_))
    ));
    for codec in 5..8 {
        let mut bytes = batch(Compression::None);
        bytes[ATTRIBUTES_AT + 1] = codec;
        assert!(matches!(
            validate(&bytes, &rules(), NOW_MS),
            Err(BatchError::UnsupportedCompression(_))
        ));
    }
}

#[test]
fn a_coordinator_may_write_markers() {
    let marker = with(|header| {
        header.attributes = Attributes::parse(0b11_0000).expect("codec");
        header.base_sequence = NO_SEQUENCE;
    });
    invalid(&marker, &rules());
    let coordinator = BatchRules {
        origin: BatchOrigin::Coordinator,
        ..rules()
    };
    validate(&marker, &coordinator, NOW_MS).expect("valid");
}

#[test]
fn producer_fields() {
    invalid(&with(|header| header.producer_id = -2), &rules());
    invalid(&with(|header| header.producer_epoch = -1), &rules());
    invalid(&with(|header| header.base_sequence = -1), &rules());
    let transactional =
        |header: &mut BatchHeader| header.attributes = header.attributes.with_transactional(true);
    validate(&with(transactional), &rules(), NOW_MS).expect("valid");
    let anonymous = with(|header| {
        header.producer_id = NO_PRODUCER_ID;
        transactional(header);
    });
    invalid(&anonymous, &rules());
}

#[test]
fn size_and_zstd() {
    let bytes = batch(Compression::Zstd);
    let mut small = rules();
    small.max_message_bytes = bytes.len() as u32;
    validate(&bytes, &small, NOW_MS).expect("just fits");
    small.max_message_bytes -= 1;
    assert_eq!(
        validate(&bytes, &small, NOW_MS).map(|_| ()),
        Err(BatchError::TooLarge {
            size: bytes.len(),
            max: bytes.len() as u32 - 1
        })
    );
    let mut old = rules();
    old.allow_zstd = false;
    assert!(matches!(
        validate(&bytes, &old, NOW_MS),
        Err(BatchError::UnsupportedCompression(_))
    ));
}

#[test]
fn timestamps_within_bounds() {
    let check = |timestamp, before, after| {
        let bytes = with(|header| {
            header.base_timestamp = timestamp;
            header.max_timestamp = timestamp;
        });
        let rules = BatchRules {
            timestamp_before_max_ms: before,
            timestamp_after_max_ms: after,
            ..rules()
        };
        validate(&bytes, &rules, NOW_MS).map(|_| ())
    };
    assert_eq!(check(NOW_MS - 10, 10, 10), Ok(()));
    assert_eq!(check(NOW_MS + 10, 10, 10), Ok(()));
    assert!(matches!(
        check(NOW_MS - 11, 10, 10),
        Err(BatchError::InvalidTimestamp(_))
    ));
    assert!(matches!(
        check(NOW_MS + 11, 10, 10),
        Err(BatchError::InvalidTimestamp(_))
    ));
    assert_eq!(
        check(NO_TIMESTAMP, 10, 10),
        Ok(()),
        "no timestamp is none too old"
    );
    assert_eq!(check(i64::MIN, i64::MAX, 10), Ok(()));
    assert!(matches!(
        check(i64::MAX, i64::MAX, 10),
        Err(BatchError::InvalidTimestamp(_))
    ));
}

#[test]
fn log_append_time_is_stamped_with_a_new_crc() {
    let rules = BatchRules {
        timestamp_type: TimestampType::LogAppendTime,
        timestamp_after_max_ms: 0,
        ..rules()
    };
    for codec in Compression::ALL {
        let bytes = batch(codec);
        let now_ms = NOW_MS + 123_456;
        let valid = validate(&bytes, &rules, now_ms).expect("valid");
        assert_eq!(valid.body().as_ptr(), bytes[HEADER_LEN..].as_ptr());
        let (header, head) = valid.stamped(Offset(9), LeaderEpoch(1));
        assert_eq!(header.timestamp_type(), TimestampType::LogAppendTime);
        assert_eq!(header.max_timestamp, now_ms);
        check_crc(&[&head[..], valid.body()].concat()).expect("CRC");
        let mut damaged = bytes.clone();
        *damaged.last_mut().expect("a byte") ^= 1;
        assert!(matches!(
            validate(&damaged, &rules, now_ms),
            Err(BatchError::Corrupt(_))
        ));
    }
}

#[test]
fn keyless_records_of_a_compacted_topic_are_named() {
    let rules = BatchRules {
        keys_required: true,
        ..rules()
    };
    for codec in Compression::ALL {
        let mut builder = RecordsBuilder::new(codec);
        for n in 0..5 {
            builder.push(NOW_MS, (n % 2 == 0).then_some(b"k"), Some(b"v"), &[]);
        }
        let bytes = builder.build().expect("batch");
        let Err(BatchError::Invalid { record_errors, .. }) = validate(&bytes, &rules, NOW_MS)
        else {
            panic!("accepted");
        };
        let at: Vec<i32> = record_errors.iter().map(|(index, _)| *index).collect();
        assert_eq!(at, [1, 3]);
        validate(&batch(codec), &rules, NOW_MS).expect("all have keys");
    }
}

#[test]
fn errors_per_record_are_bounded() {
    let rules = BatchRules {
        keys_required: true,
        ..rules()
    };
    let mut builder = RecordsBuilder::new(Compression::None);
    (0..5000).for_each(|_| builder.push(NOW_MS, None, None, &[]));
    let bytes = builder.build().expect("batch");
    let Err(BatchError::Invalid { record_errors, .. }) = validate(&bytes, &rules, NOW_MS) else {
        panic!("accepted");
    };
    assert_eq!(record_errors.len(), 1000);
}

/// 16 MiB of zeros in a few KiB: refused where it is decoded, at the cost of the limit, not of the claim.
#[test]
fn decompression_bombs() {
    for codec in &Compression::ALL[1..] {
        let mut builder = RecordsBuilder::new(*codec);
        builder.push(NOW_MS, Some(b"k"), Some(&vec![0; 16 << 20]), &[]);
        let bytes = builder.build().expect("batch");
        let rules = BatchRules {
            max_message_bytes: u32::MAX,
            ..rules()
        };
        validate(&bytes, &rules, NOW_MS).expect("not decoded");
        let keys = BatchRules {
            keys_required: true,
            ..rules
        };
        assert!(
            invalid(&bytes, &keys).contains("expand to more than 1048576 bytes"),
            "{codec}"
        );
        let header = BatchHeader::parse(&bytes).expect("header");
        let all =
            plain_records(&header, &bytes[HEADER_LEN..], 17 << 20).expect("fits a larger limit");
        assert!(all.len() > 16 << 20);
    }
}

#[test]
fn codecs_refuse_what_is_not_theirs() {
    let noise: Vec<u8> = (0..2000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for codec in &Compression::ALL[1..] {
        assert!(matches!(
            codec.decompress(&noise, 1 << 20),
            Err(CodecError::Malformed { .. } | CodecError::TooLarge { .. })
        ));
        let whole = codec.compress(&noise).expect("compresses");
        assert_eq!(
            codec.decompress(&whole, 2000).as_deref(),
            Ok(&noise[..]),
            "exactly the limit"
        );
        assert!(matches!(
            codec.decompress(&whole, 1999),
            Err(CodecError::TooLarge { .. })
        ));
        // Not the last bytes: the LZ4 decoder takes a missing end mark for the end. The record count finds the rest.
        for end in [1, whole.len() / 2] {
            assert!(
                codec.decompress(&whole[..end], 1 << 20).is_err(),
                "{codec} cut at {end}"
            );
        }
    }
    // A bare block that claims 4 GiB of three bytes.
    let claim = [0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0];
    assert!(Compression::Snappy.decompress(&claim, usize::MAX).is_err());
}

#[test]
fn geometry_makes_arithmetic_safe() {
    let bytes = with(|header| header.base_offset = Offset(i64::MAX - 2));
    assert!(matches!(
        BatchHeader::parse(&bytes),
        Err(BatchError::Corrupt(_))
    ));
    let bytes = with(|header| header.base_offset = Offset(i64::MAX - 3));
    assert_eq!(
        BatchHeader::parse(&bytes).expect("header").next_offset(),
        Offset(i64::MAX)
    );
    let bytes = with(|header| header.base_offset = Offset(-1));
    assert!(matches!(
        BatchHeader::parse(&bytes),
        Err(BatchError::Corrupt(_))
    ));
    assert!(matches!(
        BatchHeader::parse(&[0; HEADER_LEN]),
        Err(BatchError::UnsupportedMagic(0))
    ));
}

#[test]
fn sequences_wrap() {
    assert_eq!(sequence_after(0, 0), 0);
    assert_eq!(sequence_after(i32::MAX, 1), 0);
    assert_eq!(sequence_after(i32::MAX - 1, 3), 1);
    assert_eq!(sequence_after(i32::MAX, i32::MAX), i32::MAX - 1);
}
