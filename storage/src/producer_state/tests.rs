//! The rules one by one, then random histories against a model that remembers everything.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::batch::{
    Attributes, Compression, MAGIC_V2, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE,
};
use crate::{LeaderEpoch, Offset};

const NOW_MS: i64 = 1_700_000_000_000;

/// A header of `count` records; only what producer state looks at is meaningful.
fn header(
    producer_id: i64,
    epoch: i16,
    base_sequence: i32,
    count: i32,
    base_offset: i64,
) -> BatchHeader {
    BatchHeader {
        base_offset: Offset(base_offset),
        batch_length: 49,
        leader_epoch: LeaderEpoch(0),
        magic: MAGIC_V2,
        crc: 0,
        attributes: Attributes::new(Compression::None),
        last_offset_delta: count - 1,
        base_timestamp: NOW_MS,
        max_timestamp: NOW_MS + base_offset,
        producer_id,
        producer_epoch: epoch,
        base_sequence,
        records_count: count,
    }
}

fn state(headers: &[BatchHeader]) -> ProducerState {
    let mut state = ProducerState::default();
    headers
        .iter()
        .for_each(|header| state.record(header, NOW_MS));
    state
}

fn out_of_order(sequence: i32, last_sequence: i32) -> Result<Sequence, ProducerError> {
    Err(ProducerError::OutOfOrderSequence {
        producer_id: 1,
        sequence,
        last_sequence,
    })
}

#[test]
fn no_producer_id_is_not_checked() {
    let plain = header(NO_PRODUCER_ID, NO_PRODUCER_EPOCH, NO_SEQUENCE, 3, 0);
    let state = state(&[plain]);
    assert_eq!(state.check(&plain), Ok(Sequence::NotIdempotent));
    assert!(state.is_empty());
}

#[test]
fn an_unknown_producer_may_start_anywhere() {
    assert_eq!(
        ProducerState::default().check(&header(1, 4, 900, 3, 0)),
        Ok(Sequence::New)
    );
}

#[test]
fn sequences_follow_each_other() {
    let state = state(&[header(1, 0, 0, 3, 10)]);
    assert_eq!(state.check(&header(1, 0, 3, 1, 0)), Ok(Sequence::New));
    assert_eq!(state.check(&header(1, 0, 4, 1, 0)), out_of_order(4, 2));
    assert_eq!(state.check(&header(1, 0, 2, 1, 0)), out_of_order(2, 2));
    // Starts like the last batch but is longer: not the same batch.
    assert_eq!(state.check(&header(1, 0, 0, 4, 0)), out_of_order(0, 2));
    assert_eq!(
        state.check(&header(2, 0, 4, 1, 0)),
        Ok(Sequence::New),
        "another producer"
    );
}

#[test]
fn the_last_five_are_recognised_at_their_original_offset() {
    let batches: Vec<_> = (0..7)
        .map(|n| header(1, 0, n * 2, 2, 100 + i64::from(n) * 10))
        .collect();
    let state = state(&batches);
    for (n, batch) in batches.iter().enumerate() {
        let retry = BatchHeader {
            base_offset: Offset(0),
            ..*batch
        };
        let expected = if n < 2 {
            out_of_order(batch.base_sequence, 13)
        } else {
            Ok(Sequence::Duplicate {
                base_offset: batch.base_offset,
                last_offset: batch.last_offset(),
                timestamp: batch.max_timestamp,
            })
        };
        assert_eq!(state.check(&retry), expected, "batch {n}");
    }
}

#[test]
fn sequences_wrap_to_zero() {
    let across = state(&[header(1, 0, i32::MAX - 1, 4, 50)]); // MAX-1, MAX, 0, 1
    assert_eq!(across.check(&header(1, 0, 2, 1, 0)), Ok(Sequence::New));
    assert!(matches!(
        across.check(&header(1, 0, i32::MAX - 1, 4, 0)),
        Ok(Sequence::Duplicate {
            base_offset: Offset(50),
            ..
        })
    ));
    let at_the_end = state(&[header(1, 0, i32::MAX - 1, 2, 50)]);
    assert_eq!(at_the_end.check(&header(1, 0, 0, 1, 0)), Ok(Sequence::New));
}

