//! How two logs of a partition stand to each other, and what a follower does with what its leader has answered.
//!
//! Pure. A follower fetches from the end of its log and says which epoch its last record is from. The leader answers
//! with records that follow, or with the point where the two histories part (KIP-595), and the follower cuts what the
//! leader does not have (KIP-101, KIP-279): nothing of that was ever committed, because every elected leader has
//! everything that was.
//!
//! **Invariant.** What is below `log_end`, with these epochs, is a prefix of some leader's log; after an answer that
//! does not diverge it is a prefix of *this* leader's.

use kittiwake_storage::{LeaderEpoch, Offset};

use crate::api::ErrorCode;

/// A log, as far as decisions need it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct View {
    /// First offset that can be read.
    pub log_start: Offset,
    /// Offset of the next record.
    pub log_end: Offset,
}

/// Where a reader's history and this log stand to each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Continuity {
    /// The log holds everything the reader has read, and goes on from there.
    Continues,
    /// They part (KIP-595): the largest epoch here not above the reader's, and where it ended.
    Diverges(LeaderEpoch, Offset),
    /// The reader's offset is not in the log.
    OutOfRange,
    /// The reader's epoch is newer than all of the log's, which no leader's log can be.
    UnknownEpoch,
}

/// Where a reader that has everything below `from`, the last of it from `last_epoch` (negative: unknown), stands to the
/// leader's log. `end_of_epoch` is that log's history: its largest epoch not above the one given, and where it ended.
pub fn continuity(
    leader: View,
    from: Offset,
    last_epoch: LeaderEpoch,
    end_of_epoch: impl FnOnce(LeaderEpoch) -> Option<(LeaderEpoch, Offset)>,
) -> Continuity {
    if last_epoch.0 >= 0 {
        match end_of_epoch(last_epoch) {
            None => return Continuity::UnknownEpoch,
            Some((epoch, end)) if epoch < last_epoch || end < from => {
                return Continuity::Diverges(epoch, end);
            }
            Some(_) => {}
        }
    }
    if from < leader.log_start || from > leader.log_end {
        return Continuity::OutOfRange;
    }
    Continuity::Continues
}

/// What the leader has answered for the partition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Its error, or none.
    pub error: ErrorCode,
    /// The leader's largest epoch not above that of our last record, and where it ended there, if that is below our end.
    pub diverging: Option<(LeaderEpoch, Offset)>,
    /// First offset the leader has.
    pub log_start: Offset,
    /// Base offset of the first record that came, if any did.
    pub first_offset: Option<Offset>,
    /// The newest epoch of a batch that came.
    pub newest_epoch: Option<LeaderEpoch>,
    /// The epoch that the leader is followed in.
    pub followed_in: LeaderEpoch,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Append the records, if any, and take the leader's watermarks over.
    Append,
    /// Cut the log back to this offset, and fetch from there.
    Truncate(Offset),
    /// Nothing of the log is in the leader's: begin anew at this offset.
    Restart(Offset),
    /// The log is empty, and its beginning lies inside the leader's first batch (DeleteRecords can leave it so): begin anew
    /// at this offset, append, and let the log start follow.
    BeginAt(Offset),
    /// The records do not continue the log: they answer a question that is no longer the one to ask. Ask again.
    AskAgain,
    /// Records of an epoch above the one followed, which its leader cannot have: it has answered after its reign, when its
    /// log was another's already (KAFKA-18723). Take nothing over and ask again after a pause; by then this node follows
    /// the next one.
    DropNewer(LeaderEpoch),
    /// Not now: the leader, or this node, has yet to learn of a change. Ask again after a pause.
    Wait,
}

/// Judges an answer. `end_of_epoch` is the follower's own history: its largest epoch not above the one given, and where
/// that ended.
pub fn judge(
    view: View,
    answer: Answer,
    end_of_epoch: impl FnOnce(LeaderEpoch) -> Option<(LeaderEpoch, Offset)>,
) -> Verdict {
    match answer.error {
        ErrorCode::None => {}
        ErrorCode::OffsetOutOfRange => return out_of_range(view, answer.log_start),
        _ => return Verdict::Wait,
    }
    if let Some((epoch, leader_end)) = answer.diverging {
        // Where the leader's epoch is unknown here, our own largest below it ends earlier still; the next answer then
        // speaks of that one.
        let own_end = end_of_epoch(epoch).map_or(view.log_start, |(_, end)| end);
        let cut = leader_end.min(own_end).min(view.log_end);
        if cut < view.log_start {
            return Verdict::Restart(answer.log_start);
        }
        return Verdict::Truncate(cut);
    }
    if let Some(newest) = answer.newest_epoch
        && newest > answer.followed_in
    {
        return Verdict::DropNewer(newest);
    }
    match answer.first_offset {
        Some(first) if first < view.log_end && view.log_start == view.log_end => {
            Verdict::BeginAt(first)
        }
        Some(first) if first != view.log_end => Verdict::AskAgain,
        _ => Verdict::Append,
    }
}

