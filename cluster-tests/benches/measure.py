"""What is measured of one running broker, or of a cluster as a whole. Every function returns plain numbers; any failure ends the run without a figure."""
import os
import re
import subprocess
import time

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

GIB = 1 << 30
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
RECORD_BYTES = 1024


def pretouch(directory, mib):
    """Touches guest memory through tmpfs, so that its first touch (4 CPU-s/GiB on a VM) is not booked on a broker."""
    with open("/proc/meminfo") as file:
        available = int(re.search(r"MemAvailable:\s+(\d+)", file.read()).group(1)) // 1024
    if mib > available - 2000:
        raise SystemExit(f"pretouch: {mib} MiB asked, {available} MiB available")
    path = os.path.join(directory, "pretouch")
    block = bytes(1 << 20)
    try:
        with open(path, "wb", buffering=0) as file:
            for _ in range(mib):
                file.write(block)
    finally:
        os.unlink(path)


def cpu_s(broker):
    """User and system CPU-seconds of all threads of all its processes."""
    ticks = 0
    for pid in broker.pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def resident_mib(broker):
    """Of its largest process."""
    found = []
    for pid in broker.pids:
        with open(f"/proc/{pid}/status") as file:
            found.append(int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1)) / 1024)
    return max(found)


def create_topic(broker, name, partitions=1, replicas=None, **config):
    """A replica on every node; `replicas` names the nodes of each partition instead, by index, the leader first."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    config = {key.replace("_", "."): str(value) for key, value in config.items()}
    if replicas:
        ids = [[node + broker.first_id for node in nodes] for nodes in replicas]
        topic = NewTopic(name, len(ids), replica_assignment=ids, config=config)
    else:
        topic = NewTopic(name, partitions, broker.nodes, config=config)
    [created] = admin.create_topics([topic], request_timeout=60).values()
    created.result(timeout=60)


def performance(tool, arguments):
    """Runs rdkafka_performance; records per second by its own clock."""
    run = subprocess.run([tool, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    rates = re.findall(r"(\d+) msgs/s", run.stdout)
    if run.returncode or not rates:
        raise SystemExit(f"rdkafka_performance {' '.join(arguments)}: status {run.returncode}\n{run.stdout[-800:]}")
    return int(rates[-1])


def loaded(broker, tool, arguments, gib):
    """Records per second and broker CPU-seconds per GiB while rdkafka_performance runs."""
    before = cpu_s(broker)
    rate = performance(tool, arguments)
    return {"records_per_s": rate, "cpu_s_per_gib": (cpu_s(broker) - before) / gib}


def produce(broker, tool, topic, records, partition="0"):
    """`partition` None: the client spreads the records."""
    where = ["-p", partition] if partition else []
    arguments = ["-P", "-b", broker.bootstrap, "-t", topic, *where, "-s", str(RECORD_BYTES), "-c", str(records), "-a", "-1", "-q"]
    return loaded(broker, tool, arguments, records * RECORD_BYTES / GIB)


def consume(broker, tool, topic, records, isolation="read_committed"):
    arguments = ["-C", "-b", broker.bootstrap, "-t", topic, "-p", "0", "-c", str(records), "-o", "beginning", "-q"]
    return loaded(broker, tool, arguments + ["-X", f"isolation.level={isolation}"], records * RECORD_BYTES / GIB)


def small_requests(broker, tool, topic, requests):
    """One record per request, pipelined as librdkafka does: broker CPU per request in microseconds."""
    before = cpu_s(broker)
    arguments = ["-P", "-b", broker.bootstrap, "-t", topic, "-p", "0", "-s", "100", "-c", str(requests), "-a", "-1", "-q"]
    rate = performance(tool, arguments + ["-X", "linger.ms=0", "-X", "batch.num.messages=1"])
    return {"requests_per_s": rate, "cpu_us_per_request": (cpu_s(broker) - before) / requests * 1e6}


def one_at_a_time(settings, topic, records, warm_up=200):
    """How long each of `records` records of 1 KiB takes to be acknowledged with acks=all, one on its way at a time: seconds, sorted."""
    producer = Producer({"linger.ms": 0, "acks": "all", "log_level": 0, **settings})
    value, took, failed = b"x" * RECORD_BYTES, [], []

    def delivered(error, _):
        if error:
            failed.append(str(error))

    for i in range(records + warm_up):
        start = time.perf_counter()
        producer.produce(topic, value, partition=0, on_delivery=delivered)
        if producer.flush(30) or failed:
            raise SystemExit(f"not acknowledged: {failed[:2] or 'within 30 s'}")
        if i >= warm_up:
            took.append(time.perf_counter() - start)
    return sorted(took)


def percentiles_ms(took):
    at = lambda share: took[min(len(took) - 1, int(share * len(took)))] * 1000
    return {"p50_ms": at(0.5), "p99_ms": at(0.99), "p999_ms": at(0.999)}


def latency(broker, topic, records):
    """acks=all latency of one record at a time, and what one such request costs the broker."""
    one_at_a_time({"bootstrap.servers": broker.bootstrap}, topic, 0)
    before = cpu_s(broker)
    took = one_at_a_time({"bootstrap.servers": broker.bootstrap}, topic, records, 0)
    return percentiles_ms(took) | {"cpu_us_per_request": (cpu_s(broker) - before) / records * 1e6}


def latency_floor(records):
    """The same client's latency to librdkafka's own mock broker: a thread of the client that answers on a socket and writes nothing."""
    return percentiles_ms(one_at_a_time({"test.mock.num.brokers": 1}, "echo", records))


def first_acknowledgement(broker, topic):
    """Seconds from exec to the first acknowledged record of a client that was waiting."""
    impatient = {
        "retry.backoff.ms": 5,
        "reconnect.backoff.ms": 5,
        "reconnect.backoff.max.ms": 10,
        "topic.metadata.refresh.fast.interval.ms": 5,
    }
    producer = Producer({"bootstrap.servers": broker.bootstrap, "acks": "all", "log_level": 0, "linger.ms": 0, **impatient})
    failed = []
    producer.produce(topic, b"x", on_delivery=lambda error, _: error and failed.append(str(error)))
    if producer.flush(60) or failed:
        raise SystemExit(f"not acknowledged after the start: {failed or 'within 60 s'}\n{broker.log_tail()}")
    return {"s": time.monotonic() - broker.started_at}


def idle(broker, seconds):
    """Resident memory of the largest broker, and CPU of one in per cent of a core, while they are left alone."""
    time.sleep(2)
    before = cpu_s(broker)
    time.sleep(seconds)
    return {"resident_mib": resident_mib(broker), "cpu_percent": (cpu_s(broker) - before) / seconds / broker.nodes * 100}


def wait_in_sync(broker, seconds=120):
    """Until every replica of every partition is in the ISR."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        topics = admin.list_topics(timeout=30).topics.values()
        partitions = [partition for topic in topics for partition in topic.partitions.values()]
        if all(len(partition.isrs) == len(partition.replicas) for partition in partitions):
            return
        time.sleep(0.1)
    raise SystemExit(f"{broker.name}: not in sync after {seconds} s")


