//! A data directory: whose it is, which logs it holds, and what survives a stop.
//!
//! ```text
//! <data>/.lock                             flock(2)ed while a process uses the directory
//! <data>/meta.properties                   cluster, node and directory id
//! <data>/.kittiwake_boot_id                boot of the machine the directory was last appended to in
//! <data>/.kittiwake_clean_shutdown         written last at a clean stop, deleted first at a start
//! <data>/recovery-point-offset-checkpoint  per partition: flushed up to here
//! <data>/log-start-offset-checkpoint       per partition: the log starts here
//! <data>/replication-offset-checkpoint     per partition: high watermark
//! <data>/<topic>-<partition>/              a log
//! <data>/<...>.<uuid>-delete/              a deleted one, on its way out
//! <data>/<...>.<uuid>-stray/               one that metadata does not know: kept for the operator
//! ```

mod checkpoints;
mod identity;
mod load;
mod names;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

pub(crate) use self::checkpoints::{CheckpointFiles, RECOVERY_POINTS};
pub(crate) use self::identity::CLEAN_SHUTDOWN;
pub use self::identity::LastStop;
use self::identity::{begin_life, claim, last_stop, lock};
pub use self::load::{FailedLog, Loaded, LoadedLog};
use self::names::{DELETE_SUFFIX, STRAY_SUFFIX, is_topic_name, renamed_directory};
use crate::Offset;
use crate::append_file::is_full;
use crate::background::Job;
use crate::checkpoint::{self, TopicPartition};
use crate::config::LogConfig;
use crate::disk::{AppendedBytes, Disk};
use crate::flush::{FlushError, is_out_of_files};
use crate::log::Log;
use crate::partition_metadata;
use crate::properties::Properties;
use crate::recovery::{Known, OpenError};

/// Who opens a directory, and how.
#[derive(Clone, Debug)]
pub struct LogDirOptions {
    /// The cluster; a directory of another one is refused.
    pub cluster_id: String,
    /// The node; a directory of another one is refused.
    pub node_id: i32,
    /// Where the kernel says which boot this is: `/proc/sys/kernel/random/boot_id`.
    pub boot_id_path: PathBuf,
    /// Appends fail while less than this is free, bytes, so that metadata keeps room.
    pub free_floor_bytes: u64,
    /// Sealed segments that are open at a time.
    pub open_segments_max: usize,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogDirError {
    /// Another process holds its lock.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// It belongs to something else.
    #[error("{path} belongs to {key} {found}, not {expected}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What differs: `cluster.id` or `node.id`.
        key: &'static str,
        /// Whose it is.
        found: String,
        /// Who asks.
        expected: String,
    },
    /// A newer release wrote it.
    #[error("{path} has format version {found}; this release knows up to {known}")]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: String,
        /// What is known.
        known: i32,
    },
    /// It holds partitions but does not say whose they are.
    #[error("{0} holds partitions but no meta.properties")]
    Unclaimed(PathBuf),
    /// A system call failed, or a checkpoint is damaged.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

/// A directory of logs, locked by this process.
#[derive(Debug)]
pub struct LogDir {
    path: PathBuf,
    directory_id: Uuid,
    boot_id: String,
    last_stop: LastStop,
    pub(crate) disk: Arc<Disk>,
    logs: Mutex<BTreeMap<TopicPartition, Arc<Log>>>,
    checkpoints: Arc<CheckpointFiles>,
    /// Held for its lock.
    _lock: File,
}

