"""The supervisor: a state machine that decides when worker processes are started, stopped and killed.

It is pure: events and the time go in, actions come out. `ailf.runner.runner` carries them out. A slot is the place of
one worker; the worker in it changes with each restart, and with each reload, which begins a new generation.
"""

import enum
from typing import Final

import attrs

__all__ = ["FAILED", "Action", "Do", "Phase", "Supervisor", "WorkerState"]

FAILED: Final = 1
"""The exit status of a runner whose workers could not start, or had to be killed."""

FIRST_BACKOFF: Final = 0.2
LONGEST_BACKOFF: Final = 10.0
"""Seconds before the first restart of a worker, and before any. Each failure in a row doubles them."""

STABLE: Final = 10.0
"""Seconds after which a worker that was ready counts as sound: its next failure is the first one in a row."""

LOOP: Final = 5
"""The number of failures in a row that is called a crash loop."""

START: Final = 60.0
"""Seconds that a worker has to start, besides those for which it may wait for the backend."""


class Do(enum.Enum):
    """What an action does: `START` a worker, `TERMINATE` it (SIGTERM), `KILL` it, or write a line to the log."""

    START = "start"
    TERMINATE = "terminate"
    KILL = "kill"
    WARN = "warn"
    ERROR = "error"


@attrs.frozen
class Action:
    """What is to be done.

    Attributes:
        do: What.
        worker: The number of the worker; 0 for a line of the log.
        text: The line of the log.
    """

    do: Do
    worker: int = 0
    text: str = ""


