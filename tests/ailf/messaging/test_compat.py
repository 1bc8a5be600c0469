"""Every name and signature of ailf.messaging.redis, against a real server."""

import asyncio
import math
import subprocess
import sys
import threading
import time

import attrs
import pytest

import ailf
from ailf import messaging
from ailf.messaging.redis import (
    AsyncRedisClient,
    RedisClient,
    RedisConfig,
    RedisLock,
    RedisPubSub,
    RedisRateLimiter,
    RedisStream,
)
from tests.support.servers import NewServer, Server


@pytest.fixture
def config(any_server: Server) -> RedisConfig:
    """The configuration for the test's server."""
    return RedisConfig(host="127.0.0.1", port=any_server.port)


def test_client(config: RedisConfig, namespace: str) -> None:
    """RedisClient's helpers do what their names say."""
    client = RedisClient(config)
    assert client.connect() is client
    assert client.health_check()
    assert client.set(namespace, "v", expire=60)
    assert client.get(namespace) == "v"
    assert client.exists(namespace)
    assert 0 < client.client.ttl(namespace) <= 60
    assert client.delete(namespace)
    assert not client.exists(namespace)
    assert client.set_json(namespace, {"a": [1]})
    assert client.get_json(namespace) == {"a": [1]}
    client.set(namespace, "{not json")
    with pytest.raises(ailf.DecodeError):
        client.get_json(namespace)
    assert client.pipeline().delete(namespace).execute() == [1]
    assert client.get_json(namespace) is None
    assert client.publish(namespace, {"x": 1}) == 0
    client.close()


def test_async_client(config: RedisConfig, namespace: str) -> None:
    """AsyncRedisClient's helpers do the same."""

    async def main() -> None:
        client = AsyncRedisClient(config)
        assert await client.connect() is client
        assert await client.health_check()
        assert await client.set(namespace, "v", expire=60)
        assert await client.get(namespace) == "v"
        assert await client.exists(namespace)
        assert await client.set_json(namespace, {"a": [1]}, expire=60)
        assert await client.get_json(namespace) == {"a": [1]}
        assert await client.delete(namespace)
        assert await client.publish(namespace, "text") == 0
        assert await client.pipeline().set(namespace, 1).delete(namespace).execute() == [True, 1]
        await client.close()

    asyncio.run(main())


def test_errors_are_raised(new_server: NewServer) -> None:
    """A server that is down is an error, no longer a silent None; health_check returns False."""
    server = new_server()
    client = RedisClient(RedisConfig(host="127.0.0.1", port=server.port))
    server.stop()
    assert not client.health_check()
    with pytest.raises(ailf.BackendError):
        client.get("x")
    with pytest.raises(ailf.ConnectionLostError):
        client.connect()


def test_what_cannot_be_sent_or_read_is_an_error(config: RedisConfig, namespace: str) -> None:
    """A value that has no JSON form, a wrong type, or is no text raises an ailf error on both clients."""
    raw = attrs.evolve(config, decode_responses=False)
    RedisClient(raw).set(namespace, b"\xff", expire=60)
    assert RedisClient(raw).get(namespace) == b"\xff"
    client = RedisClient(config)
    for send in (client.set_json, client.publish):
        for value in (math.nan, object()):
            with pytest.raises(ailf.EncodeError):
                send(namespace, value)
    with pytest.raises(ailf.InvalidArgumentError, match="set_json"):
        client.set(namespace, {"a": 1})
    with pytest.raises(ailf.DecodeError, match="decode_responses"):
        client.get(namespace)

    async def main() -> None:
        other = AsyncRedisClient(config)
        with pytest.raises(ailf.EncodeError):
            await other.set_json(namespace, math.nan)
        with pytest.raises(ailf.DecodeError, match="decode_responses"):
            await other.get_json(namespace)
        assert await other.exists(namespace)
        await other.close()

    asyncio.run(main())
    client.close()


def test_what_was_never_sent_is_not_in_doubt(new_server: NewServer) -> None:
    """A request that was never sent is not in doubt, and the error says what to do, on both clients."""
    server = new_server()
    server.stop()
    config = RedisConfig(host="127.0.0.1", port=server.port)
    with pytest.raises(ailf.ConnectionLostError, match="Is the server running") as caught:
        RedisClient(config).set("x", "v")
    assert not caught.value.maybe_applied

    async def main() -> None:
        client = AsyncRedisClient(config)
        assert not await client.health_check()
        with pytest.raises(ailf.ConnectionLostError, match="Is the server running") as caught:
            await client.set("x", "v")
        assert not caught.value.maybe_applied
        await client.close()

    asyncio.run(main())


