//! openraft's own suite, and what it does not ask: that an acknowledged write survives a loss of
//! power at any moment, and that damage is refused.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::ids::BrokerId;
use crate::image::ClusterImage;
use crate::log_store::{LogStore, Owner};
use crate::snapshot::Snapshot;
use crate::state_machine::StateMachine;
use crate::types::{StoredMembership, Types};

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
