//! The groups of one partition of `__consumer_offsets`, and the offsets they committed: pure, like a
//! [`Group`].
//!
//! *Memory is the log up to its end.* Every change is appended first and then applied by the code that
//! also reads the log back, so live state and replayed state cannot differ (the membership of a group
//! that is rebalancing is the exception: Kafka never stores it). Whether what was appended is *committed*
//! is the caller's business: it holds an answer back until everything appended before it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kittiwake_raft::{ClusterImage, TopicId};

use super::deadlines::Deadlines;
use super::error::GroupError;
use super::group::{Action, Answer, Event, Group, GroupState, Now, ReplyId};
use super::offsets_log::{CommittedOffset, OffsetKey, OffsetsRecord};

/// Where the records of a shard go.
pub(crate) trait Journal {
    /// Appends the records as one batch, all or nothing, at once.
    ///
    /// # Errors
    /// What a client is told.
    fn append(&mut self, records: &[OffsetsRecord]) -> Result<(), GroupError>;
}

/// Answers that are ready.
pub(crate) type Answers = Vec<(ReplyId, Answer)>;

/// Offsets of one group by topic and partition.
pub(crate) type Offsets = BTreeMap<Arc<str>, BTreeMap<i32, CommittedOffset>>;

/// An OffsetCommit request.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) group_id: Arc<str>,
    /// Empty, with generation −1: no member, but an administrator or a consumer that assigns its own
    /// partitions.
    pub(crate) member_id: Arc<str>,
    pub(crate) instance_id: Option<Arc<str>>,
    pub(crate) generation: i32,
    /// The client knows GROUP_ID_NOT_FOUND as an answer (v9+).
    pub(crate) knows_group_id_not_found: bool,
    /// How long to keep the offsets, −1: as the broker keeps them (v2–4).
    pub(crate) retention_ms: i64,
    pub(crate) offsets: Vec<NewOffset>,
}

/// One offset of a commit.
#[derive(Clone, Debug)]
pub(crate) struct NewOffset {
    pub(crate) topic: Arc<str>,
    pub(crate) topic_id: TopicId,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: Arc<str>,
}

/// Tombstones in one batch: a batch of the longest keys stays far below `max.message.bytes`.
const TOMBSTONES_PER_BATCH: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) group: Group,
    pub(crate) offsets: Offsets,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Shard {
    config: Arc<super::GroupConfig>,
    groups: HashMap<Arc<str>, Entry>,
    /// When to look at which group: never later than its own next deadline. Heartbeats move a group's
    /// deadlines away and leave this alone.
    deadlines: Deadlines<Arc<str>>,
    /// Offsets of deleted topics that are still here because the log has refused their tombstones. One
    /// that is committed again is another topic's.
    unforgotten: BTreeSet<OffsetKey>,
}

impl Shard {
    pub(crate) fn new(config: Arc<super::GroupConfig>) -> Self {
        Self {
            config,
            groups: HashMap::new(),
            deadlines: Deadlines::new(),
            unforgotten: BTreeSet::new(),
        }
    }

    /// Takes in one record of the log, oldest first.
    pub(crate) fn replay(&mut self, now: Now, record: OffsetsRecord) {
        match record {
            OffsetsRecord::Offset(key, value) => self.apply_offset(now, key, value),
            OffsetsRecord::Group(id, Some(stored)) => {
                let group = Group::restore(id.clone(), self.config.limits, &stored);
                self.entry(now, &id).group = group;
            }
            OffsetsRecord::Group(id, None) => {
                self.entry(now, &id).group = Group::new(id.clone(), self.config.limits, now);
                self.settle(&id);
            }
        }
    }

    /// The whole log has been read: timers start.
    pub(crate) fn loaded(&mut self, now: Now, journal: &mut dyn Journal) {
        let ids: Vec<Arc<str>> = self.groups.keys().cloned().collect();
        for id in ids {
            // Nobody waits for a group that has just been read, so there is nobody to answer.
            self.step(now, &id, Event::Loaded, journal);
        }
    }

    /// This node no longer leads the partition: everybody who waits is told.
    pub(crate) fn unload(mut self, now: Now) -> Answers {
        let mut answers = Answers::new();
        for entry in self.groups.values_mut() {
            answers.extend(
                entry
                    .group
                    .step(now, Event::Unload)
                    .into_iter()
                    .filter_map(as_answer),
            );
        }
        answers
    }

    /// Something happens to a group; one that does not exist is an empty one.
    pub(crate) fn step(
        &mut self,
        now: Now,
        id: &Arc<str>,
        event: Event,
        journal: &mut dyn Journal,
    ) -> Answers {
        let mut answers = Answers::new();
        let group = &mut self.entry(now, id).group;
        step_group(group, now, event, journal, &mut answers);
        self.settle(id);
        answers
    }

