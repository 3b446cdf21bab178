//! A command may be proposed on every node, and is in the image of that node when it is answered.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, PATIENCE, controller, eventually, insist, set, wait_for_members};
use kittiwake_raft::{Applied, Command, MembershipError, MembershipRefusal};
use kittiwake_raft::{CommandError, ProposeError, TopicId};
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_proposes_and_finds_the_outcome_in_its_image() {
    let mut cluster = Cluster::new(4, 3);
    let nodes = cluster.start_all().await;
    let all: Vec<_> = nodes.iter().collect();
    controller(&all[..3]).await;
    wait_for_members(&nodes[3], &[1, 2, 3], &[4]).await;

    for (value, node) in nodes.iter().enumerate() {
        let outcome = node.quorum.propose(set("a", value)).await.unwrap();
        assert_eq!(outcome.results, [Ok(Applied::Done)]);
        assert_eq!(node.setting("a"), Some(value.to_string()));
        assert!(node.quorum.image().offset >= outcome.offset);
    }
    let refused = insist(&nodes[3], Command::DeleteTopics(vec![TopicId::random()])).await;
    assert_eq!(refused.results, [Err(CommandError::UnknownTopic)]);

    let huge = "x".repeat(5 * 1024 * 1024);
    let refused = nodes[3].quorum.propose(set("a", huge)).await;
    assert!(
        matches!(refused, Err(ProposeError::Rejected(_))),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_controller_does_not_fail_a_proposal() {
    let mut cluster = Cluster::new(3, 3);
    let nodes = cluster.start_all().await;
    let all: Vec<_> = nodes.iter().collect();
    let first = controller(&all).await;
    let leading = *all.iter().find(|node| node.broker() == first).unwrap();
    let following = *all.iter().find(|node| node.broker() != first).unwrap();
    assert!(leading.quorum.is_controller());
    eventually("a majority acknowledges the controller", || {
        leading.quorum.controller_is_fresh(PATIENCE)
    })
    .await;
    assert!(!following.quorum.is_controller());
    assert!(!following.quorum.controller_is_fresh(PATIENCE));
    let mut watched = following.quorum.watch_controller();
    let before = watched.borrow_and_update().unwrap();
    assert_eq!(before.broker, first);

    // While leadership moves, proposals on either side wait for the new one.
    let deadline = Instant::now() + PATIENCE;
    let asked = Instant::now();
    let (taken, here, there) = tokio::join!(
        leading.quorum.hand_over(deadline),
        leading.quorum.propose(set("a", 1)),
        following.quorum.propose(set("b", 2)),
    );
    println!("handed over after {:?}", asked.elapsed());
    let second = taken.unwrap();
    assert_ne!(second, first);
    here.unwrap();
    there.unwrap();
    let after = watched
        .wait_for(|now| now.is_some_and(|now| now.broker == second))
        .await
        .unwrap()
        .unwrap();
    assert!(after.epoch > before.epoch);
    assert!(!leading.quorum.is_controller());
    // It does not lead, so there is nothing to hand over.
    assert_eq!(leading.quorum.hand_over(deadline).await, Ok(second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_accepted_and_the_controller_is_not_sure() {
    let mut cluster = Cluster::new(3, 3);
    let mut nodes = Vec::new();
    for broker in 1..=3 {
        let mut options = cluster.options(broker);
        options.propose_timeout = std::time::Duration::from_secs(1);
        nodes.push(cluster.start_with(broker, options).await);
    }
    let all: Vec<_> = nodes.iter().collect();
    let first = controller(&all).await;
    insist(all[0], set("a", 1)).await;
    let (leading, others): (Vec<_>, Vec<_>) =
        nodes.into_iter().partition(|node| node.broker() == first);
    others.into_iter().for_each(common::Node::kill);
    let lease = cluster.options(1).election_timeout_max;
    eventually("the controller misses its majority", || {
        !leading[0].quorum.controller_is_fresh(lease)
    })
    .await;
    let refused = leading[0].quorum.propose(set("a", 2)).await;
    assert!(
        matches!(
            refused,
            Err(ProposeError::NotController { .. } | ProposeError::Unavailable)
        ),
        "{refused:?}"
    );
    assert_eq!(leading[0].setting("a"), Some("1".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_change_the_membership_from_any_node() {
    let mut cluster = Cluster::new(4, 3);
    let mut nodes = cluster.start_all().await;
    wait_for_members(&nodes[3], &[1, 2, 3], &[4]).await;
    let refused = |refusal| Err(MembershipError::Refused(refusal));

    let unknown = kittiwake_raft::BrokerId(9);
    assert_eq!(
        nodes[3].quorum.add_voter(unknown).await,
        refused(MembershipRefusal::UnknownMember(unknown))
    );
    assert_eq!(
        nodes[3].quorum.remove_member(unknown).await,
        refused(MembershipRefusal::UnknownMember(unknown))
    );
    let fourth = nodes[3].broker();
    insist(&nodes[3], set("a", 1)).await;
    nodes[3].quorum.add_voter(fourth).await.unwrap();
    nodes[3].quorum.add_voter(fourth).await.unwrap();
    wait_for_members(&nodes[0], &[1, 2, 3, 4], &[]).await;

    nodes.pop().unwrap().kill();
    nodes[0].quorum.remove_member(fourth).await.unwrap();
    wait_for_members(&nodes[1], &[1, 2, 3], &[]).await;
    insist(&nodes[2], set("a", 2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_voter_stays() {
    let mut cluster = Cluster::new(2, 1);
    let nodes = cluster.start_all().await;
    wait_for_members(&nodes[1], &[1], &[2]).await;
    let only = nodes[0].broker();
    assert_eq!(
        nodes[1].quorum.remove_member(only).await,
        Err(MembershipError::Refused(MembershipRefusal::LastVoter(only)))
    );
    assert!(
        nodes[0]
            .quorum
            .controller_is_fresh(std::time::Duration::ZERO)
    );
    assert!(nodes[0].quorum.hand_over(Instant::now()).await.is_err());
}
