use bytes::Bytes;

use super::*;
use crate::coordinator::GroupConfig;
use crate::coordinator::group::{JoinGroup, Protocol, SyncGroup};
use crate::coordinator::offsets_log::{decode, encode};
use crate::coordinator::tests::{Topics, topic_id};

const MINUTE_MS: i64 = 60_000;

/// Keeps records as bytes, as the log does.
#[derive(Default)]
struct Log {
    records: Vec<crate::coordinator::offsets_log::KeyValue>,
    fails: Option<GroupError>,
}

impl Journal for Log {
    fn append(&mut self, records: &[OffsetsRecord]) -> Result<(), GroupError> {
        if let Some(error) = self.fails {
            return Err(error);
        }
        self.records
            .extend(records.iter().map(|record| encode(record).unwrap()));
        Ok(())
    }
}

struct Scene {
    shard: Shard,
    log: Log,
    now: Now,
    next_reply: u64,
}

impl Scene {
    fn new() -> Self {
        let config = GroupConfig {
            offsets_retention_ms: 10 * MINUTE_MS,
            offset_metadata_max_bytes: 8,
            ..GroupConfig::default()
        };
        Self {
            shard: Shard::new(Arc::new(config)),
            log: Log::default(),
            now: Now {
                uptime_ms: 0,
                wall_ms: 1_700_000_000_000,
            },
            next_reply: 0,
        }
    }

    fn pass(&mut self, ms: i64) {
        self.now.uptime_ms += ms;
        self.now.wall_ms += ms;
        self.shard.tick(self.now, &mut self.log);
    }

    fn commit(&mut self, group: &str, topic: &str, offset: i64) -> Result<(), GroupError> {
        self.commit_as(group, "", -1, topic, offset)
    }

    fn commit_as(
        &mut self,
        group: &str,
        member: &str,
        generation: i32,
        topic: &str,
        offset: i64,
    ) -> Result<(), GroupError> {
        let commit = Commit {
            group_id: group.into(),
            member_id: member.into(),
            instance_id: None,
            generation,
            knows_group_id_not_found: true,
            retention_ms: -1,
            offsets: vec![NewOffset {
                topic: topic.into(),
                topic_id: topic_id(1),
                partition: 0,
                offset,
                leader_epoch: 1,
                metadata: "".into(),
            }],
        };
        let results = self.shard.commit(self.now, commit, &mut self.log)?;
        assert_eq!(results, vec![Ok(())]);
        Ok(())
    }

    fn offset(&self, group: &str, topic: &str) -> Option<i64> {
        let offset = self.shard.get(group)?.offsets.get(topic)?.get(&0)?;
        Some(offset.offset)
    }

    /// One consumer of `topics` joins, gets its assignment and lives on its heartbeats.
    fn stable_group(&mut self, group: &str, topics: &[&str]) {
        let mut metadata = vec![0, 0];
        metadata.extend_from_slice(&u32::try_from(topics.len()).unwrap().to_be_bytes());
        for topic in topics {
            metadata.extend_from_slice(&u16::try_from(topic.len()).unwrap().to_be_bytes());
            metadata.extend_from_slice(topic.as_bytes());
        }
        let id: Arc<str> = group.into();
        self.next_reply += 1;
        let join = JoinGroup {
            reply: ReplyId(self.next_reply),
            member_id: "".into(),
            fresh_member_id: "m".into(),
            id_required: false,
            may_skip_assignment: false,
            instance_id: None,
            client_id: "c".into(),
            client_host: "/h".into(),
            session_timeout_ms: i32::MAX,
            rebalance_timeout_ms: 1_000,
            protocol_type: "consumer".into(),
            protocols: vec![Protocol {
                name: "range".into(),
                metadata: metadata.into(),
            }],
            reason: None,
        };
        self.shard
            .step(self.now, &id, Event::Join(Box::new(join)), &mut self.log);
        self.pass(3_000);
        self.next_reply += 1;
        let sync = SyncGroup {
            reply: ReplyId(self.next_reply),
            member_id: "m".into(),
            instance_id: None,
            generation: 1,
            protocol_type: None,
            protocol: None,
            assignments: [(Arc::from("m"), Bytes::from_static(b"all"))].into(),
        };
        self.shard
            .step(self.now, &id, Event::Sync(sync), &mut self.log);
        assert_eq!(
            self.shard.get(group).map(|entry| entry.group.state()),
            Some(GroupState::Stable)
        );
    }

