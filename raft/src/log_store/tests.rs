//! openraft's own suite, and what it does not ask: that an acknowledged write survives a loss of
//! power at any moment, and that damage is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kittiwake_proto::metadata::v1 as pb;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, StorageError};
use prost::bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use crate::command::{Command, NewTopic};
use crate::ids::{BrokerId, DirectoryId, TopicId};
use crate::image::ClusterImage;
use crate::log_store::power_loss::Disk;
use crate::log_store::store::{Change, Recovered, Store, open_entry, seal, seal_entry};
use crate::log_store::{LogStore, Owner};
use crate::quorum::OpenError;
use crate::snapshot::Snapshot;
use crate::state_machine::StateMachine;
use crate::types::{Entry, LogId, Proposal, StoredMembership, Types, Vote, log_id};

const CLUSTER: &str = "test-cluster";

fn owner() -> Owner {
    Owner {
        cluster_id: CLUSTER.into(),
        broker: BrokerId(1),
    }
}

struct TemporaryStores;

impl StoreBuilder<Types, LogStore, StateMachine, TempDir> for TemporaryStores {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<Types>> {
        let directory = TempDir::new().unwrap();
        let (store, _, _) = LogStore::open(directory.path(), &owner()).unwrap();
        let empty = Snapshot {
            last: None,
            membership: StoredMembership::default(),
            image: ClusterImage::new(CLUSTER),
        };
        let state_machine = StateMachine::new(empty, None, store.writer());
        Ok((directory, store, state_machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_accepts_the_store() {
    Suite::test_all(TemporaryStores).await.unwrap();
}

/// What was acknowledged, as a model.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
    snapshot: Option<Bytes>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Vote(vote) => self.vote = Some(*vote),
            Change::Committed(_) => {}
            Change::Append(entries) => {
                for (index, sealed) in entries {
                    self.entries.insert(*index, open_entry(sealed).unwrap());
                }
            }
            Change::TruncateFrom(index) => {
                self.entries.split_off(index);
            }
            Change::PurgeTo(id) => {
                self.entries = self.entries.split_off(&(id.index + 1));
                self.purged = Some(*id);
            }
            Change::Snapshot(bytes) => self.snapshot = Some(bytes.clone()),
        }
    }

    fn of(recovered: Recovered) -> Self {
        Self {
            vote: recovered.vote,
            purged: recovered.purged,
            entries: recovered
                .entries
                .into_iter()
                .map(|entry| (entry.log_id.index, entry))
                .collect(),
            snapshot: recovered.snapshot,
        }
    }

