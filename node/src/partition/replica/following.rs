//! A replica as a follower: what becomes of its leader's answers.

use kittiwake_storage::{BatchHeader, LeaderEpoch, Offset, TruncateError};
use std::fmt::Display;
use std::sync::atomic::Ordering;
use tracing::{error, info, warn};

use super::super::follower::{self, Answer, Verdict, View};
use super::{Following, Partition};
use crate::api::ErrorCode;
use crate::broker::now_ms;

/// What a leader's answer came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Followed {
    /// The log is as far as the answer allows.
    Advanced,
    /// The log was cut or begun anew: fetch from its new end.
    Rewound,
    /// Nothing was changed; ask again.
    AskAgain,
    /// Nothing was changed; ask again after a pause.
    Wait,
    /// This replica does not follow that leader in that epoch any more.
    Obsolete,
}

/// What a leader has answered to a fetch of this replica.
#[derive(Clone, Copy, Debug)]
pub struct LeaderAnswer<'a> {
    /// Its error, or none.
    pub error: ErrorCode,
    /// Where the histories part.
    pub diverging: Option<(LeaderEpoch, Offset)>,
    /// Its high watermark; negative if it did not say.
    pub high_watermark: Offset,
    /// Its log start; negative if it did not say.
    pub log_start: Offset,
    /// Whole batches, verbatim.
    pub records: &'a [u8],
}

impl Partition {
    /// Takes over what the leader has answered, if this replica still follows it. May wait for the disk where the log
    /// is cut or begun anew; appending does not.
    pub fn follow_answer(&self, following: Following, answer: LeaderAnswer<'_>) -> Followed {
        let standing = self.standing.lock();
        if !standing.follows(following) {
            return Followed::Obsolete;
        }
        let view = View {
            log_start: self.log_start_offset(),
            log_end: self.log_end_offset(),
        };
        let first_offset = BatchHeader::parse(answer.records)
            .ok()
            .map(|header| header.base_offset);
        let seen = Answer {
            error: answer.error,
            diverging: answer.diverging,
            log_start: answer.log_start,
            first_offset,
            newest_epoch: newest_epoch(answer.records),
            followed_in: following.epoch,
        };
        let verdict = follower::judge(view, seen, |epoch| self.log.end_offset_for_epoch(epoch));
        match verdict {
            Verdict::Append => self.append_from_leader(&answer),
            Verdict::Truncate(to) => self.rewind("cut", to, || self.log.truncate_to(to).map(drop)),
            Verdict::Restart(at) => self.rewind("begun anew", at, || self.log.restart_at(at)),
            Verdict::BeginAt(first) => {
                match self.rewind("begun anew", first, || self.log.restart_at(first)) {
                    Followed::Rewound => self.append_from_leader(&answer),
                    failed => failed,
                }
            }
            Verdict::AskAgain => Followed::AskAgain,
            Verdict::DropNewer(newest) => {
                let of = following.epoch;
                self.not_appended(&format_args!("leader epoch {newest} of a leader of {of}"))
            }
            Verdict::Wait => Followed::Wait,
        }
    }

    fn append_from_leader(&self, answer: &LeaderAnswer<'_>) -> Followed {
        if !answer.records.is_empty()
            && let Err(error) = self.log.append_as_follower(answer.records, now_ms())
        {
            return self.not_appended(&error);
        }
        self.append_failures.store(0, Ordering::Relaxed);
        let committed = answer.high_watermark.min(self.log_end_offset());
        if committed > self.high_watermark() {
            self.high_watermark.store(committed.0, Ordering::Release);
            self.readers.wake();
        }
        Followed::Advanced
    }

    fn not_appended(&self, error: &dyn Display) -> Followed {
        let failures = self.append_failures.fetch_add(1, Ordering::Relaxed) + 1;
        // It is tried again once a second, perhaps for hours.
        if failures.is_power_of_two() {
            warn!(topic = %self.topic, partition = self.index, %error, failures, "cannot append what the leader has sent; trying again");
        }
        Followed::Wait
    }

    fn rewind(
        &self,
        how: &'static str,
        to: Offset,
        rewind: impl FnOnce() -> Result<(), TruncateError>,
    ) -> Followed {
        let (from, committed) = (self.log_end_offset(), self.high_watermark());
        if let Err(error) = rewind() {
            error!(topic = %self.topic, partition = self.index, %error, "the log cannot be {how} at {to}");
            return Followed::Wait;
        }
        let end = self.log_end_offset();
        if end < committed {
            // An unclean election, or the leader has deleted records: what this replica had is not the log any more.
            warn!(topic = %self.topic, partition = self.index, %from, %end, %committed, "the log was {how} below its high watermark");
        } else {
            info!(topic = %self.topic, partition = self.index, %from, %end, "the log was {how} to follow its leader");
        }
        let committed = committed.clamp(self.log_start_offset(), end);
        self.high_watermark.store(committed.0, Ordering::Release);
        Followed::Rewound
    }

    /// Follows the leader's log start. Blocks on the disk.
    pub fn follow_log_start(&self, following: Following, leader_start: Offset) {
        if !self.standing.lock().follows(following) {
            return;
        }
        let start = leader_start.min(self.high_watermark());
        if start <= self.log_start_offset() {
            return;
        }
        if let Err(error) = self.log.advance_log_start(start, self.high_watermark()) {
            error!(topic = %self.topic, partition = self.index, %error, "cannot follow the leader's log start");
        }
    }
}

/// The newest leader epoch of the batches in `records`, as far as they are any.
fn newest_epoch(mut records: &[u8]) -> Option<LeaderEpoch> {
    let mut newest = None;
    while let Ok(header) = BatchHeader::parse(records) {
        newest = newest.max(Some(header.leader_epoch));
        records = records.get(header.size()..).unwrap_or_default();
    }
    newest
}