    fn leave(&mut self, group: &str) {
        self.next_reply += 1;
        let leave = crate::coordinator::group::LeaveGroup {
            reply: ReplyId(self.next_reply),
            members: vec![crate::coordinator::group::LeavingMember {
                member_id: "m".into(),
                instance_id: None,
                reason: None,
            }],
        };
        self.shard
            .step(self.now, &group.into(), Event::Leave(leave), &mut self.log);
    }

    /// What another node would know after reading the log.
    fn replayed(&self) -> Shard {
        let mut shard = Shard::new(Arc::clone(&self.shard.config));
        for (key, value) in &self.log.records {
            let record = decode(Some(key), value.as_deref()).unwrap().unwrap();
            shard.replay(self.now, record);
        }
        shard
    }

    fn assert_replay_agrees(&self) {
        let replayed = self.replayed();
        let view = |shard: &Shard| {
            shard
                .entries()
                .map(|entry| {
                    let stored = entry.group.is_stored().then(|| entry.group.metadata());
                    (entry.group.id().clone(), (stored, entry.offsets.clone()))
                })
                .collect::<BTreeMap<_, _>>()
        };
        assert_eq!(view(&self.shard), view(&replayed));
    }
}

#[test]
fn a_commit_is_there_after_the_log_is_read_again() {
    let mut scene = Scene::new();
    scene.commit("g", "t", 5).unwrap();
    scene.commit("g", "t", 7).unwrap();
    scene.commit("h", "u", 1).unwrap();
    assert_eq!(scene.offset("g", "t"), Some(7));
    assert_eq!(scene.offset("g", "u"), None);
    scene.assert_replay_agrees();
}

#[test]
fn a_commit_the_log_refuses_changes_nothing() {
    let mut scene = Scene::new();
    scene.log.fails = Some(GroupError::NotCoordinator);
    assert_eq!(scene.commit("g", "t", 5), Err(GroupError::NotCoordinator));
    assert!(scene.shard.get("g").is_none());
}

#[test]
fn a_commit_to_a_group_that_is_not_there_names_the_error_its_client_knows() {
    let mut scene = Scene::new();
    assert_eq!(
        scene.commit_as("g", "m", 3, "t", 1),
        Err(GroupError::GroupIdNotFound)
    );
    let old = Commit {
        group_id: "g".into(),
        member_id: "m".into(),
        instance_id: None,
        generation: 3,
        knows_group_id_not_found: false,
        retention_ms: -1,
        offsets: Vec::new(),
    };
    assert_eq!(
        scene.shard.commit(scene.now, old, &mut scene.log),
        Err(GroupError::IllegalGeneration)
    );
}

#[test]
fn long_metadata_is_refused_alone() {
    let mut scene = Scene::new();
    let offset = |partition, metadata: &str| NewOffset {
        topic: "t".into(),
        topic_id: topic_id(1),
        partition,
        offset: 1,
        leader_epoch: -1,
        metadata: metadata.into(),
    };
    let commit = Commit {
        group_id: "g".into(),
        member_id: "".into(),
        instance_id: None,
        generation: -1,
        knows_group_id_not_found: true,
        retention_ms: -1,
        offsets: vec![offset(0, "too long!"), offset(1, "as long.")],
    };
    let results = scene.shard.commit(scene.now, commit, &mut scene.log);
    assert_eq!(
        results,
        Ok(vec![Err(GroupError::OffsetMetadataTooLarge), Ok(())])
    );
    assert_eq!(scene.shard.get("g").unwrap().offsets["t"].len(), 1);
}

#[test]
fn only_members_commit_while_there_are_any() {
    let mut scene = Scene::new();
    scene.stable_group("g", &["t"]);
    scene.commit_as("g", "m", 1, "t", 5).unwrap();
    assert_eq!(scene.commit("g", "t", 9), Err(GroupError::UnknownMemberId));
    assert_eq!(
        scene.commit_as("g", "m", 2, "t", 9),
        Err(GroupError::IllegalGeneration)
    );
    assert_eq!(scene.offset("g", "t"), Some(5));
    scene.assert_replay_agrees();
}

