"""Chaos runs: servers that are full, frozen or lying, foreign writes to any key, and signals at any time."""

import contextlib
import functools
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest

import ailf
from tests.support.effort import Tell
from tests.support.proxy import Proxy
from tests.support.servers import NewServer, Server

LASTING = 20.0
TIMEOUT = 1.0


@pytest.fixture
def own_server(request: pytest.FixtureRequest, new_server: NewServer) -> Server:
    """A server of each version, for one test alone."""
    return new_server(version=request.param)


@contextlib.contextmanager
def working(*loops: Callable[[], None]) -> Iterator[None]:
    """Run loops in threads of their own, which must end soon after the context."""
    threads = [threading.Thread(target=each) for each in loops]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        for each in threads:
            each.join(60)
    assert not any(each.is_alive() for each in threads)


def test_a_full_server(own_server: Server, tell: Tell) -> None:
    """A full server refuses many calls, but each acknowledged add is handled, most of them while it is full."""
    chance, stop = random.Random(5), threading.Event()
    acknowledged: set[int] = set()
    counted: Counter[str] = Counter()
    handled: set[int] = set()
    full = threading.Event()
    with ailf.connect(own_server.url) as backend, own_server.client() as admin:
        stream = backend.stream("s", retention=ailf.Retention.settled())
        group = stream.group("g")
        group.open()

        def produce() -> None:
            for number in range(1_000_000):
                if stop.is_set():
                    return
                try:
                    stream.add(number)
                    acknowledged.add(number)
                except ailf.BackendFullError:
                    counted["refused"] += 1
                    time.sleep(0.001)

        def handle(delivery: Any) -> None:
            handled.add(delivery.data)
            counted["handled while full"] += full.is_set()
            if chance.random() < 0.01:
                raise ailf.Retry(delay=0.01)

        def change() -> None:
            until = time.monotonic() + LASTING
            while time.monotonic() < until:
                full.set()
                admin.config_set("maxmemory", 1)
                time.sleep(chance.uniform(0.1, 1))
                admin.config_set("maxmemory", 0)
                full.clear()
                time.sleep(chance.uniform(0.02, 0.2))
            admin.config_set("maxmemory", 1)
            stop.set()
            while group.info().lag or group.info().pending or group.info().delayed:
                time.sleep(0.05)
            admin.config_set("maxmemory", 0)
            group.stop()

        with working(produce, change):
            group.process(handle, concurrency=4)
        tell(f"{own_server.version}, full: {len(acknowledged)} acknowledged, {len(handled)} handled, {dict(counted)}")
        assert acknowledged <= handled
        assert not group.dead_letters.list()


CALLS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "add": (lambda backend: backend.stream("s").add(1), 0.0),
    "get": (lambda backend: backend.consumer.get(timeout=1), 1.0),
    "request": (lambda backend: backend.pubsub().request("nobody", 1, timeout=1), 1.0),
    "lock": (lambda backend: backend.lock("taken").acquire(timeout=1), 1.0),
    "limiter": (lambda backend: backend.rate_limiter("r", "1/hour").acquire("k", timeout=1), 1.0),
    "try_acquire": (lambda backend: backend.rate_limiter("t", "1/hour").try_acquire("k"), 0.0),
}


AWAY: dict[str, tuple[Callable[[Server], None], Callable[[Server], None]]] = {
    "frozen": (Server.pause, Server.resume),
    "refusing": (Server.kill, Server.restart),
}
"""The ways in which a server goes away and comes back."""


@pytest.mark.parametrize("away", AWAY)
def test_a_server_that_is_away(own_server: Server, away: str, tell: Tell) -> None:
    """While a server is away each call ends within its own timeout, or `retry_for`, plus `timeout`, and works later."""
    leave, come_back = AWAY[away]
    late: dict[str, float] = {}
    chance = random.Random(6)
    retry_for = 2.0
    with ailf.connect(f"{own_server.url}?timeout={TIMEOUT}&retry_for={retry_for}") as backend:
        backend.consumer = backend.stream("empty").group("g").consumer()  # type: ignore[attr-defined]
        backend.lock("taken", ttl=3600).acquire()
        for name, (call, patience) in CALLS.items():
            for _ in range(3):
                with contextlib.suppress(ailf.AilfError):
                    call(backend)
                freezing = threading.Timer(chance.uniform(0, 0.2), leave, [own_server])
                freezing.start()
                begin = time.monotonic()
                while not freezing.finished.is_set() or time.monotonic() < begin + 0.3:
                    begin_call = time.monotonic()
                    with contextlib.suppress(ailf.AilfError):
                        call(backend)
                    most = (patience or retry_for) + TIMEOUT
                    late[name] = max(late.get(name, -most), time.monotonic() - begin_call - most)
                freezing.join()
                come_back(own_server)
        backend.consumer.close()  # type: ignore[attr-defined]
        assert backend.stream("s").add(2)
    beyond = {name: round(by, 2) for name, by in late.items()}
    tell(f"{own_server.version}, {away}: seconds beyond the deadline {beyond}")
    assert all(by < 0.5 for by in late.values())