def failover(broker, topic, victim_is_controller, seconds):
    """`kill -9` of the leader of a topic, which is also the controller or is not, under steady idempotent acks=all production.

    The longest time without an acknowledgement, to the end of the run if they never resume. The node is restarted at the end.
    """
    controller = broker.controller()
    victim = controller if victim_is_controller else (controller + 1) % broker.nodes
    create_topic(broker, topic, replicas=[[(victim + i) % broker.nodes for i in range(broker.nodes)]])
    wait_in_sync(broker)
    settings = {"retry.backoff.ms": 50, "topic.metadata.refresh.interval.ms": 1000, "reconnect.backoff.max.ms": 200}
    settings |= {"message.timeout.ms": 60000, "enable.idempotence": True, "linger.ms": 0, "acks": "all", "log_level": 0}
    producer = Producer({"bootstrap.servers": broker.bootstrap, **settings})
    times, errors, sent, killed, start = [], [], 0, None, time.monotonic()

    def delivered(error, _):
        if error:
            errors.append(str(error))
        else:
            times.append(time.monotonic())

    while time.monotonic() - start < seconds:
        producer.produce(topic, b"%d" % sent + b"x" * 100, partition=0, on_delivery=delivered)
        sent += 1
        producer.poll(0)
        time.sleep(0.005)
        if killed is None and time.monotonic() - start > 3:
            killed = time.monotonic()
            broker.kill_node(victim)
    if producer.flush(60) or errors or len(times) < sent:
        raise SystemExit(f"{broker.name}: {sent - len(times)} of {sent} records not acknowledged after a failover: {errors[:2]}")
    broker.start_node(victim)
    wait_in_sync(broker)
    return {"gap_s": max(b - a for a, b in zip(times, times[1:]))}
