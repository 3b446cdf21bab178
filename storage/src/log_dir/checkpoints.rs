//! The three checkpoint files of a data directory, and the order they are written in.

use std::io;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};

use crate::Offset;
use crate::checkpoint::{self, Checkpoint, TopicPartition};

pub(crate) const RECOVERY_POINTS: &str = "recovery-point-offset-checkpoint";
const LOG_STARTS: &str = "log-start-offset-checkpoint";
const HIGH_WATERMARKS: &str = "replication-offset-checkpoint";

/// The checkpoint files of one data directory, shared by its logs: before a log takes back what a
/// checkpoint says of it, the file says so.
#[derive(Debug)]
pub(crate) struct CheckpointFiles {
    directory: PathBuf,
    checkpoints: Mutex<Checkpoints>,
}

impl CheckpointFiles {
    pub(super) fn read(directory: &Path) -> io::Result<Self> {
        let read = |name| CheckpointFile::read(directory, name);
        Ok(Self {
            directory: directory.to_owned(),
            checkpoints: Mutex::new(Checkpoints {
                recovery_points: read(RECOVERY_POINTS)?,
                log_starts: read(LOG_STARTS)?,
                high_watermarks: read(HIGH_WATERMARKS)?,
            }),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Checkpoints> {
        self.checkpoints.lock()
    }

    /// Makes durable that nothing of `partition` at `offset` or later counts as flushed. Nobody's next
    /// checkpoint may say otherwise: the log's own recovery point has been lowered before.
    ///
    /// # Errors
    /// As [`checkpoint::replace`].
    pub(crate) fn lower_recovery_point(
        &self,
        partition: &TopicPartition,
        offset: Offset,
    ) -> io::Result<()> {
        let mut checkpoints = self.lock();
        let points = &mut checkpoints.recovery_points;
        if points.get(partition) > offset {
            points.set(partition, offset);
        }
        points.write(&self.directory)
    }

    /// Makes durable that the log of `partition` starts at `offset`, and that all before it is flushed.
    ///
    /// # Errors
    /// As [`checkpoint::replace`].
    pub(crate) fn restart(&self, partition: &TopicPartition, offset: Offset) -> io::Result<()> {
        let mut checkpoints = self.lock();
        checkpoints.log_starts.set(partition, offset);
        checkpoints.recovery_points.set(partition, offset);
        checkpoints.write(&self.directory)
    }

    /// Makes durable that the log of `partition` starts at `offset`, which is asked for while no other
    /// checkpoint can be written: an older answer must not replace a newer one. `None` of a log that is
    /// gone, whose name may be another one's.
    ///
    /// # Errors
    /// As [`checkpoint::replace`].
    pub(crate) fn set_log_start(
        &self,
        partition: &TopicPartition,
        offset: impl FnOnce() -> Option<Offset>,
    ) -> io::Result<()> {
        let mut checkpoints = self.lock();
        let Some(offset) = offset() else {
            return Ok(());
        };
        checkpoints.log_starts.set(partition, offset);
        checkpoints.log_starts.write(&self.directory)
    }
}

/// What the three files say, or will say after the next write.
#[derive(Debug)]
pub(super) struct Checkpoints {
    pub(super) recovery_points: CheckpointFile,
    pub(super) log_starts: CheckpointFile,
    pub(super) high_watermarks: CheckpointFile,
}

impl Checkpoints {
    /// The log starts go first: files may only be removed once theirs is written.
    pub(super) fn write(&mut self, directory: &Path) -> io::Result<()> {
        self.log_starts.write(directory)?;
        self.recovery_points.write(directory)?;
        self.high_watermarks.write(directory)
    }

    pub(super) fn forget(&mut self, partition: &TopicPartition) {
        for file in [
            &mut self.recovery_points,
            &mut self.log_starts,
            &mut self.high_watermarks,
        ] {
            file.unwritten |= file.offsets.remove(partition).is_some();
        }
    }

    pub(super) fn keep_only(&mut self, kept: impl Fn(&TopicPartition) -> bool) {
        for file in [
            &mut self.recovery_points,
            &mut self.log_starts,
            &mut self.high_watermarks,
        ] {
            file.keep_only(&kept);
        }
    }
}

/// One checkpoint file.
#[derive(Debug)]
pub(super) struct CheckpointFile {
    name: &'static str,
    offsets: Checkpoint,
    /// The file is behind: written again until that has worked, whatever changes meanwhile.
    unwritten: bool,
}

impl CheckpointFile {
    fn read(directory: &Path, name: &'static str) -> io::Result<Self> {
        Ok(Self {
            name,
            offsets: checkpoint::read(&directory.join(name))?,
            unwritten: false,
        })
    }

    /// The offset of a partition, 0 if there is none.
    pub(super) fn get(&self, partition: &TopicPartition) -> Offset {
        self.offsets.get(partition).copied().unwrap_or_default()
    }

    pub(super) fn set(&mut self, partition: &TopicPartition, offset: Offset) {
        if self.offsets.get(partition) != Some(&offset) {
            self.offsets.insert(partition.clone(), offset);
            self.unwritten = true;
        }
    }

    fn keep_only(&mut self, kept: impl Fn(&TopicPartition) -> bool) {
        let before = self.offsets.len();
        self.offsets.retain(|partition, _| kept(partition));
        self.unwritten |= self.offsets.len() != before;
    }

    fn write(&mut self, directory: &Path) -> io::Result<()> {
        if self.unwritten {
            checkpoint::write(&directory.join(self.name), &self.offsets)?;
            self.unwritten = false;
        }
        Ok(())
    }
}