def raw_fields(chance: random.Random) -> dict[bytes, bytes]:
    """Return fields that another program might add, many of them with the names that ailf uses."""
    names = [b"ailf.body", b"ailf.headers", b"ailf.how", b"ailf.origin", b"ailf.packed", b"ailf.once", b"ailf.reason",
             b"ailf.error", b"ailf.attempts", b"x", b"\xff", b""]  # fmt: skip
    values = [b"", b"1", b"{}", b"\xff", b'{"a": "b"}', b"0||", b"99999999999999||k", b"|0|", b"1-1", b"~1-1",
              b"x" * 9000, b"18446744073709551616-0", b"3:abc", b"nan", b"1e999||", b"\x00"]  # fmt: skip
    many = chance.choice([1, 2, 3, 4, 8, 1000, 5000]) if chance.random() < 0.05 else chance.randint(1, 5)
    return {chance.choice(names) + b"%d" % each * (many > 8): chance.choice(values) for each in range(many)}


def test_raw_entries(own_server: Server, namespace: str, tell: Tell) -> None:
    """Whatever others write to a stream, its dead letters or channels, our messages are handled; all can be purged."""
    chance = random.Random(7)
    ours, seen, heard = 3000, set(), []
    key = f"{{{namespace}:stream:s}}"
    gaps = 0
    with ailf.connect(f"{own_server.url}?namespace={namespace}") as backend, own_server.client() as admin:
        stream = backend.stream("s")
        group = stream.group("g", max_deliveries=2)
        pubsub = backend.pubsub(on_error=lambda error, message: heard.append(type(error)))
        with pubsub.listen(pattern="*") as subscription:
            foreign = 0
            for number in range(ours):
                stream.add({"ours": number})
                if chance.random() < 0.3:
                    foreign += 1
                    admin.xadd(key, raw_fields(chance))  # type: ignore[arg-type]
                    name = b"".join(chance.choice([b"a", b"\xff", b"\xc3", b"*"]) for _ in range(5))
                    admin.publish(f"{namespace}:channel:".encode() + name, chance.choice([b"\xff", b"\0AILF\1", b"1"]))
                if chance.random() < 0.02:
                    admin.xadd(f"{key}:dead:g", raw_fields(chance))  # type: ignore[arg-type]

            def handle(delivery: Any) -> bool:
                if isinstance(delivery.data, dict) and "ours" in delivery.data:
                    seen.add(delivery.data["ours"])
                    return True
                return chance.random() < 0.5

            def watch() -> None:
                until = time.monotonic() + 60
                while len(seen) < ours and time.monotonic() < until:
                    time.sleep(0.05)
                redriven = group.dead_letters.redrive_all()
                counted["redriven"] = redriven
                time.sleep(1)
                group.stop()

            counted: Counter[str] = Counter()
            with working(watch):
                group.process(handle, concurrency=4, prefetch=50)
            while (item := subscription.get(timeout=0)) is not None:
                gaps += isinstance(item, ailf.Gap)
        letters = len(group.dead_letters.list(limit=100_000))
        purged = group.dead_letters.purge_all()
        tell(
            f"{own_server.version}, raw: {foreign} foreign among {ours}, {len(seen)} of ours handled, {dict(counted)}, "
            f"{letters} dead letters, {purged} purged, {pubsub.errors} messages to the hook, {gaps} gaps"
        )
        assert len(seen) == ours
        assert letters == purged
        assert gaps == 0
        assert not group.dead_letters.list()


def lie(chance: random.Random, data: bytes) -> bytes:
    """Return a reply, at times replaced by one that no server sends."""
    if chance.random() > 0.1:
        return data
    at = chance.randrange(len(data))
    nonsense = [b"", b"\xff", b"\r\n", b"*4294967295\r\n", b"$99999999999\r\n", b"*-1\r\n", b"$-1\r\n", b":1\r\n",
                b"-ERR\r\n", b"*2\r\n:1\r\n:2\r\n", b"_\r\n", b"%1\r\n", b">3\r\n"]  # fmt: skip
    return data[:at] + chance.choice(nonsense) + data[chance.choice([at, at + 1, len(data)]) :]


