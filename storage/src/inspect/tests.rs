//! Directories written by hand, byte by byte; each kind of damage is found and named.

use std::os::unix::fs::FileExt;

use super::*;
use crate::LeaderEpoch;
use crate::batch::{BatchHeader, Compression};
use crate::records::RecordsBuilder;

const NOW_MS: i64 = 1_700_000_000_000;

/// Batches of two records of one producer, as a leader of this epoch would store them.
fn batches(from: i64, count: i64, epoch: i32) -> Vec<Vec<u8>> {
    let batch = |n| {
        let offset = from + n * 2;
        let mut builder = RecordsBuilder::new(Compression::None)
            .producer(7, 0, offset as i32)
            .placed(Offset(offset), LeaderEpoch(epoch));
        builder.push(NOW_MS + offset, Some(b"key"), Some(b"one"), &[]);
        builder.push(NOW_MS + offset, None, Some(b"two"), &[]);
        builder.build().expect("batch")
    };
    (0..count).map(batch).collect()
}

fn snapshot_of(batches: &[Vec<u8>]) -> Vec<u8> {
    let mut state = ProducerState::default();
    for batch in batches {
        state.record(&BatchHeader::parse(batch).expect("header"), NOW_MS);
    }
    state.encode_snapshot()
}

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    /// Offsets 0–9 in epoch 0, then 10–19 in a second segment of epoch 3.
    fn new() -> Self {
        let fixture = Self {
            dir: tempfile::tempdir().expect("directory"),
        };
        let (first, second) = (batches(0, 5, 0), batches(10, 5, 3));
        fixture.segment(0, &first);
        fixture.segment(10, &second);
        fixture.write("00000000000000000010.snapshot", &snapshot_of(&first));
        fixture.write(
            "00000000000000000020.snapshot",
            &snapshot_of(&[first, second].concat()),
        );
        fixture.write(EPOCHS_FILE, b"0\n2\n0 0\n3 10\n");
        fixture.write(
            "partition.metadata",
            b"version: 0\ntopic_id: AAAAAAAAAAAAAAAAAAAAAQ\n",
        );
        fixture
    }

    /// A segment with an entry in its indexes for every second batch.
    fn segment(&self, base: i64, batches: &[Vec<u8>]) {
        self.write(&format!("{base:020}.log"), &batches.concat());
        let (mut index, mut times) = (Vec::new(), Vec::new());
        let mut position = 0;
        for (n, batch) in batches.iter().enumerate() {
            let header = BatchHeader::parse(batch).expect("header");
            if n % 2 == 1 {
                let relative = ((header.last_offset().0 - base) as u32).to_be_bytes();
                index.extend_from_slice(&[relative, (position as u32).to_be_bytes()].concat());
                times.extend_from_slice(
                    &[&header.max_timestamp.to_be_bytes()[..], &relative].concat(),
                );
            }
            position += batch.len();
        }
        self.write(&format!("{base:020}.index"), &index);
        self.write(&format!("{base:020}.timeindex"), &times);
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.dir.path().join(name), bytes).expect("written");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).expect("read")
    }

    fn append(&self, name: &str, bytes: &[u8]) {
        self.write(name, &[self.read(name), bytes.to_vec()].concat());
    }

    fn poke(&self, name: &str, at: u64, byte: u8) {
        let file = fs::OpenOptions::new()
            .write(true)
            .open(self.dir.path().join(name))
            .expect("opened");
        file.write_all_at(&[byte], at).expect("written");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).expect("removed");
    }

    fn open(&self) -> PartitionDir {
        PartitionDir::open(self.dir.path()).expect("a partition")
    }

    fn verify(&self, stopped_cleanly: bool) -> Report {
        verify(&self.open(), stopped_cleanly).expect("readable")
    }

    /// The only fault of a directory that was stopped cleanly.
    fn fault(&self) -> String {
        let report = self.verify(true);
        let [fault] = &report.faults[..] else {
            panic!("one fault expected: {:?}", report.faults);
        };
        format!("{}: {}", fault.file, fault.what)
    }
}

