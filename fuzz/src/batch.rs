//! Bytes that claim to be a batch, or one of the small files beside a log.

use kittiwake_storage::batch::{BatchHeader, HEADER_LEN, MAGIC_V2};
use kittiwake_storage::{
    BatchOrigin, BatchRules, Compression, LeaderEpoch, LeaderEpochCache, Offset, ProducerState,
    TimestampType, check_crc, records, validate,
};

const NOW_MS: i64 = 1_700_000_000_000;
const DECOMPRESSED_BYTES_MAX: usize = 1 << 20;

/// Feeds `data` to everything that reads a batch; panics where a promise is broken.
pub(crate) fn run(data: &[u8]) {
    judge(data);
    if let Some(sealed) = sealed(data) {
        judge(&sealed);
    }
    for codec in Compression::ALL {
        if let Ok(plain) = codec.decompress(data, DECOMPRESSED_BYTES_MAX) {
            assert!(plain.len() <= DECOMPRESSED_BYTES_MAX);
        }
    }
    if let Ok(state) = ProducerState::decode_snapshot(data) {
        let again = ProducerState::decode_snapshot(&state.encode_snapshot())
            .expect("what is written is read");
        assert!(state.producers().eq(again.producers()));
    }
    if let Ok(epochs) = LeaderEpochCache::decode(&String::from_utf8_lossy(data)) {
        assert_eq!(
            LeaderEpochCache::decode(&epochs.encode()).expect("what is written is read"),
            epochs
        );
    }
}

/// The same bytes with length, magic and CRC made right: random bytes hardly get past those.
fn sealed(data: &[u8]) -> Option<Vec<u8>> {
    let mut data = data.to_vec();
    let length = i32::try_from(data.len().checked_sub(12)?).ok()?;
    data.get_mut(8..12)?.copy_from_slice(&length.to_be_bytes());
    *data.get_mut(16)? = MAGIC_V2 as u8;
    let crc = crc32c::crc32c(data.get(21..)?);
    data[17..21].copy_from_slice(&crc.to_be_bytes());
    Some(data)
}

fn judge(data: &[u8]) {
    let ordinary = BatchRules {
        max_message_bytes: 1 << 20,
        keys_required: false,
        strict: false,
        timestamp_type: TimestampType::CreateTime,
        timestamp_before_max_ms: i64::MAX,
        timestamp_after_max_ms: i64::MAX,
        allow_zstd: true,
        decompressed_bytes_max: DECOMPRESSED_BYTES_MAX,
        origin: BatchOrigin::Client,
    };
    let strict = BatchRules {
        strict: true,
        keys_required: true,
        ..ordinary
    };
    let stamped = BatchRules {
        timestamp_type: TimestampType::LogAppendTime,
        ..ordinary
    };
    let coordinator = BatchRules {
        origin: BatchOrigin::Coordinator,
        ..ordinary
    };
    for rules in [ordinary, strict, stamped, coordinator] {
        let Ok(valid) = validate(data, &rules, NOW_MS) else {
            continue;
        };
        let (header, head) = valid.stamped(Offset(1 << 40), LeaderEpoch(7));
        let stored = [&head[..], valid.body()].concat();
        check_crc(&stored).expect("a right CRC");
        assert_eq!(BatchHeader::parse(&stored).expect("a header"), header);
        let decoded = decode(&header, valid.body());
        if rules.strict {
            assert_eq!(decoded, Some(header.records_count as usize));
        }
        let mut state = ProducerState::default();
        assert!(state.check(&header).is_ok());
        state.record(&header, NOW_MS);
        let _ = state.check(&header);
    }
    for (header, body) in records::batches(data).flatten() {
        decode(&header, body);
    }
}

/// How many records there are, if all of them can be read.
fn decode(header: &BatchHeader, body: &[u8]) -> Option<usize> {
    assert_eq!(body.len(), header.size() - HEADER_LEN);
    let plain = records::plain_records(header, body, DECOMPRESSED_BYTES_MAX).ok()?;
    let mut count = 0;
    for record in records::decode(header, &plain) {
        let record = record.ok()?;
        assert!(record.headers().count() <= plain.len());
        count += 1;
    }
    Some(count)
}
