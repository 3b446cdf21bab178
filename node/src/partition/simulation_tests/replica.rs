//! What the edges do around the pure code, step by step: `partition::replica`, `partition::manager`,
//! `partition::isr`, `replication::fetcher` and `replication::sessions`, with the disk and the network taken apart so
//! that everything can happen in between.

use kittiwake_raft::{
    Applied, BrokerId, Command, CommandError, IsrMember, Partition, PartitionChange, Requester,
};
use kittiwake_storage::{LeaderEpoch, Offset};
use rand::RngExt;

use super::Mutation;
use super::broker::{Asked, Connection, Fetch, Flush, Message, Role, Told, Write};
use super::log::Record;
use super::world::{LAG_MAX_MS, World};
use crate::api::ErrorCode;
use crate::config::topic_layers::Durability;
use crate::partition::follower::{Answer, Continuity, Verdict, continuity, judge};
use crate::partition::leader::{Action, Committed, Event, Leader, Reign};

/// Records of one answer.
const ANSWER_RECORDS_MAX: usize = 4;

/// Pause of a follower that was told to wait, ms.
const PAUSE_MS: i64 = 20;

fn committed(partition: &kittiwake_raft::Partition) -> Committed {
    Committed {
        partition_epoch: partition.partition_epoch,
        replicas: partition.replicas.clone(),
        isr: partition.isr.clone(),
    }
}

impl World {
    // ---- as leader ---------------------------------------------------------------------------

    /// A client writes to whoever believes to lead.
    pub(super) fn append(&mut self, at: usize, all: bool) {
        let id = self.next_number();
        let now_ms = self.now_ms;
        let broker = &mut self.brokers[at];
        let Some(leader) = broker.process.as_ref().and_then(|process| process.leader()) else {
            return;
        };
        if all && !leader.has_enough_replicas() {
            return;
        }
        let record = Record {
            epoch: leader.epoch(),
            id,
        };
        let write = Write {
            at: broker.log.end(),
            record,
        };
        broker.log.append(record);
        let log_end = broker.log.end();
        self.note(|world| {
            format!(
                "{} appends {record:?} at {}",
                world.brokers[at].id, write.at
            )
        });
        if all && self.mutation == Some(Mutation::AcknowledgeAtOnce) {
            self.checker.acknowledged(write.at, record, Some(record));
        } else if all && let Some(process) = self.process(at) {
            process.appended.push(write);
        }
        self.step_leader(at, Event::Appended { log_end, now_ms });
    }

    /// Its acks=all writes begin to wait for the high watermark, in the epoch they were appended in.
    pub(super) fn begin_waiting(&mut self, at: usize) {
        let Some(process) = self.process(at) else {
            return;
        };
        for write in std::mem::take(&mut process.appended) {
            let Some(leader) = process.leader() else {
                continue;
            };
            if leader.epoch() != write.record.epoch {
                continue;
            }
            process
                .waiting
                .insert((write.at + 1, write.record.id), write);
        }
        let high_watermark = process.leader().map(Leader::high_watermark);
        self.answer_waiting(at, high_watermark.unwrap_or(Offset::ZERO));
    }

    fn answer_waiting(&mut self, at: usize, high_watermark: Offset) {
        let broker = &mut self.brokers[at];
        let Some(process) = &mut broker.process else {
            return;
        };
        let epoch = process.leader().map(Leader::epoch);
        while let Some(first) = process.waiting.first_entry()
            && first.key().0 <= high_watermark
        {
            let write = first.remove();
            self.checker.require(epoch == Some(write.record.epoch), || {
                format!("{write:?} is answered in {epoch:?}")
            });
            let held = broker.log.get(write.at);
            self.checker.acknowledged(write.at, write.record, held);
        }
    }

    pub(super) fn step_leader(&mut self, at: usize, event: Event) {
        let Some(process) = &mut self.brokers[at].process else {
            return;
        };
        let Role::Leader(leader) = &mut process.role else {
            return;
        };
        let actions = leader.step(event);
        self.carry_out(at, &actions);
    }

