#!/usr/bin/env python3
"""Does a consumer that reads cold data slow somebody else's producer down?

Records are written at a fixed rate to one topic while a consumer reads another one from its beginning: once with that
topic in the page cache (the control), once with its pages dropped, in turn, and once without a reader. Reports the produce p99
of each, by ROUNDS.
The data must be on a real disk: DIRECTORY must not be a tmpfs.

On a virtual machine, memory that was freed has gone back to the host within seconds, and touching it again costs CPU time that
only the cold reader pays. So as much memory as the topic has is touched right before each reading, and topics are best
small enough to be read before that wears off (some hundred MiB), with more rounds instead.

    cold_reader.py --binary target/release/kittiwake --tool target/bench/librdkafka/examples/rdkafka_performance --directory target/bench
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess

import brokers
import measure


def drop_pages(directory):
    """Writes the files back and drops their pages; clean pages need no privilege. Returns the bytes concerned."""
    dropped = 0
    for path in pathlib.Path(directory).glob("**/*.log"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            dropped += path.stat().st_size
    return dropped


def read_pages(directory):
    for path in pathlib.Path(directory).glob("**/*.log"):
        with open(path, "rb") as file:
            while file.read(1 << 20):
                pass


def produce_beside(case, broker, options):
    command = [options.binary, "bench", "latency", "-b", broker.bootstrap, "-t", "live", "-r", str(options.rate), "--warmup", "0", "--output", "json"]
    if case == "none":
        command += ["-c", str(options.rate)]
    else:
        # A hot reading is over sooner: several, so that as many records are measured.
        command += ["-c", "1000000000", "--reader-topic", "old", "--reader-passes", "4" if case == "hot" else "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if run.returncode:
        raise SystemExit(f"bench latency: status {run.returncode}\n{run.stdout[-400:]}{run.stderr[-400:]}")
    return json.loads(run.stdout)


def report(name, found):
    p99 = {case: [run["acknowledgement"]["p99_ms"] for run in runs] for case, runs in found.items()}
    for case, runs in found.items():
        reader = [round(run["reader"]["throughput"]["mib_per_second"]) for run in runs if "reader" in run]
        counts = [run["acknowledgement"]["count"] for run in runs]
        values = ", ".join(f"{value:.2f}" for value in sorted(p99[case]))
        print(f"{name}, reader {case}: produce p99 median {statistics.median(p99[case]):.2f} ms ({values}), records {counts}, reader {reader} MiB/s")
    ratio = statistics.median(p99["cold"]) / statistics.median(p99["hot"])
    print(f"{name}: produce p99 beside a cold reader is {ratio:.2f} x that beside a hot one (medians)", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the kittiwake binary, a release build")
    parser.add_argument("--tool", required=True, help="librdkafka's rdkafka_performance")
    parser.add_argument("--kafka-libs", help="directory of Apache Kafka's jars; without it only Kittiwake is measured")
    parser.add_argument("--directory", required=True, help="where the data goes: a real disk")
    parser.add_argument("--records", type=int, default=3 << 20, help="1 KiB records of the topic that is read (default: 3 GiB)")
    parser.add_argument("--rate", type=int, default=2000, help="records written per second meanwhile")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.binary = os.path.abspath(options.binary)
    directory = os.path.join(os.path.abspath(options.directory), f"cold-reader-{os.getpid()}")
    os.mkdir(directory)
    peers = [brokers.Kittiwake(directory, options.binary)]
    if options.kafka_libs:
        peers.append(brokers.Kafka(directory, os.path.abspath(options.kafka_libs)))
    try:
        for peer in peers:
            with peer as broker:
                measure.first_acknowledgement(broker, "live")
                measure.create_topic(broker, "old", segment_bytes=256 << 20)
                measure.produce(broker, options.tool, "old", options.records)
                found = {"none": [], "hot": [], "cold": []}
                for _ in range(options.rounds):
                    for case in found:
                        dropped = drop_pages(broker.directory)
                        if case != "cold":
                            read_pages(broker.directory)
                        measure.pretouch("/dev/shm", dropped >> 20)
                        found[case].append(produce_beside(case, broker, options))
                report(broker.name, found)
    finally:
        shutil.rmtree(directory)


main()
