//! `kill -9` at random moments loses nothing that was acknowledged and changes nothing that was read.
//!
//! `KITTIWAKE_KILLS` sets how many times (5); `cargo run -p cluster-tests --bin kill_loop -- 100` is the long run.

#[test]
fn nothing_acknowledged_is_lost_by_kill_9_under_load() {
    let count = match std::env::var("KITTIWAKE_KILLS") {
        Ok(text) => text.parse().expect("KITTIWAKE_KILLS must be a number"),
        Err(_) => 5,
    };
    let report = cluster_tests::trials::crashes::kill_under_load(
        count,
        cluster_tests::trials::seed().unwrap(),
    )
    .unwrap();
    assert_eq!(report.ready_after.len(), count);
    assert!(report.read >= report.acknowledged);
}