const LOG_0: &str = "00000000000000000000.log";
const LOG_10: &str = "00000000000000000010.log";
const INDEX_0: &str = "00000000000000000000.index";
const INDEX_10: &str = "00000000000000000010.index";
const TIMES_0: &str = "00000000000000000000.timeindex";

#[test]
fn a_sound_directory_has_no_fault() {
    let fixture = Fixture::new();
    for stopped_cleanly in [true, false] {
        let report = fixture.verify(stopped_cleanly);
        assert_eq!(report.faults, []);
        assert_eq!(report.notes, []);
        assert_eq!(
            (report.segments, report.batches, report.records),
            (2, 10, 20)
        );
        assert_eq!(
            (report.start_offset, report.end_offset),
            (Offset(0), Offset(20))
        );
    }
}

#[test]
fn what_is_no_partition_is_refused() {
    let dir = tempfile::tempdir().expect("directory");
    assert!(matches!(
        PartitionDir::open(dir.path()),
        Err(InspectError::NotAPartition(_))
    ));
    assert!(matches!(
        PartitionDir::open(&dir.path().join("missing")),
        Err(InspectError::Io { .. })
    ));
    fs::write(dir.path().join("1.log"), b"").expect("written");
    assert!(matches!(
        PartitionDir::open(dir.path()),
        Err(InspectError::NotAPartition(_))
    ));
}

#[test]
fn a_changed_record_is_found() {
    let fixture = Fixture::new();
    let bytes = fixture.read(LOG_0);
    fixture.poke(LOG_0, bytes.len() as u64 - 3, b'!');
    assert!(
        fixture
            .fault()
            .starts_with("00000000000000000000.log: batch at offset 8: corrupt batch: CRC is")
    );
}

#[test]
fn a_missing_batch_is_found() {
    let fixture = Fixture::new();
    let mut kept = batches(0, 5, 0);
    kept.remove(2);
    fixture.segment(0, &kept);
    assert_eq!(
        fixture.fault(),
        "00000000000000000000.log: offset 6 where 4 should follow"
    );
}

#[test]
fn a_missing_segment_is_found() {
    let fixture = Fixture::new();
    fixture.segment(30, &batches(30, 1, 3));
    assert_eq!(
        fixture.fault(),
        "00000000000000000030.log: begins at 30 but the log before it ends at 20"
    );
}

#[test]
fn an_epoch_that_goes_down_is_found() {
    let fixture = Fixture::new();
    let mut second = batches(10, 5, 3);
    second[4] = batches(18, 1, 2).remove(0);
    fixture.segment(10, &second);
    assert_eq!(
        fixture.fault(),
        "00000000000000000010.log: leader epoch 2 after 3"
    );
}

#[test]
fn an_unreadable_header_is_found_wherever_it_is() {
    let fixture = Fixture::new();
    fixture.poke(LOG_10, 16, 9);
    let report = fixture.verify(false);
    assert!(
        report.faults[0].what.contains("magic 9"),
        "{:?}",
        report.faults
    );
    assert_eq!(report.end_offset, Offset(10));
}

#[test]
fn an_unfinished_tail_is_a_fault_only_after_a_clean_stop() {
    let one_more = batches(20, 1, 3).remove(0);
    let tails: [(Vec<u8>, usize); 5] = [
        (vec![0; 5000], 0),                                    // allocated ahead
        ([&one_more[..30], &[0; 5000]].concat(), 1),           // a header half written
        ([&one_more[..70], &[0; 5000]].concat(), 1),           // a body half written
        ([&[0; 61], &one_more[61..], &[0; 5000]].concat(), 1), // the header's page missing
        (one_more[..70].to_vec(), 0), // cut by the end of the file: no log of ours does that
    ];
    for (n, (tail, notes)) in tails.iter().enumerate() {
        let fixture = Fixture::new();
        fixture.append(LOG_10, tail);
        assert!(!fixture.verify(true).faults.is_empty(), "tail {n}");
        let report = fixture.verify(false);
        assert_eq!(report.notes.len(), *notes, "tail {n}: {:?}", report.notes);
        assert_eq!(
            report.faults.len(),
            usize::from(n == 4),
            "tail {n}: {:?}",
            report.faults
        );
        assert_eq!(report.end_offset, Offset(20));
    }
}