    fn carry_out(&mut self, at: usize, actions: &[Action]) {
        for action in actions {
            match *action {
                Action::AdvanceHighWatermark(to) => {
                    self.check_advance(at, to);
                    self.move_high_watermark(at, to);
                    self.answer_waiting(at, to);
                    self.check_eligible(to + -1);
                }
                Action::Flush => {
                    if let Some(process) = self.process(at)
                        && process.flush == Flush::Idle
                    {
                        process.flush = Flush::Begun;
                    }
                }
                Action::ProposeIsr => {
                    if let Some(process) = self.process(at) {
                        process.proposes = true;
                    }
                }
                Action::FailWaiting => {
                    if let Some(process) = self.process(at) {
                        process.waiting.clear();
                    }
                }
            }
        }
    }

    /// 3: enough are in sync, and everybody who is or may be has it.
    fn check_advance(&mut self, at: usize, to: Offset) {
        let broker = &self.brokers[at];
        let Some(process) = &broker.process else {
            return;
        };
        let (Some(leader), Some(known)) = (process.leader(), &process.known) else {
            return;
        };
        let needed = process.min_insync_replicas.min(known.replicas.len());
        let (size, from) = (known.isr.len(), process.high_watermark);
        let proposed = leader.proposal().map(|proposal| proposal.isr.as_slice());
        let joining = proposed
            .unwrap_or_default()
            .iter()
            .map(|member| member.broker);
        let maximal: Vec<BrokerId> = known.isr.iter().copied().chain(joining).collect();
        let record = broker.log.get(to + -1);
        let durability = self.durability;
        let lacking = self.brokers.iter().find(|member| {
            let log = &member.log;
            let has = log.get(to + -1) == record || log.start() >= to;
            let has_flushed = durability == Durability::Replicated || log.flushed() >= to;
            let may_lack =
                member.emptied || member.recovers && durability == Durability::Replicated;
            maximal.contains(&member.id) && !may_lack && !(has && has_flushed)
        });
        self.checker
            .require(from < to && size >= needed && lacking.is_none(), || {
                format!(
                    "{} commits {to} after {from} with {known:?}, needs {needed}; {:?} lacks it",
                    broker.id,
                    lacking.map(|broker| (broker.id, broker.log.view(), broker.log.flushed()))
                )
            });
    }

    fn move_high_watermark(&mut self, at: usize, to: Offset) {
        let broker = &mut self.brokers[at];
        let Some(process) = &mut broker.process else {
            return;
        };
        let from = std::mem::replace(&mut process.high_watermark, to);
        let leads = process.leader().is_some();
        self.checker
            .high_watermark_moves(broker.id, &broker.log, (from, to), leads);
    }

    /// A flush that acknowledgements wait for goes one step on.
    pub(super) fn flush_for_leader(&mut self, at: usize) {
        let broker = &mut self.brokers[at];
        let Some(process) = &mut broker.process else {
            return;
        };
        match process.flush {
            Flush::Idle => {}
            Flush::Begun => {
                broker.log.flush();
                process.flush = Flush::Done;
            }
            Flush::Done => {
                process.flush = Flush::Idle;
                let flushed = broker.log.flushed();
                self.step_leader(at, Event::Flushed(flushed));
            }
        }
    }

    pub(super) fn delete_records(&mut self, at: usize) {
        let broker = &self.brokers[at];
        let Some(process) = broker
            .process
            .as_ref()
            .filter(|process| process.leader().is_some())
        else {
            return;
        };
        let (start, high_watermark) = (broker.log.start(), process.high_watermark);
        let before = Offset(self.random.random_range(start.0..=high_watermark.0));
        self.note(|world| format!("{} deletes up to {before}", world.brokers[at].id));
        self.brokers[at].log.advance_start(before);
        self.checker.deleted(before, high_watermark);
    }

    /// Takes a follower's fetch in.
    pub(super) fn receive_fetch(&mut self, at: usize, fetch: Fetch) {
        let now_ms = self.now_ms;
        let Some(process) = &self.brokers[at].process else {
            return;
        };
        if self.quorum.views[process.image].epoch_of(fetch.replica) != Some(fetch.broker_epoch) {
            return;
        }
        let judged = self.judge_fetch(at, &fetch);
        self.note(|world| format!("{} is asked {fetch:?}: {judged:?}", world.brokers[at].id));
        let counts = match judged {
            Ok(Continuity::Continues) => true,
            Ok(_) => self.mutation == Some(Mutation::CountDiverging),
            Err(_) => false,
        };
        if let Some(process) = self.process(at) {
            let before = process.asked.get(&fetch.replica);
            let same = before.filter(|asked| asked.fetch.connection == fetch.connection);
            let told = same.and_then(|asked| asked.told);
            let asked = Asked {
                fetch,
                judged,
                told,
                awaits: false,
            };
            process.asked.insert(fetch.replica, asked);
        }
        if counts {
            self.step_leader(
                at,
                Event::Fetched {
                    replica: fetch.replica,
                    broker_epoch: fetch.broker_epoch,
                    log_end: fetch.from,
                    flushed: fetch.flushed,
                    log_start: fetch.log_start,
                    now_ms,
                },
            );
        }
    }

