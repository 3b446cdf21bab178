//! A leader is out of reach for a while (it hangs, or is cut off): clients go on elsewhere, and what it alone was asked to
//! write meanwhile is neither acknowledged nor in the log when it is back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Clients, DEADLINE};
use crate::Cluster;
use crate::history::{Recorder, Value};
use crate::pauses;
use crate::wire::{Batch, Bytes, Connection, Fields};
use crate::workload::{Load, create_topic_on, read_to_end};

/// What the clients write to and read.
pub const TOPIC: &str = "lost-leader";
/// Written to by probes alone, through the lost leader only.
pub const PROBE: &str = "probe";
/// Clients that wait longer for a node that says nothing go on later, whatever the cluster does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A cluster at work with a leader that is about to be lost.
#[derive(Debug)]
pub struct LostLeader {
    /// The cluster.
    pub cluster: Cluster,
    /// Who leads every partition of both topics.
    pub leader: usize,
    clients: Clients,
    lost: Option<(Duration, Instant)>,
    replaced: Option<Duration>,
}

impl LostLeader {
    /// Three nodes of `cluster`, one of which leads, and clients that write to all partitions.
    pub fn at_work(cluster: Cluster, leader: usize) -> Result<Self> {
        let bootstrap = cluster.bootstrap();
        let replicas = vec![leader, (leader + 1) % 3, (leader + 2) % 3];
        create_topic_on(&bootstrap, TOPIC, &vec![replicas.clone(); 3], &[])?;
        create_topic_on(&bootstrap, PROBE, &[replicas], &[])?;
        ensure!(cluster.leader(PROBE, 0, DEADLINE)? == leader);
        let load = Load {
            records_per_second: 500,
            answer_timeout: ANSWER_TIMEOUT,
            ..Load::of(TOPIC)
        };
        let clients = Clients::start(&cluster, load)?;
        clients.workload.progress_everywhere(DEADLINE)?;
        Ok(Self {
            cluster,
            leader,
            clients,
            lost: None,
            replaced: None,
        })
    }

    /// A connection to the leader.
    pub fn probe(&mut self) -> Result<Connection> {
        Connection::open(self.cluster.node(self.leader).kafka())
    }

    /// Loses the leader.
    pub fn lose(&mut self, how: impl FnOnce(&mut Cluster, usize) -> Result<()>) -> Result<()> {
        self.lost = Some((self.clients.recorder.now(), Instant::now()));
        how(&mut self.cluster, self.leader)
    }

    /// How long the leader has been lost.
    pub fn lost_for(&self) -> Duration {
        self.lost.map(|(_, at)| at.elapsed()).unwrap_or_default()
    }

    /// Waits until clients have gone on in every partition.
    pub fn goes_on(&mut self) -> Result<()> {
        self.clients.workload.progress_everywhere(DEADLINE)?;
        self.replaced = Some(self.clients.recorder.now());
        Ok(())
    }

    /// The leader is back: everybody gets in sync again, nothing that was acknowledged is missing, nothing that the lost
    /// leader alone was asked is there, and all replicas are equal. Prints how long nothing was acknowledged.
    pub fn conclude(self) -> Result<()> {
        let (lost, _) = self.lost.context("the leader was not lost")?;
        let replaced = self.replaced.context("nobody waited for the clients")?;
        self.cluster.wait_in_sync(DEADLINE)?;
        self.clients.workload.progress_everywhere(DEADLINE)?;
        let history = self.clients.finish()?;
        let pause = pauses::longest(&history, lost, replaced).context("nothing acknowledged")?;
        println!("no acknowledgements for {:.2?}", pause.length);
        let probed = Recorder::default();
        read_to_end(&self.cluster.bootstrap(), PROBE, 1, &probed)?;
        if let Some(read) = probed.snapshot().final_reads.first() {
            bail!("what only the lost leader was asked to write is in the log: {read:?}");
        }
        self.cluster.conclude(&[TOPIC, PROBE], DEADLINE)
    }
}

/// Asks for a write to [`PROBE`]; the answer is read by [`refused`].
pub fn ask(probe: &mut Connection, acks: i16) -> Result<()> {
    let unwanted = Value {
        producer: 99,
        sequence: 0,
    };
    let batch = Batch::of(&[&unwanted.payload(100)]).encode();
    probe.ask_produce(acks, PROBE, 0, &batch)
}

/// The write that was asked for is refused, or the connection is closed instead.
pub fn refused(probe: &mut Connection) -> Result<()> {
    let answer = probe.produced()?;
    ensure!(
        answer.is_none_or(|(error, _)| error != 0),
        "a leader that had been lost acknowledged a write: {answer:?}"
    );
    Ok(())
}

/// Asks about what [`PROBE`] does not have at the lost leader: a record beyond its end, its end, and the end of its epoch.
/// The answers are read by [`nothing_denied`].
pub fn ask_for_more(probe: &mut Connection) -> Result<()> {
    const FETCH: i16 = 1;
    const LIST_OFFSETS: i16 = 2;
    const OFFSET_FOR_LEADER_EPOCH: i16 = 23;
    let one_partition = |request: Bytes| request.i32(1).string(PROBE).i32(1).i32(0);
    // replica, max wait, min bytes, max bytes, isolation | offset, max bytes
    let fetch = Bytes::new().i32(-1).i32(0).i32(0).i32(1 << 20).i8(0);
    let fetch = one_partition(fetch).i64(1_000).i32(1 << 20);
    probe.ask(FETCH, 4, &fetch.0)?;
    // replica | timestamp: the latest
    let list = one_partition(Bytes::new().i32(-1)).i64(-1);
    probe.ask(LIST_OFFSETS, 1, &list.0)?;
    // current epoch: not said, epoch
    let end = one_partition(Bytes::new()).i32(-1).i32(1_000);
    probe.ask(OFFSET_FOR_LEADER_EPOCH, 2, &end.0)
}

/// Each of the questions of [`ask_for_more`] is answered by NOT_LEADER_OR_FOLLOWER, or the connection is closed instead.
pub fn nothing_denied(probe: &mut Connection) -> Result<()> {
    const NOT_LEADER_OR_FOLLOWER: i16 = 6;
    for (api, is_throttled, error_first) in [
        ("Fetch", true, false),
        ("ListOffsets", false, false),
        ("OffsetForLeaderEpoch", true, true),
    ] {
        let Some(answer) = probe.response()? else {
            return Ok(());
        };
        let mut fields = Fields::of(&answer);
        if is_throttled {
            fields.i32()?;
        }
        // topics | name | partitions | index
        let (_topics, _name, _partitions) = (fields.i32()?, fields.string()?, fields.i32()?);
        if !error_first {
            fields.i32()?;
        }
        let error = fields.i16()?;
        ensure!(
            error == NOT_LEADER_OR_FOLLOWER,
            "{api}: a leader that had been lost answered {error}"
        );
    }
    Ok(())
}