#[test]
fn damage_with_batches_after_it_is_never_taken_for_a_tail() {
    let fixture = Fixture::new();
    let size = batches(10, 1, 3)[0].len() as u64;
    fixture.poke(LOG_10, size * 3 + 70, 0xff);
    let report = fixture.verify(false);
    assert_eq!(report.faults.len(), 1, "{:?}", report.faults);
    assert_eq!(report.end_offset, Offset(20));
}

#[test]
fn a_truncation_leaves_bytes_that_are_no_part_of_the_log() {
    let fixture = Fixture::new();
    let mut first = batches(0, 5, 0);
    first.extend(batches(10, 3, 1));
    fixture.write(LOG_0, &first.concat());
    let report = fixture.verify(true);
    assert_eq!(report.faults, []);
    assert!(report.notes[0].what.contains("cut off by a truncation"));
    assert_eq!(report.batches, 10);
}

#[test]
fn wrong_index_entries_are_found() {
    let size = batches(0, 1, 0)[0].len() as u8;
    for (at, byte, what) in [
        (3, 4, "offset 4 at 75, where the batch ends at 3"),
        (7, size + 1, "no batch begins at 76"),
        (12, 0x7f, "1 entries point to no batch"),
    ] {
        let fixture = Fixture::new();
        fixture.poke(INDEX_0, at, byte);
        let fault = fixture.fault();
        assert!(
            fault.contains(
                &what
                    .replace("75", &size.to_string())
                    .replace("76", &(size + 1).to_string())
            ),
            "{fault}"
        );
    }
    let fixture = Fixture::new();
    fixture.append(INDEX_10, &[0; 16]);
    assert_eq!(
        fixture.fault(),
        "00000000000000000010.index: 16 bytes after the last entry"
    );
    assert_eq!(
        fixture.verify(false).faults,
        [],
        "space kept for more entries"
    );
    fixture.remove(INDEX_10);
    let report = fixture.verify(true);
    assert_eq!((report.faults.len(), report.notes.len()), (0, 1));
}

#[test]
fn wrong_time_index_entries_are_found() {
    for (at, byte, what) in [
        (7, 1, "timestamp 1700000000001 for offset 3"),
        (11, 2, "no batch ends at offset 2"),
        (20, 0x7f, "1 entries point to no batch"),
    ] {
        let fixture = Fixture::new();
        fixture.poke(TIMES_0, at, byte);
        let fault = fixture.fault();
        assert!(fault.contains(what), "{fault}");
    }
    let fixture = Fixture::new();
    let mut second = batches(10, 5, 3);
    let mut late = RecordsBuilder::new(Compression::None)
        .producer(7, 0, 12)
        .placed(Offset(12), LeaderEpoch(3));
    late.push(NOW_MS - 5, None, None, &[]);
    late.push(NOW_MS - 5, None, None, &[]);
    second[1] = late.build().expect("batch");
    fixture.segment(10, &second);
    assert!(fixture.fault().contains("is not the largest so far"));
}

