"""The brokers that are measured: each starts in a fresh data directory on tmpfs and says its pid and bootstrap address."""
import os
import pathlib
import shutil
import socket
import subprocess
import time

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
    """One broker process. `stop` removes `directory` with everything in it."""

    name = None

    def __init__(self, directory):
        self.directory = pathlib.Path(directory) / self.name
        self.arguments = None
        self.process = None
        self.started_at = None
        self.bootstrap = None

    def command(self):
        """The command line, after writing what it needs; sets `bootstrap`."""
        raise NotImplementedError

    def __enter__(self):
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.arguments = self.command()
        self.start()
        return self

    def start(self):
        with open(self.directory / "log", "a") as log:
            self.started_at = time.monotonic()
            self.process = subprocess.Popen(self.arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory)

    def kill(self):
        """`kill -9`; the data stays for the next `start`."""
        self.process.kill()
        self.process.wait()

    def __exit__(self, *_):
        self.kill()
        shutil.rmtree(self.directory)

    @property
    def pid(self):
        return self.process.pid

    def log_tail(self):
        return "\n".join((self.directory / "log").read_text(errors="replace").splitlines()[-10:])


class Kittiwake(Broker):
    name = "kittiwake"

    def __init__(self, directory, binary):
        super().__init__(directory)
        self.binary = binary

    def command(self):
        kafka, replication, grpc, http = free_ports(4)
        config = self.directory / "kittiwake.toml"
        config.write_text(
            f'"node.id" = 0\n"cluster.id" = "bench"\n"cluster.voters" = "0@127.0.0.1:{grpc}"\n'
            f'"log.dirs" = "{self.directory}/data"\n"listeners" = "PLAINTEXT://127.0.0.1:{kafka}"\n'
            f'"replication.listener" = "127.0.0.1:{replication}"\n"grpc.listener" = "127.0.0.1:{grpc}"\n'
            f'"http.listener" = "127.0.0.1:{http}"\n'
        )
        self.bootstrap = f"127.0.0.1:{kafka}"
        return [self.binary, "serve", "--config", str(config)]


class Kafka(Broker):
    """Apache Kafka: one KRaft node, broker and controller in one process, default settings, a heap of `heap_mib`."""

    name = "kafka"

    def __init__(self, directory, libs, heap_mib=768):
        super().__init__(directory)
        self.libs = libs
        self.heap_mib = heap_mib

    def command(self):
        client, controller = free_ports(2)
        (self.directory / "log4j2.xml").write_text(KAFKA_LOGGING)
        properties = self.directory / "server.properties"
        properties.write_text(
            f"process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n"
            f"listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}\n"
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{client}\ncontroller.listener.names=CONTROLLER\n"
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
            f"log.dirs={self.directory}/data\noffsets.topic.replication.factor=1\n"
            "transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n"
            "share.coordinator.state.topic.replication.factor=1\nshare.coordinator.state.topic.min.isr=1\n"
        )
        java = ["java", f"-Dlog4j2.configurationFile={self.directory}/log4j2.xml", "-cp", f"{self.libs}/*"]
        storage = java + ["kafka.tools.StorageTool"]
        cluster = subprocess.run(storage + ["random-uuid"], check=True, capture_output=True, text=True).stdout.split()[-1]
        subprocess.run(storage + ["format", "-t", cluster, "-c", str(properties)], check=True, capture_output=True)
        self.bootstrap = f"127.0.0.1:{client}"
        # The collector settings of Kafka's own start script.
        collector = ["-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35"]
        heap = [f"-Xms{self.heap_mib}m", f"-Xmx{self.heap_mib}m"]
        return java[:1] + heap + collector + java[1:] + ["kafka.Kafka", str(properties)]