    fn next_index(&self) -> u64 {
        let last = self.entries.keys().next_back().copied();
        last.or(self.purged.map(|id| id.index))
            .map_or(0, |index| index + 1)
    }
}

fn random_change(random: &mut StdRng, model: &Model, term: u64) -> Change {
    let next = model.next_index();
    let first = model.entries.keys().next().copied().unwrap_or(next);
    match random.random_range(0..10) {
        0..2 => Change::Vote(Vote::new(
            term,
            DirectoryId::from(random.random_range(1..4)),
        )),
        2 if next > first => Change::TruncateFrom(random.random_range(first..next)),
        3 if next > first => {
            let index = random.random_range(first..next);
            Change::PurgeTo(model.entries[&index].log_id)
        }
        4 => Change::Snapshot(vec![7; random.random_range(1..20_000)].into()),
        _ => {
            let count = random.random_range(1..4);
            let entry = |index| {
                let brokers = vec![BrokerId(1); random.random_range(1..500)];
                let command = Command::CreateTopics(vec![NewTopic {
                    name: format!("topic-{index}"),
                    id: TopicId::from_bytes([1; 16]).unwrap(),
                    configs: BTreeMap::new(),
                    partitions: vec![brokers],
                }]);
                let payload = EntryPayload::Normal(Proposal(Arc::new(command)));
                (
                    index,
                    seal_entry(&Entry {
                        log_id: log_id(term, index),
                        payload,
                    }),
                )
            };
            Change::Append((next..next + count).map(entry).collect())
        }
    }
}

fn reopen(disk: Disk) -> Result<(Store, Recovered), OpenError> {
    Store::open_backend(disk, Path::new("quorum.redb"), &owner())
}

/// Power is lost and the process killed at random moments between and within writes. What was
/// acknowledged is there; what was not is there as a whole or not at all.
#[test]
fn acknowledged_writes_survive_a_loss_of_power() {
    let seed = std::env::var("KITTIWAKE_SEED").map_or(7, |seed| seed.parse().unwrap());
    println!("KITTIWAKE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut disk = Disk::default();
    let (mut store, _) = Store::create(disk.clone(), &owner()).unwrap();
    let mut acknowledged = Model::default();
    for term in 1..300 {
        let mut attempted = acknowledged.clone();
        let changes: Vec<Change> = (0..random.random_range(1..4))
            .map(|_| {
                let change = random_change(&mut random, &attempted, term);
                attempted.apply(&change);
                change
            })
            .collect();
        let syncs = random.random_range(0..8);
        let during = disk.lose_power_after(syncs);
        store.commit(&changes).unwrap();
        // Half of the cuts fall into the write, which nobody was told of yet.
        let cut_within = random.random::<bool>().then(|| during.take()).flatten();
        let (cut, must_be_there) = match cut_within {
            Some(moment) => (moment.after_power_loss(&mut random), &acknowledged),
            None if random.random() => (disk.after_kill(), &attempted),
            None => (disk.after_power_loss(&mut random), &attempted),
        };
        let (reopened, recovered) = reopen(cut.clone()).unwrap();
        let found = Model::of(recovered);
        assert!(
            found == *must_be_there || found == attempted,
            "term {term}: neither what was acknowledged nor what was attempted"
        );
        store = reopened;
        disk = cut;
        acknowledged = found;
    }
}

/// A store with every kind of record, and what is in it.
fn filled() -> (Disk, Model) {
    let mut random = StdRng::seed_from_u64(1);
    let disk = Disk::default();
    let (store, _) = Store::create(disk.clone(), &owner()).unwrap();
    let mut model = Model::default();
    for term in 1..40 {
        let change = random_change(&mut random, &model, term);
        store.commit([&change]).unwrap();
        model.apply(&change);
    }
    let killed = disk.after_kill();
    drop(store);
    (killed, model)
}

/// A damaged store is refused, or the damage was where nothing is stored. It never opens with
/// anything missing or different.
#[test]
fn damage_is_refused_and_never_goes_unnoticed() {
    let (disk, model) = filled();
    let (store, recovered) = reopen(disk.after_kill()).unwrap();
    drop(store);
    assert_eq!(Model::of(recovered), model);
    let bytes = disk.bytes();
    let mut refused = 0;
    for position in (0..bytes.len()).step_by(997) {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x10;
        match reopen(Disk::holding(damaged)) {
            Ok((_, recovered)) => assert_eq!(Model::of(recovered), model, "byte {position}"),
            Err(OpenError::Damaged { .. }) => refused += 1,
            Err(other) => panic!("byte {position}: {other}"),
        }
    }
    assert!(refused > 0, "no flipped byte was noticed");
    for length in [0, 1, 512, 4096, bytes.len() / 2, bytes.len() - 1] {
        let error = reopen(Disk::holding(bytes[..length].to_vec())).err();
        assert!(
            matches!(error, Some(OpenError::Damaged { .. })),
            "{length} bytes: {error:?}"
        );
    }
}

/// A command that a later version wrote is neither skipped nor taken for damage.
#[test]
fn a_command_of_a_later_version_is_refused() {
    for (command_type, version) in [(99, 1), (1, 2), (10, 3), (0, 1)] {
        let disk = Disk::default();
        let (store, _) = Store::create(disk.clone(), &owner()).unwrap();
        let command = pb::Command {
            r#type: command_type,
            version,
            body: Bytes::new(),
        };
        let entry = pb::Entry {
            id: Some(pb::LogId { term: 1, index: 0 }),
            payload: Some(pb::entry::Payload::Command(command)),
        };
        store
            .commit([&Change::Append(vec![(0, seal(&entry))])])
            .unwrap();
        let error = reopen(disk.after_kill()).unwrap_err();
        assert!(matches!(error, OpenError::NewerRecord { .. }), "{error}");
        let named = format!("command type {command_type} version {version}");
        assert!(error.to_string().contains(&named), "{error}");
    }
}
