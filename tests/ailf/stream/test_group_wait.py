"""The turns of a group's consumers in one process: none is lost, however a consumer leaves."""

import contextlib
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ailf
import ailf_memory
from ailf.stream.group_wait import GroupWait, QueuedConsumer, joined
from ailf_memory import MemoryBackend
from tests.support.interruption import Interruption

OURS = tuple(str(Path(each.__file__ or "").parent) + "/" for each in (ailf, ailf_memory))

UNTOUCHED = ("GroupWait.leave", "LeaderFollowers._wake", "LeaderFollowers.wake", "LeaderFollowers._lead")
"""Code that passes a turn on: after Ctrl-C within it a turn is lost until the consumer is used again or closed."""


@pytest.fixture
def wait() -> Any:
    """What the consumers of a group share, and three of them."""
    with MemoryBackend() as backend:
        flows = [backend.stream("s").group("g").consumer()._flow for _ in range(3)]
        shared = [joined(each) for each in flows]
        assert shared[0] is shared[1] is shared[2]
        yield shared[0], [each._queued for each in flows]


def has_turn(wait: GroupWait, consumers: list[QueuedConsumer]) -> list[bool]:
    """Return which of the consumers has the turn."""
    return [wait.turn is each for each in consumers]


def test_first_come_first_served(wait: tuple[GroupWait, list[QueuedConsumer]]) -> None:
    """A turn goes to the consumer that came first; one that has left the queue gets none."""
    turns, consumers = wait
    assert [turns.enter(each) for each in consumers] == [True, False, False]
    turns.leave(consumers[1])
    turns.leave(consumers[0])
    assert has_turn(turns, consumers) == [False, False, True]
    assert [each.event.is_set() for each in consumers] == [False, False, True]
    turns.leave(consumers[2])
    assert turns.idle()


def test_leaving_twice(wait: tuple[GroupWait, list[QueuedConsumer]]) -> None:
    """A consumer that leaves twice takes the turn from no other one."""
    turns, consumers = wait
    for each in consumers:
        turns.enter(each)
    turns.leave(consumers[0])
    turns.leave(consumers[0])
    assert has_turn(turns, consumers) == [False, True, False]


def test_a_failure_ends_the_waits_of_the_queue(wait: tuple[GroupWait, list[QueuedConsumer]]) -> None:
    """While the backend is unavailable each consumer of the queue gets the error, and tries again by itself."""
    turns, consumers = wait
    for each in consumers:
        turns.enter(each)
    error = ailf.ConnectionLostError("away")
    turns.fail(error)
    assert [each.error for each in consumers] == [None, error, error]
    turns.leave(consumers[0])
    assert turns.idle()
    assert turns.enter(consumers[2])
    assert consumers[2].error is None


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_ctrl_c_in_a_turn() -> None:
    """Wherever Ctrl-C ends a call of one consumer, another one gets the next message."""
    moment, seen = 0, set()
    while True:
        moment += 1
        with MemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", takeover=1000, lease=1000)
            with group.consumer() as first, group.consumer() as second:
                assert first.get(0) is second.get(0) is None
                with Interruption(moment, within=OURS, spared=UNTOUCHED) as at, contextlib.suppress(KeyboardInterrupt):
                    first.get(0.001)
                stream.add(1)
                delivery = second.get(1)
                assert delivery is not None, at.at
                delivery.ack()
        if not at.at:
            break
        seen.add(at.at)
    assert len(seen) > 40


def _take(got: list[Any], consumer: Any) -> None:
    got.append(consumer.get())


def test_a_stop_between_two_turns() -> None:
    """P10: a consumer that is stopped at any moment ends its call at once, and the others wait on."""
    for moment in range(40):
        with MemoryBackend() as backend:
            group = backend.stream("s").group("g", takeover=1000, lease=1000)
            with group.consumer() as first, group.consumer() as second, group.consumer() as third:
                got: list[Any] = []
                take = partial(_take, got)
                calls = [threading.Thread(target=take, args=(each,)) for each in (first, second, third)]
                for call in calls:
                    call.start()
                time.sleep(0.0002 * moment)
                second.stop()
                calls[1].join(0.5)
                assert not calls[1].is_alive()
                backend.stream("s").add_many([1, 2])
                for call in calls:
                    call.join(2)
                assert sorted(each.data for each in got if each) == [1, 2]
                for each in got:
                    if each:
                        each.ack()