def test_without_redis_py() -> None:
    """Without the redis extra the import fails with the command that installs it."""
    program = "import sys; sys.modules['redis'] = None; import ailf.messaging.redis"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("run: pip install 'ailf[redis]'")


def test_pubsub(config: RedisConfig, namespace: str) -> None:
    """Handlers get the plain payload, JSON or text, until unsubscribe and stop."""
    got: list[object] = []
    with RedisPubSub(RedisClient(config)) as pubsub:
        pubsub.subscribe(namespace, got.append)
        thread = pubsub.run_in_thread(True)
        pubsub.publish(namespace, {"n": 1})
        RedisClient(config).publish(namespace, "plain text")
        wait_until(lambda: len(got) == 2)
        pubsub.unsubscribe(namespace)
        pubsub.publish(namespace, {"n": 2})
        pubsub.stop()
        thread.join(5)
        assert not thread.is_alive()
    assert got == [{"n": 1}, "plain text"]


def test_pubsub_refuses_at_once(config: RedisConfig, namespace: str) -> None:
    """A wrong handler or payload is refused by the call that gets it, not when a message comes."""

    async def coroutine_function(_message: object) -> None: ...

    with RedisPubSub(RedisClient(config)) as pubsub:
        with pytest.raises(ailf.InvalidArgumentError, match="callable"):
            pubsub.subscribe(namespace, None)  # type: ignore[arg-type]  # the point
        with pytest.raises(ailf.InvalidArgumentError, match="coroutine_function"):
            pubsub.subscribe(namespace, coroutine_function)
        with pytest.raises(ailf.EncodeError):
            pubsub.publish(namespace, {"x": math.nan})


