#!/usr/bin/env python3
"""kafka_python.py BOOTSTRAP [COUNT]: kafka-python, producer, consumer group, admin client."""
import time

from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from scenario import CODECS, PARTITIONS, Verifier, arguments, key, topic, value

DEADLINE_S = 180


def produce(bootstrap, name, codec, count):
    producer = KafkaProducer(
        bootstrap_servers=bootstrap, compression_type=None if codec == "none" else codec, acks="all", linger_ms=5, batch_size=256 * 1024
    )
    pending = [producer.send(name, key=key(i), value=value(i)) for i in range(count)]
    producer.flush(timeout=DEADLINE_S)
    for future in pending:
        future.get(timeout=1)
    producer.close()


def consume(bootstrap, name, count):
    consumer = KafkaConsumer(name, bootstrap_servers=bootstrap, group_id=name, auto_offset_reset="earliest", enable_auto_commit=False)
    verifier, deadline = Verifier(count), time.monotonic() + DEADLINE_S
    while not verifier.complete:
        if time.monotonic() > deadline:
            raise SystemExit(f"{name}: {verifier.found} of {count} records came back")
        for records in consumer.poll(timeout_ms=500, max_records=5000).values():
            for record in records:
                verifier.take(record.partition, record.offset, record.key, record.value)
    consumer.commit()
    committed = sum(consumer.committed(partition) or 0 for partition in consumer.assignment())
    consumer.close()
    if committed != count:
        raise SystemExit(f"{name}: committed up to {committed} of {count}")


def main():
    bootstrap, count = arguments()
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    for codec in CODECS:
        name = topic("kafka-python", codec)
        admin.create_topics([NewTopic(name, PARTITIONS, 1)])
        produce(bootstrap, name, codec, count)
        consume(bootstrap, name, count)
        admin.delete_topics([name])
        print(f"kafka-python: {count} records, {codec}")
    admin.close()


main()
