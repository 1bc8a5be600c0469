"""A hundred idle consumers of one queue, one message at a time: the requests that each library makes of the server.

    python benchmarks/idle.py [--quick] [--runs 5] [CONTENDER …]

The consumers take one message at a time, and run with their library's defaults. The hundred are asyncio tasks of one
process, each a worker, receiver, broker or client of its own; ailf is also measured with ten in each of ten processes,
as its consumers share a wait within a process.

*idle, requests/s* is counted for ten seconds without a message (four with ``--quick``). In the next ten fifty messages
are added one by one, each after the one before has been handled. *requests* are those for one message, from its adding
to its settling, beyond the idle ones in that time: of all clients together, a script counts once. *server, µs* is the
time that they take the server, counted in the same way. *one* is the time from the call that adds a message to the call
of its handler.
"""

from functools import partial

import attrs
import bench
import queues
from bench import Column

CONSUMERS = 100
MESSAGES = 50

COLUMNS = [
    Column("requests", less=True, digits=1),
    Column("server, µs", less=True),
    Column("idle, requests/s", less=True, digits=1),
    Column("one, µs", less=True),
]


@attrs.frozen
class Contender:
    """A library.

    Attributes:
        file: The name of its file in the folder ``workers``.
        module: The module that has to be installed.
        processes: The processes that the consumers are divided among.
    """

    file: str
    module: str
    processes: int = 1


CONTENDERS = {
    "ailf": Contender("with_ailf", "redis"),
    "ailf, 10 processes": Contender("with_ailf", "redis", 10),
    "bare redis-py loop": Contender("with_nothing", "redis"),
    "saq": Contender("with_saq", "saq"),
    "taskiq-redis": Contender("with_taskiq", "taskiq_redis"),
    "arq": Contender("with_arq", "arq"),
    "faststream": Contender("with_faststream", "faststream"),
}


def measure(contender: Contender, url: str, silence: int) -> bench.Numbers:
    """Measure one round, in processes of the peer's environment."""
    arguments = (CONSUMERS, contender.processes, MESSAGES, silence)
    return queues.run(contender.file, contender.module, url, "idle", *arguments)


def main() -> None:
    """Measure the chosen contenders, and print the table."""
    effort = bench.effort(__doc__)
    silence = effort.pick(4, 10)
    with bench.server() as url:
        contenders = {name: partial(measure, each, url, silence) for name, each in CONTENDERS.items()}
        rows = bench.play(effort.chosen(contenders), effort.runs)
    title = f"{CONSUMERS} idle consumers, one message at a time (in brackets: how many times better ailf is)"
    bench.table(title, COLUMNS, rows)


if __name__ == "__main__":
    main()
