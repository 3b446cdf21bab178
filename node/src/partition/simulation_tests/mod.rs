//! A simulated cluster of the real decision code.
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

/// Steps of one episode, before everything heals.
const EPISODE_STEPS: usize = 1_500;

/// A deliberate fault in what surrounds the decision code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mutation {
    AcknowledgeAtOnce,
    CountDiverging,
    IgnoreLeaderEpoch,
    ProposeWithoutBrokerEpochs,
    ForgetProposal,
    DoNotTruncate,
    RegisterLossAsKilled,
    ForgetLossBeforeRegistering,
}

fn seed() -> u64 {
    let seed = std::env::var("KITTIWAKE_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok()).unwrap_or(0x6b69_7474);
    println!("KITTIWAKE_SEED={seed}");
    seed
}

/// Runs an episode; what went wrong, with the tail of what happened before.
fn episode(seed: u64, mutation: Option<Mutation>, steps: &mut u64) -> Result<(), String> {
    let mut world = World::new(seed, mutation, false);
    let violation = world.run(EPISODE_STEPS);
    *steps += world.steps;
    let Some(violation) = violation else {
        return Ok(());
    };
    let mut again = World::new(seed, mutation, true);
    again.run(EPISODE_STEPS);
    let trace = again.into_trace();
    let tail = &trace[trace.len().saturating_sub(std::env::var("TAIL").ok().and_then(|tail| tail.parse().ok()).unwrap_or(60))..];
    Err(format!("{}\n{violation}\nepisode seed {seed}", tail.join("\n")))
}

#[test]
fn random_episodes_keep_what_was_acknowledged() {
    let mut seeds = StdRng::seed_from_u64(seed());
    let mut steps = 0;
    for number in 0..std::env::var("EPISODES").map_or(700, |count| count.parse().unwrap()) {
        if let Err(report) = episode(seeds.random(), None, &mut steps) {
            panic!("episode {number}: {report}");
        }
    }
    println!("{steps} steps");
}

#[test]
fn every_mutation_is_caught() {
    let mut seeds = StdRng::seed_from_u64(seed());
    for mutation in MUTATIONS {
        let mut steps = 0;
        let caught = (0..3_000).find_map(|number| Some((number, episode(seeds.random(), Some(mutation), &mut steps).err()?)));
        let (number, report) = caught.map_or((-1, String::new()), |caught| caught);
        println!("{mutation:?} in episode {number}: {}", report.lines().rev().nth(1).unwrap_or_default());
    }
}
const MUTATIONS: [Mutation; 8] = [
    Mutation::AcknowledgeAtOnce, Mutation::CountDiverging, Mutation::IgnoreLeaderEpoch, Mutation::ProposeWithoutBrokerEpochs,
    Mutation::ForgetProposal, Mutation::DoNotTruncate, Mutation::RegisterLossAsKilled, Mutation::ForgetLossBeforeRegistering];