    fn judge_fetch(&self, at: usize, fetch: &Fetch) -> Result<Continuity, ErrorCode> {
        let broker = &self.brokers[at];
        let leader = broker.process.as_ref().and_then(|process| process.leader());
        let leader = leader.ok_or(ErrorCode::NotLeaderOrFollower)?;
        let epoch = leader.epoch();
        if self.mutation != Some(Mutation::IgnoreEpochs) {
            match fetch.leader_epoch.cmp(&epoch) {
                std::cmp::Ordering::Less => return Err(ErrorCode::FencedLeaderEpoch),
                std::cmp::Ordering::Greater => return Err(ErrorCode::UnknownLeaderEpoch),
                std::cmp::Ordering::Equal => {}
            }
        }
        if !leader.is_follower(fetch.replica) {
            return Err(ErrorCode::ReplicaNotAvailable);
        }
        let log = &broker.log;
        let last_epoch = match self.mutation {
            Some(Mutation::IgnoreEpochs) => LeaderEpoch::NONE,
            _ => fetch.last_epoch,
        };
        let end_of_epoch = |epoch| log.end_of_epoch(epoch);
        Ok(continuity(log.view(), fetch.from, last_epoch, end_of_epoch))
    }

    /// Tells `follower` what there is to tell.
    pub(super) fn answer(&mut self, at: usize, follower: usize) {
        let replica = self.brokers[follower].id;
        let broker = &mut self.brokers[at];
        let Some(process) = &mut broker.process else {
            return;
        };
        let (epoch, high_watermark) = (process.leader().map(Leader::epoch), process.high_watermark);
        let Some(asked) = process
            .asked
            .get_mut(&replica)
            .filter(|asked| !asked.awaits)
        else {
            return;
        };
        let log = &broker.log;
        let mut told = Told {
            error: ErrorCode::None,
            diverging: None,
            high_watermark,
            log_start: log.start(),
            from: asked.fetch.from,
            records: Vec::new(),
        };
        let ignores_epoch = self.mutation == Some(Mutation::IgnoreEpochs);
        let judged = match asked.judged {
            Ok(_) if epoch != Some(asked.fetch.leader_epoch) && !ignores_epoch => {
                Err(ErrorCode::NotLeaderOrFollower)
            }
            Ok(Continuity::UnknownEpoch) => Err(ErrorCode::UnknownLeaderEpoch),
            judged => judged,
        };
        match judged {
            Err(error) => {
                told.error = error;
                told.high_watermark = Offset(-1);
                told.log_start = Offset(-1);
            }
            Ok(Continuity::Diverges(epoch, end)) => told.diverging = Some((epoch, end)),
            Ok(_) if asked.fetch.from < log.start() || asked.fetch.from > log.end() => {
                told.error = ErrorCode::OffsetOutOfRange;
            }
            Ok(_) => told.records = log.read(asked.fetch.from, ANSWER_RECORDS_MAX),
        }
        asked.awaits = judged != Ok(Continuity::Continues)
            || told.error != ErrorCode::None
            || !told.records.is_empty();
        let watermarks = Some((told.high_watermark, told.log_start));
        if !asked.awaits && asked.told == watermarks {
            return;
        }
        asked.told = watermarks;
        let (life, connection) = (asked.fetch.life, asked.fetch.connection);
        let from = broker.id;
        if let Some(process) = &mut self.brokers[follower].process
            && process.life == life
            && let Some(open) = process.connections.get_mut(&from)
            && open.id == connection
        {
            open.answers.push_back(told);
        }
    }

    // ---- changing the ISR ---------------------------------------------------------------------