def test_a_failing_handler_is_named(config: RedisConfig, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the handler that failed, not its wrapper."""

    def clumsy(_message: object) -> None:
        raise ValueError("oh")

    with RedisPubSub(RedisClient(config)) as pubsub:
        pubsub.subscribe(namespace, clumsy)
        thread = pubsub.run_in_thread()
        pubsub.publish(namespace, 1)
        wait_until(lambda: pubsub.errors == 1)
        pubsub.stop()
        thread.join(5)
    assert "clumsy failed" in caplog.text


def test_stream_reading(config: RedisConfig, namespace: str) -> None:
    """`read` returns dicts after an id, waits for `block` ms, and reads the text fields that earlier AILF wrote."""
    with RedisStream(namespace, RedisClient(config)) as stream:
        first = stream.add({"n": 1})
        RedisClient(config).client.xadd(namespace, {"task_id": "7"})
        assert stream.read(last_id="0") == [{"id": first, "data": {"n": 1}}, *stream.read(last_id=first)]
        assert stream.read(last_id=first)[0]["data"] == {"task_id": "7"}
        assert stream.read() == []
        begun = time.monotonic()
        assert stream.read(block=200) == []
        assert time.monotonic() - begun >= 0.15
        later = threading.Timer(0.1, stream.add, [{"n": 2}])
        later.start()
        assert [entry["data"] for entry in stream.read(block=5000)] == [{"n": 2}]
        later.join()
        with pytest.raises(ailf.InvalidArgumentError, match="count"):
            stream.read(count=0)
        stream.delete()


@pytest.mark.parametrize("last_id", ["0", "$"])
def test_reading_waits_out_a_restart(new_server: NewServer, last_id: str) -> None:
    """A read is repeated until the server is back, from any id."""
    server = new_server(appendonly=True)
    with RedisStream("s", RedisClient(RedisConfig(host="127.0.0.1", port=server.port))) as stream:
        stream.add(1)
        server.stop()
        back = threading.Timer(0.5, server.restart)
        back.start()
        assert [entry["data"] for entry in stream.read(last_id=last_id)] == ([1] if last_id == "0" else [])
        back.join()


def test_stream_groups(config: RedisConfig, namespace: str) -> None:
    """`read_group` leases messages, `acknowledge` settles them, and `close` releases the others."""
    with RedisStream(namespace, RedisClient(config)) as stream:
        with pytest.raises(ailf.InvalidArgumentError, match="create_consumer_group"):
            stream.read_group()
        ids = stream.add_many([{"n": number} for number in range(3)])
        stream.create_consumer_group("workers", "worker-1")
        taken = stream.read_group(count=2)
        assert taken == [{"id": ids[0], "data": {"n": 0}}, {"id": ids[1], "data": {"n": 1}}]
        assert stream.read_group(last_id="0") == taken
        assert stream.acknowledge(ids[0])
        assert not stream.acknowledge(ids[0])
    with RedisStream(namespace, RedisClient(config)) as other:
        other.create_consumer_group("workers", "worker-2")
        assert [entry["data"]["n"] for entry in other.read_group(count=5, block=1000)] == [1, 2]
        assert other.read_group(block=50) == []
        other.delete()


def test_group_from_now_on(config: RedisConfig, namespace: str) -> None:
    """With start_id="$", the former default, a new group sees only entries that are added later."""
    with RedisStream(namespace, RedisClient(config)) as stream:
        stream.add({"n": 1})
        stream.create_consumer_group("workers", "worker-1", start_id="$")
        assert stream.read_group() == []
        stream.add({"n": 2})
        assert [entry["data"] for entry in stream.read_group(block=1000)] == [{"n": 2}]
        stream.delete()


def test_another_group_is_another_reader(config: RedisConfig, namespace: str) -> None:
    """After `create_consumer_group` of another group `read_group` reads that one; the same group changes nothing."""
    with RedisStream(namespace, RedisClient(config)) as stream:
        first = stream.add({"n": 1})
        stream.create_consumer_group("a", "worker-1")
        taken = stream.read_group()
        stream.create_consumer_group("a", "worker-1")
        assert stream.read_group(last_id="0") == taken
        stream.create_consumer_group("b", "worker-1")
        assert stream.read_group(last_id="0") == []
        assert stream.read_group() == taken
        assert stream.acknowledge(first)
        pending = [RedisClient(config).client.xpending(namespace, group)["pending"] for group in ("a", "b")]
        assert pending == [1, 0], "the message was released to the first group"
        stream.delete()


def test_acknowledge_can_be_tried_again(new_server: NewServer) -> None:
    """A message whose acknowledgement failed is still leased, so the next try settles it."""
    server = new_server(appendonly=True)
    client = RedisClient(RedisConfig(host="127.0.0.1", port=server.port))
    with RedisStream("s", client) as stream:
        stream.add({"n": 1})
        stream.create_consumer_group("workers", "worker-1")
        (taken,) = stream.read_group()
        server.stop()
        with pytest.raises(ailf.BackendError):
            stream.acknowledge(taken["id"])
        server.restart()
        assert stream.acknowledge(taken["id"])
        assert client.client.xpending("s", "workers")["pending"] == 0
    client.close()


def test_what_is_taken_is_handed_out(config: RedisConfig, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the connection breaks within `read_group`, the messages taken before are returned, not kept for ever."""
    calls = 0
    get = ailf.Consumer.get

    def breaking(consumer: ailf.Consumer[object], timeout: float | None = None) -> object:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ailf.ConnectionLostError("cut")
        return get(consumer, timeout)

    with RedisStream(namespace, RedisClient(config)) as stream:
        entry = stream.add({"n": 1})
        stream.create_consumer_group("workers", "worker-1")
        monkeypatch.setattr(ailf.Consumer, "get", breaking)
        assert stream.read_group() == [{"id": entry, "data": {"n": 1}}]
        with pytest.raises(ailf.ConnectionLostError):
            stream.read_group()
        assert stream.acknowledge(entry)
        stream.delete()


def test_process_in_thread(config: RedisConfig, namespace: str) -> None:
    """`process_in_thread` works until `stop`; a processor that returns False gets the task again."""
    with RedisStream(namespace, RedisClient(config)) as stream:
        stream.create_consumer_group("workers", "worker-1")
        got: list[int] = []

        def process(task: dict[str, int]) -> bool:
            got.append(task["n"])
            return got.count(task["n"]) > 1 or task["n"] != 1

        thread = stream.process_in_thread(process)
        stream.add_many([{"n": 0}, {"n": 1}])
        wait_until(lambda: got.count(1) == 2)
        stream.stop()
        thread.join(5)
        assert not thread.is_alive()
        assert got.count(0) == 1
        stream.delete()


def wait_until(condition: object, timeout: float = 10) -> None:
    """Wait until a condition holds."""
    assert callable(condition)
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"not within {timeout:g} s"
        time.sleep(0.02)


def test_lock(config: RedisConfig, namespace: str) -> None:
    """RedisLock is held by one object at a time, until it is released or expires."""
    one, two = (RedisLock(namespace, expire=5, redis_client=RedisClient(config)) for _ in range(2))
    with one, two:
        assert one.acquire()
        assert not two.acquire(retry=2, retry_delay=0.05)
        assert not two.release()
        assert one.release()
        assert not one.release()
        with two.acquire_context() as acquired:
            assert acquired
            with one.acquire_context(retry=1) as nobody:
                assert not nobody
        assert one.acquire(retry=1)
        one.release()


def test_lock_expires(config: RedisConfig, namespace: str) -> None:
    """Another object can acquire an expired lock, and `release` of the first returns False."""
    with RedisLock(namespace, 0.1, RedisClient(config)) as one, RedisLock(namespace, 0.1, RedisClient(config)) as two:
        assert one.acquire()
        assert two.acquire(retry=10, retry_delay=0.1)
        assert not one.release()
        assert two.release()


def test_limiter(config: RedisConfig, namespace: str) -> None:
    """RedisRateLimiter allows `rate` calls of each key in a period, from all objects together."""
    one, two = (RedisRateLimiter(namespace, rate=3, period=60, redis_client=RedisClient(config)) for _ in range(2))
    with one, two:
        assert [each.is_allowed("k") for each in (one, two, one, two)] == [True, True, True, False]
        assert one.is_allowed("other")


def returned(config: RedisConfig, name: str) -> dict[str, tuple[object, type | tuple[type, ...]]]:
    """Call every method of the earlier classes that returns a value; return the values, with their types."""
    client = RedisClient(config)
    pubsub, stream = RedisPubSub(client), RedisStream(name, client)
    lock, limiter = RedisLock(name, redis_client=client), RedisRateLimiter(name, redis_client=client)
    results: dict[str, tuple[object, type | tuple[type, ...]]] = {
        "RedisClient.connect": (client.connect(), RedisClient),
        "RedisClient.health_check": (client.health_check(), bool),
        "RedisClient.set": (client.set(name + "k", "v", expire=60), bool),
        "RedisClient.get": (client.get(name + "k"), str),
        "RedisClient.get, absent": (client.get(name + "absent"), type(None)),
        "RedisClient.exists": (client.exists(name + "k"), bool),
        "RedisClient.delete": (client.delete(name + "k"), bool),
        "RedisClient.set_json": (client.set_json(name + "k", {"a": 1}, expire=60), bool),
        "RedisClient.get_json": (client.get_json(name + "k"), dict),
        "RedisClient.publish": (client.publish(name, 1), int),
        "RedisPubSub.publish": (pubsub.publish(name, {"a": 1}), int),
        "RedisPubSub.subscribe": (pubsub.subscribe(name, print), type(None)),
        "RedisPubSub.publish, heard": (pubsub.publish(name, {"a": 1}), int),
        "RedisPubSub.unsubscribe": (pubsub.unsubscribe(name), type(None)),
        "RedisStream.add": (stream.add({"a": 1}), str),
        "RedisStream.read": (stream.read(last_id="0"), list),
        "RedisStream.create_consumer_group": (stream.create_consumer_group("g", "c"), bool),
        "RedisStream.create_consumer_group, again": (stream.create_consumer_group("g", "c"), bool),
        "RedisStream.read_group": (stream.read_group(), list),
        "RedisStream.acknowledge": (stream.acknowledge("1-1"), bool),
        "RedisLock.acquire": (lock.acquire(), bool),
        "RedisLock.release": (lock.release(), bool),
        "RedisRateLimiter.is_allowed": (limiter.is_allowed("k"), bool),
    }
    entries = results["RedisStream.read"][0], results["RedisStream.read_group"][0]
    assert all(isinstance(each, list) and set(each[0]) == {"id", "data"} for each in entries)
    stream.delete()
    for each in (pubsub, stream, lock, limiter, client):
        each.close()
    return results


def test_every_method_returns_what_its_signature_says(config: RedisConfig, namespace: str) -> None:
    """Bools are bools, ids are text, counts are integers, entries are dicts."""
    results = returned(config, namespace)
    assert {name: value for name, (value, kind) in results.items() if type(value) is not kind} == {}
    assert results["RedisPubSub.publish"][0] == 0
    assert results["RedisPubSub.publish, heard"][0] == 1
    assert results["RedisStream.create_consumer_group, again"][0] is True


def test_the_names_are_in_the_package_too() -> None:
    """`from ailf.messaging import …` is the same; redis-py is imported on first use of a name."""
    assert [name for name in messaging.__all__ if getattr(messaging, name) is not globals()[name]] == []
    assert not hasattr(messaging, "RedisNothing")
    program = """if True:
        import sys
        sys.modules["redis"] = None
        import ailf.messaging
        assert "ailf.messaging.redis" not in sys.modules
        try:
            from ailf.messaging import RedisClient
        except ModuleNotFoundError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert "pip install 'ailf[redis]'" in done.stdout


def test_a_lock_of_earlier_code_is_not_acquired_by_a_with_block(config: RedisConfig, namespace: str) -> None:
    """`with lock` only closes the object at its end, as before; `acquire` is a separate call."""
    with RedisLock(namespace, redis_client=RedisClient(config)) as lock:
        assert not lock.release()
        assert lock.acquire(retry=1)
        assert lock.release()