#[test]
fn wrong_snapshots_are_found() {
    let fixture = Fixture::new();
    fixture.write(
        "00000000000000000010.snapshot",
        &snapshot_of(&batches(0, 4, 0)),
    );
    assert_eq!(
        fixture.fault(),
        "00000000000000000010.snapshot: producer 7 epoch 0 sequence 7 at offset 7, \
         but in the log producer 7 epoch 0 sequence 9 at offset 9"
    );
    fixture.poke("00000000000000000010.snapshot", 20, 0xff);
    assert!(fixture.fault().contains("CRC"));
    fixture.write(
        "00000000000000000010.snapshot",
        &ProducerState::default().encode_snapshot(),
    );
    assert_eq!(
        fixture.verify(true).faults,
        [],
        "a producer may have expired"
    );
    fixture.write("00000000000000000011.snapshot", &snapshot_of(&[]));
    assert_eq!(
        fixture.fault(),
        "00000000000000000011.snapshot: no batch begins at 11"
    );
    fixture.remove("00000000000000000011.snapshot");
    fixture.write("00000000000000000024.snapshot", &snapshot_of(&[]));
    assert_eq!(
        fixture.fault(),
        "00000000000000000024.snapshot: the log ends at 20"
    );
}

#[test]
fn a_wrong_epoch_checkpoint_is_found() {
    for text in [
        "0\n1\n0 0\n",
        "0\n2\n0 0\n3 12\n",
        "0\n2\n1 0\n3 10\n",
        "0\n3\n0 0\n2 4\n3 10\n",
        "0\n5\n",
        "\u{ff}",
    ] {
        let fixture = Fixture::new();
        fixture.write(EPOCHS_FILE, text.as_bytes());
        assert!(fixture.fault().starts_with(EPOCHS_FILE), "{text:?}");
    }
    let fixture = Fixture::new();
    fixture.remove(EPOCHS_FILE);
    assert_eq!(fixture.fault(), "leader-epoch-checkpoint: missing");
    for text in ["0\n2\n0 5\n3 10\n", "0\n3\n0 0\n3 10\n4 20\n"] {
        fixture.write(EPOCHS_FILE, text.as_bytes());
        assert_eq!(
            fixture.verify(true).faults,
            [],
            "deleted records in front, or a leader that wrote nothing: {text:?}"
        );
    }
}

#[test]
fn files_set_aside_are_named() {
    let fixture = Fixture::new();
    fixture.write("00000000000000000010.log.cut", b"?");
    let report = fixture.verify(true);
    assert_eq!(report.faults, []);
    assert_eq!(report.notes[0].file, "00000000000000000010.log.cut");
}

#[test]
fn replicas_are_compared_up_to_the_smallest_end() {
    let (one, two, three) = (Fixture::new(), Fixture::new(), Fixture::new());
    two.segment(10, &batches(10, 3, 3)); // behind
    three.segment(20, &batches(20, 4, 3)); // ahead
    let dirs = [one.open(), two.open(), three.open()];
    assert_eq!(compare(&dirs).expect("readable"), []);
    // Segments cut elsewhere and older ones deleted are the same log.
    let four = Fixture::new();
    four.remove(LOG_0);
    four.remove(LOG_10);
    four.segment(6, &[batches(6, 2, 0), batches(10, 2, 3)].concat());
    four.segment(14, &batches(14, 3, 3));
    assert_eq!(compare(&[one.open(), four.open()]).expect("readable"), []);
    // Another leader's batch at the same offset is not.
    four.segment(14, &[batches(14, 1, 3), batches(16, 2, 4)].concat());
    let differences = compare(&[one.open(), two.open(), four.open()]).expect("readable");
    assert_eq!(differences.len(), 1);
    assert_eq!(differences[0].offset, Offset(16));
    assert_eq!(differences[0].replica, four.dir.path());
}

#[test]
fn nothing_is_modified() {
    let fixture = Fixture::new();
    fixture.append(LOG_10, &[0; 100]);
    let state = || {
        let mut files: Vec<_> = fs::read_dir(fixture.dir.path())
            .expect("listed")
            .map(|entry| entry.expect("entry").path())
            .map(|path| {
                (
                    fs::read(&path).expect("read"),
                    fs::metadata(&path)
                        .expect("metadata")
                        .modified()
                        .expect("time"),
                    path,
                )
            })
            .collect();
        files.sort();
        files
    };
    let before = state();
    fixture.verify(false);
    compare(&[fixture.open(), fixture.open()]).expect("readable");
    assert_eq!(state(), before);
}
