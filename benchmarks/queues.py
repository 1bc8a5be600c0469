"""Work queues end to end: add many, let one worker process handle each, then one at a time; ailf and its peers.

    python benchmarks/queues.py [--quick] [--runs 5] [CONTENDER …]

Messages are texts of 100 bytes. *handled/s* counts from the first handler's call to the last one's, so that nobody's
start is in it. *one* is what lies between asking for a message to be added and its handler's being called, while the
worker is idle. Every contender keeps the promises that it makes by default; what it can keep of results is off.

The bare loop reads a hundred, calls a handler for each and acks in one pipeline: it has no leases, no retries, no dead
letters, and is as fast as redis-py lets anybody be.
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
        file: In the folder ``workers``.
        module: What has to be installed.
        quick: How many messages are added with ``--quick``.
        full: How many without: what takes a few seconds.
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
    """Measure once, in processes that have the peer."""
    python = peers.python(contender.module)
    if reason := peers.missing().get(contender.module, "" if python.exists() else "run make bench"):
        raise bench.MissingPeerError(reason)
    bench.clear(url)
    script = Path(__file__).parent / "workers" / f"{contender.file}.py"
    command = [python, script, url, "add", str(count), str(ones)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no message").splitlines()[-1])
    found: Numbers = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure all that is asked for."""
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
