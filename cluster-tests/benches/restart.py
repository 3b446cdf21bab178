#!/usr/bin/env python3
"""How long a broker takes from exec after `kill -9` to its first acknowledged record.

Two cases: one full active segment that was never flushed, so that all of it is checked, and many sealed segments, whose
number must not matter. Data goes to DIRECTORY; give it a tmpfs to leave the disk out.

    restart.py --binary target/release/kittiwake --tool target/bench/librdkafka/examples/rdkafka_performance
"""
import argparse
import os
import shutil
import statistics

import brokers
import measure


def unflushed_segment(broker, options):
    """One segment of 1 GiB, full but for a little."""
    measure.create_topic(broker, "full")
    measure.produce(broker, options.tool, "full", 950_000)


def sealed_segments(broker, options):
    """A segment a record."""
    measure.create_topic(broker, "sealed", segment_bytes=4096)
    arguments = ["-P", "-b", broker.bootstrap, "-t", "sealed", "-p", "0", "-s", "3900", "-c", str(options.segments), "-a", "-1", "-q"]
    measure.performance(options.tool, arguments + ["-X", "linger.ms=0", "-X", "batch.num.messages=1"])


def measured(prepare, options):
    took = []
    with brokers.Kittiwake(options.directory, os.path.abspath(options.binary)) as broker:
        measure.first_acknowledgement(broker, "first")
        prepare(broker, options)
        for _ in range(options.rounds):
            broker.kill()
            broker.start()
            took.append(measure.first_acknowledgement(broker, "first")["s"])
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the kittiwake binary, a release build")
    parser.add_argument("--tool", required=True, help="librdkafka's rdkafka_performance")
    parser.add_argument("--directory", default="/dev/shm", help="where the data goes (default: /dev/shm)")
    parser.add_argument("--segments", type=int, default=10_000, help="sealed segments")
    parser.add_argument("--rounds", type=int, default=3, help="kills of each broker")
    options = parser.parse_args()
    options.directory = os.path.join(options.directory, f"kittiwake-restart-{os.getpid()}")
    os.mkdir(options.directory)
    try:
        for title, prepare in (("one unflushed segment of 0.93 GiB", unflushed_segment), (f"{options.segments} sealed segments", sealed_segments)):
            took = measured(prepare, options)
            print(f"{title}: first {took[0]:.2f} s, median {statistics.median(took):.2f} s of {len(took)} kills", flush=True)
    finally:
        shutil.rmtree(options.directory)


main()
