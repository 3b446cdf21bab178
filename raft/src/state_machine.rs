//! Applies committed entries to the image and publishes it.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use openraft::EntryPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use parking_lot::Mutex;
use prost::bytes::Bytes;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};

use crate::image::ClusterImage;
use crate::log_store::Writer;
use crate::snapshot::Snapshot;
use crate::types::{LogId, Proposal, SnapshotMeta, StoredMembership, Types};

/// The image as the rest of the node sees it.
#[derive(Debug)]
pub(crate) struct Published {
    latest: ArcSwap<ClusterImage>,
    changes: watch::Sender<Arc<ClusterImage>>,
}

impl Published {
    pub(crate) fn new(image: &ClusterImage) -> Self {
        let image = Arc::new(image.clone());
        Self {
            latest: ArcSwap::new(Arc::clone(&image)),
            changes: watch::Sender::new(image),
        }
    }

    pub(crate) fn latest(&self) -> Arc<ClusterImage> {
        self.latest.load_full()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<ClusterImage>> {
        self.changes.subscribe()
    }

    fn publish(&self, image: &ClusterImage) {
        let image = Arc::new(image.clone());
        self.latest.store(Arc::clone(&image));
        self.changes.send_replace(image);
    }
}

/// The image, and how far it has come. It is in memory only: a start begins with the snapshot and
/// applies the log again from there.
pub(crate) struct StateMachine {
    state: Snapshot,
    published: Arc<Published>,
    kept: Kept,
}

/// The latest snapshot, in memory and in the store.
#[derive(Clone)]
pub(crate) struct Kept {
    latest: Arc<Mutex<Option<(SnapshotMeta, Bytes)>>>,
    writer: Writer,
}

impl Kept {
    async fn replace(&self, meta: SnapshotMeta, bytes: Bytes) -> io::Result<()> {
        self.writer.save_snapshot(bytes.clone()).await?;
        *self.latest.lock() = Some((meta, bytes));
        Ok(())
    }

    fn latest(&self) -> Option<openraft::type_config::alias::SnapshotOf<Types, Bytes>> {
        let latest = self.latest.lock();
        latest.as_ref().map(|(meta, bytes)| openraft::Snapshot {
            meta: meta.clone(),
            snapshot: bytes.clone(),
        })
    }
}

impl StateMachine {
    /// Begins with the stored snapshot, or with an empty image.
    pub(crate) fn new(state: Snapshot, stored: Option<Bytes>, writer: Writer) -> Self {
        let latest = stored.map(|bytes| (state.meta(), bytes));
        Self {
            published: Arc::new(Published::new(&state.image)),
            state,
            kept: Kept {
                latest: Arc::new(Mutex::new(latest)),
                writer,
            },
        }
    }

    pub(crate) fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published)
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.state.last, self.state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let offset = entry.log_id.index;
            self.state.last = Some(entry.log_id);
            self.state.image.offset = offset;
            let results = match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Normal(Proposal(command)) => self.state.image.apply(offset, &command),
                EntryPayload::Membership(membership) => {
                    self.state.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Vec::new()
                }
            };
            if let Some(responder) = responder {
                // First, so that who proposed it finds it in the image.
                self.published.publish(&self.state.image);
                responder.send(results);
            }
        }
        self.published.publish(&self.state.image);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            state: self.state.clone(),
            kept: self.kept.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, bytes: Bytes) -> io::Result<()> {
        let snapshot = Snapshot::decode(bytes.clone())?;
        if snapshot.meta() != *meta {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the snapshot is not the one that was announced",
            ));
        }
        if snapshot.image.cluster_id != self.state.image.cluster_id {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the snapshot belongs to cluster '{}'",
                    snapshot.image.cluster_id
                ),
            ));
        }
        self.kept.replace(meta.clone(), bytes).await?;
        self.state = snapshot;
        self.published.publish(&self.state.image);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<openraft::type_config::alias::SnapshotOf<Types, Bytes>>> {
        Ok(self.kept.latest())
    }
}

/// Encodes a snapshot beside the running state machine, from an image that does not change.
pub(crate) struct Builder {
    state: Snapshot,
    kept: Kept,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(
        &mut self,
    ) -> io::Result<openraft::type_config::alias::SnapshotOf<Types, Bytes>> {
        let state = self.state.clone();
        let bytes = tokio::task::spawn_blocking(move || state.encode())
            .await
            .map_err(io::Error::other)?;
        let meta = self.state.meta();
        self.kept.replace(meta.clone(), bytes.clone()).await?;
        Ok(openraft::Snapshot {
            meta,
            snapshot: bytes,
        })
    }
}