/// Why a log was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is a directory of that name, of this topic or another.
    #[error("{0} exists already")]
    Exists(TopicPartition),
    /// The name cannot be a directory's.
    #[error("{0:?} is no topic name")]
    InvalidName(String),
    /// The log directory has failed.
    #[error("log directory is offline: {0}")]
    Offline(String),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl LogDir {
    /// Locks the directory, creating it if need be, and checks whose it is.
    ///
    /// # Errors
    /// [`LogDirError`]; nothing has been changed then.
    pub fn open(path: &Path, options: &LogDirOptions) -> Result<Self, LogDirError> {
        let failed = |source| LogDirError::Io {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(path).map_err(failed)?;
        let lock = lock(path)?;
        let meta = claim(path, options)?;
        let directory_id = meta
            .get("directory.id")
            .and_then(partition_metadata::decode_id)
            .ok_or_else(|| {
                failed(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "meta.properties: no directory.id",
                ))
            })?;
        let boot_id = fs::read_to_string(&options.boot_id_path)
            .map_err(failed)?
            .trim()
            .to_owned();
        let checkpoints = Arc::new(CheckpointFiles::read(path).map_err(failed)?);
        let last_stop = last_stop(path, &boot_id).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            directory_id,
            boot_id,
            last_stop,
            disk: Disk::start(options.free_floor_bytes, options.open_segments_max)
                .map_err(failed)?,
            logs: Mutex::default(),
            checkpoints,
            _lock: lock,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id, which an empty replacement disk does not have (KIP-853, KIP-858).
    #[must_use]
    pub fn directory_id(&self) -> Uuid {
        self.directory_id
    }

    /// How it was left.
    #[must_use]
    pub fn last_stop(&self) -> LastStop {
        self.last_stop
    }

    /// Begins a life of its own: [`Self::last_stop`] has been reported to whoever has to know, and from here on it is
    /// this process's end that the next one asks about. To be called before anything is appended, and not before: a
    /// power loss would be forgotten by a process that dies in between. Waits for the disk.
    ///
    /// # Errors
    /// write(2), rename(2), fsync(2).
    pub fn begin_life(&self) -> io::Result<()> {
        begin_life(&self.path, &self.boot_id)
    }

    /// Why it is offline, if it is: an fsync has failed. It stays so until the process restarts.
    #[must_use]
    pub fn offline(&self) -> Option<String> {
        self.disk.offline().map(str::to_owned)
    }

    /// Whether it is offline.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.disk.offline().is_some()
    }

    /// Changes the space that appends leave free, bytes.
    pub fn set_free_floor_bytes(&self, bytes: u64) {
        self.disk.set_free_floor_bytes(bytes);
    }

    /// Segments opened for reading since the start.
    #[must_use]
    pub fn segments_opened_total(&self) -> u64 {
        self.disk.open_segments().opened_total()
    }

    /// Bytes of batches appended since the start, by how they were written.
    #[must_use]
    pub fn appended_bytes(&self) -> AppendedBytes {
        self.disk.appended_bytes()
    }

    /// All logs in use.
    #[must_use]
    pub fn logs(&self) -> Vec<Arc<Log>> {
        self.logs.lock().values().map(Arc::clone).collect()
    }

    /// Creates the log of a partition. Its directory and topic id are durable when this returns.
    ///
    /// # Errors
    /// [`CreateError`].
    pub fn create_log(
        &self,
        topic: &str,
        topic_id: Uuid,
        partition: i32,
        config: LogConfig,
    ) -> Result<Arc<Log>, CreateError> {
        if !is_topic_name(topic) || partition < 0 {
            return Err(CreateError::InvalidName(topic.to_owned()));
        }
        if let Some(reason) = self.offline() {
            return Err(CreateError::Offline(reason));
        }
        let partition = TopicPartition {
            topic: topic.to_owned(),
            partition,
        };
        let path = self.path.join(partition.to_string());
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if self.logs.lock().contains_key(&partition) || !is_unfinished(&path) {
                    return Err(CreateError::Exists(partition));
                }
            }
            result => result?,
        }
        // A deleted topic of the same name must not lend its offsets to this one.
        self.forget_checkpoints([&partition])?;
        let known = Known {
            recovery_point: Offset::ZERO,
            log_start: Offset::ZERO,
            now_ms: 0,
        };
        let (log, _) = Log::open(
            partition.clone(),
            topic_id,
            path.clone(),
            (&self.disk, &self.checkpoints),
            config,
            known,
        )
        .map_err(|error| match error {
            OpenError::Io(error) => CreateError::Io(error),
            damaged @ OpenError::Damaged { .. } => CreateError::Io(io::Error::other(damaged)),
        })?;
        // Syncs the partition's directory, and with it the entry of its first segment.
        partition_metadata::write(&path, topic_id)?;
        checkpoint::sync_directory(&self.path)?;
        self.logs.lock().insert(partition, Arc::clone(&log));
        Ok(log)
    }

    /// Stops appends to a log and removes its directory: renamed at once, removed after
    /// `file.delete.delay.ms`. Slices that were handed out can still be read.
    ///
    /// # Errors
    /// rename(2), fsync(2).
    pub fn delete_log(&self, partition: &TopicPartition) -> io::Result<()> {
        match self.delete_logs(std::slice::from_ref(partition)).pop() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Deletes many logs at the price of one: each is renamed, then the data directory is flushed and the
    /// checkpoints are written once. Partitions without a log are passed over. Waits for the disk.
    ///
    /// Returns those that failed, and why: rename(2) of one leaves it in its place, closed, until the next start; a
    /// failed fsync(2) or checkpoint is that of all that were renamed.
    pub fn delete_logs(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, io::Error)> {
        let mut failed = Vec::new();
        let mut renamed = Vec::new();
        for partition in partitions {
            match self.rename_log(partition, DELETE_SUFFIX) {
                Ok(Some((log, path))) => renamed.push((partition, log, path)),
                Ok(None) => {}
                Err(error) => failed.push((partition.clone(), error)),
            }
        }
        if renamed.is_empty() {
            return failed;
        }
        let forgotten = checkpoint::sync_directory(&self.path).and_then(|()| {
            self.forget_checkpoints(renamed.iter().map(|(partition, ..)| *partition))
        });
        for (partition, log, path) in renamed {
            let delay = Duration::from_millis(log.config().file_delete_delay_ms);
            self.remove_later(path, delay);
            if let Err(error) = &forgotten {
                let error = io::Error::new(error.kind(), error.to_string());
                failed.push((partition.clone(), error));
            }
        }
        failed
    }

    /// Takes a log that metadata does not know out of use: its directory is renamed and kept.
    /// Returns the new path.
    ///
    /// # Errors
    /// rename(2), fsync(2).
    pub fn set_stray(&self, partition: &TopicPartition) -> io::Result<Option<PathBuf>> {
        let renamed = self.rename_log(partition, STRAY_SUFFIX)?;
        if let Some((_, path)) = &renamed {
            tracing::warn!(%partition, path = %path.display(), "kept a log that metadata does not know");
            checkpoint::sync_directory(&self.path)?;
            self.forget_checkpoints([partition])?;
        }
        Ok(renamed.map(|(_, path)| path))
    }

    /// Takes the directory of a log that could not be opened out of the way of a new one: it is renamed and kept.
    /// Returns the new path. To be called only where nobody needs it: other replicas hold what was committed, or its topic is
    /// gone.
    ///
    /// # Errors
    /// rename(2), fsync(2).
    pub fn set_damaged_aside(&self, failed: &FailedLog) -> io::Result<PathBuf> {
        let to = self
            .path
            .join(renamed_directory(&failed.partition, STRAY_SUFFIX));
        fs::rename(&failed.path, &to)?;
        checkpoint::sync_directory(&self.path)?;
        tracing::warn!(partition = %failed.partition, path = %to.display(), "kept a damaged log");
        Ok(to)
    }

    /// Stops a log and renames its directory, which is durable after the next fsync of the data directory.
    fn rename_log(
        &self,
        partition: &TopicPartition,
        suffix: &str,
    ) -> io::Result<Option<(Arc<Log>, PathBuf)>> {
        let Some(log) = self.logs.lock().remove(partition) else {
            return Ok(None);
        };
        log.abandon();
        let to = self.path.join(renamed_directory(partition, suffix));
        let mut directory = log.directory.write();
        fs::rename(&*directory, &to)?;
        directory.clone_from(&to);
        drop(directory);
        Ok(Some((log, to)))
    }

    fn remove_later(&self, path: PathBuf, delay: Duration) {
        self.disk.background().submit(Job::Remove { path, delay });
    }

    fn forget_checkpoints<'a>(
        &self,
        partitions: impl IntoIterator<Item = &'a TopicPartition>,
    ) -> io::Result<()> {
        let mut checkpoints = self.checkpoints.lock();
        for partition in partitions {
            checkpoints.forget(partition);
        }
        checkpoints.write(&self.path)
    }

    /// Writes recovery points, log starts and `high_watermarks` (a log that is not in it keeps its
    /// last), then lets go of the files of removed segments. Waits for the disk.
    ///
    /// A high watermark comes with the log it was taken of: by name it could be given to another log,
    /// created since under the name of one that was deleted.
    ///
    /// # Errors
    /// The directory goes offline with the first failure, unless only room or descriptors were missing.
    pub fn write_checkpoints(
        &self,
        high_watermarks: &[(Arc<Log>, Offset)],
    ) -> Result<(), FlushError> {
        if let Some(reason) = self.offline() {
            return Err(FlushError::Offline(reason));
        }
        let logs = self.logs();
        let written = self.checkpoint(&logs, high_watermarks);
        written.map_err(|error| {
            if is_full(&error) {
                return FlushError::DiskFull;
            }
            if is_out_of_files(&error) {
                return FlushError::TooManyOpenFiles;
            }
            self.disk.take_offline(&self.path, &error);
            FlushError::Offline(error.to_string())
        })
    }

    fn checkpoint(
        &self,
        logs: &[Arc<Log>],
        high_watermarks: &[(Arc<Log>, Offset)],
    ) -> io::Result<()> {
        let mut checkpoints = self.checkpoints.lock();
        // One that was deleted since the list was made must not lend its offsets to a new one of its name.
        for log in logs.iter().filter(|log| !log.is_abandoned()) {
            let partition = log.partition();
            checkpoints
                .log_starts
                .set(partition, log.durable_log_start());
            checkpoints
                .recovery_points
                .set(partition, log.recovery_point());
        }
        for (log, high_watermark) in high_watermarks {
            if !log.is_abandoned() {
                checkpoints
                    .high_watermarks
                    .set(log.partition(), *high_watermark);
            }
        }
        checkpoints.write(&self.path)?;
        for log in logs {
            let removed = log.remove_doomed(checkpoints.log_starts.get(log.partition()));
            removed.or_else(|error| match error.kind() {
                io::ErrorKind::NotFound if log.is_abandoned() => Ok(()),
                _ => Err(error),
            })?;
        }
        Ok(())
    }

    /// Closes all logs, on `threads` threads, writes the checkpoints and, if all of that worked, the
    /// clean-shutdown marker with the epoch this broker was registered with. Waits for the disk.
    ///
    /// # Errors
    /// The first failure; there is no marker then, and the next start recovers.
    pub fn shutdown_clean(
        &self,
        broker_epoch: i64,
        high_watermarks: &[(Arc<Log>, Offset)],
        threads: usize,
    ) -> Result<(), FlushError> {
        let logs = self.logs();
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, logs.len().max(1)) {
                scope.spawn(|| {
                    while let Some(log) = logs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match log.close() {
                            // One that is deleted meanwhile has nothing to lose.
                            Ok(()) | Err(FlushError::Gone) => {}
                            Err(error) => {
                                failure.lock().get_or_insert(error);
                            }
                        }
                    }
                });
            }
        });
        if let Some(error) = failure.into_inner() {
            return Err(error);
        }
        self.write_checkpoints(high_watermarks)?;
        Properties::new()
            .with("broker.epoch", broker_epoch)
            .with("boot.id", &self.boot_id)
            .write(&self.path.join(CLEAN_SHUTDOWN))
            .map_err(|error| FlushError::Offline(error.to_string()))
    }
}

impl Drop for LogDir {
    /// The threads end before the lock is given up: another process may be waiting for it.
    fn drop(&mut self) {
        self.disk.stop();
    }
}

/// Whether a directory without `partition.metadata` has never held a record.
fn is_unfinished(path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(path) else {
        return false;
    };
    entries.into_iter().all(|entry| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            let temporary = name.to_str().is_some_and(|name| name.ends_with(".tmp"));
            temporary || entry.metadata().is_ok_and(|metadata| metadata.len() == 0)
        })
    })
}