    pub(super) fn propose(&mut self, at: usize) {
        let request = self.next_number();
        let without_epochs = self.mutation == Some(Mutation::ProposeWithoutBrokerEpochs);
        let (topic, views) = (self.quorum.topic, &self.quorum.views);
        let broker = &mut self.brokers[at];
        let Some(process) = &mut broker.process else {
            return;
        };
        if !process.proposes || process.proposal.is_some() {
            return;
        }
        let Some(epoch) = views[process.image].epoch_of(broker.id) else {
            return;
        };
        process.proposes = false;
        let Role::Leader(leader) = &process.role else {
            return;
        };
        let Some(proposal) = leader.proposal() else {
            return;
        };
        let strip = |member: &IsrMember| IsrMember {
            broker_epoch: member.broker_epoch.filter(|_| !without_epochs),
            ..*member
        };
        let change = PartitionChange {
            topic,
            partition: 0,
            partition_epoch: proposal.partition_epoch,
            requester: Some(Requester {
                broker: broker.id,
                broker_epoch: epoch,
                leader_epoch: leader.epoch().0,
            }),
            isr: Some(proposal.isr.iter().map(strip).collect()),
            leader: None,
            replicas: None,
            damage: None,
        };
        process.proposal = Some(request);
        let message = Message::Proposal {
            from: broker.id,
            life: process.life,
            request,
            change,
        };
        self.note(|_| format!("{message:?}"));
        self.network.push(message);
    }

    /// No answer has come in time: what was proposed is proposed again, and may be applied all the same.
    pub(super) fn give_up_proposal(&mut self, at: usize) {
        let now_ms = self.now_ms;
        let forgets = self.mutation == Some(Mutation::ForgetProposal);
        let Some(process) = self.process(at) else {
            return;
        };
        if process.proposal.take().is_none() {
            return;
        }
        process.proposes = true;
        let proposed = process.leader().and_then(|leader| leader.proposal());
        if forgets && let Some(partition_epoch) = proposed.map(|proposal| proposal.partition_epoch)
        {
            self.step_leader(
                at,
                Event::Refused {
                    partition_epoch,
                    now_ms,
                },
            );
        }
    }

    pub(super) fn receive_proposal(
        &mut self,
        (from, life, request): (BrokerId, u32, u32),
        change: PartitionChange,
    ) {
        let proposed_at = change.partition_epoch;
        let leader_epoch = change.requester.map_or(-1, |asks| asks.leader_epoch);
        let result = self.command(&Command::AlterPartitions(vec![change]));
        self.network.push(Message::Reply {
            to: from,
            life,
            request,
            proposed_at,
            leader_epoch: LeaderEpoch(leader_epoch),
            result,
            image: self.quorum.views.len() - 1,
        });
    }

    pub(super) fn receive_reply(&mut self, at: usize, reply: Message) {
        let Message::Reply {
            life,
            request,
            proposed_at,
            leader_epoch,
            result,
            image,
            ..
        } = reply
        else {
            return;
        };
        let now_ms = self.now_ms;
        let Some(process) = self.process(at) else {
            return;
        };
        if process.life != life || process.proposal.take_if(|sent| *sent == request).is_none() {
            return;
        }
        process.image = process.image.max(image);
        match result {
            Ok(Applied::PartitionAltered(altered)) => {
                if LeaderEpoch(altered.leader_epoch) == leader_epoch {
                    self.isr_changed(at, leader_epoch, committed(&altered));
                }
            }
            Err(
                CommandError::StalePartitionEpoch { .. } | CommandError::StaleLeaderEpoch { .. },
            ) => {}
            _ => self.step_leader(
                at,
                Event::Refused {
                    partition_epoch: proposed_at,
                    now_ms,
                },
            ),
        }
    }

    fn isr_changed(&mut self, at: usize, epoch: LeaderEpoch, committed: Committed) {
        let Some(process) = self.process(at) else {
            return;
        };
        if process.leader().map(Leader::epoch) != Some(epoch) {
            return;
        }
        let is_newer = |known: &Committed| known.partition_epoch < committed.partition_epoch;
        if process.known.as_ref().is_none_or(is_newer) {
            process.known = Some(committed.clone());
        }
        self.step_leader(at, Event::Committed(committed));
    }

    // ---- as follower -------------------------------------------------------------------------