    /// Fires what is due.
    pub(crate) fn tick(&mut self, now: Now, journal: &mut dyn Journal) -> Answers {
        let mut answers = Answers::new();
        while let Some(id) = self.deadlines.pop_due(now.uptime_ms) {
            if let Some(entry) = self.groups.get_mut(&id) {
                while entry
                    .group
                    .next_deadline()
                    .is_some_and(|at| at <= now.uptime_ms)
                {
                    step_group(&mut entry.group, now, Event::Tick, journal, &mut answers);
                }
                self.settle(&id);
            }
        }
        answers
    }

    /// When [`Shard::tick`] is due at the latest.
    pub(crate) fn next_deadline(&self) -> Option<i64> {
        self.deadlines.next()
    }

    /// Commits offsets; one result per offset, in the order of the request.
    ///
    /// # Errors
    /// What the whole commit is refused for.
    pub(crate) fn commit(
        &mut self,
        now: Now,
        commit: Commit,
        journal: &mut dyn Journal,
    ) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        if commit.generation >= 0 && !self.groups.contains_key(&commit.group_id) {
            return Err(if commit.knows_group_id_not_found {
                GroupError::GroupIdNotFound
            } else {
                GroupError::IllegalGeneration
            });
        }
        let admitted = self.entry(now, &commit.group_id).group.admit_commit(
            now,
            &commit.member_id,
            commit.instance_id.as_ref(),
            commit.generation,
        );
        let committed = admitted.and_then(|()| self.append_commit(now, &commit, journal));
        self.settle(&commit.group_id);
        committed
    }

    fn append_commit(
        &mut self,
        now: Now,
        commit: &Commit,
        journal: &mut dyn Journal,
    ) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        let expire_timestamp_ms = match commit.retention_ms {
            ..0 => -1,
            retention_ms => now.wall_ms.saturating_add(retention_ms),
        };
        let mut results = Vec::with_capacity(commit.offsets.len());
        let mut records = Vec::with_capacity(commit.offsets.len());
        for new in &commit.offsets {
            if new.metadata.len() > self.config.offset_metadata_max_bytes {
                results.push(Err(GroupError::OffsetMetadataTooLarge));
                continue;
            }
            results.push(Ok(()));
            let key = OffsetKey {
                group: commit.group_id.clone(),
                topic: new.topic.clone(),
                partition: new.partition,
            };
            let value = CommittedOffset {
                offset: new.offset,
                leader_epoch: new.leader_epoch,
                metadata: new.metadata.clone(),
                commit_timestamp_ms: now.wall_ms,
                expire_timestamp_ms,
                // What the log cannot say is not remembered either.
                topic_id: (expire_timestamp_ms < 0).then_some(new.topic_id),
            };
            records.push(OffsetsRecord::Offset(key, Some(value)));
        }
        if !records.is_empty() {
            self.write(now, records, journal)?;
        }
        Ok(results)
    }

    /// A group with its offsets.
    pub(crate) fn get(&self, id: &str) -> Option<&Entry> {
        self.groups.get(id)
    }

    /// Every group.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.groups.values()
    }

    /// Deletes a group without members and all it committed.
    ///
    /// # Errors
    /// No such group, it has members, or the log refuses.
    pub(crate) fn delete_group(
        &mut self,
        now: Now,
        id: &Arc<str>,
        journal: &mut dyn Journal,
    ) -> Result<(), GroupError> {
        let entry = self.groups.get(id).ok_or(GroupError::GroupIdNotFound)?;
        entry.group.check_deletable()?;
        let mut tombstones: Vec<_> = offset_keys(entry, |_, _| true)
            .map(|key| OffsetsRecord::Offset(key, None))
            .collect();
        if entry.group.is_stored() {
            tombstones.push(OffsetsRecord::Group(id.clone(), None));
        }
        self.write_tombstones(now, tombstones, journal)?;
        if let Some(mut entry) = self.groups.remove(id) {
            // Whoever was promised a member id finds that it is unknown.
            entry.group.step(now, Event::Delete);
        }
        self.deadlines.cancel(id);
        Ok(())
    }

    /// Deletes single offsets (KIP-496); one result per partition, in the order of the request.
    ///
    /// # Errors
    /// No such group, its subscriptions cannot be read, or the log refuses.
    pub(crate) fn delete_offsets(
        &mut self,
        now: Now,
        id: &Arc<str>,
        partitions: &[(Arc<str>, i32)],
        journal: &mut dyn Journal,
    ) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        let entry = self.groups.get(id).ok_or(GroupError::GroupIdNotFound)?;
        entry.group.check_offsets_deletable()?;
        let is_subscribed = subscriptions(&entry.group);
        let mut tombstones = Vec::new();
        let mut results = Vec::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            if is_subscribed(topic) {
                results.push(Err(GroupError::GroupSubscribedToTopic));
                continue;
            }
            results.push(Ok(()));
            if entry
                .offsets
                .get(topic)
                .is_some_and(|offsets| offsets.contains_key(partition))
            {
                let key = OffsetKey {
                    group: id.clone(),
                    topic: topic.clone(),
                    partition: *partition,
                };
                tombstones.push(OffsetsRecord::Offset(key, None));
            }
        }
        self.write_tombstones(now, tombstones, journal)?;
        Ok(results)
    }

    /// Deletes what was committed for topics that are not in the image. It must be as new as the one any
    /// of these offsets was admitted by, or a topic just created passes for a deleted one.
    ///
    /// An offset that does not carry a topic id goes by name, also when the name is among those just
    /// `deleted`: there may be another topic of that name by now.
    ///
    /// # Errors
    /// The log refuses; the next call tries again.
    pub(crate) fn forget_deleted_topics(
        &mut self,
        now: Now,
        image: &ClusterImage,
        deleted: &[Arc<str>],
        journal: &mut dyn Journal,
    ) -> Result<(), GroupError> {
        let is_gone = |topic: &Arc<str>, offset: &CommittedOffset| match offset.topic_id {
            Some(id) => image.topic(id).is_none(),
            None => deleted.contains(topic) || image.topic_by_name(topic).is_none(),
        };
        let gone = self
            .groups
            .values()
            .flat_map(|entry| offset_keys(entry, is_gone));
        self.unforgotten.extend(gone);
        let tombstones = self
            .unforgotten
            .iter()
            .map(|key| OffsetsRecord::Offset(key.clone(), None))
            .collect();
        self.write_tombstones(now, tombstones, journal)
    }

    /// Whether offsets of deleted topics are still here.
    pub(crate) fn has_unforgotten(&self) -> bool {
        !self.unforgotten.is_empty()
    }

    /// Deletes offsets whose time is over, and groups that are left without members and offsets
    /// (KIP-211).
    ///
    /// # Errors
    /// The log refuses; the next check tries again.
    pub(crate) fn expire(&mut self, now: Now, journal: &mut dyn Journal) -> Result<(), GroupError> {
        let retention_ms = self.config.offsets_retention_ms;
        let mut tombstones = Vec::new();
        for entry in self.groups.values() {
            let before = tombstones.len();
            tombstones.extend(
                expired_offsets(entry, now.wall_ms, retention_ms)
                    .into_iter()
                    .map(|key| OffsetsRecord::Offset(key, None)),
            );
            let offsets: usize = entry.offsets.values().map(BTreeMap::len).sum();
            let all_expired = tombstones.len() - before == offsets;
            if all_expired
                && entry.group.is_stored()
                && entry.group.state() == GroupState::Empty
                && !entry.group.awaits_members()
            {
                tombstones.push(OffsetsRecord::Group(entry.group.id().clone(), None));
            }
        }
        if !tombstones.is_empty() {
            tracing::info!(
                records = tombstones.len(),
                "offsets and groups have expired"
            );
        }
        self.write_tombstones(now, tombstones, journal)
    }

    fn write_tombstones(
        &mut self,
        now: Now,
        mut tombstones: Vec<OffsetsRecord>,
        journal: &mut dyn Journal,
    ) -> Result<(), GroupError> {
        while !tombstones.is_empty() {
            let rest = tombstones.split_off(tombstones.len().min(TOMBSTONES_PER_BATCH));
            self.write(now, tombstones, journal)?;
            tombstones = rest;
        }
        Ok(())
    }

    fn write(
        &mut self,
        now: Now,
        records: Vec<OffsetsRecord>,
        journal: &mut dyn Journal,
    ) -> Result<(), GroupError> {
        journal.append(&records)?;
        for record in records {
            self.replay(now, record);
        }
        Ok(())
    }

    fn apply_offset(&mut self, now: Now, key: OffsetKey, value: Option<CommittedOffset>) {
        self.unforgotten.remove(&key);
        let OffsetKey {
            group,
            topic,
            partition,
        } = key;
        match value {
            Some(value) => {
                let offsets = &mut self.entry(now, &group).offsets;
                offsets.entry(topic).or_default().insert(partition, value);
            }
            None => {
                if let Some(entry) = self.groups.get_mut(&group)
                    && let Some(partitions) = entry.offsets.get_mut(&topic)
                {
                    partitions.remove(&partition);
                    if partitions.is_empty() {
                        entry.offsets.remove(&topic);
                    }
                }
                self.settle(&group);
            }
        }
    }

    fn entry(&mut self, now: Now, id: &Arc<str>) -> &mut Entry {
        let limits = self.config.limits;
        self.groups.entry(id.clone()).or_insert_with(|| Entry {
            group: Group::new(id.clone(), limits, now),
            offsets: Offsets::new(),
        })
    }

    /// After every change: forgets a group of which nothing is left, watches the timers of the others.
    fn settle(&mut self, id: &Arc<str>) {
        let Some(entry) = self.groups.get(id) else {
            return;
        };
        if entry.offsets.is_empty() && entry.group.is_forgettable() {
            self.groups.remove(id);
            self.deadlines.cancel(id);
            return;
        }
        if let Some(at) = entry.group.next_deadline()
            && self.deadlines.get(id).is_none_or(|known| at < known)
        {
            self.deadlines.set(id.clone(), at);
        }
    }
}

