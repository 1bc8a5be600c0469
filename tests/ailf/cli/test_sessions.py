"""Whole sessions of commands, on memory and on Redis; ``golden/`` has what they write."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

import ailf
from tests.support.commands import check_session
from tests.support.servers import Server

SESSIONS = sorted((Path(__file__).parent / "golden").glob("*.txt"))


@attrs.frozen
class Place:
    """A backend in which something is stored, and the names that sessions use for it."""

    url: str
    kind: str
    names: dict[str, str]


@pytest.fixture(params=["memory", "redis"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A backend with a few streams, locks and limiters."""
    name = uuid.uuid4().hex
    if request.param == "memory":
        url = f"memory://{name}"
    else:
        server: Server = request.getfixturevalue("any_server")
        url = f"{server.url}?namespace={name}"
    with ailf.connect(url) as backend, answering(backend), ticking(backend):
        yield Place(url, request.param, furnish(backend))


@contextmanager
def answering(backend: ailf.Backend) -> Iterator[None]:
    """Answer requests within the block: ``sum`` adds numbers."""
    pubsub = backend.pubsub()
    pubsub.subscribe("sum", lambda message: message.reply(sum(message.data), headers={"by": "[sum]\x1b[0m"}))
    thread = pubsub.run_in_thread()
    try:
        yield
    finally:
        pubsub.stop()
        thread.join()


@contextmanager
def ticking(backend: ailf.Backend) -> Iterator[None]:
    """Publish the same message to ``ticks.a`` again and again within the block."""
    over = threading.Event()

    def publish() -> None:
        while not over.wait(0.02):
            backend.pubsub().publish("ticks.a", {"tick": "[/]\x1b[2J"}, headers={"from": "clock"})

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def furnish(backend: ailf.Backend) -> dict[str, str]:
    """Store something of each kind; return the ids that sessions need."""
    orders = backend.stream("orders")
    kitchen = orders.group("kitchen", max_deliveries=1)
    entry = orders.add({"dish": "two teas"}, headers={"table": "7"})
    orders.add("[red]soup[/red]\x1b[31m\n")
    orders.add(b"\xff\x00 not text", key="k")
    with kitchen.consumer("cook") as cook:
        for number in range(2):
            with cook.get(timeout=5) as delivery:
                if number:
                    delivery.reject("no \x1b[5msoup[/] today")
    audit = orders.group("audit", start=ailf.LATEST)
    audit.open()
    audit.pause()
    backend.stream("parts", partitions=4).add_many(range(8))
    backend.stream("odd\x1b[31m [bold]name[/bold]").add(1)
    report = backend.lock("report", ttl=3600).try_acquire()
    assert report is not None
    backend.rate_limiter("api", "10/hour").try_acquire("alice")
    budget = backend.rate_limiter("budget", root="acme", run="100/hour", team="300/hour")
    budget.try_acquire(keys={"run": "r1", "team": "search"}, cost=10)
    pool = backend.semaphore("pool", 2, ttl=3600)
    assert [pool.try_acquire(), pool.try_acquire(), pool.try_acquire()][2] is None
    (letter,) = kitchen.dead_letters.list()
    return {"$ENTRY": entry, "$LETTER": letter.id, "$FENCE": str(report.fence)}


@pytest.mark.parametrize("session", SESSIONS, ids=lambda path: path.stem)
def test_a_session(session: Path, place: Place) -> None:
    """Each command writes what the file says, whatever the backend, and ends with its exit code."""
    if session.stem.partition(".")[2] in ("", place.kind):
        check_session(session, place.url, place.names)


def test_there_are_sessions() -> None:
    """The folder was found."""
    assert len(SESSIONS) > 10