#[test]
fn offsets_without_a_group_expire_after_their_commit() {
    let mut scene = Scene::new();
    scene.commit("g", "old", 1).unwrap();
    scene.pass(5 * MINUTE_MS);
    scene.commit("g", "new", 1).unwrap();
    scene.pass(5 * MINUTE_MS);
    scene.shard.expire(scene.now, &mut scene.log).unwrap();
    assert_eq!(scene.offset("g", "old"), None);
    assert_eq!(scene.offset("g", "new"), Some(1));
    scene.pass(5 * MINUTE_MS);
    scene.shard.expire(scene.now, &mut scene.log).unwrap();
    assert!(scene.shard.get("g").is_none());
    scene.assert_replay_agrees();
}

#[test]
fn offsets_of_a_group_live_while_it_is_subscribed_and_then_from_when_it_is_empty() {
    let mut scene = Scene::new();
    scene.stable_group("g", &["kept"]);
    scene.commit_as("g", "m", 1, "kept", 1).unwrap();
    scene.commit_as("g", "m", 1, "dropped", 1).unwrap();
    scene.pass(10 * MINUTE_MS);
    scene.shard.expire(scene.now, &mut scene.log).unwrap();
    assert_eq!(scene.offset("g", "kept"), Some(1));
    assert_eq!(scene.offset("g", "dropped"), None);

    scene.leave("g");
    scene.pass(10 * MINUTE_MS - 1);
    scene.shard.expire(scene.now, &mut scene.log).unwrap();
    assert_eq!(scene.offset("g", "kept"), Some(1));
    scene.assert_replay_agrees();
    scene.pass(1);
    scene.shard.expire(scene.now, &mut scene.log).unwrap();
    assert!(scene.shard.get("g").is_none());
    scene.assert_replay_agrees();
}

#[test]
fn a_retention_of_the_clients_own_is_kept() {
    let mut scene = Scene::new();
    let commit = Commit {
        group_id: "g".into(),
        member_id: "".into(),
        instance_id: None,
        generation: -1,
        knows_group_id_not_found: false,
        retention_ms: 60 * MINUTE_MS,
        offsets: vec![NewOffset {
            topic: "t".into(),
            topic_id: topic_id(1),
            partition: 0,
            offset: 1,
            leader_epoch: -1,
            metadata: "".into(),
        }],
    };
    scene
        .shard
        .commit(scene.now, commit, &mut scene.log)
        .unwrap();
    scene.assert_replay_agrees();
    scene.pass(60 * MINUTE_MS - 1);
    scene.shard.expire(scene.now, &mut scene.log).unwrap();
    assert_eq!(scene.offset("g", "t"), Some(1));
    scene.pass(1);
    scene.shard.expire(scene.now, &mut scene.log).unwrap();
    assert_eq!(scene.offset("g", "t"), None);
}

/// An offset as older records have it.
fn without_topic_id(group: &str, topic: &str, offset: i64) -> OffsetsRecord {
    let key = OffsetKey {
        group: group.into(),
        topic: topic.into(),
        partition: 0,
    };
    let value = CommittedOffset {
        offset,
        leader_epoch: -1,
        metadata: "".into(),
        commit_timestamp_ms: 0,
        expire_timestamp_ms: -1,
        topic_id: None,
    };
    OffsetsRecord::Offset(key, Some(value))
}

impl Scene {
    fn write(&mut self, record: OffsetsRecord) {
        self.shard
            .write(self.now, vec![record], &mut self.log)
            .unwrap();
    }

    fn forget_deleted_topics(
        &mut self,
        topics: &Topics,
        deleted: &[Arc<str>],
    ) -> Result<(), GroupError> {
        let image = topics.image();
        self.shard
            .forget_deleted_topics(self.now, &image, deleted, &mut self.log)
    }
}

#[test]
fn a_deleted_topic_takes_its_offsets_along() {
    let mut scene = Scene::new();
    scene.write(without_topic_id("g", "t", 1));
    scene.write(without_topic_id("g", "u", 2));
    scene.write(without_topic_id("h", "t", 3));
    let left = Topics::new().create("u", topic_id(2));
    scene.forget_deleted_topics(&left, &[]).unwrap();
    assert_eq!(scene.offset("g", "t"), None);
    assert_eq!(scene.offset("g", "u"), Some(2));
    assert!(scene.shard.get("h").is_none());
    scene.assert_replay_agrees();
}

