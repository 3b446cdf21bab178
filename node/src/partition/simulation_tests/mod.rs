//! Random steps over a simulated cluster of the real decision code.
//!
//! A few brokers hold one partition. What decides is the real thing: [`super::leader::Leader`],
//! [`super::follower::judge`] and [`super::follower::continuity`], [`kittiwake_storage::LeaderEpochCache`], and as the
//! quorum [`kittiwake_raft::ClusterImage`], which is linear and which every broker hears of late. What surrounds it is
//! simulated, in steps so small that anything can come in between: `replica` does what the edges do, `operator` what
//! befalls a cluster.
//!
//! **The network.** Fetches, proposals and replies are delayed, reordered, duplicated and lost. Answers to fetches come
//! in order, or with their connection not at all, as the fetcher reads them: an answer that cuts a log must not come
//! twice.
//!
//! **Faults.** Processes are killed and hang, brokers are fenced while they run, logs are damaged, machines and disks are
//! lost as often as `min.insync.replicas` promises to survive (see `World::may_lose`); there are no unclean elections.
//!
//! **What must be true**, after every step:
//! 1. An elected leader has everything that was acknowledged or committed, and its log is not damaged;
//! 2. so have all members of the ISR and of the ELR that have not just lost their disk.
//! 3. The high watermark advances with enough in-sync replicas, to what all of the maximal ISR have.
//! 4. Logs agree below their high watermarks, and
//! 5. what was shown once stays as it was, down to where a leader has deleted.
//! 6. Nothing of it is lost for as many losses as are promised to be survived.
//! 7. The image keeps its rules (KIP-966), and
//! 8. epochs of no kind go back; an epoch has one leader.
//! 9. The epoch cache grows strictly and says of every record what its batch says.
//! 11. `log_start <= high_watermark <= log_end`.
//! 13. Without further faults everybody is in sync again before long, with identical logs, and a write is acknowledged.
//!
//! An acks=all write is answered at most once, with its own record, in its own epoch.

mod broker;
mod checker;
mod log;
mod operator;
mod quorum;
mod replica;
mod world;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use world::World;

/// Episodes of the ordinary run: more than a million steps.
const EPISODES: usize = 800;

/// Steps of one episode, before everything heals.
const EPISODE_STEPS: usize = 1_500;

/// Lines of the trace that a failure shows.
const TAIL_LINES: usize = 80;

/// A deliberate fault in what surrounds the decision code: proof that the checker sees what it is there for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mutation {
    /// An acks=all write is acknowledged when the leader has it.
    AcknowledgeAtOnce,
    /// A follower's fetch counts although its history is another.
    CountDiverging,
    /// A leader ignores both epochs of a fetch: its own, and that of the follower's last record (KIP-320, KIP-101).
    IgnoreEpochs,
    /// Proposals do not say which life of a follower has caught up (KIP-903).
    ProposeWithoutBrokerEpochs,
    /// A proposal without an answer counts as refused (KIP-497).
    ForgetProposal,
    /// A follower keeps what diverges.
    DoNotTruncate,
    /// A broker that has lost its page cache says that it was only killed (KIP-966).
    RegisterLossAsKilled,
    /// The same, if it is killed once more before it has registered.
    ForgetLossBeforeRegistering,
    /// A broker is unfenced although the quorum does not know that its replica is damaged.
    UnfenceUntold,
}

/// Each with the number of episodes that are enough to catch it.
const MUTATIONS: [(Mutation, usize); 9] = [
    (Mutation::AcknowledgeAtOnce, 100),
    (Mutation::CountDiverging, 100),
    (Mutation::IgnoreEpochs, 500),
    (Mutation::ProposeWithoutBrokerEpochs, 4_000),
    (Mutation::ForgetProposal, 8_000),
    (Mutation::DoNotTruncate, 100),
    (Mutation::RegisterLossAsKilled, 4_000),
    (Mutation::ForgetLossBeforeRegistering, 4_000),
    (Mutation::UnfenceUntold, 4_000),
];

/// The seed of a run; `KITTIWAKE_SEED` repeats one.
fn seed() -> u64 {
    let seed = std::env::var("KITTIWAKE_SEED").ok();
    let seed = seed
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(0x6b69_7474);
    println!("KITTIWAKE_SEED={seed}");
    seed
}

/// Runs an episode. What went wrong comes with the tail of what happened before, which a second run writes down.
fn episode(seed: u64, mutation: Option<Mutation>) -> Result<u64, String> {
    let mut world = World::new(seed, mutation, false);
    let Some(violation) = world.run(EPISODE_STEPS) else {
        return Ok(world.steps);
    };
    let mut again = World::new(seed, mutation, true);
    again.run(EPISODE_STEPS);
    let trace = again.into_trace();
    let tail = trace[trace.len().saturating_sub(TAIL_LINES)..].join("\n");
    Err(format!("{tail}\n{violation}\nepisode seed {seed}"))
}

#[test]
fn random_episodes_keep_what_was_acknowledged() {
    let mut seeds = StdRng::seed_from_u64(seed());
    let mut steps = 0;
    for number in 0..EPISODES {
        match episode(seeds.random(), None) {
            Ok(more) => steps += more,
            Err(report) => panic!("episode {number}: {report}"),
        }
    }
    assert!(steps >= 1_000_000, "{steps} steps");
}

#[test]
fn every_mutation_is_caught() {
    let mut seeds = StdRng::seed_from_u64(seed());
    for (mutation, enough) in MUTATIONS {
        let caught = (0..enough).find(|_| episode(seeds.random(), Some(mutation)).is_err());
        println!("{mutation:?}: caught in episode {caught:?}");
        assert!(
            caught.is_some(),
            "{mutation:?} is not caught in {enough} episodes"
        );
    }
}
