"""The ACL rules that the guide publishes are enough for everything, on every server."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import ailf
import ailf_redis
from tests.support.servers import NewServer

LUA = Path(ailf_redis.__file__).parent / "lua"
GUIDE = Path(__file__).parents[2] / "docs" / "source" / "guides" / "redis.md"


def published(version: str) -> list[str]:
    """Return the rules of the guide, for one version of the server."""
    rules = re.search(r"```text\n(resetkeys.*?)```", GUIDE.read_text(), re.DOTALL)
    assert rules
    words = rules[1].split()
    if version == "6.2":  # it has no rules for subcommands of these, and no sharded channels
        words = [each for each in words if each not in ("+spublish", "+ssubscribe", "+sunsubscribe")]
        words = [re.sub(r"\+(xgroup|xinfo|pubsub)\|.*", r"+\1", word) for word in words]
    return words


def test_published_rights_name_what_scripts_call() -> None:
    """Each command that a script calls is among the rules, with its subcommand if the rules name subcommands."""
    rules = published("8.2")
    for script in sorted(LUA.rglob("*.lua")):
        code = re.sub(r"--.*", "", script.read_text())
        for command, sub in re.findall(r"redis\.p?call\('(\w+)'(?:, '([A-Z]+)')?", code):
            name = f"+{command}".lower()
            assert name in rules or f"{name}|{sub}".lower() in rules, f"{script.name}: {command} {sub}"


def test_published_rights_are_enough(redis_versions: list[str], new_server: NewServer) -> None:
    """Every interface, every way to settle, dead letters and patterns work for a user with only these rights."""
    for version in redis_versions:
        server = new_server(version=version)
        with server.client() as admin:
            rules = [*published(version), "&ailf:channel:c*"]
            admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">pw", *rules)
        with ailf.connect(f"redis://agent:pw@127.0.0.1:{server.port}/0") as backend:
            use(backend)
            use_locks(backend)
            use_limiters(backend)
            use_requests(backend, sharded=version != "6.2")
            use_listings(backend, sharded=version != "6.2")


def test_a_waiter_at_a_channel_without_rights(redis_versions: list[str], new_server: NewServer) -> None:
    """L11: if another program's waiter names a channel that is not ours, a release works and wakes the next waiter."""
    for version in redis_versions:
        server = new_server(version=version)
        with server.client() as admin:
            admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">pw", *published(version))
            with ailf.connect(f"redis://agent:pw@127.0.0.1:{server.port}/0") as backend:
                for position in (1, 2**52):  # before and behind a waiter of ours
                    lease, got = backend.lock("l").acquire(), []
                    admin.zadd("{ailf:lock:l}:queue", {"foreign": position})
                    admin.hset("{ailf:lock:l}:waiters", "foreign", f"{10**13} {10**13} 0 elsewhere")
                    waiting = threading.Thread(target=lambda: got.append(backend.lock("l").acquire(timeout=5)))  # noqa: B023
                    waiting.start()
                    until = time.monotonic() + 5
                    while admin.zcard("{ailf:lock:l}:queue") < 2:
                        assert time.monotonic() < until
                    began = time.monotonic()
                    lease.release()
                    waiting.join()
                    assert time.monotonic() - began < 1
                    got[0].release()
                    admin.delete("{ailf:lock:l}:queue", "{ailf:lock:l}:waiters")


def use(backend: ailf.Backend) -> None:
    """Use streams and pub/sub once."""
    stream, pubsub = backend.stream("s"), backend.pubsub()
    stream.add_many([1, 2, 3, 4, 5], headers={"h": "v"})
    group = stream.group("g", lease=0.2, max_deliveries=1)
    with group.consumer() as consumer, pubsub.listen("c", pattern="c*") as subscription:
        for settle in (
            lambda each: each.ack(),
            lambda each: each.nack(0),
            lambda each: each.reject("no"),
            lambda each: each.extend(0.001),
        ):
            delivery = consumer.get(5)
            assert delivery is not None
            settle(delivery)
        pubsub.publish("c", 1)
        assert subscription.get(5) == ailf.Message("c", 1)
        last = consumer.get(5)
        assert last is not None
        last.release()
        consumer.get(0.1)
    assert len(group.dead_letters.list()) >= 2
    assert len(stream.read()) == 5
    operate(stream, group)
    next(stream.tail(ailf.EARLIEST))
    stream.delete()
    parts = backend.stream("parts", partitions=3)
    parts.add_many([1, 2], key="k")
    with parts.group("g").consumer() as consumer:
        assert consumer.get(5) is not None
        assert consumer.get(0.1) is None
    next(parts.tail(ailf.EARLIEST))
    parts.delete()


