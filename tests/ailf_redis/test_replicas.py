"""A server with too few replicas refuses writes; as nothing was written, requests are retried within `retry_for`."""

import asyncio
import threading
from collections.abc import Callable

import pytest

import ailf
from tests.support.clusters import until
from tests.support.servers import NewServer, Server

WANTS_A_REPLICA = ("--min-replicas-to-write", "1")


def refused(server: Server) -> int:
    """Return how many requests the server has refused."""
    with server.client() as admin:
        return sum(int(each["count"]) for each in admin.info("errorstats").values())


def mend_when_refused(server: Server) -> threading.Thread:
    """Once the server has refused a request, let it need no replicas."""
    before = refused(server)

    def mend() -> None:
        until("nothing was refused", lambda: refused(server) > before)
        with server.client() as admin:
            admin.config_set("min-replicas-to-write", 0)

    mending = threading.Thread(target=mend)
    mending.start()
    return mending


WRITES: dict[str, Callable[[ailf.Backend], object]] = {
    "a command": lambda backend: backend.stream("s").add(1),
    "a script": lambda backend: backend.stream("s").add_many([2, 3]),
    "a lock": lambda backend: backend.lock("l").try_acquire(),
    "a limiter": lambda backend: backend.rate_limiter("r", "9/second").try_acquire(),
}


def test_too_few_replicas_are_waited_for(redis_versions: list[str], new_server: NewServer) -> None:
    """After NOREPLICAS commands and scripts are retried within `retry_for`, and nothing is written twice."""
    for version in redis_versions:
        server = new_server(*WANTS_A_REPLICA, version=version)
        with ailf.connect(f"{server.url}?retry_for=10") as backend, server.client() as admin:
            for write in WRITES.values():
                admin.config_set("min-replicas-to-write", 1)
                mending = mend_when_refused(server)
                assert write(backend)
                mending.join(20)
            assert [each.data for each in backend.stream("s").read()] == [1, 2, 3]


def test_too_few_replicas_on_asyncio(new_server: NewServer) -> None:
    """The same on asyncio, where requests share a connection."""
    server = new_server(*WANTS_A_REPLICA)

    async def main() -> None:
        async with ailf.connect_async(f"{server.url}?retry_for=10") as backend:
            mending = mend_when_refused(server)
            await asyncio.gather(*(backend.stream("s").add(number) for number in range(10)))
            await asyncio.to_thread(mending.join, 20)
            assert sorted([each.data for each in await backend.stream("s").read()]) == [*range(10)]

    asyncio.run(main())


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_too_few_replicas_for_too_long(
    redis_versions: list[str], new_server: NewServer, write: Callable[[ailf.Backend], object]
) -> None:
    """After `retry_for` seconds the error says what is missing, and that nothing was done."""
    server = new_server(*WANTS_A_REPLICA, version=redis_versions[0])
    with ailf.connect(f"{server.url}?retry_for=0") as backend:
        with pytest.raises(ailf.ConnectionLostError, match="is not ready: NOREPLICAS") as caught:
            write(backend)
        assert not caught.value.maybe_applied
