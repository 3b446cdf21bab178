"""What is measured: one broker or a cluster of them, started in a fresh directory; says its pids and bootstrap addresses."""
import os
import pathlib
import re
import shutil
import socket
import subprocess
import time

from confluent_kafka.admin import AdminClient

KAFKA_LOGGING = """<Configuration><Appenders><Console name="C"><PatternLayout pattern="[%d] %p %m (%c)%n"/></Console></Appenders>
<Loggers><Root level="WARN"><AppenderRef ref="C"/></Root></Loggers></Configuration>"""


def free_ports(count):
    """Ports that are free now, below the range of outgoing connections, so that no client takes one in between."""
    ports, candidate = [], 12_000 + os.getpid() % 5_000
    while len(ports) < count:
        candidate += 1
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
        ports.append(candidate)
    return ports


class Broker:
    """One broker process, or a cluster of `nodes` of them. Leaving the context removes `directory` with everything in it."""

    name = None
    # The id of the first node; the others follow.
    first_id = 0

    def __init__(self, directory, nodes):
        self.directory = pathlib.Path(directory) / self.name
        self.nodes = nodes
        self.arguments = []
        self.processes = [None] * nodes
        self.started_at = None
        self.bootstrap = None

    def commands(self):
        """The command line of each node, after writing what it needs; sets `bootstrap`."""
        raise NotImplementedError

    def controller(self):
        """The index of the node that leads the metadata quorum."""
        raise NotImplementedError

    def __enter__(self):
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.arguments = self.commands()
        self.start()
        return self

    def start(self):
        self.started_at = time.monotonic()
        for node in range(self.nodes):
            self.start_node(node)

    def start_node(self, node):
        with open(self.directory / f"log-{node}", "a") as log:
            self.processes[node] = subprocess.Popen(
                self.arguments[node], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )

    def kill(self):
        """`kill -9` of every node; the data stays for the next `start`."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def kill_node(self, node):
        self.processes[node].kill()
        self.processes[node].wait()

    def __exit__(self, *_):
        self.kill()
        shutil.rmtree(self.directory)

    @property
    def pids(self):
        return [process.pid for process in self.processes]

    def log_tail(self):
        logs = sorted(self.directory.glob("log-*"))
        return "\n".join(line for log in logs for line in log.read_text(errors="replace").splitlines()[-10:])


class Kittiwake(Broker):
    name = "kittiwake"

    def __init__(self, directory, binary, nodes=1):
        super().__init__(directory, nodes)
        self.binary = binary

    def commands(self):
        ports = free_ports(4 * self.nodes)
        kafka, replication, grpc, http = (ports[i :: 4] for i in range(4))
        voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(grpc))
        commands = []
        for node in range(self.nodes):
            config = self.directory / f"node-{node}.toml"
            config.write_text(
                f'"node.id" = {node}\n"cluster.id" = "bench"\n"cluster.voters" = "{voters}"\n'
                f'"log.dirs" = "{self.directory}/data-{node}"\n"listeners" = "PLAINTEXT://127.0.0.1:{kafka[node]}"\n'
                f'"replication.listener" = "127.0.0.1:{replication[node]}"\n"grpc.listener" = "127.0.0.1:{grpc[node]}"\n'
                f'"http.listener" = "127.0.0.1:{http[node]}"\n'
            )
            commands.append([self.binary, "serve", "--config", str(config)])
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in kafka)
        return commands

    def controller(self):
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}).list_topics(timeout=30).controller_id


class Kafka(Broker):
    """Apache Kafka: KRaft nodes, broker and controller in one process, default settings, a heap of `heap_mib` each."""

    name = "kafka"
    first_id = 1

    def __init__(self, directory, libs, nodes=1, heap_mib=768):
        super().__init__(directory, nodes)
        self.libs = libs
        self.heap_mib = heap_mib

    def java(self):
        return ["java", f"-Dlog4j2.configurationFile={self.directory}/log4j2.xml", "-cp", f"{self.libs}/*"]

    def commands(self):
        ports = free_ports(2 * self.nodes)
        clients, controllers = ports[: self.nodes], ports[self.nodes :]
        (self.directory / "log4j2.xml").write_text(KAFKA_LOGGING)
        voters = ",".join(f"{id}@127.0.0.1:{port}" for id, port in enumerate(controllers, self.first_id))
        replicas, in_sync = self.nodes, min(self.nodes, 2)
        storage = self.java() + ["kafka.tools.StorageTool"]
        cluster = subprocess.run(storage + ["random-uuid"], check=True, capture_output=True, text=True).stdout.split()[-1]
        # The collector settings of Kafka's own start script.
        collector = ["-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35"]
        heap = [f"-Xms{self.heap_mib}m", f"-Xmx{self.heap_mib}m"]
        java, commands = self.java(), []
        for node in range(self.nodes):
            properties = self.directory / f"server-{node}.properties"
            properties.write_text(
                f"process.roles=broker,controller\nnode.id={node + self.first_id}\ncontroller.quorum.voters={voters}\n"
                f"listeners=PLAINTEXT://127.0.0.1:{clients[node]},CONTROLLER://127.0.0.1:{controllers[node]}\n"
                f"advertised.listeners=PLAINTEXT://127.0.0.1:{clients[node]}\ncontroller.listener.names=CONTROLLER\n"
                "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
                f"log.dirs={self.directory}/data-{node}\ndefault.replication.factor={replicas}\nmin.insync.replicas={in_sync}\n"
                f"offsets.topic.replication.factor={replicas}\n"
                f"transaction.state.log.replication.factor={replicas}\ntransaction.state.log.min.isr={in_sync}\n"
                f"share.coordinator.state.topic.replication.factor={replicas}\nshare.coordinator.state.topic.min.isr={in_sync}\n"
            )
            subprocess.run(storage + ["format", "-t", cluster, "-c", str(properties)], check=True, capture_output=True)
            commands.append(java[:1] + heap + collector + java[1:] + ["kafka.Kafka", str(properties)])
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in clients)
        return commands

    def controller(self):
        # Its Metadata answers name any broker at random (KIP-631), so the quorum itself is asked.
        tool = self.java() + ["org.apache.kafka.tools.MetadataQuorumCommand", "--bootstrap-server", self.bootstrap, "describe", "--status"]
        status = subprocess.run(tool, check=True, capture_output=True, text=True).stdout
        return int(re.search(r"LeaderId:\s+(\d+)", status).group(1)) - self.first_id
