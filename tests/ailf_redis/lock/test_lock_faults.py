"""Locks whose holders are stopped, killed or cancelled: fences rise, and a fenced store loses no update."""

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import ailf
from tests.support.servers import Server

PROGRAM = Path(__file__).with_name("lock_program.py")
HOLDERS = 4
SECONDS = 8.0


def faults(taken: Sequence[int], final: int) -> list[str]:
    """Return the faults in the fences of the writes that a store took, in order, and in the final counter."""
    reports = []
    if list(taken) != sorted(taken):
        reports.append("the store took a write with a lower fence after one with a higher")
    if len(set(taken)) != len(taken):
        reports.append("two grants had the same fence")
    if final != len(taken):
        reports.append(f"{len(taken)} writes were taken and the counter is {final}: updates were lost")
    return reports


@pytest.mark.parametrize(
    ("taken", "final", "count"),
    [([1, 2, 5], 3, 0), ([1, 3], 2, 0), ([1, 3, 2], 3, 1), ([1, 1], 2, 1), ([1, 2, 3], 2, 1)],
)
def test_the_check_finds_every_fault(taken: list[int], final: int, count: int) -> None:
    """The check finds a fence that falls or repeats, and an update that is lost."""
    assert len(faults(taken, final)) == count


def test_stopped_and_killed_holders(any_server: Server, namespace: str, tmp_path: Path) -> None:
    """L1, L2, L8: if holders are stopped for longer than their lease and others killed, no update is lost."""
    url, report = f"{any_server.url}?namespace={namespace}", tmp_path / "report"
    chance = random.Random(11)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(PROGRAM), url, namespace, str(report)])

    holders = [start() for _ in range(HOLDERS)]
    stopped = killed = 0
    try:
        until = time.monotonic() + 20
        while not report.exists() or not report.read_bytes():
            assert time.monotonic() < until, "no holder has begun"
            time.sleep(0.05)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            number = chance.randrange(HOLDERS)
            if chance.random() < 0.7:
                holders[number].send_signal(signal.SIGSTOP)
                time.sleep(0.7)  # its lease ends meanwhile, also in the middle of its section
                holders[number].send_signal(signal.SIGCONT)
                stopped += 1
            else:
                holders[number].kill()
                holders[number].wait(10)
                holders[number] = start()
                killed += 1
            time.sleep(0.1)
    finally:
        for each in holders:
            each.kill()
            each.wait(10)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    sections = [line for line in lines if "fence" in line]
    with any_server.client() as raw:
        final = int(raw.hget(f"{namespace}:store", "value") or 0)
        taken = [int(fence) for fence in raw.lrange(f"{namespace}:store:taken", 0, -1)]
        raw.delete(f"{namespace}:store", f"{namespace}:store:taken")
    assert faults(taken, final) == []
    assert {each["fence"] for each in sections if each["taken"]} <= {*taken}
    assert len(sections) > 50
    assert stopped
    assert killed
    for each in sections:
        if not each["taken"]:
            assert each["lost"], "a holder whose write was refused did not know that its lease was lost"


def test_cancelled_anywhere(any_server: Server, namespace: str) -> None:
    """L10, trap 21: `acquire`, cancelled 500 times at any point, leaves no grant and no waiter."""

    async def main() -> None:
        url = f"{any_server.url}?namespace={namespace}"
        async with ailf.connect_async(url) as backend, ailf.connect_async(url) as other:
            for fair in (False, True):
                name = f"lock {fair}"
                lock, rival = backend.lock(name, fair=fair, ttl=20), other.lock(name, fair=fair, ttl=20)
                for number in range(250):
                    held = await rival.try_acquire() if number % 2 else None
                    trying = asyncio.ensure_future(lock.acquire(timeout=10))
                    for _ in range(number % 60):
                        await asyncio.sleep(0)
                    if held is not None and number % 4 == 1:
                        await held.release()
                    trying.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await (await trying).release()
                    if held is not None:
                        await held.release()
                    info = await lock.inspect()
                    if info.holders or info.waiting:  # they are removed at most one round trip later
                        await asyncio.sleep(0.05)
                        info = await lock.inspect()
                    assert info == ailf.LockInfo(), number
        with any_server.client() as raw:
            keys = {key: raw.pttl(key) for key in raw.scan_iter(f"*{namespace}*")}
        assert all(ttl > 0 for ttl in keys.values()), keys
        assert all(key.endswith(b":fence") for key in keys), "keys other than the last fences, which expire"

    asyncio.run(main())
