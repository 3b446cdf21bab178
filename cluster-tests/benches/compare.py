#!/usr/bin/env python3
"""Kittiwake and Apache Kafka side by side: the first table of docs/benchmarks.md.

Every figure is the median of ROUNDS runs. Within a round the brokers take turns, each in a fresh process with its data on
tmpfs; memory is touched before each run, and a JVM is given one warm-up run. The client is librdkafka's own
rdkafka_performance. Started by `cluster-tests/benches/run`, which builds and fetches what it needs.
"""
import argparse
import os
import statistics

import brokers
import measure
import report

# measured, number, title, digits
ROWS = [
    ("start", "s", "start to first acknowledged write, s", 2),
    ("idle", "resident_mib", "resident memory, idle, MiB", 0),
    ("idle", "cpu_percent", "idle CPU, % of a core", 2),
    ("produce", "records_per_s", "produce RF 1, records/s", 0),
    ("produce", "cpu_s_per_gib", "broker CPU-s per GiB produced", 2),
    ("first_consume", "cpu_s_per_gib", "broker CPU-s per GiB consumed, first reading after the writing", 2),
    ("consume", "records_per_s", "consume (read_committed), records/s", 0),
    ("consume", "cpu_s_per_gib", "broker CPU-s per GiB consumed, later readings", 2),
    ("consume_uncommitted", "cpu_s_per_gib", "the same, read_uncommitted", 2),
    ("small", "requests_per_s", "one record per request, requests/s", 0),
    ("small", "cpu_us_per_request", "broker CPU per such request, µs", 1),
    ("latency", "p50_ms", "ack latency p50, ms", 3),
    ("latency", "p99_ms", "ack latency p99, ms", 3),
    ("floor", "p50_ms", "floor: the client's own mock broker, p50, ms", 3),
    ("floor", "p99_ms", "floor: the client's own mock broker, p99, ms", 3),
    ("latency", "cpu_us_per_request", "broker CPU per request, one outstanding, µs", 1),
    ("written", "resident_mib", "resident memory after the bytes written, MiB", 0),
    ("partitions", "resident_mib", "resident memory with many partitions, MiB", 0),
    ("partitions", "cpu_percent", "idle CPU with many partitions, % of a core", 2),
]


def consume_in_turn(broker, options):
    """read_committed and read_uncommitted, each as often the first of a pair: the mean of both readings."""
    levels = ("read_committed", "read_uncommitted")
    readings = {level: [] for level in levels}
    for level in (*levels, *reversed(levels)):
        readings[level].append(measure.consume(broker, options.tool, "bulk", options.records, level))
    return [{name: statistics.mean(reading[name] for reading in readings[level]) for name in readings[level][0]} for level in levels]


def one_round(broker, options):
    """Every figure of one broker process, then of a second one for the partitions."""
    found = {}
    gib = options.records * measure.RECORD_BYTES / measure.GIB

    def touch():
        measure.pretouch(options.directory, int(gib * 1024 * 1.2) + 200)

    with broker:
        found["start"] = measure.first_acknowledgement(broker, "first")
        found["idle"] = measure.idle(broker, options.idle_seconds)
        if broker.name == "kafka":
            measure.create_topic(broker, "warm-up")
            measure.produce(broker, options.tool, "warm-up", options.records // 4)
            measure.consume(broker, options.tool, "warm-up", options.records // 4)
        for topic in ("bulk", "small", "latency"):
            measure.create_topic(broker, topic)
        touch()
        found["produce"] = measure.produce(broker, options.tool, "bulk", options.records)
        found["first_consume"] = measure.consume(broker, options.tool, "bulk", options.records)
        found["consume"], found["consume_uncommitted"] = consume_in_turn(broker, options)
        found["written"] = {"resident_mib": measure.resident_mib(broker)}
        found["small"] = measure.small_requests(broker, options.tool, "small", options.requests)
        found["latency"] = measure.latency(broker, "latency", options.latency_records)
        found["floor"] = measure.latency_floor(options.latency_records)
    with broker:
        measure.first_acknowledgement(broker, "first")
        measure.create_topic(broker, "wide", options.partitions)
        found["partitions"] = measure.idle(broker, options.idle_seconds)
    return found


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the kittiwake binary, a release build")
    parser.add_argument("--tool", required=True, help="librdkafka's rdkafka_performance")
    parser.add_argument("--kafka-libs", help="directory of Apache Kafka's jars; without it only Kittiwake is measured")
    parser.add_argument("--directory", default="/dev/shm", help="a tmpfs for the data (default: /dev/shm)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=4 << 20, help="1 KiB records of the bulk runs (default: 4 GiB)")
    parser.add_argument("--requests", type=int, default=200_000, help="requests of one record each")
    parser.add_argument("--latency-records", type=int, default=5_000)
    parser.add_argument("--partitions", type=int, default=1_000)
    parser.add_argument("--idle-seconds", type=int, default=20)
    parser.add_argument("--json", help="write every figure of every round here")
    return parser.parse_args()


def main():
    options = arguments()
    with report.directory(options, "bench"):
        peers = [brokers.Kittiwake(options.directory, os.path.abspath(options.binary))]
        if options.kafka_libs:
            peers.append(brokers.Kafka(options.directory, os.path.abspath(options.kafka_libs)))
        rounds = report.alternate(peers, options.rounds, lambda peer: one_round(peer, options))
    what = f"{options.records:,} records of 1 KiB, {options.partitions:,} partitions"
    report.write(ROWS, rounds, what, options.json)


main()
