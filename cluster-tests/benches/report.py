"""Rounds of a comparison, in which the brokers take turns, and the table of their medians."""
import contextlib
import json
import os
import platform
import shutil
import statistics
import sys


@contextlib.contextmanager
def directory(options, name):
    """A directory of this run's own in `options.directory`, which is set to it; removed with everything in it."""
    options.directory = os.path.join(options.directory, f"kittiwake-{name}-{os.getpid()}")
    os.mkdir(options.directory)
    try:
        yield
    finally:
        shutil.rmtree(options.directory)


def alternate(peers, count, one_round):
    """What `one_round` found of each peer, `count` times, by name."""
    rounds = {peer.name: [] for peer in peers}
    for number in range(1, count + 1):
        for peer in peers:
            found = one_round(peer)
            rounds[peer.name].append(found)
            print(f"round {number}, {peer.name}: {json.dumps(found)}", file=sys.stderr)
    return rounds


def machine():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown processor")
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) / (1 << 20)
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}"


def table(rows, medians):
    names = list(medians)
    lines = ["| what | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for measured, number, title, digits in rows:
        cells = [f"{medians[name][measured][number]:,.{digits}f}" for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def median_of(rounds):
    return {
        measured: {number: statistics.median(found[measured][number] for found in rounds) for number in numbers}
        for measured, numbers in rounds[0].items()
    }


def write(rows, rounds, what, json_path):
    """Prints the table of medians, and writes every figure of every round to `json_path` if there is one."""
    medians = {name: median_of(found) for name, found in rounds.items()}
    count = len(next(iter(rounds.values())))
    print(f"Medians of {count} alternated rounds; {machine()}; {what}.\n")
    print(table(rows, medians))
    if json_path:
        with open(json_path, "w") as file:
            json.dump({"machine": machine(), "medians": medians, "rounds": rounds}, file, indent=1)