#[test]
fn epochs() {
    let state = state(&[header(1, 5, 0, 3, 0)]);
    assert_eq!(
        state.check(&header(1, 4, 3, 1, 0)),
        Err(ProducerError::InvalidProducerEpoch {
            producer_id: 1,
            epoch: 4,
            current_epoch: 5
        })
    );
    assert_eq!(
        state.check(&header(1, 6, 0, 3, 0)),
        Ok(Sequence::New),
        "not a duplicate: another epoch"
    );
    assert_eq!(state.check(&header(1, 6, 3, 1, 0)), out_of_order(3, -1));
}

#[test]
fn a_new_epoch_forgets_the_old_batches() {
    let state = state(&[header(1, 5, 0, 3, 0), header(1, 6, 0, 1, 3)]);
    assert_eq!(state.check(&header(1, 6, 0, 3, 0)), out_of_order(0, 0));
    assert_eq!(state.check(&header(1, 6, 1, 1, 0)), Ok(Sequence::New));
}

/// What is in the log is right, whatever the order: followers and recovery never refuse.
#[test]
fn recording_never_refuses() {
    let state = state(&[
        header(1, 6, 9, 1, 0),
        header(1, 5, 100, 1, 1),
        header(1, 5, 50, 1, 2),
    ]);
    assert_eq!(state.check(&header(1, 5, 51, 1, 0)), Ok(Sequence::New));
}

fn transactional(header: BatchHeader) -> BatchHeader {
    BatchHeader {
        attributes: header.attributes.with_transactional(true),
        ..header
    }
}

fn marker(producer_id: i64, epoch: i16, offset: i64) -> BatchHeader {
    let header = header(producer_id, epoch, NO_SEQUENCE, 1, offset);
    BatchHeader {
        attributes: header
            .attributes
            .with_transactional(true)
            .with_control(true),
        ..header
    }
}

#[test]
fn open_transactions_hold_back_what_is_stable() {
    let mut state = state(&[
        transactional(header(1, 0, 0, 2, 10)),
        transactional(header(2, 0, 0, 2, 12)),
        transactional(header(1, 0, 2, 2, 14)),
    ]);
    assert_eq!(state.first_unstable_offset(), Some(Offset(10)));
    assert_eq!(
        state.check(&header(1, 0, 4, 1, 0)),
        Err(ProducerError::OutsideTransaction { producer_id: 1 })
    );
    state.record(&marker(1, 0, 16), NOW_MS);
    assert_eq!(state.first_unstable_offset(), Some(Offset(12)));
    assert_eq!(
        state.check(&header(1, 0, 4, 1, 0)),
        Ok(Sequence::New),
        "sequences go on after a marker"
    );
    // A marker of a bumped epoch fences the producer (KIP-890) and starts its sequences anew.
    state.record(&marker(2, 1, 17), NOW_MS);
    assert_eq!(state.first_unstable_offset(), None);
    assert!(matches!(
        state.check(&header(2, 0, 2, 1, 0)),
        Err(ProducerError::InvalidProducerEpoch { .. })
    ));
    assert_eq!(state.check(&header(2, 1, 0, 1, 0)), Ok(Sequence::New));
    assert!(matches!(
        state.check(&marker(2, 0, 0)),
        Err(ProducerError::InvalidProducerEpoch { .. })
    ));
}

#[test]
fn a_coordinators_batch_has_no_sequence() {
    let commit = transactional(header(1, 0, NO_SEQUENCE, 1, 5));
    let state = state(&[transactional(header(1, 0, 0, 1, 4)), commit]);
    assert_eq!(state.check(&commit), Ok(Sequence::New));
    assert_eq!(
        state.check(&transactional(header(1, 0, 1, 1, 0))),
        Ok(Sequence::New)
    );
}

