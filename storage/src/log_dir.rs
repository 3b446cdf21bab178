//! A data directory: whose it is, which logs it holds, and what survives a stop.
//!
//! ```text
//! <data>/.lock                             flock(2)ed while a process uses the directory
//! <data>/meta.properties                   cluster, node and directory id
//! <data>/.kittiwake_boot_id                boot of the machine the directory was last opened in
//! <data>/.kittiwake_clean_shutdown         written last at a clean stop, deleted first at a start
//! <data>/recovery-point-offset-checkpoint  per partition: flushed up to here
//! <data>/log-start-offset-checkpoint       per partition: the log starts here
//! <data>/replication-offset-checkpoint     per partition: high watermark
//! <data>/<topic>-<partition>/              a log
//! <data>/<...>.<uuid>-delete/              a deleted one, on its way out
//! <data>/<...>.<uuid>-stray/               one that metadata does not know: kept for the operator
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use uuid::Uuid;

use crate::Offset;
use crate::append_file::is_full;
use crate::background::Job;
use crate::checkpoint::{self, Checkpoint, TopicPartition};
use crate::config::LogConfig;
use crate::disk::{AppendedBytes, Disk};
use crate::flush::FlushError;
use crate::log::Log;
use crate::partition_metadata::{self, encode_id};
use crate::properties::{self, Properties};
use crate::recovery::{Known, OpenError, Recovery};

const LOCK: &str = ".lock";
const META: &str = "meta.properties";
const BOOT_ID: &str = ".kittiwake_boot_id";
pub(crate) const CLEAN_SHUTDOWN: &str = ".kittiwake_clean_shutdown";
pub(crate) const RECOVERY_POINTS: &str = "recovery-point-offset-checkpoint";
const LOG_STARTS: &str = "log-start-offset-checkpoint";
const HIGH_WATERMARKS: &str = "replication-offset-checkpoint";
const DELETE_SUFFIX: &str = "-delete";
const STRAY_SUFFIX: &str = "-stray";
/// Longest name of a directory entry on Linux, bytes.
const NAME_MAX: usize = 255;
/// Longest topic name, as Kafka's.
const TOPIC_MAX: usize = 249;

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

/// How the process that used the directory before has ended (DESIGN §5, registration).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LastStop {
    /// The directory is new.
    New,
    /// Everything was flushed. `broker_epoch` is the one it was registered with.
    Clean {
        /// From the marker.
        broker_epoch: i64,
    },
    /// Without a goodbye, but the machine has not restarted: what was appended is in the page cache.
    Killed,
    /// The machine restarted too: what was not flushed may be gone.
    Lossy,
}

/// A directory of logs, locked by this process.
#[derive(Debug)]
pub struct LogDir {
    path: PathBuf,
    directory_id: Uuid,
    boot_id: String,
    last_stop: LastStop,
    disk: Arc<Disk>,
    logs: Mutex<BTreeMap<TopicPartition, Arc<Log>>>,
    checkpoints: Mutex<Checkpoints>,
    /// Held for its lock.
    _lock: File,
}

