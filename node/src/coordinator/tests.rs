//! The coordinator on a partition in memory, whose replication the test controls.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use bytes::Bytes;
use kittiwake_raft::{
    BrokerEpoch, BrokerId, Command, DirectoryId, Endpoint, IncarnationId, LastStop, NewTopic,
    RegisterBroker, TopicId,
};
use kittiwake_storage::{LeaderEpoch, RecordsBuilder};
use kittiwake_storage::{batch::stamp, records::batches};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::group::{GroupState, JoinGroup, Protocol, SyncGroup};
use super::offsets_partition::Committed;
use super::shard::NewOffset;
use super::*;

/// Topics of a cluster, as they come and go.
pub(crate) struct Topics {
    image: ClusterImage,
}

impl Topics {
    pub(crate) fn new() -> Self {
        let mut topics = Self {
            image: ClusterImage::new("cluster"),
        };
        topics.apply(Command::RegisterBroker(RegisterBroker {
            broker: BrokerId(1),
            incarnation_id: IncarnationId::from_bytes([1; 16]).unwrap(),
            directory_id: DirectoryId::from_bytes([1; 16]).unwrap(),
            endpoints: vec![Endpoint {
                listener: "REPLICATION".into(),
                host: "host".into(),
                port: 1,
            }],
            rack: None,
            last_stop: LastStop::Killed,
        }));
        // A broker's epoch is the metadata offset of its registration.
        topics.apply(Command::UnfenceBroker {
            broker: BrokerId(1),
            epoch: BrokerEpoch(1),
            reconciled: 1,
        });
        topics
    }

    pub(crate) fn create(mut self, name: &str, id: TopicId) -> Self {
        self.apply(Command::CreateTopics(vec![NewTopic {
            name: name.into(),
            id,
            configs: [].into(),
            partitions: vec![vec![BrokerId(1)]],
        }]));
        self
    }

    pub(crate) fn delete(mut self, id: TopicId) -> Self {
        self.apply(Command::DeleteTopics(vec![id]));
        self
    }

    fn apply(&mut self, command: Command) {
        let results = self.image.apply(self.image.offset + 1, &command);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    pub(crate) fn image(&self) -> Arc<ClusterImage> {
        Arc::new(self.image.clone())
    }
}

pub(crate) fn topic_id(n: u8) -> TopicId {
    TopicId::from_bytes([n; 16]).unwrap()
}

/// The topic of [`commit`].
fn with_t() -> Topics {
    Topics::new().create("t", topic_id(1))
}

/// Another one of the same name.
fn with_t_again() -> Topics {
    with_t().delete(topic_id(1)).create("t", topic_id(2))
}

/// What survives a change of leaders.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Batches>>);

/// Batches with their base offsets.
type Batches = Vec<(Offset, Vec<u8>)>;

impl Log {
    fn end(&self) -> Offset {
        let log = self.0.lock();
        log.last().map_or(Offset::ZERO, |(base, batch)| {
            let (header, _) = batches(batch).next().unwrap().unwrap();
            *base + i64::from(header.records_count)
        })
    }
}

/// One leadership over [`Log`]; nothing is committed until the test says so.
struct Led {
    log: Log,
    epoch: i32,
    /// The high watermark; `Err` when the leadership is over.
    committed: watch::Sender<Result<Offset, GroupError>>,
    /// Reads wait until the other end is dropped.
    reading: Mutex<Option<mpsc::Receiver<()>>>,
    leased: AtomicBool,
    /// Appends fail.
    full: AtomicBool,
    /// Reads that fail before the disk is well again.
    bad_reads: AtomicUsize,
}

impl Led {
    fn new(log: &Log, epoch: i32) -> Arc<Self> {
        Arc::new(Self {
            log: log.clone(),
            epoch,
            committed: watch::Sender::new(Ok(Offset(i64::MAX))),
            reading: Mutex::new(None),
            leased: AtomicBool::new(true),
            full: AtomicBool::new(false),
            bad_reads: AtomicUsize::new(0),
        })
    }

    fn hold_reads(&self) -> mpsc::Sender<()> {
        let (gate, reads) = mpsc::channel();
        *self.reading.lock() = Some(reads);
        gate
    }

    fn set_committed(&self, committed: Result<Offset, GroupError>) {
        self.committed.send_modify(|current| *current = committed);
    }

    fn stop_replication(&self) {
        self.set_committed(Ok(self.log.end()));
    }

    fn replicate(&self) {
        self.set_committed(Ok(Offset(i64::MAX)));
    }

