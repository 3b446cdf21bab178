//! A broker of the simulation: its disk, and the process that runs on it or does not.

use kittiwake_raft::{
    Applied, BrokerEpoch, BrokerId, CommandError, DirectoryId, LastStop, PartitionChange,
    PartitionEpoch,
};
use kittiwake_storage::{LeaderEpoch, Offset};
use std::collections::{BTreeMap, VecDeque};

use super::log::{Record, SimulatedLog};
use crate::api::ErrorCode;
use crate::partition::follower::Continuity;
use crate::partition::leader::{Committed, Leader};

#[derive(Debug)]
pub(super) struct Broker {
    pub(super) id: BrokerId,
    pub(super) directory: DirectoryId,
    pub(super) log: SimulatedLog,
    /// The high watermark as it was last checkpointed.
    pub(super) checkpoint: Offset,
    /// What the next registration says of the time before it.
    pub(super) last_stop: LastStop,
    /// It has lost what it had acknowledged, and the quorum does not know yet.
    pub(super) has_lost: bool,
    /// It has lost what it had acknowledged, and has not been in sync since.
    pub(super) recovers: bool,
    /// It was no replica for a while and has not been in sync since.
    pub(super) emptied: bool,
    /// Its log is damaged below the recovery point: the next process finds it so.
    pub(super) damaged: bool,
    pub(super) process: Option<Process>,
}

/// One life of a broker.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) life: u32,
    pub(super) epoch: Option<BrokerEpoch>,
    /// Stopped, or cut off: it does nothing, and does not know.
    pub(super) hangs: bool,
    /// The newest view of the quorum that has arrived.
    pub(super) image: usize,
    /// The view that its replica is in step with.
    pub(super) reconciled: Option<usize>,
    /// The log it found is damaged, and not used.
    pub(super) damaged: bool,
    pub(super) role: Role,
    pub(super) high_watermark: Offset,
    pub(super) min_insync_replicas: usize,
    /// What the role is up to date with, for the checker.
    pub(super) known: Option<Committed>,
    /// acks=all writes that wait for the high watermark.
    pub(super) waiting: BTreeMap<(Offset, u32), Write>,
    /// Writes that are appended, and do not wait yet.
    pub(super) appended: Vec<Write>,
    /// An ISR change is queued.
    pub(super) proposes: bool,
    /// The request to the quorum that is under way.
    pub(super) proposal: Option<u32>,
    pub(super) flush: Flush,
    /// What it has appended as a follower of a persisted topic is to be flushed, and the leader told.
    pub(super) to_flush: bool,
    /// Connections to leaders, kept from epoch to epoch.
    pub(super) connections: BTreeMap<BrokerId, Connection>,
    /// What followers have asked this process as their leader.
    pub(super) asked: BTreeMap<BrokerId, Asked>,
}

#[derive(Debug, Default)]
pub(super) enum Role {
    #[default]
    Leaderless,
    Leader(Box<Leader>),
    Follower(BrokerId, LeaderEpoch),
}

/// A flush that acknowledgements wait for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Flush {
    Idle,
    Begun,
    /// The disk has it; the leader is not told yet.
    Done,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) at: Offset,
    pub(super) record: Record,
}

/// From a follower to one leader. Answers come in order, or with the connection not at all.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u32,
    /// The follower has something to ask.
    pub(super) asks: bool,
    pub(super) paused_until_ms: i64,
    pub(super) answers: VecDeque<Told>,
}

/// A follower's last question, as the leader has judged it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) fetch: Fetch,
    pub(super) judged: Result<Continuity, ErrorCode>,
    pub(super) told: Option<(Offset, Offset)>,
    pub(super) awaits: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Fetch {
    pub(super) replica: BrokerId,
    pub(super) life: u32,
    pub(super) connection: u32,
    pub(super) broker_epoch: BrokerEpoch,
    pub(super) leader_epoch: LeaderEpoch,
    pub(super) from: Offset,
    pub(super) last_epoch: LeaderEpoch,
    pub(super) flushed: Offset,
    pub(super) log_start: Offset,
}

/// A leader's answer.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) error: ErrorCode,
    pub(super) diverging: Option<(LeaderEpoch, Offset)>,
    pub(super) high_watermark: Offset,
    pub(super) log_start: Offset,
    pub(super) from: Offset,
    pub(super) records: Vec<Record>,
}

/// On its way.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Fetch {
        to: BrokerId,
        fetch: Fetch,
    },
    Proposal {
        from: BrokerId,
        life: u32,
        request: u32,
        change: PartitionChange,
    },
    Reply {
        to: BrokerId,
        life: u32,
        request: u32,
        proposed_at: PartitionEpoch,
        leader_epoch: LeaderEpoch,
        result: Result<Applied, CommandError>,
        /// The view it made.
        image: usize,
    },
}

impl Broker {
    pub(super) fn new(id: BrokerId, directory: DirectoryId) -> Self {
        Self {
            id,
            directory,
            log: SimulatedLog::default(),
            checkpoint: Offset::ZERO,
            last_stop: LastStop::Killed,
            has_lost: false,
            recovers: false,
            emptied: false,
            damaged: false,
            process: None,
        }
    }

    /// Loads what the disk has.
    pub(super) fn start(&mut self, life: u32) {
        self.log.recover();
        self.process = Some(Process {
            life,
            epoch: None,
            hangs: false,
            image: 0,
            reconciled: None,
            damaged: self.damaged,
            role: Role::Leaderless,
            high_watermark: self.checkpoint.clamp(self.log.start(), self.log.end()),
            min_insync_replicas: 0,
            known: None,
            waiting: BTreeMap::new(),
            appended: Vec::new(),
            proposes: false,
            proposal: None,
            flush: Flush::Idle,
            to_flush: false,
            connections: BTreeMap::new(),
            asked: BTreeMap::new(),
        });
    }

    /// The disk as it is without the topic: what a broker has that is no replica any more.
    pub(super) fn forget_log(&mut self) {
        self.log = SimulatedLog::default();
        self.emptied = true;
        self.checkpoint = Offset::ZERO;
        self.damaged = false;
        if let Some(process) = &mut self.process {
            process.damaged = false;
        }
    }

    /// It lacks what it had acknowledged, though the quorum may count on it still.
    pub(super) fn is_lossy(&self) -> bool {
        self.has_lost || self.damaged
    }
}

impl Process {
    pub(super) fn leader(&self) -> Option<&Leader> {
        match &self.role {
            Role::Leader(leader) => Some(leader),
            Role::Leaderless | Role::Follower(..) => None,
        }
    }

    /// Ends the role; what waits fails.
    pub(super) fn leave(&mut self, role: Role) {
        self.role = role;
        self.waiting.clear();
        self.known = None;
    }
}
