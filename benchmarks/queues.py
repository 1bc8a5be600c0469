"""Work queues end to end: add many messages, which one worker process handles, then one at a time; ailf and its peers.

    python benchmarks/queues.py [--quick] [--runs 5] [CONTENDER …]

Messages are texts of 100 bytes. *handled/s* counts from the first call of the handler to the last one, so it contains
no start-up. *one* is the time from the call that adds a message to the call of its handler, while the worker is idle.
Every contender gives the guarantees that it gives by default; storing results is switched off.

The bare loop reads a hundred messages, calls the handler for each, and acks them in one pipeline. It has no leases, no
retries and no dead letters, and is the upper bound for a queue over redis-py.
"""

import json
import subprocess
from functools import partial
from pathlib import Path

import attrs
import bench
import peers
from bench import Column, Numbers

COLUMNS = [Column("add/s"), Column("handled/s"), Column("one, µs", less=True)]


@attrs.frozen
class Contender:
    """A queue.

    Attributes:
        file: The name of its file in the folder ``workers``.
        module: The module that has to be installed.
        quick: How many messages are added with ``--quick``.
        full: How many messages are added without it, which takes a few seconds.
    """

    file: str
    module: str
    quick: int = 500
    full: int = 3000


CONTENDERS = {
    "ailf": Contender("with_ailf", "redis", 5000, 30_000),
    "bare redis-py loop": Contender("with_nothing", "redis", 5000, 50_000),
    "saq": Contender("with_saq", "saq"),
    "streaq": Contender("with_streaq", "streaq"),
    "taskiq-redis": Contender("with_taskiq", "taskiq_redis"),
    "arq": Contender("with_arq", "arq"),
    "dramatiq": Contender("with_dramatiq", "dramatiq"),
    "faststream": Contender("with_faststream", "faststream"),
    "rq": Contender("with_rq", "rq", 300, 1000),
    "celery": Contender("with_celery", "celery"),
    "docket": Contender("with_docket", "docket"),
}


def measure(contender: Contender, url: str, count: int, ones: int) -> Numbers:
    """Measure one round."""
    return run(contender.file, contender.module, url, "add", count, ones)


def run(file: str, module: str, url: str, *arguments: str | int) -> Numbers:
    """Run a file of the folder ``workers`` with a peer's environment, on an empty server; return what it prints."""
    python = peers.python(module)
    if reason := peers.missing().get(module, "" if python.exists() else "run make bench"):
        raise bench.MissingPeerError(reason)
    bench.clear(url)
    command = [python, Path(__file__).parent / "workers" / f"{file}.py", url, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if process.returncode:
        raise RuntimeError((process.stderr.strip() or "no message").splitlines()[-1])
    numbers: Numbers = json.loads(process.stdout.splitlines()[-1])
    return numbers


def main() -> None:
    """Measure the chosen contenders, and print the table."""
    effort = bench.effort(__doc__)
    ones = effort.pick(20, 200)
    with bench.server() as url:
        contenders = {
            name: partial(measure, each, url, effort.pick(each.quick, each.full), ones)
            for name, each in CONTENDERS.items()
        }
        rows = bench.play(effort.chosen(contenders), effort.runs)
    bench.table("queues, one worker process (in brackets: how many times better ailf is)", COLUMNS, rows)


if __name__ == "__main__":
    main()
