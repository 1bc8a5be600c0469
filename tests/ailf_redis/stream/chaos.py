"""Chaos: worker processes are killed, stopped and frozen at random while they work; their history is kept."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

import ailf
from tests.ailf_redis.stream import worker_program
from tests.ailf_redis.stream.histories import INF, History, Lease, Life, read
from tests.ailf_redis.stream.worker_program import STALL, Orders

ODDS = {"nack": 0.01, "raise": 0.01, "retry": 0.005, "release": 0.005, "slow": 0.001, "block": 0.0002}


@attrs.frozen(kw_only=True)
class Plan:
    """The plan of a run.

    Attributes:
        messages: How many messages are added.
        lasting: Seconds over which they are added.
        workers: How many workers there are at any time.
        pause: The most seconds between two attacks.
        attacks: The probability of each attack: kill, stop gently, freeze for a while.
        orders: The options of each worker (see ``worker_program.py``).
        seed: Of all random numbers.
    """

    messages: int = 20_000
    lasting: float = 10.0
    workers: int = 4
    pause: float = 0.8
    attacks: dict[str, float] = attrs.field(factory=lambda: {"kill": 0.6, "stop": 0.2, "freeze": 0.2})
    orders: dict[str, Any] = attrs.field(factory=dict)
    seed: int = 0


class Worker:
    """A worker process, and the attacks on it."""

    def __init__(self, name: str, folder: Path, orders: dict[str, Any]) -> None:
        self.path = folder / f"{name}.jsonl"
        self.path.touch()
        self._name = name
        self._ended = INF
        self._fate = "stopped"
        self._still: list[tuple[float, float]] = []
        argument = json.dumps({**orders, "name": name, "path": str(self.path)})
        self.process = subprocess.Popen(
            [sys.executable, worker_program.__file__, argument],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    @property
    def life(self) -> Life:
        """Its life as seen from outside."""
        return Life(name=self._name, fate=self._fate, ended=self._ended, still=tuple(self._still))

    @property
    def begun(self) -> bool:
        """Whether it has called a handler."""
        return '"begin"' in self.path.read_text()

    def kill(self) -> None:
        """Kill it."""
        self._fate, self._ended = "killed", time.monotonic()
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 60.0) -> None:
        """Send SIGTERM, and check that it ends well, or that it had not begun."""
        self._ended = time.monotonic()
        self.process.terminate()
        status = self.process.wait(timeout)
        well = status == 0 or (status == -signal.SIGTERM and '"fetched"' not in self.path.read_text())
        assert well, f"{self._name} failed:\n{self.log()}"

    def freeze(self, seconds: float) -> None:
        """Stop it for `seconds`, and let it go on."""
        before = time.monotonic()
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._still.append((before, time.monotonic()))
        self.process.send_signal(signal.SIGCONT)

    def history(self, silent: Sequence[tuple[float, float]]) -> tuple[Life, list[Lease]]:
        """Return its life and deliveries; it couldn't renew either while the server was silent."""
        life = self.life
        return read(attrs.evolve(life, still=[*life.still, *silent]), self.path.read_text())

    def log(self) -> str:
        """Return the end of its log."""
        log = self.path.with_name(f"{self.path.name}.log")
        return log.read_text()[-3000:] if log.exists() else ""


class Probe(threading.Thread):
    """Records when the server was silent: left without a processor, as workers may be themselves.

    It pings from this process, so a time at which this process had no processor counts too: the machine was as busy.
    """

    def __init__(self, url: str) -> None:
        super().__init__(name="probe", daemon=True)
        self.silent: list[tuple[float, float]] = []
        self._url = url
        self._over = threading.Event()

    def run(self) -> None:
        """Ping the server again and again."""
        with ailf.connect(self._url) as backend:
            while not self._over.wait(0.01):
                before = time.monotonic()
                with contextlib.suppress(ailf.BackendError):  # it was silent for longer than a call may take
                    backend.ping()
                if time.monotonic() - before > STALL:
                    self.silent.append((before, time.monotonic()))

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self.join()


class WorkerPool:
    """The workers that run now, and all that ever ran."""

    def __init__(self, folder: Path, plan: Plan, url: str) -> None:
        self.all: list[Worker] = []
        self.now: list[Worker] = []
        self._folder = folder
        self._plan = plan
        self._orders = {"odds": ODDS, "seed": plan.seed, **plan.orders, "url": url}
        self._chance = random.Random(plan.seed)
        self.probe = Probe(url)

    def start(self) -> Worker:
        """Start another worker."""
        worker = Worker(f"worker-{len(self.all)}", self._folder, self._orders)
        self.all.append(worker)
        self.now.append(worker)
        return worker

    def attack(self) -> None:
        """Attack a worker, and replace it if that ends it."""
        worker = self._chance.choice(self.now)
        act = self._chance.choices(list(self._plan.attacks), list(self._plan.attacks.values()))[0]
        if act == "freeze":
            worker.freeze(self._chance.uniform(0.2, 2.0) * self._orders.get("takeover", 1.0))
            return
        self.now.remove(worker)
        self.start()
        if act == "kill":
            worker.kill()
        else:
            worker.stop()

    def pause(self) -> None:
        """Wait until the next attack."""
        time.sleep(self._chance.uniform(0.1, 1.0) * self._plan.pause)

    def stop(self) -> None:
        """Stop all workers gently."""
        while self.now:
            self.now.pop().stop()

    def histories(self) -> list[tuple[Life, list[Lease]]]:
        """Return the histories of all workers."""
        return [each.history(self.probe.silent) for each in self.all]


