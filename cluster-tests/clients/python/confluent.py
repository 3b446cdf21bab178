#!/usr/bin/env python3
"""confluent.py BOOTSTRAP [COUNT]: confluent-kafka (librdkafka), idempotent producer, consumer group, admin client."""
import time

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic

from scenario import CODECS, PARTITIONS, Verifier, arguments, key, topic, value

DEADLINE_S = 120


def produce(bootstrap, name, codec, count):
    failed = []
    producer = Producer({"bootstrap.servers": bootstrap, "compression.type": codec, "enable.idempotence": True, "linger.ms": 5})

    def delivered(error, _):
        if error:
            failed.append(str(error))

    for i in range(count):
        while True:
            try:
                producer.produce(name, key=key(i), value=value(i), on_delivery=delivered)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if producer.flush(DEADLINE_S) or failed:
        raise SystemExit(f"{codec}: not acknowledged: {failed[:2] or 'timed out'}")


def consume(bootstrap, name, group, count):
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False})
    consumer.subscribe([name])
    verifier, deadline = Verifier(count), time.monotonic() + DEADLINE_S
    while not verifier.complete:
        if time.monotonic() > deadline:
            raise SystemExit(f"{name}: {verifier.found} of {count} records came back")
        for message in consumer.consume(1000, 0.5):
            if message.error():
                raise SystemExit(f"{name}: {message.error()}")
            verifier.take(message.partition(), message.offset(), message.key(), message.value())
    committed = consumer.commit(asynchronous=False)
    consumer.close()
    if sum(partition.offset for partition in committed) != count:
        raise SystemExit(f"{name}: committed {committed}")


def resume_in_group(bootstrap, name, group):
    """The group's next member starts where the last one committed: there is nothing left to read."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", "enable.partition.eof": True})
    consumer.subscribe([name])
    ended, deadline = set(), time.monotonic() + DEADLINE_S
    while len(ended) < PARTITIONS:
        if time.monotonic() > deadline:
            raise SystemExit(f"{name}: the group did not resume")
        message = consumer.poll(0.5)
        if message is None:
            continue
        if not message.error():
            raise SystemExit(f"{name}: {message.partition()}@{message.offset()} was read again after it was committed")
        ended.add(message.partition())
    consumer.close()


def administer(bootstrap):
    admin = AdminClient({"bootstrap.servers": bootstrap})
    name = topic("confluent", "admin")

    def done(futures):
        return [future.result(timeout=30) for future in futures.values()]

    done(admin.create_topics([NewTopic(name, 2, config={"retention.ms": "86400000"})]))
    resource = ConfigResource(ConfigResource.Type.TOPIC, name)
    [entries] = done(admin.describe_configs([resource]))
    assert entries["retention.ms"].value == "86400000", entries["retention.ms"]
    done(admin.create_partitions([NewPartitions(name, 5)]))
    assert len(admin.list_topics(name, timeout=10).topics[name].partitions) == 5
    cluster = admin.describe_cluster().result(timeout=30)
    assert cluster.cluster_id and cluster.nodes, cluster
    done(admin.delete_topics([name]))
    assert name not in admin.list_topics(timeout=10).topics


def main():
    bootstrap, count = arguments()
    administer(bootstrap)
    print("confluent-kafka: create, describe, grow, delete a topic")
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for codec in CODECS:
        name = topic("confluent", codec)
        [created] = admin.create_topics([NewTopic(name, PARTITIONS)]).values()
        created.result(timeout=30)
        produce(bootstrap, name, codec, count)
        consume(bootstrap, name, name, count)
        resume_in_group(bootstrap, name, name)
        [deleted] = admin.delete_topics([name]).values()
        deleted.result(timeout=30)
        print(f"confluent-kafka: {count} records, {codec}")


main()