    /// The fetcher goes one step on: it asks if there is something to ask, on a new connection if `reconnects`.
    pub(super) fn fetch(&mut self, at: usize, reconnects: bool) {
        let number = self.next_number();
        let (now_ms, persisted) = (self.now_ms, self.durability == Durability::Persisted);
        let views = &self.quorum.views;
        let broker = &mut self.brokers[at];
        let Some(process) = &mut broker.process else {
            return;
        };
        let Role::Follower(leader, leader_epoch) = process.role else {
            return;
        };
        let Some(broker_epoch) = views[process.image].epoch_of(broker.id) else {
            return;
        };
        let connect = || Connection {
            id: number,
            asks: true,
            paused_until_ms: 0,
            answers: Default::default(),
        };
        let flushes = std::mem::take(&mut process.to_flush);
        if flushes {
            broker.log.flush();
        }
        if reconnects {
            process.connections.remove(&leader);
        }
        let connection = process.connections.entry(leader).or_insert_with(connect);
        connection.asks |= flushes;
        if !connection.asks || connection.paused_until_ms > now_ms {
            return;
        }
        connection.asks = false;
        let log = &broker.log;
        let fetch = Fetch {
            replica: broker.id,
            life: process.life,
            connection: connection.id,
            broker_epoch,
            leader_epoch,
            from: log.end(),
            last_epoch: log.latest_epoch(),
            flushed: if persisted { log.flushed() } else { Offset(-1) },
            log_start: log.start(),
        };
        self.network.push(Message::Fetch { to: leader, fetch });
    }

    /// Takes the next answer of `leader` in, in the epoch the replica follows it in by now.
    pub(super) fn take_answer(&mut self, at: usize, leader: BrokerId) {
        let now_ms = self.now_ms;
        let broker = &mut self.brokers[at];
        let Some(process) = &mut broker.process else {
            return;
        };
        let Some(connection) = process.connections.get_mut(&leader) else {
            return;
        };
        let Some(told) = connection.answers.pop_front() else {
            return;
        };
        let Role::Follower(follows, epoch) = process.role else {
            return;
        };
        if follows != leader {
            return;
        }
        let log = &mut broker.log;
        let answer = Answer {
            error: told.error,
            diverging: told.diverging,
            log_start: told.log_start,
            first_offset: (!told.records.is_empty()).then_some(told.from),
            newest_epoch: told.records.iter().map(|record| record.epoch).max(),
            followed_in: epoch,
        };
        let verdict = judge(log.view(), answer, |epoch| log.end_of_epoch(epoch));
        let grown = !told.records.is_empty();
        match verdict {
            Verdict::Append | Verdict::BeginAt(_) => {
                if let Verdict::BeginAt(first) = verdict {
                    log.restart_at(first);
                    process.high_watermark = first;
                }
                if log.append_as_follower(&told.records).is_err() {
                    connection.paused_until_ms = now_ms + PAUSE_MS;
                    connection.asks = true;
                    return;
                }
                connection.asks |= grown;
                process.to_flush |= grown && self.durability == Durability::Persisted;
            }
            Verdict::Truncate(_) if self.mutation == Some(Mutation::DoNotTruncate) => {
                connection.asks = true;
            }
            Verdict::Truncate(to) => {
                log.truncate_to(to);
                connection.asks = true;
            }
            Verdict::Restart(to) => {
                log.restart_at(to);
                connection.asks = true;
            }
            Verdict::AskAgain => connection.asks = true,
            Verdict::Wait | Verdict::DropNewer(_) => {
                connection.paused_until_ms = now_ms + PAUSE_MS;
                connection.asks = true;
            }
        }
        let (start, end) = (log.start(), log.end());
        let high_watermark = process.high_watermark;
        self.note(|world| {
            format!(
                "{} takes {told:?} of {leader} in {epoch}: {verdict:?}",
                world.brokers[at].id
            )
        });
        match verdict {
            Verdict::Append | Verdict::BeginAt(_) => {
                let to = told.high_watermark.min(end);
                if to > high_watermark {
                    self.move_high_watermark(at, to);
                }
                self.follow_log_start(at, told.log_start);
                self.check_epochs(at, end + -(told.records.len() as i64));
            }
            Verdict::Truncate(_) | Verdict::Restart(_) => {
                let to = high_watermark.clamp(start, end);
                if let Some(process) = self.process(at) {
                    process.high_watermark = to;
                }
                let cut = end < high_watermark && matches!(verdict, Verdict::Truncate(_));
                self.checker.require(!cut, || {
                    format!(
                        "{leader} makes a follower cut its log to {end}, below {high_watermark}"
                    )
                });
                self.check_epochs(at, start);
                self.check_member(at);
            }
            Verdict::AskAgain | Verdict::Wait | Verdict::DropNewer(_) => {}
        }
    }

