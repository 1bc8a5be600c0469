"""A calendar queue gives each item out at its time, in constant time."""

import random

from ailf.engine.calendar_queue import MANY, WIDTH, CalendarQueue


def put(queue: CalendarQueue[int], item: int, at: float) -> dict[int, None]:
    """Add an item, and return its bucket."""
    bucket = queue.bucket(at)
    bucket[item] = None
    return bucket


def test_items_come_out_at_their_time() -> None:
    """Each item comes out in the step that reaches its bucket: never late, and less than a bucket early."""
    queue: CalendarQueue[int] = CalendarQueue()
    times = [random.Random(7).uniform(0, 20) for _ in range(500)]
    for item, at in enumerate(times):
        put(queue, item, at)
    out: dict[int, float] = {}
    now = 0.0
    while (now := queue.next()) < float("inf"):
        out.update(dict.fromkeys(queue.pop(now), now))
    assert sorted(out) == list(range(500))
    assert all(0 <= times[item] - at < WIDTH for item, at in out.items())
    assert queue.pop(100) == []


def test_a_time_is_not_reached_before_its_bucket() -> None:
    """An item that is put back a bucket later doesn't come out at the same time again, however the floats round."""
    queue: CalendarQueue[int] = CalendarQueue()
    for now in (random.Random(8).uniform(0, 1e9) for _ in range(1000)):
        bucket = put(queue, 1, now + WIDTH)
        assert queue.next() > now
        bucket.clear()


def test_a_removed_item_does_not_come_out() -> None:
    """Removing the only item of a bucket makes the next bucket the first."""
    queue: CalendarQueue[int] = CalendarQueue()
    first = put(queue, 1, 1.0)
    put(queue, 2, 2.0)
    del first[1]
    assert queue.next() == 2.0
    assert queue.pop(3.0) == [2]
    assert queue.next() == float("inf")


def test_empty_buckets_are_dropped() -> None:
    """Items that are removed long before their time leave no growing memory behind, and the others stay."""
    queue: CalendarQueue[int] = CalendarQueue()
    kept = put(queue, -1, 5.0)
    for item in range(10 * MANY):
        put(queue, item, 10 + item).clear()
    assert len(queue._buckets) <= 2 * MANY
    assert -1 in kept
    assert queue.pop(5.0) == [-1]
