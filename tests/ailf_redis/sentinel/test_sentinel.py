"""A client of Sentinels: it continues with the new master when the master has died or was replaced."""

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import asyncio as aredis
from redis.asyncio import sentinel as asentinel
from redis.sentinel import Sentinel

import ailf
from ailf_redis import AsyncRedisBackend, RedisBackend
from ailf_redis.sentinel import master
from ailf_redis.sentinel import subscriptions as sentinel_subscriptions
from ailf_redis.sentinel.endpoint import MasterState, new_master
from tests.ailf_redis.test_acl import published
from tests.support import binaries
from tests.support.clusters import Watch, until
from tests.support.servers import Server

OPTIONS = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}


def newest() -> tuple[Path, str]:
    """Return the newest server's binary and version."""
    version, binary = next(reversed(binaries.found().items()))
    return binary, version


@pytest.fixture
def watch() -> Iterator[Watch]:
    """A master, a replica and a Sentinel of the newest server."""
    with Watch(*newest()) as started:
        yield started


def blocking_client(watch: Watch, **options: Any) -> redis.Redis:
    """Return a blocking client of the master."""
    return Sentinel(watch.addresses(), **OPTIONS).master_for(watch.SERVICE, decode_responses=True, **options)


def asyncio_client(watch: Watch, **options: Any) -> aredis.Redis:
    """Return an asyncio client of the master."""
    return asentinel.Sentinel(watch.addresses(), **OPTIONS).master_for(watch.SERVICE, decode_responses=True, **options)