def test_a_lying_server(own_server: Server, tell: Tell) -> None:
    """Whatever a server replies, each call ends in time with a result or an ailf error, and works afterwards."""
    chance = random.Random(9)
    ended: Counter[str] = Counter()
    slowest = 0.0
    with Proxy(own_server.port) as proxy, ailf.connect(f"{proxy.url}?timeout={TIMEOUT}&retry_for=0") as backend:
        stream, lock, limiter = backend.stream("s"), backend.lock("l", ttl=5), backend.rate_limiter("r", "1000000/day")
        group, pubsub = stream.group("g", takeover=1), backend.pubsub()
        group.open()
        calls: dict[str, Callable[[], Any]] = {
            "add": lambda: stream.add(1),
            "add_many": lambda: stream.add_many([1, 2]),
            "read": lambda: stream.read(limit=5),
            "info": group.info,
            "letters": group.dead_letters.list,
            "publish": lambda: pubsub.publish("c", 1),
            "lock": lock.try_acquire,
            "inspect": lock.inspect,
            "decide": lambda: limiter.try_acquire("k"),
            "consume": lambda: consume(group),
        }
        proxy.forge = functools.partial(lie, chance)
        until = time.monotonic() + LASTING
        while time.monotonic() < until:
            name = chance.choice(list(calls))
            begin = time.monotonic()
            try:
                calls[name]()
                ended["answered"] += 1
            except ailf.AilfError as error:
                ended[type(error).__name__] += 1
            slowest = max(slowest, time.monotonic() - begin)
        proxy.forge = bytes
        proxy.cut()
        time.sleep(0.1)
        with contextlib.suppress(ailf.BackendError):
            stream.add(1)
        assert stream.add(2)
        backend.lock("another").acquire(timeout=10).release()
    tell(f"{own_server.version}, lying: {dict(ended)}, slowest {slowest:.1f} s")
    assert ended["ProtocolError"]


def consume(group: Any) -> None:
    """Take a message and ack it."""
    with group.consumer() as consumer:
        if (delivery := consumer.get(0)) is not None:
            delivery.ack()


class StruckError(Exception):
    """The error that a signal handler raises."""


class Strikes:
    """Sends the main thread signals at random times. Each raises `StruckError` in `call`, and nothing elsewhere."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._strike, args=(threading.main_thread().ident,))
        self._armed = False

    def call(self, function: Callable[[], None]) -> bool:
        """Call a function; return whether it was interrupted."""
        try:
            self._armed = True
            function()
            self._armed = False
        except StruckError:
            return True
        return False

    def _interrupt(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            raise StruckError

    def _strike(self, main: int) -> None:
        while not self._stop.wait(self._chance.uniform(0, 0.01)):
            signal.pthread_kill(main, signal.SIGUSR1)

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGUSR1, self._interrupt)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._armed = False
        self._stop.set()
        self._thread.join()
        signal.signal(signal.SIGUSR1, self._before)


def test_interrupts(own_server: Server, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler that raises in a blocking call, at any time, leaves nothing behind and mixes up no replies."""
    monkeypatch.setattr(sys, "unraisablehook", lambda *_: None)  # an error in a finalizer can't be caught
    counted: Counter[str] = Counter()
    with ailf.connect(own_server.url) as backend:
        stream, lock, limiter = backend.stream("s"), backend.lock("l", ttl=2), backend.rate_limiter("r", "1000000/day")
        group = stream.group("g", takeover=1)

        def work() -> None:
            ids = [stream.add(number) for number in range(3)]
            assert stream.read(ids[0], ids[-1])[0].id == ids[0]
            with lock:
                limiter.try_acquire("k")
            with group.consumer() as consumer:
                for _ in range(3):
                    if (delivery := consumer.get(0)) is not None:
                        delivery.ack()

        with Strikes(random.Random(8)) as strikes:
            until = time.monotonic() + LASTING
            while time.monotonic() < until:
                counted["interrupted" if strikes.call(work) else "rounds"] += 1
        with lock.hold(timeout=10):
            pass
        seen = 0
        with group.consumer(prefetch=100) as consumer:
            while (delivery := consumer.get(3)) is not None:  # longer than the takeover
                delivery.ack()
                seen += 1
        info = group.info()
        tell(f"{own_server.version}, interrupts: {dict(counted)}, {seen} left to handle, {info.pending} pending")
        assert (info.pending, info.lag) == (0, 0)
        assert counted["interrupted"] > 10