    fn follow_log_start(&mut self, at: usize, leader_start: Offset) {
        let broker = &mut self.brokers[at];
        let Some(process) = &broker.process else {
            return;
        };
        let start = leader_start.min(process.high_watermark);
        if start > broker.log.start() {
            broker.log.advance_start(start);
        }
    }

    // ---- changing roles ----------------------------------------------------------------------

    /// Brings the replica in step with the newest image that has arrived.
    pub(super) fn reconcile(&mut self, at: usize) {
        let broker = &mut self.brokers[at];
        let Some(process) = &mut broker.process else {
            return;
        };
        if process.epoch.is_none() || process.reconciled == Some(process.image) {
            return;
        }
        process.reconciled = Some(process.image);
        let view = self.quorum.views[process.image].clone();
        if !view.partition.replicas.contains(&broker.id) {
            process.leave(Role::Leaderless);
            process.high_watermark = Offset::ZERO;
            broker.forget_log();
            return;
        }
        if process.damaged {
            let Partition {
                leader, isr, elr, ..
            } = &view.partition;
            let needed = leader.is_none_or(|leader| leader == broker.id)
                || isr.contains(&broker.id)
                || elr.contains(&broker.id);
            if needed {
                process.leave(Role::Leaderless);
                return;
            }
            process.high_watermark = Offset::ZERO;
            broker.forget_log();
        }
        let Some(process) = &mut broker.process else {
            return;
        };
        let min_insync_replicas = view.min_insync_replicas;
        process.min_insync_replicas = min_insync_replicas;
        let stays = view.partition.leader == Some(broker.id)
            && process.leader().map(Leader::epoch)
                == Some(LeaderEpoch(view.partition.leader_epoch));
        if stays {
            let durability = self.durability;
            self.step_leader(
                at,
                Event::Configured {
                    min_insync_replicas,
                    durability,
                },
            );
        }
        self.follow_leadership(at, &view.partition);
    }

    fn follow_leadership(&mut self, at: usize, partition: &kittiwake_raft::Partition) {
        let this = self.brokers[at].id;
        let epoch = LeaderEpoch(partition.leader_epoch);
        let Some(process) = self.process(at) else {
            return;
        };
        match partition.leader {
            Some(leader) if leader == this => {
                if process.leader().map(Leader::epoch) == Some(epoch) {
                    self.isr_changed(at, epoch, committed(partition));
                } else {
                    self.lead(at, epoch, committed(partition));
                }
            }
            Some(leader) => {
                if !matches!(process.role, Role::Follower(current, in_epoch) if current == leader && in_epoch == epoch)
                {
                    process.leave(Role::Follower(leader, epoch));
                    // Named in the next request, of the connection there is.
                    if let Some(connection) = process.connections.get_mut(&leader) {
                        connection.asks = true;
                        connection.paused_until_ms = 0;
                    }
                    self.note(|_| format!("{this} follows {leader} in {epoch}"));
                }
            }
            None => process.leave(Role::Leaderless),
        }
    }

    fn lead(&mut self, at: usize, epoch: LeaderEpoch, committed: Committed) {
        let now_ms = self.now_ms;
        let broker = &mut self.brokers[at];
        let Some(process) = &mut broker.process else {
            return;
        };
        let (leader, actions) = Leader::new(Reign {
            epoch,
            this_node: broker.id,
            committed: committed.clone(),
            min_insync_replicas: process.min_insync_replicas,
            durability: self.durability,
            lag_max_ms: LAG_MAX_MS,
            log_end: broker.log.end(),
            flushed: broker.log.flushed(),
            high_watermark: process.high_watermark,
            now_ms,
        });
        broker.log.assign_epoch(epoch);
        process.leave(Role::Leader(Box::new(leader)));
        process.known = Some(committed);
        self.checker.leads(broker.id, epoch);
        self.note(|world| {
            format!(
                "{} leads in {epoch}, {:?}",
                world.brokers[at].id,
                world.brokers[at].log.view()
            )
        });
        self.carry_out(at, &actions);
    }
}