fn as_answer(action: Action) -> Option<(ReplyId, Answer)> {
    match action {
        Action::Answer(reply, answer) => Some((reply, answer)),
        Action::Persist(_) => None,
    }
}

fn step_group(
    group: &mut Group,
    now: Now,
    event: Event,
    journal: &mut dyn Journal,
    answers: &mut Answers,
) {
    for action in group.step(now, event) {
        match action {
            Action::Answer(reply, answer) => answers.push((reply, answer)),
            Action::Persist(metadata) => {
                let record = OffsetsRecord::Group(group.id().clone(), Some(metadata));
                let result = journal.append(&[record]).map_err(|error| match error {
                    // That is about commits; for group metadata Kafka has no better word.
                    GroupError::InvalidCommitOffsetSize => GroupError::UnknownServerError,
                    error => error,
                });
                step_group(group, now, Event::Persisted(result), journal, answers);
            }
        }
    }
}

fn offset_keys<'a>(
    entry: &'a Entry,
    wanted: impl Fn(&Arc<str>, &CommittedOffset) -> bool + 'a,
) -> impl Iterator<Item = OffsetKey> + 'a {
    entry
        .offsets
        .iter()
        .flat_map(|(topic, partitions)| {
            partitions
                .iter()
                .map(move |(partition, offset)| (topic, *partition, offset))
        })
        .filter(move |(topic, _, offset)| wanted(topic, offset))
        .map(|(topic, partition, _)| OffsetKey {
            group: entry.group.id().clone(),
            topic: topic.clone(),
            partition,
        })
}