class Phase(enum.Enum):
    """The state of a worker process."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


@attrs.define
class WorkerState:
    """One worker process.

    Attributes:
        number: Its number, which no other one has.
        slot: Its slot, from 0.
        generation: How many reloads had begun before it was started.
        since: When its phase began.
        phase: Its phase.
        kill_at: When it is killed unless it has ended or got ready.
        backend_up: Whether the backend has answered it.
    """

    number: int
    slot: int
    generation: int
    since: float
    kill_at: float
    phase: Phase = Phase.STARTING
    backend_up: bool = False


@attrs.define
class _Slot:
    """The place of one worker.

    Attributes:
        failures: The workers that have failed in a row.
        restart_at: When the next worker is started; None while there is one, or none is wanted.
    """

    failures: int = 0
    restart_at: float | None = None


class Supervisor:
    """Decides for `count` workers.

    Arguments:
        count: The number of workers.
        grace: Seconds that a worker has to end, after which it is killed.
        wait: Seconds for which a starting worker may wait for the backend.
        keeps_failed: Whether it waits for a reload when no worker can start, and doesn't give up.

    Attributes:
        workers: The worker processes that exist, by number.
        stopping: Whether a stop has begun.
        status: The exit status of the runner.
        restarts: The number of workers that were started in the place of a failed one.
    """

    def __init__(self, count: int, *, grace: float, wait: float = 0.0, keeps_failed: bool = False) -> None:
        self.workers: dict[int, WorkerState] = {}
        self.stopping = False
        self.status = 0
        self.restarts = 0
        self._grace = grace
        self._start_within = START + wait
        self._keeps_failed = keeps_failed
        self._slots = [_Slot() for _ in range(count)]
        self._numbers = 0
        self._generation = 0  # of the workers that work
        self._next: int | None = None  # the generation that a reload is starting
        self._again = False  # another reload was asked for meanwhile
        self._was_ready = False
        self._failed: set[int] = set()  # the slots whose first worker has failed

    # --- events --------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Start all workers."""
        return [self._start(slot, now) for slot in range(len(self._slots))]

    def ready(self, number: int, now: float) -> list[Action]:
        """Record that a worker has opened everything; after a reload, stop the workers before."""
        worker = self.workers.get(number)
        if worker is None or worker.phase is not Phase.STARTING:
            return []
        worker.phase, worker.since, worker.kill_at = Phase.READY, now, float("inf")
        worker.backend_up = self._was_ready = True
        self._start_failed(now)
        if self._next is None or sum(each.generation == self._next for each in self._ready()) < len(self._slots):
            return []
        self._generation, self._next = self._next, None
        for slot in self._slots:
            slot.failures, slot.restart_at = 0, None
        actions = [self._stop(each, now) for each in self._wanted() if each.generation != self._generation]
        again, self._again = self._again, False
        return actions + (self.reload(now) if again else [])

    def _start_failed(self, now: float) -> None:
        """Start the first workers that had failed, because now one is ready, so the app itself can start."""
        taken = {each.slot for each in self._wanted()}
        for number in self._failed - taken:
            slot = self._slots[number]
            slot.restart_at = now if slot.restart_at is None else slot.restart_at
        self._failed.clear()

    def backend(self, number: int, *, up: bool) -> None:
        """Record whether a worker reaches the backend."""
        if worker := self.workers.get(number):
            worker.backend_up = up

    def exited(self, number: int, how: str, now: float) -> list[Action]:
        """Record that a worker process has ended.

        Arguments:
            number: The worker.
            how: How it ended, for the log: "killed by SIGKILL".
            now: The time.
        """
        worker = self.workers.pop(number)
        if worker.phase is Phase.STOPPING or self.stopping:
            return []
        name = f"worker {worker.slot + 1}"
        if worker.generation == self._next:
            text = f"the reload is given up: the new {name} {how}"
            return [Action(Do.ERROR, text=text), *self._give_up_reload(now)]
        if not self._was_ready:
            self._failed.add(worker.slot)
            if self._keeps_failed:
                return [Action(Do.ERROR, text=f"{name} {how}; it starts when a file changes")]
            if len(self._failed) == len(self._slots):
                self.status = FAILED
                text = f"no worker could start, so the runner ends: {name} {how}"
                return [Action(Do.ERROR, text=text), *self.stop(now)]
        return [self._restart(worker, f"{name} {how}", now)]

    def _restart(self, worker: WorkerState, what: str, now: float) -> Action:
        """Let the slot of a failed worker have another one, after the backoff."""
        slot = self._slots[worker.slot]
        if worker.phase is Phase.READY and now - worker.since >= STABLE:
            slot.failures = 0
        slot.failures += 1
        delay = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(slot.failures - 1, 30))
        slot.restart_at = now + delay
        text = f"{what}; it is started again in {delay:g} s"
        if slot.failures < LOOP:
            return Action(Do.WARN, text=text)
        return Action(Do.ERROR, text=f"crash loop: {text}, after {slot.failures} failures in a row")

    def reload(self, now: float) -> list[Action]:
        """Start a worker for each slot, to take over when all are ready."""
        if self.stopping:
            return []
        if self._next is not None:
            self._again = True
            return []
        self._next = max([self._generation, *(each.generation for each in self.workers.values())]) + 1
        return [self._start(slot, now, self._next) for slot in range(len(self._slots))]

    def stop(self, now: float) -> list[Action]:
        """Stop all workers."""
        self.stopping, self._next = True, None
        return [self._stop(each, now) for each in self._wanted()]

    def kill(self) -> list[Action]:
        """Kill all workers: a stop is not to be waited for."""
        self.stopping, self.status = True, FAILED
        for each in self.workers.values():
            each.phase, each.kill_at = Phase.STOPPING, float("inf")
        return [Action(Do.KILL, each) for each in self.workers]

    def tick(self, now: float) -> list[Action]:
        """Do what is due: restarts, and kills of workers that take too long."""
        actions: list[Action] = []
        for number, slot in enumerate(self._slots):
            if slot.restart_at is not None and slot.restart_at <= now and not self.stopping:
                self.restarts += 1
                actions.append(self._start(number, now))
        for worker in self.workers.values():
            if worker.kill_at > now:
                continue
            worker.kill_at = float("inf")
            if worker.phase is Phase.STOPPING:
                self.status = FAILED
                why = f"has not ended within its grace of {self._grace:g} s"
            else:
                why = f"was not ready within {self._start_within:g} s"
            actions += [
                Action(Do.ERROR, text=f"worker {worker.slot + 1} {why}, so it is killed"),
                Action(Do.KILL, worker.number),
            ]
        return actions

    # --- state ---------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether a stop has come to its end."""
        return self.stopping and not self.workers

    @property
    def next_time(self) -> float:
        """When `tick` has something to do; inf if nothing is due."""
        restarts = [slot.restart_at for slot in self._slots if slot.restart_at is not None and not self.stopping]
        return min([*restarts, *(each.kill_at for each in self.workers.values())], default=float("inf"))

    @property
    def not_ready(self) -> str:
        """Return why the runner isn't ready; "" if it is."""
        if self.stopping:
            return "draining"
        opened = {each.slot: each for each in self._ready()}
        if missing := len(self._slots) - len(opened):
            return f"{missing} of {len(self._slots)} workers not open"
        away = sum(not each.backend_up for each in opened.values())
        return f"the backend doesn't answer {away} of {len(self._slots)} workers" if away else ""

    def _ready(self) -> list[WorkerState]:
        return [each for each in self.workers.values() if each.phase is Phase.READY]

    def _wanted(self) -> list[WorkerState]:
        return [each for each in self.workers.values() if each.phase is not Phase.STOPPING]

    # --- actions -------------------------------------------------------------------------------------------------

    def _start(self, slot: int, now: float, generation: int | None = None) -> Action:
        self._numbers += 1
        if generation is None:
            generation = self._generation
            self._slots[slot].restart_at = None
        worker = WorkerState(self._numbers, slot, generation, now, now + self._start_within)
        self.workers[worker.number] = worker
        return Action(Do.START, worker.number)

    def _stop(self, worker: WorkerState, now: float) -> Action:
        worker.phase, worker.since, worker.kill_at = Phase.STOPPING, now, now + self._grace
        return Action(Do.TERMINATE, worker.number)

    def _give_up_reload(self, now: float) -> list[Action]:
        new, self._next = self._next, None
        actions = [self._stop(each, now) for each in self._wanted() if each.generation == new]
        again, self._again = self._again, False
        return actions + (self.reload(now) if again else [])
