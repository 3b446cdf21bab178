//! Opening every log of a data directory at a start.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

use super::names::{DELETE_SUFFIX, parse_directory_name};
use super::{LogDir, is_unfinished};
use crate::Offset;
use crate::checkpoint::TopicPartition;
use crate::config::LogConfig;
use crate::log::Log;
use crate::partition_metadata;
use crate::recovery::{Known, OpenError, Recovery};

/// A log that was found and opened.
#[derive(Debug)]
pub struct LoadedLog {
    /// The log.
    pub log: Arc<Log>,
    /// What was done to it.
    pub recovery: Recovery,
    /// Its high watermark when it was last checkpointed, at most its log end.
    pub high_watermark: Offset,
}

/// A log that was found and must not be used. Its directory is left as it is.
#[derive(Clone, Debug)]
pub struct FailedLog {
    /// From the directory's name.
    pub partition: TopicPartition,
    /// The topic, where that can be read.
    pub topic_id: Option<Uuid>,
    /// The directory.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// What a start found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Logs in use from now on.
    pub logs: Vec<LoadedLog>,
    /// Logs that need a human, or another replica.
    pub failed: Vec<FailedLog>,
}

impl LogDir {
    /// Opens every log of the directory, on `threads` threads, with the settings `config_for` gives
    /// for its name and topic id. Removes what was deleted before the stop; passes over strays.
    ///
    /// # Errors
    /// Listing the directory. A log that cannot be opened is in [`Loaded::failed`].
    pub fn load(
        &self,
        config_for: impl Fn(&TopicPartition, Uuid) -> LogConfig + Sync,
        threads: usize,
        now_ms: i64,
    ) -> io::Result<Loaded> {
        let found = self.partition_directories()?;
        let next = AtomicUsize::new(0);
        let loaded = Mutex::new(Loaded::default());
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, found.len().max(1)) {
                scope.spawn(|| {
                    while let Some((partition, path)) =
                        found.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        match self.load_one(partition, path, &config_for, now_ms) {
                            Ok(Some(log)) => loaded.lock().logs.push(log),
                            Ok(None) => {}
                            Err(failed) => loaded.lock().failed.push(failed),
                        }
                    }
                });
            }
        });
        let mut loaded = loaded.into_inner();
        loaded
            .logs
            .sort_by(|a, b| a.log.partition().cmp(b.log.partition()));
        loaded.failed.sort_by(|a, b| a.partition.cmp(&b.partition));
        let known: BTreeSet<_> = found.into_iter().map(|(partition, _)| partition).collect();
        self.checkpoints
            .lock()
            .keep_only(|partition| known.contains(partition));
        Ok(loaded)
    }

    fn load_one(
        &self,
        partition: &TopicPartition,
        path: &Path,
        config_for: &impl Fn(&TopicPartition, Uuid) -> LogConfig,
        now_ms: i64,
    ) -> Result<Option<LoadedLog>, FailedLog> {
        let failed = |topic_id, reason: String| {
            tracing::error!(%partition, path = %path.display(), reason, "a log cannot be used");
            FailedLog {
                partition: partition.clone(),
                topic_id,
                path: path.to_owned(),
                reason,
            }
        };
        let topic_id = match partition_metadata::read(path) {
            Ok(Some(topic_id)) => topic_id,
            Ok(None) if is_unfinished(path) => {
                tracing::info!(%partition, "passing over a log whose creation was not finished");
                return Ok(None);
            }
            Ok(None) => {
                return Err(failed(
                    None,
                    "it holds records but no partition.metadata".into(),
                ));
            }
            Err(error) => return Err(failed(None, error.to_string())),
        };
        let (known, high_watermark) = {
            let checkpoints = self.checkpoints.lock();
            let known = Known {
                recovery_point: checkpoints.recovery_points.get(partition),
                log_start: checkpoints.log_starts.get(partition),
                now_ms,
            };
            (known, checkpoints.high_watermarks.get(partition))
        };
        let config = config_for(partition, topic_id);
        let opened = Log::open(
            partition.clone(),
            topic_id,
            path.to_owned(),
            (&self.disk, &self.checkpoints),
            config,
            known,
        );
        let (log, recovery) = match opened {
            Ok(opened) => opened,
            Err(error @ (OpenError::Damaged { .. } | OpenError::Io(_))) => {
                return Err(failed(Some(topic_id), error.to_string()));
            }
        };
        if recovery.ended_by.is_some() || !recovery.set_aside.is_empty() {
            tracing::warn!(%partition, reason = recovery.ended_by, set_aside = ?recovery.set_aside, end = %log.log_end_offset(), "recovered a log");
        }
        self.logs.lock().insert(partition.clone(), Arc::clone(&log));
        let high_watermark = high_watermark.clamp(log.log_start_offset(), log.log_end_offset());
        Ok(Some(LoadedLog {
            log,
            recovery,
            high_watermark,
        }))
    }

    fn partition_directories(&self) -> io::Result<Vec<(TopicPartition, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|_| entry.path().is_dir()) else {
                continue;
            };
            if name.ends_with(DELETE_SUFFIX) {
                self.remove_later(entry.path(), Duration::ZERO);
            } else if let Some(partition) = parse_directory_name(name) {
                found.push((partition, entry.path()));
            }
        }
        Ok(found)
    }
}