def operate(stream: ailf.Stream[Any], group: ailf.Group[Any]) -> None:
    """Use the other calls of producers and operators."""
    assert group.dead_letters.redrive(group.dead_letters.list()[0].id) == 1
    assert group.dead_letters.purge_all() >= 1
    assert not stream.add_once("id", 1, key="k", max_deliveries=3).duplicate
    assert stream.cancel(stream.add(1, delay=60))
    with group.consumer(prefetch=10) as consumer:
        assert consumer.get(5) is not None
        group.pause()
        assert group.info().paused
        group.seek(ailf.LATEST)
        group.resume()
    assert stream.trim(ailf.Retention(max_len=1, max_age=60)).removed >= 1
    group.delete()


def use_locks(backend: ailf.Backend) -> None:
    """Use locks."""
    lock = backend.lock("l", fair=True)
    with lock.hold(5) as lease:
        lease.extend()
        lease.hand_over()
        with pytest.raises(ailf.LockTimeoutError):
            backend.lock("l", "other").acquire(0.05)
        assert lock.inspect().holders[0].fence == lease.fence
    lease = lock.acquire(5)
    assert lock.break_(lease.fence)
    with pytest.raises(ailf.LeaseLostError):
        lease.release()


def use_limiters(backend: ailf.Backend) -> None:
    """Use rate limiters."""
    limiter = backend.rate_limiter("r", rate="10/minute", window="10/minute sliding", parallel=ailf.Concurrency(1, 0.2))
    with limiter.acquire("k", rate=5) as permit:
        threading.Event().wait(0.15)  # long enough for its slot to be renewed
        permit.settle(rate=3)
        with pytest.raises(ailf.RateLimitedError):
            limiter.acquire("k", timeout=0.05)
    limiter.observe("k", limit="rate", remaining=2)
    assert limiter.peek("k").limits["rate"].remaining == 2
    limiter.reset("k")


def use_requests(backend: ailf.Backend, *, sharded: bool) -> None:
    """Use requests, on sharded channels too if the server has them."""
    for pubsub in [backend.pubsub(), *([backend.pubsub(sharded=True)] if sharded else [])]:
        with pubsub:
            pubsub.subscribe("ask", lambda message: message.data + 1)
            thread = pubsub.run_in_thread()
            assert pubsub.request("ask", 1, timeout=5).data == 2
            pubsub.stop()
            thread.join(5)


def use_listings(backend: ailf.Backend, *, sharded: bool) -> None:
    """List everything once."""
    backend.stream("s").add(1)
    backend.stream("parts", partitions=2).add(1)
    backend.rate_limiter("r", "5/hour").try_acquire("k")
    with backend.lock("l"), backend.stream("s").group("g").consumer() as consumer:
        assert consumer.get(5) is not None
        assert sorted(backend.streams()) == ["parts", "s"]
        assert [each.name for each in backend.locks()] == ["l"]
        assert ailf.LimiterName("r", "k") in list(backend.limiters())
        assert list(backend.stream("s").groups()) == ["g"]
        assert [each.in_hand for each in backend.stream("s").group("g").consumers()] == [1]
        assert backend.stream("parts").info().length == 1
    for pubsub in [backend.pubsub(), *([backend.pubsub(sharded=True)] if sharded else [])]:
        with pubsub.listen("c"):
            assert pubsub.channels("c") == [ailf.ChannelInfo("c", 1)]


def test_a_right_that_a_script_lacks(redis_versions: list[str], new_server: NewServer) -> None:
    """A command that is refused within a script is a PermissionDeniedError too, whatever the version's message."""
    for version in redis_versions:
        server = new_server(version=version)
        with server.client() as admin:
            rules = [each for each in published(version) if each != "+zadd"]
            admin.execute_command("ACL", "SETUSER", "agent", "reset", "on", ">pw", *rules)
        url = f"redis://agent:pw@127.0.0.1:{server.port}/0"
        with ailf.connect(url) as backend, pytest.raises(ailf.PermissionDeniedError, match="ACL rules"):
            backend.lock("l").try_acquire()