#[test]
fn silent_producers_expire() {
    let mut state = ProducerState::default();
    let old = |header: BatchHeader| BatchHeader {
        max_timestamp: 5,
        ..header
    };
    state.record(&old(header(1, 0, 0, 1, 0)), NOW_MS);
    state.record(&header(2, 0, 0, 1, -1), NOW_MS - 1);
    state.record(&old(transactional(header(3, 0, 0, 1, 2))), 0);
    let later = NOW_MS + 99;
    assert_eq!(
        state.expire(later, 100),
        1,
        "2 was last seen 100 ms ago and its timestamp is as old"
    );
    assert_eq!(
        state.len(),
        2,
        "1 replays old records but was seen 99 ms ago, 3 has a transaction open"
    );
    assert_eq!(state.expire(later + 1, 100), 1);
    assert_eq!(state.first_unstable_offset(), Some(Offset(2)));
    assert_eq!(state.expire(i64::MAX, 0), 0);
}

#[test]
fn the_snapshot_is_kafkas() {
    let mut state = state(&[header(1, 2, 7, 3, 100)]);
    state.record(&marker(9, 4, 103), NOW_MS);
    let bytes = state.encode_snapshot();
    let timestamp = |offset: i64| (NOW_MS + offset).to_be_bytes().to_vec();
    let entries = [
        &[0, 0, 0, 2][..],
        &[
            0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 102, 0, 0, 0, 2,
        ],
        &timestamp(100),
        &[0xff; 12],
        &[0, 0, 0, 0, 0, 0, 0, 9, 0, 4],
        &[0xff; 12],
        &[0, 0, 0, 0],
        &timestamp(103),
        &[0xff; 12],
    ]
    .concat();
    let crc = crc32c::crc32c(&entries).to_be_bytes();
    assert_eq!(bytes, [&[0, 1][..], &crc, &entries].concat());
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let bytes = state(&[
        header(1, 2, 7, 3, 100),
        transactional(header(2, 0, 0, 1, 103)),
    ])
    .encode_snapshot();
    for end in 0..bytes.len() {
        assert!(
            ProducerState::decode_snapshot(&bytes[..end]).is_err(),
            "cut at {end}"
        );
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(
                ProducerState::decode_snapshot(&damaged).is_err(),
                "byte {at} bit {bit}"
            );
        }
    }
    let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        let crc = crc32c::crc32c(&bytes[6..]);
        bytes[2..6].copy_from_slice(&crc.to_be_bytes());
        ProducerState::decode_snapshot(&bytes)
            .expect_err("refused")
            .to_string()
    };
    assert!(sealed(&|bytes| bytes[6] = 0x7f).contains("announced"));
    assert!(sealed(&|bytes| bytes[6] = 0xff).contains("announced"));
    assert!(sealed(&|bytes| bytes.push(0)).contains("announced"));
    assert!(
        sealed(&|bytes| bytes[32] = 0xff).contains("less -"),
        "negative delta"
    );
    assert!(
        sealed(&|bytes| bytes[20] = 0xff).contains("sequence -"),
        "negative sequence"
    );
    assert!(sealed(&|bytes| bytes.copy_within(10..18, 56)).contains("twice"));
}

/// Everything that was ever appended; verdicts by searching it from the end.
#[derive(Default)]
struct Model {
    log: Vec<BatchHeader>,
}

impl Model {
    fn check(&self, batch: &BatchHeader) -> Result<Option<Offset>, &'static str> {
        let mine: Vec<_> = self
            .log
            .iter()
            .rev()
            .filter(|b| b.producer_id == batch.producer_id)
            .collect();
        let Some(last) = mine.first() else {
            return Ok(None);
        };
        if batch.producer_epoch < last.producer_epoch {
            return Err("epoch");
        }
        let reign: Vec<_> = mine
            .iter()
            .take_while(|b| b.producer_epoch == batch.producer_epoch)
            .collect();
        let same = |b: &&&&BatchHeader| {
            b.base_sequence == batch.base_sequence && b.records_count == batch.records_count
        };
        if let Some(original) = reign.iter().take(5).find(same) {
            return Ok(Some(original.base_offset));
        }
        let expected = match reign.first() {
            None => 0,
            Some(b) => (i64::from(b.base_sequence) + i64::from(b.records_count)) % (1 << 31),
        };
        if i64::from(batch.base_sequence) == expected {
            Ok(None)
        } else {
            Err("sequence")
        }
    }
}

