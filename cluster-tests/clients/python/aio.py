#!/usr/bin/env python3
"""aio.py BOOTSTRAP [COUNT]: aiokafka, idempotent producer, consumer group, admin client."""
import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from scenario import CODECS, PARTITIONS, Verifier, arguments, key, topic, value

DEADLINE_S = 180


async def produce(bootstrap, name, codec, count):
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        compression_type=None if codec == "none" else codec,
        enable_idempotence=True,
        linger_ms=5,
        max_batch_size=256 * 1024,
    )
    await producer.start()
    try:
        pending = [await producer.send(name, key=key(i), value=value(i)) for i in range(count)]
        await asyncio.gather(*pending)
    finally:
        await producer.stop()


async def consume(bootstrap, name, count):
    consumer = AIOKafkaConsumer(name, bootstrap_servers=bootstrap, group_id=name, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        verifier = Verifier(count)
        while not verifier.complete:
            for records in (await consumer.getmany(timeout_ms=500, max_records=5000)).values():
                for record in records:
                    verifier.take(record.partition, record.offset, record.key, record.value)
        await consumer.commit()
    finally:
        await consumer.stop()


async def main():
    bootstrap, count = arguments()
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        for codec in CODECS:
            name = topic("aiokafka", codec)
            await admin.create_topics([NewTopic(name, PARTITIONS, 1)])
            await asyncio.wait_for(produce(bootstrap, name, codec, count), DEADLINE_S)
            await asyncio.wait_for(consume(bootstrap, name, count), DEADLINE_S)
            await admin.delete_topics([name])
            print(f"aiokafka: {count} records, {codec}")
    finally:
        await admin.close()


asyncio.run(main())