@contextlib.contextmanager
def worker_pool(folder: Path, plan: Plan, url: str) -> Iterator[WorkerPool]:
    """Run the planned number of workers; none outlives the test."""
    pool = WorkerPool(folder, plan, url)
    pool.probe.start()
    try:
        for _ in range(plan.workers):
            pool.start()
        yield pool
    finally:
        for each in pool.all:
            each.process.kill()
            each.process.wait()
        pool.probe.stop()


class Producer(threading.Thread):
    """Adds messages one by one and many at a time, over `lasting` seconds."""

    def __init__(self, url: str, plan: Plan) -> None:
        super().__init__(name="producer", daemon=True)
        self.added: list[str] = []
        self._url = url
        self._plan = plan
        self._chance = random.Random(plan.seed)

    def run(self) -> None:
        """Add all messages."""
        begin = time.monotonic()
        with ailf.connect(self._url) as backend:
            tasks = backend.stream("tasks")
            while (left := self._plan.messages - len(self.added)) > 0:
                due = begin + self._plan.lasting * len(self.added) / self._plan.messages
                time.sleep(max(0.0, due - time.monotonic()))
                self._add(tasks, min(left, self._chance.choice([1, 1, 1, 5, 50, 200])))

    def _add(self, tasks: Any, count: int) -> None:
        start = len(self.added)
        if count == 1:
            self.added.append(tasks.add(start))
        else:
            self.added += tasks.add_many(range(start, start + count))


@attrs.frozen(kw_only=True)
class Report:
    """The result of a run.

    Attributes:
        history: The recorded history.
        seconds: The time until all messages were settled.
    """

    history: History
    seconds: float

    @property
    def killed(self) -> int:
        """How many workers were killed."""
        return sum(life.killed for life in self.history.lives)

    @property
    def again(self) -> int:
        """How many deliveries were not the first of their message."""
        return sum(each.attempt > 1 for each in self.history.leases)

    def __str__(self) -> str:
        history = self.history
        late = sum(each.begun is not None and each.kept is None for each in history.leases)
        return (
            f"{len(history.added)} messages in {self.seconds:.1f} s, {len(history.added) / self.seconds:.0f} a second; "
            f"{self.killed} workers killed, {len(history.lives) - self.killed} stopped; "
            f"{len(history.leases)} deliveries, {self.again} of them again; "
            f"{sum(each.lost for each in history.leases)} lost by their handlers, {late} of them before they began, "
            f"{sum(each.begun is None for each in history.leases)} never begun, {len(history.dead_letters)} dead"
        )


def run(folder: Path, url: str, plan: Plan, *, limit: float = 120.0) -> Report:
    """Add messages, attack the workers until all are added, wait until all are settled; return the report."""
    with worker_pool(folder, plan, url) as pool, ailf.connect(url) as backend:
        group = backend.stream("tasks").group("workers")
        producer = Producer(url, plan)
        begin = time.monotonic()
        producer.start()
        while producer.is_alive():
            pool.pause()
            pool.attack()
        wait_for(lambda: settled(group), begin + limit - time.monotonic())
        seconds = time.monotonic() - begin
        pool.stop()
        assert len(producer.added) == plan.messages
        history = gather(pool, producer.added, dead_letters(group), plan)
        backend.stream("tasks").delete()
    return Report(history=history, seconds=seconds)


def settled(group: Any) -> bool:
    """Tell whether the group has settled every message."""
    info = group.info()
    return (info.lag, info.pending, info.delayed) == (0, 0, 0)


def dead_letters(group: Any) -> list[tuple[str, int]]:
    """Return the dead letters: of each the message's id, and how often it was delivered."""
    letters: list[Any] = []
    while page := group.dead_letters.list(after=letters[-1].id if letters else "", limit=1000):
        letters += page
    return [(letter.origin, letter.attempts) for letter in letters]


def gather(pool: WorkerPool, added: Sequence[str], dead: Sequence[tuple[str, int]], plan: Plan) -> History:
    """Return the joint history of all workers."""
    orders = Orders(url="", name="", path="", **plan.orders)
    histories = pool.histories()
    return History(
        added=added,
        lives=[life for life, _ in histories],
        leases=[each for _, leases in histories for each in leases],
        dead_letters=dead,
        max_deliveries=orders.max_deliveries,
        silence=min(orders.lease, orders.takeover),
        prefetch=orders.prefetch,
    )


def wait_for(condition: Callable[[], object], timeout: float) -> None:
    """Wait until the condition holds; fail after `timeout` seconds."""
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"not within {timeout:g} s"
        time.sleep(0.02)
