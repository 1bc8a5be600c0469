"""Sentinels by URL: the backend finds the master, follows a failover, and signs in to both."""

import asyncio
from collections.abc import Iterator

import pytest
import redis

import ailf
from tests.support import binaries
from tests.support.clusters import Watch, until


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    """A master, a replica and two Sentinels of the newest server."""
    version, binary = next(reversed(binaries.found().items()))
    with Watch(binary, version, sentinels=2) as started:
        yield started


def url_of(watch: Watch, credentials: str = "") -> str:
    """Return the URL of the Sentinels, the first of which is none."""
    hosts = ",".join(f"{host}:{port}" for host, port in [("127.0.0.1", 1), *watch.addresses()])
    return f"redis+sentinel://{credentials}{hosts}/{watch.SERVICE}"


def test_the_master_is_found(watch: Watch, namespace: str) -> None:
    """Both flavours use the master's database; `unwrap` returns a client of it; messages name the Sentinels."""
    url = f"{url_of(watch)}/2"
    with ailf.connect(url, namespace=namespace, timeout=2) as backend:
        backend.stream("s").add(1)
        with backend.lock("l") as lease:
            assert lease.fence
        with backend.pubsub().listen("c") as messages:
            backend.pubsub().publish("c", "x")
            assert messages.get(5) == ailf.Message("c", "x")
        client = backend.unwrap(redis.Redis)
        assert client.connection_pool.get_master_address()[1] == watch.master.port
        assert client.keys(f"*{namespace}*")
        assert backend.url == url_of(watch)

    async def main() -> None:
        async with ailf.connect_async(url, namespace=namespace, timeout=2) as opened:
            assert [each.data for each in await opened.stream("s").read()] == [1]
            async with opened.lock("l", ttl=0.3):
                await asyncio.sleep(0.5)  # the thread that renews leases asks the Sentinels, too
            client = opened.unwrap(redis.asyncio.Redis)
            assert await client.keys(f"*{namespace}*")

    asyncio.run(main())


def test_a_failover(watch: Watch, namespace: str) -> None:
    """After a failover calls continue with the new master."""
    with ailf.connect(url_of(watch), namespace=namespace, retry_for=15.0) as backend:
        backend.stream("s").add(1)
        former = watch.fail_over()
        backend.stream("s").add(2)
        assert watch.master is not former
        assert backend.stream("s").read()[-1].data == 2


def test_passwords(watch: Watch, namespace: str) -> None:
    """The credentials in the URL are the server's, those in the options the Sentinels'; a wrong one is an error."""
    for each in watch.servers:
        with each.client() as admin:
            admin.execute_command("ACL", "SETUSER", "app", "on", ">p1", "~*", "&*", "+@all")
    for each in watch.sentinels:
        with each.client() as admin:
            admin.execute_command("ACL", "SETUSER", "watcher", "on", ">p2", "~*", "&*", "+@all")
    until("the servers did not get ready", lambda: watch.master.running)
    options = "?sentinel_username=watcher&sentinel_password="
    with ailf.connect(f"{url_of(watch, 'app:p1@')}{options}p2", namespace=namespace) as backend:
        backend.stream("s").add(1)
        with watch.sentinel.client() as admin:
            assert "watcher" in {each["user"] for each in admin.client_list()}
        with watch.master.client() as admin:
            assert "app" in {each["user"] for each in admin.client_list()}
    with pytest.raises(ailf.PermissionDeniedError):
        ailf.connect(f"{url_of(watch, 'app:wrong@')}{options}p2", namespace=namespace)