/// What the three checkpoint files say.
#[derive(Debug, Default)]
struct Checkpoints {
    recovery_points: Checkpoint,
    log_starts: Checkpoint,
    high_watermarks: Checkpoint,
}

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
#[derive(Debug)]
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
        let checkpoints = Checkpoints::read(path).map_err(failed)?;
        let last_stop = last_stop(path, &boot_id).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            directory_id,
            boot_id,
            last_stop,
            disk: Disk::start(options.free_floor_bytes, options.open_segments_max)
                .map_err(failed)?,
            logs: Mutex::default(),
            checkpoints: Mutex::new(checkpoints),
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
        let known: Vec<_> = found.into_iter().map(|(partition, _)| partition).collect();
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
        let (recovery_point, log_start, high_watermark) = self.checkpoints.lock().get(partition);
        let known = Known {
            recovery_point,
            log_start,
            now_ms,
        };
        let config = config_for(partition, topic_id);
        let opened = Log::open(
            partition.clone(),
            topic_id,
            path.to_owned(),
            Arc::clone(&self.disk),
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
        self.forget_checkpoints(&partition)?;
        let known = Known {
            recovery_point: Offset::ZERO,
            log_start: Offset::ZERO,
            now_ms: 0,
        };
        let disk = Arc::clone(&self.disk);
        let (log, _) = Log::open(
            partition.clone(),
            topic_id,
            path.clone(),
            disk,
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
        let Some((log, renamed)) = self.rename_log(partition, DELETE_SUFFIX)? else {
            return Ok(());
        };
        let delay = Duration::from_millis(log.config().file_delete_delay_ms);
        self.remove_later(renamed, delay);
        self.forget_checkpoints(partition)
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
            self.forget_checkpoints(partition)?;
        }
        Ok(renamed.map(|(_, path)| path))
    }

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
        checkpoint::sync_directory(&self.path)?;
        Ok(Some((log, to)))
    }

    fn remove_later(&self, path: PathBuf, delay: Duration) {
        self.disk.background().submit(Job::Remove { path, delay });
    }

    fn forget_checkpoints(&self, partition: &TopicPartition) -> io::Result<()> {
        let mut checkpoints = self.checkpoints.lock();
        if checkpoints.mentions(partition) {
            checkpoints.keep_only(|other| other != partition);
            checkpoints.write(&self.path)?;
        }
        Ok(())
    }

    /// Writes recovery points, log starts and `high_watermarks` (a log that is not in it keeps its
    /// last), then lets go of the files of removed segments. Waits for the disk.
    ///
    /// # Errors
    /// The directory goes offline with the first failure, unless only room was missing.
    pub fn write_checkpoints(&self, high_watermarks: &Checkpoint) -> Result<(), FlushError> {
        if let Some(reason) = self.offline() {
            return Err(FlushError::Offline(reason));
        }
        let logs = self.logs();
        let written = self.checkpoint(&logs, high_watermarks);
        written.map_err(|error| {
            if is_full(&error) {
                return FlushError::DiskFull;
            }
            self.disk.take_offline(&self.path, &error);
            FlushError::Offline(error.to_string())
        })
    }

    fn checkpoint(&self, logs: &[Arc<Log>], high_watermarks: &Checkpoint) -> io::Result<()> {
        let mut checkpoints = self.checkpoints.lock();
        let mut changed = false;
        for log in logs {
            let partition = log.partition();
            let flushed = log.flushed_offset();
            let start = log.log_start_offset().min(flushed);
            changed |= set(&mut checkpoints.recovery_points, partition, flushed);
            changed |= set(&mut checkpoints.log_starts, partition, start);
            if let Some(high_watermark) = high_watermarks.get(partition) {
                changed |= set(&mut checkpoints.high_watermarks, partition, *high_watermark);
            }
        }
        if changed {
            checkpoints.write(&self.path)?;
        }
        for log in logs {
            if let Some(start) = checkpoints.log_starts.get(log.partition()) {
                log.remove_doomed(*start)?;
            }
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
        high_watermarks: &Checkpoint,
        threads: usize,
    ) -> Result<(), FlushError> {
        let logs = self.logs();
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, logs.len().max(1)) {
                scope.spawn(|| {
                    while let Some(log) = logs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = log.close() {
                            failure.lock().get_or_insert(error);
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

impl Checkpoints {
    fn read(path: &Path) -> io::Result<Self> {
        Ok(Self {
            recovery_points: checkpoint::read(&path.join(RECOVERY_POINTS))?,
            log_starts: checkpoint::read(&path.join(LOG_STARTS))?,
            high_watermarks: checkpoint::read(&path.join(HIGH_WATERMARKS))?,
        })
    }

    /// The log starts go first: files may only be removed once theirs is written.
    fn write(&self, path: &Path) -> io::Result<()> {
        checkpoint::write(&path.join(LOG_STARTS), &self.log_starts)?;
        checkpoint::write(&path.join(RECOVERY_POINTS), &self.recovery_points)?;
        checkpoint::write(&path.join(HIGH_WATERMARKS), &self.high_watermarks)
    }

    fn get(&self, partition: &TopicPartition) -> (Offset, Offset, Offset) {
        let of = |checkpoint: &Checkpoint| checkpoint.get(partition).copied().unwrap_or_default();
        (
            of(&self.recovery_points),
            of(&self.log_starts),
            of(&self.high_watermarks),
        )
    }

    fn mentions(&self, partition: &TopicPartition) -> bool {
        self.all()
            .iter()
            .any(|checkpoint| checkpoint.contains_key(partition))
    }

    fn all(&self) -> [&Checkpoint; 3] {
        [
            &self.recovery_points,
            &self.log_starts,
            &self.high_watermarks,
        ]
    }

    fn keep_only(&mut self, kept: impl Fn(&TopicPartition) -> bool) {
        for checkpoint in [
            &mut self.recovery_points,
            &mut self.log_starts,
            &mut self.high_watermarks,
        ] {
            checkpoint.retain(|partition, _| kept(partition));
        }
    }
}

fn set(checkpoint: &mut Checkpoint, partition: &TopicPartition, offset: Offset) -> bool {
    checkpoint.insert(partition.clone(), offset) != Some(offset)
}

fn lock(path: &Path) -> Result<File, LogDirError> {
    let failed = |source| LogDirError::Io {
        path: path.to_owned(),
        source,
    };
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.join(LOCK))
        .map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LogDirError::InUse(path.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

/// Checks whose directory it is; an empty one becomes the caller's.
fn claim(path: &Path, options: &LogDirOptions) -> Result<Properties, LogDirError> {
    let failed = |source| LogDirError::Io {
        path: path.to_owned(),
        source,
    };
    let file = path.join(META);
    let Some(meta) = Properties::read(&file).map_err(failed)? else {
        if holds_partitions(path).map_err(failed)? {
            return Err(LogDirError::Unclaimed(path.to_owned()));
        }
        let meta = Properties::new()
            .with("cluster.id", &options.cluster_id)
            .with("node.id", options.node_id)
            .with("directory.id", encode_id(Uuid::new_v4()));
        meta.write(&file).map_err(failed)?;
        return Ok(meta);
    };
    if meta
        .number::<i32>("version")
        .is_none_or(|version| version > properties::VERSION)
    {
        return Err(LogDirError::NewerFormat {
            path: path.to_owned(),
            found: meta.get("version").unwrap_or("unknown").to_owned(),
            known: properties::VERSION,
        });
    }
    for (key, expected) in [
        ("cluster.id", options.cluster_id.clone()),
        ("node.id", options.node_id.to_string()),
    ] {
        if meta.get(key) != Some(&expected) {
            return Err(LogDirError::Foreign {
                path: path.to_owned(),
                key,
                found: meta.get(key).unwrap_or("nobody").to_owned(),
                expected,
            });
        }
    }
    Ok(meta)
}

/// Reads how the last process ended and removes the marker, durably, before anything is appended.
fn last_stop(path: &Path, boot_id: &str) -> io::Result<LastStop> {
    let marker = path.join(CLEAN_SHUTDOWN);
    let boot_file = path.join(BOOT_ID);
    let clean = Properties::read(&marker)?.and_then(|marker| marker.number("broker.epoch"));
    let last_boot = match fs::read_to_string(&boot_file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        result => Some(result?),
    };
    if marker.exists() {
        fs::remove_file(&marker)?;
        checkpoint::sync_directory(path)?;
    }
    if last_boot.as_deref().map(str::trim) != Some(boot_id) {
        checkpoint::replace(&boot_file, format!("{boot_id}\n").as_bytes())?;
    }
    Ok(match (clean, last_boot) {
        (Some(broker_epoch), _) => LastStop::Clean { broker_epoch },
        (None, None) => LastStop::New,
        (None, Some(last)) if last.trim() == boot_id => LastStop::Killed,
        (None, Some(_)) => LastStop::Lossy,
    })
}

fn holds_partitions(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.path().is_dir()
            && name
                .to_str()
                .is_some_and(|name| parse_directory_name(name).is_some())
        {
            return Ok(true);
        }
    }
    Ok(false)
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

/// `orders-7` is partition 7 of `orders`; `a-1-2` is partition 2 of `a-1`.
fn parse_directory_name(name: &str) -> Option<TopicPartition> {
    let (topic, partition) = name.rsplit_once('-')?;
    let number: i32 = partition.parse().ok()?;
    let canonical = number >= 0 && number.to_string() == partition;
    (canonical && is_topic_name(topic)).then(|| TopicPartition {
        topic: topic.to_owned(),
        partition: number,
    })
}

/// Kafka's rule: a name can then be part of a path.
fn is_topic_name(name: &str) -> bool {
    (1..=TOPIC_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// A name of its own for a directory on its way out, cut to what a filesystem takes.
fn renamed_directory(partition: &TopicPartition, suffix: &str) -> String {
    let suffix = format!(".{}{suffix}", Uuid::new_v4().simple());
    let mut name = partition.to_string();
    name.truncate(NAME_MAX - suffix.len());
    name + &suffix
}