    fn lose_leadership(&self) {
        self.set_committed(Err(GroupError::NotCoordinator));
    }
}

impl OffsetsPartition for Led {
    fn index(&self) -> i32 {
        0
    }

    fn epoch(&self) -> LeaderEpoch {
        LeaderEpoch(self.epoch)
    }

    fn is_leased(&self) -> bool {
        self.leased.load(Ordering::SeqCst)
    }

    fn start(&self) -> Offset {
        Offset::ZERO
    }

    fn end(&self) -> Offset {
        self.log.end()
    }

    fn append(&self, batch: &[u8], _wall_ms: i64) -> Result<Offset, GroupError> {
        (*self.committed.borrow())?;
        if self.full.load(Ordering::SeqCst) {
            return Err(GroupError::CoordinatorNotAvailable);
        }
        let base = self.log.end();
        let mut batch = batch.to_vec();
        stamp(
            batch.first_chunk_mut().unwrap(),
            base,
            LeaderEpoch(self.epoch),
        );
        self.log.0.lock().push((base, batch));
        Ok(self.log.end())
    }

    fn is_committed(&self, end: Offset) -> bool {
        matches!(*self.committed.borrow(), Ok(committed) if committed >= end)
    }

    fn committed(&self, end: Offset) -> Committed {
        let mut committed = self.committed.subscribe();
        Box::pin(async move {
            let reached = committed
                .wait_for(|committed| committed.is_err() || committed.unwrap() >= end)
                .await
                .unwrap();
            (*reached).map(|_| ())
        })
    }

