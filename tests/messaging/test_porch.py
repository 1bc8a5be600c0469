"""Every name and signature of ailf.messaging.redis, against a real server."""

import asyncio
import threading
import time

import pytest

import ailf
from ailf.messaging.redis import AsyncRedisClient, RedisClient, RedisConfig, RedisPubSub, RedisStream
from tests.servers import NewServer, Server


@pytest.fixture
def config(any_server: Server) -> RedisConfig:
    """Where the test's server is."""
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
    """A server that is away is an error, no longer a silent None; health_check says False."""
    server = new_server()
    client = RedisClient(RedisConfig(host="127.0.0.1", port=server.port))
    server.stop()
    assert not client.health_check()
    with pytest.raises(ailf.BackendError):
        client.get("x")
    with pytest.raises(ailf.ConnectionLostError):
        client.connect()


def test_pubsub(config: RedisConfig, namespace: str) -> None:
    """Handlers get the plain payload: JSON, or text where it is none; unsubscribe and stop do so."""
    got: list[object] = []
    with RedisPubSub(RedisClient(config)) as pubsub:
        pubsub.subscribe(namespace, got.append)
        thread = pubsub.run_in_thread(daemon=True)
        pubsub.publish(namespace, {"n": 1})
        RedisClient(config).publish(namespace, "plain text")
        wait_until(lambda: len(got) == 2)
        pubsub.unsubscribe(namespace)
        pubsub.publish(namespace, {"n": 2})
        pubsub.stop()
        thread.join(5)
        assert not thread.is_alive()
    assert got == [{"n": 1}, "plain text"]


def test_stream_reading(config: RedisConfig, namespace: str) -> None:
    """Read returns dicts after an id, waits when told, and reads what earlier code wrote as text fields."""
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
        stream.delete()


def test_stream_groups(config: RedisConfig, namespace: str) -> None:
    """read_group takes, acknowledge settles, and what was not acknowledged goes back on close."""
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


def test_process_in_thread(config: RedisConfig, namespace: str) -> None:
    """process_in_thread works until stop; a processor that returns False gets the task again."""
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
