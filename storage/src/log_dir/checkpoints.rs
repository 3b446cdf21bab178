//! The three checkpoint files of a data directory, and the order they are written in.

use std::io;
use std::path::Path;

use crate::Offset;
use crate::checkpoint::{self, Checkpoint, TopicPartition};

pub(crate) const RECOVERY_POINTS: &str = "recovery-point-offset-checkpoint";
const LOG_STARTS: &str = "log-start-offset-checkpoint";
const HIGH_WATERMARKS: &str = "replication-offset-checkpoint";

/// What the three checkpoint files say.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    pub(super) recovery_points: Checkpoint,
    pub(super) log_starts: Checkpoint,
    pub(super) high_watermarks: Checkpoint,
}

impl Checkpoints {
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Ok(Self {
            recovery_points: checkpoint::read(&path.join(RECOVERY_POINTS))?,
            log_starts: checkpoint::read(&path.join(LOG_STARTS))?,
            high_watermarks: checkpoint::read(&path.join(HIGH_WATERMARKS))?,
        })
    }

    /// The log starts go first: files may only be removed once theirs is written.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        checkpoint::write(&path.join(LOG_STARTS), &self.log_starts)?;
        checkpoint::write(&path.join(RECOVERY_POINTS), &self.recovery_points)?;
        checkpoint::write(&path.join(HIGH_WATERMARKS), &self.high_watermarks)
    }

    pub(super) fn get(&self, partition: &TopicPartition) -> (Offset, Offset, Offset) {
        let of = |checkpoint: &Checkpoint| checkpoint.get(partition).copied().unwrap_or_default();
        (
            of(&self.recovery_points),
            of(&self.log_starts),
            of(&self.high_watermarks),
        )
    }

    pub(super) fn mentions(&self, partition: &TopicPartition) -> bool {
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

    pub(super) fn keep_only(&mut self, kept: impl Fn(&TopicPartition) -> bool) {
        for checkpoint in [
            &mut self.recovery_points,
            &mut self.log_starts,
            &mut self.high_watermarks,
        ] {
            checkpoint.retain(|partition, _| kept(partition));
        }
    }
}

pub(super) fn set(checkpoint: &mut Checkpoint, partition: &TopicPartition, offset: Offset) -> bool {
    checkpoint.insert(partition.clone(), offset) != Some(offset)
}