def calls(server: Server, command: str) -> int:
    """Return how often a server was sent a command."""
    with server.client() as admin:
        return int(admin.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def subscriptions(sentinel: Server) -> list[int]:
    """Return the ids of the connections that are subscribed at a Sentinel; ids of later ones are higher."""
    with sentinel.client() as admin:
        return [int(each["id"]) for each in admin.client_list() if each["sub"] != "0"]


def subscribers(sentinel: Server) -> int:
    """Return how many connections are subscribed at a Sentinel."""
    return len(subscriptions(sentinel))


async def until_async(what: str, condition: Callable[[], Awaitable[Any]]) -> None:
    """Wait for a condition, a second at most."""
    deadline = time.monotonic() + 1
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def lose_master(watch: Watch) -> None:
    """Kill the master when its replica has received everything; wait until the replica is the master."""
    master = watch.master
    with master.client() as raw:
        raw.set("last", 1)  # WAIT waits for this connection's writes, and so for all earlier ones
        assert raw.wait(1, 5000) == 1
    master.kill()
    until("no failover", lambda: watch.master is not master)


def test_a_failover_on_threads(watch: Watch) -> None:
    """Calls, leases and subscriptions survive a failover; a gap is announced, and no message that was added is lost."""
    with RedisBackend.from_client(blocking_client(watch), retry_for=10) as backend:
        stream, pubsub = backend.stream("s"), backend.pubsub()
        with pubsub.listen("c") as events, backend.lock("l", ttl=6).hold() as lease:
            stream.add(1)
            failing = threading.Thread(target=lose_master, args=(watch,))
            failing.start()
            failing.join(20)
            stream.add(2)
            assert isinstance(events.get(10), ailf.Gap)
            pubsub.publish("c", "after")
            assert events.get(10) == ailf.Message("c", "after")
            assert not lease.lost
        assert [each.data for each in stream.read()] == [1, 2]
        with stream.group("g").consumer() as consumer:
            delivery = consumer.get(5)
            assert delivery is not None
            delivery.ack()


def test_a_failover_on_asyncio(watch: Watch) -> None:
    """The same on asyncio, where a thread renews leases, and uses the asyncio client's Sentinels too."""

    async def main() -> None:
        async with AsyncRedisBackend.from_client(asyncio_client(watch), retry_for=10) as backend:
            stream, pubsub = backend.stream("s"), backend.pubsub()
            async with pubsub.listen("c") as events, backend.lock("l", ttl=6).hold() as lease:
                await stream.add(1)
                await asyncio.to_thread(lose_master, watch)
                await stream.add(2)
                assert isinstance(await events.get(10), ailf.Gap)
                await pubsub.publish("c", "after")
                assert await events.get(10) == ailf.AsyncMessage("c", "after")
                await lease.extend()
                assert not lease.lost
            assert [each.data for each in await stream.read()] == [1, 2]

    asyncio.run(main())


def test_both_flavours_of_a_client_of_sentinels(watch: Watch) -> None:
    """The other flavour of a backend finds the master through the same Sentinels, from either kind of client."""

    async def main() -> None:
        with RedisBackend.from_client(blocking_client(watch)) as backend:
            backend.stream("s").add(1)
            async with backend.to_async() as other:
                assert len(await other.stream("s").read()) == 1
        async with AsyncRedisBackend.from_client(asyncio_client(watch)) as opened:
            with opened.to_blocking() as blocking:
                assert len(blocking.stream("s").read()) == 1

    asyncio.run(main())


def test_a_master_that_becomes_a_replica(watch: Watch) -> None:
    """A call to a demoted master goes to the new one instead of failing with a read-only error."""
    with RedisBackend.from_client(blocking_client(watch), retry_for=10) as backend:
        stream = backend.stream("s")
        stream.add(1)
        demoted = watch.master
        other = next(each for each in watch.servers if each is not demoted)
        with other.client() as new, demoted.client() as old, watch.sentinel.client() as sentinel:
            old.set("last", 1)
            assert old.wait(1, 5000) == 1
            sentinel.execute_command("SENTINEL", "REMOVE", watch.SERVICE)  # else it would close the old connections
            new.execute_command("REPLICAOF", "NO", "ONE")
            old.execute_command("REPLICAOF", "127.0.0.1", other.port)
            sentinel.execute_command("SENTINEL", "MONITOR", watch.SERVICE, "127.0.0.1", other.port, 1)
        stream.add(2)
        stream.add_many([3, 4])
        assert [each.data for each in stream.read()] == [1, 2, 3, 4]


def test_replicas_are_refused() -> None:
    """from_client refuses a client of replicas, as replicas can't write."""
    client = Sentinel([("127.0.0.1", 1)]).slave_for("watched")
    with pytest.raises(ailf.InvalidArgumentError, match="replicas can't write"):
        RedisBackend.from_client(client)


def test_no_sentinel_answers() -> None:
    """If no Sentinel replies, calls fail at once and say so."""
    client = Sentinel([("127.0.0.1", 1)], **OPTIONS).master_for("watched")
    with RedisBackend.from_client(client, retry_for=0) as backend:
        with pytest.raises(ailf.ConnectionLostError, match="no Sentinel knows a healthy master 'watched'"):
            backend.stream("s").add(1)
        with pytest.raises(ailf.ConnectionLostError, match=r"sentinel://127\.0\.0\.1:1/watched"):
            backend.ping()


# --- the former master lives --------------------------------------------------------------------------------------


def test_no_call_uses_a_former_master(watch: Watch) -> None:
    """After ``+switch-master`` no call reaches the former master, which is alive and would take writes in vain."""
    with RedisBackend.from_client(blocking_client(watch), retry_for=10) as backend:
        stream, pubsub = backend.stream("s"), backend.pubsub()
        with pubsub.listen("c") as events, stream.group("g").consumer() as consumer:
            assert consumer.get(0) is None
            stream.add(1)
            former = watch.fail_over()
            before = calls(former, "xadd"), calls(former, "evalsha"), calls(former, "publish")
            for number in range(2, 12):
                stream.add(number)
            assert isinstance(events.get(5), ailf.Gap)
            pubsub.publish("c", "after")
            assert events.get(5) == ailf.Message("c", "after")
            got = {delivery.data for _ in range(10) if (delivery := consumer.get(5)) is not None}
            assert got >= {*range(2, 11)}
            assert before == (calls(former, "xadd"), calls(former, "evalsha"), calls(former, "publish"))
        assert [each.data for each in stream.read()][-10:] == [*range(2, 12)]


def test_no_call_uses_a_former_master_on_asyncio(watch: Watch) -> None:
    """The same on asyncio, as soon as the message has been read."""

    async def main() -> None:
        async with AsyncRedisBackend.from_client(asyncio_client(watch), retry_for=10) as backend:
            stream, pubsub = backend.stream("s"), backend.pubsub()
            async with pubsub.listen("c") as events:
                await asyncio.gather(*(stream.add(number) for number in range(5)))
                former = await asyncio.to_thread(watch.fail_over)
                await asyncio.sleep(0.05)  # the message has arrived at the socket, and the loop has to read it
                before = calls(former, "xadd")
                await asyncio.gather(*(stream.add(number) for number in range(5, 15)))
                assert calls(former, "xadd") == before
                assert isinstance(await events.get(5), ailf.Gap)
                await pubsub.publish("c", "after")
                assert await events.get(5) == ailf.AsyncMessage("c", "after")
                assert calls(former, "publish") == 0
            assert {each.data for each in await stream.read()} >= {*range(5, 15)}

    asyncio.run(main())


def test_a_listener_leaves_a_former_master(watch: Watch) -> None:
    """A thread that waits for messages reads the Sentinels' messages itself, without any calls."""
    with RedisBackend.from_client(blocking_client(watch)) as backend, backend.pubsub().listen("c") as events:
        watch.fail_over()
        assert isinstance(events.get(5), ailf.Gap)
        with RedisBackend.from_client(blocking_client(watch)) as other:
            other.pubsub().publish("c", "after")
        assert events.get(5) == ailf.Message("c", "after")


def test_a_reply_that_arrives_with_the_change(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply of a former master is not used, even if it arrived before the change was noticed."""
    released, calling = threading.Event(), threading.Event()

    class LatePoller(sentinel_subscriptions.Poller):
        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            if calling.is_set():
                assert released.wait(10)
            return super().poll(milliseconds)

    def add() -> None:
        try:
            stream.add("lost")
        except ailf.BackendError as error:
            errors.append(error)

    errors: list[Exception] = []
    monkeypatch.setattr(master, "Poller", LatePoller)
    with RedisBackend.from_client(blocking_client(watch), timeout=60) as backend:
        stream = backend.stream("s")
        stream.add(1)
        former, before = watch.master, calls(watch.master, "xadd")
        calling.set()
        adding = threading.Thread(target=add)
        adding.start()
        until("it was not added", lambda: calls(former, "xadd") > before)
        watch.fail_over()
        released.set()
        adding.join(10)
    assert [type(each) for each in errors] == [ailf.OutcomeUnknownError]
    assert "the master has changed" in str(errors[0])


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_a_call_under_way_on_a_former_master(watch: Watch, flavour: str) -> None:
    """A call that waits for a frozen master's reply ends with the failover, long before its deadline."""
    errors: list[BaseException] = []

    def blocking() -> None:
        with RedisBackend.from_client(blocking_client(watch), timeout=60) as backend:
            backend.stream("s").add(1)
            watch.master.pause()
            paused.set()
            with pytest.raises(ailf.OutcomeUnknownError) as caught:
                backend.stream("s").add(2)
            errors.append(caught.value)
            backend.stream("s").add(3)

    async def on_asyncio() -> None:
        async with AsyncRedisBackend.from_client(asyncio_client(watch), timeout=60) as backend:
            await backend.stream("s").add(1)
            watch.master.pause()
            paused.set()
            with pytest.raises(ailf.OutcomeUnknownError) as caught:
                await backend.stream("s").add(2)
            errors.append(caught.value)
            await backend.stream("s").add(3)

    former, paused = watch.master, threading.Event()
    caller = threading.Thread(target=blocking if flavour == "blocking" else lambda: asyncio.run(on_asyncio()))
    caller.start()
    assert paused.wait(10)
    caller.join(20)
    former.resume()
    assert len(errors) == 1
    assert not caller.is_alive()


# --- Sentinels that die -------------------------------------------------------------------------------------------


def test_the_next_sentinel_is_believed() -> None:
    """The backend subscribes to every Sentinel, so the messages of one are enough after another has died."""
    with (
        Watch(*newest(), sentinels=2) as watch,
        RedisBackend.from_client(blocking_client(watch), retry_for=10) as backend,
    ):
        stream = backend.stream("s")
        stream.add(1)
        assert [subscribers(each) for each in watch.sentinels] == [1, 1]
        watch.sentinels[0].kill()
        stream.add(2)
        former = watch.fail_over()
        before = calls(former, "xadd")
        stream.add(3)
        assert calls(former, "xadd") == before
        assert stream.read()[-1].data == 3


def test_sentinels_that_lag_behind() -> None:
    """After the first Sentinel's message the former master isn't used, although others still name it for a second."""
    with (
        Watch(*newest(), replicas=2, sentinels=3) as watch,
        RedisBackend.from_client(blocking_client(watch), retry_for=10) as backend,
    ):
        stream = backend.stream("s")
        stream.add(1)
        former = watch.fail_over()
        before = calls(former, "xadd")
        until("they don't agree", lambda: bool(stream.add(2)) and watch.agree())
        stream.add(3)
        assert calls(former, "xadd") == before


def test_a_change_while_no_sentinel_runs(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no Sentinel runs, the known master is used; a change meanwhile is noticed when a Sentinel is back."""
    monkeypatch.setattr(sentinel_subscriptions, "PAUSES", (0.0,))
    with RedisBackend.from_client(blocking_client(watch), retry_for=10) as backend:
        stream = backend.stream("s")
        stream.add(1)
        former, other = watch.servers
        with other.client() as raw:
            raw.execute_command("REPLICAOF", "NO", "ONE")
        watch.sentinel.kill()
        stream.add(2)
        watch.sentinels[0].restart()
        with watch.sentinel.client() as raw:
            raw.execute_command("SENTINEL", "REMOVE", watch.SERVICE)
        watch.monitor(watch.sentinel, other)
        until("the former master is used", lambda: bool(stream.add(3)) and calls(other, "xadd"))
        before = calls(former, "xadd")
        stream.add(4)
        assert calls(former, "xadd") == before


def test_a_silent_sentinel(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription to a Sentinel that doesn't reply to a PING is renewed when it replies again; no call fails."""
    monkeypatch.setattr(sentinel_subscriptions, "QUIET", 0.0)
    monkeypatch.setattr(sentinel_subscriptions, "PATIENCE", 0.1)
    monkeypatch.setattr(sentinel_subscriptions, "PAUSES", (0.0,))
    with RedisBackend.from_client(blocking_client(watch)) as backend:
        stream = backend.stream("s")
        stream.add(1)
        before = subscriptions(watch.sentinel)
        watch.sentinel.pause()
        lost = time.monotonic() + 0.5
        until("the time did not pass", lambda: bool(stream.add(2)) and time.monotonic() > lost)
        watch.sentinel.resume()
        until("not subscribed again", lambda: bool(stream.add(3)) and subscriptions(watch.sentinel) > before)


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_silent_sentinels_leave_time_for_the_next_one(flavour: str) -> None:
    """B10: if two of three Sentinels are silent, the third one's reply comes within the time for a connection."""
    with Watch(*newest(), sentinels=3) as watch:
        for each in watch.sentinels[:2]:
            each.pause()

        async def on_asyncio() -> None:
            async with AsyncRedisBackend.from_client(asyncio_client(watch), retry_for=0) as backend:
                await backend.stream("s").add(1)

        begin = time.monotonic()
        if flavour == "asyncio":
            asyncio.run(on_asyncio())
        else:
            with RedisBackend.from_client(blocking_client(watch), retry_for=0) as backend:
                backend.stream("s").add(1)
        assert time.monotonic() - begin < 2.0, "connecting may take a second"
        for each in watch.sentinels[:2]:
            each.resume()


def test_idle_connections_ask_for_the_role(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was idle for long is checked by ROLE, and sends no call to a replica."""
    with RedisBackend.from_client(blocking_client(watch), retry_for=10) as backend:
        stream = backend.stream("s")
        stream.add(1)
        former, other = watch.servers
        before = calls(former, "role")
        stream.add(2)
        assert calls(former, "role") == before
        with watch.sentinel.client() as sentinel:  # so that no change is published
            sentinel.execute_command("SENTINEL", "REMOVE", watch.SERVICE)
        with other.client() as new, former.client() as old:
            new.execute_command("REPLICAOF", "NO", "ONE")
            new.config_resetstat()
            old.config_resetstat()
            old.execute_command("REPLICAOF", "127.0.0.1", other.port)
        watch.monitor(watch.sentinel, other)
        monkeypatch.setattr(master, "QUIET", 0.0)
        stream.add(3)
        assert calls(former, "role") >= 1
        with former.client() as old:
            assert old.info("commandstats").get("cmdstat_xadd", {}).get("rejected_calls", 0) == 0
        assert calls(other, "xadd") == 1


# --- the end ------------------------------------------------------------------------------------------------------


def test_nothing_is_left_at_the_sentinels(watch: Watch) -> None:
    """B3, B9: closing the backend closes its subscriptions, and so does dropping it."""
    with RedisBackend.from_client(blocking_client(watch)) as backend:
        backend.stream("s").add(1)
        assert subscribers(watch.sentinel) == 1
    until("a subscription is left", lambda: subscribers(watch.sentinel) == 0)
    dropped = RedisBackend.from_client(blocking_client(watch))
    dropped.stream("s").add(1)
    with pytest.warns(ResourceWarning, match="was dropped"):  # noqa: PT031 - either statement may warn
        del dropped
        gc.collect()
    until("a subscription is left", lambda: subscribers(watch.sentinel) == 0)


def test_nothing_is_left_on_asyncio(watch: Watch) -> None:
    """The same on asyncio; in the next event loop a backend subscribes again, and closes the former subscription."""
    backend = AsyncRedisBackend.from_client(asyncio_client(watch))
    before: list[int] = []

    async def add() -> None:
        await backend.stream("s").add(1)
        assert backend.engine.home is asyncio.get_running_loop()

        async def subscribed() -> bool:
            await backend.stream("s").add(2)
            return [each > max(before, default=0) for each in subscriptions(watch.sentinel)] == [True]

        await until_async("no subscription of its own", subscribed)
        before.extend(subscriptions(watch.sentinel))

    async def close() -> None:
        await add()
        await backend.aclose()

    asyncio.run(add())
    asyncio.run(close())
    until("a subscription is left", lambda: subscribers(watch.sentinel) == 0)


def test_closing_as_a_call_begins(watch: Watch) -> None:
    """B3: closing takes no second if the task that subscribes is cancelled before its first step."""

    async def close_after(steps: int) -> float:
        backend = AsyncRedisBackend.from_client(asyncio_client(watch))
        call = asyncio.ensure_future(backend.ping())
        for _ in range(steps):
            await asyncio.sleep(0)
        begin = time.monotonic()
        await backend.aclose()
        taken = time.monotonic() - begin
        await asyncio.gather(call, return_exceptions=True)
        return taken

    assert max(asyncio.run(close_after(steps)) for steps in range(5)) < 0.8 * sentinel_subscriptions.PATIENCE


def test_a_forked_child_subscribes_itself(watch: Watch) -> None:
    """B4: a forked child has a subscription of its own, and the parent's goes on."""
    with RedisBackend.from_client(blocking_client(watch)) as backend:
        backend.stream("s").add(1)
        sentinel = watch.sentinel
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # in case it hangs
            with contextlib.suppress(BaseException):
                backend.stream("s").add(2)
                assert subscribers(sentinel) == 2
                backend.close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert subscribers(watch.sentinel) == 1
        former = watch.fail_over()
        before = calls(former, "xadd")
        backend.stream("s").add(3)
        assert calls(former, "xadd") == before


@pytest.mark.parametrize("lacks", ["", "+role"])
def test_rights_with_sentinels(watch: Watch, lacks: str) -> None:
    """The documented ACL rights are enough with Sentinels; without ROLE the error names it."""
    rules = [each for each in published(newest()[1]) if each != lacks]
    for server in watch.servers:
        with server.client() as admin:
            admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">pw", *rules)
    client = blocking_client(watch, username="agent", password="pw")
    with RedisBackend.from_client(client) as backend:
        if lacks:
            with pytest.raises(ailf.PermissionDeniedError, match="'role'"):
                backend.stream("s").add(1)
        else:
            backend.stream("s").add(1)


# --- pure ---------------------------------------------------------------------------------------------------------


def replies(port: int, epoch: int, flags: bytes = b"master", *, promoted: int = 0) -> tuple[Any, Any]:
    """Return a Sentinel's replies: the state of a master, and its address, which is `promoted` after a failover."""
    fields = {b"ip": b"h", b"port": b"%d" % port, b"flags": flags, b"config-epoch": b"%d" % epoch}
    master = [each for pair in {**fields, b"num-other-sentinels": b"0"}.items() for each in pair]
    return master, [b"h", b"%d" % (promoted or port)]


def test_reading_sentinels() -> None:
    """Replies and messages of Sentinels are read; any nonsense is read as None."""
    assert MasterState.of(*replies(1, 2)) == MasterState(("h", 1), 2, 0, healthy=True)
    for flags in (b"master,s_down", b"master,o_down", b"master,disconnected", b"slave"):
        assert MasterState.of(*replies(1, 2, flags)) == MasterState(("h", 1), 2, 0, healthy=False)
        assert MasterState.of(*replies(1, 2, flags, promoted=3)) == MasterState(("h", 3), 2, 0, healthy=True)
    master, address = replies(1, 2)
    for nonsense in (None, 1, b"x", [], [b"ip"], [[], 1], redis.ResponseError("no such master"), master[2:]):
        assert MasterState.of(nonsense, address) is None
    for nonsense in (None, 1, b"x", [], [b"h"], [b"h", b"x"], [1, 1], redis.ResponseError("no such master")):
        assert MasterState.of(master, nonsense) is None
    message = [b"message", b"+switch-master", b"a b 1.1.1.1 1 ::2 2"]
    assert new_master(message, "a b") == ("::2", 2)
    assert new_master(message, "b") is None
    for nonsense in (
        None,
        1,
        [],
        [b"pong", b""],
        [b"message", b"+sdown", message[2]],
        [*message[:2], b"\xff"],
        [*message[:2], 1],
    ):
        assert new_master(nonsense, "a b") is None


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([replies(1, 4), replies(2, 5)], 1),  # the first that is not older than the known epoch
        ([replies(1, 3), replies(2, 5)], 2),  # the first one lags behind
        ([replies(1, 3), replies(2, 5, b"master,disconnected")], None),  # and the newer one doesn't reach the master
        (
            [replies(2, 4, b"master,disconnected"), replies(1, 4, b"master,s_down", promoted=2)],
            2,
        ),  # the second one leads a failover
        ([replies(1, 2), replies(1, 3)], 1),  # the Sentinels were reset
        ([replies(1, 4, b"master,s_down"), replies(1, 4)], 1),
        ([], None),
    ],
)
def test_which_sentinel_is_believed(
    reports: list[tuple[Any, Any]], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest configuration decides; if its Sentinel has not reached the new master, no Sentinel is believed."""
    remaining = iter(reports)

    async def ask(*_: object) -> MasterState | None:
        return MasterState.of(*next(remaining))

    monkeypatch.setattr(master, "ask", ask)
    client = Sentinel([("127.0.0.1", 1)] * len(reports)).master_for("watched")
    with RedisBackend.from_client(client) as backend:
        tracker: Any = backend.engine.driver.executor._tracker  # type: ignore[attr-defined]  # this driver's
        tracker._epoch = 4
        if expected is None:
            with pytest.raises(redis.ConnectionError, match="no Sentinel knows a healthy master"):
                ailf.runtime.run(tracker._address(float("inf")))
        else:
            assert ailf.runtime.run(tracker._address(float("inf"))) == ("h", expected)