fn seed() -> u64 {
    let seed = std::env::var("KITTIWAKE_SEED").map_or(20_240_611, |seed| {
        seed.parse().expect("KITTIWAKE_SEED is a u64")
    });
    println!("KITTIWAKE_SEED={seed}");
    seed
}

fn random_batch(rng: &mut StdRng, model: &Model) -> BatchHeader {
    let producer_id = rng.random_range(0..4);
    let count = rng.random_range(1..4);
    let mine: Vec<_> = model
        .log
        .iter()
        .filter(|b| b.producer_id == producer_id)
        .collect();
    let Some(last) = mine.last() else {
        let start = *[0, 17, i32::MAX - 5]
            .get(rng.random_range(0..3))
            .expect("one of three");
        return header(producer_id, rng.random_range(0..3), start, count, 0);
    };
    let next = sequence_after(last.base_sequence, last.records_count);
    match rng.random_range(0..10) {
        0..5 => header(producer_id, last.producer_epoch, next, count, 0),
        5 | 6 => {
            let back = rng.random_range(1..8).min(mine.len());
            BatchHeader {
                base_offset: Offset(0),
                ..*mine[mine.len() - back]
            }
        }
        7 => header(
            producer_id,
            last.producer_epoch,
            sequence_after(next, rng.random_range(1..5)),
            count,
            0,
        ),
        8 => header(
            producer_id,
            last.producer_epoch + 1,
            if rng.random_bool(0.7) { 0 } else { next },
            count,
            0,
        ),
        _ => header(
            producer_id,
            last.producer_epoch.saturating_sub(1).max(0),
            next,
            count,
            0,
        ),
    }
}

/// Against the model, through snapshots and rebuilds.
#[test]
fn random_histories() {
    let mut rng = StdRng::seed_from_u64(seed());
    for _ in 0..200 {
        let mut model = Model::default();
        let mut state = ProducerState::default();
        let mut end = 0;
        let mut snapshot = (0, ProducerState::default().encode_snapshot());
        for _ in 0..200 {
            let mut batch = random_batch(&mut rng, &model);
            match (state.check(&batch), model.check(&batch)) {
                (Ok(Sequence::New), Ok(None)) => {
                    batch.base_offset = Offset(end);
                    batch.max_timestamp = NOW_MS + end;
                    end = batch.next_offset().0;
                    state.record(&batch, NOW_MS);
                    model.log.push(batch);
                }
                (Ok(Sequence::Duplicate { base_offset, .. }), Ok(Some(original))) => {
                    assert_eq!(base_offset, original)
                }
                (Err(ProducerError::OutOfOrderSequence { .. }), Err("sequence"))
                | (Err(ProducerError::InvalidProducerEpoch { .. }), Err("epoch")) => {}
                (got, expected) => panic!("{batch:?}: {got:?}, model {expected:?}"),
            }
            if rng.random_ratio(1, 50) {
                snapshot = (model.log.len(), state.encode_snapshot());
            }
        }
        let rebuilt = super::tests::state(&model.log);
        assert_eq!(
            rebuilt.producers, state.producers,
            "rebuilt from the whole log"
        );
        let mut resumed = ProducerState::decode_snapshot(&snapshot.1).expect("snapshot");
        model.log[snapshot.0..]
            .iter()
            .for_each(|batch| resumed.record(batch, NOW_MS));
        assert_eq!(
            resumed.encode_snapshot(),
            state.encode_snapshot(),
            "resumed from a snapshot"
        );
    }
}