#[test]
fn a_topic_is_known_by_its_id_where_the_record_says_it_and_by_its_name_elsewhere() {
    let mut scene = Scene::new();
    scene.commit("g", "t", 1).unwrap();
    scene.write(without_topic_id("h", "t", 2));
    let same = Topics::new().create("t", topic_id(1));
    scene.forget_deleted_topics(&same, &[]).unwrap();
    assert_eq!(scene.offset("g", "t"), Some(1));
    assert_eq!(scene.offset("h", "t"), Some(2));
    // Another topic of the name was deleted, or this one has just been created again.
    scene.forget_deleted_topics(&same, &["t".into()]).unwrap();
    assert_eq!(scene.offset("g", "t"), Some(1));
    assert_eq!(scene.offset("h", "t"), None);

    let another = Topics::new().create("t", topic_id(2));
    scene.forget_deleted_topics(&another, &[]).unwrap();
    assert_eq!(scene.offset("g", "t"), None);
    scene.assert_replay_agrees();
}

#[test]
fn what_is_committed_again_before_it_could_be_forgotten_stays() {
    let mut scene = Scene::new();
    for group in ["g", "h"] {
        scene.write(without_topic_id(group, "t", 1));
    }
    scene.log.fails = Some(GroupError::CoordinatorNotAvailable);
    assert_eq!(
        scene.forget_deleted_topics(&Topics::new(), &["t".into()]),
        Err(GroupError::CoordinatorNotAvailable)
    );
    assert!(scene.shard.has_unforgotten());
    scene.log.fails = None;
    let again = Topics::new().create("t", topic_id(2));
    scene.write(without_topic_id("h", "t", 5));
    scene.forget_deleted_topics(&again, &[]).unwrap();
    assert!(!scene.shard.has_unforgotten());
    assert_eq!(scene.offset("g", "t"), None);
    assert_eq!(scene.offset("h", "t"), Some(5));
    scene.assert_replay_agrees();
}

#[test]
fn groups_are_deleted_when_empty_and_only_then() {
    let mut scene = Scene::new();
    let id: Arc<str> = "g".into();
    scene.stable_group("g", &["t"]);
    scene.commit_as("g", "m", 1, "t", 1).unwrap();
    assert_eq!(
        scene.shard.delete_group(scene.now, &id, &mut scene.log),
        Err(GroupError::NonEmptyGroup)
    );
    scene.leave("g");
    assert_eq!(
        scene.shard.delete_group(scene.now, &id, &mut scene.log),
        Ok(())
    );
    assert_eq!(
        scene.shard.delete_group(scene.now, &id, &mut scene.log),
        Err(GroupError::GroupIdNotFound)
    );
    assert_eq!(scene.replayed().entries().count(), 0);
}

#[test]
fn single_offsets_are_deleted_unless_subscribed() {
    let mut scene = Scene::new();
    let id: Arc<str> = "g".into();
    scene.stable_group("g", &["t"]);
    scene.commit_as("g", "m", 1, "t", 1).unwrap();
    scene.commit_as("g", "m", 1, "u", 2).unwrap();
    let partitions = [("t".into(), 0), ("u".into(), 0), ("u".into(), 9)];
    let results = scene
        .shard
        .delete_offsets(scene.now, &id, &partitions, &mut scene.log);
    assert_eq!(
        results,
        Ok(vec![
            Err(GroupError::GroupSubscribedToTopic),
            Ok(()),
            Ok(())
        ])
    );
    assert_eq!(scene.offset("g", "t"), Some(1));
    assert_eq!(scene.offset("g", "u"), None);
    scene.assert_replay_agrees();
}

#[test]
fn a_group_nobody_joined_leaves_nothing_behind() {
    let mut scene = Scene::new();
    let id: Arc<str> = "g".into();
    let beat = Event::Heartbeat {
        reply: ReplyId(1),
        member_id: "m".into(),
        instance_id: None,
        generation: 0,
    };
    let answers = scene.shard.step(scene.now, &id, beat, &mut scene.log);
    assert_eq!(
        answers,
        vec![(
            ReplyId(1),
            Answer::Heartbeat(Err(GroupError::UnknownMemberId))
        )]
    );
    assert!(scene.shard.get("g").is_none());
    assert_eq!(scene.shard.next_deadline(), None);
}

#[test]
fn members_of_a_loaded_group_must_show_up_again() {
    let mut scene = Scene::new();
    scene.stable_group("g", &["t"]);
    scene.shard = scene.replayed();
    assert_eq!(scene.shard.next_deadline(), None);
    scene.shard.loaded(scene.now, &mut scene.log);
    scene.pass(i64::from(i32::MAX));
    assert_eq!(
        scene.shard.get("g").unwrap().group.state(),
        GroupState::Empty
    );
    scene.assert_replay_agrees();
}
