#!/usr/bin/env python3
"""Three Kittiwake nodes and three Apache Kafka nodes side by side, replication factor 3, acks=all: docs/benchmarks.md.

Every figure is the median of ROUNDS runs. Within a round the clusters take turns, each in fresh processes with their data on
tmpfs; memory is touched before each run, and a JVM is given one warm-up run. CPU is that of all three brokers together. The
client is librdkafka's own rdkafka_performance. Started by `cluster-tests/benches/run --three`, which builds and fetches what
it needs.
"""
import argparse
import os

import brokers
import measure
import report

NODES = 3

# measured, number, title, digits
ROWS = [
    ("start", "s", "start of three to first acknowledged write, s", 2),
    ("idle", "resident_mib", "resident memory of a broker, idle, MiB", 0),
    ("idle", "cpu_percent", "idle CPU of a broker, % of a core", 2),
    ("produce", "records_per_s", "produce RF 3 acks=all, records/s", 0),
    ("produce", "cpu_s_per_gib", "CPU-s of all three brokers per GiB produced", 2),
    ("written", "resident_mib", "resident memory of a broker after the bytes written, MiB", 0),
    ("small", "requests_per_s", "one record per request, requests/s", 0),
    ("small", "cpu_us_per_request", "CPU of all three brokers per such request, µs", 1),
    ("latency", "p50_ms", "ack latency p50, ms", 3),
    ("latency", "p99_ms", "ack latency p99, ms", 3),
    ("leader", "gap_s", "no acknowledgements after kill -9 of a leader, s", 2),
    ("both", "gap_s", "the same, of a leader that is the controller, s", 2),
]


def one_round(cluster, options):
    """Every figure of one cluster."""
    found = {}
    gib = options.records * measure.RECORD_BYTES / measure.GIB
    with cluster:
        found["start"] = measure.first_acknowledgement(cluster, "first")
        found["idle"] = measure.idle(cluster, options.idle_seconds)
        if cluster.name == "kafka":
            measure.create_topic(cluster, "warm-up", NODES)
            measure.produce(cluster, options.tool, "warm-up", options.records // 4, None)
        measure.create_topic(cluster, "bulk", NODES)
        for topic in ("small", "latency"):
            measure.create_topic(cluster, topic)
        measure.pretouch(options.directory, int(gib * 1024 * 1.1) * NODES + 200)
        found["produce"] = measure.produce(cluster, options.tool, "bulk", options.records, None)
        found["written"] = {"resident_mib": measure.resident_mib(cluster)}
        found["small"] = measure.small_requests(cluster, options.tool, "small", options.requests)
        found["latency"] = measure.latency(cluster, "latency", options.latency_records)
        found["leader"] = measure.failover(cluster, "failover-leader", False, options.failover_seconds)
        found["both"] = measure.failover(cluster, "failover-both", True, options.failover_seconds)
    return found


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the kittiwake binary, a release build")
    parser.add_argument("--tool", required=True, help="librdkafka's rdkafka_performance")
    parser.add_argument("--kafka-libs", help="directory of Apache Kafka's jars; without it only Kittiwake is measured")
    parser.add_argument("--directory", default="/dev/shm", help="a tmpfs for the data (default: /dev/shm)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=1 << 20, help="1 KiB records of the bulk run (default: 1 GiB, three times on tmpfs)")
    parser.add_argument("--requests", type=int, default=100_000, help="requests of one record each")
    parser.add_argument("--latency-records", type=int, default=5_000)
    parser.add_argument("--idle-seconds", type=int, default=20)
    parser.add_argument("--failover-seconds", type=int, default=25, help="how long each failover run produces; the kill is at 3 s")
    parser.add_argument("--json", help="write every figure of every round here")
    return parser.parse_args()


def main():
    options = arguments()
    with report.directory(options, "three"):
        peers = [brokers.Kittiwake(options.directory, os.path.abspath(options.binary), NODES)]
        if options.kafka_libs:
            peers.append(brokers.Kafka(options.directory, os.path.abspath(options.kafka_libs), NODES))
        rounds = report.alternate(peers, options.rounds, lambda peer: one_round(peer, options))
    report.write(ROWS, rounds, f"{options.records:,} records of 1 KiB", options.json)


main()
