"""What every Python client is asked to do: COUNT keyed records per codec, read back identical and in order.

Record i has key `key-<i mod 1000>` and a value that says i and repeats itself, so that codecs have something to do.
"""
import sys
import uuid

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
PARTITIONS = 4
KEYS = 1000


def key(i):
    return b"key-%d" % (i % KEYS)


def value(i):
    return (b"record %d " % i) * 8


def topic(client, codec):
    return f"{client}-{codec}-{uuid.uuid4().hex[:8]}"


class Verifier:
    """Takes records as (partition, offset, key, value) in the order a consumer was given them."""

    def __init__(self, count):
        self.count = count
        self.seen = bytearray(count)
        self.found = 0
        self.last_offset = {}
        self.last_of_key = {}

    def take(self, partition, offset, record_key, record_value):
        i = int(record_value.split(b" ", 2)[1])
        if record_value != value(i) or record_key != key(i):
            raise SystemExit(f"record {i} at {partition}@{offset} came back changed")
        if offset <= self.last_offset.get(partition, -1):
            raise SystemExit(f"{partition}@{offset} came after {self.last_offset[partition]}")
        if i <= self.last_of_key.get(record_key, -1):
            raise SystemExit(f"record {i} came after {self.last_of_key[record_key]} of the same key")
        if self.seen[i]:
            raise SystemExit(f"record {i} came twice")
        self.last_offset[partition] = offset
        self.last_of_key[record_key] = i
        self.seen[i] = 1
        self.found += 1

    @property
    def complete(self):
        return self.found == self.count


def arguments():
    if len(sys.argv) not in (2, 3):
        sys.exit(f"usage: {sys.argv[0]} BOOTSTRAP [COUNT]")
    return sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 100_000
