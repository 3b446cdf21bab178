//! Three nodes become a cluster in whatever order they start, and know of each other's death and return.

use cluster_tests::Cluster;

#[test]
fn three_nodes_started_together_form_a_cluster() {
    let cluster = Cluster::start(3).unwrap();
    drop(cluster);
}
