//! Who is in the quorum: nodes come, go, move, lose their disks; and there is never a second cluster.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, controller, eventually, insist, members, set, wait_for_members};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_grows_to_three() {
    let mut cluster = Cluster::new(3, 1);
    let first = cluster.start(1).await;
    insist(&first, set("a", 1)).await;
    // Enough for a snapshot, which is how newcomers get what is purged.
    for value in 0..120 {
        insist(&first, set("b", value)).await;
    }
    first.kill();

    cluster.configure(3);
    let first = cluster.start(1).await;
    insist(&first, set("c", 3)).await;
    let second = cluster.start(2).await;
    wait_for_members(&first, &[1], &[2]).await;
    let offset = insist(&second, set("d", 4)).await.offset;
    second.wait_for_offset(offset).await;
    assert_eq!(
        members(&first),
        (vec![1], vec![2]),
        "two voters are worse than one"
    );
    let third = cluster.start(3).await;
    for node in [&first, &second, &third] {
        wait_for_members(node, &[1, 2, 3], &[]).await;
    }

    first.kill();
    controller(&[&second, &third]).await;
    insist(&third, set("e", 5)).await;
    for node in [&second, &third] {
        eventually("all of it is there", || {
            node.setting("e").is_some() && node.setting("b") == Some("119".into())
        })
        .await;
        assert_eq!(node.setting("a"), Some("1".into()));
        assert_eq!(node.setting("c"), Some("3".into()));
        assert_eq!(node.setting("d"), Some("4".into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lost_its_disk_is_replaced_by_what_it_comes_back_as() {
    let mut cluster = Cluster::new(3, 3);
    let mut nodes = cluster.start_all().await;
    let all: Vec<_> = nodes.iter().collect();
    controller(&all).await;
    insist(&nodes[0], set("a", 1)).await;

    // Every voter in turn, so that the one that would form a new cluster and the controller are
    // among them.
    for broker in 1..=3 {
        let position = nodes
            .iter()
            .position(|node| node.broker().0 == broker)
            .unwrap();
        let lost = nodes.remove(position);
        let old = lost.quorum.directory_id();
        lost.kill();
        cluster.empty(broker);
        let back = cluster.start(broker).await;
        let new = back.quorum.directory_id();
        assert_ne!(old, new);
        nodes.push(back);
        for node in &nodes {
            eventually("the new directory votes instead of the old one", || {
                let status = node.quorum.status();
                let voters = &status.voters;
                voters.iter().any(|voter| voter.directory_id == new)
                    && voters.iter().all(|voter| voter.directory_id != old)
                    && members(node) == (vec![1, 2, 3], vec![])
                    && !status.changing
            })
            .await;
        }
        insist(nodes.last().unwrap(), set("b", broker)).await;
        assert_eq!(nodes.last().unwrap().setting("a"), Some("1".into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_voter_delays_the_formation_and_no_other_cluster_is_formed() {
    let mut cluster = Cluster::new(3, 3);
    // The one that forms the cluster is late.
    let third = cluster.start(3).await;
    let second = cluster.start(2).await;
    let mut late = tokio::time::interval(std::time::Duration::from_millis(100));
    for _ in 0..5 {
        late.tick().await;
        assert_eq!(second.quorum.controller(), None);
        assert_eq!(members(&third), (vec![], vec![]));
    }
    let first = cluster.start(1).await;
    controller(&[&first, &second, &third]).await;
    wait_for_members(&third, &[1, 2, 3], &[]).await;

    // Two of three lose their disks: what is left is no majority, and nobody makes it one.
    first.kill();
    second.kill();
    cluster.empty(1);
    cluster.empty(2);
    let first = cluster.start(1).await;
    let second = cluster.start(2).await;
    for _ in 0..10 {
        late.tick().await;
        assert_eq!(members(&first), (vec![], vec![]));
        assert_eq!(members(&second), (vec![], vec![]));
        assert!(
            !third
                .quorum
                .controller_is_fresh(cluster.options(3).election_timeout_max)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_comes_back_empty_replaces_itself() {
    let mut cluster = Cluster::new(2, 1);
    let first = cluster.start(1).await;
    insist(&first, set("a", 1)).await;
    let learner = cluster.start(2).await;
    wait_for_members(&learner, &[1], &[2]).await;
    let old = learner.quorum.directory_id();
    learner.kill();
    cluster.empty(2);
    let learner = cluster.start(2).await;
    eventually("only the new directory follows", || {
        let learners = first.quorum.status().learners;
        learners.len() == 1 && learners[0].directory_id == learner.quorum.directory_id()
    })
    .await;
    assert_ne!(learner.quorum.directory_id(), old);
    eventually("it has the data", || learner.setting("a").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_move_are_found() {
    let mut cluster = Cluster::new(4, 3);
    let mut nodes = cluster.start_all().await;
    wait_for_members(&nodes[3], &[1, 2, 3], &[4]).await;
    insist(&nodes[0], set("a", 1)).await;

    // One after the other, a learner among them, while the others' configuration is of yesterday.
    for broker in [4, 2] {
        let position = nodes
            .iter()
            .position(|node| node.broker().0 == broker)
            .unwrap();
        nodes.remove(position).kill();
        cluster.move_away(broker);
        let moved = cluster.start(broker).await;
        let address = cluster.options(broker).advertised_address;
        nodes.push(moved);
        for node in &nodes {
            eventually("the new address is known", || {
                let status = node.quorum.status();
                let mut known = status.voters.iter().chain(&status.learners);
                known.any(|member| member.broker.0 == broker && member.address == address)
            })
            .await;
        }
        let offset = insist(&nodes[0], set("a", broker)).await.offset;
        nodes.last().unwrap().wait_for_offset(offset).await;
    }

    // All voters at once: only the configuration knows.
    nodes.drain(..).for_each(common::Node::kill);
    for broker in 1..=3 {
        cluster.move_away(broker);
    }
    let mut nodes = Vec::new();
    for broker in 1..=3 {
        nodes.push(cluster.start(broker).await);
    }
    let all: Vec<_> = nodes.iter().collect();
    controller(&all).await;
    for broker in 1..=3 {
        let address = cluster.options(broker).advertised_address;
        eventually("every new address is known", || {
            let voters = nodes[0].quorum.status().voters;
            voters
                .iter()
                .any(|voter| voter.broker.0 == broker && voter.address == address)
        })
        .await;
    }
    insist(&nodes[1], set("b", 1)).await;
    assert_eq!(nodes[1].setting("a"), Some("2".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_removed_while_it_was_away_is_taken_in_as_a_learner() {
    let mut cluster = Cluster::new(4, 3);
    let mut nodes = cluster.start_all().await;
    wait_for_members(&nodes[3], &[1, 2, 3], &[4]).await;
    let fourth = nodes.pop().unwrap();
    let broker = fourth.broker();
    insist(&fourth, set("a", 1)).await;
    fourth.quorum.add_voter(broker).await.unwrap();
    fourth.kill();
    nodes[0].quorum.remove_member(broker).await.unwrap();
    let fourth = cluster.start(4).await;
    wait_for_members(&nodes[0], &[1, 2, 3], &[4]).await;
    wait_for_members(&fourth, &[1, 2, 3], &[4]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_does_not_take_a_node_in() {
    let mut cluster = Cluster::new(2, 1);
    let first = cluster.start(1).await;
    let mut stranger = cluster.options(2);
    stranger.cluster_id = "other".into();
    stranger.propose_timeout = std::time::Duration::from_millis(500);
    let stranger = cluster.start_with(2, stranger).await;
    stranger.quorum.propose(set("a", 1)).await.unwrap_err();
    assert_eq!(members(&first), (vec![1], vec![]));
    assert_eq!(members(&stranger), (vec![], vec![]));
}