/// Our end lies outside the leader's log although the epochs agree: below its start, because retention or an operator
/// has removed what we lack; or our log is empty and lies beyond its end. A log with records is not given up otherwise.
fn out_of_range(view: View, leader_start: Offset) -> Verdict {
    let is_empty = view.log_start == view.log_end;
    if view.log_end < leader_start
        || (is_empty && Offset::ZERO <= leader_start && view.log_end > leader_start)
    {
        return Verdict::Restart(leader_start);
    }
    Verdict::Wait
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEW: View = View {
        log_start: Offset(10),
        log_end: Offset(50),
    };

    fn answer() -> Answer {
        Answer {
            error: ErrorCode::None,
            diverging: None,
            log_start: Offset(0),
            first_offset: None,
            newest_epoch: None,
            followed_in: LeaderEpoch(7),
        }
    }

    fn diverging(epoch: i32, end: i64) -> Answer {
        Answer {
            diverging: Some((LeaderEpoch(epoch), Offset(end))),
            ..answer()
        }
    }

    fn no_history(_: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        None
    }

    #[test]
    fn records_that_continue_the_log_are_appended() {
        let records = Answer {
            first_offset: Some(Offset(50)),
            ..answer()
        };
        assert_eq!(judge(VIEW, records, no_history), Verdict::Append);
        assert_eq!(judge(VIEW, answer(), no_history), Verdict::Append);
    }

    #[test]
    fn records_from_elsewhere_are_not() {
        let stale = Answer {
            first_offset: Some(Offset(40)),
            ..answer()
        };
        assert_eq!(judge(VIEW, stale, no_history), Verdict::AskAgain);
    }

    /// KAFKA-18723. Neither appended, nor a reason to begin anew.
    #[test]
    fn records_of_a_later_epoch_are_dropped() {
        let empty = View {
            log_start: Offset(50),
            log_end: Offset(50),
        };
        for (view, first) in [(VIEW, 50), (VIEW, 40), (empty, 50), (empty, 47)] {
            let records = |epoch| Answer {
                first_offset: Some(Offset(first)),
                newest_epoch: Some(LeaderEpoch(epoch)),
                ..answer()
            };
            let dropped = Verdict::DropNewer(LeaderEpoch(8));
            assert_eq!(judge(view, records(8), no_history), dropped);
            assert_ne!(judge(view, records(7), no_history), dropped);
        }
    }

    #[test]
    fn an_empty_log_takes_the_batch_that_its_beginning_lies_in() {
        let empty = View {
            log_start: Offset(50),
            log_end: Offset(50),
        };
        let whole_batch = Answer {
            first_offset: Some(Offset(47)),
            log_start: Offset(50),
            ..answer()
        };
        assert_eq!(
            judge(empty, whole_batch, no_history),
            Verdict::BeginAt(Offset(47))
        );
    }

    /// KIP-279: both sides' ends of the epoch count.
    #[test]
    fn the_cut_is_where_the_shorter_history_of_the_epoch_ends() {
        let own = |_| Some((LeaderEpoch(3), Offset(35)));
        assert_eq!(
            judge(VIEW, diverging(3, 30), own),
            Verdict::Truncate(Offset(30))
        );
        assert_eq!(
            judge(VIEW, diverging(4, 45), own),
            Verdict::Truncate(Offset(35))
        );
        assert_eq!(
            judge(VIEW, diverging(3, 90), |_| Some((
                LeaderEpoch(3),
                Offset(60)
            ))),
            Verdict::Truncate(Offset(50))
        );
    }

    #[test]
    fn histories_without_anything_in_common_begin_anew() {
        assert_eq!(
            judge(VIEW, diverging(1, 4), no_history),
            Verdict::Restart(Offset(0))
        );
    }

    #[test]
    fn a_follower_below_the_leaders_start_begins_there() {
        let out_of_range = Answer {
            error: ErrorCode::OffsetOutOfRange,
            log_start: Offset(70),
            ..answer()
        };
        assert_eq!(
            judge(VIEW, out_of_range, no_history),
            Verdict::Restart(Offset(70))
        );
        let unknown = Answer {
            log_start: Offset(-1),
            ..out_of_range
        };
        assert_eq!(judge(VIEW, unknown, no_history), Verdict::Wait);
        let odd = Answer {
            log_start: Offset(20),
            ..out_of_range
        };
        assert_eq!(judge(VIEW, odd, no_history), Verdict::Wait);
        let empty = View {
            log_start: Offset(50),
            log_end: Offset(50),
        };
        assert_eq!(judge(empty, odd, no_history), Verdict::Restart(Offset(20)));
    }

    #[test]
    fn a_reader_continues_where_its_history_is_a_prefix() {
        let leader = View {
            log_start: Offset(10),
            log_end: Offset(50),
        };
        let at = |from, epoch, end: Option<(i32, i64)>| {
            continuity(leader, Offset(from), LeaderEpoch(epoch), |_| {
                end.map(|(epoch, end)| (LeaderEpoch(epoch), Offset(end)))
            })
        };
        let diverges = |epoch, end| Continuity::Diverges(LeaderEpoch(epoch), Offset(end));
        assert_eq!(at(30, 4, Some((4, 30))), Continuity::Continues);
        assert_eq!(at(30, 4, Some((4, 29))), diverges(4, 29));
        assert_eq!(at(30, 4, Some((3, 40))), diverges(3, 40));
        assert_eq!(at(60, 4, Some((4, 50))), diverges(4, 50));
        assert_eq!(at(30, 4, None), Continuity::UnknownEpoch);
        assert_eq!(at(60, -1, None), Continuity::OutOfRange);
        assert_eq!(at(9, 4, Some((4, 50))), Continuity::OutOfRange);
    }

    #[test]
    fn other_errors_pass() {
        for error in [
            ErrorCode::NotLeaderOrFollower,
            ErrorCode::FencedLeaderEpoch,
            ErrorCode::UnknownLeaderEpoch,
            ErrorCode::UnknownTopicId,
            ErrorCode::KafkaStorageError,
        ] {
            let failed = Answer { error, ..answer() };
            assert_eq!(judge(VIEW, failed, no_history), Verdict::Wait);
        }
    }
}
