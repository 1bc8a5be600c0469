"""Each trap of streams has a test, each naive queue is caught by one, and naive queues work apart from their trap."""

import re
from pathlib import Path

from tests.support.servers import Server
from tests.traps import naive
from tests.traps.plain import Plain
from tests.traps.scene import LONG, Case, Scene, take

TRAPS = range(1, 16)

TESTS = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))


def test_every_trap_has_a_test() -> None:
    """Each trap has a test, and each test names its trap."""
    named = re.findall(r"async def test_trap_(\d\d)_\w+\(.*\n +\"\"\"([A-Z0-9, ]+), trap (\d+): ", TESTS)
    assert len(named) == TESTS.count("\nasync def test_trap_")
    assert [int(number) for number, _, text in named if number != f"{text:>02}"] == []
    assert {int(number) for number, _, _ in named} == set(TRAPS)


def test_every_naive_queue_is_caught() -> None:
    """Each naive queue is used by a test."""
    assert {kind.__name__ for kind in naive.all_naive()} == set(re.findall(r"Case\(naive\.(\w+), \"", TESTS))


def test_naive_queues_work(server: Server, namespace: str) -> None:
    """Each naive queue handles the simple case, so it is caught by its trap and not because it doesn't work."""

    async def works(scene: Scene) -> None:
        queue = scene.queue(lease=LONG)
        await queue.open()
        assert await queue.add("a", "b")
        member = queue.member("m", prefetch=2)
        for data in ("a", "b"):
            message = await take(member)
            assert (message.data, message.attempt) == (data, 1)
            assert await message.ack()
        assert await scene.pending() == 0
        await member.close()

    for number, kind in enumerate((Plain, *naive.all_naive())):
        Case(kind).play(works, server, f"{namespace}-{number}")