/// Whether a member of the group is subscribed to a topic, as far as the coordinator can tell: a
/// consumer group whose subscriptions it cannot read may be subscribed to anything.
fn subscriptions(group: &Group) -> impl Fn(&Arc<str>) -> bool + use<> {
    let topics = group.subscribed_topics();
    let unreadable = group.is_consumer_group();
    move |topic| match &topics {
        Some(topics) => topics.contains(&**topic),
        None => unreadable,
    }
}

/// The offsets of a group whose time is over. What counts is how long nobody was there to need them:
///
/// | group | counted from |
/// |---|---|
/// | never had members | the commit |
/// | empty | when it became empty, or the commit where the log does not say |
/// | stable consumer group, topic no longer subscribed | the commit |
/// | any other | never |
fn expired_offsets(entry: &Entry, wall_ms: i64, retention_ms: i64) -> Vec<OffsetKey> {
    let group = &entry.group;
    let emptied_ms = match (group.protocol_type(), group.state()) {
        (None, _) => None,
        (Some(_), GroupState::Empty) => Some(group.state_timestamp_ms()).filter(|at| *at >= 0),
        (Some(_), GroupState::Stable) if group.subscribed_topics().is_some() => None,
        _ => return Vec::new(),
    };
    let is_subscribed = subscriptions(group);
    let is_over = move |offset: &CommittedOffset| match offset.expire_timestamp_ms {
        ..0 => {
            let since = emptied_ms.unwrap_or(offset.commit_timestamp_ms);
            wall_ms.saturating_sub(since) >= retention_ms
        }
        expire_timestamp_ms => wall_ms >= expire_timestamp_ms,
    };
    offset_keys(entry, move |topic, offset| {
        !is_subscribed(topic) && is_over(offset)
    })
    .collect()
}

#[cfg(test)]
#[path = "shard_tests.rs"]
mod tests;