    fn read(&self, from: Offset, _upto: Offset) -> io::Result<Vec<u8>> {
        if let Some(gate) = self.reading.lock().take() {
            // Nothing is ever sent: the error says that the gate is open.
            let _ = gate.recv();
        }
        let one_less = |left: usize| left.checked_sub(1);
        let bad = self
            .bad_reads
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        if bad.is_ok() {
            return Err(io::Error::other("too many open files"));
        }
        let log = self.log.0.lock();
        // One batch at a time, so that every load takes several reads.
        let found = log.iter().rev().find(|(base, _)| *base <= from);
        Ok(found.map(|(_, batch)| batch.clone()).unwrap_or_default())
    }
}

fn coordinator() -> Arc<GroupCoordinator> {
    coordinator_in(&with_t()).0
}

/// In the cluster with these topics, which it has followed; tell it of others through the sender.
fn coordinator_in(topics: &Topics) -> (Arc<GroupCoordinator>, watch::Sender<Arc<ClusterImage>>) {
    let images = watch::Sender::new(topics.image());
    let mut config = GroupConfig::default();
    config.limits.initial_rebalance_delay_ms = 1;
    config.offsets_commit_timeout = Duration::from_secs(600);
    let coordinator = Arc::new(GroupCoordinator::new(config, images.subscribe()));
    coordinator.followed.send_replace(topics.image());
    (coordinator, images)
}

async fn loaded(coordinator: &Arc<GroupCoordinator>, led: &Arc<Led>) {
    coordinator.follow(vec![Arc::clone(led) as Arc<dyn OffsetsPartition>]);
    while coordinator.list() == Err(GroupError::CoordinatorLoadInProgress) {
        tokio::task::yield_now().await;
    }
}

fn commit(group: &str, offset: i64) -> Commit {
    Commit {
        group_id: group.into(),
        member_id: "".into(),
        instance_id: None,
        generation: -1,
        knows_group_id_not_found: true,
        retention_ms: -1,
        offsets: vec![NewOffset {
            topic: "t".into(),
            topic_id: topic_id(1),
            partition: 0,
            offset,
            leader_epoch: -1,
            metadata: "".into(),
        }],
    }
}

/// A commit whose record cannot say which topic it is for.
fn commit_by_name(group: &str, offset: i64) -> Commit {
    Commit {
        retention_ms: 600_000,
        ..commit(group, offset)
    }
}

/// A commit for the second topic of the name.
fn commit_again(group: &str, offset: i64) -> Commit {
    let mut commit = commit(group, offset);
    commit.offsets[0].topic_id = topic_id(2);
    commit
}

async fn offset(coordinator: &GroupCoordinator, group: &str) -> Result<Option<i64>, GroupError> {
    coordinator
        .offsets(group, |offsets| Some(offsets?.get("t")?.get(&0)?.offset))
        .await
}

fn join(reply: ReplyId, member_id: &str) -> Event {
    Event::Join(Box::new(JoinGroup {
        reply,
        member_id: member_id.into(),
        fresh_member_id: "m".into(),
        id_required: false,
        may_skip_assignment: false,
        instance_id: None,
        client_id: "c".into(),
        client_host: "/h".into(),
        session_timeout_ms: 600_000,
        rebalance_timeout_ms: 600_000,
        protocol_type: "consumer".into(),
        protocols: vec![Protocol {
            name: "range".into(),
            metadata: Bytes::from_static(b"\0\0\0\0\0\x01\0\x01t"),
        }],
        reason: None,
    }))
}

fn sync(reply: ReplyId) -> Event {
    Event::Sync(SyncGroup {
        reply,
        member_id: "m".into(),
        instance_id: None,
        generation: 1,
        protocol_type: None,
        protocol: None,
        assignments: [(Arc::from("m"), Bytes::from_static(b"all"))].into(),
    })
}

/// Runs timers beside the test.
fn run_timers(coordinator: &Arc<GroupCoordinator>) -> tokio::task::JoinHandle<()> {
    let coordinator = Arc::clone(coordinator);
    tokio::spawn(async move { coordinator.run_timers().await })
}

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[test]
fn groups_are_filed_as_kafka_files_them() {
    // String.hashCode: 99162322, Integer.MIN_VALUE, and a pair of surrogates.
    assert_eq!(partition_for("hello", 50), Some(22));
    assert_eq!(partition_for("polygenelubricants", 50), Some(0));
    assert_eq!(partition_for("😀", 50), Some(1_772_899 % 50));
    assert_eq!(partition_for("", 50), Some(0));
    assert_eq!(partition_for("hello", 0), None);
}

#[tokio::test]
async fn a_node_that_leads_nothing_coordinates_nothing() {
    let coordinator = coordinator();
    assert_eq!(
        coordinator.commit(commit("g", 1)).await,
        Err(GroupError::NotCoordinator)
    );
    assert_eq!(
        offset(&coordinator, "g").await,
        Err(GroupError::NotCoordinator)
    );
    assert_eq!(coordinator.list(), Ok(Vec::new()));
}

#[tokio::test]
async fn without_a_lease_nobody_is_answered() {
    let (coordinator, led) = (coordinator(), Led::new(&Log::default(), 1));
    loaded(&coordinator, &led).await;
    assert_eq!(coordinator.commit(commit("g", 1)).await, Ok(vec![Ok(())]));
    led.leased.store(false, Ordering::SeqCst);
    assert_eq!(
        offset(&coordinator, "g").await,
        Err(GroupError::NotCoordinator)
    );
    assert_eq!(
        coordinator.ask("g", sync).await,
        Err(GroupError::NotCoordinator)
    );
    assert_eq!(coordinator.list(), Ok(Vec::new()));
    led.leased.store(true, Ordering::SeqCst);
    assert_eq!(offset(&coordinator, "g").await, Ok(Some(1)));
}

#[tokio::test]
async fn a_log_that_could_not_be_read_is_read_again() {
    let log = Log::default();
    let coordinator = coordinator();
    loaded(&coordinator, &Led::new(&log, 1)).await;
    assert_eq!(coordinator.commit(commit("g", 1)).await, Ok(vec![Ok(())]));
    let led = Led::new(&log, 2);
    led.bad_reads.store(1, Ordering::SeqCst);
    loaded(&coordinator, &led).await;
    assert_eq!(led.bad_reads.load(Ordering::SeqCst), 0);
    assert_eq!(offset(&coordinator, "g").await, Ok(Some(1)));
}

#[tokio::test]
async fn a_group_without_a_name_or_with_too_long_a_one_is_refused() {
    let (coordinator, led) = (coordinator(), Led::new(&Log::default(), 1));
    loaded(&coordinator, &led).await;
    assert_eq!(
        coordinator.ask("", sync).await,
        Err(GroupError::InvalidGroupId)
    );
    let long = "x".repeat(offsets_log::STRING_BYTES_MAX + 1);
    assert_eq!(
        coordinator.ask(&long, sync).await,
        Err(GroupError::InvalidGroupId)
    );
}

#[tokio::test]
async fn a_commit_is_answered_when_it_is_committed_and_read_only_then() {
    let (coordinator, led) = (coordinator(), Led::new(&Log::default(), 1));
    loaded(&coordinator, &led).await;
    led.stop_replication();
    let mut writing = Box::pin(coordinator.commit(commit("g", 7)));
    assert_eq!(poll_once(&mut writing).await, None);
    let mut reading = Box::pin(offset(&coordinator, "g"));
    assert_eq!(poll_once(&mut reading).await, None);
    led.replicate();
    assert_eq!(writing.await, Ok(vec![Ok(())]));
    assert_eq!(reading.await, Ok(Some(7)));
}

#[tokio::test]
async fn a_commit_that_is_not_committed_in_time_is_not_acknowledged() {
    let config = GroupConfig {
        offsets_commit_timeout: Duration::from_millis(1),
        ..GroupConfig::default()
    };
    let images = watch::Sender::new(with_t().image());
    let coordinator = Arc::new(GroupCoordinator::new(config, images.subscribe()));
    coordinator.followed.send_replace(with_t().image());
    let led = Led::new(&Log::default(), 1);
    loaded(&coordinator, &led).await;
    led.stop_replication();
    assert_eq!(
        coordinator.commit(commit("g", 7)).await,
        Err(GroupError::CoordinatorNotAvailable)
    );
}

#[tokio::test]
async fn a_commit_whose_leader_goes_is_not_acknowledged() {
    let (coordinator, led) = (coordinator(), Led::new(&Log::default(), 1));
    loaded(&coordinator, &led).await;
    led.stop_replication();
    let mut writing = Box::pin(coordinator.commit(commit("g", 7)));
    assert_eq!(poll_once(&mut writing).await, None);
    led.lose_leadership();
    coordinator.follow(Vec::new());
    assert_eq!(writing.await, Err(GroupError::NotCoordinator));
}

#[tokio::test]
async fn the_next_leader_knows_every_offset_and_nothing_before_it_has_read_them_all() {
    let log = Log::default();
    let (first, led) = (coordinator(), Led::new(&log, 1));
    loaded(&first, &led).await;
    for value in 1..=20 {
        first
            .commit(commit("g", value))
            .await
            .unwrap()
            .remove(0)
            .unwrap();
    }

    let (second, led) = (coordinator(), Led::new(&log, 2));
    let reading = led.hold_reads();
    second.follow(vec![Arc::clone(&led) as Arc<dyn OffsetsPartition>]);
    assert_eq!(
        offset(&second, "g").await,
        Err(GroupError::CoordinatorLoadInProgress)
    );
    assert_eq!(second.list(), Err(GroupError::CoordinatorLoadInProgress));
    drop(reading);
    loaded(&second, &led).await;
    assert_eq!(offset(&second, "g").await, Ok(Some(20)));
    assert_eq!(offset(&second, "unknown").await, Ok(None));
}

#[tokio::test]
async fn a_topic_deleted_during_the_load_loses_its_offsets_after_it() {
    let log = Log::default();
    let (first, led) = (coordinator(), Led::new(&log, 1));
    loaded(&first, &led).await;
    for commit in [commit("by id", 3), commit_by_name("by name", 3)] {
        assert_eq!(first.commit(commit).await, Ok(vec![Ok(())]));
    }

    let ((second, images), led) = (coordinator_in(&with_t()), Led::new(&log, 2));
    let reading = led.hold_reads();
    second.follow(vec![Arc::clone(&led) as Arc<dyn OffsetsPartition>]);
    images.send_replace(with_t_again().image());
    second.forget_topics(&["t".into()]);
    drop(reading);
    loaded(&second, &led).await;
    assert_eq!(offset(&second, "by id").await, Ok(None));
    assert_eq!(offset(&second, "by name").await, Ok(None));
}

#[tokio::test]
async fn a_topic_deleted_while_nobody_coordinates_loses_its_offsets_before_anybody_is_answered() {
    let log = Log::default();
    let (first, led) = (coordinator(), Led::new(&log, 1));
    loaded(&first, &led).await;
    for commit in [commit("by id", 3), commit_by_name("by name", 3)] {
        assert_eq!(first.commit(commit).await, Ok(vec![Ok(())]));
    }

    let (second, _images) = coordinator_in(&with_t().delete(topic_id(1)));
    loaded(&second, &Led::new(&log, 2)).await;
    assert_eq!(offset(&second, "by id").await, Ok(None));
    assert_eq!(offset(&second, "by name").await, Ok(None));

    // That is in the log: whoever reads it does not have to know what was deleted.
    let third = coordinator();
    loaded(&third, &Led::new(&log, 3)).await;
    assert_eq!(third.list(), Ok(Vec::new()));
}

#[tokio::test]
async fn a_topic_that_took_the_name_of_a_deleted_one_has_nothing_committed() {
    let log = Log::default();
    let (first, led) = (coordinator(), Led::new(&log, 1));
    loaded(&first, &led).await;
    assert_eq!(first.commit(commit("g", 3)).await, Ok(vec![Ok(())]));
    let (second, _images) = coordinator_in(&with_t_again());
    loaded(&second, &Led::new(&log, 2)).await;
    assert_eq!(offset(&second, "g").await, Ok(None));
}

type Retry = fn(&GroupCoordinator);

/// The expiry check, and any change of the metadata.
const RETRIES: [Retry; 2] = [
    |coordinator| coordinator.expire(),
    |coordinator| coordinator.forget_topics(&[]),
];

#[tokio::test]
async fn what_the_log_refuses_to_forget_is_forgotten_later() {
    for retry in RETRIES {
        let log = Log::default();
        let ((coordinator, images), led) = (coordinator_in(&with_t()), Led::new(&log, 1));
        loaded(&coordinator, &led).await;
        for commit in [commit("by id", 3), commit_by_name("by name", 3)] {
            assert_eq!(coordinator.commit(commit).await, Ok(vec![Ok(())]));
        }
        led.full.store(true, Ordering::SeqCst);
        images.send_replace(with_t_again().image());
        coordinator.forget_topics(&["t".into()]);
        assert_eq!(offset(&coordinator, "by id").await, Ok(Some(3)));
        led.full.store(false, Ordering::SeqCst);
        retry(&coordinator);
        assert_eq!(offset(&coordinator, "by id").await, Ok(None));
        assert_eq!(offset(&coordinator, "by name").await, Ok(None));
    }
}

#[tokio::test]
async fn what_the_log_refuses_to_forget_after_the_load_is_forgotten_later() {
    for retry in RETRIES {
        let log = Log::default();
        let (first, led) = (coordinator(), Led::new(&log, 1));
        loaded(&first, &led).await;
        for commit in [commit("by id", 3), commit_by_name("by name", 3)] {
            assert_eq!(first.commit(commit).await, Ok(vec![Ok(())]));
        }
        let (second, images) = coordinator_in(&with_t().delete(topic_id(1)));
        let led = Led::new(&log, 2);
        led.full.store(true, Ordering::SeqCst);
        loaded(&second, &led).await;
        assert_eq!(offset(&second, "by name").await, Ok(Some(3)));
        // The name alone does not tell any more.
        images.send_replace(with_t_again().image());
        led.full.store(false, Ordering::SeqCst);
        retry(&second);
        assert_eq!(offset(&second, "by id").await, Ok(None));
        assert_eq!(offset(&second, "by name").await, Ok(None));
    }
}

#[tokio::test]
async fn a_commit_for_the_next_topic_of_the_name_outlives_the_news_of_the_deletion() {
    let ((coordinator, images), led) = (coordinator_in(&with_t()), Led::new(&Log::default(), 1));
    loaded(&coordinator, &led).await;
    for group in ["g", "h"] {
        assert_eq!(coordinator.commit(commit(group, 3)).await, Ok(vec![Ok(())]));
    }
    images.send_replace(with_t_again().image());
    coordinator.followed.send_replace(with_t_again().image());
    assert_eq!(
        coordinator.commit(commit_again("g", 1)).await,
        Ok(vec![Ok(())])
    );
    coordinator.forget_topics(&["t".into()]);
    assert_eq!(offset(&coordinator, "g").await, Ok(Some(1)));
    assert_eq!(offset(&coordinator, "h").await, Ok(None));
}

#[tokio::test]
async fn a_topic_newer_than_the_leaderships_is_waited_for() {
    let ((coordinator, images), led) = (coordinator_in(&with_t()), Led::new(&Log::default(), 1));
    loaded(&coordinator, &led).await;
    images.send_replace(with_t_again().image());
    let mut committing = Box::pin(coordinator.commit(commit_again("g", 1)));
    assert_eq!(poll_once(&mut committing).await, None);
    assert_eq!(led.log.end(), Offset::ZERO);
    coordinator.followed.send_replace(with_t_again().image());
    assert_eq!(committing.await, Ok(vec![Ok(())]));

    let mut unknown = commit("g", 2);
    unknown.offsets[0].topic_id = topic_id(3);
    assert_eq!(
        coordinator.commit(unknown).await,
        Err(GroupError::CoordinatorLoadInProgress)
    );
}

#[test]
fn no_image_is_followed_before_the_partitions_are_reconciled_with_it() {
    let image = |offset| {
        let mut image = ClusterImage::new("cluster");
        image.offset = offset;
        Arc::new(image)
    };
    let mut to_follow = image(5);
    let mut followed = |newest, reconciled| {
        followed_image(&mut to_follow, &image(newest), reconciled).map(|image| image.offset)
    };
    assert_eq!(followed(6, 4), None);
    assert_eq!(followed(7, 6), Some(5));
    assert_eq!(followed(8, 6), None);
    assert_eq!(followed(9, 8), Some(7));
    assert_eq!(followed(9, 9), Some(9));
}

#[tokio::test]
async fn a_damaged_log_is_not_served() {
    let log = Log::default();
    let led = Led::new(&log, 1);
    let mut batch = RecordsBuilder::new(kittiwake_storage::Compression::None);
    batch.push(
        0,
        Some(b"\0\x01\0\x01g\0\x01t\0\0\0\0"),
        Some(b"\0\x03cut"),
        &[],
    );
    led.append(&batch.build().unwrap(), 0).unwrap();
    let coordinator = coordinator();
    loaded(&coordinator, &led).await;
    assert_eq!(
        offset(&coordinator, "g").await,
        Err(GroupError::NotCoordinator)
    );
}

#[tokio::test]
async fn an_assignment_is_answered_when_it_is_committed() {
    let (coordinator, led) = (coordinator(), Led::new(&Log::default(), 1));
    loaded(&coordinator, &led).await;
    let timers = run_timers(&coordinator);
    let joined = coordinator.ask("g", |reply| join(reply, "")).await;
    assert!(matches!(joined, Ok(Answer::Join(Ok(_)))), "{joined:?}");

    led.stop_replication();
    let mut syncing = Box::pin(coordinator.ask("g", sync));
    assert_eq!(poll_once(&mut syncing).await, None);
    led.replicate();
    let synced = syncing.await;
    assert!(
        matches!(&synced, Ok(Answer::Sync(Ok(synced))) if &*synced.assignment == b"all"),
        "{synced:?}"
    );
    let described = coordinator.describe("g").await.unwrap().unwrap();
    assert_eq!(described.listing.state, GroupState::Stable);
    assert_eq!(described.members.len(), 1);
    timers.abort();
}

#[tokio::test]
async fn a_client_that_goes_away_has_joined_all_the_same() {
    let (coordinator, led) = (coordinator(), Led::new(&Log::default(), 1));
    loaded(&coordinator, &led).await;
    {
        let mut joining = Box::pin(coordinator.ask("g", |reply| join(reply, "")));
        assert_eq!(poll_once(&mut joining).await, None);
    }
    let described = coordinator.describe("g").await.unwrap().unwrap();
    assert_eq!(described.listing.state, GroupState::PreparingRebalance);
    assert_eq!(described.members.len(), 1);
}

#[tokio::test]
async fn those_who_wait_are_told_when_the_coordinator_moves() {
    let (coordinator, led) = (coordinator(), Led::new(&Log::default(), 1));
    loaded(&coordinator, &led).await;
    let mut joining = Box::pin(coordinator.ask("g", |reply| join(reply, "")));
    assert_eq!(poll_once(&mut joining).await, None);
    coordinator.follow(Vec::new());
    let answer = joining.await;
    assert!(
        matches!(&answer, Ok(Answer::Join(Err(refused))) if refused.error == GroupError::NotCoordinator),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_new_epoch_of_the_same_node_reads_the_log_again() {
    let log = Log::default();
    let coordinator = coordinator();
    let led = Led::new(&log, 1);
    loaded(&coordinator, &led).await;
    coordinator
        .commit(commit("g", 1))
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    // Another node led in between, and what it found was not what we had.
    log.0.lock().clear();
    let led = Led::new(&log, 3);
    loaded(&coordinator, &led).await;
    assert_eq!(offset(&coordinator, "g").await, Ok(None));
}

#[tokio::test]
async fn deleted_groups_are_gone() {
    let (coordinator, led) = (coordinator(), Led::new(&Log::default(), 1));
    loaded(&coordinator, &led).await;
    coordinator
        .commit(commit("g", 1))
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!(coordinator.list().unwrap().len(), 1);
    assert_eq!(coordinator.delete("g").await, Ok(()));
    assert_eq!(
        coordinator.delete("g").await,
        Err(GroupError::GroupIdNotFound)
    );
    assert_eq!(coordinator.list(), Ok(Vec::new()));
}
